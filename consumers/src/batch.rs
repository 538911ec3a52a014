//! A batch of entries: what is published of it in which order, and what becomes of each entry. No I/O but the publisher's.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt as _, stream};

use crate::{Publication, Publish, Unpublished};

/// What was read: its id in its store, and what it asks for, or why nobody can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry<I> {
    pub(crate) id: I,
    pub(crate) publication: Result<Publication, String>,
}

/// What became of a batch. An entry that is in neither list waits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled<I> {
    /// Accepted, now or before.
    pub(crate) done: Vec<I>,
    pub(crate) duplicates: u64,
    /// Never to be accepted, and why.
    pub(crate) aside: Vec<(I, String)>,
    /// Channels whose entries wait, and why the last of them does.
    pub(crate) stuck: BTreeSet<Box<str>>,
    pub(crate) why: Option<String>,
}

/// Entries of one channel, in their order.
type Waiting<I> = Vec<(I, Publication)>;

/// Channels that are published to at the same time.
const CHANNELS_AT_ONCE: usize = 64;

/// Longest sentence that is kept beside an entry that was set aside.
const WHY_CHARACTERS_MAX: usize = 300;

/// Publishes a batch. In a channel each waits for the one before it; none overtakes one that has to wait.
pub(crate) async fn publish<I: Send>(entries: Vec<Entry<I>>, publisher: &dyn Publish) -> Settled<I> {
    let mut settled = Settled {
        done: Vec::with_capacity(entries.len()),
        duplicates: 0,
        aside: Vec::new(),
        stuck: BTreeSet::new(),
        why: None,
    };
    let mut places: HashMap<Box<str>, usize> = HashMap::new();
    let mut channels: Vec<(Box<str>, Waiting<I>)> = Vec::new();
    for Entry { id, publication } in entries {
        match publication {
            Ok(publication) => {
                let place = *places.entry(publication.channel.clone()).or_insert_with(|| {
                    channels.push((publication.channel.clone(), Vec::new()));
                    channels.len() - 1
                });
                channels[place].1.push((id, publication));
            }
            Err(why) => settled.aside.push((id, shortened(why))),
        }
    }
    let published = stream::iter(channels)
        .map(|(channel, entries)| publish_in_order(channel, entries, publisher))
        .buffer_unordered(CHANNELS_AT_ONCE);
    let mut published = std::pin::pin!(published);
    while let Some(of_channel) = published.next().await {
        settled.done.extend(of_channel.done);
        settled.duplicates += of_channel.duplicates;
        settled.aside.extend(of_channel.aside);
        settled.stuck.extend(of_channel.stuck);
        settled.why = of_channel.why.or(settled.why);
    }
    settled
}

async fn publish_in_order<I>(channel: Box<str>, entries: Waiting<I>, publisher: &dyn Publish) -> Settled<I> {
    let mut settled = Settled {
        done: Vec::with_capacity(entries.len()),
        duplicates: 0,
        aside: Vec::new(),
        stuck: BTreeSet::new(),
        why: None,
    };
    for (id, publication) in entries {
        match publisher.publish(publication).await {
            Ok(published) => {
                settled.duplicates += u64::from(published.duplicate);
                settled.done.push(id);
            }
            Err(Unpublished::Never(why)) => settled.aside.push((id, shortened(why))),
            Err(Unpublished::Later(why)) => {
                settled.stuck.insert(channel);
                settled.why = Some(why);
                break;
            }
        }
    }
    settled
}

fn shortened(why: String) -> String {
    if why.chars().count() <= WHY_CHARACTERS_MAX {
        why
    } else {
        why.chars().take(WHY_CHARACTERS_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::HashSet, future::ready, sync::Mutex};

    use super::*;
    use crate::{Boxed, Data, Published};

    /// A publisher that fails at random, and remembers keys.
    #[derive(Debug)]
    struct Flaky {
        state: Mutex<State>,
    }

    #[derive(Debug)]
    struct State {
        random: fastrand::Rng,
        failing: u32,
        keys: HashSet<Box<str>>,
        accepted: Vec<Publication>,
    }

    impl Publish for Flaky {
        fn publish(&self, publication: Publication) -> Boxed<'_, Result<Published, Unpublished>> {
            let mut state = self.state.lock().unwrap();
            let lot = state.random.u32(0..100);
            let answer = if publication.event.is_some() {
                Err(Unpublished::Never("it is poison".to_owned()))
            } else if lot < state.failing / 2 {
                Err(Unpublished::Later("away".to_owned()))
            } else {
                let duplicate = !state.keys.insert(publication.key.clone());
                if !duplicate {
                    state.accepted.push(publication);
                }
                // It was accepted, and nobody heard of it.
                match lot < state.failing {
                    true => Err(Unpublished::Later("no answer".to_owned())),
                    false => Ok(Published { duplicate }),
                }
            };
            Box::pin(ready(answer))
        }
    }

    /// The store: entries that wait, in order; a reader that takes batches of them and may die before it forgets what is done.
    fn run(seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let failing = random.u32(0..60);
        let flaky = Flaky {
            state: Mutex::new(State {
                random: random.fork(),
                failing,
                keys: HashSet::new(),
                accepted: Vec::new(),
            }),
        };
        let (mut store, mut poison) = (Vec::new(), 0);
        for id in 0..random.u32(1..300) {
            let event = (random.u32(0..20) == 0).then(|| Box::from("poison"));
            let is_unreadable = random.u32(0..20) == 0;
            poison += usize::from(event.is_some() || is_unreadable);
            let channel: Box<str> = format!("c{}", random.u32(0..5)).into();
            let publication =
                Publication { channel, event, data: Data::Text(id.to_string()), key: id.to_string().into() };
            let publication = if is_unreadable { Err("unreadable".to_owned()) } else { Ok(publication) };
            store.push(Entry { id, publication });
        }
        let total = store.len();
        let mut aside = 0;
        for round in 0.. {
            if store.is_empty() {
                break;
            }
            assert!(round < 100_000, "seed {seed}: {} entries wait for ever", store.len());
            let batch: Vec<_> = store.iter().take(random.usize(1..50)).cloned().collect();
            let settled = futures_util::FutureExt::now_or_never(publish(batch, &flaky)).unwrap();
            assert_eq!(settled.stuck.is_empty(), settled.why.is_none(), "seed {seed}");
            if random.u32(0..10) == 0 {
                continue;
            }
            aside += settled.aside.len();
            let is_over =
                |id: &u32| settled.done.contains(id) || settled.aside.iter().any(|(own, _)| own == id);
            store.retain(|entry| !is_over(&entry.id));
        }
        let state = flaky.state.into_inner().unwrap();
        assert_eq!((aside, state.accepted.len()), (poison, total - poison), "seed {seed}");
        let mut newest: HashMap<&str, u32> = HashMap::new();
        for publication in &state.accepted {
            let id: u32 = publication.key.parse().unwrap();
            let before = newest.insert(&publication.channel, id);
            assert!(before.is_none_or(|before| before < id), "seed {seed}: {id} after {before:?}");
        }
    }

    #[test]
    fn each_is_published_once_and_in_order_whatever_fails() {
        for seed in 0..2000 {
            run(seed);
        }
    }
}
