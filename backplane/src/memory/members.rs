//! Presence: the members of each channel, in order of their connections.
//!
//! Apart from the channel table, so that reading the 10,000 members of a channel delays none of its publications.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::lock::locked;
use crate::{Channel, Member};

/// Parts of the map. Joining is rarer than publishing, so fewer than the channel table has.
const PARTS: usize = 16;

type Part = HashMap<Channel, BTreeMap<Box<str>, Arc<Member>>>;

#[derive(Debug)]
pub(super) struct Members {
    hasher: RandomState,
    parts: Box<[Mutex<Part>]>,
    len: AtomicU64,
}

impl Members {
    pub(super) fn new() -> Self {
        let parts = (0..PARTS).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::new(), parts, len: AtomicU64::new(0) }
    }

    pub(super) fn join(&self, channel: &Channel, member: Member) {
        let replaced = self.with_part(channel, |part| {
            let members = part.entry(channel.clone()).or_default();
            members.insert(member.connection.clone(), Arc::new(member)).is_some()
        });
        if !replaced {
            self.len.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn leave(&self, channel: &Channel, connection: &str) {
        let removed = self.with_part(channel, |part| {
            let members = part.get_mut(channel)?;
            let removed = members.remove(connection);
            if members.is_empty() {
                part.remove(channel);
            }
            removed
        });
        if removed.is_some() {
            self.len.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn list(&self, channel: &Channel) -> Vec<Member> {
        // Under the lock only references are copied; the texts after it.
        let members: Vec<Arc<Member>> = self.with_part(channel, |part| {
            part.get(channel).map_or_else(Vec::new, |members| members.values().cloned().collect())
        });
        members.iter().map(|member| Member::clone(member)).collect()
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    /// Gives back the memory of a burst.
    pub(super) fn shrink(&self) {
        for part in &self.parts {
            locked(part, |part| {
                if part.capacity() > 4 * part.len().max(16) {
                    part.shrink_to(2 * part.len());
                }
            });
        }
    }

    fn with_part<R>(&self, channel: &Channel, f: impl FnOnce(&mut Part) -> R) -> R {
        let hash = self.hasher.hash_one(channel.as_str());
        locked(&self.parts[hash as usize % PARTS], f)
    }
}
