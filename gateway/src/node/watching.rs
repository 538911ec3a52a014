//! What a node does more while somebody watches the console: it looks at a part of its publications, and at connections
//! that were asked for. While nobody does, a publication costs one load of a flag that nobody writes.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use tidegate_backplane::{Channel, LOOKUPS_MAX, WATCH_LEASE};
use tokio::sync::Notify;

/// Whether somebody watches, and what is looked at for them.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    is_on: AtomicBool,
    state: Mutex<State>,
    began: Notify,
    pub(crate) rates: Rates,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// Connections to look up, and until when.
    lookups: Vec<(Box<str>, Instant)>,
}

/// Publications by channel, of which every n-th is counted, for n.
#[derive(Debug)]
pub(crate) struct Rates {
    seen: AtomicU64,
    every: AtomicU64,
    counts: Mutex<HashMap<Channel, u64>>,
}

/// Publications that are counted in a round of about a second. Each takes a lock and, at first, memory.
const SAMPLES: u64 = 4096;

impl Watching {
    /// Somebody watches, from now on for a while.
    pub(crate) fn renew(&self, connections: Vec<Box<str>>, now: Instant) {
        let mut state = lock(&self.state);
        let until = now + WATCH_LEASE;
        state.until = Some(until);
        for name in connections {
            let has_room = state.lookups.len() < LOOKUPS_MAX;
            match state.lookups.iter_mut().find(|(own, _)| *own == name) {
                Some((_, end)) => *end = until,
                None if has_room => state.lookups.push((name, until)),
                // Whoever asked is told that it was not found.
                None => {}
            }
        }
        drop(state);
        self.is_on.store(true, Ordering::Release);
        self.began.notify_one();
    }

    /// The connections to look up, while somebody watches.
    pub(crate) fn current(&self, now: Instant) -> Option<Vec<Box<str>>> {
        let mut state = lock(&self.state);
        if state.until.is_none_or(|until| until <= now) {
            *state = State::default();
            self.is_on.store(false, Ordering::Release);
            self.rates.take();
            return None;
        }
        state.lookups.retain(|(_, end)| now < *end);
        Some(state.lookups.iter().map(|(name, _)| name.clone()).collect())
    }

    /// Waits until somebody watches.
    pub(crate) async fn until_on(&self) {
        while !self.is_on.load(Ordering::Acquire) {
            self.began.notified().await;
        }
    }

    /// A publication goes to the subscribers of this node.
    pub(crate) fn published(&self, channel: &Channel) {
        if self.is_on.load(Ordering::Relaxed) {
            self.rates.count(channel);
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self { seen: AtomicU64::new(0), every: AtomicU64::new(1), counts: Mutex::default() }
    }
}

impl Rates {
    fn count(&self, channel: &Channel) {
        let every = self.every.load(Ordering::Relaxed);
        if !self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(every) {
            return;
        }
        let mut counts = lock(&self.counts);
        let has_room = counts.len() < SAMPLES as usize;
        match counts.get_mut(channel) {
            Some(count) => *count += every,
            None if has_room => drop(counts.insert(channel.clone(), every)),
            None => {}
        }
    }

    /// The publications of each channel since the last call, counted or estimated.
    pub(crate) fn take(&self) -> HashMap<Channel, u64> {
        let seen = self.seen.swap(0, Ordering::Relaxed);
        self.every.store(seen.div_ceil(SAMPLES).max(1), Ordering::Relaxed);
        std::mem::take(&mut lock(&self.counts))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn a_watch_ends_with_its_lease_and_so_do_lookups() {
        let (watching, start) = (Watching::default(), Instant::now());
        assert_eq!(watching.current(start), None);
        watching.renew(vec!["a".into()], start);
        let later = start + WATCH_LEASE - Duration::from_millis(1);
        assert_eq!(watching.current(later), Some(vec!["a".into()]));
        watching.renew(vec!["b".into()], later);
        assert_eq!(watching.current(later + Duration::from_millis(1)), Some(vec!["b".into()]));
        assert_eq!(watching.current(later + WATCH_LEASE), None);
    }

    #[test]
    fn a_node_looks_up_few_connections_at_once() {
        let (watching, now) = (Watching::default(), Instant::now());
        watching.renew((0..2 * LOOKUPS_MAX).map(|name| name.to_string().into()).collect(), now);
        assert_eq!(watching.current(now).unwrap().len(), LOOKUPS_MAX);
    }

    #[test]
    fn publications_are_counted_while_somebody_watches_and_sampled_when_there_are_many() {
        let (watching, now) = (Watching::default(), Instant::now());
        let channel = Channel::new("a").unwrap();
        watching.published(&channel);
        assert!(watching.rates.take().is_empty(), "nobody watches");
        watching.renew(Vec::new(), now);
        let many = 10 * SAMPLES;
        for _ in 0..2 {
            // In the second round each tenth is counted, for ten.
            (0..many).for_each(|_| watching.published(&channel));
            let counts = watching.rates.take();
            assert_eq!(counts.get(&channel), Some(&many));
        }
        assert_eq!(watching.rates.every.load(Ordering::Relaxed), 10);
        for number in 0..many * 2 {
            watching.published(&Channel::new(&format!("c{number}")).unwrap());
        }
        assert!(watching.rates.take().len() <= SAMPLES as usize);
    }
}
