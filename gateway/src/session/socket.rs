//! Open WebSockets: messages in, heartbeats, notices.

use std::ops::ControlFlow;

use tidegate_reactor::{ConnectionId, Connections, Tick};
use tidegate_wire::{
    decoder::{Decoder, Message},
    frame::{self, CloseCode, Opcode},
    pusher::{Code, server},
    raw, sse,
};

use super::{Open, Phase, Protocol, Session, budget::Share, leaving::Leave};
use crate::{
    event,
    metrics::{self, Budgeted, DisconnectReason},
    shard::{Core, ShardDriver},
};

/// A ping carries when it was sent, in microseconds of the shard's clock.
const PING_BYTES: usize = 8;

impl ShardDriver {
    /// Bytes of an open WebSocket; how many of them its part in this turn was enough for.
    pub(crate) fn read_socket(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) -> usize {
        let now = connections.now().duration();
        let all = bytes.len();
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else { return all };
        if let Some(budget) = open.spent(&self.core.rates, now) {
            self.core.metrics.budgets_spent.add(budget, 1);
            connections.rest_until_tick();
            return 0;
        }
        // The decoder is taken out while its messages are handled, since they may change the session.
        let mut decoder = std::mem::replace(&mut open.decoder, Decoder::new(false));
        let max = self.core.shared.node.config().limits.message_bytes.bytes();
        let core = &mut self.core;
        let inflated_before = self.inflater.inflated_bytes();
        let mut share = Share::begin();
        let decoded = decoder.decode(bytes, max, &mut self.inflater, |message| {
            core.on_message(connections, id, message)?;
            core.spend_message(connections, id)?;
            share.count()
        });
        let inflated = self.inflater.inflated_bytes() - inflated_before;
        match connections.get_mut(id).map(|session| &mut session.phase) {
            Some(Phase::Open(open)) => {
                open.decoder = decoder;
                open.spend_inflated(inflated, &self.core.rates, now);
            }
            Some(Phase::Leaving(Some(left))) => *left = decoder,
            _ => {}
        }
        self.core.metrics.inflated_bytes.add(inflated);
        match decoded {
            Ok(used) => {
                if used < all && !connections.is_paused(id) {
                    self.core.metrics.budgets_spent.add(Budgeted::Turn, 1);
                }
                used
            }
            Err(error) => {
                self.core.leave(connections, id, Leave::Protocol(error));
                all
            }
        }
    }

    /// Bytes of a WebSocket that was told to go: only its close frame matters.
    pub(crate) fn read_last(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) {
        let Some(Phase::Leaving(Some(decoder))) = connections.get_mut(id).map(|session| &mut session.phase)
        else {
            return;
        };
        let max = self.core.shared.node.config().limits.message_bytes.bytes();
        let mut closed = false;
        let decoded = decoder.decode(bytes, max, &mut self.inflater, |message| match message {
            Message::Close(_) => {
                closed = true;
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        if closed || decoded.is_err() {
            connections.close_when_flushed(id);
        }
    }
}

impl Core {
    fn on_message(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        message: Message<'_>,
    ) -> ControlFlow<()> {
        let Some(protocol) = connections.get(id).and_then(Session::open).map(|open| open.protocol) else {
            return ControlFlow::Break(());
        };
        match message {
            Message::Ping(payload) => self.write_frame(connections, id, Opcode::Pong, payload),
            Message::Pong(payload) => self.observe_pong(payload),
            Message::Close(close) => {
                self.close_as_asked(connections, id, close.map(|(code, _)| code));
                return ControlFlow::Break(());
            }
            Message::Text(text) => {
                self.metrics.messages_received.add(1);
                match protocol {
                    Protocol::Echo => self.echo(connections, id, Opcode::Text, text.as_bytes()),
                    Protocol::Pusher => self.pusher_text(connections, id, text),
                    _ => self.client_text(connections, id, text),
                }
            }
            Message::Binary(bytes) => {
                self.metrics.messages_received.add(1);
                match protocol {
                    Protocol::Echo => self.echo(connections, id, Opcode::Binary, bytes),
                    Protocol::Pusher => self.pusher_binary(connections, id),
                    _ => self.client_binary(connections, id, bytes),
                }
            }
        }
        match connections.get(id).and_then(Session::open) {
            // What it asked for waits for somebody: so does what it says next.
            Some(_) if connections.is_paused(id) => ControlFlow::Break(()),
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        }
    }

    /// A message was handled, whatever it was; whether its connection may have another handled now.
    fn spend_message(&self, connections: &mut Connections<Session>, id: ConnectionId) -> ControlFlow<()> {
        let now = connections.now().duration();
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else {
            return ControlFlow::Break(());
        };
        open.budgets.messages.spend(self.rates.messages, now, 1);
        match open.budgets.messages.is_spent(self.rates.messages, now) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    pub(crate) fn write_frame(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        opcode: Opcode,
        payload: &[u8],
    ) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        frame::encode(opcode, payload, &mut out);
        connections.write(id, &out);
        self.scratch = out;
    }

    /// What is echoed is bounded by the message it answers; a client that does not read is not read either.
    fn echo(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        opcode: Opcode,
        payload: &[u8],
    ) {
        let deflates = connections
            .get(id)
            .and_then(Session::open)
            .is_some_and(|open| open.encoding == crate::hub::outgoing::Encoding::RawDeflated);
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        if deflates {
            let mut deflated = Vec::new();
            self.deflater.compress(payload, &mut deflated);
            frame::encode_compressed(opcode, &deflated, &mut out);
        } else {
            frame::encode(opcode, payload, &mut out);
        }
        connections.write_beyond_bound(id, &out);
        self.keep_scratch(out);
        self.metrics.messages_sent.add(1);
        connections.pause_until_flushed(id);
    }

    /// The client says goodbye: its code comes back (RFC 6455 section 5.5.1), and the connection ends.
    fn close_as_asked(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        code: Option<CloseCode>,
    ) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        match code {
            Some(code) => frame::encode_close(code, "", &mut out),
            None => frame::encode(Opcode::Close, &[], &mut out),
        }
        connections.write(id, &out);
        self.scratch = out;
        self.metrics.close_frames.add(metrics::CloseCode::of(code.unwrap_or(CloseCode::NORMAL).0), 1);
        self.metrics.disconnects.add(DisconnectReason::ClientClosed, 1);
        self.observe_duration(connections, id);
        let Some(session) = connections.get_mut(id) else { return };
        if let Phase::Open(open) = std::mem::replace(&mut session.phase, Phase::Leaving(None)) {
            self.unsubscribe(connections, id, open);
        }
        connections.close_when_flushed(id);
        self.set_leave_timer(connections, id);
    }

    fn observe_pong(&self, payload: &[u8]) {
        // A pong that nobody asked for is legal (RFC 6455 section 5.5.3) and means nothing.
        let Ok(sent_us) = <[u8; PING_BYTES]>::try_from(payload).map(u64::from_be_bytes) else { return };
        let now_us = self.shared.started.elapsed().as_micros() as u64;
        if let Some(rtt) = now_us.checked_sub(sent_us).filter(|&us| us < 600_000_000) {
            self.metrics.ping_rtt_seconds.observe(std::time::Duration::from_micros(rtt));
        }
    }

    /// Sets the first heartbeat. Half to a whole interval from now, so that clients which came together are not
    /// pinged together.
    pub(crate) fn begin_beating(&self, connections: &mut Connections<Session>, id: ConnectionId) {
        let interval = self.shared.node.config().heartbeat.interval;
        let spread = id.generation.wrapping_mul(2_654_435_761) % 1024;
        let first = interval / 2 + interval / 2 * spread / 1024;
        #[cfg(target_os = "linux")]
        self.bound_silence(connections, id);
        self.beat_at(connections, id, connections.now().after(first));
    }

    /// An event stream answers no ping. A client that vanished shows in what it does not acknowledge, and that
    /// takes the kernel a quarter of an hour by default. A client that is there but reads nothing looks the same
    /// to the kernel, so it has two heartbeats and a time-out, a minute by default, before it counts as gone.
    #[cfg(target_os = "linux")]
    fn bound_silence(&self, connections: &Connections<Session>, id: ConnectionId) {
        let is_stream =
            connections.get(id).and_then(Session::open).is_some_and(|open| open.protocol == Protocol::Sse);
        let heartbeat = &self.shared.node.config().heartbeat;
        let limit = heartbeat.interval * 2 + heartbeat.timeout;
        if is_stream && let Err(error) = connections.set_unacknowledged_max(id, limit) {
            tracing::debug!(%error, "a vanished event stream will be noticed late");
        }
    }

    /// The heartbeat of an open connection.
    pub(crate) fn beat(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        let now = connections.now();
        let silent = now.since(connections.heard(id));
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else { return };
        let rare = open.rare.as_ref();
        if rare.and_then(|rare| rare.expires).is_some_and(|expires| expires <= now) {
            return self.leave(connections, id, Leave::TokenExpired);
        }
        let heartbeat = &self.shared.node.config().heartbeat;
        let (interval, timeout) = (heartbeat.interval, heartbeat.timeout);
        if open.protocol == Protocol::Sse {
            connections.write(id, sse::COMMENT_HEARTBEAT);
            return self.beat_at(connections, id, now.after(interval));
        }
        if std::mem::take(&mut open.pinged) {
            // Before the ping it had been silent for half an interval at least: silence that long and a timeout
            // means that the ping was not answered.
            if silent >= timeout + interval / 2 {
                if open.protocol == Protocol::Pusher {
                    return self.leave(connections, id, Leave::Pusher(Code::NO_PONG));
                }
                open.rare_mut().reason = Some(DisconnectReason::PingTimeout);
                return connections.close(id);
            }
        } else if silent >= interval / 2 {
            open.pinged = true;
            let now_us = self.shared.started.elapsed().as_micros() as u64;
            self.write_frame(connections, id, Opcode::Ping, &now_us.to_be_bytes());
            return self.beat_at(connections, id, now.after(timeout));
        }
        let next = connections.heard(id).after(interval).max(Tick(now.0 + 1));
        self.beat_at(connections, id, next);
    }

    /// The next look at a connection: its heartbeat, or the end of its token if that is sooner.
    fn beat_at(&self, connections: &mut Connections<Session>, id: ConnectionId, due: Tick) {
        let expires = connections
            .get(id)
            .and_then(Session::open)
            .and_then(|open: &Open| open.rare.as_ref()?.expires)
            .unwrap_or(Tick::NEVER);
        connections.set_timer(id, due.min(expires.max(Tick(connections.now().0 + 1))));
    }

    /// Says how many messages did not fit, where the protocol can.
    pub(crate) fn tell_dropped(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        dropped: u64,
    ) {
        let Some(open) = connections.get(id).and_then(Session::open) else { return };
        if !open.encoding.carries_notices() {
            return;
        }
        let (is_stream, is_pusher) = (open.encoding.is_sse(), open.encoding.is_pusher());
        // The queue is the connection's, so the notice names a channel only where there is just one.
        let channel = match open.subscriptions.as_slice() {
            [only] => self.hub.channel(self.hub.channel_of(*only)).name().to_owned(),
            _ => String::new(),
        };
        let mut notice = Vec::new();
        if is_pusher {
            let channel = (!channel.is_empty()).then_some(&*channel);
            let text = format!("{dropped} messages were dropped: this connection reads too slowly");
            server::error(None, &text, channel, &mut notice);
            return self.write_frame(connections, id, Opcode::Text, &notice);
        }
        raw::encode_dropped(&channel, dropped, &mut notice);
        if is_stream {
            let mut out = Vec::new();
            sse::encode_event(None, Some(event::DROPPED), &String::from_utf8_lossy(&notice), &mut out);
            connections.write(id, &out);
        } else {
            self.write_frame(connections, id, Opcode::Text, &notice);
        }
    }
}
