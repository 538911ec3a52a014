//! Unmasking of client payloads (RFC 6455 §5.3), in place.

/// Bytes handled per step: two SSE2 or NEON registers, which the compiler fills from this loop by itself.
const BLOCK: usize = 32;

/// XORs `data` with the masking `key`, of which the first `offset` payload bytes were already consumed by
/// earlier calls.
pub(crate) fn unmask(data: &mut [u8], key: [u8; 4], offset: usize) {
    let key: [u8; 4] = std::array::from_fn(|index| key[(offset + index) & 3]);
    let wide: [u8; BLOCK] = std::array::from_fn(|index| key[index & 3]);
    let (blocks, rest) = data.as_chunks_mut::<BLOCK>();
    for block in blocks {
        for (byte, mask) in block.iter_mut().zip(wide) {
            *byte ^= mask;
        }
    }
    let (words, rest) = rest.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(key) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_definition_at_any_split(
            data in prop::collection::vec(any::<u8>(), 0..200), key: [u8; 4], cut in 0usize..200,
        ) {
            let expected: Vec<u8> = data.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect();
            let mut actual = data;
            let cut = cut.min(actual.len());
            let (left, right) = actual.split_at_mut(cut);
            unmask(left, key, 0);
            unmask(right, key, cut);
            prop_assert_eq!(actual, expected);
        }
    }
}
