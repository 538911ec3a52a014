//! A decoder that goes on in another process: what waits of a frame or a message, as it was received.

use super::{
    DecodeError, Decoder,
    header::{HEADER_BYTES_MAX, Header},
    partial::{FramePartial, MessagePartial, Partial},
};
use crate::{
    fields::{Malformed, Reader, Writer},
    frame::Opcode,
};

impl Decoder {
    pub(crate) fn write(&self, out: &mut Writer) {
        out.bool(self.compression);
        out.bool(self.finished);
        out.option(self.partial.as_deref(), |out, partial| {
            out.bytes(&partial.header[..partial.header_len]);
            out.option(partial.frame, write_frame);
            out.option(partial.message.as_ref(), |out, message| {
                out.bool(message.is_text);
                out.bool(message.compressed);
                out.bytes(&message.payload);
            });
            out.bytes(&partial.control);
        });
    }

    pub(crate) fn read(fields: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            compression: fields.bool()?,
            finished: fields.bool()?,
            partial: fields.option(read_partial)?.map(Box::new),
        })
    }
}

fn read_partial(fields: &mut Reader<'_>) -> Result<Partial, Malformed> {
    let mut partial = Partial::default();
    let header = fields.bytes()?;
    // A whole header is never kept: there is room for one more byte.
    if header.len() >= HEADER_BYTES_MAX {
        return Err(Malformed);
    }
    partial.header[..header.len()].copy_from_slice(header);
    partial.header_len = header.len();
    partial.frame = fields.option(read_frame)?;
    partial.message = fields.option(|fields| {
        let mut message = MessagePartial {
            is_text: fields.bool()?,
            compressed: fields.bool()?,
            payload: Vec::new(),
            valid_len: 0,
        };
        let payload = fields.bytes()?;
        // Judged again, as when it came: what is known of it does not go along.
        message.append(payload, payload.len()).map_err(|_: DecodeError| Malformed)?;
        Ok(message)
    })?;
    partial.control = fields.bytes()?.to_vec();
    if partial.is_idle() { Err(Malformed) } else { Ok(partial) }
}

fn write_frame(out: &mut Writer, frame: FramePartial) {
    let Header { fin, compressed, opcode, key, payload_len } = frame.header;
    out.bool(fin);
    out.bool(compressed);
    out.u8(opcode as u8);
    out.u32(u32::from_be_bytes(key));
    out.u64(payload_len as u64);
    out.u64(frame.received as u64);
}

fn read_frame(fields: &mut Reader<'_>) -> Result<FramePartial, Malformed> {
    let header = Header {
        fin: fields.bool()?,
        compressed: fields.bool()?,
        opcode: Opcode::from_bits(fields.u8()?).ok_or(Malformed)?,
        key: fields.u32()?.to_be_bytes(),
        payload_len: usize::try_from(fields.u64()?).map_err(|_| Malformed)?,
    };
    let received = usize::try_from(fields.u64()?).map_err(|_| Malformed)?;
    // A frame that has all of its payload is none that waits, and no limit of a message is so high.
    let waits = received < header.payload_len && u32::try_from(header.payload_len).is_ok();
    if waits { Ok(FramePartial { header, received }) } else { Err(Malformed) }
}
