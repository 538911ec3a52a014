//! A REST publisher: keep-alive connections with one request in flight each, in a closed loop or at a rate.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use hdrhistogram::Histogram;
use mio::net::TcpStream;

use crate::centrifuge;
use crate::driver::{Io, Party, Readiness};
use crate::http::{ResponseHead, ResponseReader};
use crate::pusher::Signer;
use crate::stamp::{STAMP_BYTES, Stamp};
use crate::stats::{ConnectFailure, latency_histogram};
use crate::sys::{ConnectOptions, connect, now_ns};
use crate::target::Target;

/// Wait before a connection that was lost, or an answer without `Retry-After`, is tried again.
const RETRY_NS: u64 = 100_000_000;

/// Longest `Retry-After` that is followed; a load generator should not sleep through its own run.
const RETRY_AFTER_MAX_S: u32 = 30;

/// Sequence numbers kept: connections times channels. 16 M of them are 128 MB.
const SEQUENCES_MAX: usize = 16_000_000;

/// When the next request is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// On a connection's answer.
    Closed,
    /// By the clock, this many per second over all connections. A stamp carries the time the publication was
    /// due, so waiting for a free connection counts as latency.
    PerSecond(f64),
    /// When [`Publisher::publish`] says so.
    OnDemand,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A publication by `/v1`.
    Publish,
    /// A signed event by Pusher's HTTP API.
    SignedEvent,
    /// A publication by Centrifugo's server API.
    CentrifugePublish,
    /// `GET /livez`, which carries nothing: the plainest request that a server answers.
    Livez,
}

/// The load to publish.
#[derive(Debug, Clone)]
pub struct PublishConfig {
    pub target: Target,
    pub api_key: Option<String>,
    pub request: Request,
    /// Keep-alive connections, each with at most one request in flight: publishers times in-flight each.
    pub connections: u16,
    pub pace: Pace,
    /// At least [`STAMP_BYTES`].
    pub payload_bytes: usize,
    pub channels: Arc<[String]>,
    pub run: u16,
}

/// A configuration that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum PublishConfigError {
    #[error("a payload of {bytes} bytes cannot carry the stamp: use at least {STAMP_BYTES}")]
    PayloadTooSmall { bytes: usize },
    #[error(
        "{connections} publishing connections over {channels} channels is too many to check for loss: use fewer of either"
    )]
    TooManySequences { connections: u16, channels: usize },
    #[error("there is no channel to publish to: use at least one")]
    NoChannel,
}

/// Counters of a publisher; they only grow.
#[derive(Debug, Clone)]
pub struct PublishStats {
    /// Answered with 2xx.
    pub published: u64,
    /// Answered with 429 or 503: told to slow down, tried again later.
    pub pushed_back: BTreeMap<u16, u64>,
    /// Answered with any other status.
    pub refused: BTreeMap<u16, u64>,
    /// The connection ended before the answer. Tried again, so each may appear once as a duplicate.
    pub uncertain: u64,
    pub failures: BTreeMap<ConnectFailure, u64>,
    /// Request to answer, µs.
    pub answer_us: Histogram<u64>,
}

/// The party.
#[derive(Debug)]
pub struct Publisher {
    id: u16,
    config: PublishConfig,
    /// Where requests are signed.
    signer: Option<Signer>,
    connections: Vec<Connection>,
    /// Sequence numbers acknowledged, per connection and channel.
    acknowledged: Vec<u32>,
    /// Connections that could send now.
    idle: Vec<u32>,
    /// Publications asked for and sent, with the time they were due.
    demanded: u64,
    dispatched: u64,
    began_ns: Option<u64>,
    stopped: bool,
    stats: PublishStats,
}

#[derive(Debug)]
struct Connection {
    stream: Option<TcpStream>,
    phase: Phase,
    /// Generation of the stream, so that a late edge of an old socket is harmless.
    reader: ResponseReader,
    out: Vec<u8>,
    written: usize,
    /// Channel of the request in flight, or of the next.
    channel: usize,
    /// The request under way.
    due_ns: u64,
    sent_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No socket; connect again at this time.
    Down {
        until_ns: u64,
    },
    Connecting,
    Idle,
    InFlight,
    /// Told to wait; the same publication goes out again at this time.
    PushedBack {
        until_ns: u64,
    },
}

impl Publisher {
    /// A publisher that connects with the driver's next turn. `id` must be unique in the driver.
    pub fn new(id: u16, config: PublishConfig) -> Result<Self, PublishConfigError> {
        if config.payload_bytes < STAMP_BYTES {
            return Err(PublishConfigError::PayloadTooSmall { bytes: config.payload_bytes });
        }
        let channels = config.channels.len();
        if channels == 0 {
            return Err(PublishConfigError::NoChannel);
        }
        let connections = config.connections;
        let sequences = usize::from(connections) * channels;
        if sequences > SEQUENCES_MAX {
            return Err(PublishConfigError::TooManySequences { connections, channels });
        }
        Ok(Self {
            id,
            // Connections begin apart, so that they do not walk the channels in step.
            connections: (0..usize::from(connections))
                .map(|index| Connection::new(index * channels / usize::from(connections)))
                .collect(),
            signer: (config.request == Request::SignedEvent).then(Signer::new),
            config,
            acknowledged: vec![0; sequences],
            idle: Vec::new(),
            demanded: 0,
            dispatched: 0,
            began_ns: None,
            stopped: false,
            stats: PublishStats {
                published: 0,
                pushed_back: BTreeMap::new(),
                refused: BTreeMap::new(),
                uncertain: 0,
                failures: BTreeMap::new(),
                answer_us: latency_histogram(),
            },
        })
    }

    #[must_use]
    pub fn stats(&self) -> &PublishStats {
        &self.stats
    }

    /// Times of answers are counted anew.
    pub fn forget_answers(&mut self) {
        self.stats.answer_us.reset();
    }

    /// Asks for one publication ([`Pace::OnDemand`]).
    pub fn publish(&mut self) {
        self.demanded += 1;
    }

    /// Sends nothing new; answers under way are still counted.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Every connection is up, or was and is at work.
    #[must_use]
    pub fn connected(&self) -> bool {
        let down =
            |connection: &Connection| matches!(connection.phase, Phase::Down { .. } | Phase::Connecting);
        !self.connections.iter().any(down)
    }

    /// No request waits for its answer.
    #[must_use]
    pub fn quiet(&self) -> bool {
        !self.connections.iter().any(|connection| connection.phase == Phase::InFlight)
    }

    /// Publications that were due and found no free connection.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.demanded - self.dispatched
    }

    /// The last sequence number a stream had acknowledged in a channel.
    #[must_use]
    pub fn acknowledged(&self, stream: u16, channel: u32) -> u32 {
        let index = usize::from(stream) * self.config.channels.len() + channel as usize;
        self.acknowledged.get(index).copied().unwrap_or(0)
    }

    /// Streams are numbered from 0, one per connection.
    #[must_use]
    pub fn streams(&self) -> u16 {
        self.config.connections
    }

    /// Acknowledged publications per channel index.
    #[must_use]
    pub fn published_per_channel(&self) -> Vec<u64> {
        let mut sums = vec![0; self.config.channels.len()];
        for stream in self.acknowledged.chunks(self.config.channels.len()) {
            for (sum, &sequence) in sums.iter_mut().zip(stream) {
                *sum += u64::from(sequence);
            }
        }
        sums
    }

    fn connect(&mut self, io: &mut Io<'_>, key: usize, now_ns: u64) {
        let connection = &mut self.connections[key];
        let started =
            connect(self.config.target.address, ConnectOptions::default()).and_then(|mut stream| {
                io.register(&mut stream, key as u32)?;
                Ok(stream)
            });
        match started {
            Ok(stream) => {
                connection.stream = Some(stream);
                connection.reader = ResponseReader::default();
                connection.phase = Phase::Connecting;
            }
            Err(error) => {
                *self.stats.failures.entry(ConnectFailure::from(&error)).or_default() += 1;
                connection.phase = Phase::Down { until_ns: now_ns + RETRY_NS };
            }
        }
    }

    /// Wakes connections whose wait is over; returns the earliest wait still running.
    fn wake(&mut self, io: &mut Io<'_>, now_ns: u64) -> Option<u64> {
        let mut next = None;
        for key in 0..self.connections.len() {
            let until_ns = match self.connections[key].phase {
                Phase::Down { until_ns } | Phase::PushedBack { until_ns } => until_ns,
                Phase::Connecting | Phase::Idle | Phase::InFlight => continue,
            };
            if until_ns > now_ns {
                next = Some(next.unwrap_or(u64::MAX).min(until_ns));
            } else if matches!(self.connections[key].phase, Phase::Down { .. }) {
                self.connect(io, key, now_ns);
            } else if !self.stopped {
                self.send(key);
            }
        }
        next
    }

    fn dispatch(&mut self, now_ns: u64) {
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        let (per_second, limit) = match self.config.pace {
            Pace::Closed => (None, u64::MAX),
            Pace::OnDemand => (None, self.demanded),
            Pace::PerSecond(rate) => {
                self.demanded = ((now_ns - began_ns) as f64 * rate / 1e9) as u64;
                (Some(rate), self.demanded)
            }
        };
        while !self.stopped && self.dispatched < limit {
            let Some(key) = self.idle.pop() else { break };
            let key = key as usize;
            if self.connections[key].phase != Phase::Idle {
                continue;
            }
            self.connections[key].due_ns = match per_second {
                Some(rate) => began_ns + ((self.dispatched + 1) as f64 * 1e9 / rate) as u64,
                None => now_ns,
            };
            self.dispatched += 1;
            self.send(key);
        }
        if self.config.pace == Pace::Closed {
            self.demanded = self.dispatched;
        }
    }

    /// Writes the request for the next sequence number of the connection's channel.
    fn send(&mut self, key: usize) {
        let sequence =
            self.acknowledged[key * self.config.channels.len() + self.connections[key].channel] + 1;
        let connection = &mut self.connections[key];
        let stamp = Stamp { run: self.config.run, stream: key as u16, sequence, sent_ns: connection.due_ns };
        match &self.signer {
            Some(signer) => {
                let mut payload = vec![b'.'; self.config.payload_bytes];
                stamp.write(&mut payload);
                let (target, channel) = (&self.config.target, &self.config.channels[connection.channel]);
                signer.write_request(
                    &mut connection.out,
                    target,
                    channel,
                    &String::from_utf8_lossy(&payload),
                );
            }
            None if self.config.request == Request::Livez => {
                write_livez(&mut connection.out, &self.config.target);
            }
            None => {
                let tail = write_request(&mut connection.out, &self.config, connection.channel);
                let payload = connection.out.len() - self.config.payload_bytes - tail;
                stamp.write(&mut connection.out[payload..]);
            }
        }
        connection.written = 0;
        connection.sent_ns = now_ns();
        connection.phase = Phase::InFlight;
        if connection.flush().is_err() {
            self.lose(key);
        }
    }

    fn lose(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        if connection.phase == Phase::InFlight {
            self.stats.uncertain += 1;
            // It goes out again on the new connection.
            self.dispatched = self.dispatched.saturating_sub(1);
        }
        connection.stream = None;
        connection.phase = Phase::Down { until_ns: now_ns() + RETRY_NS };
    }

    fn on_writable(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let Some(stream) = &connection.stream else {
            return;
        };
        if connection.phase != Phase::Connecting {
            if connection.flush().is_err() {
                self.lose(key);
            }
            return;
        }
        match stream.take_error() {
            Ok(None) if stream.peer_addr().is_ok() => {
                connection.phase = Phase::Idle;
                self.idle.push(key as u32);
                self.dispatch(now_ns());
            }
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                *self.stats.failures.entry(ConnectFailure::from(&error)).or_default() += 1;
                self.lose(key);
            }
        }
    }

    fn on_readable(&mut self, io: &mut Io<'_>, key: usize, read_closed: bool) {
        loop {
            let Some(stream) = &mut self.connections[key].stream else {
                return;
            };
            let read = match stream.read(io.buffer) {
                Ok(0) => return self.lose(key),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.lose(key),
            };
            let mut answer = None;
            let fed = self.connections[key].reader.feed(&io.buffer[..read], |head| answer = Some(head));
            if fed.is_err() {
                return self.lose(key);
            }
            if let Some(head) = answer {
                self.answered(key, head);
            }
            // See `client`: a read cut short emptied the socket.
            if read < io.buffer.len() && !read_closed {
                return;
            }
        }
    }

    fn answered(&mut self, key: usize, head: ResponseHead) {
        let channels = self.config.channels.len();
        let now_ns = now_ns();
        let connection = &mut self.connections[key];
        self.stats.answer_us.saturating_record(now_ns.saturating_sub(connection.sent_ns) / 1_000);
        match head.status {
            200..=299 => {
                self.stats.published += 1;
                self.acknowledged[key * channels + connection.channel] += 1;
                connection.channel = (connection.channel + 1) % channels;
                connection.phase = Phase::Idle;
            }
            status => {
                let counts = match status {
                    429 | 503 => &mut self.stats.pushed_back,
                    _ => &mut self.stats.refused,
                };
                *counts.entry(status).or_default() += 1;
                let wait_ns = head
                    .retry_after_s
                    .map_or(RETRY_NS, |seconds| u64::from(seconds.min(RETRY_AFTER_MAX_S)) * 1_000_000_000);
                connection.phase = Phase::PushedBack { until_ns: now_ns + wait_ns };
            }
        }
        if head.close {
            if matches!(connection.phase, Phase::PushedBack { .. }) {
                self.dispatched = self.dispatched.saturating_sub(1);
            }
            connection.stream = None;
            connection.phase = Phase::Down { until_ns: now_ns };
        } else if connection.phase == Phase::Idle {
            self.idle.push(key as u32);
            self.dispatch(now_ns);
        }
    }
}

impl Party for Publisher {
    fn id(&self) -> u16 {
        self.id
    }

    fn tick(&mut self, io: &mut Io<'_>, now_ns: u64) -> Option<u64> {
        let woken = self.wake(io, now_ns);
        self.dispatch(now_ns);
        match self.config.pace {
            // epoll counts in milliseconds: finer pacing than that goes out in small groups.
            Pace::PerSecond(_) if !self.stopped => Some(now_ns + 1_000_000),
            _ => woken,
        }
    }

    fn ready(&mut self, io: &mut Io<'_>, key: u32, readiness: Readiness) {
        let key = key as usize;
        if key >= self.connections.len() {
            return;
        }
        if readiness.writable {
            self.on_writable(key);
        }
        if readiness.readable || readiness.read_closed {
            self.on_readable(io, key, readiness.read_closed);
        }
    }
}

impl Connection {
    fn new(channel: usize) -> Self {
        Self {
            stream: None,
            phase: Phase::Down { until_ns: 0 },
            reader: ResponseReader::default(),
            out: Vec::new(),
            written: 0,
            channel,
            due_ns: 0,
            sent_ns: 0,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        while self.written < self.out.len() {
            match stream.write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn write_livez(out: &mut Vec<u8>, target: &Target) {
    out.clear();
    for part in ["GET ", &target.prefix, "/livez HTTP/1.1\r\nHost: ", &target.authority, "\r\n\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The request with a payload of padding; how many bytes follow that.
fn write_request(out: &mut Vec<u8>, config: &PublishConfig, channel: usize) -> usize {
    let Target { authority, prefix, .. } = &config.target;
    if config.request == Request::CentrifugePublish {
        let key = config.api_key.as_deref().unwrap_or_default();
        let (channel, bytes) = (&config.channels[channel], config.payload_bytes);
        centrifuge::write_publish(out, &config.target, key, channel, bytes);
        return centrifuge::PUBLISH_TAIL;
    }
    out.clear();
    for part in ["POST ", prefix, "/v1/channels/", &config.channels[channel], "/publish HTTP/1.1\r\nHost: "] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(authority.as_bytes());
    if let Some(key) = &config.api_key {
        out.extend_from_slice(b"\r\nAuthorization: Bearer ");
        out.extend_from_slice(key.as_bytes());
    }
    out.extend_from_slice(b"\r\nContent-Type: text/plain\r\nContent-Length: ");
    out.extend_from_slice(config.payload_bytes.to_string().as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    out.resize(out.len() + config.payload_bytes, b'.');
    0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(payload_bytes: usize, channels: &[&str]) -> PublishConfig {
        PublishConfig {
            target: Target::parse("http://127.0.0.1:1/base").unwrap(),
            api_key: Some("k".to_owned()),
            request: Request::Publish,
            connections: 4,
            pace: Pace::Closed,
            payload_bytes,
            channels: channels.iter().map(|&channel| channel.to_owned()).collect(),
            run: 7,
        }
    }

    #[test]
    fn a_request_is_complete() {
        let mut out = Vec::new();
        write_request(&mut out, &config(40, &["a", "b"]), 1);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "POST /base/v1/channels/b/publish HTTP/1.1\r\nHost: 127.0.0.1:1\r\nAuthorization: Bearer k\r\n\
             Content-Type: text/plain\r\nContent-Length: 40\r\n\r\n........................................"
        );
    }

    #[test]
    fn a_plain_request_carries_nothing() {
        let mut out = b"left".to_vec();
        write_livez(&mut out, &config(40, &["a"]).target);
        assert_eq!(out, b"GET /base/livez HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        assert!(matches!(
            Publisher::new(0, config(32, &["a"])),
            Err(PublishConfigError::PayloadTooSmall { .. })
        ));
        assert!(matches!(Publisher::new(0, config(64, &[])), Err(PublishConfigError::NoChannel)));
        let many = vec!["c"; SEQUENCES_MAX / 4 + 1];
        assert!(matches!(
            Publisher::new(0, config(64, &many)),
            Err(PublishConfigError::TooManySequences { .. })
        ));
    }
}
