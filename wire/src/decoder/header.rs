//! Headers of client frames (RFC 6455 §5.2), judged byte by byte.

use super::DecodeError;
use crate::frame::{
    CONTROL_PAYLOAD_BYTES_MAX, FIN, LENGTH, LENGTH_16, LENGTH_64, MASK, OPCODE, Opcode, RSV1, RSV2_AND_3,
};

/// A decoded frame header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) compressed: bool,
    pub(super) opcode: Opcode,
    pub(super) key: [u8; 4],
    pub(super) payload_len: usize,
}

/// What the correctness of a header depends on.
pub(super) struct Rules {
    pub(super) compression: bool,
    pub(super) message: Option<Begun>,
    pub(super) message_bytes_max: usize,
}

/// A data message whose first frames are read.
pub(super) struct Begun {
    pub(super) compressed: bool,
    /// Bytes of payload so far.
    pub(super) received: usize,
}

/// Two bytes, a 64-bit length, a masking key.
pub(super) const HEADER_BYTES_MAX: usize = 2 + 8 + 4;

impl Header {
    /// Reads a header and its length in bytes; `None` when `bytes` ends before it does. Each byte is judged as soon
    /// as it is there, in the order of the wire, so that the verdict does not depend on how the bytes were split.
    pub(super) fn parse(bytes: &[u8], rules: &Rules) -> Result<Option<(Self, usize)>, DecodeError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let opcode = rules.check_first(first)?;
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        rules.check_second(opcode, second)?;
        let Some((payload_len, key_at)) = read_length(second & LENGTH, &bytes[2..])? else {
            return Ok(None);
        };
        let compressed = first & RSV1 != 0;
        let payload_len = rules.check_length(opcode, compressed, payload_len)?;
        let key_at = 2 + key_at;
        let Some(&key) = bytes[key_at..].first_chunk::<4>() else {
            return Ok(None);
        };
        let header = Self { fin: first & FIN != 0, compressed, opcode, key, payload_len };
        Ok(Some((header, key_at + key.len())))
    }
}

impl Rules {
    fn check_first(&self, first: u8) -> Result<Opcode, DecodeError> {
        if first & RSV2_AND_3 != 0 {
            return Err(DecodeError::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & OPCODE).ok_or(DecodeError::ReservedOpcode)?;
        let starts_data = matches!(opcode, Opcode::Text | Opcode::Binary);
        // RSV1 marks a whole message, so only its first frame may carry it (RFC 7692 §6.1).
        if first & RSV1 != 0 && !(self.compression && starts_data) {
            return Err(DecodeError::ReservedBits);
        }
        if opcode.is_control() && first & FIN == 0 {
            return Err(DecodeError::ControlFragmented);
        }
        match self.message {
            None if opcode == Opcode::Continuation => Err(DecodeError::ContinuationUnexpected),
            Some(_) if starts_data => Err(DecodeError::ContinuationExpected),
            _ => Ok(opcode),
        }
    }

    fn check_second(&self, opcode: Opcode, second: u8) -> Result<(), DecodeError> {
        if second & MASK == 0 {
            return Err(DecodeError::Unmasked);
        }
        if opcode.is_control() && usize::from(second & LENGTH) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(DecodeError::ControlOversized);
        }
        Ok(())
    }

    /// Bounds the message, not only the frame, before any of its payload arrives.
    fn check_length(&self, opcode: Opcode, compressed: bool, payload_len: u64) -> Result<usize, DecodeError> {
        let payload_len = usize::try_from(payload_len).map_err(|_| DecodeError::TooLarge)?;
        if opcode.is_control() {
            return Ok(payload_len);
        }
        let compressed = compressed || self.message.as_ref().is_some_and(|message| message.compressed);
        let bytes_max = match compressed {
            true => deflated_bytes_max(self.message_bytes_max),
            false => self.message_bytes_max,
        };
        let before = self.message.as_ref().map_or(0, |message| message.received);
        match before.checked_add(payload_len) {
            Some(len) if len <= bytes_max => Ok(payload_len),
            _ => Err(DecodeError::TooLarge),
        }
    }
}

/// The length of a payload and the bytes its extended form takes, which must be the shortest (RFC 6455 §5.2).
fn read_length(short: u8, extended: &[u8]) -> Result<Option<(u64, usize)>, DecodeError> {
    let (length, shortest, len) = match short {
        LENGTH_16 => match extended.first_chunk() {
            Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 126, 2),
            None => return Ok(None),
        },
        LENGTH_64 => match extended.first_chunk() {
            Some(bytes) => (u64::from_be_bytes(*bytes), 0x1_0000, 8),
            None => return Ok(None),
        },
        _ => (u64::from(short), 0, 0),
    };
    if length < shortest || length >> 63 != 0 {
        return Err(DecodeError::LengthEncoding);
    }
    Ok(Some((length, len)))
}

/// Bytes that a message of `bytes_max` may have when deflated. What cannot be compressed grows: with the fixed
/// Huffman code, which fast encoders use without looking, a literal takes up to 9 bits for 8; and each flush adds
/// 5 bytes.
fn deflated_bytes_max(bytes_max: usize) -> usize {
    bytes_max.saturating_add(bytes_max / 8).saturating_add(64)
}
