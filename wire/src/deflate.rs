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
    inflated_bytes: u64,
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
const FINAL_BLOCKS_MAX: usize = 1_024;

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
        Self { stream: Compress::new_with_window_bits(level, false, window_bits.clamp(9, 15)) }
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
            let status = self.stream.compress_vec(&payload[consumed..], out, FlushCompress::Sync).ok()?;
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
        Self { stream: Decompress::new(false), output: Vec::new(), inflated_bytes: 0 }
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
        self.inflated_bytes += self.output.len() as u64;
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

    /// Bytes that came out so far, those of messages that were refused included.
    #[must_use]
    pub fn inflated_bytes(&self) -> u64 {
        self.inflated_bytes
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
            let used =
                usize::try_from(self.stream.total_in() - before.0).map_err(|_| InflateError::Corrupt)?;
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
            let step = len.max(OUTPUT_BYTES_MIN).min(bytes_over_max.saturating_sub(len)).max(1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compress(level: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Deflater::new(level).compress(payload, &mut out);
        out
    }

    /// RFC 7692 §7.2.3.1 to §7.2.3.6: one block, shared windows apart, stored, final, two blocks, empty.
    #[test]
    fn rfc_7692_examples() {
        let cases: &[(&[u8], &[u8])] = &[
            (&[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], b"Hello"),
            (&[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00], b"Hello"),
            (&[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00], b"Hello"),
            (&[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00], b"Hello"),
            (&[0x00], b""),
            // Not in the RFC: a final block without the byte after it, and nothing at all.
            (&[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00], b"Hello"),
        ];
        let mut inflater = Inflater::new();
        for (deflated, expected) in cases {
            assert_eq!(inflater.inflate(deflated, 100), Ok(*expected), "{deflated:02x?}");
        }
        assert_eq!(compress(6, b""), [0]);
    }

    #[test]
    fn what_is_cut_short_is_corrupt() {
        let payload: Vec<u8> = (0..2_000u32).flat_map(|value| (value * value).to_le_bytes()).collect();
        let deflated = compress(6, &payload);
        let mut inflater = Inflater::new();
        for cut in 1..deflated.len() - 1 {
            assert_ne!(inflater.inflate(&deflated[..cut], 1 << 20), Ok(&payload[..]), "{cut}");
        }
        // A stored block of 100 bytes with 2 of them: the tail fits into what is missing, and zlib is content.
        let stored = [0x00, 100, 0x00, !100, 0xFF, b'H', b'e'];
        assert_eq!(inflater.inflate(&stored, 1 << 20), Err(InflateError::Corrupt));
        // In the middle of the first block.
        assert_eq!(inflater.inflate(&deflated[..deflated.len() / 3], 1 << 20), Err(InflateError::Corrupt));
        assert_eq!(inflater.inflate(&deflated, 1 << 20), Ok(&payload[..]), "usable after an error");
    }

    #[test]
    fn a_flood_of_final_blocks_is_corrupt() {
        // An empty block with the fixed code, marked final: 3 bits of header, 7 of end, 6 unused.
        let few = [0x03, 0x00].repeat(FINAL_BLOCKS_MAX - 1);
        let flood = [0x03, 0x00].repeat(FINAL_BLOCKS_MAX + 1);
        let mut inflater = Inflater::new();
        assert_eq!(inflater.inflate(&few, 100), Ok(&b""[..]));
        assert_eq!(inflater.inflate(&flood, 100), Err(InflateError::Corrupt));
    }

    #[test]
    fn the_limit_is_exact_whatever_the_buffer_kept() {
        let mut inflater = Inflater::new();
        for len in [50_000, 10, 4_096, 4_097, 1, 0, 65_536] {
            let payload = vec![b'x'; len];
            let deflated = compress(9, &payload);
            assert_eq!(inflater.inflate(&deflated, len), Ok(&payload[..]), "{len}");
            if let Some(less) = len.checked_sub(1) {
                assert_eq!(inflater.inflate(&deflated, less), Err(InflateError::TooLarge), "{len}");
            }
        }
    }

    #[test]
    fn the_buffer_never_grows_past_the_limit() {
        let bomb = compress(9, &vec![0; 4 << 20]);
        let mut inflater = Inflater::new();
        let bytes_max = 100_000;
        inflater.stream.reset(false);
        assert_eq!(inflater.run(&bomb, bytes_max), Err(InflateError::TooLarge));
        assert!(inflater.output.capacity() <= bytes_max + 1);
        assert_eq!(inflater.inflate(&bomb, bytes_max), Err(InflateError::TooLarge));
        assert_eq!(inflater.output_capacity(), 0, "an error gives the buffer back");
    }

    #[test]
    fn stored_blocks_are_a_message() {
        for len in [1, 65_535, 65_536, 200_000] {
            let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut out = Vec::new();
            store(&payload, &mut out);
            assert_eq!(Inflater::new().inflate(&out, len), Ok(&payload[..]), "{len}");
        }
    }

    /// A client with a small window cannot look further back than that.
    #[test]
    fn window_bits_bound_the_distance() {
        let noise: Vec<u8> =
            (0..3_000u32).map(|value| (value.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let payload = [&noise[..], &noise[..]].concat();
        for bits in 9..=15 {
            let mut out = Vec::new();
            Deflater::with_window_bits(9, bits).compress(&payload, &mut out);
            assert_eq!(small_window_inflate(&out, bits), payload, "{bits}");
        }
    }

    /// What `DeflateParams::can_share` promises.
    #[test]
    fn a_full_window_serves_small_windows_while_the_message_fits() {
        for bits in 9..=14u8 {
            let half: Vec<u8> =
                (0..1u32 << (bits - 1)).map(|value| (value.wrapping_mul(40_503) >> 7) as u8).collect();
            let payload = [&half[..], &half[..]].concat();
            assert_eq!(payload.len(), 1 << bits);
            assert_eq!(small_window_inflate(&compress(9, &payload), bits), payload, "{bits}");
        }
    }

    /// Output buffers of every size, full and nearly full.
    #[test]
    fn noise_of_every_length_reads_back() {
        let noise: Vec<u8> =
            (0..400u32).map(|value| (value.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut inflater = Inflater::new();
        for level in [0, 1, 6] {
            let mut deflater = Deflater::new(level);
            for len in 0..noise.len() {
                let mut out = Vec::new();
                deflater.compress(&noise[..len], &mut out);
                assert_eq!(inflater.inflate(&out, len), Ok(&noise[..len]), "{level} {len}");
            }
        }
    }

    #[test]
    fn output_is_appended() {
        let mut out = b"before".to_vec();
        Deflater::new(6).compress(b"Hello", &mut out);
        let deflated = out.strip_prefix(b"before").expect("kept");
        assert_eq!(Inflater::new().inflate(deflated, 10), Ok(&b"Hello"[..]));
    }

    fn small_window_inflate(deflated: &[u8], bits: u8) -> Vec<u8> {
        let mut stream = Decompress::new_with_window_bits(false, bits);
        let input = [deflated, &SYNC_TAIL].concat();
        let mut output = Vec::new();
        // A small output buffer makes zlib use its window rather than the output itself.
        let mut piece = [0; 64];
        loop {
            let used = stream.total_in() as usize;
            let before = stream.total_out();
            let status =
                stream.decompress(&input[used..], &mut piece, FlushDecompress::None).expect("a good stream");
            let written = (stream.total_out() - before) as usize;
            output.extend_from_slice(&piece[..written]);
            if written < piece.len() || status == Status::BufError {
                return output;
            }
        }
    }

    proptest! {
        #[test]
        fn messages_read_back(
            payloads in prop::collection::vec(prop::collection::vec(0u8..20, 0..5_000), 1..4),
            level in 0u32..12, window_bits in 0u8..20,
        ) {
            let mut deflater = Deflater::with_window_bits(level, window_bits);
            let mut inflater = Inflater::new();
            let mut out = Vec::new();
            for payload in payloads {
                out.clear();
                deflater.compress(&payload, &mut out);
                prop_assert_eq!(inflater.inflate(&out, payload.len()), Ok(&payload[..]));
            }
        }

        #[test]
        fn noise_never_passes_the_limit(noise in prop::collection::vec(any::<u8>(), 0..500), bytes_max in 0usize..300) {
            if let Ok(bytes) = Inflater::new().inflate(&noise, bytes_max) {
                prop_assert!(bytes.len() <= bytes_max);
            }
        }
    }
}
