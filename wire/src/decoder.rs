//! Frames from the client (RFC 6455 §5), decoded in place over the bytes of a read.
//!
//! A frame that lies whole in the input costs no copy: it is unmasked where it is and handed out from there. Only
//! what is split, over reads or over fragments, moves to the heap, and leaves it with the message.

use std::ops::ControlFlow;

use crate::deflate::{InflateError, Inflater};
use crate::frame::{CloseCode, Opcode};
use crate::mask::unmask;

use header::{HEADER_BYTES_MAX, Header, Rules};
use partial::{FramePartial, MessagePartial, Partial};

mod header;
mod moving;
mod partial;

/// The decoding state of one connection. Idle, it is a null pointer and two flags.
#[derive(Debug, Clone)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    compression: bool,
    finished: bool,
}

const _: () = assert!(size_of::<Decoder>() <= 16, "an idle connection pays for this");

/// What a client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    Close(Option<(CloseCode, &'a str)>),
}

/// How a client broke the protocol or a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DecodeError {
    #[error("a client's frame must be masked")]
    Unmasked,
    #[error("reserved bits are set without an extension that uses them")]
    ReservedBits,
    #[error("reserved opcode")]
    ReservedOpcode,
    #[error("a control frame must not be fragmented")]
    ControlFragmented,
    #[error("a control frame carries at most 125 bytes")]
    ControlOversized,
    #[error("a continuation without a message to continue")]
    ContinuationUnexpected,
    #[error("a new message before the last fragment of the one before")]
    ContinuationExpected,
    #[error("a length must take its shortest form and leave its top bit clear")]
    LengthEncoding,
    #[error("a close payload is empty or starts with two bytes of code")]
    ClosePayload,
    #[error("a close code that must not be sent")]
    CloseCode,
    #[error("text is not UTF-8")]
    InvalidUtf8,
    #[error("the compressed message cannot be inflated")]
    InvalidDeflate,
    #[error("the message is larger than the limit")]
    TooLarge,
}

/// Where complete frames and messages go.
struct Sink<'s, F> {
    message_bytes_max: usize,
    inflater: &'s mut Inflater,
    on_message: F,
    /// A close frame came.
    closed: bool,
}

/// What one step of decoding did: the bytes it used up, and whether to go on.
struct Step {
    used: usize,
    flow: ControlFlow<()>,
}

impl Decoder {
    /// `compression`: whether permessage-deflate was agreed for this connection.
    #[must_use]
    pub fn new(compression: bool) -> Self {
        Self { partial: None, compression, finished: false }
    }

    /// Whether nothing waits for more bytes; an idle decoder holds no heap.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Bytes the waiting payload holds on the heap.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            partial.control.capacity()
                + partial.message.as_ref().map_or(0, |message| message.payload.capacity())
        })
    }

    /// Decodes everything complete in `input`, keeps what is not, and hands out messages in order. `input` is
    /// unmasked in place and of no use afterwards.
    ///
    /// The answer is how many bytes of `input` were used: all of them, unless `on_message` broke. Then the decoder stands
    /// behind that message, and goes on with the others when it is given them again.
    ///
    /// A message, joined and inflated, is at most `message_bytes_max` long. After a close message and after an error the
    /// decoder is finished: it ignores all further input.
    ///
    /// # Errors
    /// [`DecodeError`], with the close code to answer. Messages before the error have been handed out.
    pub fn decode(
        &mut self,
        input: &mut [u8],
        message_bytes_max: usize,
        inflater: &mut Inflater,
        on_message: impl FnMut(Message<'_>) -> ControlFlow<()>,
    ) -> Result<usize, DecodeError> {
        let mut sink = Sink { message_bytes_max, inflater, on_message, closed: false };
        let input_len = input.len();
        let mut rest = input;
        while !rest.is_empty() && !self.finished {
            let step = match self.frame_partial() {
                Some(frame) => self.continue_frame(frame, rest, &mut sink),
                None => self.begin_frame(rest, &mut sink),
            };
            match step {
                Ok(Step { used, flow: ControlFlow::Continue(()) }) => rest = rest.split_at_mut(used).1,
                Ok(Step { used, flow: ControlFlow::Break(()) }) => {
                    if sink.closed {
                        self.finish();
                        return Ok(input_len);
                    }
                    return Ok(input_len - rest.len() + used);
                }
                Err(error) => {
                    self.finish();
                    return Err(error);
                }
            }
        }
        Ok(input_len)
    }

    fn finish(&mut self) {
        self.finished = true;
        self.partial = None;
    }

    fn frame_partial(&self) -> Option<FramePartial> {
        self.partial.as_ref()?.frame
    }

    /// Reads a header at the start of `input` (or the rest of one), and its payload when it is whole.
    fn begin_frame<F>(&mut self, input: &mut [u8], sink: &mut Sink<'_, F>) -> Result<Step, DecodeError>
    where
        F: FnMut(Message<'_>) -> ControlFlow<()>,
    {
        let Some((header, header_used)) = self.read_header(input, sink.message_bytes_max)? else {
            return Ok(Step { used: input.len(), flow: ControlFlow::Continue(()) });
        };
        let after = &mut input[header_used..];
        if after.len() < header.payload_len {
            self.wait_for_payload(header);
            return Ok(Step { used: header_used, flow: ControlFlow::Continue(()) });
        }
        let payload = &mut after[..header.payload_len];
        unmask(payload, header.key, 0);
        let used = header_used + header.payload_len;
        Ok(Step { used, flow: self.take_whole(header, payload, sink)? })
    }

    /// A header and the bytes of `input` it took; `None` when all of `input` was kept as the start of one.
    fn read_header(
        &mut self,
        input: &[u8],
        message_bytes_max: usize,
    ) -> Result<Option<(Header, usize)>, DecodeError> {
        let Some(partial) = self.partial.as_deref_mut() else {
            let rules = Rules { compression: self.compression, message: None, message_bytes_max };
            return match Header::parse(input, &rules)? {
                Some(found) => Ok(Some(found)),
                None => {
                    self.keep_header(input);
                    Ok(None)
                }
            };
        };
        // The header may have begun in an earlier read: look at both parts joined.
        let kept = partial.header_len;
        let fresh = input.len().min(HEADER_BYTES_MAX - kept);
        let mut joined = partial.header;
        joined[kept..kept + fresh].copy_from_slice(&input[..fresh]);
        let message = partial.message.as_ref().map(MessagePartial::begun);
        let rules = Rules { compression: self.compression, message, message_bytes_max };
        match Header::parse(&joined[..kept + fresh], &rules)? {
            Some((header, len)) => {
                partial.header_len = 0;
                self.drop_idle_partial();
                // What was kept was not a whole header, so `len` is more.
                Ok(Some((header, len - kept)))
            }
            None => {
                self.keep_header(input);
                Ok(None)
            }
        }
    }

    /// Keeps a header's beginning: `input` is shorter than what the header lacks.
    fn keep_header(&mut self, input: &[u8]) {
        let partial = self.partial.get_or_insert_default();
        let kept = partial.header_len;
        partial.header[kept..kept + input.len()].copy_from_slice(input);
        partial.header_len += input.len();
    }

    fn wait_for_payload(&mut self, header: Header) {
        let partial = self.partial.get_or_insert_default();
        partial.frame = Some(FramePartial { header, received: 0 });
        if !header.opcode.is_control() {
            partial.message.get_or_insert_with(|| MessagePartial::new(header));
        }
    }

    /// A frame whose unmasked payload lies whole in the input.
    fn take_whole<F>(
        &mut self,
        header: Header,
        payload: &[u8],
        sink: &mut Sink<'_, F>,
    ) -> Result<ControlFlow<()>, DecodeError>
    where
        F: FnMut(Message<'_>) -> ControlFlow<()>,
    {
        if header.opcode.is_control() {
            return sink.control(header.opcode, payload);
        }
        if header.fin && header.opcode != Opcode::Continuation {
            return sink.data(header.opcode == Opcode::Text, header.compressed, payload);
        }
        let partial = self.partial.get_or_insert_default();
        let message = partial.message.get_or_insert_with(|| MessagePartial::new(header));
        let bytes_max =
            if header.fin { message.payload.len() + payload.len() } else { sink.message_bytes_max };
        message.append(payload, bytes_max)?;
        if header.fin { self.end_message(sink) } else { Ok(ControlFlow::Continue(())) }
    }

    /// More payload of a frame that was split.
    fn continue_frame<F>(
        &mut self,
        mut frame: FramePartial,
        input: &mut [u8],
        sink: &mut Sink<'_, F>,
    ) -> Result<Step, DecodeError>
    where
        F: FnMut(Message<'_>) -> ControlFlow<()>,
    {
        let lacking = frame.header.payload_len - frame.received;
        let used = input.len().min(lacking);
        let chunk = &mut input[..used];
        unmask(chunk, frame.header.key, frame.received);
        frame.received += used;

        let partial = self.partial.get_or_insert_default();
        partial.frame = (used < lacking).then_some(frame);
        if frame.header.opcode.is_control() {
            partial.control.extend_from_slice(chunk);
        } else {
            let message = partial.message.get_or_insert_with(|| MessagePartial::new(frame.header));
            let bytes_max =
                if frame.header.fin { message.payload.len() + lacking } else { sink.message_bytes_max };
            message.append(chunk, bytes_max)?;
        }
        if used < lacking {
            return Ok(Step { used, flow: ControlFlow::Continue(()) });
        }
        let flow = match frame.header {
            Header { opcode, .. } if opcode.is_control() => self.end_control(opcode, sink)?,
            Header { fin: true, .. } => self.end_message(sink)?,
            _ => ControlFlow::Continue(()),
        };
        Ok(Step { used, flow })
    }

    fn end_control<F>(
        &mut self,
        opcode: Opcode,
        sink: &mut Sink<'_, F>,
    ) -> Result<ControlFlow<()>, DecodeError>
    where
        F: FnMut(Message<'_>) -> ControlFlow<()>,
    {
        let payload = self.partial.as_mut().map(|partial| std::mem::take(&mut partial.control));
        self.drop_idle_partial();
        sink.control(opcode, &payload.unwrap_or_default())
    }

    fn end_message<F>(&mut self, sink: &mut Sink<'_, F>) -> Result<ControlFlow<()>, DecodeError>
    where
        F: FnMut(Message<'_>) -> ControlFlow<()>,
    {
        let message = self.partial.as_mut().and_then(|partial| partial.message.take());
        self.drop_idle_partial();
        match message {
            Some(message) => sink.data(message.is_text, message.compressed, &message.payload),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    fn drop_idle_partial(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.is_idle()) {
            self.partial = None;
        }
    }
}

impl DecodeError {
    /// The close code that answers it (RFC 6455 §7.4.1). Compressed data that does not inflate is payload that is
    /// not what it claims to be: RFC 7692 names no code, and 1007 is the one for that.
    #[must_use]
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 | Self::InvalidDeflate => CloseCode::INVALID_PAYLOAD,
            Self::TooLarge => CloseCode::MESSAGE_TOO_BIG,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }

    /// A name for metrics; the set is closed.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Unmasked => "unmasked",
            Self::ReservedBits => "reserved_bits",
            Self::ReservedOpcode => "reserved_opcode",
            Self::ControlFragmented => "control_fragmented",
            Self::ControlOversized => "control_oversized",
            Self::ContinuationUnexpected => "continuation_unexpected",
            Self::ContinuationExpected => "continuation_expected",
            Self::LengthEncoding => "length_encoding",
            Self::ClosePayload => "close_payload",
            Self::CloseCode => "close_code",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidDeflate => "invalid_deflate",
            Self::TooLarge => "too_large",
        }
    }
}

impl<F> Sink<'_, F>
where
    F: FnMut(Message<'_>) -> ControlFlow<()>,
{
    fn control(&mut self, opcode: Opcode, payload: &[u8]) -> Result<ControlFlow<()>, DecodeError> {
        Ok(match opcode {
            Opcode::Ping => (self.on_message)(Message::Ping(payload)),
            Opcode::Pong => (self.on_message)(Message::Pong(payload)),
            _ => {
                let message = Message::Close(close_payload(payload)?);
                self.closed = true;
                // Whatever the receiver says, nothing after a close frame counts (RFC 6455 §5.5.1).
                match (self.on_message)(message) {
                    ControlFlow::Continue(()) | ControlFlow::Break(()) => ControlFlow::Break(()),
                }
            }
        })
    }

    fn data(
        &mut self,
        is_text: bool,
        compressed: bool,
        payload: &[u8],
    ) -> Result<ControlFlow<()>, DecodeError> {
        if !compressed {
            return Ok((self.on_message)(data_message(is_text, payload)?));
        }
        let payload = self.inflater.inflate(payload, self.message_bytes_max)?;
        let flow = data_message(is_text, payload).map(|message| (self.on_message)(message));
        self.inflater.release();
        flow
    }
}

impl From<InflateError> for DecodeError {
    fn from(error: InflateError) -> Self {
        match error {
            InflateError::TooLarge => Self::TooLarge,
            InflateError::Corrupt => Self::InvalidDeflate,
        }
    }
}

fn data_message(is_text: bool, payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    match is_text {
        true => Ok(Message::Text(utf8(payload)?)),
        false => Ok(Message::Binary(payload)),
    }
}

/// RFC 6455 §5.5.1.
fn close_payload(payload: &[u8]) -> Result<Option<(CloseCode, &str)>, DecodeError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) = payload.split_first_chunk().ok_or(DecodeError::ClosePayload)?;
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.is_valid_on_wire() {
        return Err(DecodeError::CloseCode);
    }
    Ok(Some((code, utf8(reason)?)))
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8)
}
