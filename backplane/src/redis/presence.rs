//! Presence: who is in a channel on all nodes, and a copy of this node's own members.
//!
//! Changes of a channel are sent one batch after the other: what is asked for while a batch is under way goes with the
//! next one, so the order of the calls is the order of their effects, and a burst costs a few commands. A batch that
//! fails leaves its channel *stale*: what Redis holds may differ from the copy, which has the change. Stale channels are
//! written whole by the next sweep that succeeds, and so is every channel when the instance has changed ([`Registry`]),
//! and each whose server has a new session: what it acknowledged before it may have lost ([`Written`]).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use futures_util::{
    future::{BoxFuture, FutureExt, ready},
    stream::{self, StreamExt},
};
use redis::Cmd;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    contract::Commands,
    counters::Tallies,
    leases::{self, BATCH, CONCURRENCY, LEFT_MAX, Seats, WAITING_MAX, Written},
    names::Prefix,
    nodes::Registry,
    scripts,
};
use crate::{BackplaneError, Channel, Member};

pub(crate) struct Presence {
    commands: Arc<dyn Commands>,
    prefix: Prefix,
    registry: Arc<Registry>,
    own: Mutex<Own>,
    runtime: Handle,
    tallies: Arc<Tallies>,
}

/// What this node has in Redis, or should have.
#[derive(Debug, Default)]
struct Own {
    channels: HashMap<Channel, OwnChannel>,
    waiting: u64,
}

#[derive(Debug, Default)]
struct OwnChannel {
    members: BTreeMap<Box<str>, Arc<Member>>,
    waiting: Vec<Change>,
    written: Written,
    is_stale: bool,
    /// A batch is under way.
    is_busy: bool,
}

/// What the copy already has and Redis is to get.
#[derive(Debug)]
struct Change {
    connection: Box<str>,
    done: oneshot::Sender<Result<(), BackplaneError>>,
}

/// Part of a channel's changes on their way.
struct Batch {
    changes: Vec<Change>,
    /// As the copy has them now; `None` has left.
    wanted: Vec<(Box<str>, Option<Arc<Member>>)>,
    is_whole: bool,
    is_listed: bool,
}

/// What became of a batch.
#[derive(Clone, Copy)]
enum End<'a> {
    Written {
        /// Under which the channel is listed; `None`: it is not, any more.
        listed: Option<&'a Arc<str>>,
        seats: Seats,
        is_whole: bool,
    },
    /// Written, for an instance that is over.
    Outdated,
    Failed {
        is_leased: bool,
    },
}

/// A member as JSON, after its instance and a line feed.
#[derive(Debug, Serialize, Deserialize)]
struct StoredMember {
    user: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    info: Option<Box<str>>,
}

impl Presence {
    /// Must be called on a Tokio runtime; batches run there, whatever thread asks.
    pub(crate) fn new(
        commands: Arc<dyn Commands>,
        prefix: Prefix,
        registry: Arc<Registry>,
        tallies: Arc<Tallies>,
    ) -> Arc<Self> {
        let own = Mutex::default();
        Arc::new(Self { commands, prefix, registry, own, runtime: Handle::current(), tallies })
    }

    /// Takes effect in the order of the calls, whether or not the future is polled.
    pub(crate) fn join(
        self: &Arc<Self>,
        channel: &Channel,
        member: Member,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        self.change(channel, member.connection.clone(), Some(Arc::new(member)))
    }

    /// As [`join`](Self::join).
    pub(crate) fn leave(
        self: &Arc<Self>,
        channel: &Channel,
        connection: &str,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        self.change(channel, connection.into(), None)
    }

    /// The members of all nodes, in order of their connections: this node's from its copy, others' from Redis if their
    /// instances live.
    pub(crate) async fn list(&self, channel: &Channel) -> Result<Vec<Member>, BackplaneError> {
        let key = self.prefix.presence(channel.as_str());
        let mut others: BTreeMap<Box<str>, (Box<str>, Member)> = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let page = leases::hash_page(&*self.commands, channel.as_str(), &key, &cursor).await?;
            let decoded =
                page.1.into_iter().filter_map(|(connection, value)| self.decode(connection, &value));
            let decoded = decoded.filter(|(instance, _)| !self.registry.is_own(instance));
            others.extend(decoded.map(|other| (other.1.connection.clone(), other)));
            if page.0 == "0" {
                break;
            }
            cursor = page.0;
        }
        let mut others: Vec<_> = others.into_values().collect();
        if others.iter().any(|(instance, _)| !self.registry.may_live(instance)) {
            self.drop_dead(channel, &mut others).await;
        }
        let mut members = self.own_members(channel);
        members.extend(others.into_iter().map(|(_, member)| member));
        members.sort_by(|a, b| a.connection.cmp(&b.connection));
        // A connection that moved here with its name is in both.
        members.dedup_by(|a, b| a.connection == b.connection);
        Ok(members)
    }

    /// Writes stale channels whole; with `is_doubtful`, also those that their servers may have lost.
    pub(crate) async fn sweep(self: &Arc<Self>, is_doubtful: bool) {
        if is_doubtful && let Err(error) = self.doubt().await {
            tracing::debug!(%error, "the channels that are listed for this node could not be read");
        }
        let stale: Vec<Channel> = self.with(|own| {
            let stale = own.channels.iter_mut().filter(|(_, state)| state.is_stale && !state.is_busy);
            let claim = |(channel, state): (&Channel, &mut OwnChannel)| {
                state.is_busy = true;
                channel.clone()
            };
            stale.map(claim).collect()
        });
        let write = |channel| Arc::clone(self).run(channel);
        stream::iter(stale).map(write).buffer_unordered(CONCURRENCY).collect::<()>().await;
    }

    /// Marks what may be lost, and channels that the servers have this node in though it is not: it left, and that was
    /// lost.
    async fn doubt(&self) -> Result<(), BackplaneError> {
        let now = Instant::now();
        self.with(|own| {
            own.channels.retain(|_, state| state.is_busy || !state.written.is_forgotten(now));
            for (channel, state) in &mut own.channels {
                state.is_stale |= state.written.is_doubtful(Seats::of(&*self.commands, channel));
            }
        });
        let set = self.prefix.instance_channels(&self.registry.instance());
        for channel in leases::listed(&*self.commands, &set).await? {
            let Ok(channel) = Channel::from_inside(&channel) else { continue };
            self.with(|own| {
                let state = own.channels.entry(channel).or_default();
                if state.members.is_empty() {
                    state.written.leave(now);
                    state.is_stale = true;
                }
            });
        }
        Ok(())
    }

    /// The instance is another one: nothing that was written counts any more.
    pub(crate) fn begin_again(&self) {
        self.with(|own| {
            own.channels.retain(|_, state| {
                state.written.note_unlisted();
                state.is_stale = !state.members.is_empty();
                state.is_stale || state.is_busy
            });
        });
    }

    /// Removes what an instance left behind. What fails is begun again by whoever is told of the instance after another
    /// lease.
    pub(crate) async fn remove_instance(&self, instance: &str) -> Result<(), BackplaneError> {
        let set = self.prefix.instance_channels(instance);
        leases::clear_all(&*self.commands, &set, |channel| self.clear(channel, instance)).await
    }

    /// Members of this node in all channels.
    pub(crate) fn own_len(&self) -> u64 {
        self.with(|own| own.channels.values().map(|state| state.members.len() as u64).sum())
    }

    fn change(
        self: &Arc<Self>,
        channel: &Channel,
        connection: Box<str>,
        member: Option<Arc<Member>>,
    ) -> BoxFuture<'static, Result<(), BackplaneError>> {
        let (done, outcome) = oneshot::channel();
        let begin = self.with(|own| own.take(channel, connection, member, done));
        match begin {
            Taken::Nothing => return ready(Ok(())).boxed(),
            Taken::NoRoom => {
                self.tallies.presence_refused.fetch_add(1, Relaxed);
                let why = format!("{WAITING_MAX} changes of presence wait for Redis");
                return ready(Err(BackplaneError::Unavailable(why.into()))).boxed();
            }
            Taken::Idle => {
                self.runtime.spawn(Arc::clone(self).run(channel.clone()));
            }
            Taken::Busy => {}
        }
        let stopped = || Err(BackplaneError::Unconfirmed("the backplane was stopped".into()));
        outcome.map(move |outcome| outcome.unwrap_or_else(|_| stopped())).boxed()
    }

    /// Sends batch after batch of a channel that was marked busy, until nothing waits.
    async fn run(self: Arc<Self>, channel: Channel) {
        loop {
            let instance: Arc<str> = self.registry.instance().into();
            let seats = Seats::of(&*self.commands, &channel);
            let Some(batch) = self.with(|own| own.next_batch(&channel, &instance, seats)) else { return };
            let outcome = self.send(&channel, &instance, &batch).await;
            // What was written for an instance that is over is written again.
            let is_current = self.registry.instance() == *instance;
            let end = match &outcome {
                Ok(is_listed) if is_current => {
                    let listed = is_listed.then_some(&instance);
                    End::Written { listed, seats, is_whole: batch.is_whole }
                }
                Ok(_) => End::Outdated,
                Err(_) => End::Failed { is_leased: self.registry.is_leased() },
            };
            let goes_on = self.with(|own| own.finish(&channel, end));
            if outcome.is_err() {
                self.tallies.presence_failed.fetch_add(1, Relaxed);
            }
            let outcome = outcome.map(|_| ());
            for change in batch.changes {
                // Nobody may wait for it: then the connection is gone, and its leaving follows.
                change.done.send(outcome.clone()).ok();
            }
            if !goes_on {
                return;
            }
        }
    }

    /// Writes a batch; answers whether the channel is in the instance's set afterwards.
    async fn send(&self, channel: &Channel, instance: &str, batch: &Batch) -> Result<bool, BackplaneError> {
        let tag = channel.as_str();
        let set = self.prefix.instance_channels(instance);
        let writes = batch.wanted.iter().any(|(_, member)| member.is_some());
        if writes && !batch.is_listed {
            // First, so that what is written is found when this node is gone.
            leases::list(&*self.commands, &set, tag).await?;
        }
        let key = self.prefix.presence(tag);
        for page in batch.wanted.chunks(BATCH) {
            for command in changes(&key, instance, page).into_iter().flatten() {
                self.commands.call(tag, command).await?;
            }
        }
        if batch.is_whole {
            let is_kept = |connection: &str| {
                let wanted = &batch.wanted;
                wanted.binary_search_by(|(held, _)| (**held).cmp(connection)).is_ok()
            };
            self.remove(tag, instance, is_kept).await?;
        }
        let is_left = self.with(|own| own.is_left(channel));
        if is_left {
            leases::unlist(&*self.commands, &set, tag).await?;
        }
        Ok(!is_left)
    }

    /// Removes members that an instance has in a channel, a page at a time; answers how many.
    async fn remove(
        &self,
        tag: &str,
        instance: &str,
        is_kept: impl Fn(&str) -> bool,
    ) -> Result<u64, BackplaneError> {
        let key = self.prefix.presence(tag);
        let mark = [instance.as_bytes(), b"\n"].concat();
        let (mut cursor, mut removed) = ("0".to_owned(), 0);
        loop {
            let (next, page) = leases::hash_page(&*self.commands, tag, &key, &cursor).await?;
            let is_over = |(connection, value): &(Vec<u8>, Vec<u8>)| {
                value.starts_with(&mark) && !std::str::from_utf8(connection).is_ok_and(&is_kept)
            };
            let over = page.iter().filter(|entry| is_over(entry)).map(|(connection, _)| &connection[..]);
            let args: Vec<&[u8]> = std::iter::once(instance.as_bytes()).chain(over).collect();
            if args.len() > 1 {
                let answer = scripts::MEMBERS.call(&*self.commands, tag, &[key.as_bytes()], &args).await;
                removed += answer?.number()?;
            }
            if next == "0" {
                return Ok(removed);
            }
            cursor = next;
        }
    }

    /// Asks the registry who lives; what dead instances left in the channel is removed.
    async fn drop_dead(&self, channel: &Channel, others: &mut Vec<(Box<str>, Member)>) {
        // When it cannot be asked, nobody is declared dead.
        if let Err(error) = self.registry.round(None).await {
            tracing::debug!(%error, "the node registry could not be asked who lives");
        }
        let mut dead: Vec<Box<str>> = Vec::new();
        others.retain(|(instance, _)| {
            let may_live = self.registry.may_live(instance);
            if !may_live && !dead.contains(instance) {
                dead.push(instance.clone());
            }
            may_live
        });
        for instance in dead {
            if let Err(error) = self.clear(channel.as_str().to_owned(), &instance).await {
                tracing::debug!(%channel, %error, "what a dead instance left is removed by the next reader");
            }
        }
    }

    async fn clear(&self, channel: String, instance: &str) -> Result<(), BackplaneError> {
        let removed = self.remove(&channel, instance, |_| false).await?;
        self.tallies.presence_removed.fetch_add(removed, Relaxed);
        Ok(())
    }

    fn own_members(&self, channel: &Channel) -> Vec<Member> {
        self.with(|own| {
            let members = own.channels.get(channel).map(|state| state.members.values());
            members.into_iter().flatten().map(|member| Member::clone(member)).collect()
        })
    }

    fn decode(&self, connection: Vec<u8>, value: &[u8]) -> Option<(Box<str>, Member)> {
        let decoded = decode(connection, value);
        if decoded.is_none() {
            self.tallies.presence_undecodable.fetch_add(1, Relaxed);
        }
        decoded
    }

    fn with<R>(&self, f: impl FnOnce(&mut Own) -> R) -> R {
        f(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("members", &self.own_len()).finish_non_exhaustive()
    }
}

/// What a change found.
enum Taken {
    /// Nothing to do: who leaves is not there.
    Nothing,
    /// Too many changes wait: this one is only in the copy, which a sweep writes.
    NoRoom,
    /// A batch has to be begun.
    Idle,
    Busy,
}

impl Own {
    fn take(
        &mut self,
        channel: &Channel,
        connection: Box<str>,
        member: Option<Arc<Member>>,
        done: oneshot::Sender<Result<(), BackplaneError>>,
    ) -> Taken {
        if member.is_none()
            && !self.channels.get(channel).is_some_and(|state| state.members.contains_key(&connection))
        {
            return Taken::Nothing;
        }
        // Leaving always has room: it is asked for once for each member.
        let has_room = member.is_none() || self.waiting < WAITING_MAX;
        let state = self.channels.entry(channel.clone()).or_default();
        match member {
            Some(member) => {
                state.written.enter();
                state.members.insert(connection.clone(), member)
            }
            None => state.members.remove(&connection),
        };
        if !has_room {
            state.is_stale = true;
            return Taken::NoRoom;
        }
        self.waiting += 1;
        state.waiting.push(Change { connection, done });
        if std::mem::replace(&mut state.is_busy, true) { Taken::Busy } else { Taken::Idle }
    }

    /// What is to be sent next; `None` ends the run.
    fn next_batch(&mut self, channel: &Channel, instance: &str, seats: Seats) -> Option<Batch> {
        let is_crowded = self.channels.len() > LEFT_MAX;
        let state = self.channels.get_mut(channel)?;
        if state.waiting.is_empty() && !state.is_stale {
            state.is_busy = false;
            if state.members.is_empty() {
                state.written.leave(Instant::now());
                if is_crowded {
                    self.channels
                        .retain(|_, state| state.is_busy || state.is_stale || !state.written.is_left());
                }
            }
            return None;
        }
        let changes: Vec<Change> = state.waiting.drain(..state.waiting.len().min(BATCH)).collect();
        self.waiting -= changes.len() as u64;
        let is_whole = std::mem::take(&mut state.is_stale);
        let member = |connection: &str| state.members.get(connection).cloned();
        let wanted = if is_whole {
            state.members.iter().map(|(name, member)| (name.clone(), Some(Arc::clone(member)))).collect()
        } else {
            changes.iter().map(|change| (change.connection.clone(), member(&change.connection))).collect()
        };
        Some(Batch { changes, wanted, is_whole, is_listed: state.written.is_listed(instance, seats) })
    }

    /// Takes the end of a batch in. False: the run is over.
    fn finish(&mut self, channel: &Channel, end: End<'_>) -> bool {
        let Some(state) = self.channels.get_mut(channel) else { return false };
        match end {
            End::Written { listed, seats, is_whole } => {
                if is_whole {
                    state.written.note_whole(seats)
                } else {
                    state.written.note_part(seats)
                }
                match listed {
                    // Stale again while the batch was under way: the instance may be another one.
                    Some(instance) if !state.is_stale => state.written.note_listed(instance, seats),
                    _ => state.written.note_unlisted(),
                }
                return true;
            }
            End::Outdated => {
                state.written.note_unlisted();
                state.is_stale = !state.members.is_empty();
                return true;
            }
            End::Failed { is_leased } => {
                state.written.note_unlisted();
                // Without a lease, what Redis has of us is removed by others; only what is here is written again.
                state.is_stale = is_leased || !state.members.is_empty();
            }
        }
        state.is_busy = !state.waiting.is_empty();
        let goes_on = state.is_busy;
        if !goes_on && !state.is_stale {
            self.channels.remove(channel);
        }
        goes_on
    }

    /// Whether nobody of this node is in the channel, nor wants to be.
    fn is_left(&self, channel: &Channel) -> bool {
        self.channels.get(channel).is_none_or(|state| state.members.is_empty() && state.waiting.is_empty())
    }
}

/// One command for those who are there, one for those who left.
fn changes(key: &str, instance: &str, wanted: &[(Box<str>, Option<Arc<Member>>)]) -> [Option<Cmd>; 2] {
    let (mut joined, mut left) = (redis::cmd("HSET"), redis::cmd("HDEL"));
    joined.arg(key);
    left.arg(key);
    let (mut has_joined, mut has_left) = (false, false);
    for (connection, member) in wanted {
        match member {
            Some(member) => {
                joined.arg(connection.as_bytes()).arg(encode(instance, member));
                has_joined = true;
            }
            None => {
                left.arg(connection.as_bytes());
                has_left = true;
            }
        }
    }
    [has_joined.then_some(joined), has_left.then_some(left)]
}

fn encode(instance: &str, member: &Member) -> Vec<u8> {
    let stored = StoredMember { user: member.user.clone(), info: member.info.clone() };
    let json = serde_json::to_string(&stored).expect("two strings are JSON");
    [instance, "\n", &json].concat().into_bytes()
}

fn decode(connection: Vec<u8>, value: &[u8]) -> Option<(Box<str>, Member)> {
    let (instance, json) = std::str::from_utf8(value).ok()?.split_once('\n')?;
    let StoredMember { user, info } = serde_json::from_str(json).ok()?;
    let connection = String::from_utf8(connection).ok()?.into();
    Some((instance.into(), Member { connection, user, info }))
}
