//! Pings of the protocol: an empty reply at every interval, whatever else is told, which the client answers with an empty
//! command. When the next one is due, or the answer to the last, is in the tag; whether one is under way, in `ping`.

use std::time::Duration;

use tidegate_reactor::Tick;
use tidegate_wire::centrifuge::{code::Disconnect, push};

use super::{STAGE_BITS, Stage, forms::Carrier};
use crate::{
    metrics::Heartbeat,
    session::{
        Ctx, Open,
        heartbeat::{Answer, Ping},
    },
};

/// The next ping or the end of the time for its answer. Ticks of 30 bits are 8 years of a process.
pub(super) fn due(open: &Open) -> Option<Tick> {
    let (is_connected, carrier) = (Stage::of(open) == Stage::Connected, Carrier::of(open.form));
    (is_connected && carrier.is_framed()).then_some(Tick(open.tag >> STAGE_BITS))
}

impl Ctx<'_> {
    /// Pings from now on: first after half an interval to a whole one, so that clients which came together are not pinged
    /// together.
    pub(super) fn begin_pings(&mut self) {
        if !self.carrier().is_some_and(Carrier::is_framed) {
            return;
        }
        let first = self.rule().next_look(self.connections.now(), Duration::ZERO, self.id.generation);
        self.next_ping(first);
    }

    /// Something ends by itself: a ping is due, or was not answered in time; the time to connect is over, or a subscription
    /// with a token of its own.
    pub(super) fn on_due(&mut self) {
        let now = self.connections.now();
        let Some(open) = self.open() else { return };
        let stale = open.state::<super::Client>().and_then(|client| client.stale);
        if stale.is_some_and(|stale| stale <= now) {
            return self.cut(Disconnect::Stale, &"it did not connect in time");
        }
        if due(open).is_some_and(|due| due <= now) {
            self.beat_own();
        }
        self.end_expired();
    }

    /// The client has answered a ping.
    pub(super) fn pong(&mut self) {
        let next = self.connections.now().after(self.rule().interval);
        match self.open() {
            Some(open) if open.ping.is_under_way() => {
                self.set_ping(Ping::NONE);
                self.next_ping(next);
            }
            Some(_) => self.cut(Disconnect::BadRequest, &"a pong that was not asked for"),
            None => {}
        }
    }

    /// No ping is spared: these clients end a connection on which none came in time, whatever else did.
    fn beat_own(&mut self) {
        let (rule, Some(seen)) = (self.rule(), self.seen()) else { return };
        if self.carrier().is_some_and(Carrier::is_uni) {
            self.ping();
            return self.next_ping(seen.now.after(rule.interval));
        }
        match rule.answer(seen, self) {
            Some(Answer::Missed) => self.cut(Disconnect::NoPong, &"a ping was not answered"),
            // While its commands wait, its socket is not read, and whether it is gone shows in what is written.
            Some(Answer::PutOff(_)) if self.connections.is_paused(self.id) => self.ping_own(),
            Some(Answer::PutOff(by)) => {
                self.core.metrics.heartbeats.add(Heartbeat::PutOff, 1);
                self.next_ping(seen.now.after(by));
            }
            Some(Answer::Awaited(left)) => self.next_ping(seen.now.after(left)),
            Some(Answer::Came) | None => self.ping_own(),
        }
    }

    fn ping_own(&mut self) {
        self.core.metrics.heartbeats.add(Heartbeat::Sent, 1);
        self.set_ping(Ping::at(self.connections.attended()));
        self.ping();
        self.next_ping(self.connections.now().after(self.rule().timeout));
    }

    /// Tells a connected client that the server is there. What an HTTP stream writes says to the kernel whether its client
    /// is there, so nothing is answered there.
    pub(super) fn ping(&mut self) {
        if let (Some(Stage::Connected), Some(carrier)) = (self.stage(), self.carrier()) {
            self.write(|out| carrier.put_one(out, push::ping));
        }
    }

    fn next_ping(&mut self, due: Tick) {
        if let Some(open) = self.open_mut() {
            let stage = Stage::of(open) as u32;
            open.tag = due.0 << STAGE_BITS | stage;
        }
        self.beat_in_time();
    }
}
