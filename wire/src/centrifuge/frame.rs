//! Frames: commands off the front of what a client sent, replies onto the end of what it is sent.

use prost::{Message as _, decode_length_delimiter, length_delimiter_len};

use super::message::{Command, EmulationRequest, Reply};

/// How the messages of a connection are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    Json,
    Protobuf,
}

/// What cannot be a command. Clients are closed for it.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("a line is no JSON object of a command: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a line is no JSON object")]
    Object,
    #[error("a line is not UTF-8")]
    Utf8(#[from] std::str::Utf8Error),
    #[error("a message is no command: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("a message is said to be {len} bytes long, and {left} are left")]
    Length { len: usize, left: usize },
}

/// The requests that a command may hold, in the order in which they count.
pub const COMMAND_NAMES: [&str; 12] = [
    "connect",
    "subscribe",
    "unsubscribe",
    "publish",
    "presence",
    "presence_stats",
    "history",
    "ping",
    "send",
    "rpc",
    "refresh",
    "sub_refresh",
];

/// The first command of a frame, and how many bytes it is long. `None`: there is none left.
///
/// Two frames one after the other are one frame, if a line end stands between those of JSON.
///
/// # Errors
/// [`Malformed`]; what follows in the frame is of no use either.
pub fn next_command(frame: &[u8], encoding: Encoding) -> Result<Option<(Command, usize)>, Malformed> {
    match encoding {
        Encoding::Json => next_line(frame),
        Encoding::Protobuf => next_message(frame),
    }
}

/// The session and the frame of a request that sends commands of a connection which cannot carry them.
///
/// # Errors
/// [`Malformed`]: it is no such request.
pub fn read_emulated(body: &[u8], encoding: Encoding) -> Result<(String, Vec<u8>), Malformed> {
    match encoding {
        Encoding::Json => {
            if body.trim_ascii_start().first() != Some(&b'{') {
                return Err(Malformed::Object);
            }
            let EmulationRequest { session, data, .. } = serde_json::from_slice(body)?;
            Ok((session, serde_json::from_slice::<String>(&data)?.into_bytes()))
        }
        Encoding::Protobuf => {
            let EmulationRequest { session, data, .. } = EmulationRequest::decode(body)?;
            Ok((session, data))
        }
    }
}

fn next_line(frame: &[u8]) -> Result<Option<(Command, usize)>, Malformed> {
    let mut begin = 0;
    while begin < frame.len() {
        let end = memchr::memchr(b'\n', &frame[begin..]).map_or(frame.len(), |at| begin + at);
        let line = frame[begin..end].trim_ascii();
        let next = (end + 1).min(frame.len());
        if line.is_empty() {
            begin = next;
            continue;
        }
        // serde would read a struct from an array as well, by position.
        if line[0] != b'{' {
            return Err(Malformed::Object);
        }
        return Ok(Some((serde_json::from_str(std::str::from_utf8(line)?)?, next)));
    }
    Ok(None)
}

fn next_message(frame: &[u8]) -> Result<Option<(Command, usize)>, Malformed> {
    if frame.is_empty() {
        return Ok(None);
    }
    let len = decode_length_delimiter(frame)?;
    let begin = length_delimiter_len(len);
    let rest = frame.get(begin..).unwrap_or_default();
    let body = rest.get(..len).ok_or(Malformed::Length { len, left: rest.len() })?;
    Ok(Some((Command::decode(body)?, begin + len)))
}

/// Appends a reply: a line without its end, or a message after its length.
pub fn encode(reply: &Reply, encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        // Writing to memory does not fail, and every field can be written.
        Encoding::Json => {
            let written = serde_json::to_writer(&mut *out, reply);
            debug_assert!(written.is_ok(), "{reply:?}: {written:?}");
        }
        Encoding::Protobuf => {
            let written = reply.encode_length_delimited(out);
            debug_assert!(written.is_ok(), "{reply:?}: {written:?}");
        }
    }
}

#[cfg(test)]
mod tests;
