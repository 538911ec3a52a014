//! What clients publish over their connection: rates and order, whatever the protocol.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::atomic::Ordering,
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
pub(crate) type Legacies = HashMap<ConnectionId, Queue>;

/// Called with the outcome of a publish, from whichever thread learns it; the protocol is told what it gives back.
pub(crate) type Ended = Box<dyn FnOnce(Result<(), PublishError>) -> Result<(), PublishError> + Send>;

/// A publish that waits for the one before it.
pub(crate) struct Waiting {
    request: PublishRequest,
    ended: Option<Ended>,
}

/// Publishes of one connection to one channel, in order, that are sent to the backplane together: a backlog takes one answer
/// of it, not one for each.
struct Flight {
    first: Waiting,
    /// Most are alone.
    rest: Vec<Waiting>,
}

/// State of a connection that publishes.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    messages: Budget,
    bytes: Budget,
    waiting: Queue,
    /// What the publish under way holds; 0 when there is none.
    under_way_bytes: usize,
    /// So much waits that the connection is not read.
    paused: bool,
}

/// What came while publishes were under way. A connection whose publishes wait is read on, since its pongs and its close
/// frame come between them, until this is full; then its own sending waits, in the kernel.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    requests: VecDeque<Waiting>,
    bytes: usize,
    /// Of one who left: what the publish under way holds.
    under_way_bytes: usize,
}

/// Publishes of one connection that may wait: as many bytes as a channel takes on its way out, and so many messages that
/// their own 200 bytes or so add little to that. One read more may be in it: it stops a connection's reading, not the
/// messages that were read already.
const WAITING_BYTES_MAX: usize = 64 * 1024;
const WAITING_MESSAGES_MAX: usize = 64;

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
    /// What it owes of both rates, for another process. `None`: publishes are under way.
    pub(crate) fn moving(&self, now: Duration) -> Option<(u32, u32)> {
        let is_idle = self.under_way_bytes == 0 && self.waiting.requests.is_empty() && !self.paused;
        is_idle.then(|| (self.messages.owed(now), self.bytes.owed(now)))
    }

    pub(crate) fn owing(messages: Budget, bytes: Budget) -> Self {
        Self { messages, bytes, ..Self::default() }
    }

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

impl Queue {
    fn push(&mut self, next: Waiting) {
        self.bytes += next.cost();
        self.requests.push_back(next);
    }

    /// The next, with all behind it that are for the same channel.
    fn pop_flight(&mut self) -> Option<Flight> {
        let first = self.requests.pop_front()?;
        let other = |next: &Waiting| next.request.channel != first.request.channel;
        let same = self.requests.iter().position(other).unwrap_or(self.requests.len());
        let flight = Flight { rest: self.requests.drain(..same).collect(), first };
        self.bytes -= flight.cost();
        Some(flight)
    }

    fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX || self.requests.len() >= WAITING_MESSAGES_MAX
    }

    /// Whether there is room for about as much again as may wait.
    fn has_room(&self) -> bool {
        self.bytes <= WAITING_BYTES_MAX / 2 && self.requests.len() <= WAITING_MESSAGES_MAX / 2
    }
}

impl Waiting {
    /// Bytes that it holds, about.
    fn cost(&self) -> usize {
        size_of::<Self>() + self.request.payload.bytes().len()
    }
}

impl Flight {
    fn cost(&self) -> usize {
        self.first.cost() + self.rest.iter().map(Waiting::cost).sum::<usize>()
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
    /// Publishes have ended, and these have failed; the next ones of the connection go.
    pub(crate) fn published(&mut self, mut failed: Vec<PublishError>) {
        loop {
            for error in failed {
                self.tell_protocol(Event::PublishFailed(error));
            }
            let Some(next) = self.next_to_publish() else { break };
            match self.publish(next) {
                Some(ended) => failed = ended,
                None => return,
            }
        }
        if let Some(publisher) = self.publisher() {
            publisher.under_way_bytes = 0;
        }
    }

    /// Whether so many publishes of the connection wait that it is not read.
    pub(crate) fn is_publishing_paused(&self) -> bool {
        let publisher = self.open().and_then(|open| open.rare.as_ref()?.publisher.as_ref());
        publisher.is_some_and(|publisher| publisher.paused)
    }

    /// A connection that publishes has left: what it sent before goes on, one after the other. What is under way cannot be
    /// taken back, so it counts whether or not there is room; what waits for it is dropped where there is none.
    pub(crate) fn publish_rest(&mut self, publisher: Publisher) {
        let Publisher { waiting, under_way_bytes, .. } = publisher;
        if under_way_bytes == 0 {
            return;
        }
        let max = self.core.shared.node.config().limits.left_behind_bytes.bytes();
        let node_wide = &self.core.shared.metrics.node.left_behind_bytes;
        let bytes = under_way_bytes + waiting.bytes;
        let fits = node_wide.fetch_add(bytes, Ordering::Relaxed) + bytes <= max;
        let legacy = match fits {
            true => Queue { under_way_bytes, ..waiting },
            false => {
                node_wide.fetch_sub(waiting.bytes, Ordering::Relaxed);
                let lost = waiting.requests.len() as u64;
                self.core.metrics.messages_dropped.add(DropReason::PublishFailed, lost);
                Queue { under_way_bytes, ..Queue::default() }
            }
        };
        // The end of what is under way brings `published`.
        self.core.legacies.insert(self.id, legacy);
    }

    fn next_to_publish(&mut self) -> Option<Flight> {
        if let Some(publisher) = self.publisher() {
            let next = publisher.waiting.pop_flight();
            publisher.under_way_bytes = next.as_ref().map_or(0, Flight::cost);
            if publisher.paused && publisher.waiting.has_room() {
                publisher.paused = false;
                self.connections.set_paused(self.id, false);
            }
            return next;
        }
        let legacy = self.core.legacies.get_mut(&self.id)?;
        let next = legacy.pop_flight();
        let ended = std::mem::replace(&mut legacy.under_way_bytes, next.as_ref().map_or(0, Flight::cost));
        self.core.shared.metrics.node.left_behind_bytes.fetch_sub(ended, Ordering::Relaxed);
        if next.is_none() {
            self.core.legacies.remove(&self.id);
        }
        next
    }

    /// Publishes now, or after what the connection published before.
    pub(crate) fn start_publish(&mut self, request: PublishRequest, ended: Option<Ended>) {
        let Some(publisher) = self.publisher() else { return };
        let next = Waiting { request, ended };
        if publisher.under_way_bytes > 0 {
            publisher.waiting.push(next);
            if publisher.waiting.is_full() && !std::mem::replace(&mut publisher.paused, true) {
                self.connections.set_paused(self.id, true);
            }
            return;
        }
        let bytes = next.cost();
        match self.publish(Flight { first: next, rest: Vec::new() }) {
            Some(failed) => {
                for error in failed {
                    self.tell_protocol(Event::PublishFailed(error));
                }
            }
            None => {
                if let Some(publisher) = self.publisher() {
                    publisher.under_way_bytes = bytes;
                }
            }
        }
    }

    /// Publishes; what has failed of it when that is known at once, else [`published`](Self::published) is called with it.
    fn publish(&self, flight: Flight) -> Option<Vec<PublishError>> {
        let node = self.core.shared.node.clone();
        let publish = async move {
            let Flight { first, rest } = flight;
            if rest.is_empty() {
                let result = node.publish(first.request).await.map(drop);
                return end(first.ended, result).err().into_iter().collect();
            }
            let all = std::iter::once(first).chain(rest);
            let (requests, ended): (_, Vec<_>) = all.map(|next| (next.request, next.ended)).unzip();
            let results = node.publish_in_order(requests).await.into_iter();
            ended.into_iter().zip(results).filter_map(|(ended, it)| end(ended, it.map(drop)).err()).collect()
        };
        match self.core.begin(Box::pin(publish)) {
            Ok(failed) => Some(failed),
            Err(waits) => {
                let reply = self.reply(|ctx, failed| ctx.published(failed));
                self.core.shared.runtime.spawn(async move { reply(waits.await) });
                None
            }
        }
    }

    fn publisher(&mut self) -> Option<&mut Publisher> {
        self.open_mut()?.rare.as_mut()?.publisher.as_deref_mut()
    }
}

fn end(ended: Option<Ended>, result: Result<(), PublishError>) -> Result<(), PublishError> {
    match ended {
        Some(ended) => ended(result),
        None => result,
    }
}
