//! What waits on the heap while a frame or a message is split.

use super::DecodeError;
use super::header::{Begun, HEADER_BYTES_MAX, Header};
use crate::frame::Opcode;

/// What must wait for more bytes. Boxed when it appears, dropped when nothing waits any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Partial {
    /// The beginning of a frame header.
    pub(super) header: [u8; HEADER_BYTES_MAX],
    pub(super) header_len: usize,
    /// A frame whose header is complete and whose payload is not.
    pub(super) frame: Option<FramePartial>,
    /// A data message whose end is not here yet.
    pub(super) message: Option<MessagePartial>,
    /// Payload of a split control frame, which may come between the fragments of `message`.
    pub(super) control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FramePartial {
    pub(super) header: Header,
    /// Payload bytes already taken, which is also the offset into the masking key.
    pub(super) received: usize,
}

#[derive(Debug, Clone)]
pub(super) struct MessagePartial {
    pub(super) is_text: bool,
    pub(super) compressed: bool,
    pub(super) payload: Vec<u8>,
    /// Bytes of `payload` known to be whole, valid UTF-8; only counted for plain text.
    pub(super) valid_len: usize,
}

impl Partial {
    pub(super) fn is_idle(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.message.is_none() && self.control.is_empty()
    }
}

impl MessagePartial {
    pub(super) fn begun(&self) -> Begun {
        Begun { compressed: self.compressed, received: self.payload.len() }
    }

    pub(super) fn new(header: Header) -> Self {
        let is_text = header.opcode == Opcode::Text;
        Self { is_text, compressed: header.compressed, payload: Vec::new(), valid_len: 0 }
    }

    /// Takes more payload. The buffer doubles as bytes arrive, but never past `bytes_max`, the length the message
    /// can still reach.
    pub(super) fn append(&mut self, chunk: &[u8], bytes_max: usize) -> Result<(), DecodeError> {
        let len = self.payload.len() + chunk.len();
        if len > self.payload.capacity() {
            let target = (self.payload.capacity() * 2).min(bytes_max).max(len);
            self.payload.reserve_exact(target - self.payload.len());
        }
        self.payload.extend_from_slice(chunk);
        if self.is_text && !self.compressed { self.validate() } else { Ok(()) }
    }

    /// Fails at the first byte that no continuation can make UTF-8, without waiting for the end of the message. A
    /// character cut at the end of what has arrived is looked at again with the next bytes.
    fn validate(&mut self) -> Result<(), DecodeError> {
        match simdutf8::compat::from_utf8(&self.payload[self.valid_len..]) {
            Ok(_) => self.valid_len = self.payload.len(),
            Err(error) if error.error_len().is_none() => self.valid_len += error.valid_up_to(),
            Err(_) => return Err(DecodeError::InvalidUtf8),
        }
        Ok(())
    }
}
