//! What waits for a socket that would block: bounded in bytes, with a named policy at the bound. The bytes of a
//! fan-out are shared by reference between all queues they wait in.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
};

use bytes::Bytes;

/// What happens when a connection's queue would grow over its bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// The connection is closed.
    #[default]
    Disconnect,
    /// The new messages are dropped; the connection is told when its queue has drained.
    Drop,
    /// Of the messages with the same key that wait, only the newest stays.
    Latest,
}

/// One write of a fan-out: one or more whole messages in one contiguous buffer.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
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
    bytes: Bytes,
    messages: u32,
    key: u32,
    bound: Bound,
    /// Whether a policy may drop it; control frames and answers may not be.
    droppable: bool,
    started: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Outbound {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// The part of `bytes` that does not count against the bound.
    exempt: usize,
    /// Messages dropped since the connection was last told.
    dropped: u64,
}

/// Most buffers one `writev` takes; more gain nothing, a socket rarely takes more at once.
const SLICES_MAX: usize = 32;

impl Outbound {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Takes the number of messages dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Queues bytes that no policy may drop.
    pub(crate) fn push_own(&mut self, bytes: Bytes, bound: Bound, bytes_max: usize) -> Queued {
        if bound == Bound::Counts && !self.fits(bytes.len(), bytes_max) {
            return Queued::Overflowed;
        }
        self.push(Chunk { bytes, messages: 0, key: 0, bound, droppable: false, started: false });
        Queued::Kept
    }

    /// Queues what is left of a shared write, of which the first `sent` bytes have gone out.
    pub(crate) fn push_shared(&mut self, shared: &Shared<'_>, sent: usize, bytes_max: usize) -> Queued {
        let chunk = Chunk {
            bytes: shared.bytes.slice(sent..),
            messages: shared.messages,
            key: shared.key,
            bound: Bound::Counts,
            droppable: true,
            started: sent > 0,
        };
        // What has begun must go on, or the stream would break in the middle of a frame. It was the only chunk,
        // so the queue holds at most one such buffer.
        if chunk.started || self.fits(chunk.bytes.len(), bytes_max) {
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
        }
    }

    /// Writes as much as the socket takes; true when nothing is left.
    pub(crate) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<(usize, bool)> {
        let mut written = 0;
        while !self.chunks.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(&chunk.bytes);
                count += 1;
            }
            match socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    written += n;
                    self.consume(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((written, false)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok((written, true))
    }

    /// What was not sent, in order.
    pub(crate) fn into_unsent(self) -> Vec<Bytes> {
        self.chunks.into_iter().map(|chunk| chunk.bytes).collect()
    }

    fn fits(&self, more: usize, bytes_max: usize) -> bool {
        self.bytes - self.exempt + more <= bytes_max
    }

    fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.bytes.len();
        if chunk.bound == Bound::Exempt {
            self.exempt += chunk.bytes.len();
        }
        self.chunks.push_back(chunk);
    }

    fn keep_latest(&mut self, shared: &Shared<'_>, bytes_max: usize) -> Queued {
        let mut dropped = shared.messages - 1;
        let (bytes, key) = (&mut self.bytes, shared.key);
        self.chunks.retain(|chunk| {
            let stays = !chunk.droppable || chunk.started || chunk.key != key;
            if !stays {
                *bytes -= chunk.bytes.len();
                dropped += chunk.messages;
            }
            stays
        });
        let last = shared.bytes.slice(shared.last_at..);
        if !self.fits(last.len(), bytes_max) {
            self.dropped += u64::from(dropped + 1);
            return Queued::Dropped(dropped + 1);
        }
        self.dropped += u64::from(dropped);
        self.push(Chunk {
            bytes: last,
            messages: 1,
            key,
            bound: Bound::Counts,
            droppable: true,
            started: false,
        });
        Queued::Dropped(dropped)
    }

    fn consume(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.chunks.front_mut() {
            if front.bound == Bound::Exempt {
                self.exempt -= written.min(front.bytes.len());
            }
            if written < front.bytes.len() {
                if written > 0 {
                    front.bytes = front.bytes.slice(written..);
                    front.started = true;
                }
                return;
            }
            written -= front.bytes.len();
            self.chunks.pop_front();
        }
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
        Shared { bytes, messages, last_at, key: 1, overflow }
    }

    fn drained(queue: &mut Outbound) -> String {
        let mut pipe = Pipe { taken: Vec::new(), room: usize::MAX };
        let (_, done) = queue.write_to(&mut pipe).expect("writes");
        assert!(done && queue.bytes() == 0);
        String::from_utf8(pipe.taken).expect("text")
    }

    #[test]
    fn partial_writes_keep_every_byte_in_order() {
        for room in 0..9 {
            let mut queue = Outbound::default();
            let (a, b) = (Bytes::from_static(b"abcd"), Bytes::from_static(b"efg"));
            assert_eq!(queue.push_shared(&shared(&a, 1, 0, Overflow::Disconnect), 1, 100), Queued::Kept);
            assert_eq!(queue.push_own(b, Bound::Counts, 100), Queued::Kept);
            let mut pipe = Pipe { taken: Vec::new(), room };
            let (written, done) = queue.write_to(&mut pipe).expect("writes");
            assert_eq!((written, done), (room.min(6), room >= 6));
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
            assert_eq!(queue.push_shared(&shared(&old, 1, 0, overflow), 0, 10), Queued::Kept);
            assert_eq!(queue.push_shared(&shared(&new, 2, 4, overflow), 0, 10), outcome, "{overflow:?}");
            assert_eq!(drained(&mut queue), left, "{overflow:?}");
            assert_eq!(queue.take_dropped(), told, "{overflow:?}");
        }
    }

    #[test]
    fn latest_never_breaks_a_message_that_has_begun() {
        let mut queue = Outbound::default();
        let (a, b) = (Bytes::from_static(b"aaaa"), Bytes::from_static(b"bbbb"));
        queue.push_shared(&shared(&a, 1, 0, Overflow::Latest), 2, 6);
        assert_eq!(queue.push_shared(&shared(&b, 1, 0, Overflow::Latest), 0, 6), Queued::Kept);
        assert_eq!(queue.push_shared(&shared(&b, 1, 0, Overflow::Latest), 0, 6), Queued::Dropped(1));
        assert_eq!(drained(&mut queue), "aabbbb");
    }

    #[test]
    fn exempt_bytes_leave_room_for_others() {
        let mut queue = Outbound::default();
        assert_eq!(queue.push_own(Bytes::from(vec![b'x'; 100]), Bound::Exempt, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"0123456789"), Bound::Counts, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Overflowed);
        let mut pipe = Pipe { taken: Vec::new(), room: 105 };
        assert!(matches!(queue.write_to(&mut pipe), Ok((105, false))));
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Kept);
    }

    #[test]
    fn one_buffer_larger_than_the_bound_may_finish() {
        let mut queue = Outbound::default();
        let big = Bytes::from(vec![b'x'; 100]);
        assert_eq!(queue.push_shared(&shared(&big, 1, 0, Overflow::Disconnect), 50, 10), Queued::Kept);
        assert_eq!(queue.push_own(Bytes::from_static(b"y"), Bound::Counts, 10), Queued::Overflowed);
    }
}
