//! One thread, one epoll, one read buffer: the loop that subscribers and publishers share.

use std::io;
use std::time::Duration;

use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Registry, Token};

/// Most bytes one `read` takes. A subscriber that fell behind by a second of 130-byte messages at 2,000 a
/// second has 270 KB waiting, so one or two reads catch it up.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Events taken from one epoll call; a ready fleet of 20,000 takes 20 calls.
const EVENTS_PER_TURN: usize = 1_024;

/// A token is the party in its upper part and the party's own key in the lower 32 bits.
const PARTY_SHIFT: u32 = 32;

/// Something with sockets in the loop.
pub trait Party {
    /// Distinguishes the parties of one driver.
    fn id(&self) -> u16;

    /// Starts what is due at `now_ns`; returns when it wants to be called again at the latest.
    fn tick(&mut self, io: &mut Io<'_>, now_ns: u64) -> Option<u64>;

    /// A socket registered under `key` became ready. Readiness is edge-triggered.
    fn ready(&mut self, io: &mut Io<'_>, key: u32, readiness: Readiness);
}

/// What the loop lends to a party.
#[derive(Debug)]
pub struct Io<'a> {
    registry: &'a Registry,
    party: u16,
    /// Shared by all sockets of the thread; its content means nothing between calls.
    pub buffer: &'a mut [u8],
}

impl Io<'_> {
    /// Registers a socket for both directions, edge-triggered, once for its life.
    pub fn register(&self, source: &mut impl Source, key: u32) -> io::Result<()> {
        let token = Token((usize::from(self.party) << PARTY_SHIFT) | key as usize);
        self.registry.register(source, token, Interest::READABLE | Interest::WRITABLE)
    }
}

/// What happened to a socket.
#[derive(Debug, Clone, Copy)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer will send nothing more; what it sent is still to be read.
    pub read_closed: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed() || event.is_error(),
        }
    }
}

/// The loop. It owns no party, so that its owner can look at them between turns.
#[derive(Debug)]
pub struct Driver {
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
}

impl Driver {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_TURN),
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
        })
    }

    /// Ticks every party, waits at most `wait` for readiness and serves it. Every party that has sockets in
    /// this driver must be given in every turn: an edge that finds no owner is lost.
    pub fn turn(&mut self, parties: &mut [&mut dyn Party], wait: Duration) -> io::Result<()> {
        let Self { poll, events, buffer } = self;
        let now_ns = crate::sys::now_ns();
        let mut wake_ns = now_ns + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX / 2);
        for party in parties.iter_mut() {
            let mut io = Io { registry: poll.registry(), party: party.id(), buffer };
            if let Some(due_ns) = party.tick(&mut io, now_ns) {
                wake_ns = wake_ns.min(due_ns);
            }
        }
        match poll.poll(events, Some(Duration::from_nanos(wake_ns.saturating_sub(now_ns)))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in events.iter() {
            let id = (event.token().0 >> PARTY_SHIFT) as u16;
            let key = event.token().0 as u32;
            if let Some(party) = parties.iter_mut().find(|party| party.id() == id) {
                let mut io = Io { registry: poll.registry(), party: id, buffer };
                party.ready(&mut io, key, Readiness::from(event));
            }
        }
        Ok(())
    }
}
