//! The stamp at the head of every payload: which run, which stream, which message, sent when.
//!
//! Layout, ASCII so that it travels in a text frame and in an event stream:
//! `T` run(4 hex) stream(4 hex) sequence(8 hex) nanoseconds(16 hex), then padding up to the payload size.

/// Bytes of an encoded stamp: 1 + 4 + 4 + 8 + 16.
pub const STAMP_BYTES: usize = 33;

/// What a payload says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Keeps two load generators on one channel apart.
    pub run: u16,
    /// One publishing connection.
    pub stream: u16,
    /// Counts from 1 in each stream and channel.
    pub sequence: u32,
    /// `CLOCK_MONOTONIC` at the moment the publication was due.
    pub sent_ns: u64,
}

impl Stamp {
    /// Writes the stamp over the first [`STAMP_BYTES`] of `payload`, which must be at least that long.
    pub fn write(&self, payload: &mut [u8]) {
        payload[0] = b'T';
        write_hex(&mut payload[1..5], u64::from(self.run));
        write_hex(&mut payload[5..9], u64::from(self.stream));
        write_hex(&mut payload[9..17], u64::from(self.sequence));
        write_hex(&mut payload[17..STAMP_BYTES], self.sent_ns);
    }

    /// Reads a stamp from the head of a payload; `None` if somebody else wrote it.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let stamp = payload.get(..STAMP_BYTES)?;
        if stamp[0] != b'T' {
            return None;
        }
        Some(Self {
            run: u16::try_from(read_hex(&stamp[1..5])?).ok()?,
            stream: u16::try_from(read_hex(&stamp[5..9])?).ok()?,
            sequence: u32::try_from(read_hex(&stamp[9..17])?).ok()?,
            sent_ns: read_hex(&stamp[17..])?,
        })
    }
}

fn write_hex(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, &digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(nibble))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_trip() {
        let stamp = Stamp { run: 0xbeef, stream: 63, sequence: u32::MAX, sent_ns: u64::MAX - 7 };
        let mut payload = [b'.'; 130];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert!(payload.is_ascii());
        assert_eq!(payload[STAMP_BYTES], b'.');
    }

    #[test]
    fn other_payloads_are_not_stamps() {
        assert_eq!(Stamp::read(b"hello"), None);
        assert_eq!(Stamp::read(&[b'T'; STAMP_BYTES]), None);
    }
}
