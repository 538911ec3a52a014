//! Open WebSockets: messages in, heartbeats, notices.

use std::{ops::ControlFlow, time::Duration};

use tidegate_reactor::Tick;
use tidegate_wire::{
    decoder::{Decoder, Message},
    deflate::Inflater,
    frame::{self, CloseCode, Opcode},
};

use super::{
    Ctx, Phase, Session,
    budget::Share,
    heartbeat::{Answer, Line, Ping, Rule, Seen, Step, age_max},
    leaving::{ComeBack, Leave},
    protocol::{Event, Protocol, Transport},
};
use crate::metrics::{self, Budgeted, DisconnectReason, Heartbeat};

/// A ping carries when it was sent, in microseconds of the shard's clock.
const PING_BYTES: usize = 8;

impl Ctx<'_> {
    /// Bytes of a connection that was answered: messages, or, when it was told to go, its close frame.
    /// The answer is how many of them its part in this turn was enough for.
    pub(crate) fn read_socket(&mut self, bytes: &mut [u8], inflater: &mut Inflater) -> usize {
        let (all, now) = (bytes.len(), self.connections.now().duration());
        let decoder = match self.connections.get_mut(self.id).map(|session| &mut session.phase) {
            Some(Phase::Open(open)) => {
                if let Some(budget) = open.spent(&self.core.rates, now) {
                    self.core.metrics.budgets_spent.add(budget, 1);
                    self.connections.rest_until_tick();
                    return 0;
                }
                &mut open.decoder
            }
            Some(Phase::Leaving(Some(decoder))) => decoder,
            _ => return all,
        };
        // The decoder is taken out while its messages are handled, since they may change the session.
        let mut decoder = std::mem::replace(decoder, Decoder::new(false));
        let max = self.core.shared.node.config().limits.message_bytes.bytes();
        let (inflated_before, mut share) =
            (inflater.inflated_bytes(), Share::begin(self.connections.is_crowded()));
        let decoded = decoder.decode(bytes, max, inflater, |message| {
            self.on_message(message)?;
            self.spend_message()?;
            match self.connections.is_held(self.id) {
                true => ControlFlow::Break(()),
                false => share.count(),
            }
        });
        let inflated = inflater.inflated_bytes() - inflated_before;
        if let Some(left) = self.decoder_mut() {
            *left = decoder;
        }
        if inflated > 0 {
            self.core.metrics.inflated_bytes.add(inflated);
            if let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) {
                open.spend_inflated(inflated, &self.core.rates, now);
            }
        }
        match decoded {
            Ok(used) => {
                if used < all {
                    self.core.metrics.budgets_spent.add(Budgeted::Turn, 1);
                }
                used
            }
            Err(error) => {
                match self.session().map(|session| &session.phase) {
                    Some(Phase::Open(_)) => self.leave(Leave::Protocol(error)),
                    Some(Phase::Leaving(Some(_))) => self.connections.close_when_flushed(self.id),
                    _ => {}
                }
                all
            }
        }
    }

    /// A message was handled, whatever it was; whether the next may be now.
    pub(crate) fn spend_message(&mut self) -> ControlFlow<()> {
        let (rate, now) = (self.core.rates.messages, self.connections.now().duration());
        if rate.is_unlimited() {
            return ControlFlow::Continue(());
        }
        // One that was told to go is listened to for its close frame.
        let Some(open) = self.open_mut() else { return ControlFlow::Continue(()) };
        open.budgets.messages.spend(rate, now, 1);
        match open.budgets.messages.is_spent(rate, now) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        match &mut self.session_mut()?.phase {
            Phase::Open(open) => Some(&mut open.decoder),
            Phase::Leaving(decoder) => decoder.as_mut(),
            Phase::Head(_) | Phase::Opening(_) => None,
        }
    }

    /// A message of a client. One that comes after the client was told to go matters only when it is the close frame: it
    /// may have been read together with the message for which the client has to go.
    fn on_message(&mut self, message: Message<'_>) -> ControlFlow<()> {
        let protocol = match self.session().map(|session| &session.phase) {
            Some(Phase::Open(open)) => open.protocol.of_list(self.core.shared.protocols),
            Some(Phase::Leaving(Some(_))) => return self.on_last_message(message),
            _ => return ControlFlow::Break(()),
        };
        match message {
            Message::Ping(payload) => self.write_frame(Opcode::Pong, payload),
            Message::Pong(payload) => self.observe_pong(payload),
            Message::Close(close) => {
                self.close_as_asked(close.map(|(code, _)| code));
                return ControlFlow::Break(());
            }
            Message::Text(text) => {
                self.core.metrics.messages_received.add(1);
                protocol.on_text(self, text);
            }
            Message::Binary(bytes) => {
                self.core.metrics.messages_received.add(1);
                protocol.on_binary(self, bytes);
            }
        }
        ControlFlow::Continue(())
    }

    fn on_last_message(&mut self, message: Message<'_>) -> ControlFlow<()> {
        match message {
            Message::Close(_) => {
                self.connections.close_when_flushed(self.id);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// The client says goodbye: its code comes back (RFC 6455 section 5.5.1), and the connection ends.
    fn close_as_asked(&mut self, code: Option<CloseCode>) {
        self.write(|out| match code {
            Some(code) => frame::encode_close(code, "", out),
            None => frame::encode(Opcode::Close, &[], out),
        });
        self.core.metrics.close_frames.add(metrics::CloseCode::of(code.unwrap_or(CloseCode::NORMAL).0), 1);
        let lasted = self.session().map(|session| self.core.lasted(session)).unwrap_or_default();
        let Some(session) = self.connections.get_mut(self.id) else { return };
        if let Phase::Open(open) = std::mem::replace(&mut session.phase, Phase::Leaving(None)) {
            self.ended(open, DisconnectReason::ClientClosed, lasted);
        }
        self.connections.close_when_flushed(self.id);
        self.set_leave_timer();
    }

    fn observe_pong(&self, payload: &[u8]) {
        // A pong that nobody asked for is legal (RFC 6455 section 5.5.3) and means nothing.
        let Ok(sent_us) = <[u8; PING_BYTES]>::try_from(payload).map(u64::from_be_bytes) else { return };
        let now_us = self.core.shared.started.elapsed().as_micros() as u64;
        if let Some(rtt) = now_us.checked_sub(sent_us).filter(|&us| us < 600_000_000) {
            self.core.metrics.ping_rtt_seconds.observe(Duration::from_micros(rtt));
        }
    }

    /// Sets the first heartbeat. Half to a whole interval from now, so that clients which came together are not
    /// pinged together.
    pub(crate) fn begin_beating(&mut self) {
        #[cfg(target_os = "linux")]
        self.bound_silence();
        let first = self.rule().next_look(self.connections.now(), Duration::ZERO, self.id.generation);
        self.beat_at(first);
    }

    /// An event stream answers no ping. A client that vanished shows in what it does not acknowledge, and that
    /// takes the kernel a quarter of an hour by default. A client that is there but reads nothing looks the same
    /// to the kernel, so it has two heartbeats and a time-out, a minute by default, before it counts as gone.
    #[cfg(target_os = "linux")]
    fn bound_silence(&self) {
        let is_stream = self.protocol().is_some_and(|protocol| protocol.transport() == Transport::Stream);
        let Rule { interval, timeout } = self.rule();
        if is_stream
            && let Err(error) = self.connections.set_unacknowledged_max(self.id, interval * 2 + timeout)
        {
            tracing::debug!(%error, "a vanished event stream will be noticed late");
        }
    }

    /// The heartbeat of an open connection.
    pub(crate) fn beat(&mut self) {
        let now = self.connections.now();
        let Some(open) = self.open() else { return };
        let rare = open.rare.as_ref();
        let is_over = rare.and_then(|rare| rare.expires).is_some_and(|expires| expires <= now);
        if is_over && !self.ask_to_refresh() {
            return self.leave(Leave::TokenExpired);
        }
        if self.is_too_old() {
            return self.leave(Leave::ComeBack(ComeBack::Age));
        }
        let Some(open) = self.open() else { return };
        let protocol = open.protocol.of_list(self.core.shared.protocols);
        if protocol.due(open).is_some_and(|due| due <= now) {
            protocol.on_event(self, Event::Due);
        }
        let Some(seen) = self.seen() else { return };
        let (rule, interval) = (self.rule(), now.after(self.rule().interval));
        if protocol.transport() == Transport::Stream {
            let sent = self.connections.path(self.id).map(|path| path.sent);
            let due = rule.stream(seen, self, sent).unwrap_or_else(|| {
                self.core.metrics.heartbeats.add(Heartbeat::Sent, 1);
                self.tell_protocol(Event::HeartbeatDue);
                interval
            });
            return self.beat_at(due);
        }
        if !protocol.is_pinged() {
            return self.beat_at(interval);
        }
        // What it answers is not read, so its silence says nothing. The publishes that it waits for end in time.
        if self.is_publishing_paused() || self.connections.is_held(self.id) {
            self.set_ping(Ping::NONE);
            return self.beat_at(interval);
        }
        if rule.answer(seen, self) == Some(Answer::Came) {
            self.set_ping(Ping::NONE);
        }
        self.take_step(rule.step(seen, self));
    }

    /// Looked at with each heartbeat: an age of hours needs no timer of its own.
    fn is_too_old(&self) -> bool {
        let max = self.core.shared.node.config().limits.connection_age;
        let lasted = self.session().map_or(Duration::ZERO, |session| self.core.lasted(session));
        !max.is_zero() && lasted >= age_max(max, self.id.generation)
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Look { at, is_proven } => {
                if is_proven {
                    self.core.metrics.heartbeats.add(Heartbeat::Spared, 1);
                }
                self.beat_at(at);
            }
            Step::PutOff { at } => {
                self.core.metrics.heartbeats.add(Heartbeat::PutOff, 1);
                self.beat_at(at);
            }
            Step::Ping => {
                self.core.metrics.heartbeats.add(Heartbeat::Sent, 1);
                self.set_ping(Ping::at(self.connections.attended()));
                let now_us = self.core.shared.started.elapsed().as_micros() as u64;
                self.write_frame(Opcode::Ping, &now_us.to_be_bytes());
                self.beat_at(self.connections.now().after(self.rule().timeout));
            }
            Step::End => self.tell_protocol(Event::Silent),
        }
    }

    pub(crate) fn rule(&self) -> Rule {
        let heartbeat = &self.core.shared.node.config().heartbeat;
        Rule { interval: heartbeat.interval, timeout: heartbeat.timeout }
    }

    /// What the shard knows of an open connection's silence.
    pub(crate) fn seen(&self) -> Option<Seen> {
        let attended = self.connections.attended();
        Some(Seen {
            now: self.connections.now(),
            silent: self.connections.silent(self.id),
            pinged: self.open()?.ping.since(attended),
            is_delivering: self.core.hub.is_delivering(),
            spread: self.id.generation,
        })
    }

    /// Notes that a ping was written, or that none is under way.
    pub(crate) fn set_ping(&mut self, ping: Ping) {
        if let Some(open) = self.open_mut() {
            open.ping = ping;
        }
    }

    /// Something of a connection that was just heard may end sooner than its next heartbeat is due.
    pub(crate) fn beat_in_time(&mut self) {
        if self.protocol().is_some_and(Protocol::is_pinged) {
            self.set_ping(Ping::NONE);
        }
        self.beat_at(self.connections.now().after(self.rule().interval));
    }

    /// The next look at a connection: its heartbeat, or the end of its token or of what its protocol keeps if that is
    /// sooner.
    fn beat_at(&mut self, due: Tick) {
        let Some(open) = self.open() else { return };
        let expires = open.rare.as_ref().and_then(|rare| rare.expires);
        let ends = open.protocol.of_list(self.core.shared.protocols).due(open);
        let soonest = Tick(self.connections.now().0 + 1);
        let ends = expires.into_iter().chain(ends).min().unwrap_or(Tick::NEVER);
        self.connections.set_timer(self.id, due.min(ends.max(soonest)));
    }

    /// Closes a connection that does not answer pings.
    pub(crate) fn give_up_silent(&mut self) {
        if let Some(open) = self.open_mut() {
            open.rare_mut().reason = Some(DisconnectReason::PingTimeout);
        }
        self.connections.close(self.id);
    }

    /// Says how many messages did not fit, where the protocol can. The queue is the connection's, so the notice names a
    /// channel only where there is just one.
    pub(crate) fn tell_dropped(&mut self, messages: u64) {
        let Some(open) = self.open() else { return };
        let hub = &self.core.hub;
        let channel = match open.subscriptions.as_slice() {
            [only] => hub.channel(hub.channel_of(*only)).name().to_owned(),
            _ => String::new(),
        };
        self.note_told("dropped", &format_args!("{messages} messages that did not fit into its queue"));
        self.tell_protocol(Event::Dropped { messages, channel: &channel });
    }
}

/// What the kernel knows of the connection.
impl Line for Ctx<'_> {
    fn has_unhandled(&self) -> bool {
        self.connections.has_unhandled(self.id)
    }

    fn has_unsent(&self) -> bool {
        self.connections.queued_bytes(self.id) > 0
    }

    fn acknowledged(&self) -> Option<Duration> {
        self.connections.path(self.id).map(|path| path.acknowledged)
    }

    fn is_relayed(&self) -> bool {
        let client = self.session().map(|session| session.address);
        let peer = self.connections.peer_address(self.id).map(|address| address.ip());
        !client.zip(peer).is_some_and(|(client, peer)| self.core.shared.front.is_of(client, peer))
    }
}
