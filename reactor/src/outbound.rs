//! What waits for a socket that would block: bounded in bytes, with a named policy at the bound. The bytes of a
//! fan-out are shared by reference between all queues they wait in.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice, Write},
};

use bytes::{Buf as _, Bytes};

/// What happens when a connection's queue would grow over its bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// The connection is closed.
    #[default]
    Disconnect,
    /// The new messages are dropped; the connection is told when its queue has drained.
    Drop,
    /// Of the messages of each key that wait under this policy, only the newest stays.
    Latest,
    /// What may not be missed: it is taken a little over the bound, as a connection's own answers are, and never
    /// dropped for something newer. When that little is used up, the connection is closed.
    Never,
}

/// One write of a fan-out: one or more whole messages in one contiguous buffer, or one message whose first bytes are
/// this connection's own.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// What goes before `bytes` for this connection alone. Only of a single message, and copied where it has to wait.
    pub head: &'a [u8],
    pub bytes: &'a Bytes,
    /// Messages within `bytes`.
    pub messages: u32,
    /// Where the last message begins.
    pub last_at: usize,
    /// Messages with the same key replace each other under [`Overflow::Latest`].
    pub key: u32,
    pub overflow: Overflow,
}

/// What became of an attempt to queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Queued {
    Kept,
    /// So many messages will never be sent: new ones under `Drop`, old ones under `Latest`.
    Dropped(u32),
    /// The connection has to go.
    Overflowed,
}

/// Whether queued bytes count against the bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    Counts,
    Exempt,
}

#[derive(Debug)]
struct Chunk {
    /// What of the head has not gone out.
    head: Bytes,
    bytes: Bytes,
    messages: u32,
    /// Where the last message begins, while nothing of the chunk has gone out.
    last_at: u32,
    key: u32,
    bound: Bound,
    /// Queued under [`Overflow::Latest`]: a newer message of the key may take its place.
    replaceable: bool,
    started: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outbound {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// What counts against the bound: bytes of chunks that are not exempt, and [`CHUNK_COST`] for each of them.
    held: usize,
    /// Messages dropped since the connection was last told.
    dropped: u64,
}

/// What a waiting write costs beside its bytes: its chunk, and a small block of the allocator. Without it a peer
/// that sends empty pings and reads nothing would hold 64 bytes of ours for every 2 bytes that count. The write
/// that is about to wait is taken without it, so that a bound of one message holds one message.
const CHUNK_COST: usize = size_of::<Chunk>() + 16;

/// Most buffers one `writev` takes; more gain nothing, a socket rarely takes more at once.
const SLICES_MAX: usize = 32;

/// A connection's own answers, and what may not be missed, go so far over the bound: by one read's worth. A control
/// frame after a full queue of droppable messages must not end the connection.
pub(crate) const OVER_BYTES: usize = 64 * 1024;

impl Shared<'_> {
    /// Bytes of the whole write.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.bytes.len()
    }
}

impl Outbound {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that wait, whole or in part.
    pub(crate) fn messages(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.messages)).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes the number of messages dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Messages that were dropped elsewhere.
    pub(crate) fn add_dropped(&mut self, messages: u64) {
        self.dropped += messages;
    }

    /// A copy of what was not sent, in order.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(Chunk::parts).fold(Vec::with_capacity(self.bytes), |mut all, part| {
            all.extend_from_slice(part);
            all
        })
    }

    /// Queues bytes that no policy may drop.
    pub(crate) fn push_own(&mut self, bytes: Bytes, bound: Bound, bytes_max: usize) -> Queued {
        if bound == Bound::Counts && !self.fits(bytes.len(), bytes_max) {
            return Queued::Overflowed;
        }
        self.push(Chunk {
            head: Bytes::new(),
            bytes,
            messages: 0,
            last_at: 0,
            key: 0,
            bound,
            replaceable: false,
            started: false,
        });
        Queued::Kept
    }

    /// Queues what is left of a shared write, of which the first `sent` bytes have gone out.
    pub(crate) fn push_shared(&mut self, shared: &Shared<'_>, sent: usize, bytes_max: usize) -> Queued {
        let head_sent = sent.min(shared.head.len());
        let chunk = Chunk {
            head: Bytes::copy_from_slice(&shared.head[head_sent..]),
            bytes: shared.bytes.slice(sent - head_sent..),
            messages: shared.messages,
            last_at: shared.last_at as u32,
            key: shared.key,
            bound: Bound::Counts,
            replaceable: shared.overflow == Overflow::Latest,
            started: sent > 0,
        };
        // What has begun must go on, or the stream would break in the middle of a frame. It was the only chunk,
        // so the queue holds at most one such buffer.
        if chunk.started || self.fits(chunk.len(), bytes_max) {
            self.push(chunk);
            return Queued::Kept;
        }
        match shared.overflow {
            Overflow::Disconnect => Queued::Overflowed,
            Overflow::Drop => {
                self.dropped += u64::from(shared.messages);
                Queued::Dropped(shared.messages)
            }
            Overflow::Latest => self.keep_latest(shared, bytes_max),
            Overflow::Never if self.fits(chunk.len(), bytes_max + OVER_BYTES) => {
                self.push(chunk);
                Queued::Kept
            }
            Overflow::Never => Queued::Overflowed,
        }
    }

    /// Writes as much as the socket takes; true when nothing is left. [`bytes`](Self::bytes) says what is left
    /// after an error, too.
    pub(crate) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while !self.chunks.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(self.chunks.iter().flat_map(Chunk::parts)) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            match socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.consume(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// What was not sent, in order.
    pub(crate) fn into_unsent(self) -> Vec<Bytes> {
        let parts = self.chunks.into_iter().flat_map(|chunk| [chunk.head, chunk.bytes]);
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Whether a write of so many bytes stays within the bound.
    pub(crate) fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.held + bytes <= bytes_max
    }

    fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.len();
        self.held += chunk.cost();
        self.chunks.push_back(chunk);
    }

    fn keep_latest(&mut self, shared: &Shared<'_>, bytes_max: usize) -> Queued {
        let mut dropped = self.supersede() + shared.messages.saturating_sub(1);
        let last = shared.bytes.slice(shared.last_at..);
        let older = self.chunks.iter().position(|chunk| chunk.may_go() && chunk.key == shared.key);
        let freed = older.map_or(0, |at| self.chunks[at].cost());
        dropped += 1;
        // When the newest does not fit even so (what may not be dropped fills the queue), the one before it stays:
        // it is newer than what the client has.
        if self.held - freed + shared.head.len() + last.len() <= bytes_max {
            match older.and_then(|at| self.chunks.remove(at)) {
                Some(chunk) => {
                    self.bytes -= chunk.len();
                    self.held -= chunk.cost();
                }
                None => dropped -= 1,
            }
            self.push(Chunk {
                head: Bytes::copy_from_slice(shared.head),
                bytes: last,
                messages: 1,
                last_at: 0,
                key: shared.key,
                bound: Bound::Counts,
                replaceable: true,
                started: false,
            });
        }
        self.dropped += u64::from(dropped);
        Queued::Dropped(dropped)
    }

    /// Leaves one message of each key that waits under `Latest`, its newest; the number of those that went. Other
    /// keys too: a busy one must not fill the queue with old messages while the newest of a quiet one is refused.
    fn supersede(&mut self) -> u32 {
        let of_keys = self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.may_go());
        // A later chunk replaces an earlier one in the map.
        let newest: HashMap<u32, usize> = of_keys.map(|(at, chunk)| (chunk.key, at)).collect();
        let (bytes, held) = (&mut self.bytes, &mut self.held);
        let (mut at, mut dropped) = (0, 0);
        self.chunks.retain_mut(|chunk| {
            let this = at;
            at += 1;
            if !chunk.may_go() {
                return true;
            }
            *bytes -= chunk.len();
            *held -= chunk.cost();
            if newest.get(&chunk.key) != Some(&this) {
                dropped += chunk.messages;
                return false;
            }
            dropped += chunk.messages - 1;
            chunk.bytes = chunk.bytes.slice(chunk.last_at as usize..);
            (chunk.messages, chunk.last_at) = (1, 0);
            *bytes += chunk.len();
            *held += chunk.cost();
            true
        });
        dropped
    }

    fn consume(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.chunks.front_mut() {
            self.held -= front.cost();
            if written < front.len() {
                front.advance(written);
                self.held += front.cost();
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
    }
}

impl Chunk {
    fn len(&self) -> usize {
        self.head.len() + self.bytes.len()
    }

    /// What is left of it; the head of most is empty.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        [&self.head, &self.bytes].into_iter().filter(|part| !part.is_empty()).map(|part| &**part)
    }

    /// A part of it, not all, has gone out.
    fn advance(&mut self, written: usize) {
        let of_head = written.min(self.head.len());
        self.head.advance(of_head);
        self.bytes.advance(written - of_head);
        self.started |= written > 0;
    }

    /// What it counts against the bound.
    fn cost(&self) -> usize {
        match self.bound {
            Bound::Counts => self.len() + CHUNK_COST,
            Bound::Exempt => 0,
        }
    }

    /// Whether a newer message may take its place: never once a part of it has gone out.
    fn may_go(&self) -> bool {
        self.replaceable && !self.started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes `room` bytes and then would block.
    struct Pipe {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= n;
            self.taken.extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shared<'a>(bytes: &'a Bytes, messages: u32, last_at: usize, overflow: Overflow) -> Shared<'a> {
        Shared { head: &[], bytes, messages, last_at, key: 1, overflow }
    }

    fn drained(queue: &mut Outbound) -> String {
        let mut pipe = Pipe { taken: Vec::new(), room: usize::MAX };
        assert!(queue.write_to(&mut pipe).expect("writes"));
        assert_eq!((queue.bytes(), queue.held), (0, 0));
        String::from_utf8_lossy(&pipe.taken).into_owned()
    }

    #[test]
    fn partial_writes_keep_every_byte_in_order() {
        for room in 0..9 {
            let mut queue = Outbound::default();
            let (a, b) = (Bytes::from_static(b"abcd"), Bytes::from_static(b"efg"));
            assert_eq!(queue.push_shared(&shared(&a, 1, 0, Overflow::Disconnect), 1, 1000), Queued::Kept);
            assert_eq!(queue.push_own(b, Bound::Counts, 1000), Queued::Kept);
            let mut pipe = Pipe { taken: Vec::new(), room };
            let done = queue.write_to(&mut pipe).expect("writes");
            assert_eq!((queue.bytes(), done), (6 - room.min(6), room >= 6));
            let rest = drained(&mut queue);
            assert_eq!([String::from_utf8(pipe.taken).expect("text"), rest].concat(), "bcdefg");
        }
    }

    #[test]
    fn at_the_bound_each_policy_does_its_own() {
        let (old, new) = (Bytes::from_static(b"1111"), Bytes::from_static(b"22223333"));
        for (overflow, outcome, left, told) in [
            (Overflow::Disconnect, Queued::Overflowed, "1111", 0),
            (Overflow::Drop, Queued::Dropped(2), "1111", 2),
            (Overflow::Latest, Queued::Dropped(2), "3333", 2),
        ] {
            let mut queue = Outbound::default();
            let bytes_max = 10 + CHUNK_COST;
            assert_eq!(queue.push_shared(&shared(&old, 1, 0, overflow), 0, bytes_max), Queued::Kept);
            assert_eq!(
                queue.push_shared(&shared(&new, 2, 4, overflow), 0, bytes_max),
                outcome,
                "{overflow:?}"
            );
            assert_eq!(drained(&mut queue), left, "{overflow:?}");
            assert_eq!(queue.take_dropped(), told, "{overflow:?}");
        }
    }

    #[test]
    fn latest_never_breaks_a_message_that_has_begun() {
        let mut queue = Outbound::default();
        let (a, b) = (Bytes::from_static(b"aaaa"), Bytes::from_static(b"bbbb"));
        let bytes_max = 6 + CHUNK_COST;
        queue.push_shared(&shared(&a, 1, 0, Overflow::Latest), 2, bytes_max);
        assert_eq!(queue.push_shared(&shared(&b, 1, 0, Overflow::Latest), 0, bytes_max), Queued::Kept);
        assert_eq!(queue.push_shared(&shared(&b, 1, 0, Overflow::Latest), 0, bytes_max), Queued::Dropped(1));
        assert_eq!(drained(&mut queue), "aabbbb");
    }

    #[test]
    fn heads_of_their_own_go_before_what_is_shared() {
        let rest = Bytes::from_static(b"rest");
        for room in 0..13 {
            let mut queue = Outbound::default();
            let first = Shared { head: b"id1 ", ..shared(&rest, 1, 0, Overflow::Disconnect) };
            let second = Shared { head: b"id22 ", ..first };
            assert_eq!(queue.push_shared(&first, 2, 100 + CHUNK_COST), Queued::Kept);
            assert_eq!(queue.push_shared(&second, 0, 100 + CHUNK_COST), Queued::Kept);
            let mut pipe = Pipe { taken: Vec::new(), room };
            let done = queue.write_to(&mut pipe).expect("writes");
            assert_eq!((queue.bytes(), done), (15 - room, false));
            let rest = drained(&mut queue);
            assert_eq!([String::from_utf8(pipe.taken).expect("text"), rest].concat(), "1 restid22 rest");
        }
        let mut queue = Outbound::default();
        let old = Shared { head: b"old ", ..shared(&rest, 1, 0, Overflow::Latest) };
        queue.push_shared(&old, 0, 9);
        assert_eq!(queue.push_shared(&Shared { head: b"newer", ..old }, 0, 9), Queued::Dropped(1));
        assert_eq!(drained(&mut queue), "newerrest");
    }

    #[test]
    fn what_may_not_be_missed_is_not_replaced_and_not_dropped() {
        let bytes_max = 2 * (4 + CHUNK_COST);
        let [old, notice, new] = ["old1", "note", "new1"].map(|text| Bytes::from_static(text.as_bytes()));
        for overflow in [Overflow::Latest, Overflow::Drop] {
            let mut queue = Outbound::default();
            queue.push_shared(&shared(&old, 1, 0, overflow), 0, bytes_max);
            queue.push_shared(&shared(&old, 1, 0, overflow), 0, bytes_max);
            assert_eq!(
                queue.push_shared(&shared(&notice, 1, 0, Overflow::Never), 0, bytes_max),
                Queued::Kept
            );
            assert_eq!(
                queue.push_shared(&shared(&new, 1, 0, overflow), 0, bytes_max),
                match overflow {
                    Overflow::Latest => Queued::Dropped(2),
                    _ => Queued::Dropped(1),
                }
            );
            let left = drained(&mut queue);
            assert_eq!(left, if overflow == Overflow::Latest { "notenew1" } else { "old1old1note" });
        }
        let mut queue = Outbound::default();
        let kept = (0..).take_while(|_| {
            queue.push_shared(&shared(&notice, 1, 0, Overflow::Never), 0, bytes_max) == Queued::Kept
        });
        let kept = kept.count() * (4 + CHUNK_COST);
        assert!(kept > OVER_BYTES && kept <= bytes_max + OVER_BYTES + CHUNK_COST, "{kept}");
    }

    #[test]
    fn exempt_bytes_leave_room_for_others() {
        let mut queue = Outbound::default();
        assert_eq!(queue.push_own(Bytes::from(vec![b'x'; 100]), Bound::Exempt, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"0123456789"), Bound::Counts, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Overflowed);
        let mut pipe = Pipe { taken: Vec::new(), room: 110 };
        assert!(matches!(queue.write_to(&mut pipe), Ok(true)));
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Kept);
    }

    #[test]
    fn one_buffer_larger_than_the_bound_may_finish() {
        let mut queue = Outbound::default();
        let big = Bytes::from(vec![b'x'; 100]);
        assert_eq!(queue.push_shared(&shared(&big, 1, 0, Overflow::Disconnect), 50, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Overflowed);
    }

    #[test]
    fn small_writes_are_counted_with_what_they_cost() {
        let mut queue = Outbound::default();
        let pong = Bytes::from_static(&[0x8A, 0]);
        let kept =
            (0..).take_while(|_| queue.push_own(pong.clone(), Bound::Counts, 64 * 1024) == Queued::Kept);
        let kept = kept.count();
        assert!(kept > 500 && kept * (CHUNK_COST + 2) <= 64 * 1024 + CHUNK_COST, "{kept} pongs wait");
        drained(&mut queue);
    }

    #[test]
    fn a_busy_key_does_not_crowd_out_the_newest_of_a_quiet_one() {
        let mut queue = Outbound::default();
        let bytes_max = 3 * (1 + CHUNK_COST);
        let (busy, quiet) = (Bytes::from_static(b"123"), Bytes::from_static(b"q"));
        for from in 0..3 {
            let message = busy.slice(from..=from);
            queue.push_shared(&shared(&message, 1, 0, Overflow::Latest), 0, bytes_max);
        }
        let quiet = Shared { key: 2, ..shared(&quiet, 1, 0, Overflow::Latest) };
        assert_eq!(queue.push_shared(&quiet, 0, bytes_max), Queued::Dropped(2));
        assert_eq!(drained(&mut queue), "3q");
    }

    #[test]
    fn of_a_waiting_batch_the_last_message_stays() {
        let mut queue = Outbound::default();
        let (batch, new) = (Bytes::from_static(b"aabbcc"), Bytes::from_static(b"zzzzzz"));
        queue.push_shared(&shared(&batch, 3, 4, Overflow::Latest), 0, 10);
        let other = Shared { key: 2, ..shared(&new, 1, 0, Overflow::Latest) };
        assert_eq!(queue.push_shared(&other, 0, 8 + CHUNK_COST), Queued::Dropped(2));
        assert_eq!(drained(&mut queue), "cczzzzzz");
    }

    #[test]
    fn when_the_newest_does_not_fit_the_one_before_it_stays() {
        let mut queue = Outbound::default();
        let (small, large) = (Bytes::from_static(b"s"), Bytes::from(vec![b'l'; 50]));
        queue.push_shared(&shared(&small, 1, 0, Overflow::Latest), 0, 10);
        assert_eq!(queue.push_shared(&shared(&large, 1, 0, Overflow::Latest), 0, 10), Queued::Dropped(1));
        assert_eq!(drained(&mut queue), "s");
        assert_eq!(queue.take_dropped(), 1);
    }

    #[test]
    fn latest_leaves_what_waits_under_another_policy() {
        let mut queue = Outbound::default();
        let (kept, new) = (Bytes::from_static(b"kept"), Bytes::from_static(b"new"));
        queue.push_shared(&shared(&kept, 1, 0, Overflow::Disconnect), 0, 4);
        queue.push_shared(&shared(&new, 1, 0, Overflow::Latest), 0, 4 + CHUNK_COST + 3);
        assert_eq!(queue.push_shared(&shared(&new, 1, 0, Overflow::Latest), 0, 90), Queued::Dropped(1));
        assert_eq!(drained(&mut queue), "keptnew");
    }
}
