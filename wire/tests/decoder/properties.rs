//! Properties: how a stream is split never matters, and what is encoded is decoded.

use proptest::prelude::*;
use tidegate_wire::decoder::Decoder;
use tidegate_wire::deflate::{Deflater, Inflater};
use tidegate_wire::frame::{self, CloseCode, Opcode};

use crate::support::*;

const BYTES_MAX: usize = 4_096;

/// Frames that are mostly right, so that streams get past the first of them.
pub(crate) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..40),
        4 => "\\PC{0,20}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 100..700),
        1 => (900u16..5100, "[a-z€]{0,5}").prop_map(|(code, reason)| [&code.to_be_bytes(), reason.as_bytes()].concat()),
    ];
    let first = prop_oneof![
        6 => Just(FIN | TEXT), 6 => Just(FIN | BINARY), 3 => Just(TEXT), 3 => Just(BINARY), 5 => Just(FIN), 3 => Just(0),
        3 => Just(FIN | PING), 2 => Just(FIN | PONG), 1 => Just(FIN | CLOSE), 1 => any::<u8>(),
    ];
    (first, payload, any::<[u8; 4]>()).prop_map(|(first, payload, key)| frame_with_key(first, &payload, key))
}

/// As `any_frame`, some of them compressed as they should be, some only claiming to be.
fn any_frame_with_compression() -> impl Strategy<Value = Vec<u8>> {
    let compressed = (prop::collection::vec(0u8..4, 0..600), 0u32..10, any::<[u8; 4]>(), any::<bool>())
        .prop_map(|(payload, level, key, is_text)| {
            let mut deflated = Vec::new();
            Deflater::new(level).compress(&payload, &mut deflated);
            frame_with_key(FIN | RSV1 | if is_text { TEXT } else { BINARY }, &deflated, key)
        });
    let claimed = any_frame().prop_map(|mut frame| {
        frame[0] |= RSV1;
        frame
    });
    prop_oneof![4 => any_frame(), 4 => compressed, 1 => claimed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn any_split_gives_the_same(
        frames in prop::collection::vec(any_frame_with_compression(), 0..8),
        mut cuts in prop::collection::vec(0usize..2_000, 0..12),
        compression: bool,
    ) {
        let stream = frames.concat();
        cuts.sort_unstable();
        let whole = decode_in_pieces(&stream, &[], BYTES_MAX, compression);
        prop_assert_eq!(&whole, &decode_in_pieces(&stream, &cuts, BYTES_MAX, compression));
        let every_byte: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(&whole, &decode_in_pieces(&stream, &every_byte, BYTES_MAX, compression));
    }

    #[test]
    fn arbitrary_bytes_are_never_decoded_differently_when_split(
        stream in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300, compression: bool,
    ) {
        let whole = decode_in_pieces(&stream, &[], BYTES_MAX, compression);
        prop_assert_eq!(whole, decode_in_pieces(&stream, &[cut], BYTES_MAX, compression));
    }

    /// What the server encodes is what a client would send, once it is masked.
    #[test]
    fn encoded_frames_decode_to_themselves(
        payload in prop::collection::vec(any::<u8>(), 0..3_000), text in "\\PC{0,60}", key: [u8; 4],
    ) {
        let mut wire = Vec::new();
        let mut deflated = Vec::new();
        Deflater::new(6).compress(text.as_bytes(), &mut deflated);
        frame::encode(Opcode::Binary, &payload, &mut wire);
        prop_assert_eq!(wire.len(), frame::encoded_len(payload.len()));
        let mut stream = masked(&wire, key);
        for (opcode, bytes) in [(Opcode::Text, text.as_bytes()), (Opcode::Ping, &payload[..payload.len().min(125)])] {
            wire.clear();
            frame::encode(opcode, bytes, &mut wire);
            stream.extend(masked(&wire, key));
        }
        wire.clear();
        frame::encode_compressed(Opcode::Text, &deflated, &mut wire);
        stream.extend(masked(&wire, key));
        wire.clear();
        frame::encode_close(CloseCode::GOING_AWAY, &text[..text.floor_char_boundary(20)], &mut wire);
        stream.extend(masked(&wire, key));

        let expected = vec![
            binary(&payload),
            Owned::Text(text.clone()),
            Owned::Ping(payload[..payload.len().min(125)].to_vec()),
            Owned::Text(text.clone()),
            Owned::Close(Some((1001, text[..text.floor_char_boundary(20)].to_owned()))),
        ];
        prop_assert_eq!(decode_in_pieces(&stream, &[], BYTES_MAX, true), (expected, Ok(())));
    }

    #[test]
    fn nothing_is_held_beyond_the_limit(
        frames in prop::collection::vec(any_frame_with_compression(), 0..8), bytes_max in 0usize..1_000,
    ) {
        let mut decoder = Decoder::new(true);
        let mut inflater = Inflater::new();
        for byte in frames.concat() {
            let result = decoder.decode(&mut [byte], bytes_max, &mut inflater, |_| std::ops::ControlFlow::Continue(()));
            // A deflated message may be a little longer than what it inflates to; a split ping doubles to 125.
            prop_assert!(decoder.buffered_bytes() <= bytes_max + bytes_max / 8 + 64 + 250);
            if result.is_err() {
                prop_assert!(decoder.is_idle());
                break;
            }
        }
    }
}

/// A server's frame as a client would mask it.
fn masked(frame: &[u8], key: [u8; 4]) -> Vec<u8> {
    let header_len = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let mut masked = frame[..header_len].to_vec();
    masked[1] |= 0x80;
    masked.extend(key);
    masked.extend(frame[header_len..].iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    masked
}
