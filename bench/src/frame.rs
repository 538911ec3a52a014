//! Counts the frames of a server's stream without copying payloads, wherever the reads happen to cut them.
//!
//! Only what a load generator needs of RFC 6455: messages are reported with their length and first bytes,
//! control frames with their payload. A message whole in one read is reported from the read buffer itself; of
//! one that is cut, at most [`PREFIX_BYTES`] are kept.

/// First bytes of a message that are reported: a stamp, and room for an envelope before it.
pub const PREFIX_BYTES: usize = 128;

/// RFC 6455 §5.5: a control frame carries at most 125 bytes.
const CONTROL_MAX: u64 = 125;

/// Two bytes and the 64-bit extended length (RFC 6455 §5.2); servers do not mask.
const HEADER_MAX: usize = 10;

/// What a server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameEvent<'a> {
    /// A whole message: its first bytes (at most [`PREFIX_BYTES`] unless it arrived whole) and its length.
    Message {
        head: &'a [u8],
        length: u64,
    },
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The status code, if there was one.
    Close(Option<u16>),
}

/// A stream that is not RFC 6455 as a server speaks it without extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    #[error("a reserved bit is set and no extension was negotiated")]
    ReservedBit,
    #[error("a server frame is masked")]
    Masked,
    #[error("the opcode {0:#x} has no meaning here")]
    Opcode(u8),
    #[error("a control frame is fragmented or longer than 125 bytes")]
    Control,
}

/// Where one connection's stream stands. No heap memory between whole messages.
#[derive(Debug, Default)]
pub struct FrameScanner {
    /// A header that was cut by a read.
    header: [u8; HEADER_MAX],
    header_len: u8,
    /// The frame whose payload is being read.
    frame: Option<Frame>,
    /// Payload bytes of `frame` still to come.
    remaining: u64,
    /// Length so far of the message being read, over all its fragments.
    message_length: u64,
    in_message: bool,
    /// First bytes of a message that was cut.
    message_head: Vec<u8>,
    /// Payload of a control frame that was cut.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    fin: bool,
    opcode: u8,
}

impl Frame {
    fn is_control(self) -> bool {
        self.opcode & 0x8 != 0
    }
}

impl FrameScanner {
    /// Takes the next bytes of the stream and reports every frame they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut on: impl FnMut(FrameEvent<'_>)) -> Result<(), FrameFault> {
        while !bytes.is_empty() {
            match self.frame {
                None => bytes = self.take_header(bytes)?,
                Some(frame) => bytes = self.take_payload(frame, bytes, &mut on),
            }
            // A frame without payload is complete with its header.
            if let (Some(frame), 0) = (self.frame, self.remaining) {
                self.take_payload(frame, &[], &mut on);
            }
        }
        Ok(())
    }

    fn take_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], FrameFault> {
        if self.header_len == 0 && bytes.len() >= HEADER_MAX {
            let used = self.open_frame(bytes)?;
            return Ok(&bytes[used..]);
        }
        let have = usize::from(self.header_len);
        let need = if have < 2 { 2 } else { header_bytes(self.header[1]) };
        let take = (need - have).min(bytes.len());
        self.header[have..have + take].copy_from_slice(&bytes[..take]);
        self.header_len += take as u8;
        let have = have + take;
        if have >= 2 && have == header_bytes(self.header[1]) {
            let header = self.header;
            self.header_len = 0;
            self.open_frame(&header)?;
        }
        Ok(&bytes[take..])
    }

    /// Reads a header that is complete in `bytes`; returns its length.
    fn open_frame(&mut self, bytes: &[u8]) -> Result<usize, FrameFault> {
        let frame = Frame { fin: bytes[0] & 0x80 != 0, opcode: bytes[0] & 0x0f };
        if bytes[0] & 0x70 != 0 {
            return Err(FrameFault::ReservedBit);
        }
        if bytes[1] & 0x80 != 0 {
            return Err(FrameFault::Masked);
        }
        let length = match bytes[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([bytes[2], bytes[3]])),
            127 => bytes[2..HEADER_MAX].iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
            short => u64::from(short),
        };
        self.check(frame, length)?;
        self.frame = Some(frame);
        self.remaining = length;
        Ok(header_bytes(bytes[1]))
    }

    fn check(&mut self, frame: Frame, length: u64) -> Result<(), FrameFault> {
        match frame.opcode {
            0x0 if self.in_message => Ok(()),
            0x1 | 0x2 if !self.in_message => {
                self.in_message = true;
                self.message_length = 0;
                self.message_head.clear();
                Ok(())
            }
            0x8..=0xa if frame.fin && length <= CONTROL_MAX => Ok(()),
            0x8..=0xa => Err(FrameFault::Control),
            opcode => Err(FrameFault::Opcode(opcode)),
        }
    }

    fn take_payload<'a>(
        &mut self,
        frame: Frame,
        bytes: &'a [u8],
        on: &mut impl FnMut(FrameEvent<'_>),
    ) -> &'a [u8] {
        let available = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
        let (payload, rest) = bytes.split_at(available);
        self.remaining -= available as u64;
        if frame.is_control() {
            self.take_control(frame, payload, on);
        } else {
            self.take_data(frame, payload, on);
        }
        if self.remaining == 0 {
            self.frame = None;
        }
        rest
    }

    fn take_data(&mut self, frame: Frame, payload: &[u8], on: &mut impl FnMut(FrameEvent<'_>)) {
        let first = self.message_length == 0;
        self.message_length += payload.len() as u64;
        let complete = self.remaining == 0 && frame.fin;
        if complete {
            self.in_message = false;
        }
        if complete && first {
            on(FrameEvent::Message { head: payload, length: self.message_length });
            return;
        }
        let room = PREFIX_BYTES - self.message_head.len();
        self.message_head.extend_from_slice(&payload[..payload.len().min(room)]);
        if complete {
            let head = std::mem::take(&mut self.message_head);
            on(FrameEvent::Message { head: &head, length: self.message_length });
        }
    }

    fn take_control(&mut self, frame: Frame, payload: &[u8], on: &mut impl FnMut(FrameEvent<'_>)) {
        if self.remaining > 0 {
            self.control.extend_from_slice(payload);
            return;
        }
        let mut cut = std::mem::take(&mut self.control);
        let payload = if cut.is_empty() {
            payload
        } else {
            cut.extend_from_slice(payload);
            &cut
        };
        on(match frame.opcode {
            0x9 => FrameEvent::Ping(payload),
            0xa => FrameEvent::Pong(payload),
            _ => FrameEvent::Close(payload.first_chunk().map(|&code| u16::from_be_bytes(code))),
        });
    }
}

fn header_bytes(second: u8) -> usize {
    match second & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

/// Appends one masked client frame (RFC 6455 §5.3).
pub fn write_client_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    // Any key does: masking guards caches between browser and server, and a load generator is no browser.
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            length @ 0..=125 => out.push(length as u8),
            length @ 126..=0xffff => {
                out.push(126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, FrameFault> {
        let mut scanner = FrameScanner::default();
        let mut seen = Vec::new();
        for piece in pieces {
            scanner.feed(piece, |event| {
                seen.push(match event {
                    // What is reported of a long message depends on the cut; its stamp may not.
                    FrameEvent::Message { head, length } => {
                        let head = &head[..head.len().min(PREFIX_BYTES)];
                        format!("message {length} {}", String::from_utf8_lossy(head))
                    }
                    other => format!("{other:?}"),
                });
            })?;
        }
        Ok(seen)
    }

    fn stream() -> Vec<u8> {
        let mut stream = frame(0x81, b"first");
        stream.extend(frame(0x82, &[b'x'; 130]));
        stream.extend(frame(0x89, b"are you there"));
        stream.extend(frame(0x81, b""));
        stream.extend(frame(0x01, b"frag"));
        stream.extend(frame(0x8a, b""));
        stream.extend(frame(0x00, b"men"));
        stream.extend(frame(0x80, b"ted"));
        stream.extend(frame(0x81, &vec![b'y'; 70_000]));
        stream.extend(frame(0x88, &[0x03, 0xe8, b'b', b'y', b'e']));
        stream
    }

    #[test]
    fn a_whole_stream_is_reported() {
        let stream = stream();
        let seen = scan(std::iter::once(stream.as_slice())).unwrap();
        let expected = [
            "message 5 first".to_owned(),
            format!("message 130 {}", "x".repeat(128)),
            format!("{:?}", FrameEvent::Ping(b"are you there")),
            "message 0 ".to_owned(),
            "Pong([])".to_owned(),
            "message 10 fragmented".to_owned(),
            format!("message 70000 {}", "y".repeat(128)),
            "Close(Some(1000))".to_owned(),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_cut_does_not_matter() {
        let stream = stream();
        let whole = scan(std::iter::once(stream.as_slice())).unwrap();
        for size in (1..=40).chain([127, 128, 129, 1_000, 65_536]) {
            assert_eq!(scan(stream.chunks(size)).unwrap(), whole, "pieces of {size}");
        }
        for cut in (0..400).chain(stream.len() - 30..stream.len()) {
            let (left, right) = stream.split_at(cut);
            assert_eq!(scan([left, right].into_iter()).unwrap(), whole, "cut at {cut}");
        }
    }

    #[track_caller]
    fn check_fault(bytes: &[u8], fault: FrameFault) {
        assert_eq!(scan(std::iter::once(bytes)), Err(fault));
        assert_eq!(scan(bytes.chunks(1)), Err(fault));
    }

    #[test]
    fn faults_are_named() {
        check_fault(&frame(0xc1, b"x"), FrameFault::ReservedBit);
        check_fault(&[0x81, 0x81, 0, 0, 0, 0, b'x', 0, 0, 0], FrameFault::Masked);
        check_fault(&frame(0x83, b"x"), FrameFault::Opcode(3));
        check_fault(&frame(0x80, b"x"), FrameFault::Opcode(0));
        check_fault(&frame(0x09, b"x"), FrameFault::Control);
        check_fault(&frame(0x89, &[0; 126]), FrameFault::Control);
        let mut interleaved = frame(0x01, b"a");
        interleaved.extend(frame(0x81, b"b"));
        check_fault(&interleaved, FrameFault::Opcode(1));
    }

    #[test]
    fn a_client_frame_unmasks_to_its_payload() {
        for length in [0, 5, 125, 126, 512, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let mut out = Vec::new();
            write_client_frame(&mut out, 0x2, &payload);
            let header = header_bytes(out[1]) + 4;
            let mask: [u8; 4] = out[header - 4..header].try_into().unwrap();
            let unmasked: Vec<u8> =
                out[header..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!((out[0], out[1] & 0x80, unmasked), (0x82, 0x80, payload));
        }
    }
}
