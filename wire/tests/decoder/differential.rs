//! The same bytes through tungstenite: the same messages, and a failure in one is a failure in the other.

use std::io::{self, Read, Write};

use proptest::prelude::*;
use tidegate_wire::decoder::DecodeError;
use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::{Message as Theirs, Role, WebSocket, WebSocketConfig};

use crate::properties::any_frame;
use crate::support::*;

const BYTES_MAX: usize = 600;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything was read, and the connection would go on.
    Open,
    /// A close frame was read.
    Closed,
    /// The peer broke a rule or a limit.
    Failed,
}

/// A peer that sends `input`, hangs up, and does not mind what it is told.
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

fn theirs(stream: &[u8]) -> (Vec<Owned>, End) {
    let config = WebSocketConfig::default().max_message_size(Some(BYTES_MAX)).max_frame_size(Some(BYTES_MAX));
    let mut socket = WebSocket::from_raw_socket(Peer(stream), Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(Theirs::Text(text)) => messages.push(Owned::Text(text.as_str().to_owned())),
            Ok(Theirs::Binary(bytes)) => messages.push(binary(&bytes)),
            Ok(Theirs::Ping(bytes)) => messages.push(Owned::Ping(bytes.to_vec())),
            Ok(Theirs::Pong(bytes)) => messages.push(Owned::Pong(bytes.to_vec())),
            Ok(Theirs::Close(close)) => {
                let close = close.map(|close| (u16::from(close.code), close.reason.as_str().to_owned()));
                // How tungstenite reports a code that must not be sent.
                if close.as_ref().is_some_and(|(_, reason)| reason == "Protocol violation") {
                    return (messages, End::Failed);
                }
                messages.push(Owned::Close(close));
                return (messages, End::Closed);
            }
            Ok(Theirs::Frame(_)) => unreachable!("reading never gives a raw frame"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (messages, End::Open);
            }
            Err(
                Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(CapacityError::MessageTooLong { .. }),
            ) => {
                return (messages, End::Failed);
            }
            Err(error) => panic!("not a verdict about the stream: {error:?}"),
        }
    }
}

/// Whether the last frame of `stream` is cut short. tungstenite judges a frame when it is whole, we as it arrives.
fn ends_inside_a_frame(mut stream: &[u8]) -> bool {
    while !stream.is_empty() {
        let Some(&second) = stream.get(1) else {
            return true;
        };
        let (length_len, short) = match second & 0x7F {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, usize::from(short)),
        };
        let mask_len = if second & 0x80 == 0 { 0 } else { 4 };
        let Some(extended) = stream.get(2..2 + length_len) else {
            return true;
        };
        let payload_len = extended.iter().fold(short, |len, byte| len << 8 | usize::from(*byte));
        let frame_len = payload_len.saturating_add(2 + length_len + mask_len);
        match stream.get(frame_len..) {
            Some(rest) => stream = rest,
            None => return true,
        }
    }
    false
}

fn check(stream: &[u8]) -> Result<(), TestCaseError> {
    let (messages, result) = decode_in_pieces(stream, &[], BYTES_MAX, false);
    let ours = match (&result, messages.last()) {
        (Err(_), _) => End::Failed,
        (Ok(()), Some(Owned::Close(_))) => End::Closed,
        (Ok(()), _) => End::Open,
    };
    // tungstenite takes lengths in any form. RFC 6455 §5.2 says MUST about the shortest one.
    if result == Err(DecodeError::LengthEncoding) {
        return Ok(());
    }
    // A short length in a long form is too long for a control frame to us, and a length like any other to tungstenite.
    if result == Err(DecodeError::ControlOversized) {
        prop_assert!(theirs(stream).0.starts_with(&messages));
        return Ok(());
    }
    // IANA registered 1014 (bad gateway) after RFC 6455; tungstenite holds it to be unassigned.
    if matches!(messages.last(), Some(Owned::Close(Some((1014, _))))) {
        return Ok(());
    }
    let (their_messages, their_end) = theirs(stream);
    prop_assert_eq!(&messages, &their_messages, "{:?} against {:?}", result, their_end);
    let early = ours == End::Failed && their_end == End::Open && ends_inside_a_frame(stream);
    prop_assert!(ours == their_end || early, "{:?} against {:?}", result, their_end);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn streams_of_frames(frames in prop::collection::vec(any_frame(), 0..10)) {
        check(&frames.concat())?;
    }

    #[test]
    fn mutated_streams(
        frames in prop::collection::vec(any_frame(), 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut stream = frames.concat();
        for (index, bits) in changes {
            let at = index.index(stream.len());
            stream[at] ^= bits;
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        check(&stream)?;
    }

    #[test]
    fn noise(stream in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&stream)?;
    }
}

#[test]
fn every_close_code() {
    for code in 0..=u16::MAX {
        check(&close(code, b"why")).unwrap_or_else(|error| panic!("{code}: {error}"));
    }
}

#[test]
fn a_short_control_frame_with_a_long_length() {
    let ping = [0x89, 0xFE, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5];
    check(&ping).unwrap_or_else(|error| panic!("{error}"));
}
