//! Bytes as a compressed message, and bytes to compress.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tidegate_wire::deflate::{Deflater, Inflater};

#[derive(Debug, Arbitrary)]
struct Input {
    level: u8,
    window_bits: u8,
    bytes_max: u16,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let bytes_max = usize::from(input.bytes_max);
    let mut inflater = Inflater::new();
    let first = inflater.inflate(&input.bytes, bytes_max).map(<[u8]>::to_vec);
    if let Ok(output) = &first {
        assert!(output.len() <= bytes_max);
    }
    let again = inflater.inflate(&input.bytes, bytes_max).map(<[u8]>::to_vec);
    assert_eq!(first, again, "nothing is left over from the message before");

    let mut deflated = Vec::new();
    let mut deflater = Deflater::with_window_bits(u32::from(input.level % 10), input.window_bits);
    for _ in 0..2 {
        deflated.clear();
        deflater.compress(&input.bytes, &mut deflated);
        assert_eq!(inflater.inflate(&deflated, input.bytes.len()), Ok(&input.bytes[..]));
    }
});
