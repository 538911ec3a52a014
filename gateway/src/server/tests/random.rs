//! Clients of every kind that come, go and come back while publishers run: each ends with every publication of its
//! channels once and in order, or a gap notice where some are missing.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use fastrand::Rng;
use serde_json::Value;
use tidegate_backplane::Position;
use tidegate_testkit::{
    Closed, DEADLINE, RawTcp, Received, SseClient, WsClient, eventually, net::SocketOptions,
};

use super::rig::{Rig, config};
use crate::config::ByteSize;

const CHANNELS: usize = 3;
const PUBLISHERS: usize = 3;
const PUBLICATIONS: usize = 700;
const CLIENTS: usize = 15;

/// What the last publication of a channel begins with.
const END: &str = "end";

/// A seed replays every choice, though not the order of threads.
fn random_of(seed: u64, thread: usize) -> Rng {
    Rng::with_seed(seed.wrapping_mul(10_000) + thread as u64)
}

/// What all threads of a run share.
struct Run {
    rig: Rig,
    seed: u64,
    /// What every position carries, as the publishers were answered.
    published: Mutex<HashMap<String, (usize, Position)>>,
    /// Where each channel stood before the first client came.
    starts: Vec<Position>,
    count: AtomicUsize,
}

#[test]
fn one_shard() {
    run(1, 1, 100_000);
}

#[test]
fn two_shards() {
    run(2, 2, 100_000);
}

/// 50 publications are a small part of what is missed by a client that does not read for a while.
#[test]
fn two_shards_and_a_history_that_is_often_too_short() {
    run(3, 2, 50);
}

fn run(seed: u64, shards: usize, history_size: u32) {
    let mut config = config();
    config.shards = NonZeroUsize::new(shards).unwrap();
    config.limits.send_queue_bytes = ByteSize::kib(64);
    config.namespaces.default.history_size = history_size;
    let rig = Rig::start(config);
    let starts = (0..CHANNELS).map(|channel| rig.publish(&name(channel), "start").unwrap()).collect();
    let run = Run { rig, seed, published: Mutex::default(), starts, count: AtomicUsize::new(0) };
    let clients = thread::scope(|scope| {
        let run = &run;
        scope.spawn(move || publish_all(run));
        scope.spawn(move || delay(run));
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || Client::new(run, number).live())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let truth = run.truth();
    let mut gaps = 0;
    for client in &clients {
        gaps += client.check(&truth);
    }
    assert!(history_size < 1000 || gaps == 0, "seed {seed}: {gaps} gaps though history holds everything");
    drop(clients);
    run.rig.eventually_empty();
}

fn name(channel: usize) -> String {
    format!("room{channel}")
}

fn publish_all(run: &Run) {
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            scope.spawn(move || publish(run, publisher));
        }
    });
    for channel in 0..CHANNELS {
        run.publish(channel, format!("{END} of {channel}"));
    }
}

fn publish(run: &Run, publisher: usize) {
    let mut random = random_of(run.seed, publisher);
    for number in 0..PUBLICATIONS {
        let channel = random.usize(..CHANNELS);
        let filler = if random.usize(..4) == 0 { 1500 } else { random.usize(..100) };
        let text = format!("{publisher}-{number}-{}", "x".repeat(filler));
        run.publish(channel, text);
        run.count.fetch_add(1, Ordering::AcqRel);
    }
}

/// Holds the backplane's answers and hand-overs, again and again.
fn delay(run: &Run) {
    let mut random = random_of(run.seed, 1000);
    while !run.is_over() {
        let until = run.count.load(Ordering::Acquire) + 1 + random.usize(..40);
        match random.usize(..3) {
            0 => run.rig.backplane.hold_publications(),
            1 => run.rig.backplane.history.shut(),
            _ => {}
        }
        run.wait_for(until);
        run.rig.backplane.history.let_pass();
        run.rig.backplane.hand_over();
        run.rig.backplane.history.open();
    }
}

impl Run {
    fn publish(&self, channel: usize, text: String) {
        let position = self.rig.publish(&name(channel), &text).unwrap();
        self.published.lock().unwrap().insert(text, (channel, position));
    }

    fn is_over(&self) -> bool {
        self.count.load(Ordering::Acquire) == PUBLISHERS * PUBLICATIONS
    }

    fn wait_for(&self, count: usize) {
        let count = count.min(PUBLISHERS * PUBLICATIONS);
        eventually("more publications", DEADLINE, || self.count.load(Ordering::Acquire) >= count);
    }

    /// The position that a publisher was told.
    fn position(&self, text: &str) -> Position {
        let position = || self.published.lock().unwrap().get(text).map(|&(_, position)| position);
        tidegate_testkit::eventually_some("the publisher's answer", DEADLINE, position)
    }

    /// For each channel, what follows its start, in order.
    fn truth(&self) -> Vec<Vec<String>> {
        let published = self.published.lock().unwrap();
        let mut all: Vec<(usize, u64, &String)> =
            published.iter().map(|(text, &(channel, position))| (channel, position.offset, text)).collect();
        all.sort_unstable();
        let of = |channel| all.iter().filter(move |&&(own, ..)| own == channel);
        (0..CHANNELS)
            .map(|channel| {
                of(channel)
                    .zip(self.starts[channel].offset + 1..)
                    .map(|(&(_, offset, text), expected)| {
                        assert_eq!(offset, expected, "seed {}: offsets have no holes", self.seed);
                        text.clone()
                    })
                    .collect()
            })
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Verbatim,
    Envelope,
    Stream,
    /// An event stream of all channels.
    Streams,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Text {
        offset: u64,
        text: String,
    },
    /// Told that some are missing, up to this one.
    Gap(u64),
}

struct Client<'r> {
    run: &'r Run,
    number: usize,
    kind: Kind,
    channels: Vec<usize>,
    /// For each of its channels: where it stands, and how it got there.
    last: Vec<Position>,
    seen: Vec<Vec<Seen>>,
    /// The last id of its stream.
    id: Option<String>,
    random: Rng,
}

enum Connection {
    Socket(WsClient),
    Stream(SseClient),
}

impl<'r> Client<'r> {
    fn new(run: &'r Run, number: usize) -> Self {
        let kind = [Kind::Verbatim, Kind::Envelope, Kind::Stream, Kind::Streams, Kind::Streams][number % 5];
        let mut random = random_of(run.seed, 100 + number);
        let channels = match kind {
            Kind::Streams => (0..CHANNELS).collect(),
            _ => vec![random.usize(..CHANNELS)],
        };
        let last: Vec<Position> = channels.iter().map(|&channel| run.starts[channel]).collect();
        let seen = channels.iter().map(|_| Vec::new()).collect();
        Self { run, number, kind, channels, last, seen, id: None, random }
    }

    fn live(mut self) -> Self {
        while !self.run.is_over() {
            match self.random.usize(..8) {
                0 => self.vanish(),
                1 | 2 => {
                    let mut connection = self.connect();
                    let until = self.run.count.load(Ordering::Acquire) + self.random.usize(..PUBLICATIONS);
                    self.run.wait_for(until);
                    self.read(&mut connection, |client| client.random.usize(..60) == 0 || client.has_all());
                }
                _ => {
                    let mut connection = self.connect();
                    self.read(&mut connection, |client| client.random.usize(..25) == 0 || client.has_all());
                    if let (Connection::Socket(socket), 0) = (&mut connection, self.random.usize(..3)) {
                        socket.send_close(1000, "");
                        socket.read_to_close(DEADLINE);
                    }
                }
            }
        }
        while !self.has_all() {
            let mut connection = self.connect();
            self.read(&mut connection, Self::has_all);
        }
        self
    }

    /// It has the last publication of each channel, or was told of a gap up to it.
    fn has_all(&mut self) -> bool {
        let ends = |(seen, last): (&Vec<Seen>, &Position)| match seen.last() {
            Some(Seen::Text { text, .. }) => text.starts_with(END),
            Some(Seen::Gap(_)) => {
                let published = self.run.published.lock().unwrap();
                let end =
                    published.iter().find(|(text, (_, position))| text.starts_with(END) && position == last);
                end.is_some()
            }
            None => false,
        };
        self.seen.iter().zip(&self.last).all(ends)
    }

    fn path(&self) -> String {
        let channels: Vec<String> =
            self.channels.iter().map(|&channel| format!("channel={}", name(channel))).collect();
        let channels = channels.join("&");
        match self.kind {
            Kind::Verbatim => format!("/ws?{channels}&since={}", self.last[0]),
            Kind::Envelope => format!("/ws?{channels}&since={}&envelope=json", self.last[0]),
            Kind::Stream | Kind::Streams => format!("/sse?{channels}"),
        }
    }

    fn last_id(&self) -> String {
        let places: Vec<String> = self.last.iter().map(Position::to_string).collect();
        let expected = places.join(",");
        assert!(self.id.as_ref().is_none_or(|id| *id == expected), "{:?} is not {expected}", self.id);
        expected
    }

    fn connect(&self) -> Connection {
        let (address, path) = (self.run.rig.address, self.path());
        match self.kind {
            Kind::Verbatim | Kind::Envelope => {
                let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
                Connection::Socket(WsClient::try_connect_from(address, &path, &[], options).unwrap())
            }
            Kind::Stream | Kind::Streams => {
                Connection::Stream(SseClient::connect(address, &path, Some(&self.last_id())))
            }
        }
    }

    /// Asks, and is gone before the answer or with it.
    fn vanish(&mut self) {
        let mut socket = RawTcp::connect(self.run.rig.address);
        let request = match self.kind {
            Kind::Verbatim | Kind::Envelope => {
                socket = RawTcp::upgrade(self.run.rig.address, &self.path());
                String::new()
            }
            Kind::Stream | Kind::Streams => format!(
                "GET {} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {}\r\n\r\n",
                self.path(),
                self.last_id()
            ),
        };
        socket.send(request.as_bytes());
    }

    /// Reads until it has had enough or the connection ends.
    fn read(&mut self, connection: &mut Connection, mut enough: impl FnMut(&mut Self) -> bool) {
        while !enough(self) {
            let goes_on = match connection {
                Connection::Socket(socket) => match socket.next(DEADLINE) {
                    Received::Text(text) if self.kind == Kind::Verbatim => self.take_verbatim(text),
                    Received::Text(text) => self.take_notice(0, &serde_json::from_str(&text).unwrap()),
                    Received::Closed(closed) => self.take_close(&closed),
                    // The gateway looks after one that was not heard of for a while, as on a starved machine.
                    Received::Ping(_) => true,
                    other => panic!("client {} got {other:?} at {:?}", self.number, self.last),
                },
                Connection::Stream(stream) => match stream.next(DEADLINE) {
                    Ok(event) => self.take_event(event.event == "gap", &event.data, event.id),
                    Err(tidegate_testkit::ReadError::Closed) => false,
                    Err(error) => panic!("client {}: {error}", self.number),
                },
            };
            if !goes_on {
                return;
            }
        }
    }

    fn take_verbatim(&mut self, text: String) -> bool {
        let position = self.run.position(&text);
        self.take(0, position, text)
    }

    fn take_notice(&mut self, at: usize, notice: &Value) -> bool {
        let place = |value: &Value| Position {
            epoch: value["epoch"].as_str().unwrap().parse().unwrap(),
            offset: value["offset"].as_u64().unwrap(),
        };
        if notice["gap"].is_object() {
            return self.take_gap(at, place(&notice["gap"]));
        }
        self.take(at, place(notice), notice["data"].as_str().unwrap().to_owned())
    }

    fn take_event(&mut self, is_gap: bool, data: &str, id: String) -> bool {
        let places: Vec<Position> = id.split(',').map(|place| place.parse().unwrap()).collect();
        self.id = Some(id);
        let changed: Vec<usize> = (0..places.len()).filter(|&at| places[at] != self.last[at]).collect();
        let &[at] = &changed[..] else {
            panic!("client {}: {places:?} after {:?}: {:.20}", self.number, self.last, data);
        };
        match is_gap {
            true => self.take_gap(at, places[at]),
            false => self.take(at, places[at], data.to_owned()),
        }
    }

    /// A verbatim client is told of a gap by its end, and begins anew where the channel stands.
    fn take_close(&mut self, closed: &Closed) -> bool {
        if matches!(closed, Closed::Frame { code: 4010, .. }) {
            let published = self.run.published.lock().unwrap();
            let own = published.values().filter(|(channel, _)| *channel == self.channels[0]);
            let top = own.map(|&(_, position)| position).max_by_key(|position| position.offset);
            drop(published);
            if let Some(top) = top.filter(|top| top.offset > self.last[0].offset) {
                self.take_gap(0, top);
            }
        }
        false
    }

    fn take(&mut self, at: usize, position: Position, text: String) -> bool {
        assert_eq!(position.epoch, self.last[at].epoch, "client {}", self.number);
        self.last[at] = position;
        self.seen[at].push(Seen::Text { offset: position.offset, text });
        true
    }

    fn take_gap(&mut self, at: usize, top: Position) -> bool {
        self.last[at] = top;
        self.seen[at].push(Seen::Gap(top.offset));
        true
    }

    /// Walks what it saw along what was published; the number of gaps.
    fn check(&self, truth: &[Vec<String>]) -> usize {
        let mut gaps = 0;
        for (&channel, seen) in self.channels.iter().zip(&self.seen) {
            let who = format!(
                "seed {}, client {} ({:?}), {}",
                self.run.seed,
                self.number,
                self.kind,
                name(channel)
            );
            let start = self.run.starts[channel].offset;
            let mut at = start;
            for seen in seen {
                match seen {
                    Seen::Text { offset, text } => {
                        assert_eq!(*offset, at + 1, "{who}: {offset} after {at}");
                        assert_eq!(*text, truth[channel][(offset - start - 1) as usize], "{who}: {offset}");
                        at = *offset;
                    }
                    Seen::Gap(top) => {
                        assert!(*top >= at, "{who}: a gap back to {top} from {at}");
                        at = *top;
                        gaps += 1;
                    }
                }
            }
            assert_eq!(at, start + truth[channel].len() as u64, "{who}: the end is missing");
        }
        gaps
    }
}
