//! The connections of one shard as its driver sees them: close, time, release. Beside it:
//!
//! - `entry`: what is kept for one connection
//! - `reading`, `secure`, `rests`: bytes that come in, through a TLS session, or are used later
//! - `writing`, `answers`: bytes that go out, at once or gathered
//! - `moving`: connections that go on in another process, or come from one
//! - `peering`: what a driver needs that brings two connections together

mod answers;
mod entry;
mod moving;
mod path;
mod peering;
mod reading;
mod rests;
mod secure;
mod writing;

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use bytes::Bytes;
use mio::{Interest, Registry, Token, net::TcpStream};

pub(crate) use entry::Unread;
pub use moving::Kept;
pub use path::Path;
pub(crate) use peering::Notice;
pub(crate) use reading::Received;
pub(crate) use rests::Rest;
pub use writing::Written;

use answers::Answers;
use entry::{Entry, Paused, PeerEnd, WhenFlushed};
use rests::Rests;

use crate::{
    attended::Attended,
    slab::{ConnectionId, Slab},
    tls::{Sessions, TlsSession},
    wheel::{Tick, Visit, Wheel},
};

/// How a connection ended; told once to [`Driver::on_closed`](crate::Driver::on_closed).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The peer ended the stream. What waited for it is lost, unless the driver had asked to close or shut when it
    /// is sent: then it is sent first.
    Peer,
    /// The socket failed.
    Failed(io::ErrorKind),
    /// The queue reached its bound under [`Overflow::Disconnect`](crate::Overflow::Disconnect).
    Overflow,
    /// The peer broke the TLS protocol, or has nothing in common with us.
    Tls,
    /// The driver closed it.
    Local,
}

/// A connection that left the reactor.
#[derive(Debug)]
pub struct Released<C> {
    pub socket: StdTcpStream,
    /// What was written but not sent, in order.
    pub unsent: Vec<Bytes>,
    /// Messages dropped from its queue that [`Driver::on_recovered`](crate::Driver::on_recovered) has not told of.
    pub dropped: u64,
    /// Its TLS session, if it has one; what that holds unsent goes before `unsent`, which is plaintext.
    pub tls: Option<Box<TlsSession>>,
    pub connection: C,
}

/// Running totals of a shard; the driver exports them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Of plaintext under TLS.
    pub bytes_received: u64,
    /// Of plaintext under TLS.
    pub bytes_sent: u64,
    pub writes: u64,
    /// Bytes that wait in queues now.
    pub queued_bytes: u64,
    /// Messages of shared writes that waited for a connection when it was closed, whole or in part.
    pub messages_unsent: u64,
    /// TLS handshakes completed; those of them that resumed a session; sessions that broke off, most of them in their
    /// handshake.
    pub tls_handshakes: u64,
    pub tls_resumed: u64,
    pub tls_failures: u64,
}

/// The connections of one shard.
#[derive(Debug)]
pub struct Connections<C> {
    pub(crate) entries: Slab<Entry<C>>,
    pub(crate) wheel: Wheel,
    pub(crate) sessions: Sessions,
    pub(crate) registry: Registry,
    now: Tick,
    pub(crate) attended: Attended,
    next_generation: u32,
    /// Nothing is read or accepted, and no timer told.
    pub(crate) are_reads_held: bool,
    /// Nothing is accepted.
    are_accepts_held: bool,
    queue_bytes_max: usize,
    /// Merging connections with something to flush.
    unflushed: Vec<u32>,
    /// What is written to the connection that is handed bytes.
    pub(crate) answers: Answers,
    /// Reused for what is made for one connection.
    made: Vec<u8>,
    /// Bytes read and not used yet.
    pub(crate) rests: Rests,
    /// Connections to remove at the end of the turn, so that no driver code sees one vanish under it.
    pub(crate) doomed: VecDeque<(ConnectionId, Closed)>,
    /// Connections whose socket may have more to read, each once: named twice it would be read twice a turn, and
    /// with every event once more.
    pub(crate) unread: VecDeque<ConnectionId>,
    /// Queues that ran empty after messages had been dropped from them.
    pub(crate) recovered: Vec<(ConnectionId, u64)>,
    /// What drivers asked to be told of, in order. At most a few for each connection: each is told once, or again
    /// only after the driver asked again.
    pub(crate) notices: VecDeque<(ConnectionId, Notice)>,
    pub(crate) counters: Counters,
}

impl<C> Connections<C> {
    pub(crate) fn new(registry: Registry, queue_bytes_max: usize) -> Self {
        Self {
            entries: Slab::new(),
            wheel: Wheel::new(),
            sessions: Sessions::default(),
            registry,
            now: Tick(0),
            attended: Attended::default(),
            next_generation: 0,
            are_reads_held: false,
            are_accepts_held: false,
            queue_bytes_max,
            unflushed: Vec::new(),
            answers: Answers::default(),
            made: Vec::new(),
            rests: Rests::default(),
            doomed: VecDeque::new(),
            unread: VecDeque::new(),
            recovered: Vec::new(),
            notices: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// The current tick; read from the clock once a turn.
    pub fn now(&self) -> Tick {
        self.now
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections held, those that are closing included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One past the highest slot, to walk over all connections in portions.
    pub fn slots(&self) -> u32 {
        self.entries.slots()
    }

    /// The connection in a slot, if there is one that is not on its way out.
    pub fn in_slot(&self, slot: u32) -> Option<ConnectionId> {
        let entry = self.entries.get(slot)?;
        (!entry.flags.doomed).then_some(ConnectionId { slot, generation: entry.generation })
    }

    /// State of a connection; also of one that is on its way out and was not reported yet.
    pub fn get(&self, id: ConnectionId) -> Option<&C> {
        self.entry(id).map(|entry| &entry.connection)
    }

    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut C> {
        self.entry_mut(id).map(|entry| &mut entry.connection)
    }

    /// State of the connection in a slot; like [`get_mut`](Self::get_mut), for who keeps slots.
    pub fn in_slot_mut(&mut self, slot: u32) -> Option<&mut C> {
        self.entries.get_mut(slot).map(|entry| &mut entry.connection)
    }

    /// Its descriptor, for what only the kernel and its owner know to do with it. `None` before it has one.
    pub fn socket(&self, id: ConnectionId) -> Option<BorrowedFd<'_>> {
        self.entry(id)?.socket.as_ref().map(AsFd::as_fd)
    }

    /// The other end of its socket, asked of the kernel.
    pub fn peer_address(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.entry(id)?.socket.as_ref()?.peer_addr().ok()
    }

    /// The clock by which peers are judged: [`now`](Self::now) without the time in which the shard was late itself.
    pub fn attended(&self) -> Tick {
        self.attended.tick()
    }

    /// This end of its socket, asked of the kernel.
    pub fn local_address(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.entry(id)?.socket.as_ref()?.local_addr().ok()
    }

    /// For how long no bytes came in from it, of the time in which the shard [attended](Self::attended).
    pub fn silent(&self, id: ConnectionId) -> Duration {
        self.entry(id).map_or(Duration::ZERO, |entry| self.attended().since(entry.heard))
    }

    /// Bytes that wait for its socket: those of its queue, and of the record that its session is sending.
    pub fn queued_bytes(&self, id: ConnectionId) -> usize {
        let queue = self.entry(id).and_then(|entry| entry.outbound.as_ref());
        let encrypted = self.tls(id).map_or(0, |session| session.unsent().len());
        queue.map_or(0, |queue| queue.bytes()) + encrypted
    }

    /// Has the kernel give a connection up when what was sent to it is not acknowledged for so long (RFC 5482).
    /// For peers that are only written to: their death shows in nothing else.
    #[cfg(target_os = "linux")]
    pub fn set_unacknowledged_max(&self, id: ConnectionId, limit: Duration) -> io::Result<()> {
        let Some(socket) = self.entry(id).and_then(|entry| entry.socket.as_ref()) else { return Ok(()) };
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        Ok(rustix::net::sockopt::set_tcp_user_timeout(socket, limit_ms)?)
    }

    /// Takes a slot for a connection whose socket comes later ([`attach`](Self::attach)); what is written to it
    /// waits in its queue.
    pub fn reserve(&mut self, connection: C) -> ConnectionId {
        self.next_generation = self.next_generation.wrapping_add(1);
        let generation = self.next_generation;
        let slot = self.entries.insert(Entry::reserved(generation, self.attended.tick(), connection));
        ConnectionId { slot, generation }
    }

    /// Gives a reserved connection its socket; closes the socket if the connection is gone. The socket is
    /// non-blocking, as those of a listening shard or of a runtime are: saying so again would be one more system
    /// call for each connection.
    pub fn attach(&mut self, id: ConnectionId, socket: StdTcpStream) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.lives(id)) else {
            return Ok(());
        };
        debug_assert!(is_nonblocking(&socket), "a blocking socket would stop the shard");
        let mut socket = TcpStream::from_std(socket);
        // Both directions once and for all: edge-triggered, so an idle socket costs no call to change interest.
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut socket, Token(id.slot as usize), interest)?;
        entry.socket = Some(socket);
        match entry.outbound {
            Some(_) => self.flush(id),
            None => self.flushed(id),
        }
        Ok(())
    }

    /// Sets when [`Driver::on_timer`](crate::Driver::on_timer) is called for it; replaces what was set before.
    pub fn set_timer(&mut self, id: ConnectionId, due: Tick) {
        if let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.generation == id.generation) {
            self.wheel.set(id.slot, &mut entry.timer, due);
        }
    }

    /// From now on its shared writes wait for the end of the turn and leave as one.
    pub fn set_merging(&mut self, id: ConnectionId, merges: bool) {
        if let Some(entry) = self.entry_mut(id) {
            entry.flags.merges = merges;
        }
    }

    /// Stops or resumes reading it; what the peer sends meanwhile waits in the kernel. What was read before, and not used
    /// yet, is still handed on.
    pub fn set_paused(&mut self, id: ConnectionId, paused: bool) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.flags.paused = entry.flags.paused.with_unread(paused);
        self.catch_up(id);
    }

    /// Stops or resumes handing on its bytes, those included that were read and not used yet: the driver waits for
    /// something that the next of them depend on. A driver that is handed bytes when it begins to hold uses no more of them.
    pub fn set_held(&mut self, id: ConnectionId, held: bool) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.flags.paused = entry.flags.paused.with_rest(held);
        self.catch_up(id);
    }

    pub fn is_held(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.paused.has_rest())
    }

    /// Whether its reading was stopped.
    pub fn is_paused(&self, id: ConnectionId) -> bool {
        self.entry(id).is_some_and(|entry| entry.flags.paused != Paused::No)
    }

    /// Closes at once; what waits is lost.
    pub fn close(&mut self, id: ConnectionId) {
        if self.entry(id).is_some() {
            self.settle_answers(id);
            self.doom(id, Closed::Local);
        }
    }

    /// Closes when what waits has been sent. A timer set by the driver bounds the wait.
    pub fn close_when_flushed(&mut self, id: ConnectionId) {
        self.when_flushed(id, WhenFlushed::Close);
    }

    /// Ends the stream when what waits has been sent, but keeps reading until the peer ends its own: closing a
    /// socket with unread bytes resets it, and the peer would lose what it was told last (RFC 9112 section 9.6).
    /// A timer set by the driver bounds the wait.
    pub fn shut_when_flushed(&mut self, id: ConnectionId) {
        self.when_flushed(id, WhenFlushed::Shut);
    }

    /// Hands on no more bytes until what waits has been sent: a peer that does not read is not answered more.
    pub fn pause_until_flushed(&mut self, id: ConnectionId) {
        if self.pauses_after_answers(id) {
            return;
        }
        self.when_flushed(id, WhenFlushed::Resume);
    }

    fn when_flushed(&mut self, id: ConnectionId, action: WhenFlushed) {
        self.settle_answers(id);
        let Some(entry) = self.entry_mut(id) else { return };
        // A decision to end is not taken back.
        entry.flags.when_flushed = entry.flags.when_flushed.max(action);
        if entry.flags.when_flushed == WhenFlushed::Shut && entry.flags.peer_end == PeerEnd::Closes {
            // The peer's end is waited for, and it is found by reading.
            entry.flags.paused = Paused::No;
        }
        match entry.outbound {
            Some(_) => self.catch_up(id),
            None => self.flushed(id),
        }
    }

    /// The queue is empty: does what was asked for then.
    fn flushed(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.generation == id.generation)
        else {
            return;
        };
        let tells = std::mem::take(&mut entry.flags.tells_flushed);
        match entry.flags.when_flushed {
            WhenFlushed::Stay => {}
            WhenFlushed::Resume => entry.flags.when_flushed = WhenFlushed::Stay,
            // To a peer that is gone nothing needs to be said.
            WhenFlushed::Close => match entry.end_session(self.sessions.encrypting(id.slot)) {
                Ok(false) => {}
                Ok(true) | Err(_) => self.doom(id, Closed::Local),
            },
            WhenFlushed::Shut => {
                if let Err(error) = entry.shut(self.sessions.encrypting(id.slot)) {
                    self.doom(id, Closed::Failed(error.kind()));
                }
            }
        }
        if tells {
            self.notices.push_back((id, Notice::Flushed));
        }
        self.catch_up(id);
    }

    /// Takes a connection out of the reactor: its socket, what it was not sent yet, its state.
    /// `None` when it is gone, on its way out, or has no socket. After an error it is closed.
    pub fn release(&mut self, id: ConnectionId) -> io::Result<Option<Released<C>>> {
        self.settle_answers(id);
        self.rests.forget(id);
        match self.entry(id).is_some_and(|entry| entry.takes_writes(id)) {
            true => self.take_out(id),
            false => Ok(None),
        }
    }

    /// The same of one whose end its driver may have decided.
    fn take_out(&mut self, id: ConnectionId) -> io::Result<Option<Released<C>>> {
        let Some(entry) = self.entries.get_mut(id.slot).filter(|entry| entry.lives(id)) else {
            return Ok(None);
        };
        let Some(mut socket) = entry.socket.take() else { return Ok(None) };
        if let Err(error) = self.registry.deregister(&mut socket) {
            self.fail(id, &error);
            return Err(error);
        }
        let Some(mut entry) = self.entries.remove(id.slot) else { return Ok(None) };
        let tls = self.sessions.remove(id.slot);
        self.forget_queue(&entry);
        let mut dropped = entry.outbound.as_mut().map_or(0, |queue| queue.take_dropped());
        if let Some(at) = self.recovered.iter().position(|(recovered, _)| *recovered == id) {
            dropped += self.recovered.swap_remove(at).1;
        }
        let unsent = entry.outbound.map_or_else(Vec::new, |queue| queue.into_unsent());
        Ok(Some(Released { socket: socket.into(), unsent, dropped, tls, connection: entry.connection }))
    }

    /// Whether the loop has something to do for them at once. (What was gathered has left at the end of the turn.)
    pub(crate) fn has_work(&self) -> bool {
        let is_read = !self.unread.is_empty() || self.rests.waiting() > 0 || self.wheel.has_expired();
        self.is_busy() || (is_read && !self.are_reads_held)
    }

    pub(crate) fn set_now(&mut self, now: Tick) {
        self.now = now;
    }

    pub(crate) fn visit_timer(&mut self, slot: u32, armed: Tick) -> Option<ConnectionId> {
        let entry = self.entries.get_mut(slot)?;
        match self.wheel.visit(slot, armed, &mut entry.timer) {
            Visit::Due if !entry.flags.doomed => Some(ConnectionId { slot, generation: entry.generation }),
            _ => None,
        }
    }

    /// Removes a doomed connection and gives its state back; dropping the socket closes it.
    pub(crate) fn bury(&mut self, id: ConnectionId) -> Option<C> {
        self.entry(id)?;
        self.rests.forget(id);
        let mut entry = self.entries.remove(id.slot)?;
        self.end_session(id, &mut entry);
        self.forget_queue(&entry);
        self.counters.messages_unsent += entry.outbound.as_ref().map_or(0, |queue| queue.messages());
        Some(entry.connection)
    }

    pub(crate) fn doom(&mut self, id: ConnectionId, closed: Closed) {
        if let Some(entry) = self.entry_mut(id)
            && !entry.flags.doomed
        {
            entry.flags.doomed = true;
            self.doomed.push_back((id, closed));
        }
    }

    pub(crate) fn entry(&self, id: ConnectionId) -> Option<&Entry<C>> {
        self.entries.get(id.slot).filter(|entry| entry.generation == id.generation)
    }

    pub(crate) fn entry_mut(&mut self, id: ConnectionId) -> Option<&mut Entry<C>> {
        self.entries.get_mut(id.slot).filter(|entry| entry.generation == id.generation)
    }

    /// Says that the stream ends here, if nothing is missing from it. A peer that is gone needs none, and the socket
    /// of one that is slow may have no room.
    fn end_session(&mut self, id: ConnectionId, entry: &mut Entry<C>) {
        if let (Some(socket), None) = (entry.socket.as_mut(), &entry.outbound)
            && let Some(tls) = self.sessions.encrypting(id.slot)
        {
            drop(tls.onto(socket).close());
        }
        self.sessions.remove(id.slot);
    }

    fn forget_queue(&mut self, entry: &Entry<C>) {
        self.counters.queued_bytes -= entry.outbound.as_ref().map_or(0, |queue| queue.bytes()) as u64;
    }
}

fn is_nonblocking(socket: &StdTcpStream) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK))
}
