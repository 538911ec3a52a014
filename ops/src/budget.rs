//! Rates: so many a second, with so many at once. One arithmetic for a connection ([`Budget`]), for what many threads
//! share ([`SharedBudget`]) and for addresses ([`AddressBudgets`]).
//!
//! What was taken is a debt in time that passing time pays: a leaky bucket in its 'generic cell rate' form. It needs no
//! refilling, no lock, and one number.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_reactor::TICK;

const SECOND_NS: u64 = 1_000_000_000;

/// So many a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: u32,
    pub at_once: u32,
}

impl Rate {
    /// So many a second, with one second's worth at once.
    pub const fn per_second(per_second: u32) -> Self {
        Self { per_second, at_once: per_second }
    }

    pub const fn is_unlimited(self) -> bool {
        self.per_second == 0
    }

    /// With at least so many at once as come during a tick of a shard's clock, which stands still meanwhile: with fewer,
    /// who keeps to the rate would be refused.
    fn on_ticks(self) -> Self {
        let per_tick = u64::from(self.per_second) * TICK.as_millis() as u64;
        // One more, since what comes is spread unevenly over the ticks.
        Self { at_once: self.at_once.max(per_tick.div_ceil(1_000) as u32 + 1), ..self }
    }

    fn cost_ns(self, amount: u32) -> u64 {
        (SECOND_NS * u64::from(amount)).div_ceil(u64::from(self.per_second))
    }

    /// The debt after `amount` was taken, all or nothing; else how long until it may be. More than may be had at once is
    /// let through when nothing is owed, or it never would be.
    fn take(self, debt_ns: u64, amount: u32) -> Result<u64, Duration> {
        let after_ns = debt_ns.saturating_add(self.cost_ns(amount));
        let debt_max_ns = self.cost_ns(self.at_once.max(1));
        match after_ns <= debt_max_ns || debt_ns == 0 {
            true => Ok(after_ns),
            false => Err(Duration::from_nanos((after_ns - debt_max_ns).min(debt_ns))),
        }
    }
}

/// What one connection has used of a rate: four bytes, nothing while it stays within it.
///
/// The moment until which what was taken is paid for, in units of 10 µs on a clock of 11.9 hours. A moment that is
/// further away than any debt can be was passed long ago: nothing is owed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget(u32);

const UNIT_NS: u64 = 10_000;

/// No debt is longer: an hour. (One message of 64 KiB at the lowest rate in bytes, which is that, is a second.)
const DEBT_UNITS_MAX: u32 = 360_000_000;

impl Budget {
    /// Takes `amount` of what the rate allows, or says how long until it may be taken. `now` is on a clock that does not go
    /// back; it may be as coarse as a shard's ticks.
    pub fn take(&mut self, rate: Rate, now: Duration, amount: u32) -> Result<(), Duration> {
        if rate.is_unlimited() {
            return Ok(());
        }
        let now_units = units(now);
        let debt_ns = rate.on_ticks().take(self.debt_ns(now_units), amount)?;
        let debt_units = debt_ns.div_ceil(UNIT_NS).min(u64::from(DEBT_UNITS_MAX));
        self.0 = now_units.wrapping_add(debt_units as u32);
        Ok(())
    }

    /// Takes `amount` whatever is owed: it was spent already, and what follows waits for it.
    pub fn spend(&mut self, rate: Rate, now: Duration, amount: u32) {
        if !rate.is_unlimited() {
            let now_units = units(now);
            let debt_ns = self.debt_ns(now_units).saturating_add(rate.cost_ns(amount));
            let debt_units = debt_ns.div_ceil(UNIT_NS).min(u64::from(DEBT_UNITS_MAX));
            self.0 = now_units.wrapping_add(debt_units as u32);
        }
    }

    /// Whether more is owed than may be had at once.
    pub fn is_spent(&self, rate: Rate, now: Duration) -> bool {
        if rate.is_unlimited() {
            return false;
        }
        let rate = rate.on_ticks();
        self.debt_ns(units(now)) >= rate.cost_ns(rate.at_once.max(1))
    }

    /// What is owed at a moment, in units of 10 µs, for somebody with another clock.
    pub fn owed(self, now: Duration) -> u32 {
        (self.debt_ns(units(now)) / UNIT_NS) as u32
    }

    /// The same on another clock.
    pub fn owing(now: Duration, units_owed: u32) -> Self {
        match units_owed {
            0 => Self::default(),
            owed => Self(units(now).wrapping_add(owed.min(DEBT_UNITS_MAX))),
        }
    }

    fn debt_ns(self, now_units: u32) -> u64 {
        match self.0.wrapping_sub(now_units) {
            // Never used, or passed.
            _ if self.0 == 0 => 0,
            debt_units if debt_units > DEBT_UNITS_MAX => 0,
            debt_units => u64::from(debt_units) * UNIT_NS,
        }
    }
}

/// Without the division of 128 bits that `as_nanos` would need: this is asked several times for each message.
fn units(now: Duration) -> u32 {
    (now.as_secs() * (SECOND_NS / UNIT_NS) + u64::from(now.subsec_nanos()) / UNIT_NS) as u32
}

/// What many threads take from one rate. 64 bits of nanoseconds hold 584 years.
#[derive(Debug, Default)]
pub struct SharedBudget {
    paid_until_ns: AtomicU64,
}

impl SharedBudget {
    /// Takes `amount` now, or says how long until it may be taken.
    pub fn take(&self, rate: Rate, amount: u32) -> Result<(), Duration> {
        match rate.is_unlimited() {
            true => Ok(()),
            false => self.take_at(rate, process_ns(), amount),
        }
    }

    /// Whether one may be taken now, or how long until it may; nothing is taken.
    pub fn check(&self, rate: Rate) -> Result<(), Duration> {
        if rate.is_unlimited() {
            return Ok(());
        }
        let debt_ns = self.paid_until_ns.load(Ordering::Relaxed).saturating_sub(process_ns());
        rate.take(debt_ns, 1).map(drop)
    }

    fn take_at(&self, rate: Rate, now_ns: u64, amount: u32) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        let taken = |paid_until_ns: u64| match rate.take(paid_until_ns.saturating_sub(now_ns), amount) {
            Ok(debt_ns) => Some(now_ns.saturating_add(debt_ns)),
            Err(until) => {
                wait = until;
                None
            }
        };
        match self.paid_until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken) {
            Ok(_) => Ok(()),
            Err(_) => Err(wait),
        }
    }
}

fn process_ns() -> u64 {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(STARTED.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// One rate for each client address, in a fixed size: two rows of 8,192 budgets of 8 bytes are 128 KiB.
///
/// An address has a budget in each row, by two hashes, and shares them with others: it is refused only when both are
/// spent. With 100 attacking addresses that happens to 1 in 6,700 of the others; with one, to 1 in 67 million.
#[derive(Debug)]
pub struct AddressBudgets {
    rows: [(RandomState, Box<[SharedBudget]>); 2],
    rate: Rate,
}

const ADDRESSES: usize = 8192;

impl AddressBudgets {
    pub fn new(rate: Rate) -> Self {
        let budgets = || (0..ADDRESSES).map(|_| SharedBudget::default()).collect();
        Self { rows: [(); 2].map(|()| (RandomState::new(), budgets())), rate }
    }

    /// Takes one for an address, or says how long until there is one. Those of one [`customer`] share it.
    pub fn take(&self, address: IpAddr) -> Result<(), Duration> {
        if self.rate.is_unlimited() {
            return Ok(());
        }
        let address = customer(address);
        let [first, second] = self.rows.each_ref().map(|(hasher, budgets)| {
            budgets[hasher.hash_one(address) as usize % ADDRESSES].take(self.rate, 1)
        });
        first.or(second)
    }
}

/// What counts as one client address: all of an IPv6 /64, which is what one customer has at least, are one.
#[must_use]
pub fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn as_many_at_once_and_then_the_rate() {
        let rate = Rate { per_second: 10, at_once: 3 };
        let budget = SharedBudget::default();
        let take = |ms: u64| budget.take_at(rate, ms * 1_000_000, 1);
        assert_eq!([take(0), take(0), take(0)], [Ok(()); 3]);
        assert_eq!(take(0), Err(100 * MS));
        assert_eq!([take(100), take(100)], [Ok(()), Err(100 * MS)]);
        // A pause saves up no more than may be had at once.
        assert_eq!([take(9_000), take(9_000), take(9_000)], [Ok(()); 3]);
        assert!(take(9_000).is_err());
    }

    #[test]
    fn all_or_nothing() {
        let rate = Rate::per_second(10);
        let budget = SharedBudget::default();
        let take = |ms: u64, amount| budget.take_at(rate, ms * 1_000_000, amount).is_ok();
        assert!(take(0, 6) && !take(0, 5) && take(0, 4));
        // More than a second's worth waits until nothing is owed, and is then owed whole.
        assert!(!take(500, 30) && take(1_000, 30) && !take(3_000, 1) && take(3_100, 1));
    }

    #[test]
    fn a_connections_budget_is_the_same_in_four_bytes() {
        assert_eq!(size_of::<Budget>(), 4);
        let rate = Rate::per_second(250);
        let mut budget = Budget::default();
        // Hours apart, over the end of its clock: a second's worth each time, whatever it was left at.
        for hours in [0, 1, 11, 12, 13, 35, 1_000] {
            let now = Duration::from_secs(3_600 * hours + 1);
            assert_eq!((0..1_000).filter(|_| budget.take(rate, now, 1).is_ok()).count(), 250, "{hours} h");
            assert_eq!(budget.take(rate, now, 1), Err(4 * MS));
            assert!(budget.is_spent(rate, now));
            assert!(budget.take(rate, now + 4 * MS, 1).is_ok());
        }
    }

    /// Of 1,000 a second with 3 at once, a clock that stands still for 250 ms refused 247 of 250.
    #[test]
    fn who_keeps_to_the_rate_is_not_refused_by_a_clock_of_ticks() {
        for rate in [Rate { per_second: 1_000, at_once: 3 }, Rate { per_second: 7, at_once: 1 }] {
            let mut budget = Budget::default();
            for nth in 0..10 * rate.per_second {
                let now = Duration::from_secs(1) + Duration::from_secs(1) / rate.per_second * nth;
                let ticks = now.as_millis() / TICK.as_millis();
                let taken = budget.take(rate, TICK * ticks as u32, 1);
                assert_eq!(taken, Ok(()), "number {nth} of {rate:?}");
            }
        }
    }

    #[test]
    fn what_was_spent_is_owed() {
        let rate = Rate::per_second(1_000);
        let mut budget = Budget::default();
        let now = Duration::from_secs(5);
        budget.spend(rate, now, 10_000);
        assert!(budget.is_spent(rate, now + 8_999 * MS));
        assert!(!budget.is_spent(rate, now + 9_001 * MS));
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = Rate::per_second(0);
        let mut budget = Budget::default();
        assert!((0..1000).all(|_| budget.take(rate, Duration::ZERO, u32::MAX).is_ok()));
        assert!((0..1000).all(|_| SharedBudget::default().take(rate, u32::MAX).is_ok()));
        assert!(!budget.is_spent(rate, Duration::ZERO));
    }

    /// The attacker's cost: its own address is out after what it may have, and takes nobody else's.
    #[test]
    fn an_address_spends_what_is_its_own() {
        let budgets = AddressBudgets::new(Rate { per_second: 1, at_once: 50 });
        let attacker: IpAddr = "2001:db8::1".parse().expect("an address");
        let neighbour: IpAddr = "2001:db8::ffff:1".parse().expect("an address");
        assert_eq!((0..10_000).filter(|_| budgets.take(attacker).is_ok()).count(), 50);
        assert!(budgets.take(neighbour).is_err(), "the same /64");
        let refused = (0..200u8).filter(|at| budgets.take(IpAddr::from([10, 0, 0, *at])).is_err()).count();
        assert_eq!(refused, 0);
        // An IPv4 address is the same in either form.
        let mapped: IpAddr = "::ffff:10.1.1.1".parse().expect("an address");
        assert_eq!((0..60).filter(|_| budgets.take(mapped).is_ok()).count(), 50);
        assert!(budgets.take(IpAddr::from([10, 1, 1, 1])).is_err());
    }
}
