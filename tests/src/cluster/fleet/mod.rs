//! Hundreds of clients in a few threads: subscribers that come back with their position, as a user's would.

mod client;
mod stream;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidegate_testkit::{DEADLINE, eventually};

pub use client::Client;
pub use stream::Protocol;

use crate::cluster::ledger::{Ledger, Verdict};
use crate::cluster::publishers::Excused;

/// The most that a client waits to be looked at when nothing comes in.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Clients that read until [`Fleet::judge`].
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<Vec<Client>>>,
    clients: usize,
    publications_per_channel: u32,
}

/// What all clients know, and what they tell the test.
#[derive(Debug)]
struct Shared {
    gateways: Vec<SocketAddr>,
    history: bool,
    publications_per_channel: u32,
    stop: AtomicBool,
    opened: AtomicUsize,
    finished: AtomicUsize,
}

impl Fleet {
    /// `clients_per_gateway` at each gateway, WebSockets and event streams in turn, spread over the channels. One
    /// thread for each gateway.
    pub fn start(
        gateways: &[SocketAddr],
        channels: &[String],
        clients_per_gateway: usize,
        history: bool,
        publications_per_channel: u32,
    ) -> Self {
        let shared = Arc::new(Shared {
            gateways: gateways.to_vec(),
            history,
            publications_per_channel,
            stop: AtomicBool::new(false),
            opened: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
        });
        let reader = |gateway: usize| {
            let at = |index: usize| {
                let protocol =
                    if (index + gateway).is_multiple_of(2) { Protocol::Raw } else { Protocol::Sse };
                let channel = channels.get(index % channels.len()).expect("there are channels");
                Client::new(channel, protocol, gateway)
            };
            let clients: Vec<Client> = (0..clients_per_gateway).map(at).collect();
            let shared = Arc::clone(&shared);
            thread::spawn(move || read(clients, &shared))
        };
        let readers = (0..gateways.len()).map(reader).collect();
        let fleet =
            Self { shared, readers, clients: gateways.len() * clients_per_gateway, publications_per_channel };
        eventually("all clients are subscribed", DEADLINE, || {
            fleet.expect_alive();
            fleet.shared.opened.load(Ordering::Relaxed) == fleet.clients
        });
        fleet
    }

    /// Waits until every client has received the last publication of its channel.
    pub fn eventually_finished(&self) {
        eventually("every client has the last publication of its channel", DEADLINE, || {
            self.expect_alive();
            self.shared.finished.load(Ordering::Relaxed) == self.clients
        });
    }

    /// Ends all clients and judges what they have. Gives as well what is missing anywhere, by channel and number.
    pub fn judge(self, excused: &Excused) -> (Verdict, BTreeSet<(String, u32)>) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let total = self.publications_per_channel;
        let clients =
            self.readers.into_iter().flat_map(|reader| reader.join().expect("a reader does not panic"));
        let mut worst: Option<(Verdict, String)> = None;
        let mut missing = BTreeSet::new();
        let sum = clients.fold(Verdict::default(), |sum, client| {
            let none = BTreeSet::new();
            let excused = excused.get(client.channel()).unwrap_or(&none);
            let lacks = client.ledger().missing(total, excused);
            missing.extend(lacks.into_iter().map(|number| (client.channel().to_owned(), number)));
            let verdict = client.ledger().judge(total, excused);
            if verdict.silent + verdict.duplicated + verdict.misordered > 0 && worst.is_none() {
                worst = Some((verdict, format!("{client:?}")));
            }
            sum.plus(verdict)
        });
        if let Some((verdict, client)) = worst {
            println!("a client with a finding: {verdict:?}\n{client}");
        }
        (sum, missing)
    }

    /// # Panics
    /// When a reader has ended: its own panic was printed.
    #[track_caller]
    fn expect_alive(&self) {
        assert!(!self.readers.iter().any(JoinHandle::is_finished), "a reader of the fleet ended");
    }
}

/// Reads for a share of the clients until told to stop.
fn read(mut clients: Vec<Client>, shared: &Shared) -> Vec<Client> {
    let mut buffer = vec![0; 64 * 1024];
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        for client in &mut clients {
            client.reconnect_when_due(now, shared);
        }
        for index in readable(&clients) {
            if let Some(client) = clients.get_mut(index) {
                client.read(&mut buffer, shared);
            }
        }
    }
    clients
}

/// Positions of the clients that have something to read, after a tick at the latest.
fn readable(clients: &[Client]) -> Vec<usize> {
    let connected = clients.iter().enumerate().filter_map(|(index, client)| Some((index, client.socket()?)));
    let (indexes, mut polled): (Vec<usize>, Vec<PollFd<'_>>) = connected
        .map(|(index, socket)| (index, PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)))
        .unzip();
    poll(&mut polled, Some(&TICK)).expect("open sockets can be polled");
    let ready = indexes.into_iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty());
    ready.map(|(index, _)| index).collect()
}

/// A client that was refused or cut off comes again after this.
const RETRY_DELAY: Duration = Duration::from_millis(200);
