//! One client of the fleet: what it does when it is told something, closed or refused.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::Value;
use tidegate_testkit::masked_frame;
use tidegate_testkit::net::{SocketOptions, connect};

use super::stream::{Item, Protocol, Stream};
use super::{Ledger, RETRY_DELAY, Shared};
use crate::cluster::http::Http;

/// A subscriber of one channel.
#[derive(Debug)]
pub struct Client {
    channel: String,
    protocol: Protocol,
    /// The gateway it tries next, or is connected to.
    gateway: usize,
    position: Option<String>,
    /// The position is of no more use: history has to be read before the next connection.
    refill: bool,
    opened_once: bool,
    ledger: Ledger,
    link: Link,
}

#[derive(Debug)]
enum Link {
    Down { next_try: Instant },
    Up { socket: TcpStream, stream: Stream },
}

impl Client {
    pub(super) fn new(channel: &str, protocol: Protocol, gateway: usize) -> Self {
        Self {
            channel: channel.to_owned(),
            protocol,
            gateway,
            position: None,
            refill: false,
            opened_once: false,
            ledger: Ledger::default(),
            link: Link::Down { next_try: Instant::now() },
        }
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn socket(&self) -> Option<&TcpStream> {
        match &self.link {
            Link::Up { socket, .. } => Some(socket),
            Link::Down { .. } => None,
        }
    }

    pub(super) fn reconnect_when_due(&mut self, now: Instant, shared: &Shared) {
        if !matches!(self.link, Link::Down { next_try } if next_try <= now) {
            return;
        }
        let connected = if self.refill { self.read_history(shared) } else { Ok(()) };
        match connected.and_then(|()| self.connect(shared)) {
            Ok(socket) => self.link = Link::Up { socket, stream: Stream::new(self.protocol) },
            Err(_) => self.try_elsewhere(shared),
        }
    }

    /// Reads what has come and does what a user's client would do.
    pub(super) fn read(&mut self, buffer: &mut [u8], shared: &Shared) {
        let Link::Up { socket, stream } = &mut self.link else { return };
        match socket.read(buffer) {
            Ok(0) => self.ended("without a word", shared),
            Ok(count) => {
                let items = stream.push(buffer.get(..count).unwrap_or_default());
                for item in items {
                    // After the end of a connection nothing of it counts.
                    if self.socket().is_some() {
                        self.see(item, shared);
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.ended(&error.to_string(), shared),
        }
    }

    fn see(&mut self, item: Item, shared: &Shared) {
        match item {
            Item::Opened => {
                if !std::mem::replace(&mut self.opened_once, true) {
                    shared.opened.fetch_add(1, Ordering::Relaxed);
                }
            }
            Item::Refused(status) => {
                assert!(matches!(status, 429 | 502..=504), "{} was refused: {status}", self.channel);
                self.try_elsewhere(shared);
            }
            Item::Publication { number, position } => {
                self.received(number, shared);
                self.position = position.or(self.position.take());
            }
            Item::Position(position) => self.position = Some(position),
            Item::Gap { unrecoverable } => {
                self.ledger.gap();
                if shared.history {
                    self.refill = unrecoverable || self.position.is_none();
                    self.link = Link::Down { next_try: Instant::now() };
                }
            }
            Item::Ping(payload) => {
                if let Link::Up { socket, .. } = &mut self.link {
                    // A connection that takes no pong is cut by the server, which is seen here.
                    drop(socket.write_all(&masked_frame(0x8A, &payload)));
                }
            }
            Item::Close(why) => self.ended(&why, shared),
        }
    }

    fn received(&mut self, number: u32, shared: &Shared) {
        let finished = |ledger: &Ledger| ledger.next() == shared.publications_per_channel;
        let before = finished(&self.ledger);
        self.ledger.publication(number);
        if !before && finished(&self.ledger) {
            shared.finished.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn ended(&mut self, why: &str, shared: &Shared) {
        println!("a client of {} was closed: {why}", self.channel);
        self.ledger.close();
        // Without a position, what there is of history is what it comes back to.
        self.refill = shared.history && self.position.is_none();
        self.try_elsewhere(shared);
    }

    fn try_elsewhere(&mut self, shared: &Shared) {
        self.gateway = (self.gateway + 1) % shared.gateways.len();
        self.link = Link::Down { next_try: Instant::now() + RETRY_DELAY };
    }

    fn connect(&self, shared: &Shared) -> io::Result<TcpStream> {
        let address = *shared.gateways.get(self.gateway).expect("the index of a gateway");
        let mut socket =
            connect(address, SocketOptions { reset_on_close: true, ..SocketOptions::default() })?;
        let (channel, position) = (&self.channel, self.position.as_deref());
        let request = match self.protocol {
            Protocol::Raw => {
                let since = position.map(|position| format!("&since={position}")).unwrap_or_default();
                format!(
                    "GET /ws?channel={channel}&envelope=json{since} HTTP/1.1\r\nHost: localhost\r\n\
                     Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
            }
            Protocol::Sse => {
                let last = position.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
                format!(
                    "GET /sse?channel={channel} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n"
                )
            }
        };
        socket.write_all(request.as_bytes())?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Takes from history what this client does not have, and the position behind it.
    fn read_history(&mut self, shared: &Shared) -> io::Result<()> {
        let address = *shared.gateways.get(self.gateway).expect("the index of a gateway");
        let head = format!("GET /v1/channels/{}/history?limit=1000", self.channel);
        let (status, body) = Http::connect(address)?.request(&head, b"")?;
        if status != 200 {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let history: Value = serde_json::from_slice(&body)?;
        let publications = history["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
        let number = |publication: &Value| publication["data"].as_str()?.parse().ok();
        for number in publications.iter().filter_map(number) {
            if number >= self.ledger.next() {
                self.received(number, shared);
            }
        }
        if let (Value::String(epoch), Value::Number(offset)) = (&history["epoch"], &history["offset"]) {
            self.position = Some(format!("{epoch}:{offset}"));
        }
        self.refill = false;
        Ok(())
    }
}
