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

/// Messages that one connection may have handled in a turn.
const MESSAGES_PER_TURN: u32 = 64;

/// And the time they may take. A message is 0.3 to 5 µs; one that inflates to 64 KiB is some 60.
const TIME_PER_TURN: Duration = Duration::from_micros(200);

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
    /// From the second message on: most connections have one, and it costs no look at the clock.
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
    pub(crate) fn begin() -> Self {
        Self { messages: 0, started: None }
    }

    /// A message was handled; whether the next one may be in this turn.
    pub(crate) fn count(&mut self) -> ControlFlow<()> {
        self.messages += 1;
        let started = *self.started.get_or_insert_with(Instant::now);
        match self.messages >= MESSAGES_PER_TURN || started.elapsed() > TIME_PER_TURN {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
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
