//! A TCP proxy on loopback that stops forwarding when told: the wire between a client and a server.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::net::{SocketOptions, connect};
use crate::wait::observe;

const TICKS_PER_SECOND: usize = 50;
const TICK: Duration = Duration::from_millis(1_000 / TICKS_PER_SECOND as u64);

/// A proxy in front of one address. What a server tells of other addresses (Sentinel, Cluster) goes past it.
#[derive(Debug)]
pub struct Cut {
    address: SocketAddr,
    wire: Arc<Wire>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Wire {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Both ends of every connection, under its number, to shut them down.
    connections: BTreeMap<u64, [TcpStream; 2]>,
    connections_made: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forwarding,
    /// Each connection carries so many bytes in a tick.
    Slow(usize),
    /// What comes is held back for so long.
    Late(Duration),
    /// Connections stand, also new ones, and nothing passes.
    Silent,
    /// No connection stands, a new one is closed at once.
    Closed,
    Ended,
}

impl Cut {
    /// Listens on a free port and forwards to `target`.
    ///
    /// # Panics
    /// When loopback has no free port.
    #[track_caller]
    pub fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state =
            Mutex::new(State { mode: Mode::Forwarding, connections: BTreeMap::new(), connections_made: 0 });
        let wire = Arc::new(Wire { target, state, changed: Condvar::new() });
        let accepting = Arc::clone(&wire);
        let acceptor = thread::spawn(move || accept(&listener, &accepting));
        Self { address, wire, acceptor: Some(acceptor) }
    }

    /// Where clients connect in the server's stead.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `redis://…` of [`Cut::address`].
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Stops forwarding. Connections stay open, and bytes on their way wait for [`Cut::go_on`].
    pub fn silence(&self) {
        self.wire.set(Mode::Silent);
    }

    /// Forwards so many bytes a second of each connection, each way.
    pub fn slow(&self, bytes_per_second: usize) {
        self.wire.set(Mode::Slow((bytes_per_second / TICKS_PER_SECOND).max(1)));
    }

    /// Holds back for so long, each way, what comes.
    pub fn late(&self, delay: Duration) {
        self.wire.set(Mode::Late(delay));
    }

    /// Closes every connection, and new ones as they come.
    pub fn close(&self) {
        self.wire.set(Mode::Closed);
    }

    /// Forwards again.
    pub fn go_on(&self) {
        self.wire.set(Mode::Forwarding);
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.wire.set(Mode::Ended);
        // Wakes the acceptor; when that fails it has ended already.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

impl Wire {
    fn set(&self, mode: Mode) {
        let mut state = self.lock();
        state.mode = mode;
        if matches!(mode, Mode::Closed | Mode::Ended) {
            for socket in std::mem::take(&mut state.connections).into_values().flatten() {
                // An error means that the peer was faster.
                drop(socket.shutdown(Shutdown::Both));
            }
        }
        self.changed.notify_all();
    }

    /// Gives a connection its number; `None` when it is to be closed at once.
    fn register(&self, sockets: [TcpStream; 2]) -> Option<u64> {
        let mut state = self.lock();
        if matches!(state.mode, Mode::Closed | Mode::Ended) {
            return None;
        }
        let number = state.connections_made;
        state.connections_made += 1;
        state.connections.insert(number, sockets);
        Some(number)
    }

    /// Waits while the wire is silent.
    fn pass(&self) {
        let state = self.lock();
        let waited = self.changed.wait_while(state, |state| state.mode == Mode::Silent);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn mode(&self) -> Mode {
        self.lock().mode
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, wire: &Arc<Wire>) {
    for client in listener.incoming() {
        let mode = wire.lock().mode;
        match (mode, client) {
            (Mode::Ended, _) => return,
            (Mode::Forwarding | Mode::Slow(_) | Mode::Late(_) | Mode::Silent, Ok(client)) => {
                let wire = Arc::clone(wire);
                // A server that is away closes the client, which is what the thread's end does.
                thread::spawn(move || drop(join(client, &wire)));
            }
            (Mode::Closed, _) | (_, Err(_)) => {}
        }
    }
}

/// Connects to the target, once the wire lets it, and moves bytes both ways until one side ends.
fn join(client: TcpStream, wire: &Arc<Wire>) -> io::Result<()> {
    wire.pass();
    let server = connect(wire.target, SocketOptions::default())?;
    client.set_nodelay(true)?;
    let Some(number) = wire.register([client.try_clone()?, server.try_clone()?]) else { return Ok(()) };
    let (client_to_server, server_to_client) = ((client.try_clone()?, server.try_clone()?), (server, client));
    thread::scope(|scope| {
        scope.spawn(|| pump(server_to_client, wire));
        pump(client_to_server, wire);
    });
    wire.lock().connections.remove(&number);
    Ok(())
}

fn pump((mut from, mut to): (TcpStream, TcpStream), wire: &Wire) {
    // Large, so that what is late is late together.
    let mut buffer = vec![0; 1024 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        wire.pass();
        let bytes = buffer.get(..count).unwrap_or_default();
        let sent = match wire.mode() {
            Mode::Late(delay) => {
                observe(delay);
                to.write_all(bytes)
            }
            Mode::Slow(portion) => bytes.chunks(portion).try_for_each(|portion| {
                observe(TICK);
                to.write_all(portion)
            }),
            _ => to.write_all(bytes),
        };
        if sent.is_err() {
            break;
        }
    }
    // The end of one side is the end of both, after what the wire holds back.
    wire.pass();
    for socket in [from, to] {
        drop(socket.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{RedisClient, RedisServer};

    #[test]
    fn a_silent_wire_keeps_bytes_and_a_closed_one_keeps_nothing() {
        let server = RedisServer::start();
        let cut = Cut::before(server.address());
        let mut client = RedisClient::connect(cut.address()).expect("the wire is there");
        assert_eq!(client.command(&["PING"]).expect("it forwards").text(), "PONG");

        cut.silence();
        thread::scope(|scope| {
            let late = scope.spawn(|| client.command(&["PING"]));
            assert_eq!(server.command(&["PING"]).text(), "PONG");
            assert!(!late.is_finished());
            cut.go_on();
            assert_eq!(late.join().expect("no panic").expect("the bytes waited").text(), "PONG");
        });

        cut.close();
        assert!(client.command(&["PING"]).is_err());
        let refused = RedisClient::connect(cut.address()).map(|mut client| client.command(&["PING"]));
        assert!(refused.is_err() || refused.is_ok_and(|answer| answer.is_err()));
        cut.go_on();
        let mut client = RedisClient::connect(cut.address()).expect("the wire is back");
        assert_eq!(client.command(&["PING"]).expect("it forwards").text(), "PONG");
    }
}
