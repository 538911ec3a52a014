//! What clients publish over their connection: rates and order, whatever the protocol.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::Duration,
};

use tidegate_ops::budget::{Budget, Rate};
use tidegate_reactor::ConnectionId;

use super::{Ctx, protocol::Event};
use crate::{
    config::Limits,
    metrics::DropReason,
    node::{PublishError, PublishRequest},
};

/// What clients had sent before they left, while a publish of theirs was under way: it is still published.
#[derive(Debug, Default)]
pub(crate) struct Legacies {
    waiting: HashMap<ConnectionId, VecDeque<Waiting>>,
    bytes: usize,
}

/// What legacies of a shard may hold, those of 16 connections that had sent as much as they may at once; what is beyond is
/// dropped and counted. Else clients that come, publish and leave while the backplane hangs would fill the memory.
const LEGACY_BYTES_MAX: usize = 4 << 20;

/// Called when a publish was accepted, from whichever thread learns it.
pub(crate) type Accepted = Box<dyn FnOnce() + Send>;

/// A publish that waits for the one before it.
pub(crate) struct Waiting {
    request: PublishRequest,
    accepted: Option<Accepted>,
}

/// State of a connection that publishes.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    messages: Budget,
    bytes: Budget,
    /// What came while a publish was under way. Reading is paused then, so it is at most what one read held.
    waiting: VecDeque<Waiting>,
    under_way: bool,
}

/// What a connection may publish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) messages: Rate,
    pub(crate) bytes: Rate,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Takes a message with so many bytes from both rates, or nothing.
    pub(crate) fn take(&mut self, rates: Rates, now: Duration, bytes: usize) -> bool {
        let mut messages = self.messages;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let fits =
            messages.take(rates.messages, now, 1).is_ok() && self.bytes.take(rates.bytes, now, bytes).is_ok();
        if fits {
            self.messages = messages;
        }
        fits
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.request.payload.bytes().len()
    }
}

impl Legacies {
    /// Keeps what a connection leaves; how many publications there was no room for.
    fn leave(&mut self, id: ConnectionId, mut waiting: VecDeque<Waiting>) -> u64 {
        let all = waiting.len();
        let mut bytes = self.bytes;
        let fits = waiting.iter().take_while(|next| {
            bytes += next.bytes();
            bytes <= LEGACY_BYTES_MAX
        });
        let kept = fits.count();
        waiting.truncate(kept);
        self.bytes += waiting.iter().map(Waiting::bytes).sum::<usize>();
        if !waiting.is_empty() {
            self.waiting.insert(id, waiting);
        }
        (all - kept) as u64
    }

    fn next(&mut self, id: ConnectionId) -> Option<Waiting> {
        let next = self.waiting.get_mut(&id)?.pop_front();
        match &next {
            Some(next) => self.bytes -= next.bytes(),
            None => drop(self.waiting.remove(&id)),
        }
        next
    }
}

impl From<&Limits> for Rates {
    fn from(limits: &Limits) -> Self {
        let bytes_per_second = u32::try_from(limits.publish_bytes_per_second.bytes()).unwrap_or(u32::MAX);
        Self {
            messages: Rate::per_second(limits.publishes_per_second),
            bytes: Rate::per_second(bytes_per_second),
        }
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
        let dropped = self.core.legacies.leave(self.id, publisher.waiting);
        if dropped > 0 {
            self.core.metrics.messages_dropped.add(DropReason::Disconnected, dropped);
        }
    }

    fn next_to_publish(&mut self) -> Option<Waiting> {
        if let Some(publisher) = self.publisher() {
            return publisher.waiting.pop_front();
        }
        self.core.legacies.next(self.id)
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

#[cfg(test)]
mod tests {
    use tidegate_backplane::{Channel, Payload};

    use super::*;
    use crate::node::PublishHistory;

    fn waiting(bytes: usize) -> Waiting {
        let request = PublishRequest {
            channel: Channel::new("a").expect("a name"),
            event: None,
            payload: Payload::Binary(vec![0; bytes].into()),
            idempotency_key: None,
            sender: None,
            history: PublishHistory::Namespace,
        };
        Waiting { request, accepted: None }
    }

    /// The attacker's cost: who comes, publishes and leaves, again and again while the backplane hangs, has no more kept.
    #[test]
    fn legacies_are_bounded_in_bytes() {
        let mut legacies = Legacies::default();
        let id = |slot| ConnectionId { slot, generation: 1 };
        let mut dropped = 0;
        for slot in 0..100 {
            dropped += legacies.leave(id(slot), (0..4).map(|_| waiting(64 << 10)).collect());
        }
        assert_eq!((legacies.bytes, dropped), (LEGACY_BYTES_MAX, 400 - 64));
        while legacies.next(id(0)).is_some() {}
        assert_eq!(legacies.bytes, LEGACY_BYTES_MAX - (256 << 10));
        assert_eq!(legacies.leave(id(200), (0..4).map(|_| waiting(64 << 10)).collect()), 0);
    }
}
