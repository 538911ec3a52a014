//! What a shard keeps for one connection.

use std::{
    io::{self, IoSlice, Write},
    net::Shutdown,
};

use mio::net::TcpStream;

use super::Counters;
use crate::{
    outbound::Outbound,
    slab::ConnectionId,
    tls::Encrypting,
    wheel::{Tick, Timer},
};

#[derive(Debug)]
pub(crate) struct Entry<C> {
    /// `None` while a reserved connection waits for its socket: it is written to like one that would block.
    pub(crate) socket: Option<TcpStream>,
    pub(crate) generation: u32,
    /// When bytes last came in, on the clock of what the shard attended.
    pub(crate) heard: Tick,
    pub(crate) timer: Timer,
    pub(crate) flags: Flags,
    pub(crate) outbound: Option<Box<Outbound>>,
    pub(crate) connection: C,
}

// 4 (socket) + 4 (generation) + 4 (heard) + 8 (timer) + 12 (flags), 8 (queue), and the driver's state.
// One bit for each flag would save 8 bytes; with the gateway's 72 bytes of state that is 104 instead of 112, two
// cache lines either way. (A debug build of mio keeps 8 bytes more in every socket.)
const OWN_BYTES_MAX: usize = if cfg!(debug_assertions) { 56 } else { 40 };
const _: () =
    assert!(size_of::<Option<Entry<[u64; 7]>>>() <= OWN_BYTES_MAX + 56, "an idle connection pays for this");

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    /// Writes wait for the end of the turn and leave as one.
    pub(crate) merges: bool,
    /// Named in `unflushed`.
    pub(crate) unflushed: bool,
    /// The socket took less than it was given: it says when it has room again, and is left alone until then.
    pub(crate) blocked: bool,
    /// The driver wants no more bytes for now.
    pub(crate) paused: Paused,
    /// The socket may have bytes that were not read (paused, or cut short for fairness).
    pub(crate) readable: bool,
    pub(crate) unread: Unread,
    /// Named in `doomed`.
    pub(crate) doomed: bool,
    /// What happens once the queue is empty.
    pub(crate) when_flushed: WhenFlushed,
    /// The sending side is shut; reads go on until the peer's end.
    pub(crate) shut: bool,
    pub(crate) peer_end: PeerEnd,
    /// It was opened from here, and the peer has not answered yet.
    pub(crate) connecting: bool,
    /// The driver wants to know when the queue is empty; once.
    pub(crate) tells_flushed: bool,
}

/// Which bytes the driver does not want for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paused {
    #[default]
    No,
    /// What was not read yet.
    Unread,
    /// That, and what was read and not used yet.
    All,
    /// The same, and when that is over still the first.
    AllThenUnread,
}

impl Paused {
    pub(crate) fn has_rest(self) -> bool {
        matches!(self, Self::All | Self::AllThenUnread)
    }

    pub(crate) fn with_unread(self, paused: bool) -> Self {
        match (self.has_rest(), paused) {
            (false, false) => Self::No,
            (false, true) => Self::Unread,
            (true, false) => Self::All,
            (true, true) => Self::AllThenUnread,
        }
    }

    pub(crate) fn with_rest(self, held: bool) -> Self {
        let unread = matches!(self, Self::Unread | Self::AllThenUnread);
        match held {
            true => Self::All.with_unread(unread),
            false => Self::No.with_unread(unread),
        }
    }
}

/// Whether a connection is named in `unread`, and what is known of its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unread {
    #[default]
    No,
    /// When it is read and the socket is empty, the next bytes or the end make a new event.
    Bytes,
    /// The end of the stream may be right behind the bytes.
    ToEnd,
}

/// What the end of what the peer sends means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    /// The end of the connection.
    #[default]
    Closes,
    /// The end of one direction, of which the driver is told.
    Told,
    /// The driver was told.
    Came,
}

/// In the order in which one takes the place of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WhenFlushed {
    #[default]
    Stay,
    /// Hand on bytes again; until then none are.
    Resume,
    /// End the stream, and wait for the peer's end.
    Shut,
    Close,
}

impl<C> Entry<C> {
    /// Without its socket.
    pub(crate) fn reserved(generation: u32, heard: Tick, connection: C) -> Self {
        let (timer, flags) = (Timer::OFF, Flags::default());
        Self { socket: None, generation, heard, timer, flags, outbound: None, connection }
    }

    /// Whether it is the connection that `id` names, and not on its way out.
    pub(crate) fn lives(&self, id: ConnectionId) -> bool {
        self.generation == id.generation && !self.flags.doomed
    }

    pub(crate) fn takes_writes(&self, id: ConnectionId) -> bool {
        self.generation == id.generation && !self.is_closing()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.flags.doomed || self.flags.when_flushed >= WhenFlushed::Shut
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.flags.paused != Paused::No || self.awaits_flush()
    }

    /// Whether what was read of it waits, too.
    pub(crate) fn keeps_rest(&self) -> bool {
        self.flags.paused.has_rest() || self.awaits_flush()
    }

    /// A peer that does not read is not answered more.
    pub(crate) fn awaits_flush(&self) -> bool {
        self.flags.when_flushed == WhenFlushed::Resume
    }

    /// Whether shared writes wait for the end of the turn. Not while the socket would block: then they wait for it.
    pub(crate) fn gathers(&self) -> bool {
        self.flags.merges && !self.flags.blocked && self.socket.is_some()
    }

    /// Whether a gathering connection can take so many bytes more.
    pub(crate) fn has_room(&self, bytes: usize, merge_bytes_max: usize, queue_bytes_max: usize) -> bool {
        match &self.outbound {
            Some(queue) => queue.bytes() + bytes <= merge_bytes_max && queue.fits(bytes, queue_bytes_max),
            None => bytes <= merge_bytes_max.min(queue_bytes_max),
        }
    }

    /// Writes to the socket if nothing waits before it, `head` first; the number of bytes that went out, of plaintext
    /// if it is encrypted on the way.
    pub(crate) fn write_now(
        &mut self,
        head: &[u8],
        bytes: &[u8],
        tls: Option<Encrypting<'_>>,
        counters: &mut Counters,
    ) -> io::Result<usize> {
        let Some(socket) = self.socket.as_mut() else { return Ok(0) };
        if self.flags.blocked || self.outbound.as_ref().is_some_and(|queue| !queue.is_empty()) {
            return Ok(0);
        }
        counters.writes += 1;
        let (sent, is_flushed) = match tls {
            None => match write_some(socket, head, bytes) {
                // What BSD says of a socket that is still connecting; Linux says that it would block.
                Err(error) if self.flags.connecting && error.kind() == io::ErrorKind::NotConnected => {
                    (0, true)
                }
                sent => (sent?, true),
            },
            Some(tls) => {
                let mut writer = tls.onto(socket);
                (write_some(&mut writer, head, bytes)?, writer.send_unsent()?)
            }
        };
        counters.bytes_sent += sent as u64;
        self.flags.blocked = sent < head.len() + bytes.len() || !is_flushed;
        if !is_flushed {
            // What waits in the session is waited for like a queue.
            self.outbound.get_or_insert_default();
        }
        Ok(sent)
    }

    /// Ends the stream of what is sent, once; a reserved connection's when it has its socket. A session ends before
    /// its stream.
    pub(crate) fn shut(&mut self, tls: Option<Encrypting<'_>>) -> io::Result<()> {
        if self.flags.shut || self.socket.is_none() || !self.end_session(tls)? {
            return Ok(());
        }
        self.flags.shut = true;
        self.socket.as_ref().map_or(Ok(()), |socket| socket.shutdown(Shutdown::Write))
    }

    /// Says that a session ends here. `false`: that waits for room like a queue, and this is to be called again when
    /// it has been sent.
    pub(crate) fn end_session(&mut self, tls: Option<Encrypting<'_>>) -> io::Result<bool> {
        let (Some(socket), Some(tls)) = (self.socket.as_mut(), tls) else { return Ok(true) };
        let is_sent = tls.onto(socket).close()?;
        if !is_sent {
            self.outbound.get_or_insert_default();
            self.flags.blocked = true;
        }
        Ok(is_sent)
    }
}

/// What the socket takes now; 0 when it would block.
fn write_some(socket: &mut impl Write, head: &[u8], bytes: &[u8]) -> io::Result<usize> {
    loop {
        let sent = match head {
            [] => socket.write(bytes),
            head => socket.write_vectored(&[IoSlice::new(head), IoSlice::new(bytes)]),
        };
        match sent {
            Ok(sent) => return Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        }
    }
}
