//! permessage-deflate (RFC 7692): every message on its own, no context kept in either direction.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Deflates messages. One serves any number of connections, because no context outlives a message.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
}

/// Inflates messages. One serves any number of connections: it is reset for each message.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
    output: Vec<u8>,
}

/// A message that cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    #[error("the message inflates to more than the limit")]
    TooLarge,
    #[error("the message is not a whole DEFLATE stream")]
    Corrupt,
}

/// What a sync flush ends with, and what the wire leaves out (RFC 7692 §7.2.1, step 3).
const SYNC_TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// The left-out tail, and an empty final block. A message that was cut short is in the middle of something when
/// the tail arrives; the final block ends the stream only where a block may begin. Without it, zlib would call the
/// part it understood a success.
const CLOSING_TAIL: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// Output buffer that an inflater keeps between messages. The rest goes back, so that one large message does not
/// raise a shard's memory for good. 64 KiB holds nearly every message of nearly everyone.
const OUTPUT_BYTES_KEPT: usize = 64 * 1024;

/// First step of an output buffer that grows.
const OUTPUT_BYTES_MIN: usize = 4 * 1024;

/// Final blocks that one message may hold before its end (RFC 7692 §7.2.3.4 allows them; senders that cannot flush
/// end with one). Each costs a reset of the stream, and fits into two bytes: without a bound, a message of 1 MB
/// would cost half a million resets.
const FINAL_BLOCKS_MAX: usize = 64;

/// Longest run of bytes in a stored block (RFC 1951 §3.2.4).
const STORED_BYTES_MAX: usize = 0xFFFF;

impl Deflater {
    /// `level` from 0 (store) to 9; higher counts as 9.
    #[must_use]
    pub fn new(level: u32) -> Self {
        Self::with_window_bits(level, 15)
    }

    /// With a window of 2^`window_bits` bytes, 9 to 15 (others count as the nearest of these), for clients that
    /// asked for less: [`crate::upgrade::DeflateParams::server_window_bits`].
    #[must_use]
    pub fn with_window_bits(level: u32, window_bits: u8) -> Self {
        let level = Compression::new(level.min(9));
        Self {
            stream: Compress::new_with_window_bits(level, false, window_bits.clamp(9, 15)),
        }
    }

    /// Appends `payload` deflated, as a frame with RSV1 carries it. An empty payload is one byte (RFC 7692
    /// §7.2.3.6).
    pub fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        if payload.is_empty() {
            out.push(0);
            return;
        }
        let start = out.len();
        self.stream.reset();
        if self.flush(payload, out).is_none() {
            out.truncate(start);
            store(payload, out);
        }
    }

    /// `None` when zlib's output is not a sync-flushed stream. No input leads there; should it happen all the same,
    /// the caller has another way to a correct message.
    fn flush(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Option<()> {
        // Text shrinks to a third or better; what does not grows the buffer in the loop.
        out.reserve(payload.len() / 2 + 64);
        let start = out.len();
        loop {
            let consumed = usize::try_from(self.stream.total_in()).ok()?;
            let status = self
                .stream
                .compress_vec(&payload[consumed..], out, FlushCompress::Sync)
                .ok()?;
            // zlib has flushed everything once it leaves room in the output, or has nothing more to say.
            if out.len() < out.capacity() || status == Status::BufError {
                break;
            }
            out.reserve(payload.len() / 2 + 64);
        }
        if usize::try_from(self.stream.total_in()).ok()? != payload.len()
            || !out[start..].ends_with(&SYNC_TAIL)
        {
            return None;
        }
        out.truncate(out.len() - SYNC_TAIL.len());
        Some(())
    }
}

impl Inflater {
    #[must_use]
    pub fn new() -> Self {
        Self {
            stream: Decompress::new(false),
            output: Vec::new(),
        }
    }

    /// Inflates one message of at most `bytes_max` bytes. Memory grows with what comes out, never further than
    /// that bound.
    ///
    /// # Errors
    /// [`InflateError`]. The inflater stays usable.
    pub fn inflate(&mut self, deflated: &[u8], bytes_max: usize) -> Result<&[u8], InflateError> {
        self.stream.reset(false);
        self.output.clear();
        let result = self.run(deflated, bytes_max);
        if result.is_err() {
            self.release();
        }
        result.map(|()| self.output.as_slice())
    }

    /// Gives back what a large message made the buffer grow to. The decoder calls it after each message.
    pub fn release(&mut self) {
        if self.output.capacity() > OUTPUT_BYTES_KEPT {
            self.output = Vec::new();
        }
    }

    /// Bytes the output buffer holds on to.
    #[must_use]
    pub fn output_capacity(&self) -> usize {
        self.output.capacity()
    }

    fn run(&mut self, deflated: &[u8], bytes_max: usize) -> Result<(), InflateError> {
        let mut rest = deflated;
        for _ in 0..FINAL_BLOCKS_MAX {
            match self.feed(&mut rest, bytes_max)? {
                // A final block as the last thing: whole, although its sender left out the byte that makes the tail
                // a block of its own (RFC 7692 §7.2.3.4).
                Status::StreamEnd if rest.is_empty() => return Ok(()),
                Status::StreamEnd => self.stream.reset(false),
                Status::Ok | Status::BufError => return self.close(bytes_max),
            }
        }
        Err(InflateError::Corrupt)
    }

    fn close(&mut self, bytes_max: usize) -> Result<(), InflateError> {
        let mut tail = &CLOSING_TAIL[..];
        match self.feed(&mut tail, bytes_max)? {
            Status::StreamEnd if tail.is_empty() => Ok(()),
            _ => Err(InflateError::Corrupt),
        }
    }

    /// Inflates until the input is used up or a final block ends, and moves `input` past what was used.
    fn feed(&mut self, input: &mut &[u8], bytes_max: usize) -> Result<Status, InflateError> {
        loop {
            self.grow(bytes_max);
            let before = (self.stream.total_in(), self.output.len());
            let status = self
                .stream
                .decompress_vec(input, &mut self.output, FlushDecompress::None)
                .map_err(|_| InflateError::Corrupt)?;
            if self.output.len() > bytes_max {
                return Err(InflateError::TooLarge);
            }
            let used = usize::try_from(self.stream.total_in() - before.0)
                .map_err(|_| InflateError::Corrupt)?;
            *input = input.get(used..).ok_or(InflateError::Corrupt)?;
            let has_room = self.output.len() < self.output.capacity();
            if status == Status::StreamEnd || (input.is_empty() && has_room) {
                return Ok(status);
            }
            // Input and room, and still nothing moved: the stream is stuck.
            if used == 0 && self.output.len() == before.1 && has_room {
                return Err(InflateError::Corrupt);
            }
        }
    }

    /// Makes room when there is none: twice as much as before, up to one byte over the bound, which is how a
    /// message over it shows.
    fn grow(&mut self, bytes_max: usize) {
        let len = self.output.len();
        if len == self.output.capacity() {
            let bytes_over_max = bytes_max.saturating_add(1);
            let step = len
                .max(OUTPUT_BYTES_MIN)
                .min(bytes_over_max.saturating_sub(len))
                .max(1);
            self.output.reserve_exact(step);
        }
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

/// Appends `payload` in stored blocks, ending with the header of an empty one, whose rest is the left-out tail.
fn store(payload: &[u8], out: &mut Vec<u8>) {
    for chunk in payload.chunks(STORED_BYTES_MAX) {
        let len = chunk.len() as u16;
        out.push(0);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out.push(0);
}
