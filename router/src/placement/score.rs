//! The cost of a pair of key and member: `-log2(u) / weight`, where `u` in (0, 1) is a hash of both. The member with
//! the least cost wins, and does so with the probability `weight / sum of weights`.
//!
//! Everything is integers. `f64::ln` is not the same on all platforms: it comes from the platform's mathematical
//! library, and a difference in the last bit puts two routers at odds over a key. Our logarithm is a table of 257
//! entries, made by the compiler with integers, and a straight line between two entries. The line is off by at most
//! 2.7e-6 (h²/8 · max|log2''| = (1/256)²/8 · 1.4427). Where winners are, in the last entry's interval next to
//! `u` = 1, the line is a constant factor from the curve within 0.2 %, and a constant factor moves no winner. So the
//! share of a member is right to about 0.2 %, and members of equal weight stand in the order of their hashes.

use std::num::NonZeroU32;

use xxhash_rust::xxh3::xxh3_64;

/// XXH3-64 of a key, seed 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHash(u64);

/// What is computed once for a member.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemberHash {
    /// XXH3-64 of the name, seed 0.
    name: u64,
    /// 2^64 / weight: a multiplication instead of a division for each pair.
    inverse_weight: u64,
}

/// Bits after the point of a logarithm. The two best of 10,000 members are about 1.4e-4 apart, so that they share a
/// cost (a step of 2.3e-10) with one key in 600,000. Then the order of the names decides.
const FRACTION: u32 = 32;
const CELL_BITS: u32 = 8;
const CELLS: usize = 1 << CELL_BITS;

/// log2(1 + i/256), with [`FRACTION`] bits after the point.
static LOG2: [u64; CELLS + 1] = log2_table();

impl KeyHash {
    pub fn new(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// In two halves, for who keeps many of them beside smaller things.
    pub fn halves(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }

    pub fn of_halves([low, high]: [u32; 2]) -> Self {
        Self(u64::from(low) | (u64::from(high) << 32))
    }

    /// Whether a key is among those that are drawn with a chance (of 2^32) under this salt.
    pub fn falls(self, salt: u64, chance: u32) -> bool {
        (pair_hash(self.0, salt) >> 32) as u32 <= chance
    }
}

impl MemberHash {
    pub(super) fn new(name: &str, weight: NonZeroU32) -> Self {
        let inverse_weight = u64::MAX / u64::from(weight.get());
        Self { name: xxh3_64(name.as_bytes()), inverse_weight }
    }

    /// Lower is better.
    #[inline]
    pub(super) fn cost(self, key: KeyHash) -> u64 {
        self.weighted(negative_log2(pair_hash(key.0, self.name)))
    }

    /// The cost, unless it is certain to be above `limit`. In a search for the least cost almost all members are, and
    /// need no logarithm: `-log2(u) >= 1 - u`, and the line between two entries lies above the curve.
    #[inline]
    pub(super) fn cost_within(self, key: KeyHash, limit: u64) -> Option<u64> {
        let hash = pair_hash(key.0, self.name);
        (self.weighted(!hash >> (64 - FRACTION)) <= limit).then(|| self.weighted(negative_log2(hash)))
    }

    /// At most 2^63: 2^38 · 2^64 / 2^39.
    #[inline]
    fn weighted(self, log: u64) -> u64 {
        ((u128::from(log) * u128::from(self.inverse_weight)) >> (FRACTION + 7)) as u64
    }
}

/// XXH3-64 of both hashes, little-endian, the key's first.
#[inline]
fn pair_hash(key: u64, member: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&member.to_le_bytes());
    xxh3_64(&bytes)
}

/// `-log2(hash / 2^64)`, with [`FRACTION`] bits after the point; at most 2^38. Falls when the hash grows, or stays.
#[inline]
fn negative_log2(hash: u64) -> u64 {
    // Zero has no logarithm, so the lowest bit is always taken as set.
    let hash = hash | 1;
    let zeros = hash.leading_zeros();
    // A 1 in the highest bit, then the mantissa: 8 bits choose the cell, 32 more the place inside it.
    let mantissa = hash << zeros;
    let cell = (mantissa >> (63 - CELL_BITS)) as usize & (CELLS - 1);
    let inside = (mantissa >> (63 - CELL_BITS - 32)) & 0xffff_ffff;
    let (low, high) = (LOG2[cell], LOG2[cell + 1]);
    let log = low + (((high - low) * inside) >> 32);
    (u64::from(zeros + 1) << FRACTION) - log
}

const fn log2_table() -> [u64; CELLS + 1] {
    let mut table = [1 << FRACTION; CELLS + 1];
    let mut cell = 0;
    while cell < CELLS {
        table[cell] = log2_of((1 << 63) | ((cell as u64) << (63 - CELL_BITS)));
        cell += 1;
    }
    table
}

/// The logarithm of a number in [1, 2) with 63 bits after the point, a bit per squaring: a square of 2 or more says
/// that the next bit is set.
const fn log2_of(mut number: u64) -> u64 {
    let mut log = 0;
    let mut bit = 0;
    while bit < FRACTION {
        let square = (number as u128 * number as u128) >> 63;
        let carry = (square >> 64) as u64;
        number = (square >> carry) as u64;
        log = log << 1 | carry;
        bit += 1;
    }
    log
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn as_float(hash: u64) -> f64 {
        negative_log2(hash) as f64 / (1u64 << FRACTION) as f64
    }

    #[test]
    fn the_ends() {
        assert_eq!(negative_log2(0), 64 << FRACTION);
        assert_eq!(negative_log2(1 << 63), 1 << FRACTION);
        assert_eq!(negative_log2(1 << 62), 2 << FRACTION);
        assert!(as_float(u64::MAX) < 1e-9);
        let lightest = MemberHash { name: 0, inverse_weight: u64::MAX };
        assert!(lightest.weighted(64 << FRACTION) <= 1 << 63);
    }

    proptest! {
        #[test]
        fn close_to_the_logarithm(hash in 1u64..) {
            let exact = 64.0 - (hash as f64).log2();
            prop_assert!((as_float(hash) - exact).abs() < 2.8e-6, "{} {exact}", as_float(hash));
        }

        #[test]
        fn at_least_the_distance_to_one(hash: u64) {
            prop_assert!(negative_log2(hash) >= !hash >> (64 - FRACTION));
        }

        #[test]
        fn cost_within_its_limit(key: u64, name: u64, weight in 1u32.., limit: u64) {
            let member = MemberHash { name, inverse_weight: u64::MAX / u64::from(weight) };
            let cost = member.cost(KeyHash(key));
            for limit in [limit, cost, cost.saturating_sub(1)] {
                let within = member.cost_within(KeyHash(key), limit);
                prop_assert!(within == Some(cost) || (within.is_none() && cost > limit));
            }
        }

        #[test]
        fn falls(low: u64, high: u64) {
            prop_assume!(low <= high);
            prop_assert!(negative_log2(low) >= negative_log2(high));
        }

        #[test]
        fn falls_between_neighbours(hash in 1u64..) {
            prop_assert!(negative_log2(hash - 1) >= negative_log2(hash));
        }
    }
}
