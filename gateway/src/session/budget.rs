//! What one connection may cost the others: its part in a turn of the shard, and its budgets.
//!
//! The part in a turn is for fairness: what is beyond it is served after everyone else. The budgets are for the sum: what
//! is beyond them waits for the next tick, unread, so that TCP slows the sender. Nothing is refused here.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use tidegate_ops::budget::{Budget, Rate};

use crate::{config::Limits, metrics::Budgeted};

/// Messages that one connection may have handled in a turn, and the time they may take. A message is 0.3 to 5 µs; one that
/// inflates to 64 KiB is some 60. When 500 send too much at the same moment, one that does not waits for 500 reads and
/// first parts at worst: at 15 µs and 16 messages of 1.5 µs each, 20 ms. With 64 messages it were 55 ms. Messages that are
/// answered with an error are 3 µs, so while so many wait, a first part is smaller: 500 of 23 µs are 12 ms.
const MESSAGES_PER_TURN: u32 = 16;
const TIME_PER_TURN: Duration = Duration::from_micros(50);
const MESSAGES_PER_CROWDED_TURN: u32 = 4;

/// What a connection has used of its budgets. In every open connection: 8 bytes.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Budgets {
    pub(crate) messages: Budget,
    pub(crate) subscribes: Budget,
}

/// The rates of `limits.*`, as a shard asks for them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) messages: Rate,
    pub(crate) inflated_bytes: Rate,
    pub(crate) subscribes: Rate,
}

/// The part of a turn that a connection has left.
#[derive(Debug)]
pub(crate) struct Share {
    messages: u32,
    messages_max: u32,
    /// From the end of the second message on: most reads bring one.
    started: Option<Instant>,
}

impl From<&Limits> for Rates {
    fn from(limits: &Limits) -> Self {
        Self {
            messages: limits.messages(),
            inflated_bytes: limits.inflated_bytes(),
            subscribes: limits.subscribes(),
        }
    }
}

impl Share {
    pub(crate) fn begin(is_crowded: bool) -> Self {
        let messages_max = if is_crowded { MESSAGES_PER_CROWDED_TURN } else { MESSAGES_PER_TURN };
        Self { messages: 0, messages_max, started: None }
    }

    /// A message was handled; whether the next one may be in this turn.
    pub(crate) fn count(&mut self) -> ControlFlow<()> {
        self.messages += 1;
        match self.started {
            _ if self.messages >= self.messages_max => ControlFlow::Break(()),
            Some(started) if started.elapsed() > TIME_PER_TURN => ControlFlow::Break(()),
            Some(_) => ControlFlow::Continue(()),
            None => {
                self.started = (self.messages > 1).then(Instant::now);
                ControlFlow::Continue(())
            }
        }
    }
}

impl Budgets {
    /// What stands in the way of one more message now.
    pub(crate) fn spent(self, inflated_bytes: Budget, rates: &Rates, now: Duration) -> Option<Budgeted> {
        if self.messages.is_spent(rates.messages, now) {
            return Some(Budgeted::Messages);
        }
        inflated_bytes.is_spent(rates.inflated_bytes, now).then_some(Budgeted::InflatedBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_turn_is_16_messages_at_most() {
        let counted = |mut share: Share| (1..=1_000).take_while(|_| share.count().is_continue()).count();
        let alone = counted(Share::begin(false));
        assert!(alone < MESSAGES_PER_TURN as usize, "{alone}");
        let crowded = counted(Share::begin(true));
        assert!(crowded < MESSAGES_PER_CROWDED_TURN as usize, "{crowded}");
    }

    /// The attacker's cost: 10 seconds of nothing but messages are a second's worth at once and ten seconds' worth.
    #[test]
    fn a_flood_is_served_at_its_rate() {
        let limits = Limits::default();
        let rates = Rates::from(&limits);
        let mut budgets = Budgets::default();
        let mut served = 0;
        // In ticks of a quarter of a second, as a shard's clock goes; in each as many turns as it takes.
        for tick in 0..40 {
            let now = Duration::from_millis(250) * tick;
            while budgets.spent(Budget::default(), &rates, now).is_none() {
                budgets.messages.spend(rates.messages, now, 1);
                served += 1;
            }
        }
        assert!((2_600..=2_760).contains(&served), "{served}");
    }

    #[test]
    fn what_was_inflated_is_paid_before_the_next() {
        let rates = Rates::from(&Limits::default());
        let mut inflated = Budget::default();
        let now = Duration::from_secs(1);
        inflated.spend(rates.inflated_bytes, now, 64 << 10);
        assert_eq!(Budgets::default().spent(inflated, &rates, now), None);
        inflated.spend(rates.inflated_bytes, now, 1 << 20);
        assert_eq!(Budgets::default().spent(inflated, &rates, now), Some(Budgeted::InflatedBytes));
        // 1088 KiB at 256 KiB a second, of which a second's worth may be owed.
        assert_eq!(Budgets::default().spent(inflated, &rates, now + Duration::from_millis(3_251)), None);
    }
}
