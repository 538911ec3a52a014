//! What a fleet's connections are sent: the answer to a handshake, then the messages of each protocol.

use super::{Connection, Fleet, Phase, Role, Scanner, Verdict};
use crate::centrifuge;
use crate::envelope;
use crate::frame::{FrameEvent, write_client_frame};
use crate::http::parse_head;
use crate::pusher;
use crate::socketio::{self, Packet};
use crate::sse::SseScanner;
use crate::stats::{ConnectFailure, Ending};
use crate::sys::now_ns;

impl Fleet {
    pub(super) fn take(&mut self, key: usize, bytes: &[u8]) -> Verdict {
        match self.connections[key].phase {
            Phase::Open | Phase::Joining => self.take_stream(key, bytes),
            Phase::Handshaking => self.take_head(key, bytes),
            Phase::Connecting | Phase::Closed => Verdict::Keep,
        }
    }

    fn take_head(&mut self, key: usize, bytes: &[u8]) -> Verdict {
        let mut joined = std::mem::take(&mut self.connections[key].head);
        joined.extend_from_slice(bytes);
        let (head, used) = match parse_head(&joined) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => {
                self.connections[key].head = joined;
                return Verdict::Keep;
            }
            Err(_) => return Verdict::Failed(ConnectFailure::NoUpgrade),
        };
        let good = match self.config.role {
            Role::SubscribeSse => head.status == 200,
            _ => head.status == 101 && head.accepted,
        };
        if !good {
            return Verdict::Failed(match head.status {
                101 | 200 => ConnectFailure::NoUpgrade,
                status => ConnectFailure::Status(status),
            });
        }
        if self.config.role == Role::SubscribeSse {
            self.connections[key].scanner = Scanner::Events(Box::new(SseScanner::new(head.is_chunked())));
        }
        match self.config.role {
            Role::SubscribeSocketIo => {
                self.connections[key].phase = Phase::Joining;
                write_client_frame(&mut self.connections[key].out, 0x1, socketio::CONNECT);
            }
            Role::SubscribeCentrifuge(dialect) => {
                let connection = &mut self.connections[key];
                connection.phase = Phase::Joining;
                let channel = self.config.channels.get(connection.channel as usize);
                let hello = dialect.hello(self.config.token.as_deref(), channel.map_or("", String::as_str));
                write_client_frame(&mut connection.out, dialect.opcode(), &hello);
            }
            // The server speaks first.
            Role::SubscribePusher | Role::SubscribePresence => self.connections[key].phase = Phase::Joining,
            _ => self.opened(key),
        }
        match self.take_stream(key, &joined[used..]) {
            Verdict::Keep => self.connections[key].flush(),
            verdict => verdict,
        }
    }

    fn opened(&mut self, key: usize) {
        let connection = &mut self.connections[key];
        let now_ns = now_ns();
        self.stats.handshake_us.saturating_record(now_ns.saturating_sub(connection.began_ns) / 1_000);
        connection.phase = Phase::Open;
        connection.began_ns = now_ns;
        connection.out.extend_from_slice(&self.echo_frame);
        match connection.returns {
            0 => self.stats.opened += 1,
            _ => self.stats.returned += 1,
        }
        self.handshaking -= 1;
        self.open += 1;
    }

    fn take_stream(&mut self, key: usize, bytes: &[u8]) -> Verdict {
        let Self { connections, stats, config, echo_frame, .. } = self;
        let Connection { scanner, order, position, out, began_ns, channel, .. } = &mut connections[key];
        let now_ns = now_ns();
        stats.bytes += bytes.len() as u64;
        let scanner = match scanner {
            Scanner::Events(scanner) => {
                scanner.feed(bytes, |data| stats.message(order, data, now_ns, config.run));
                return Verdict::Keep;
            }
            Scanner::Frames(scanner) => scanner,
        };
        let echo = matches!(config.role, Role::Echo { .. } | Role::Ask);
        let socket_io = config.role == Role::SubscribeSocketIo;
        let is_pusher = matches!(config.role, Role::SubscribePusher | Role::SubscribePresence);
        let (mut ended, mut joined) = (None, false);
        let fed = scanner.feed(bytes, |event| match event {
            FrameEvent::Message { .. } if echo => {
                stats.echo(now_ns.saturating_sub(*began_ns));
                *began_ns = now_ns;
                out.extend_from_slice(echo_frame);
            }
            FrameEvent::Message { head, .. } if socket_io => match socketio::packet(head) {
                Packet::Message(data) => stats.message(order, data, now_ns, config.run),
                Packet::Ping => {
                    stats.pings_answered += 1;
                    write_client_frame(out, 0x1, socketio::PONG);
                }
                Packet::Connected => joined = true,
                Packet::Other => {}
            },
            FrameEvent::Message { head, .. } if is_pusher => match pusher::packet(head) {
                pusher::Packet::Message(data) => stats.message(order, data, now_ns, config.run),
                pusher::Packet::Ping => {
                    stats.pings_answered += 1;
                    write_client_frame(out, 0x1, pusher::PONG);
                }
                pusher::Packet::Hello => {
                    let channel = config.channels.get(*channel as usize).map_or("", String::as_str);
                    let subscribe = match config.role {
                        Role::SubscribePresence => pusher::enter(head, channel, key),
                        _ => pusher::subscribe(channel),
                    };
                    write_client_frame(out, 0x1, &subscribe);
                }
                pusher::Packet::Subscribed => joined = true,
                pusher::Packet::Other => {}
            },
            FrameEvent::Message { head, .. } if let Role::SubscribeCentrifuge(dialect) = config.role => {
                match dialect.packet(head) {
                    centrifuge::Packet::Message(data) => stats.message(order, data, now_ns, config.run),
                    centrifuge::Packet::Ping => {
                        stats.pings_answered += 1;
                        write_client_frame(out, dialect.opcode(), dialect.pong());
                    }
                    centrifuge::Packet::Subscribed => joined = true,
                    centrifuge::Packet::Other => {}
                }
            }
            FrameEvent::Message { head, .. } if config.role == Role::SubscribeRecovering => {
                if let Some(data) = envelope::data(head, position) {
                    stats.message(order, data, now_ns, config.run);
                }
            }
            FrameEvent::Message { head, .. } => stats.message(order, head, now_ns, config.run),
            FrameEvent::Ping(payload) => {
                stats.pings_answered += 1;
                write_client_frame(out, 0xa, payload);
            }
            FrameEvent::Pong(_) => {}
            FrameEvent::Close(code) => ended = Some(code.map_or(Ending::NoCode, Ending::Code)),
        });
        if let Err(fault) = fed {
            stats.fault = Some(fault);
            return Verdict::Ended(Ending::Protocol);
        }
        if joined && self.connections[key].phase == Phase::Joining {
            self.opened(key);
        }
        match ended {
            Some(ending) => Verdict::Ended(ending),
            None if self.connections[key].out.is_empty() => Verdict::Keep,
            None => self.connections[key].flush(),
        }
    }
}
