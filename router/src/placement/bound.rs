//! How much load a member may have: its share of the total by weight, times a factor (Mirrokni, Thorup,
//! Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016).

use std::num::NonZeroU32;

/// Load that every member may have, whatever its share. With 20 connections in all the bound of three nodes would be
/// 9: the clients of one room would be torn apart although no node is busy. 64 idle connections are less than 0.1 MB
/// and no measurable CPU.
pub const LOAD_FLOOR: u64 = 64;

/// How far above its share a member may be, in hundredths: 125 is 1.25.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadFactor(u32);

/// Below 1 nobody would be under the bound when all have their share; 100 is the same as no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a load factor is between 1 and 100")]
pub struct LoadFactorError;

/// The bound at one total load.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Hundredths of the load that all live members may have together.
    allowed: u128,
    /// Sum of weights, in hundredths.
    weights: u128,
}

impl LoadFactor {
    /// A quarter above the share. Mirrokni et al.: a key changes its node O(1/ε²) times per join or leave for a
    /// factor 1+ε; 1.25 is the smallest round factor whose overflow is rare with random keys (see the ADR).
    pub const DEFAULT: Self = Self(125);

    /// No more than the share.
    pub const EVEN: Self = Self(100);

    pub const fn from_hundredths(hundredths: u32) -> Result<Self, LoadFactorError> {
        if hundredths < 100 || hundredths > 10_000 {
            return Err(LoadFactorError);
        }
        Ok(Self(hundredths))
    }

    pub const fn hundredths(self) -> u32 {
        self.0
    }

    /// `total` is the load of all live members, the client to be placed included; `weight_total` their weights.
    pub fn bound(self, total: u64, weight_total: u64) -> Bound {
        Bound { allowed: u128::from(self.0) * u128::from(total), weights: u128::from(weight_total) * 100 }
    }
}

impl Bound {
    /// Whether a member with this load may have one more: `load < ceil(factor · total · weight / weights)`, which for
    /// whole loads is the same without `ceil`, and then without division.
    pub fn admits(&self, load: u64, weight: NonZeroU32) -> bool {
        // 2^64 · 100 · 2^64 does not fit, but no total of weights or of connections comes near 2^56.
        load < LOAD_FLOOR
            || u128::from(load).saturating_mul(self.weights)
                < self.allowed.saturating_mul(u128::from(weight.get()))
    }

    /// The most that a member may have.
    pub fn most(&self, weight: NonZeroU32) -> u64 {
        let share = self.allowed.saturating_mul(u128::from(weight.get())).div_ceil(self.weights.max(1));
        u64::try_from(share).unwrap_or(u64::MAX).max(LOAD_FLOOR)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn weight(weight: u32) -> NonZeroU32 {
        NonZeroU32::new(weight).unwrap()
    }

    #[test]
    fn most() {
        let check = |hundredths, total, own: u32, all, expect| {
            let bound = LoadFactor::from_hundredths(hundredths).unwrap().bound(total, all);
            assert_eq!(bound.most(weight(own)), expect, "{hundredths} {total} {own} {all}");
        };
        check(125, 100_000, 1, 75, 1667);
        check(125, 100_000, 2, 75, 3334);
        check(125, 300, 1, 3, 125);
        check(100, 300, 1, 3, 100);
        check(100, 301, 1, 3, 101);
        check(125, 4, 1, 3, LOAD_FLOOR);
        check(125, 0, 1, 1, LOAD_FLOOR);
    }

    #[test]
    fn factors() {
        for bad in [0, 99, 10_001] {
            assert_eq!(LoadFactor::from_hundredths(bad), Err(LoadFactorError));
        }
        assert_eq!(LoadFactor::from_hundredths(100).unwrap().hundredths(), 100);
    }

    proptest! {
        #[test]
        fn admits_up_to_most(
            hundredths in 100u32..=10_000, total in 0u64..1 << 40, own in 1u32.., more in 0u64..1 << 40,
            away in -2i64..=2,
        ) {
            let bound = LoadFactor::from_hundredths(hundredths).unwrap().bound(total, u64::from(own) + more);
            let most = bound.most(weight(own));
            let load = most.saturating_add_signed(away);
            prop_assert_eq!(bound.admits(load, weight(own)), load < most);
        }
    }
}
