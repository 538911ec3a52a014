//! How a fleet opens its connections: paced, from many addresses, again after a cut, and given up after a while.

use std::mem;
use std::net::{IpAddr, Ipv4Addr};

use super::{Connection, Fleet, Phase, Role, Verdict};
use crate::driver::Io;
use crate::http::WEBSOCKET_KEY;
use crate::pusher;
use crate::stats::ConnectFailure;
use crate::sys::{ConnectOptions, connect, now_ns};
use crate::target::Target;

/// A handshake without an answer for this long has failed; servers cut theirs at 10 s.
const HANDSHAKE_TIMEOUT_NS: u64 = 15_000_000_000;

/// Connects begun in one turn, so that a ramp does not starve sockets that are already open.
pub(super) const CONNECTS_PER_TURN: u32 = 64;

impl Fleet {
    pub(super) fn begin(&mut self, io: &mut Io<'_>, now_ns: u64) {
        let index = self.connections.len() as u32;
        let connection = Connection::new((self.config.channel_of)(index), now_ns);
        self.connections.push(connection);
        self.connect(io, index);
    }

    /// Opens connections again whose wait is over.
    pub(super) fn bring_back(&mut self, io: &mut Io<'_>, now_ns: u64) {
        let mut begun = 0;
        while let Some(&(due_ns, index)) = self.returning.front()
            && due_ns <= now_ns
            && begun < CONNECTS_PER_TURN
            && self.handshaking < self.config.handshakes_in_flight
        {
            self.returning.pop_front();
            let connection = &mut self.connections[index as usize];
            // What it has seen stays: what it misses meanwhile is lost to it.
            let (order, position) = (mem::take(&mut connection.order), mem::take(&mut connection.position));
            let returns = connection.returns + 1;
            *connection =
                Connection { order, position, returns, ..Connection::new(connection.channel, now_ns) };
            self.connect(io, index);
            begun += 1;
        }
    }

    fn connect(&mut self, io: &mut Io<'_>, index: u32) {
        let returns = self.connections[index as usize].returns;
        let options =
            ConnectOptions { source: self.source(index), reset_on_close: self.config.reset_on_close };
        let address = self.config.target.address_of(index, returns);
        let started = connect(address, options).and_then(|mut stream| {
            io.register(&mut stream, index)?;
            Ok(stream)
        });
        match started {
            Ok(stream) => {
                self.connections[index as usize].stream = Some(stream);
                self.handshakes.push_back(index);
                self.handshaking += 1;
            }
            Err(error) => {
                self.connections[index as usize].phase = Phase::Closed;
                self.failed(index as usize, ConnectFailure::from(&error));
            }
        }
    }

    /// A failure to come back is no failure of the ramp: it is tried again.
    pub(super) fn failed(&mut self, key: usize, failure: ConnectFailure) {
        if self.connections[key].returns == 0 {
            self.stats.fail(failure);
        } else {
            self.come_back(key);
        }
    }

    /// Half a second to a second and a half later, so that not all come at once.
    pub(super) fn come_back(&mut self, key: usize) {
        if self.config.comes_back {
            let spread_ns = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000_000;
            self.returning.push_back((now_ns() + 500_000_000 + spread_ns, key as u32));
        }
    }

    /// 127.0.0.0/8 is all loopback on Linux, so every address of it is a source with its own 64k ports.
    fn source(&self, index: u32) -> Option<Ipv4Addr> {
        let loopback = matches!(self.config.target.address.ip(), IpAddr::V4(ip) if ip.is_loopback());
        if !loopback || self.config.sources == 0 || !cfg!(target_os = "linux") {
            return None;
        }
        let last = (index % u32::from(self.config.sources.min(250))) as u8;
        Some(Ipv4Addr::new(127, 0, 0, 2 + last))
    }

    pub(super) fn request(&self, channel: u32, position: &str) -> Vec<u8> {
        let Target { authority, prefix, .. } = &self.config.target;
        let channel = self.config.channels.get(channel as usize).map_or("", String::as_str);
        let mut request = match self.config.role {
            Role::SubscribeSse => format!(
                "GET {prefix}/sse?channel={channel} HTTP/1.1\r\nHost: {authority}\r\n\
                 Accept: text/event-stream\r\n\r\n"
            ),
            Role::SubscribeSocketIo => {
                let path = format!("{prefix}/socket.io/?EIO=4&transport=websocket&channel={channel}");
                upgrade(&path, authority)
            }
            Role::SubscribePusher | Role::SubscribePresence => {
                upgrade(&format!("{prefix}{}", pusher::PATH), authority)
            }
            Role::SubscribeRecovering => {
                let since = if position.is_empty() { String::new() } else { format!("&since={position}") };
                let path = format!("{prefix}/ws?channel={channel}&envelope=json&positions=true{since}");
                upgrade(&path, authority)
            }
            // Its token is in its first command.
            Role::SubscribeCentrifuge(dialect) => {
                return upgrade(&format!("{prefix}{}", dialect.path()), authority).into_bytes();
            }
            Role::Subscribe => upgrade(&format!("{prefix}/ws?channel={channel}"), authority),
            Role::Ask => upgrade(&format!("{prefix}/ws?envelope=json"), authority),
            Role::Echo { .. } => upgrade(&format!("{prefix}/echo"), authority),
        };
        if let Some(token) = &self.config.token {
            request.truncate(request.len() - 2);
            request += &format!("Authorization: Bearer {token}\r\n\r\n");
        }
        request.into_bytes()
    }

    pub(super) fn expire_handshakes(&mut self, now_ns: u64) {
        while let Some(&key) = self.handshakes.front() {
            let connection = &self.connections[key as usize];
            if matches!(connection.phase, Phase::Connecting | Phase::Handshaking | Phase::Joining) {
                if now_ns.saturating_sub(connection.began_ns) < HANDSHAKE_TIMEOUT_NS {
                    return;
                }
                self.apply(key as usize, Verdict::Failed(ConnectFailure::Timeout));
            }
            self.handshakes.pop_front();
        }
    }

    /// How many connections may have been begun by now.
    pub(super) fn allowed(&mut self, now_ns: u64) -> u32 {
        let began_ns = *self.ramp_began_ns.get_or_insert(now_ns);
        match self.config.connects_per_second {
            None => u32::MAX,
            Some(rate) => {
                let due = (now_ns - began_ns) as u128 * u128::from(rate) / 1_000_000_000;
                u32::try_from(due + 1).unwrap_or(u32::MAX)
            }
        }
    }
}

fn upgrade(path: &str, authority: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n"
    )
}
