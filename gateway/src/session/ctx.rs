//! One connection for as long as something is done with it: all that protocol code sees of the shard.

use std::{fmt::Display, future::Future};

use tidegate_ops::budget::Rate;
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::frame::{self, Opcode};

use super::{
    Earlier, Head, Open, Phase, Session,
    core::Core,
    protocol::{Event, Protocol},
    told::To,
};
use crate::{metrics::Budgeted, problem::log_refusal};

/// A connection with the services of its shard. The connection may be gone, as when something was waited for meanwhile:
/// then reads give `None`, and writes do nothing.
pub(crate) struct Ctx<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) connections: &'a mut Connections<Session>,
    pub(crate) id: ConnectionId,
}

impl Ctx<'_> {
    pub(crate) fn session(&self) -> Option<&Session> {
        self.connections.get(self.id)
    }

    pub(crate) fn session_mut(&mut self) -> Option<&mut Session> {
        self.connections.get_mut(self.id)
    }

    /// Its state while it is open.
    pub(crate) fn open(&self) -> Option<&Open> {
        self.connections.get(self.id).and_then(Session::open)
    }

    pub(crate) fn open_mut(&mut self) -> Option<&mut Open> {
        self.connections.get_mut(self.id).and_then(Session::open_mut)
    }

    /// Notes what became of its requests so far. Who publishes is no client.
    pub(crate) fn set_earlier(&mut self, earlier: Earlier) {
        let Some(head) = self.head_mut() else { return };
        let before = std::mem::replace(&mut head.earlier, earlier);
        match (before, earlier) {
            (Earlier::None, Earlier::None) => return,
            (Earlier::None, _) => self.core.publishers += 1,
            (_, Earlier::None) => self.core.publishers -= 1,
            _ => return,
        }
        self.core.tell_connections(self.connections);
    }

    /// Its state while its request head is not complete.
    pub(crate) fn head_mut(&mut self) -> Option<&mut Head> {
        match &mut self.session_mut()?.phase {
            Phase::Head(head) => Some(head),
            _ => None,
        }
    }

    /// What it speaks, while it is open.
    pub(crate) fn protocol(&self) -> Option<&'static dyn Protocol> {
        self.open().map(|open| open.protocol.of_list(self.core.shared.protocols))
    }

    /// Tells the protocol what happened; nothing where the connection is not open any more.
    pub(crate) fn tell_protocol(&mut self, event: Event<'_>) {
        if let Some(protocol) = self.protocol() {
            protocol.on_event(self, event);
        }
    }

    /// Notes that the connection is told that something was refused, or lost: in the log, and for who asks about it.
    pub(crate) fn note_told(&mut self, what: &str, why: &dyn Display) {
        log_refusal(what, why);
        let (to, now_ms) = (To::Connection(self.id), self.core.now_ms());
        self.core.told.note(to, now_ms, format_args!("{what}: {why}"));
    }

    /// Runs a future, and goes on with its output in this shard, also when the connection is gone by then.
    pub(crate) fn run<F>(&self, future: F, then: impl FnOnce(&mut Ctx<'_>, F::Output) + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = self.id;
        self.core.run(future, move |core, connections, output| then(&mut core.ctx(connections, id), output));
    }

    /// What another thread calls to have this shard go on with `then`.
    pub(crate) fn reply<T: Send + 'static>(
        &self,
        then: impl FnOnce(&mut Ctx<'_>, T) + Send + 'static,
    ) -> impl FnOnce(T) + Send + 'static {
        let id = self.id;
        self.core.reply(move |core, connections, output| then(&mut core.ctx(connections, id), output))
    }

    /// Takes one of the subscriptions that the connection may ask for now; else the rate that stands in the way, which is
    /// counted.
    pub(crate) fn take_subscribe(&mut self) -> Result<(), Rate> {
        let (now, rate) = (self.connections.now().duration(), self.core.rates.subscribes);
        let taken = self.open_mut().map_or(Ok(()), |open| open.budgets.subscribes.take(rate, now, 1));
        taken.map_err(|_| {
            self.core.metrics.budgets_spent.add(Budgeted::Subscribes, 1);
            rate
        })
    }

    /// Writes bytes of this connection alone.
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.connections.write_made(self.id, write);
    }

    /// Writes one WebSocket message.
    pub(crate) fn write_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        self.write(|out| frame::encode(opcode, payload, out));
    }

    /// Writes an answer to what the client sent. It does not count against the bound of its queue; a client that does not
    /// read is not read either.
    pub(crate) fn answer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.connections.write_made_beyond_bound(self.id, write);
        self.connections.pause_until_flushed(self.id);
    }

    /// As [`answer`](Self::answer), for what may be large: a list of members, a page of history. It counts against the bound
    /// of the queue, so a client that asks for many of them and reads none ends as a slow reader.
    pub(crate) fn answer_large(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        self.write_counted(&out);
        self.connections.pause_until_flushed(self.id);
    }

    /// Writes what counts against the bound of the queue, unless it alone is more than the bound.
    pub(super) fn write_counted(&mut self, bytes: &[u8]) {
        let bound = self.core.shared.node.config().limits.send_queue_bytes.bytes();
        match bytes.len() <= bound {
            true => self.connections.write(self.id, bytes),
            false => self.connections.write_beyond_bound(self.id, bytes),
        };
    }

    /// Has the driver go on with bytes that were read before the connection could take them.
    pub(crate) fn resume(&mut self, bytes: &[u8]) {
        self.connections.give_back(self.id, bytes);
    }
}
