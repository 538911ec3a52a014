//! The loop of one shard: events, new connections, messages, timers, the driver's own work, burials; each in portions that are bounded in
//! time, so that no one waits for a large piece of somebody else's.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token, Waker};

use crate::{
    connections::{Closed, Connections, Notice, Rest, Unread},
    listening::{Incoming, Listener, Listening},
    mailbox::{Mail, Mailbox},
    slab::ConnectionId,
    tasks::Tasks,
    wheel::{TICK, Tick},
};

/// Gives bytes their meaning. All calls come from the shard's thread and must not block.
pub trait Driver {
    /// State of a connection.
    type Connection: Send + 'static;
    /// What other threads ask of the shard.
    type Command: Send + 'static;

    /// A connection came in on the listener of the shard. What is given back is adopted here; what is not was handed on, or
    /// is closed.
    fn on_connection(
        &mut self,
        _socket: TcpStream,
        _peer: SocketAddr,
    ) -> Option<(TcpStream, Self::Connection)> {
        None
    }

    /// A connection came in for which there was no descriptor; `socket` holds the spare one and is closed afterwards.
    /// `None`: not even the spare could be had; who waits keeps waiting, and this is said once until descriptors come back.
    fn on_exhausted(&mut self, _socket: Option<TcpStream>) {}

    /// A socket was adopted; bytes that were read before follow through [`on_bytes`](Self::on_bytes). Also called
    /// for one that failed at that, so that each [`on_closed`](Self::on_closed) has had its `on_adopted`.
    fn on_adopted(&mut self, connections: &mut Connections<Self::Connection>, id: ConnectionId);

    /// Bytes came in. They are the driver's to change; what it wants to keep it copies. The answer is how many it used:
    /// the others come again in a later turn, after the bytes of other connections, or not before the next tick if it
    /// asked for that ([`Connections::rest_until_tick`]). What it writes to this connection meanwhile leaves as one.
    fn on_bytes(
        &mut self,
        connections: &mut Connections<Self::Connection>,
        id: ConnectionId,
        bytes: &mut [u8],
    ) -> usize;

    /// The time set by [`Connections::set_timer`] has come.
    fn on_timer(&mut self, connections: &mut Connections<Self::Connection>, id: ConnectionId);

    /// The queue ran empty after so many messages had been dropped from it.
    fn on_recovered(
        &mut self,
        connections: &mut Connections<Self::Connection>,
        id: ConnectionId,
        dropped: u64,
    );

    /// A connection that was opened by [`Connections::connect`] stands. Bytes of its peer may have come before.
    fn on_connected(&mut self, _connections: &mut Connections<Self::Connection>, _id: ConnectionId) {}

    /// What waited has been sent, as [`Connections::tell_flushed`] asked.
    fn on_flushed(&mut self, _connections: &mut Connections<Self::Connection>, _id: ConnectionId) {}

    /// The peer sends no more, and may still read; for those of [`Connections::set_half_open`].
    fn on_end(&mut self, _connections: &mut Connections<Self::Connection>, _id: ConnectionId) {}

    fn on_command(&mut self, connections: &mut Connections<Self::Connection>, command: Self::Command);

    /// The connection is gone; called once for each, but not for those that a [`Mail::Stop`] closes.
    fn on_closed(
        &mut self,
        connections: &mut Connections<Self::Connection>,
        id: ConnectionId,
        connection: Self::Connection,
        closed: Closed,
    );

    /// A portion of the driver's own work, once a turn. `busy` is how long the last turn took, waiting excluded.
    fn on_turn(&mut self, connections: &mut Connections<Self::Connection>, busy: Duration) -> Turn;
}

/// Whether the driver has more of its own work to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    Idle,
    More,
}

const WAKE: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);

/// One `read` takes at most so much; a connection with more comes again in the next turn, after the others.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Events taken from the kernel at once. At about 10 µs each, a full portion is some 5 ms.
const EVENTS_MAX: usize = 512;

/// What one kind of work may take of a turn before the rest of it waits for the next. There are seven kinds, and one piece
/// of work is well under 1 ms, so a turn is at most some 10 ms even if all have too much to do.
const PORTION: Duration = Duration::from_micros(1_500);

/// Messages handled in a turn. Most are adoptions (a few µs) or publications handed to the hub (under 1 µs).
const MAIL_MAX: usize = 256;

/// Timers handled in a turn: at about 7 µs for a ping, under 1 ms.
const TIMERS_MAX: usize = 128;

/// Notices told in a turn: a driver answers one with a system call or two, so 512 are about 2 ms.
const NOTICES_MAX: usize = 512;

/// Connections buried in a turn: closing a socket takes about 10 µs, so 256 are under 3 ms.
const BURIALS_MAX: usize = 256;

/// A shard: build it, take its mailbox, run it on a thread of its own.
#[derive(Debug)]
pub struct Shard<D: Driver> {
    poll: Poll,
    mailbox: Mailbox<Mail<D::Connection, D::Command>>,
    connections: Connections<D::Connection>,
    listening: Option<Listening>,
    tasks: Tasks,
}

impl<D: Driver> Shard<D> {
    /// `queue_bytes_max` bounds what waits for one connection.
    pub fn new(queue_bytes_max: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mailbox = Mailbox::new(Waker::new(poll.registry(), WAKE)?);
        let connections = Connections::new(poll.registry().try_clone()?, queue_bytes_max);
        Ok(Self { poll, mailbox, connections, listening: None, tasks: Tasks::default() })
    }

    /// Takes connections from this listener, beside other shards that do so.
    pub fn listen(&mut self, listener: Listener) -> io::Result<()> {
        self.listening = Some(Listening::begin(listener, self.poll.registry(), LISTENER)?);
        Ok(())
    }

    pub fn mailbox(&self) -> Mailbox<Mail<D::Connection, D::Command>> {
        self.mailbox.clone()
    }

    /// Serves until a [`Mail::Stop`] comes.
    pub fn run(mut self, mut driver: D) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut inbox = VecDeque::new();
        let started = Instant::now();
        let (mut ended, mut busy) = (Duration::ZERO, Duration::ZERO);
        let mut turn = Turn::Idle;
        loop {
            let timeout = self.timeout(turn, &inbox, ended);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            let turn_started = started.elapsed();
            self.connections.attended.turn(busy, turn_started - ended, timeout.unwrap_or(Duration::MAX));
            self.set_now(turn_started);
            self.mailbox.will_look();
            // Those that exceed their part now have their next one in the next turn.
            let rests = self.connections.rests.waiting();
            self.serve_unread(&mut driver, &mut buffer);
            self.serve_events(&mut driver, &events, &mut buffer);
            self.serve_rests(&mut driver, rests);
            self.serve_listener(&mut driver, turn_started)?;
            // Before anything new is written to them.
            self.tell_recovered(&mut driver);
            self.tell_notices(&mut driver);
            // What they give to this shard is mail of this turn.
            self.tasks.run(self.poll.registry());
            self.mailbox.drain(&mut inbox);
            if self.serve_mail(&mut driver, &mut inbox)? == Serve::Stop {
                return Ok(());
            }
            self.serve_timers(&mut driver);
            self.bury_doomed(&mut driver);
            // Last of all calls: what the others gave the driver to do is in its answer. What it leaves in turn
            // (connections to bury, drops to tell) makes the next poll return at once.
            turn = driver.on_turn(&mut self.connections, busy);
            self.connections.flush_merging();
            ended = started.elapsed();
            busy = ended - turn_started;
        }
    }

    fn timeout<M>(&self, turn: Turn, inbox: &VecDeque<M>, elapsed: Duration) -> Option<Duration> {
        let connections = &self.connections;
        let is_due =
            connections.accepts() && self.listening.as_ref().is_some_and(|listening| listening.is_due);
        if turn == Turn::More || !inbox.is_empty() || connections.has_work() || is_due || self.tasks.are_due()
        {
            return Some(Duration::ZERO);
        }
        // The driver's own coarse work (sweeps) runs at least once a second.
        let ticks = if connections.rests.await_tick() { 1 } else { connections.wheel.ticks_to_next(4) };
        let tick = TICK * (connections.now().0 + ticks);
        let paused_until = self.listening.as_ref().and_then(|listening| listening.paused_until);
        let next = paused_until.map_or(tick, |until| until.min(tick));
        Some(next.saturating_sub(elapsed).max(Duration::from_millis(1)))
    }

    fn set_now(&mut self, elapsed: Duration) {
        let now = Tick((elapsed.as_millis() / TICK.as_millis()) as u32);
        if now > self.connections.now() {
            self.connections.set_now(now);
            self.connections.wheel.advance(now);
            self.connections.wake_resting();
        }
    }

    fn serve_events(&mut self, driver: &mut D, events: &Events, buffer: &mut [u8]) {
        let (mut portion, mut is_used_up) = (Portion::default(), self.connections.are_reads_held);
        for event in events {
            match event.token() {
                WAKE => continue,
                LISTENER => {
                    self.listening.iter_mut().for_each(|listening| listening.is_due = true);
                    continue;
                }
                _ if self.tasks.take_event(event) => continue,
                _ => {}
            }
            let slot = event.token().0 as u32;
            if event.is_writable() {
                self.connections.on_writable(slot);
            }
            if event.is_error() {
                self.connections.on_error(slot);
            }
            let is_ended = event.is_read_closed() || event.is_error();
            if (event.is_readable() || is_ended)
                && let Some(id) = self.connections.take_event(slot, is_ended)
            {
                // Each event is told once: those that are not served now are remembered.
                match is_used_up {
                    true if is_ended => self.connections.list_unread(id),
                    true => self.connections.list_unread_as(id, Unread::Bytes),
                    false => {
                        self.serve_bytes(driver, id, buffer, is_ended);
                        is_used_up = portion.is_used_up();
                    }
                }
            }
        }
    }

    /// Takes connections in. `now` is on the clock of the shard.
    fn serve_listener(&mut self, driver: &mut D, now: Duration) -> io::Result<()> {
        let Some(mut listening) = self.listening.take() else { return Ok(()) };
        listening.resume(self.poll.registry(), LISTENER, now);
        if !self.connections.accepts() {
            // It would be told of again in each turn.
            if std::mem::take(&mut listening.is_due) {
                listening.pause(self.poll.registry(), now)?;
            }
            self.listening = Some(listening);
            return Ok(());
        }
        for _ in 0..listening.begin_turn() {
            match listening.accept() {
                Incoming::Connection(socket, peer) => {
                    if let Some((socket, connection)) = driver.on_connection(socket, peer) {
                        self.adopt(driver, socket, &[], connection);
                    }
                }
                Incoming::Passing => {}
                Incoming::Nobody => break,
                Incoming::OnSpare(socket) => driver.on_exhausted(Some(socket)),
                Incoming::Starved => {
                    driver.on_exhausted(None);
                    listening.pause(self.poll.registry(), now)?;
                    break;
                }
                Incoming::Stuck => {
                    listening.pause(self.poll.registry(), now)?;
                    break;
                }
            }
        }
        self.listening = Some(listening);
        Ok(())
    }

    /// Those that had more than one buffer's worth, or were paused.
    fn serve_unread(&mut self, driver: &mut D, buffer: &mut [u8]) {
        let mut portion = Portion::default();
        let waiting = if self.connections.are_reads_held { 0 } else { self.connections.unread.len() };
        for _ in 0..waiting {
            let Some((id, is_ended)) = self.connections.next_unread() else { return };
            self.serve_bytes(driver, id, buffer, is_ended);
            if portion.is_used_up() {
                return;
            }
        }
    }

    /// Those that sent more than they may have done at once. They come after all that did not: while others still wait
    /// for their first part, only one of them has its next, so that none is left out for good.
    fn serve_rests(&mut self, driver: &mut D, waiting: usize) {
        let mut portion = Portion::default();
        let waiting = match (self.connections.are_reads_held, self.connections.unread.is_empty()) {
            (true, _) => 0,
            (false, true) => waiting,
            (false, false) => waiting.min(1),
        };
        for _ in 0..waiting {
            let Some((id, mut rest)) = self.connections.next_rest() else { return };
            let used = self.hand(driver, id, rest.bytes());
            rest.skip(used);
            self.connections.keep_rest(id, rest);
            if portion.is_used_up() {
                return;
            }
        }
    }

    fn serve_bytes(&mut self, driver: &mut D, id: ConnectionId, buffer: &mut [u8], read_closed: bool) {
        let Some(received) = self.connections.read(id, buffer, read_closed) else { return };
        let (more, bytes) = (received.more, received.bytes);
        let used = self.hand(driver, id, bytes);
        if used < bytes.len() {
            self.connections.keep_rest(id, Rest::from(&bytes[used..]));
        } else if more {
            self.connections.list_unread(id);
        }
    }

    /// Hands bytes to the driver, and sends what it answers at once.
    fn hand(&mut self, driver: &mut D, id: ConnectionId, bytes: &mut [u8]) -> usize {
        self.connections.gather_answers(id);
        let used = driver.on_bytes(&mut self.connections, id, bytes);
        self.connections.send_answers();
        if used >= bytes.len() {
            self.connections.rests.has_none();
        }
        used.min(bytes.len())
    }

    fn serve_mail(
        &mut self,
        driver: &mut D,
        inbox: &mut VecDeque<Mail<D::Connection, D::Command>>,
    ) -> io::Result<Serve> {
        let mut portion = Portion::default();
        for _ in 0..MAIL_MAX {
            match inbox.pop_front() {
                Some(Mail::Adopt { socket, read, connection }) => {
                    self.adopt(driver, socket, &read, connection)
                }
                Some(Mail::Command(command)) => driver.on_command(&mut self.connections, command),
                Some(Mail::Listen(listener)) => self.listen(listener)?,
                Some(Mail::StopListening) => {
                    self.listening.take().map_or(Ok(()), |listening| listening.end(self.poll.registry()))?;
                }
                Some(Mail::Begin(task)) => {
                    let mailbox = self.mailbox.clone();
                    let tell = move |task| mailbox.send(Mail::Wake(task));
                    self.tasks.begin(task, self.poll.registry(), tell);
                }
                Some(Mail::Wake(task)) => self.tasks.wake(task),
                Some(Mail::Stop) => return Ok(Serve::Stop),
                None => break,
            }
            if portion.is_used_up() {
                break;
            }
        }
        if inbox.is_empty() && inbox.capacity() > 4096 {
            *inbox = VecDeque::new();
        }
        Ok(Serve::On)
    }

    fn adopt(&mut self, driver: &mut D, socket: TcpStream, read: &[u8], connection: D::Connection) {
        let id = self.connections.reserve(connection);
        if let Err(error) = self.connections.attach(id, socket) {
            self.connections.doom(id, Closed::Failed(error.kind()));
        }
        driver.on_adopted(&mut self.connections, id);
        if !read.is_empty() && self.connections.in_slot(id.slot) == Some(id) {
            let mut bytes = read.to_vec();
            let used = self.hand(driver, id, &mut bytes);
            if used < bytes.len() {
                self.connections.keep_rest(id, Rest::from(&bytes[used..]));
            }
        }
    }

    fn serve_timers(&mut self, driver: &mut D) {
        let mut portion = Portion::default();
        let timers_max = if self.connections.are_reads_held { 0 } else { TIMERS_MAX };
        for _ in 0..timers_max {
            let Some((slot, armed)) = self.connections.wheel.next_expired() else { return };
            if let Some(id) = self.connections.visit_timer(slot, armed) {
                driver.on_timer(&mut self.connections, id);
            }
            if portion.is_used_up() {
                return;
            }
        }
    }

    fn tell_recovered(&mut self, driver: &mut D) {
        while let Some((id, dropped)) = self.connections.recovered.pop() {
            driver.on_recovered(&mut self.connections, id, dropped);
        }
    }

    fn tell_notices(&mut self, driver: &mut D) {
        let mut portion = Portion::default();
        for _ in 0..NOTICES_MAX {
            let Some((id, notice)) = self.connections.notices.pop_front() else { break };
            if self.connections.in_slot(id.slot) != Some(id) {
                continue;
            }
            match notice {
                Notice::Connected => driver.on_connected(&mut self.connections, id),
                Notice::Flushed => driver.on_flushed(&mut self.connections, id),
                Notice::Ended => driver.on_end(&mut self.connections, id),
            }
            if portion.is_used_up() {
                break;
            }
        }
        let notices = &mut self.connections.notices;
        if notices.is_empty() && notices.capacity() > 4096 {
            *notices = VecDeque::new();
        }
    }

    /// Closing one connection may doom others; they are buried with it or in the next turn.
    fn bury_doomed(&mut self, driver: &mut D) {
        let mut portion = Portion::default();
        for _ in 0..BURIALS_MAX {
            let Some((id, closed)) = self.connections.doomed.pop_front() else { break };
            if let Some(connection) = self.connections.bury(id) {
                driver.on_closed(&mut self.connections, id, connection, closed);
            }
            if portion.is_used_up() {
                break;
            }
        }
        let doomed = &mut self.connections.doomed;
        if doomed.is_empty() && doomed.capacity() > 4096 {
            *doomed = VecDeque::new();
        }
    }
}

/// Pieces of work between two looks at the clock. A look is some 25 ns, and a piece is 0.3 to 60 µs.
const PIECES_PER_LOOK: u32 = 4;

/// The time that one kind of work has in a turn, from its first piece on.
#[derive(Default)]
struct Portion {
    began: Option<Instant>,
    pieces: u32,
}

impl Portion {
    /// Asked after each piece of work, so that what there is none of costs nothing.
    fn is_used_up(&mut self) -> bool {
        self.pieces += 1;
        match self.began {
            Some(began) => self.pieces.is_multiple_of(PIECES_PER_LOOK) && began.elapsed() > PORTION,
            None => {
                self.began = Some(Instant::now());
                false
            }
        }
    }
}

/// Whoever still posts to it is not kept waiting, nor are their sockets.
impl<D: Driver> Drop for Shard<D> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

#[derive(PartialEq, Eq)]
enum Serve {
    On,
    Stop,
}
