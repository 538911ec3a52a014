//! Client frames to decode, and what came out of them.

use std::ops::ControlFlow;

use tidegate_wire::decoder::{DecodeError, Decoder, Message};
use tidegate_wire::deflate::Inflater;

pub(crate) const FIN: u8 = 0x80;
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

pub(crate) const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A message that outlives the decoder's buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

/// Messages handed out, and how it ended.
pub(crate) type Outcome = (Vec<Owned>, Result<(), DecodeError>);

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.to_owned()),
            Message::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Message::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Message::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Message::Close(close) => Self::Close(close.map(|(code, reason)| (code.0, reason.to_owned()))),
        }
    }
}

pub(crate) fn text(text: &str) -> Owned {
    Owned::Text(text.to_owned())
}

pub(crate) fn binary(bytes: &[u8]) -> Owned {
    Owned::Binary(bytes.to_vec())
}

/// A masked client frame with the shortest length.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    frame_with_key(first, payload, KEY)
}

pub(crate) fn frame_with_key(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64, key);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    frame
}

/// The header of a masked client frame, whose payload may never come.
pub(crate) fn header(first: u8, payload_len: u64, key: [u8; 4]) -> Vec<u8> {
    let mut header = vec![first];
    match payload_len {
        0..=125 => header.push(0x80 | payload_len as u8),
        126..=0xFFFF => {
            header.push(0x80 | 126);
            header.extend((payload_len as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend(payload_len.to_be_bytes());
        }
    }
    header.extend(key);
    header
}

pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// Decodes `stream`, delivered in pieces that end at `cuts`, with a new decoder.
pub(crate) fn decode_in_pieces(
    stream: &[u8],
    cuts: &[usize],
    bytes_max: usize,
    compression: bool,
) -> Outcome {
    let mut decoder = Decoder::new(compression);
    let mut inflater = Inflater::new();
    let mut messages = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let end = end.clamp(start, stream.len());
        let mut piece = stream[start..end].to_vec();
        start = end;
        let result = decoder.decode(&mut piece, bytes_max, &mut inflater, |message| {
            messages.push(message.into());
            ControlFlow::Continue(())
        });
        if let Err(error) = result {
            return (messages, Err(error));
        }
    }
    (messages, Ok(()))
}

/// Decodes `stream` in one piece, stopping after each message and going on with what was not used.
fn decode_stopping(stream: &[u8], bytes_max: usize, compression: bool) -> Outcome {
    let mut decoder = Decoder::new(compression);
    let mut inflater = Inflater::new();
    let mut messages = Vec::new();
    let mut bytes = stream.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let before = messages.len();
        let result = decoder.decode(&mut bytes[at..], bytes_max, &mut inflater, |message| {
            messages.push(message.into());
            ControlFlow::Break(())
        });
        assert!(messages.len() <= before + 1, "it stops after a message");
        match result {
            Ok(used) => at += used,
            Err(error) => return (messages, Err(error)),
        }
    }
    (messages, Ok(()))
}

/// Decodes `stream` in one piece, byte by byte, and message by message, and checks that all agree.
pub(crate) fn decode(stream: &[u8], bytes_max: usize, compression: bool) -> Outcome {
    let whole = decode_in_pieces(stream, &[], bytes_max, compression);
    let every_byte: Vec<usize> = (0..stream.len()).collect();
    let trickled = decode_in_pieces(stream, &every_byte, bytes_max, compression);
    assert_eq!(whole, trickled, "one piece and single bytes disagree for {stream:02x?}");
    let stopped = decode_stopping(stream, bytes_max, compression);
    assert_eq!(whole, stopped, "one piece and single messages disagree for {stream:02x?}");
    whole
}
