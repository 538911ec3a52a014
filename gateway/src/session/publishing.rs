//! What clients publish over their connection: rates and order, whatever the protocol.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use tidegate_reactor::{ConnectionId, Tick};

use super::{Ctx, protocol::Event};
use crate::{
    config::Limits,
    node::{PublishError, PublishRequest},
};

/// What clients had sent before they left, while a publish of theirs was under way: it is still published.
pub(crate) type Legacies = HashMap<ConnectionId, VecDeque<Waiting>>;

/// Called when a publish was accepted, from whichever thread learns it.
pub(crate) type Accepted = Box<dyn FnOnce() + Send>;

/// A publish that waits for the one before it.
pub(crate) struct Waiting {
    request: PublishRequest,
    accepted: Option<Accepted>,
}

/// State of a connection that publishes.
#[derive(Debug)]
pub(crate) struct Publisher {
    messages_left: f64,
    bytes_left: f64,
    filled: Tick,
    /// What came while a publish was under way. Reading is paused then, so it is at most what one read held.
    waiting: VecDeque<Waiting>,
    under_way: bool,
}

/// What a connection may publish in a second, with one second's worth at once. 0: no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) messages: u32,
    pub(crate) bytes: usize,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Publisher {
    pub(crate) fn new(rates: Rates, now: Tick) -> Self {
        Self {
            messages_left: f64::from(rates.messages),
            bytes_left: rates.bytes as f64,
            filled: now,
            waiting: VecDeque::new(),
            under_way: false,
        }
    }

    /// Takes the tokens of a message, if there are any. The buckets hold one second's worth.
    pub(crate) fn take(&mut self, rates: Rates, now: Tick, bytes: usize) -> bool {
        let passed = now.since(self.filled).as_secs_f64();
        self.filled = now;
        let fill = |left: &mut f64, per_second: f64, cost: f64| {
            *left = (*left + passed * per_second).min(per_second);
            per_second == 0.0 || *left >= cost
        };
        let fits = fill(&mut self.messages_left, f64::from(rates.messages), 1.0)
            & fill(&mut self.bytes_left, rates.bytes as f64, bytes as f64);
        if fits {
            self.messages_left -= 1.0;
            self.bytes_left -= bytes as f64;
        }
        fits
    }
}

impl From<&Limits> for Rates {
    fn from(limits: &Limits) -> Self {
        Self { messages: limits.publishes_per_second, bytes: limits.publish_bytes_per_second.bytes() }
    }
}

impl Ctx<'_> {
    /// A publish has ended; the next ones of the connection go.
    pub(crate) fn published(&mut self, mut result: Result<(), PublishError>) {
        loop {
            if let Err(error) = result {
                self.tell_protocol(Event::PublishFailed(error));
            }
            let Some(next) = self.next_to_publish() else { break };
            match self.publish(next) {
                Some(ended) => result = ended,
                None => return,
            }
        }
        if let Some(publisher) = self.publisher() {
            publisher.under_way = false;
            self.connections.set_paused(self.id, false);
        }
    }

    /// A connection that publishes has left: what it sent before goes on, one after the other.
    pub(crate) fn publish_rest(&mut self, publisher: Publisher) {
        // It waits for a publish under way, whose end brings `published`.
        if !publisher.waiting.is_empty() {
            self.core.legacies.insert(self.id, publisher.waiting);
        }
    }

    fn next_to_publish(&mut self) -> Option<Waiting> {
        if let Some(publisher) = self.publisher() {
            return publisher.waiting.pop_front();
        }
        let next = self.core.legacies.get_mut(&self.id)?.pop_front();
        if next.is_none() {
            self.core.legacies.remove(&self.id);
        }
        next
    }

    /// Publishes now, or after what the connection published before.
    pub(crate) fn start_publish(&mut self, request: PublishRequest, accepted: Option<Accepted>) {
        let Some(publisher) = self.publisher() else { return };
        let next = Waiting { request, accepted };
        if publisher.under_way {
            publisher.waiting.push_back(next);
            return;
        }
        match self.publish(next) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.tell_protocol(Event::PublishFailed(error)),
            None => {
                if let Some(publisher) = self.publisher() {
                    publisher.under_way = true;
                }
                self.connections.set_paused(self.id, true);
            }
        }
    }

    /// Publishes; the outcome when it is there at once, else [`published`](Self::published) is called with it.
    fn publish(&self, next: Waiting) -> Option<Result<(), PublishError>> {
        let node = self.core.shared.node.clone();
        let publish = async move {
            node.publish(next.request).await?;
            if let Some(accepted) = next.accepted {
                accepted();
            }
            Ok(())
        };
        match self.core.begin(publish) {
            Ok(result) => Some(result),
            Err(waits) => {
                let reply = self.reply(|ctx, result| ctx.published(result));
                self.core.shared.runtime.spawn(async move { reply(waits.await) });
                None
            }
        }
    }

    fn publisher(&mut self) -> Option<&mut Publisher> {
        self.open_mut()?.rare.as_mut()?.publisher.as_mut()
    }
}
