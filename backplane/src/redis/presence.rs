//! Presence: what this node has in each channel, and who is in a channel on all nodes.
//!
//! One script makes every change (`scripts/presence_change.lua`): it finds what follows and publishes the events. Changes
//! of a channel are sent one batch after the other: what is asked for while a batch is under way goes with the next one,
//! so the order of the calls is the order of their effects, and a burst costs a few commands. A batch that fails leaves
//! its channel *stale*; stale channels are written whole, in portions, by the next sweep, and so is every channel when
//! the instance has changed, and each whose server has a new session: what it acknowledged before it may have lost
//! ([`leases::Written`]). Ends that are told when they last are settled by the node whose batch found them; the channel
//! stays in its instance's set until then, so that others take it over if the node dies.

mod own;
mod script;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};
use futures_util::{
    future::{BoxFuture, FutureExt, ready},
    stream::{self, StreamExt},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
};
use tokio_util::sync::CancellationToken;

use self::{
    own::{Batch, End, Entry, Mode, Own, Taken},
    script::{Part, Read, Verdict, decode, encode, flag, read_roll, read_verdict, split},
};
use super::{
    contract::Commands,
    counters::Tallies,
    leases::{self, BATCH, CONCURRENCY, Seats, WAITING_MAX},
    names::Prefix,
    nodes::Registry,
    scripts,
};
use crate::{
    Attendance, BackplaneError, COUNTS_INTERVAL, COUNTS_SMALL_INTERVAL, COUNTS_SMALL_MAX, Channel, Join,
    JoinError, Member, Members, PresenceChannel, Roll, Sink, Sums, Transition,
};

/// Longest name of a connection or a user in bytes: its length has two bytes in an event.
const NAME_BYTES_MAX: usize = u16::MAX as usize;

pub(crate) struct Presence {
    commands: Arc<dyn Commands>,
    prefix: Prefix,
    registry: Arc<Registry>,
    sink: Arc<dyn Sink>,
    settle: Duration,
    own: Mutex<Own>,
    /// Something is to be settled earlier than before.
    is_due: Notify,
    runtime: Handle,
    tallies: Arc<Tallies>,
}

impl Presence {
    /// Must be called on a Tokio runtime; batches run there, whatever thread asks.
    pub(crate) fn new(
        commands: Arc<dyn Commands>,
        prefix: Prefix,
        registry: Arc<Registry>,
        sink: Arc<dyn Sink>,
        settle: Duration,
        tallies: Arc<Tallies>,
    ) -> Arc<Self> {
        Arc::new(Self {
            commands,
            prefix,
            registry,
            sink,
            settle,
            own: Mutex::default(),
            is_due: Notify::new(),
            runtime: Handle::current(),
            tallies,
        })
    }

    /// Takes effect in the order of the calls, whether or not the future is polled.
    pub(crate) fn join(
        self: &Arc<Self>,
        channel: &Channel,
        join: Join,
    ) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        if let Some(Member { connection, user, .. }) = &join.member
            && connection.len().max(user.len()) > NAME_BYTES_MAX
        {
            let why = format!("the name of a connection or a user has {NAME_BYTES_MAX} bytes at most");
            return ready(Err(BackplaneError::Refused(why.into()).into())).boxed();
        }
        let (done, outcome) = oneshot::channel();
        self.begin(channel, self.with(|own| own.join(channel, join, done)), outcome)
    }

    /// As [`join`](Self::join).
    pub(crate) fn leave(
        self: &Arc<Self>,
        channel: &Channel,
        connection: Option<&str>,
    ) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        let (done, outcome) = oneshot::channel();
        let taken = self.with(|own| own.leave(channel, connection, done));
        let left = self.begin(channel, taken, outcome);
        let answer = |left| match left {
            Err(JoinError::Backplane(error)) => Err(error),
            // Only who joins is refused.
            Err(JoinError::Full { .. }) => Ok(Attendance::default()),
            Ok(attendance) => Ok(attendance),
        };
        left.map(answer).boxed()
    }

    fn begin(
        self: &Arc<Self>,
        channel: &Channel,
        taken: Taken,
        outcome: oneshot::Receiver<Result<Attendance, JoinError>>,
    ) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        match taken {
            Taken::Nothing => return ready(Ok(Attendance::default())).boxed(),
            Taken::NoRoom => {
                self.tallies.presence_refused.fetch_add(1, Relaxed);
                let why = format!("{WAITING_MAX} changes of presence wait for Redis");
                return ready(Err(BackplaneError::Unavailable(why.into()).into())).boxed();
            }
            Taken::Idle => {
                self.runtime.spawn(Arc::clone(self).run(channel.clone()));
            }
            Taken::Busy => {}
        }
        let stopped = || Err(BackplaneError::Unconfirmed("the backplane was stopped".into()).into());
        outcome.map(move |outcome| outcome.unwrap_or_else(|_| stopped())).boxed()
    }

    /// The members are read in pages, after the number: what changes meanwhile has higher ones, and comes as events.
    pub(crate) async fn roll(&self, channel: &Channel) -> Result<Roll, BackplaneError> {
        let mut roll = self.read_alive(channel).await?.roll;
        let mut members = Members::default();
        let mut cursor = "0".to_owned();
        loop {
            let (next, page) = self.page(channel, &cursor).await?;
            for (connection, held) in page {
                match decode(connection, &held) {
                    Some(Some(member)) => {
                        members.insert(Arc::new(member));
                    }
                    Some(None) => {}
                    None => {
                        self.tallies.presence_undecodable.fetch_add(1, Relaxed);
                    }
                }
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        roll.members = members.iter().cloned().collect();
        Ok(roll)
    }

    pub(crate) async fn attendance(&self, channel: &Channel) -> Result<Attendance, BackplaneError> {
        let Read { roll: Roll { sequence, subscriptions, .. }, users, .. } = self.read_alive(channel).await?;
        Ok(Attendance { sequence, sums: Sums { subscriptions, users } })
    }

    /// Channels that living instances list. They are asked for their sums, those of one route together: those of which the
    /// list is out of date are left out.
    pub(crate) async fn channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> Result<Vec<PresenceChannel>, BackplaneError> {
        let inside = app.map_or_else(|| prefix.to_owned(), |app| format!("{app}!{prefix}"));
        if leases::is_pattern(&inside) {
            return Ok(Vec::new());
        }
        self.registry.learn_who_lives().await?;
        let mut found = BTreeSet::new();
        for instance in self.registry.live() {
            let set = self.prefix.instance_channels(&instance);
            leases::scan(&*self.commands, &set, &inside, &mut found).await?;
        }
        let channels = found.iter().filter_map(|channel| Channel::from_inside(channel).ok());
        let of_app: Vec<Channel> = channels.filter(|channel| channel.app() == app).collect();
        let mut routes: HashMap<_, Vec<Channel>> = HashMap::new();
        for channel in of_app {
            routes.entry(self.commands.route(channel.as_str())).or_default().push(channel);
        }
        let questions: Vec<Vec<Channel>> = routes.into_values().flat_map(portions).collect();
        let asked = stream::iter(questions).map(|channels| self.sums_of(channels));
        let answers: Vec<_> = asked.buffer_unordered(QUESTIONS_AT_ONCE).collect().await;
        let mut all = Vec::new();
        for answer in answers {
            all.extend(answer?.into_iter().filter(|found| found.sums.subscriptions > 0));
        }
        all.sort_by(|a, b| a.channel.cmp(&b.channel));
        Ok(all)
    }

    async fn sums_of(&self, channels: Vec<Channel>) -> Result<Vec<PresenceChannel>, BackplaneError> {
        let Some(first) = channels.first() else { return Ok(Vec::new()) };
        let names = |channel: &Channel| {
            let tag = channel.as_str();
            [self.prefix.presence_state(tag), self.prefix.presence_users(tag)]
        };
        let keys: Vec<String> = channels.iter().flat_map(names).collect();
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let mut answer = scripts::SUMS.call(&*self.commands, first.as_str(), &keys, &[]).await?;
        let mut found = Vec::with_capacity(channels.len());
        for channel in channels {
            let sums = Sums { subscriptions: answer.number()?, users: answer.number()? };
            found.push(PresenceChannel { channel, sums });
        }
        Ok(found)
    }

    /// Writes stale channels whole; with `is_doubtful`, also those that their servers may have lost.
    pub(crate) async fn sweep(self: &Arc<Self>, is_doubtful: bool) {
        if is_doubtful && let Err(error) = self.doubt().await {
            tracing::debug!(%error, "the channels that are listed for this node could not be read");
        }
        let stale = self.with(Own::claim_stale);
        self.run_all(stale).await;
    }

    /// Settles what is due, until it is stopped.
    pub(crate) async fn keep(this: Weak<Self>, stopping: CancellationToken) {
        loop {
            let Some(presence) = this.upgrade() else { return };
            let due = presence.with(|own| own.claim_due(Instant::now()));
            presence.run_all(due).await;
            let next = presence.with(|own| own.next_due());
            let mut earlier = std::pin::pin!(presence.is_due.notified());
            earlier.as_mut().enable();
            // Looked at again, so that nothing falls between the two.
            if presence.with(|own| own.next_due()) != next {
                continue;
            }
            let at = next.unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = earlier => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// The instance is another one: nothing that was written counts any more.
    pub(crate) fn begin_again(&self, has_lost_data: bool) {
        self.with(|own| own.begin_again(has_lost_data));
    }

    /// Marks what may be lost, and channels that the servers have this node in though it is not.
    async fn doubt(&self) -> Result<(), BackplaneError> {
        let now = Instant::now();
        self.with(|own| own.doubt(now, |channel| Seats::of(&*self.commands, channel)));
        let set = self.prefix.instance_channels(&self.registry.instance());
        let listed = leases::listed(&*self.commands, &set).await?;
        let listed = listed.iter().filter_map(|channel| Channel::from_inside(channel).ok());
        self.with(|own| listed.for_each(|channel| own.doubt_listed(channel, now)));
        Ok(())
    }

    /// Whether nothing waits to be written, or is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.with(|own| own.is_quiet())
    }

    /// What this node has, for another process that is this node then.
    pub(crate) fn write(&self, out: &mut Writer) {
        self.with(|own| own.write(out));
    }

    pub(crate) fn take_in(&self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        self.with(|own| own.take_in(fields))
    }

    /// Removes what an instance left behind, and takes over what it had to settle.
    pub(crate) async fn remove_instance(&self, instance: &str) -> Result<(), BackplaneError> {
        let set = self.prefix.instance_channels(instance);
        leases::clear_all(&*self.commands, &set, |channel| self.clear(channel, instance)).await
    }

    /// Settles what is due in a channel, whoever has to.
    #[cfg(test)]
    pub(crate) async fn settle_now(self: &Arc<Self>, channel: &Channel) {
        if self.with(|own| own.claim_settling(channel)) {
            Arc::clone(self).run(channel.clone()).await;
        }
    }

    /// Subscriptions of this node in all channels.
    pub(crate) fn own_len(&self) -> u64 {
        self.with(|own| own.subscriptions())
    }

    async fn run_all(self: &Arc<Self>, channels: Vec<Channel>) {
        let run = |channel| Arc::clone(self).run(channel);
        stream::iter(channels).map(run).buffer_unordered(CONCURRENCY).collect::<()>().await;
    }

    /// Sends batch after batch of a channel that was marked busy, until nothing waits.
    async fn run(self: Arc<Self>, channel: Channel) {
        loop {
            let instance: Arc<str> = self.registry.instance().into();
            let seats = Seats::of(&*self.commands, &channel);
            let batch = self.with(|own| own.next_batch(&channel, &instance, seats));
            let Some(batch) = batch else { return };
            let outcome = self.send(&channel, &instance, &batch).await;
            let is_lost = outcome.as_ref().is_ok_and(|verdict| verdict.is_lost);
            let is_outdated = is_lost || *self.registry.instance() != *instance;
            let refused = outcome.as_ref().map_or(&[][..], |verdict| &verdict.refused);
            let settle_at = outcome.as_ref().map_or(None, |verdict| verdict.settle_at);
            let end = match &outcome {
                Ok(_) => End::Written { refused, settle_at, is_outdated, seats },
                Err(_) => End::Failed,
            };
            let is_left = self.with(|own| own.finish(&channel, &batch, &instance, end));
            if settle_at.is_some() {
                self.is_due.notify_one();
            }
            if let Ok(verdict) = &outcome {
                self.tell(&channel, &verdict.transitions);
            }
            if is_left {
                let set = self.prefix.instance_channels(&instance);
                if let Err(error) = leases::unlist(&*self.commands, &set, channel.as_str()).await {
                    tracing::debug!(%channel, %error, "the channel stays listed until this instance ends");
                }
            }
            let goes_on = self.with(|own| own.goes_on(&channel, outcome.is_ok()));
            // Last, so that whoever was answered finds the channel as it is.
            self.answer(batch, &outcome);
            if !goes_on {
                return;
            }
        }
    }

    fn answer(&self, batch: Batch, outcome: &Result<Verdict, BackplaneError>) {
        match outcome {
            Ok(verdict) => {
                self.tallies.presence_full.fetch_add(verdict.refused.len() as u64, Relaxed);
                let written = if batch.mode == Mode::Settle {
                    &self.tallies.presence_settled
                } else {
                    &self.tallies.presence_written
                };
                written.fetch_add(1, Relaxed);
            }
            Err(_) => {
                self.tallies.presence_failed.fetch_add(1, Relaxed);
            }
        }
        for change in batch.changes {
            let answer = match outcome {
                Ok(verdict) => change.answer(verdict.attendance, &verdict.refused),
                Err(error) => Err(error.clone().into()),
            };
            // Nobody may wait for it: then the connection is gone, and its leaving follows.
            change.done.send(answer).ok();
        }
    }

    fn tell(&self, channel: &Channel, transitions: &[Transition]) {
        self.tallies.transitions.fetch_add(transitions.len() as u64, Relaxed);
        for transition in transitions {
            self.sink.transition(channel, transition.clone());
        }
    }

    async fn send(
        &self,
        channel: &Channel,
        instance: &str,
        batch: &Batch,
    ) -> Result<Verdict, BackplaneError> {
        // What is written without a lease may just be removed by others, and what was told since is not known.
        if !self.registry.is_leased() {
            return Err(BackplaneError::Unavailable("this node's lease is not renewed yet".into()));
        }
        if !batch.is_listed {
            let set = self.prefix.instance_channels(instance);
            leases::list(&*self.commands, &set, channel.as_str()).await?;
        }
        let part = |mode| Part { instance, tells_counts: batch.tells_counts, is_told: batch.is_told, mode };
        match batch.mode {
            Mode::Settle => self.call(&scripts::PRESENCE_SETTLE, channel, &[]).await,
            Mode::Change => self.change(channel, &part("change"), &batch.entries).await,
            Mode::Whole => self.write_whole(channel, &part("whole"), batch).await,
        }
    }

    /// This node's entries a portion at a time, then those away that are not this node's any more: nobody leaves in
    /// between.
    async fn write_whole(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        batch: &Batch,
    ) -> Result<Verdict, BackplaneError> {
        let mut whole = Verdict::default();
        for portion in batch.entries.chunks(BATCH) {
            whole.add(self.change(channel, part, portion).await?);
        }
        if whole.of_process != batch.subscriptions - whole.refused.len() as u64 {
            let wanted = &batch.entries[..batch.entries.len() - 1];
            let is_wanted = |connection: &str| {
                let at = wanted.binary_search_by(|entry| entry.connection.as_deref().cmp(&Some(connection)));
                at.is_ok() || connection == self.registry.process()
            };
            let is_over = |connection: &str, of: &str| self.registry.is_own(of) && !is_wanted(connection);
            self.remove(channel, part, is_over, &mut whole).await?;
        }
        Ok(whole)
    }

    /// Removes the entries that are over, a page at a time. It is asked by connection and instance.
    async fn remove(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        is_over: impl Fn(&str, &str) -> bool,
        whole: &mut Verdict,
    ) -> Result<(), BackplaneError> {
        let mut cursor = "0".to_owned();
        loop {
            let (next, page) = self.page(channel, &cursor).await?;
            let is_over =
                |connection: &str, held: &[u8]| split(held).is_some_and(|(of, _)| is_over(connection, of));
            let connections = page.into_iter().filter_map(|(connection, held)| {
                String::from_utf8(connection).ok().filter(|connection| is_over(connection, &held))
            });
            let gone: Vec<_> = connections.map(|connection| Entry::gone(connection.into())).collect();
            if !gone.is_empty() {
                whole.add(self.change(channel, part, &gone).await?);
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Clears a channel of what a dead instance left in it.
    async fn clear(&self, channel: String, instance: &str) -> Result<(), BackplaneError> {
        let Ok(channel) = Channel::from_inside(&channel) else { return Ok(()) };
        let own_set = self.prefix.instance_channels(&self.registry.instance());
        // First, so that whoever comes after this node knows what it had to settle.
        leases::list(&*self.commands, &own_set, channel.as_str()).await?;
        let mut verdict = Verdict::default();
        let part = Part { instance, tells_counts: None, is_told: false, mode: "dead" };
        let removed = self.remove(&channel, &part, |_, of| of == instance, &mut verdict).await;
        // What was found before it failed is told all the same.
        self.with(|own| own.adopt(&channel, verdict.settle_at));
        if verdict.settle_at.is_some() {
            self.is_due.notify_one();
        }
        self.tell(&channel, &verdict.transitions);
        removed?;
        self.tallies.presence_cleared.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn change(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        entries: &[Entry],
    ) -> Result<Verdict, BackplaneError> {
        let tells_counts = part.tells_counts.map_or("", flag);
        let head = [part.instance, tells_counts, flag(part.is_told), part.mode];
        let mut args: Vec<&[u8]> = head.into_iter().map(str::as_bytes).collect();
        let texts: Vec<_> = entries
            .iter()
            .map(|entry| (encode(entry), entry.users_max.map_or_else(String::new, |max| max.to_string())))
            .collect();
        for (entry, (bytes, users_max)) in entries.iter().zip(&texts) {
            let connection = entry.connection.as_deref().unwrap_or(self.registry.process());
            args.extend([connection.as_bytes(), bytes, users_max.as_bytes(), flag(entry.is_told).as_bytes()]);
        }
        self.call(&scripts::PRESENCE_CHANGE, channel, &args).await
    }

    async fn page(
        &self,
        channel: &Channel,
        cursor: &str,
    ) -> Result<(String, Vec<(Vec<u8>, Vec<u8>)>), BackplaneError> {
        let (tag, key) = (channel.as_str(), self.prefix.presence_entries(channel.as_str()));
        leases::hash_page(&*self.commands, tag, &key, cursor).await
    }

    async fn call(
        &self,
        script: &scripts::Script,
        channel: &Channel,
        more: &[&[u8]],
    ) -> Result<Verdict, BackplaneError> {
        let tag = channel.as_str();
        let keys = [
            self.prefix.presence_state(tag),
            self.prefix.presence_users(tag),
            self.prefix.presence_ends(tag),
            self.prefix.presence_entries(tag),
        ];
        let keys = keys.each_ref().map(|key| key.as_bytes());
        let verb = if self.commands.is_sharded() { "SPUBLISH" } else { "PUBLISH" };
        let head = [
            verb.to_owned(),
            self.prefix.pubsub(tag),
            self.settle.as_millis().to_string(),
            COUNTS_SMALL_MAX.to_string(),
            COUNTS_INTERVAL.as_millis().to_string(),
            COUNTS_SMALL_INTERVAL.as_millis().to_string(),
        ];
        let args: Vec<&[u8]> = head.iter().map(String::as_bytes).chain(more.iter().copied()).collect();
        read_verdict(script.call(&*self.commands, tag, &keys, &args).await?)
    }

    /// Reads a channel, after the changes that this node was asked for before; what instances that nobody knows left in
    /// it is removed first.
    async fn read_alive(&self, channel: &Channel) -> Result<Read, BackplaneError> {
        let (done, written) = oneshot::channel();
        // What could not be written is not there: that is no reason not to read.
        if self.with(|own| own.wait_for(channel, done)) && written.await.is_err() {
            return Err(BackplaneError::Unconfirmed("the backplane was stopped".into()));
        }
        let read = self.read(channel).await?;
        let is_doubtful =
            |instance: &str| !self.registry.is_own(instance) && !self.registry.may_live(instance);
        if !read.instances.iter().any(|instance| is_doubtful(instance)) {
            return Ok(read);
        }
        // When it cannot be asked, nobody is declared dead.
        if let Err(error) = self.registry.learn_who_lives().await {
            tracing::debug!(%error, "the node registry could not be asked who lives");
        }
        let dead: Vec<_> = read.instances.iter().filter(|instance| is_doubtful(instance)).collect();
        for instance in &dead {
            self.clear(channel.as_str().to_owned(), instance).await?;
        }
        if dead.is_empty() { Ok(read) } else { self.read(channel).await }
    }

    async fn read(&self, channel: &Channel) -> Result<Read, BackplaneError> {
        let tag = channel.as_str();
        let keys = [self.prefix.presence_state(tag), self.prefix.presence_users(tag)];
        let keys = keys.each_ref().map(|key| key.as_bytes());
        read_roll(scripts::ROLL.call(&*self.commands, tag, &keys, &[]).await?)
    }

    fn with<R>(&self, f: impl FnOnce(&mut Own) -> R) -> R {
        f(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long the keeper sleeps when nothing is to be settled; it is woken before.
const IDLE: Duration = Duration::from_secs(3600);

/// Channels in one question for their sums.
const SUMS: usize = 256;

/// Questions at once.
const QUESTIONS_AT_ONCE: usize = 4;

fn portions(mut channels: Vec<Channel>) -> Vec<Vec<Channel>> {
    let mut portions = Vec::new();
    while channels.len() > SUMS {
        portions.push(channels.split_off(channels.len() - SUMS));
    }
    portions.push(channels);
    portions
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("subscriptions", &self.own_len()).finish_non_exhaustive()
    }
}
