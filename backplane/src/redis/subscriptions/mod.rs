//! The registry of subscriptions: what this node is subscribed to, where, and what it has handed over of each channel.
//!
//! The way of a publication: a link calls [`Subscriber::message`]; the entry of its channel is found by the bytes of
//! its name; its sequence hands it to the sink, or finds that something is missing and asks for it.
//!
//! - `sequence`, `repair`, `cause`, `outlet`: one channel's order, as a state machine without I/O or clock. `simulation` tests it.
//! - `entry`: a channel in the registry. `registry`: what the tasks share.
//! - `work`: what is left for the two tasks. `flow`: how much is under way.
//! - `keeper`: the task that sends subscriptions in batches, and has the timers. `asker`: the task that asks the server.
//! - `moving`: subscriptions that another process goes on with. `counters`, `outage`: for the metrics.

mod asker;
mod cause;
mod counters;
mod entry;
mod flow;
mod keeper;
mod moving;
mod outage;
mod outlet;
mod registry;
mod repair;
mod sequence;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod work;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

pub use counters::{GapsTold, Repairs, SubscriptionCounters, Undecodable};
use entry::Entry;
use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use keeper::LINGER;
use registry::Registry;
use tokio::{sync::oneshot, task::JoinHandle};
use work::Due;

use super::{
    contract::{Changed, LinkId, Seat, Session, Subscriber, Subscribing},
    envelope::Message,
    history::Reader,
    names::Prefix,
};
use crate::{BackplaneError, Channel, Sink};

/// A subscription that is not confirmed by then has failed.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(3);

/// The subscriptions of a node.
#[derive(Debug)]
pub(crate) struct Subscriptions {
    registry: Arc<Registry>,
    tasks: [JoinHandle<()>; 2],
}

impl Subscriptions {
    /// Begins to work; to be called on a Tokio runtime.
    pub(crate) fn start(
        prefix: Prefix,
        subscribing: Arc<dyn Subscribing>,
        reader: Reader,
        sink: Arc<dyn Sink>,
    ) -> Self {
        let registry = Arc::new(Registry::new(prefix, subscribing, reader, sink));
        let keeper = tokio::spawn(keeper::run(Arc::clone(&registry)));
        let asker = tokio::spawn(asker::run(Arc::clone(&registry)));
        Self { registry, tasks: [keeper, asker] }
    }

    /// Ready when the server has confirmed the subscription and the channel's position is known.
    ///
    /// # Errors
    /// Unavailable: at once while the channel's server is away, or after 3 s.
    pub(crate) fn subscribe(
        &self,
        channel: &Channel,
        generation: u64,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        let is_there =
            || self.registry.find_tag(channel.as_str().as_bytes())?.locked(|it| it.is_ready().then_some(()));
        if let Err(error) = self.registry.subscribing.availability(channel.as_str())
            && is_there().is_none()
        {
            return future::ready(Err(error)).boxed();
        }
        loop {
            let entry = self.registry.find_or_insert(channel);
            match self.registry.want(&entry, generation) {
                Wanted::Ready => return future::ready(Ok(())).boxed(),
                Wanted::Waits(confirmed) => return self.confirmation(entry, generation, confirmed).boxed(),
                // It was taken out of the registry between the two.
                Wanted::Closed => {}
            }
        }
    }

    /// Ends a generation and those before it, in 5 s, unless a newer one is subscribed.
    pub(crate) fn unsubscribe(&self, channel: &Channel, generation: u64) {
        if let Some(entry) = self.registry.find_tag(channel.as_str().as_bytes()) {
            self.registry.leave(&entry, generation);
        }
    }

    /// Ends the tasks. The links hold this registry, and it holds them: somebody has to.
    pub(crate) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    pub(crate) fn counters(&self) -> SubscriptionCounters {
        SubscriptionCounters { outage: self.registry.outage.last(), ..self.registry.counters.read() }
    }

    fn confirmation(
        &self,
        entry: Arc<Entry>,
        generation: u64,
        confirmed: oneshot::Receiver<()>,
    ) -> impl Future<Output = Result<(), BackplaneError>> + Send + 'static {
        let registry = Arc::clone(&self.registry);
        async move {
            if let Ok(Ok(())) = tokio::time::timeout(SUBSCRIBE_DEADLINE, confirmed).await {
                return Ok(());
            }
            registry.leave(&entry, generation);
            Err(BackplaneError::Unavailable("the server did not confirm the subscription".into()))
        }
    }
}

enum Wanted {
    Ready,
    Waits(oneshot::Receiver<()>),
    Closed,
}

impl Registry {
    fn want(&self, entry: &Arc<Entry>, generation: u64) -> Wanted {
        let (wanted, is_placed) = entry.locked(|state| {
            if state.is_closed {
                return (Wanted::Closed, true);
            }
            state.generation = state.generation.max(generation);
            if !std::mem::replace(&mut state.is_wanted, true) {
                self.counters.wanted.fetch_add(1, Relaxed);
            }
            if state.is_ready() {
                return (Wanted::Ready, true);
            }
            let (confirm, confirmed) = oneshot::channel();
            state.waiting.retain(|waiting| !waiting.is_closed());
            state.waiting.push(confirm);
            (Wanted::Waits(confirmed), state.holds.is_some() || state.sent.is_some())
        });
        if !is_placed {
            self.order(|work| work.subscribe.push(Arc::clone(entry)));
        }
        wanted
    }

    fn leave(&self, entry: &Arc<Entry>, generation: u64) {
        let begins = entry.locked(|state| {
            if generation < state.generation || state.is_closed || !state.is_wanted {
                return None;
            }
            state.is_wanted = false;
            self.counters.wanted.fetch_sub(1, Relaxed);
            (!std::mem::replace(&mut state.is_leaving, true)).then_some(state.generation)
        });
        if let Some(generation) = begins {
            let due = Due::Leave { generation };
            self.order(|work| work.timers.push((Instant::now() + LINGER, Arc::clone(entry), due)));
        }
    }
}

impl Subscriber for Subscriptions {
    fn up(&self, link: LinkId, session: Session) {
        self.registry.set_session(link, session, true);
        self.registry.order(|work| work.is_all = true);
    }

    fn down(&self, link: LinkId, session: Session) {
        self.registry.set_session(link, session, false);
        self.registry.order(|work| work.is_all = true);
    }

    fn routes_changed(&self, changed: &Changed) {
        self.registry.order(|work| work.look_at(changed));
    }

    fn refused(&self, link: LinkId, session: Session) {
        if let Some(flow) = self.registry.flow(Seat { link, session }) {
            flow.note_answer();
        }
    }

    fn confirmed(&self, link: LinkId, session: Session, channel: &[u8]) {
        let (registry, seat) = (&self.registry, Seat { link, session });
        let Some(entry) = registry.find(channel) else {
            // Ended while the confirmation was under way.
            return registry.end(seat, channel);
        };
        let mut left = None;
        registry.advance(&entry, |state, _| {
            if state.sent.is_none_or(|sent| sent.seat != seat || sent.is_queued) || state.is_closed {
                left = (state.holds != Some(seat)).then_some(seat);
                return None;
            }
            state.sent = None;
            registry.arrived(seat, true);
            left = state.holds.filter(|old| *old != seat);
            // Publications between the last here and the first there may be missing.
            registry.let_go(&entry, state);
            state.holds = Some(seat);
            registry.is_back(state);
            registry.counters.confirmed.fetch_add(1, Relaxed);
            if std::mem::replace(&mut state.was_confirmed, true) {
                registry.counters.resubscribed.fetch_add(1, Relaxed);
            }
            state.sequence.confirmed()
        });
        if let Some(seat) = left {
            registry.end(seat, channel);
        }
    }

    fn ended(&self, link: LinkId, session: Session, channel: &[u8]) {
        let (registry, seat) = (&self.registry, Seat { link, session });
        let Some(entry) = registry.find(channel) else { return };
        let is_unasked = entry.locked(|state| {
            let is_unasked = state.holds == Some(seat) && !state.is_closed;
            if is_unasked {
                registry.lose(&entry, state);
            }
            is_unasked
        });
        if is_unasked {
            registry.order(|work| work.subscribe.push(entry));
        }
    }

    fn message(&self, link: LinkId, session: Session, channel: &[u8], payload: &[u8]) {
        let registry = &self.registry;
        registry.counters.received.fetch_add(1, Relaxed);
        let Some(entry) = registry.find(channel) else {
            registry.counters.unknown_channel.fetch_add(1, Relaxed);
            return;
        };
        let message = match Message::decode(payload) {
            Ok(message) => message,
            Err(error) => return registry.undecodable(&entry.channel, error),
        };
        registry.advance(&entry, |state, delivery| {
            if state.holds != Some(Seat { link, session }) {
                registry.counters.unknown_channel.fetch_add(1, Relaxed);
                return None;
            }
            match message {
                Message::Publication(envelope) => state.sequence.arrived(envelope, delivery),
                Message::Presence(event) => {
                    delivery.presence(event);
                    None
                }
            }
        });
    }
}
