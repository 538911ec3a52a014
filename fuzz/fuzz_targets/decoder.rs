//! Client streams in arbitrary pieces against the same stream in one piece, and against tungstenite.
#![no_main]

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidegate_wire::decoder::{DecodeError, Decoder, Message};
use tidegate_wire::deflate::{Deflater, Inflater};
use tungstenite::error::{Error, ProtocolError};
use tungstenite::protocol::{Message as Theirs, Role, WebSocket, WebSocketConfig};

#[derive(Debug, Arbitrary)]
struct Input {
    compression: bool,
    bytes_max: u16,
    cuts: Vec<u16>,
    parts: Vec<Part>,
}

/// A piece of the stream: random bytes alone seldom get past the first header.
#[derive(Debug, Arbitrary)]
enum Part {
    Frame { first: u8, key: [u8; 4], payload: Vec<u8> },
    Text { fin: bool, key: [u8; 4], text: String },
    Continuation { fin: bool, key: [u8; 4], payload: Vec<u8> },
    Compressed { fin: bool, is_text: bool, level: u8, key: [u8; 4], payload: Vec<u8> },
    Raw(Vec<u8>),
}

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

type Outcome = (Vec<Owned>, Result<(), DecodeError>);

fuzz_target!(|input: Input| {
    let stream: Vec<u8> = input.parts.iter().flat_map(Part::to_bytes).collect();
    let bytes_max = usize::from(input.bytes_max);
    let whole = decode(&stream, &[], bytes_max, input.compression);
    let mut cuts: Vec<usize> = input.cuts.iter().map(|cut| usize::from(*cut)).collect();
    cuts.sort_unstable();
    let pieces = decode(&stream, &cuts, bytes_max, input.compression);
    assert_eq!(whole, pieces, "cut at {cuts:?}");
    if !input.compression {
        compare_with_tungstenite(&stream, bytes_max, &whole);
    }
});

impl Part {
    fn to_bytes(&self) -> Vec<u8> {
        let fin = |fin: &bool| u8::from(*fin) << 7;
        match self {
            Self::Frame { first, key, payload } => frame(*first, payload, *key),
            Self::Text { fin: end, key, text } => frame(fin(end) | 1, text.as_bytes(), *key),
            Self::Continuation { fin: end, key, payload } => frame(fin(end), payload, *key),
            Self::Compressed { fin: end, is_text, level, key, payload } => {
                let mut deflated = Vec::new();
                Deflater::new(u32::from(*level % 10)).compress(payload, &mut deflated);
                frame(fin(end) | 0x40 | if *is_text { 1 } else { 2 }, &deflated, *key)
            }
            Self::Raw(bytes) => bytes.clone(),
        }
    }
}

fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    frame
}

fn decode(stream: &[u8], cuts: &[usize], bytes_max: usize, compression: bool) -> Outcome {
    let mut decoder = Decoder::new(compression);
    let mut inflater = Inflater::new();
    let mut messages = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let end = end.clamp(start, stream.len());
        let mut piece = stream[start..end].to_vec();
        start = end;
        let result = decoder.decode(&mut piece, bytes_max, &mut inflater, |message| {
            messages.push(own(message, bytes_max));
            ControlFlow::Continue(())
        });
        // A deflated message may be longer than what it inflates to; a split control frame doubles up to 125 bytes.
        assert!(decoder.buffered_bytes() <= bytes_max + bytes_max / 8 + 64 + 250);
        assert!(inflater.output_capacity() <= 64 * 1024);
        if let Err(error) = result {
            assert!(decoder.is_idle());
            return (messages, Err(error));
        }
    }
    (messages, Ok(()))
}

fn own(message: Message<'_>, bytes_max: usize) -> Owned {
    match message {
        Message::Text(text) => {
            assert!(text.len() <= bytes_max);
            Owned::Text(text.to_owned())
        }
        Message::Binary(bytes) => {
            assert!(bytes.len() <= bytes_max);
            Owned::Binary(bytes.to_vec())
        }
        Message::Ping(bytes) => Owned::Ping(bytes.to_vec()),
        Message::Pong(bytes) => Owned::Pong(bytes.to_vec()),
        Message::Close(close) => Owned::Close(close.map(|(code, reason)| (code.0, reason.to_owned()))),
    }
}

/// Messages agree up to where tungstenite, which judges whole frames only, stops; failures agree, save for what
/// tungstenite is known to allow (long lengths) or not to know (close code 1014).
fn compare_with_tungstenite(stream: &[u8], bytes_max: usize, (messages, result): &Outcome) {
    if *result == Err(DecodeError::LengthEncoding)
        || matches!(messages.last(), Some(Owned::Close(Some((1014, _)))))
    {
        return;
    }
    let (theirs, failed) = tungstenite_messages(stream, bytes_max);
    assert_eq!(messages, &theirs);
    // They may still wait for the frame that we refused by its header; they never fail where we do not.
    assert!(result.is_err() || !failed, "tungstenite failed, we did not");
}

fn tungstenite_messages(stream: &[u8], bytes_max: usize) -> (Vec<Owned>, bool) {
    let config =
        WebSocketConfig::default().max_message_size(Some(bytes_max)).max_frame_size(Some(bytes_max.max(125)));
    let mut socket = WebSocket::from_raw_socket(Peer(stream), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(Theirs::Text(text)) => messages.push(Owned::Text(text.as_str().to_owned())),
            Ok(Theirs::Binary(bytes)) => messages.push(Owned::Binary(bytes.to_vec())),
            Ok(Theirs::Ping(bytes)) => messages.push(Owned::Ping(bytes.to_vec())),
            Ok(Theirs::Pong(bytes)) => messages.push(Owned::Pong(bytes.to_vec())),
            Ok(Theirs::Close(Some(close))) if close.reason.as_str() == "Protocol violation" => {
                return (messages, true);
            }
            Ok(Theirs::Close(close)) => {
                messages.push(Owned::Close(
                    close.map(|close| (u16::from(close.code), close.reason.as_str().to_owned())),
                ));
                return (messages, false);
            }
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (messages, false);
            }
            Ok(Theirs::Frame(_)) | Err(_) => return (messages, true),
        }
    }
}

struct Peer<'a>(&'a [u8]);

impl Read for Peer<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
