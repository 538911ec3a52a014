//! Many WebSocket (or event stream) clients in one party of the loop, cheap enough not to be the bottleneck.

mod connecting;
mod reading;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;

use self::connecting::CONNECTS_PER_TURN;
use crate::centrifuge::Dialect;
use crate::driver::{Io, Party, Readiness};
use crate::frame::{FrameScanner, write_client_frame};
use crate::order::OrderCheck;
use crate::sse::SseScanner;
use crate::stats::{ConnectFailure, Ending, FleetStats};
use crate::target::Target;

/// Chooses a connection's channel, by index.
pub type ChannelOf = Arc<dyn Fn(u32) -> u32 + Send + Sync>;

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `GET /ws?channel=C`, count what arrives.
    Subscribe,
    /// The same with `envelope=json`: what is missed while the connection is away follows when it is back.
    SubscribeRecovering,
    /// `GET /sse?channel=C`, count events.
    SubscribeSse,
    /// `GET /socket.io/?channel=C`, connect to the namespace, count events.
    SubscribeSocketIo,
    /// `GET /app/KEY`: subscribe to the channel by Pusher's protocol, count events.
    SubscribePusher,
    /// The same for a presence channel, each connection as a user of its own.
    SubscribePresence,
    /// `GET /connection/websocket`: connect and subscribe by Centrifugo's protocol, count publications.
    SubscribeCentrifuge(Dialect),
    /// `GET /echo`: send a message of this many bytes, wait for it, send the next.
    Echo { bytes: usize },
    /// `GET /ws?envelope=json`: ask the application by a message, wait for the answer, ask the next.
    Ask,
}

/// The load to open.
#[derive(Clone)]
pub struct FleetConfig {
    pub target: Target,
    pub role: Role,
    pub connections: u32,
    /// Names as they stand in a URL: `a&channel=b` is two channels of one connection.
    pub channels: Arc<[String]>,
    pub channel_of: ChannelOf,
    /// Handshakes under way at once.
    pub handshakes_in_flight: u32,
    /// Ceiling on new connections per second.
    pub connects_per_second: Option<u32>,
    /// Local addresses 127.0.0.2, .3, … used in turn when the target is loopback; 0 uses none.
    pub sources: u8,
    /// Run id expected in stamps.
    pub run: u16,
    /// See [`ConnectOptions::reset_on_close`].
    pub reset_on_close: bool,
    /// Shown with each handshake.
    pub token: Option<Arc<str>>,
    /// A connection that was open and ends is opened again, as a client would.
    pub comes_back: bool,
}

impl fmt::Debug for FleetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetConfig")
            .field("target", &self.target)
            .field("role", &self.role)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// The party.
#[derive(Debug)]
pub struct Fleet {
    id: u16,
    config: FleetConfig,
    connections: Vec<Connection>,
    /// Connections whose handshake is not over, oldest first; finished ones are skipped when met.
    handshakes: VecDeque<u32>,
    handshaking: u32,
    ramp_began_ns: Option<u64>,
    open: u32,
    echo_frame: Vec<u8>,
    /// Connections that are to be opened again, and from when on.
    returning: VecDeque<(u64, u32)>,
    stats: FleetStats,
}

#[derive(Debug)]
struct Connection {
    /// Times that it was opened again.
    returns: u32,
    /// `None` once it ended.
    stream: Option<TcpStream>,
    phase: Phase,
    channel: u32,
    /// Begin of the connect, then of the last echo.
    began_ns: u64,
    scanner: Scanner,
    order: OrderCheck,
    /// Where it was in its channel, `EPOCH:OFFSET`; empty unless it recovers.
    position: String,
    /// What the socket did not take yet; empty and unallocated as a rule.
    out: Vec<u8>,
    /// A response head cut by a read.
    head: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Handshaking,
    /// Upgraded, and not yet let in by the protocol above.
    Joining,
    Open,
    Closed,
}

#[derive(Debug)]
enum Scanner {
    Frames(FrameScanner),
    Events(Box<SseScanner>),
}

/// What a turn of reading decided about a connection.
enum Verdict {
    Keep,
    Failed(ConnectFailure),
    Ended(Ending),
}

impl Fleet {
    /// A fleet that begins to connect with the driver's next turn. `id` must be unique in the driver.
    #[must_use]
    pub fn new(id: u16, config: FleetConfig) -> Self {
        let mut echo_frame = Vec::new();
        if let Role::Echo { bytes } = config.role {
            write_client_frame(&mut echo_frame, 0x2, &vec![b'e'; bytes]);
        }
        if config.role == Role::Ask {
            write_client_frame(&mut echo_frame, 0x1, br#"{"message":{"n":1},"id":1}"#);
        }
        Self {
            id,
            connections: Vec::with_capacity(config.connections as usize),
            config,
            handshakes: VecDeque::new(),
            handshaking: 0,
            ramp_began_ns: None,
            open: 0,
            echo_frame,
            returning: VecDeque::new(),
            stats: FleetStats::default(),
        }
    }

    #[must_use]
    pub fn stats(&self) -> &FleetStats {
        &self.stats
    }

    /// Latencies are counted anew.
    pub fn forget_latencies(&mut self) {
        self.stats.latency_us.reset();
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Every connection was tried and is open or failed.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.connections.len() == self.config.connections as usize && self.handshaking == 0
    }

    /// Messages acknowledged to publishers that never came to a connection still open, after the last one
    /// it saw of that stream. `acknowledged` gives the last sequence number per (stream, channel).
    pub fn missing_tail(&self, streams: u16, acknowledged: impl Fn(u16, u32) -> u32) -> u64 {
        let open = self.connections.iter().filter(|connection| connection.phase == Phase::Open);
        open.map(|connection| {
            (0..streams)
                .map(|stream| {
                    let sent = acknowledged(stream, connection.channel);
                    u64::from(sent.saturating_sub(connection.order.last(stream)))
                })
                .sum::<u64>()
        })
        .sum()
    }

    /// Open connections per channel index.
    #[must_use]
    pub fn subscribers(&self) -> Vec<u32> {
        let mut counts = vec![0; self.config.channels.len().max(1)];
        for connection in &self.connections {
            if connection.phase == Phase::Open {
                counts[connection.channel as usize] += 1;
            }
        }
        counts
    }

    /// Says good-bye with code 1000 and half-closes every open connection; what is still read is counted.
    pub fn close_all(&mut self) {
        let mut close = Vec::new();
        write_client_frame(&mut close, 0x8, &1000u16.to_be_bytes());
        for connection in &mut self.connections {
            if connection.phase != Phase::Open {
                continue;
            }
            if let Some(stream) = &mut connection.stream {
                // The run is over: a socket that cannot take a close frame now is closed without one.
                let said = matches!(connection.scanner, Scanner::Events(_)) || stream.write(&close).is_ok();
                if !said || stream.shutdown(Shutdown::Write).is_err() {
                    connection.stream = None;
                }
            }
            connection.phase = Phase::Closed;
        }
        self.open = 0;
        self.config.comes_back = false;
        self.returning.clear();
    }

    fn on_writable(&mut self, key: usize) -> Verdict {
        if self.connections[key].phase == Phase::Connecting {
            let Connection { channel, position, .. } = &self.connections[key];
            let request = self.request(*channel, position);
            let connection = &mut self.connections[key];
            let Some(stream) = &connection.stream else {
                return Verdict::Keep;
            };
            if let Ok(Some(error)) | Err(error) = stream.take_error() {
                return Verdict::Failed(ConnectFailure::from(&error));
            }
            if let Err(error) = stream.peer_addr() {
                // Not connected yet: the readiness was older than the connect.
                return match error.kind() {
                    io::ErrorKind::NotConnected => Verdict::Keep,
                    _ => Verdict::Failed(ConnectFailure::from(&error)),
                };
            }
            connection.phase = Phase::Handshaking;
            connection.out = request;
        }
        self.connections[key].flush()
    }

    fn on_readable(&mut self, io: &mut Io<'_>, key: usize, read_closed: bool) -> Verdict {
        loop {
            let connection = &mut self.connections[key];
            let Some(stream) = &mut connection.stream else {
                return Verdict::Keep;
            };
            let read = match stream.read(io.buffer) {
                Ok(0) => return connection.lost(Ending::End),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Verdict::Keep,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return connection.lost(Ending::Reset),
            };
            let verdict = self.take(key, &io.buffer[..read]);
            // epoll(7): a stream read that was cut short found the socket empty, so the edge is used up,
            // unless the end of the stream was part of it.
            if !matches!(verdict, Verdict::Keep) || (read < io.buffer.len() && !read_closed) {
                return verdict;
            }
        }
    }

    fn apply(&mut self, key: usize, verdict: Verdict) {
        let phase = self.connections[key].phase;
        match verdict {
            Verdict::Keep => return,
            Verdict::Failed(failure) if phase != Phase::Closed => {
                self.handshaking -= 1;
                self.failed(key, failure);
            }
            Verdict::Ended(ending) if phase == Phase::Open => {
                *self.stats.endings.entry(ending).or_default() += 1;
                self.open -= 1;
                self.come_back(key);
            }
            Verdict::Ended(_) if phase == Phase::Joining => {
                self.handshaking -= 1;
                self.failed(key, ConnectFailure::Reset);
            }
            Verdict::Failed(_) | Verdict::Ended(_) => {}
        }
        let connection = &mut self.connections[key];
        connection.phase = Phase::Closed;
        connection.stream = None;
        connection.out = Vec::new();
    }
}

impl Party for Fleet {
    fn id(&self) -> u16 {
        self.id
    }

    fn tick(&mut self, io: &mut Io<'_>, now_ns: u64) -> Option<u64> {
        self.expire_handshakes(now_ns);
        self.bring_back(io, now_ns);
        let allowed = self.allowed(now_ns).min(self.config.connections);
        let mut begun = 0;
        while begun < CONNECTS_PER_TURN
            && self.handshaking < self.config.handshakes_in_flight
            && (self.connections.len() as u32) < allowed
        {
            self.begin(io, now_ns);
            begun += 1;
        }
        let ramping = self.connections.len() < self.config.connections as usize;
        match (ramping, self.handshaking) {
            (false, 0) => self.returning.front().map(|(due_ns, _)| *due_ns),
            // A paced ramp is looked at each millisecond; an unpaced one when a handshake ends.
            (true, in_flight) if in_flight < self.config.handshakes_in_flight => Some(now_ns + 1_000_000),
            _ => Some(now_ns + 250_000_000),
        }
    }

    fn ready(&mut self, io: &mut Io<'_>, key: u32, readiness: Readiness) {
        let key = key as usize;
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let pending = connection.phase == Phase::Connecting || !connection.out.is_empty();
        if readiness.writable && pending {
            let verdict = self.on_writable(key);
            self.apply(key, verdict);
        }
        if readiness.readable || readiness.read_closed {
            let verdict = self.on_readable(io, key, readiness.read_closed);
            self.apply(key, verdict);
        }
    }
}

impl Connection {
    fn new(channel: u32, now_ns: u64) -> Self {
        Self {
            returns: 0,
            stream: None,
            phase: Phase::Connecting,
            channel,
            began_ns: now_ns,
            scanner: Scanner::Frames(FrameScanner::default()),
            order: OrderCheck::default(),
            position: String::new(),
            out: Vec::new(),
            head: Vec::new(),
        }
    }

    fn flush(&mut self) -> Verdict {
        let Some(stream) = &mut self.stream else {
            return Verdict::Keep;
        };
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(written) if written == self.out.len() => self.out.clear(),
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.lost(Ending::Reset),
            }
        }
        Verdict::Keep
    }

    /// The socket is gone: a failure before the handshake's end, an ending after it.
    fn lost(&self, ending: Ending) -> Verdict {
        match self.phase {
            Phase::Connecting => Verdict::Failed(self.connect_error()),
            Phase::Handshaking | Phase::Joining => Verdict::Failed(ConnectFailure::Reset),
            Phase::Open | Phase::Closed => Verdict::Ended(ending),
        }
    }

    fn connect_error(&self) -> ConnectFailure {
        let error = self.stream.as_ref().and_then(|stream| stream.take_error().ok().flatten());
        error.as_ref().map_or(ConnectFailure::Refused, ConnectFailure::from)
    }
}
