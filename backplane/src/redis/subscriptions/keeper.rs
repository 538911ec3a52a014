//! The task that sends subscriptions, in batches, and has one clock for all channels.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    entry::{Entry, Seat, Sent},
    registry::{Registry, Removal},
};
use crate::{Channel, redis::envelope::Place};

/// Channels in one command: about 30 KB, and 0.5 ms of the server's time.
const BATCH: usize = 512;

/// Batches closer together than this wait for more to pile up. A lone subscription does not wait.
const BATCH_INTERVAL: Duration = Duration::from_millis(1);

/// A confirmation that takes longer is not waited for: the channel is sent again.
const CONFIRMATION: Duration = Duration::from_secs(1);

/// A link that did not confirm so many times is replaced.
const TRIES_MAX: u8 = 3;

/// Work for the keeper. Bounded by the number of channels: each has at most one of a kind in here, and a few timers.
#[derive(Default)]
pub(super) struct Desk {
    /// To be subscribed where they live now.
    pub(super) subscribe: Vec<Arc<Entry>>,
    pub(super) unsubscribe: Vec<(Seat, Channel)>,
    pub(super) timers: Vec<(Instant, Arc<Entry>, Due)>,
    /// Sessions or routes have changed: every channel is looked at.
    pub(super) is_all: bool,
}

/// What a channel's time has come for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    Confirmation(Sent),
    Leave { generation: u64 },
    Grace { serial: u32, top: Place },
    Retry { serial: u32 },
    Look,
}

struct Keeper {
    registry: Arc<Registry>,
    timers: BTreeMap<(Instant, Ticket), (Arc<Entry>, Due)>,
    timers_made: u64,
    subscribe: HashMap<Group, Vec<Channel>>,
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
        let next = keeper.timers.keys().next().map(|(at, _)| *at);
        tokio::select! {
            () = keeper.registry.desk_filled.notified() => {}
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
        let desk = std::mem::take(&mut *self.registry.desk.lock().unwrap_or_else(PoisonError::into_inner));
        for (at, entry, due) in desk.timers {
            self.remind(at, entry, due);
        }
        for (seat, channel) in desk.unsubscribe {
            self.unsubscribe_at(seat, channel);
        }
        let subscribe = if desk.is_all { self.registry.entries() } else { desk.subscribe };
        for entry in subscribe {
            self.place(&entry);
        }
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
            Due::Confirmation(sent) => self.unconfirmed(entry, sent),
            Due::Leave { generation } => self.leave(entry, generation, now),
            Due::Grace { serial, top } => {
                registry.advance(entry, |state, spout| state.sequence.grace_over(serial, top, spout));
            }
            Due::Retry { serial } => {
                registry.advance(entry, |state, spout| state.sequence.retry(serial, spout));
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
            state.sent = Some(Sent { seat, tries: 1 });
            state.sent
        });
        if let (Some(sent), Some(route)) = (sent, route) {
            self.subscribe_at(entry, sent, route.slot);
        }
    }

    fn subscribe_at(&mut self, entry: &Arc<Entry>, sent: Sent, slot: Option<u16>) {
        let group = Group { seat: sent.seat, slot };
        self.subscribe.entry(group).or_default().push(entry.channel.clone());
        self.remind(Instant::now() + CONFIRMATION, Arc::clone(entry), Due::Confirmation(sent));
    }

    /// The time for a confirmation is over.
    fn unconfirmed(&mut self, entry: &Arc<Entry>, sent: Sent) {
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
        self.registry.counters.sent_again.fetch_add(1, Relaxed);
        if sent.tries >= TRIES_MAX && self.registry.is_alive(sent.seat) {
            // What follows is `down`, and `up` with a new session. Until then nothing is sent on this one.
            self.registry.set_session(sent.seat.link, sent.seat.session, false);
            self.registry.order(|desk| desk.is_all = true);
            let why = "subscriptions were not confirmed";
            self.registry.subscribing.replace(sent.seat.link, sent.seat.session, why);
            return;
        }
        self.place(entry);
        let again = entry.locked(|state| {
            let again = state.sent.as_mut().filter(|again| again.seat == sent.seat)?;
            again.tries = sent.tries + 1;
            Some(*again)
        });
        if let Some(again) = again {
            self.remind(Instant::now() + CONFIRMATION, Arc::clone(entry), Due::Confirmation(again));
        }
    }

    fn leave(&mut self, entry: &Arc<Entry>, generation: u64, now: Instant) {
        match self.registry.remove(entry, generation) {
            Removal::Wanted => {}
            Removal::Newer(generation) => {
                self.remind(now + super::LINGER, Arc::clone(entry), Due::Leave { generation });
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
        let registry = &self.registry;
        let send = |groups: &mut HashMap<Group, Vec<Channel>>, begins: bool| {
            for (Group { seat, .. }, channels) in groups.drain() {
                for channels in channels.chunks(BATCH) {
                    let names: Vec<String> =
                        channels.iter().map(|channel| registry.prefix.pubsub(channel.as_str())).collect();
                    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
                    registry.counters.batches.fetch_add(1, Relaxed);
                    // If the session is over, `down` says so, and all of its channels are placed anew.
                    let _is_over = match begins {
                        true => registry.subscribing.subscribe(seat.link, seat.session, &names),
                        false => registry.subscribing.unsubscribe(seat.link, seat.session, &names),
                    };
                }
            }
        };
        if self.unsubscribe.is_empty() && self.subscribe.is_empty() {
            return;
        }
        send(&mut self.unsubscribe, false);
        send(&mut self.subscribe, true);
        self.flushed_at = Instant::now();
    }
}
