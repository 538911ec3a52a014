//! Deltas in the format of Fossil (`delta_format.wiki` of its documentation): how a payload differs from the one before it.
//!
//! ```text
//! LENGTH \n  ( COUNT @ OFFSET ,  |  COUNT : BYTES )*  CHECKSUM ;
//! ```
//!
//! Numbers have digits of 6 bits. `@` copies from the payload before, `:` brings bytes of its own. There is no crate of it on
//! the registry.

/// What is looked for: runs that both have, of so many bytes at least, which is what a copy of one costs or less.
const RUN: usize = 8;

/// Runs are found by what stands at every fourth place of the source: one of 11 bytes always.
const STRIDE: usize = 4;

const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/// Appends how `target` differs from `source`. Where both are UTF-8, so is the delta: no character is cut.
pub fn create(source: &[u8], target: &[u8], out: &mut Vec<u8>) {
    push_int(target.len(), out);
    out.push(b'\n');
    let runs = Runs::of(source);
    let (mut told, mut at) = (0, 0);
    while at + RUN <= target.len() {
        let found = runs.find(source, &target[at..]).and_then(|from| grow(source, target, from, at, told));
        let Some(Run { from, to, len }) = found else {
            at += 1;
            continue;
        };
        push_literal(&target[told..to], out);
        push_int(len, out);
        out.push(b'@');
        push_int(from, out);
        out.push(b',');
        at = to + len;
        told = at;
    }
    push_literal(&target[told..], out);
    push_int(checksum(target) as usize, out);
    out.push(b';');
}

/// The payload that `source` becomes. `None`: it is no delta of that one.
#[must_use]
pub fn apply(source: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let (len, mut rest) = split_int(delta)?;
    rest = rest.strip_prefix(b"\n")?;
    let mut target = Vec::new();
    loop {
        let (count, operator) = split_int(rest)?;
        let (&kind, after) = operator.split_first()?;
        match kind {
            b'@' => {
                let (from, end) = split_int(after)?;
                target.extend_from_slice(source.get(from..from.checked_add(count)?)?);
                rest = end.strip_prefix(b",")?;
            }
            b':' => {
                let (bytes, end) = after.split_at_checked(count)?;
                target.extend_from_slice(bytes);
                rest = end;
            }
            b';' => {
                let is_it = count == checksum(&target) as usize && target.len() == len && after.is_empty();
                return is_it.then_some(target);
            }
            _ => return None,
        }
        if target.len() > len {
            return None;
        }
    }
}

/// Where the source has a run that is in the target.
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

/// Places of a source, by the first bytes that stand there.
struct Runs {
    places: Vec<u32>,
    shift: u32,
}

impl Runs {
    fn of(source: &[u8]) -> Self {
        let count = (source.len() + STRIDE).saturating_sub(RUN) / STRIDE;
        let bits = (2 * count.max(1)).next_power_of_two().trailing_zeros().max(1);
        let mut runs = Self { places: vec![u32::MAX; 1 << bits], shift: 64 - bits };
        for nth in 0..count {
            let slot = runs.slot(&source[nth * STRIDE..]);
            // The first of those that are alike.
            if runs.places[slot] == u32::MAX {
                runs.places[slot] = u32::try_from(nth * STRIDE).unwrap_or(u32::MAX);
            }
        }
        runs
    }

    /// A multiplicative hash of the first `RUN` bytes.
    fn slot(&self, bytes: &[u8]) -> usize {
        let first = bytes.first_chunk::<RUN>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        (first.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    fn find(&self, source: &[u8], target: &[u8]) -> Option<usize> {
        let from = self.places[self.slot(target)] as usize;
        (source.get(from..from.checked_add(RUN)?)? == &target[..RUN]).then_some(from)
    }
}

/// The whole of a run that was found, back to what was `told` at most, without a part of a character at its ends.
fn grow(source: &[u8], target: &[u8], mut from: usize, mut to: usize, told: usize) -> Option<Run> {
    let alike = |(one, other): &(&u8, &u8)| one == other;
    let back = source[..from].iter().rev().zip(target[told..to].iter().rev()).take_while(alike).count();
    let on = source[from..].iter().zip(&target[to..]).take_while(alike).count();
    (from, to) = (from - back, to - back);
    let mut end = to + back + on;
    let is_cut = |at: usize| target.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
    while to < end && is_cut(to) {
        (from, to) = (from + 1, to + 1);
    }
    while end > to && is_cut(end) {
        end -= 1;
    }
    (end - to >= RUN).then_some(Run { from, to, len: end - to })
}

fn push_literal(bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        push_int(bytes.len(), out);
        out.push(b':');
        out.extend_from_slice(bytes);
    }
}

fn push_int(mut value: usize, out: &mut Vec<u8>) {
    let begin = out.len();
    loop {
        out.push(DIGITS[value & 63]);
        value >>= 6;
        if value == 0 {
            break;
        }
    }
    out[begin..].reverse();
}

fn split_int(text: &[u8]) -> Option<(usize, &[u8])> {
    let digit = |byte: &u8| DIGITS.iter().position(|digit| digit == byte);
    let count = text.iter().take_while(|byte| digit(byte).is_some()).count();
    // Six digits are 36 bits: more than any length or checksum has.
    if count == 0 || count > 6 {
        return None;
    }
    let value = text[..count].iter().filter_map(digit).fold(0, |value, digit| value << 6 | digit);
    Some((value, &text[count..]))
}

/// The sum of the payload's words of 32 bits, big-endian, the last filled with zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let word = |chunk: &[u8]| {
        chunk.iter().fold((0u32, 24), |(word, shift), byte| {
            (word | u32::from(*byte) << shift, if shift > 0 { shift - 8 } else { 0 })
        })
    };
    bytes.chunks(4).fold(0, |sum: u32, chunk| sum.wrapping_add(word(chunk).0))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn delta(source: &[u8], target: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        create(source, target, &mut out);
        out
    }

    /// By hand, from the format: 3 bytes that are its own; a whole copy; a change in the middle.
    #[test]
    fn golden_deltas() {
        assert_eq!(delta(b"", b"abc"), b"3\n3:abc1XObC0;");
        assert_eq!(delta(b"", b""), b"0\n0;");
        let source = b"{\"temperature\":20,\"unit\":\"celsius\"}";
        let target = b"{\"temperature\":21,\"unit\":\"celsius\"}";
        let text = String::from_utf8(delta(source, target)).expect("text");
        assert_eq!(text, "Z\nG@0,1:1I@H,1dTrch;");
        assert_eq!(apply(source, text.as_bytes()).as_deref(), Some(&target[..]));
    }

    #[test]
    fn what_is_no_delta_of_it_is_refused() {
        let good = delta(b"0123456789abcdef0123", b"0123456789abcdef9");
        assert!(apply(b"0123456789abcdef0123", &good).is_some());
        assert_eq!(apply(b"", &good), None);
        for cut in 0..good.len() {
            assert_eq!(apply(b"0123456789abcdef0123", &good[..cut]), None, "{cut}");
        }
        for bad in [&b"1\n~~~~~~:"[..], b"1\n1@~~~~~,0;", b"1\n1:a0;", b"0\n0;x", b"9999999\n0;"] {
            assert_eq!(apply(b"abc", bad), None, "{bad:?}");
        }
    }

    proptest! {
        /// Texts with much in common, of characters of one to four bytes: the delta is text, and leads to the target.
        #[test]
        fn a_delta_leads_to_the_target(
            parts in vec("[a-cé€𝄞]{0,40}", 1..12),
            picks in vec((0usize..12, any::<bool>()), 0..16),
            own in "[a-cé€𝄞]{0,30}",
        ) {
            let source = parts.concat();
            let pick = |&(nth, keeps): &(usize, bool)| if keeps { parts[nth % parts.len()].clone() } else { own.clone() };
            let target: String = picks.iter().map(pick).collect();
            let delta = delta(source.as_bytes(), target.as_bytes());
            prop_assert!(std::str::from_utf8(&delta).is_ok());
            prop_assert_eq!(apply(source.as_bytes(), &delta), Some(target.into_bytes()));
        }

        #[test]
        fn bytes_of_any_kind(source in vec(0u8..4, 0..300), target in vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let target = [&source[cut.min(source.len())..], &target, &source].concat();
            prop_assert_eq!(apply(&source, &delta(&source, &target)), Some(target));
        }
    }
}
