//! Wills: what is to be told of this node's connections if it dies. `docs/adr/0027-wills.md` says why.
//!
//! All wills of an instance are one hash beside its lease. Changes are sent a batch after the other; what comes while one is
//! under way goes with the next. A batch that fails, another instance, and a server whose session is another one have all
//! of them written again, from the copy that is kept here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use futures_util::future::{BoxFuture, FutureExt, ready};
use tokio::{runtime::Handle, sync::oneshot};

mod moving;

use super::{
    contract::{Commands, Seat},
    counters::Tallies,
    leases::{BATCH, WAITING_MAX, hash_page},
    names::{NODES, Prefix},
    nodes::Registry,
    scripts,
};
use crate::{BackplaneError, Sink};

pub(crate) struct Wills {
    commands: Arc<dyn Commands>,
    prefix: Prefix,
    registry: Arc<Registry>,
    sink: Arc<dyn Sink>,
    own: Mutex<Own>,
    runtime: Handle,
    tallies: Arc<Tallies>,
}

/// What this node has in Redis, or should have.
#[derive(Debug, Default)]
struct Own {
    kept: HashMap<Box<str>, Kept>,
    waiting: VecDeque<Change>,
    /// A batch is under way.
    is_busy: bool,
    /// All are to be written, and what is there beside them removed.
    is_stale: bool,
    /// The servers have lost what was written, and nobody has told it.
    has_lost_data: bool,
    /// Instances of this process under which wills may be; one, unless they are being moved.
    instances: BTreeSet<Box<str>>,
    /// Where all were written, or the first was.
    seat: Option<Seat>,
    /// Connections whose wills were written and then were not there. Others told them, unless the lease is renewed after
    /// `missed_at`: then the server had lost them.
    missed: HashSet<Box<str>>,
    missed_at: Option<Instant>,
    /// Instances whose wills are being taken and told.
    telling: usize,
}

#[derive(Debug)]
struct Kept {
    will: Arc<str>,
    /// It was written under the current instance, or a former one.
    is_written: bool,
}

#[derive(Debug)]
struct Change {
    connection: Box<str>,
    /// Of one that is kept.
    done: Option<oneshot::Sender<Result<(), BackplaneError>>>,
}

type Outcome = Result<(), BackplaneError>;

/// What is to be done next.
enum Step {
    Write(Vec<Change>),
    WriteAll(Vec<Change>),
}

impl Own {
    /// Whether a run has to be begun.
    fn change(&mut self, change: Change) -> bool {
        self.waiting.push_back(change);
        !std::mem::replace(&mut self.is_busy, true)
    }

    fn next(&mut self) -> Option<Step> {
        if self.is_stale {
            self.is_stale = false;
            return Some(Step::WriteAll(self.waiting.drain(..).collect()));
        }
        let changes: Vec<Change> = self.waiting.drain(..self.waiting.len().min(BATCH)).collect();
        self.is_busy = !changes.is_empty();
        self.is_busy.then_some(Step::Write(changes))
    }

    /// What the connections of these changes are to have.
    fn texts(&self, changes: &[Change]) -> BTreeMap<Box<str>, Option<Arc<str>>> {
        let text = |connection: &str| self.kept.get(connection).map(|kept| Arc::clone(&kept.will));
        changes.iter().map(|change| (change.connection.clone(), text(&change.connection))).collect()
    }

    fn note_written<'c>(&mut self, connections: impl Iterator<Item = (&'c Box<str>, &'c Option<Arc<str>>)>) {
        for (connection, written) in connections {
            if let (Some(kept), Some(written)) = (self.kept.get_mut(connection), written)
                && Arc::ptr_eq(&kept.will, written)
            {
                kept.is_written = true;
            }
        }
    }

    /// What is to be written: what is kept and not there, and nothing for what is there and not kept.
    fn compare(&mut self, there: &HashSet<Box<str>>) -> BTreeMap<Box<str>, Option<Arc<str>>> {
        let over = there.iter().filter(|connection| !self.kept.contains_key(*connection));
        let mut changes: BTreeMap<_, _> = over.map(|connection| (connection.clone(), None)).collect();
        for (connection, kept) in self.kept.iter().filter(|(connection, _)| !there.contains(*connection)) {
            if kept.is_written {
                self.missed.insert(connection.clone());
                self.missed_at = Some(Instant::now());
            }
            changes.insert(connection.clone(), Some(Arc::clone(&kept.will)));
        }
        changes
    }

    /// All are written under an instance. Answers those that others told since the former one's lease ended.
    fn settle(&mut self, instance: Box<str>, seat: Option<Seat>) -> Vec<Arc<str>> {
        self.seat = seat;
        let has_lapsed = self.instances.iter().any(|former| *former != instance);
        self.instances = BTreeSet::from([instance]);
        if !has_lapsed {
            return Vec::new();
        }
        let missed = std::mem::take(&mut self.missed);
        if std::mem::take(&mut self.has_lost_data) {
            return Vec::new();
        }
        missed.iter().filter_map(|connection| Some(Arc::clone(&self.kept.get(connection)?.will))).collect()
    }

    /// The lease of an instance was last renewed then.
    fn note_renewed(&mut self, instance: &str, renewed: Option<Instant>) {
        let is_idle = !self.is_stale && !self.is_busy;
        if is_idle && renewed > self.missed_at && self.instances.iter().all(|held| **held == *instance) {
            self.missed.clear();
        }
    }
}

impl Wills {
    /// Must be called on a Tokio runtime; batches run there, whatever thread asks.
    pub(crate) fn new(
        commands: Arc<dyn Commands>,
        prefix: Prefix,
        registry: Arc<Registry>,
        sink: Arc<dyn Sink>,
        tallies: Arc<Tallies>,
    ) -> Arc<Self> {
        let (own, runtime) = (Mutex::default(), Handle::current());
        Arc::new(Self { commands, prefix, registry, sink, own, runtime, tallies })
    }

    /// Takes effect in the order of the calls, whether or not the future is polled.
    pub(crate) fn keep(self: &Arc<Self>, connection: &str, will: Arc<str>) -> BoxFuture<'static, Outcome> {
        let (done, outcome) = oneshot::channel();
        let begins = self.with(|own| {
            let is_written = own.kept.get(connection).is_some_and(|before| before.is_written);
            own.kept.insert(connection.into(), Kept { will, is_written });
            if own.waiting.len() as u64 >= WAITING_MAX {
                own.is_stale = true;
                return None;
            }
            Some(own.change(Change { connection: connection.into(), done: Some(done) }))
        });
        match begins {
            None => {
                let why = format!("{WAITING_MAX} wills of connections wait for Redis");
                return ready(Err(BackplaneError::Unavailable(why.into()))).boxed();
            }
            Some(true) => self.begin(),
            Some(false) => {}
        }
        let stopped = || Err(BackplaneError::Unconfirmed("the backplane was stopped".into()));
        outcome.map(move |outcome| outcome.unwrap_or_else(|_| stopped())).boxed()
    }

    /// Asked for once for each that is kept, so it always has room.
    pub(crate) fn take_back(self: &Arc<Self>, connection: &str) {
        let begins = self.with(|own| {
            own.missed.remove(connection);
            own.kept.remove(connection).is_some()
                && own.change(Change { connection: connection.into(), done: None })
        });
        if begins {
            self.begin();
        }
    }

    /// The instance is another one.
    pub(crate) fn begin_again(&self, has_lost_data: bool) {
        self.with(|own| {
            own.is_stale |= !own.instances.is_empty();
            own.has_lost_data |= has_lost_data && !own.instances.is_empty();
        });
    }

    /// Writes what is stale, and what the server may have lost.
    pub(crate) fn sweep(self: &Arc<Self>) {
        let seat = self.commands.seat(NODES);
        let (instance, renewed) = self.registry.renewed();
        let begins = self.with(|own| {
            own.note_renewed(&instance, renewed);
            own.is_stale |= !own.instances.is_empty() && seat.is_some() && own.seat != seat;
            own.is_stale && !std::mem::replace(&mut own.is_busy, true)
        });
        if begins {
            self.begin();
        }
    }

    /// Tells what an instance left behind, a part at a time; nobody else is given what this node was.
    pub(crate) async fn remove_instance(&self, instance: &str) -> Result<(), BackplaneError> {
        // This process lives: it moves them to the instance that it is now.
        if self.registry.is_own(instance) {
            return Ok(());
        }
        let key = self.prefix.wills(instance);
        loop {
            self.with(|own| own.telling += 1);
            let left = self.tell_some(&key).await;
            self.with(|own| own.telling -= 1);
            if left? == 0 {
                return Ok(());
            }
        }
    }

    /// How many are left after them.
    async fn tell_some(&self, key: &str) -> Result<u64, BackplaneError> {
        let count = BATCH.to_string();
        let (keys, args) = ([key.as_bytes()], [count.as_bytes()]);
        let mut taken = scripts::WILLS_TAKE.call(&*self.commands, NODES, &keys, &args).await?;
        let mut wills = taken.list()?;
        while !wills.is_empty() {
            self.tallies.wills_told.fetch_add(1, Relaxed);
            self.sink.will(&wills.text()?);
        }
        taken.number()
    }

    /// Whether all that is kept is written.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.with(|own| !own.is_busy && !own.is_stale && own.waiting.is_empty())
    }

    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.with(|own| own.is_busy)
    }

    fn begin(self: &Arc<Self>) {
        self.runtime.spawn(Arc::clone(self).run());
    }

    /// Writes batch after batch until nothing waits, or one fails: then the next sweep goes on.
    async fn run(self: Arc<Self>) {
        while let Some(step) = self.with(Own::next) {
            let (mut changes, outcome) = match step {
                Step::Write(changes) => {
                    let outcome = self.write_some(&changes).await;
                    (changes, outcome)
                }
                Step::WriteAll(changes) => (changes, self.write_all().await),
            };
            let has_failed = outcome.is_err();
            if has_failed {
                self.tallies.wills_failed.fetch_add(1, Relaxed);
                self.with(|own| {
                    (own.is_stale, own.is_busy) = (true, false);
                    changes.extend(own.waiting.drain(..));
                });
            }
            for done in changes.into_iter().filter_map(|change| change.done) {
                // Who waited for it may be gone.
                done.send(outcome.clone()).ok();
            }
            if has_failed {
                return;
            }
        }
    }

    /// Writes what some connections are to have, or all if the others are under a former instance yet: what is written
    /// under the current one before they are moved would keep them from it.
    async fn write_some(&self, changes: &[Change]) -> Outcome {
        let (instance, seat) = (Box::from(self.registry.instance()), self.commands.seat(NODES));
        let texts = self.with(|own| {
            if own.instances.is_empty() {
                own.instances.insert(Box::clone(&instance));
                own.seat = seat;
            }
            own.instances.iter().all(|held| *held == instance).then(|| own.texts(changes))
        });
        match texts {
            Some(texts) => self.write(&instance, &texts).await,
            None => self.write_all().await,
        }
    }

    /// Writes all that is kept, under the instance that this process is now.
    async fn write_all(&self) -> Outcome {
        let (instance, seat) = (Box::from(self.registry.instance()), self.commands.seat(NODES));
        let mut held = self.with(|own| own.instances.clone());
        held.remove(&instance);
        // A move that is not confirmed may have been made, so both count from here on.
        self.with(|own| own.instances.insert(Box::clone(&instance)));
        for former in held {
            let keys = [self.prefix.wills(&former), self.prefix.wills(&instance)];
            let keys = keys.each_ref().map(|key| key.as_bytes());
            scripts::WILLS_MOVE.call(&*self.commands, NODES, &keys, &[]).await?;
        }
        let there = self.there(&instance).await?;
        let changes = self.with(|own| own.compare(&there));
        self.write(&instance, &changes).await?;
        // Of a connection that ended meanwhile, the end is what others told. Told here, so that none ends in between.
        self.with(|own| own.settle(instance, seat).iter().for_each(|will| self.sink.will_was_told(will)));
        Ok(())
    }

    /// The connections whose wills are there.
    async fn there(&self, instance: &str) -> Result<HashSet<Box<str>>, BackplaneError> {
        let (key, mut cursor) = (self.prefix.wills(instance), "0".to_owned());
        let mut there = HashSet::new();
        loop {
            let (next, page) = hash_page(&*self.commands, NODES, &key, &cursor).await?;
            let names = page.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok());
            there.extend(names.map(Box::from));
            if next == "0" {
                return Ok(there);
            }
            cursor = next;
        }
    }

    /// Writes what connections are to have, and removes those that are to have none.
    async fn write(&self, instance: &str, texts: &BTreeMap<Box<str>, Option<Arc<str>>>) -> Outcome {
        if !self.registry.is_leased() {
            return Err(BackplaneError::Unavailable("this node's lease is not renewed yet".into()));
        }
        let keys = [self.prefix.wills(instance), self.prefix.instances()];
        let keys = keys.each_ref().map(|key| key.as_bytes());
        let all: Vec<_> = texts.iter().collect();
        for portion in all.chunks(BATCH) {
            let mut args = vec![instance.as_bytes()];
            for (connection, will) in portion {
                args.extend([connection.as_bytes(), will.as_deref().unwrap_or_default().as_bytes()]);
            }
            if !scripts::WILLS_CHANGE.call(&*self.commands, NODES, &keys, &args).await?.flag()? {
                return Err(BackplaneError::Unavailable("this node's lease has ended".into()));
            }
            self.with(|own| own.note_written(portion.iter().copied()));
        }
        Ok(())
    }

    fn with<R>(&self, f: impl FnOnce(&mut Own) -> R) -> R {
        f(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Wills {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wills").field("kept", &self.with(|own| own.kept.len())).finish_non_exhaustive()
    }
}
