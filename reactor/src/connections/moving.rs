//! Connections that go on in another process, and those that come from one: what the reactor keeps of a connection, besides
//! its driver's state, and a time in which none of them is read.

use std::{io, net::TcpStream as StdTcpStream};

use bytes::Bytes;

use super::{
    Closed, Connections,
    entry::{Entry, Paused, PeerEnd, WhenFlushed},
};
use crate::{outbound::Bound, slab::ConnectionId, wheel::Tick};

/// What is kept of a connection. Times are ticks from now on, or until now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub heard_ago: u32,
    /// `None`: no timer is set.
    pub timer_in: Option<u32>,
    /// Written and not sent, in order: what is left of a message that has begun, and what waits behind it.
    pub unsent: Vec<u8>,
    /// Messages dropped from its queue that [`Driver::on_recovered`](crate::Driver::on_recovered) has not told of.
    pub dropped: u64,
    /// Read and not used.
    pub unused: Vec<u8>,
    /// No bytes are handed on until what is unsent has gone.
    pub awaits_flush: bool,
    /// The end of what the peer sends is told, and does not close it.
    pub is_half_open: bool,
}

impl<C> Connections<C> {
    /// While reads are held, nothing is read or accepted and no timer is told; what comes meanwhile waits in the kernel, and
    /// what is due comes afterwards. What was begun goes on.
    pub fn hold_reads(&mut self, held: bool) {
        self.are_reads_held = held;
    }

    /// While accepts are held, nobody comes in; who wants to waits in the kernel.
    pub fn hold_accepts(&mut self, held: bool) {
        self.are_accepts_held = held;
    }

    pub(crate) fn accepts(&self) -> bool {
        !self.are_reads_held && !self.are_accepts_held
    }

    /// Whether the loop has something to do for connections although reads are held: burials, notices.
    pub fn is_busy(&self) -> bool {
        !self.doomed.is_empty() || !self.recovered.is_empty() || !self.notices.is_empty()
    }

    /// The number that the newest connection has.
    pub fn newest_generation(&self) -> u32 {
        self.next_generation
    }

    /// Numbers connections from the next one on.
    pub fn number_after(&mut self, generation: u32) {
        self.next_generation = generation;
    }

    /// What would have to go along if this connection went on elsewhere, beside its socket and its state. `None`: it cannot,
    /// because it is on its way out, or being opened, or waits for something that its driver does, or has a TLS session.
    pub fn kept(&mut self, id: ConnectionId) -> Option<Kept> {
        let entry = self.entries.get(id.slot).filter(|entry| entry.takes_writes(id))?;
        let is_at_rest = entry.flags.paused == Paused::No && entry.flags.peer_end != PeerEnd::Came;
        if is_at_rest { self.kept_of_pair(id) } else { None }
    }

    /// The same of one whose reading may be stopped and whose directions may have ended, one or the other. Who goes on with it
    /// finds the end of what its peer sends once more, and stops and ends it by itself.
    pub fn kept_of_pair(&mut self, id: ConnectionId) -> Option<Kept> {
        self.settle_answers(id);
        let now = self.now;
        let entry = self.entries.get(id.slot).filter(|entry| entry.lives(id))?;
        let flags = entry.flags;
        let stays = entry.socket.is_none()
            || flags.connecting
            || flags.paused.has_rest()
            || flags.when_flushed == WhenFlushed::Close
            || self.sessions.get(id.slot).is_some();
        if stays {
            return None;
        }
        let told = self.recovered.iter().filter(|(recovered, _)| *recovered == id);
        let dropped = entry.outbound.as_ref().map_or(0, |queue| queue.dropped());
        Some(Kept {
            heard_ago: self.attended.tick().0.saturating_sub(entry.heard.0),
            timer_in: (entry.timer.due != Tick::NEVER).then(|| entry.timer.due.0.saturating_sub(now.0)),
            unsent: entry.outbound.as_ref().map_or_else(Vec::new, |queue| queue.unsent()),
            dropped: dropped + told.map(|(_, dropped)| dropped).sum::<u64>(),
            unused: self.rests.bytes_of(id).to_vec(),
            awaits_flush: entry.awaits_flush(),
            is_half_open: flags.peer_end != PeerEnd::Closes,
        })
    }

    /// Lets go of a connection whose socket another process has: it stays open there.
    ///
    /// # Errors
    /// The kernel does not take its socket out of this poll.
    pub fn let_go(&mut self, id: ConnectionId) -> io::Result<Option<C>> {
        self.settle_answers(id);
        self.rests.forget(id);
        Ok(self.take_out(id)?.map(|released| released.connection))
    }

    /// Goes on with a connection of another process, under the name that it had there. What is unsent is sent at once; its
    /// driver is told nothing. One whose socket cannot be polled ends as if it had failed later.
    ///
    /// # Panics
    /// Another connection has its place: those that go on come before any that is new here.
    pub fn go_on(&mut self, id: ConnectionId, socket: StdTcpStream, kept: Kept, connection: C) {
        let entry = Entry::reserved(id.generation, self.attended.tick(), connection);
        assert!(self.entries.insert_at(id.slot, entry), "the place of {id:?} is taken");
        self.resume(id, socket, kept);
    }

    /// Gives a reserved connection the socket that it had in another process, and what was kept of it there.
    pub fn resume(&mut self, id: ConnectionId, socket: StdTcpStream, kept: Kept) {
        let heard = Tick(self.attended.tick().0.saturating_sub(kept.heard_ago));
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.lives(id)) else { return };
        entry.heard = heard;
        if kept.is_half_open {
            entry.flags.peer_end = PeerEnd::Told;
        }
        if kept.awaits_flush {
            entry.flags.when_flushed = WhenFlushed::Resume;
        }
        if !kept.unsent.is_empty() {
            self.counters.queued_bytes += kept.unsent.len() as u64;
            let queue = entry.outbound.get_or_insert_default();
            // It is not looked at by a policy: what it begins with may be the rest of a frame.
            let _kept = queue.push_own(Bytes::from(kept.unsent), Bound::Exempt, 0);
            queue.add_dropped(kept.dropped);
        } else if kept.dropped > 0 {
            self.recovered.push((id, kept.dropped));
        }
        if let Some(ticks) = kept.timer_in {
            self.set_timer(id, Tick(self.now.0.saturating_add(ticks.max(1))));
        }
        self.give_back(id, &kept.unused);
        if let Err(error) = self.attach(id, socket) {
            self.doom(id, Closed::Failed(error.kind()));
        }
    }
}
