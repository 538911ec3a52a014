//! The task that sends subscriptions, in batches, and has one clock for all channels.
//!
//! So many subscriptions of a session are under way at once; the next leave as those are confirmed. A confirmation that
//! is late while others come is only waited for.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    entry::{Entry, Sent},
    registry::{Registry, Removal},
    work::Due,
};
use crate::{
    Channel,
    redis::{contract::Seat, slot::slot_of},
};

/// A channel that nobody wants stays subscribed for this long: whoever reloads a page comes back within it.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// Channels in one command: about 30 KB, and 0.5 ms of the server's time.
const BATCH: usize = 512;

/// Batches closer together than this wait for more to pile up. A lone subscription does not wait.
const BATCH_INTERVAL: Duration = Duration::from_millis(1);

/// A confirmation that takes longer is not waited for: the channel is sent again.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// A link that confirmed nothing so many times is replaced.
const TRIES_MAX: u8 = 3;

struct Keeper {
    registry: Arc<Registry>,
    timers: BTreeMap<(Instant, Ticket), (Arc<Entry>, Due)>,
    timers_made: u64,
    subscribe: HashMap<Group, VecDeque<Arc<Entry>>>,
    unsubscribe: HashMap<Group, Vec<Channel>>,
    flushed_at: Instant,
}

/// Tells timers of one moment apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ticket {
    /// The address of the entry: a channel that ends takes its look with it.
    Look(usize),
    Other(u64),
}

/// Channels that may share a command.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Group {
    seat: Seat,
    slot: Option<u16>,
}

/// Runs until it is aborted.
pub(super) async fn run(registry: Arc<Registry>) {
    let mut keeper = Keeper {
        registry,
        timers: BTreeMap::new(),
        timers_made: 0,
        subscribe: HashMap::new(),
        unsubscribe: HashMap::new(),
        flushed_at: Instant::now(),
    };
    loop {
        let is_halted = *keeper.registry.is_halted.lock().unwrap_or_else(PoisonError::into_inner);
        let next = keeper.timers.keys().next().map(|(at, _)| *at).filter(|_| !is_halted);
        tokio::select! {
            () = keeper.registry.work_filled.notified() => {}
            () = until(next) => {}
        }
        let pause = BATCH_INTERVAL.saturating_sub(keeper.flushed_at.elapsed());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        keeper.turn();
    }
}

fn look_of(entry: &Arc<Entry>) -> Ticket {
    Ticket::Look(Arc::as_ptr(entry).addr())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Keeper {
    fn turn(&mut self) {
        let registry = Arc::clone(&self.registry);
        let is_halted = registry.is_halted.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_halted {
            return;
        }
        let work = std::mem::take(&mut *self.registry.work.lock().unwrap_or_else(PoisonError::into_inner));
        for (at, entry, due) in work.timers {
            self.remind(at, entry, due);
        }
        for (seat, channel) in work.unsubscribe {
            self.unsubscribe_at(seat, channel);
        }
        let is_concerned =
            |channel: &Channel| work.is_all || work.slots.contains(&slot_of(channel.as_str().as_bytes()));
        if work.is_all || !work.slots.is_empty() {
            self.registry.entries(is_concerned).iter().for_each(|entry| self.place(entry));
        }
        work.subscribe.iter().for_each(|entry| self.place(entry));
        let now = Instant::now();
        while let Some(timer) = self.timers.first_entry().filter(|timer| timer.key().0 <= now) {
            let (entry, due) = timer.remove();
            self.due(&entry, due, now);
        }
        self.flush();
    }

    fn remind(&mut self, at: Instant, entry: Arc<Entry>, due: Due) {
        self.timers_made += 1;
        let ticket = match due {
            Due::Look => look_of(&entry),
            _ => Ticket::Other(self.timers_made),
        };
        self.timers.insert((at, ticket), (entry, due));
    }

    fn due(&mut self, entry: &Arc<Entry>, due: Due, now: Instant) {
        let registry = Arc::clone(&self.registry);
        match due {
            Due::Confirmation(sent, answered) => self.unconfirmed(entry, sent, answered),
            Due::Leave { generation } => self.leave(entry, generation, now),
            Due::Grace { serial, top } => {
                registry.advance(entry, |state, delivery| state.sequence.grace_over(serial, top, delivery));
            }
            Due::Retry { serial } => {
                registry.advance(entry, |state, delivery| state.sequence.retry(serial, delivery));
            }
            Due::Look => registry.look(entry, now),
        }
    }

    /// Sends a channel's subscription to where it lives now, unless it is there or on its way.
    fn place(&mut self, entry: &Arc<Entry>) {
        let registry = &self.registry;
        let route = registry.subscribing.route(entry.channel.as_str());
        let seat = route.and_then(|route| {
            let session = registry.session(route.link)?;
            Some(Seat { link: route.link, session })
        });
        let sent = entry.locked(|state| {
            if state.is_closed {
                return None;
            }
            if state.holds.is_some_and(|seat| !registry.is_alive(seat)) {
                registry.lose(entry, state);
            }
            state.sent = state.sent.filter(|sent| registry.is_alive(sent.seat));
            let seat = seat?;
            if state.holds == Some(seat) || state.sent.is_some_and(|sent| sent.seat == seat) {
                return None;
            }
            state.sent = Some(Sent { seat, tries: 1, is_queued: true });
            state.sent
        });
        if let (Some(sent), Some(route)) = (sent, route) {
            let group = Group { seat: sent.seat, slot: route.slot };
            self.subscribe.entry(group).or_default().push_back(Arc::clone(entry));
        }
    }

    /// The time for a confirmation is over.
    fn unconfirmed(&mut self, entry: &Arc<Entry>, sent: Sent, answered: u64) {
        let is_late = entry.locked(|state| {
            let is_late = state.sent == Some(sent) && !state.is_closed;
            if is_late {
                state.sent = None;
            }
            is_late
        });
        if !is_late {
            return;
        }
        let registry = Arc::clone(&self.registry);
        registry.arrived(sent.seat, false);
        registry.counters.sent_again.fetch_add(1, Relaxed);
        let has_answered = registry.flow(sent.seat).is_some_and(|flow| flow.answered() > answered);
        let tries = if has_answered { 0 } else { sent.tries };
        if tries >= TRIES_MAX && registry.is_alive(sent.seat) {
            // What follows is `down`, and `up` with a new session. Until then nothing is sent on this one.
            registry.set_session(sent.seat.link, sent.seat.session, false);
            registry.order(|work| work.is_all = true);
            let why = "subscriptions were not confirmed";
            registry.subscribing.replace(sent.seat.link, sent.seat.session, why);
            return;
        }
        self.place(entry);
        entry.locked(|state| {
            if let Some(again) = state.sent.as_mut().filter(|again| again.seat == sent.seat) {
                again.tries = tries + 1;
            }
        });
    }

    fn leave(&mut self, entry: &Arc<Entry>, generation: u64, now: Instant) {
        match self.registry.remove(entry, generation) {
            Removal::Wanted => {}
            Removal::Newer(generation) => {
                self.remind(now + LINGER, Arc::clone(entry), Due::Leave { generation });
            }
            Removal::Done { seats, look_at } => {
                if let Some(at) = look_at {
                    self.timers.remove(&(at, look_of(entry)));
                }
                for seat in seats {
                    self.unsubscribe_at(seat, entry.channel.clone());
                }
            }
        }
    }

    fn unsubscribe_at(&mut self, seat: Seat, channel: Channel) {
        let registry = &self.registry;
        let is_needed = |entry: Arc<Entry>| {
            entry
                .locked(|state| state.holds == Some(seat) || state.sent.is_some_and(|sent| sent.seat == seat))
        };
        let is_kept = registry.find_tag(channel.as_str().as_bytes()).is_some_and(is_needed);
        if is_kept || !registry.is_alive(seat) {
            return;
        }
        if let Some(route) = registry.subscribing.route(channel.as_str()) {
            self.unsubscribe.entry(Group { seat, slot: route.slot }).or_default().push(channel);
        }
    }

    /// Ends come first: a channel that begins again in the same turn must not be ended by them.
    fn flush(&mut self) {
        if self.unsubscribe.is_empty() && self.subscribe.is_empty() {
            return;
        }
        let registry = Arc::clone(&self.registry);
        for (Group { seat, .. }, channels) in std::mem::take(&mut self.unsubscribe) {
            for channels in channels.chunks(BATCH) {
                // If the session is over, its channels ended with it.
                send(&registry, channels, |names| {
                    registry.subscribing.unsubscribe(seat.link, seat.session, names)
                });
            }
        }
        // Set before the queues are looked at: what is confirmed meanwhile comes back here.
        registry.are_queued.store(true, Relaxed);
        let mut queues = std::mem::take(&mut self.subscribe);
        queues.retain(|group, queue| {
            while self.send_batch(group.seat, queue) {}
            !queue.is_empty()
        });
        registry.are_queued.store(!queues.is_empty(), Relaxed);
        self.subscribe = queues;
        self.flushed_at = Instant::now();
    }

    /// Sends the first of a queue; false when none is left, or as many are under way as may be.
    fn send_batch(&mut self, seat: Seat, queue: &mut VecDeque<Arc<Entry>>) -> bool {
        let registry = Arc::clone(&self.registry);
        let Some(flow) = registry.flow(seat) else {
            // `down` said so, and all of its channels are placed anew.
            queue.clear();
            return false;
        };
        let (answered, at) = (flow.answered(), Instant::now() + CONFIRMATION);
        let mut channels = Vec::new();
        while channels.len() < BATCH
            && let Some(entry) = queue.front()
        {
            let is_wanted = |sent: &Sent| sent.seat == seat && sent.is_queued;
            let is_wanted = entry.locked(|state| state.sent.as_ref().is_some_and(is_wanted));
            if is_wanted && !flow.begin() {
                break;
            }
            let Some(entry) = queue.pop_front().filter(|_| is_wanted) else { continue };
            let sent = entry.locked(|state| {
                let sent = state.sent.as_mut()?;
                sent.is_queued = false;
                Some(*sent)
            });
            if let Some(sent) = sent {
                channels.push(entry.channel.clone());
                self.remind(at, entry, Due::Confirmation(sent, answered));
            }
        }
        if channels.is_empty() {
            return false;
        }
        send(&registry, &channels, |names| registry.subscribing.subscribe(seat.link, seat.session, names));
        true
    }
}

fn send(registry: &Registry, channels: &[Channel], send: impl FnOnce(&[&[u8]]) -> bool) {
    let names: Vec<String> =
        channels.iter().map(|channel| registry.prefix.pubsub(channel.as_str())).collect();
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    registry.counters.batches.fetch_add(1, Relaxed);
    // False: the session is over. `down` says so as well, and all of its channels are placed anew.
    let _is_over = send(&names);
}
