//! The census: this node's part of each channel, written as presence is, and who is in a channel on all nodes.
//!
//! One script makes every change (`scripts/census_change.lua`): it finds the transitions and publishes the events. Changes
//! of a channel are sent one batch after the other. A batch that fails leaves its channel *stale*; stale channels are
//! written whole, in portions, by the next sweep, and so is every channel when the instance has changed, and each whose
//! server has a new session ([`leases::Written`]). Ends that are
//! told when they last are settled by the node whose batch found them; the channel stays in its instance's set until
//! then, so that others take it over if the node dies.

mod own;
mod script;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

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
    own::{Batch, BatchUser, End, Mode, Own, Taken},
    script::{Part, Read, Verdict, flag, read_roll, read_user, read_verdict, user_args},
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
    Attend, AttendError, Attended, BackplaneError, COUNTS_INTERVAL, COUNTS_SMALL_INTERVAL, COUNTS_SMALL_MAX,
    CensusChannel, Channel, Roll, Sink, Sums, Transition, User,
};

/// Longest id of a user in bytes: its length has two bytes in an event.
const USER_BYTES_MAX: usize = u16::MAX as usize;

pub(crate) struct Census {
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

impl Census {
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
    pub(crate) fn attend(
        self: &Arc<Self>,
        channel: &Channel,
        attend: Attend,
    ) -> BoxFuture<'static, Result<Attended, AttendError>> {
        if let Attend::Enter { user: Some(user), .. } = &attend
            && user.id.len() > USER_BYTES_MAX
        {
            let why = format!("a user's id has {USER_BYTES_MAX} bytes at most");
            return ready(Err(BackplaneError::Refused(why.into()).into())).boxed();
        }
        let (done, outcome) = oneshot::channel();
        match self.with(|own| own.take(channel, attend, done)) {
            Taken::Nothing => {
                return ready(Ok(Attended { sequence: 0, sums: Sums::default() })).boxed();
            }
            Taken::NoRoom => {
                self.tallies.census_refused.fetch_add(1, Relaxed);
                let why = format!("{WAITING_MAX} changes of the census wait for Redis");
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

    /// The users are read in pages, after the number: what changes meanwhile has higher ones, and comes as events.
    pub(crate) async fn roll(&self, channel: &Channel) -> Result<Roll, BackplaneError> {
        let mut roll = self.read_alive(channel).await?.roll;
        let (tag, key) = (channel.as_str(), self.prefix.census_users(channel.as_str()));
        let mut users = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let (next, page) = leases::hash_page(&*self.commands, tag, &key, &cursor).await?;
            users.extend(page.into_iter().filter_map(|(id, held)| read_user(id, &held)));
            if next == "0" {
                break;
            }
            cursor = next;
        }
        roll.users = users.into_iter().map(|(id, info)| User { id, info }).collect();
        Ok(roll)
    }

    pub(crate) async fn sums(&self, channel: &Channel) -> Result<Sums, BackplaneError> {
        let Read { roll, users, .. } = self.read_alive(channel).await?;
        Ok(Sums { subscriptions: roll.subscriptions, users })
    }

    /// Channels that living instances list. They are asked for their sums, those of one route together: those of which the
    /// list is out of date are left out.
    pub(crate) async fn channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> Result<Vec<CensusChannel>, BackplaneError> {
        let inside = app.map_or_else(|| prefix.to_owned(), |app| format!("{app}!{prefix}"));
        if leases::is_pattern(&inside) {
            return Ok(Vec::new());
        }
        self.registry.round(None).await?;
        let mut found = BTreeSet::new();
        for instance in self.registry.live() {
            let set = self.prefix.census_channels(&instance);
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

    async fn sums_of(&self, channels: Vec<Channel>) -> Result<Vec<CensusChannel>, BackplaneError> {
        let Some(first) = channels.first() else { return Ok(Vec::new()) };
        let names = |channel: &Channel| {
            let tag = channel.as_str();
            [self.prefix.census(tag), self.prefix.census_users(tag)]
        };
        let keys: Vec<String> = channels.iter().flat_map(names).collect();
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let mut answer = scripts::SUMS.call(&*self.commands, first.as_str(), &keys, &[]).await?;
        let mut found = Vec::with_capacity(channels.len());
        for channel in channels {
            let sums = Sums { subscriptions: answer.number()?, users: answer.number()? };
            found.push(CensusChannel { channel, sums });
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
            let Some(census) = this.upgrade() else { return };
            let due = census.with(|own| own.claim_due(Instant::now()));
            census.run_all(due).await;
            let next = census.with(|own| own.next_due());
            let mut earlier = std::pin::pin!(census.is_due.notified());
            earlier.as_mut().enable();
            // Looked at again, so that nothing falls between the two.
            if census.with(|own| own.next_due()) != next {
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
        let set = self.prefix.census_channels(&self.registry.instance());
        let listed = leases::listed(&*self.commands, &set).await?;
        let listed = listed.iter().filter_map(|channel| Channel::from_inside(channel).ok());
        self.with(|own| listed.for_each(|channel| own.doubt_listed(channel, now)));
        Ok(())
    }

    /// Removes what an instance left behind, and takes over what it had to settle.
    pub(crate) async fn remove_instance(&self, instance: &str) -> Result<(), BackplaneError> {
        let set = self.prefix.census_channels(instance);
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
            self.answer(&channel, batch, &outcome);
            if is_left {
                let set = self.prefix.census_channels(&instance);
                if let Err(error) = leases::unlist(&*self.commands, &set, channel.as_str()).await {
                    tracing::debug!(%channel, %error, "the channel stays listed until this instance ends");
                }
            }
            if outcome.is_err() && !self.with(|own| own.goes_on(&channel)) {
                return;
            }
        }
    }

    fn answer(&self, channel: &Channel, batch: Batch, outcome: &Result<Verdict, BackplaneError>) {
        match outcome {
            Ok(verdict) => {
                self.tell(channel, &verdict.transitions);
                self.tallies.census_full.fetch_add(verdict.refused.len() as u64, Relaxed);
                let written = if batch.mode == Mode::Settle {
                    &self.tallies.census_settled
                } else {
                    &self.tallies.census_written
                };
                written.fetch_add(1, Relaxed);
            }
            Err(_) => {
                self.tallies.census_failed.fetch_add(1, Relaxed);
            }
        }
        for change in batch.changes {
            let answer = match outcome {
                Ok(verdict) => change.answer(verdict.attended, &verdict.refused),
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
            let set = self.prefix.census_channels(instance);
            leases::list(&*self.commands, &set, channel.as_str()).await?;
        }
        match batch.mode {
            Mode::Settle => self.settle(channel).await,
            Mode::Change => {
                let part = Part {
                    instance,
                    subscriptions: Some(batch.subscriptions),
                    tells_counts: Some(batch.tells_counts),
                    is_told: batch.is_told,
                    notes_loss: true,
                };
                self.change(channel, &part, &batch.users.iter().collect::<Vec<_>>()).await
            }
            Mode::Whole => self.write_whole(channel, instance, batch).await,
        }
    }

    /// This node's users a portion at a time, then those away that are not this node's any more, then what a former
    /// instance of it has: nobody leaves in between.
    async fn write_whole(
        &self,
        channel: &Channel,
        instance: &str,
        batch: &Batch,
    ) -> Result<Verdict, BackplaneError> {
        let mut part = Part {
            instance,
            subscriptions: Some(batch.subscriptions),
            tells_counts: Some(batch.tells_counts),
            is_told: batch.is_told,
            notes_loss: false,
        };
        let mut whole = Verdict::default();
        let is_kept = |id: &str| batch.users.binary_search_by(|user| (*user.id).cmp(id)).is_ok();
        let mut users = batch.users.chunks(BATCH);
        loop {
            let portion: Vec<_> = users.next().unwrap_or_default().iter().collect();
            let verdict = self.change(channel, &part, &portion).await?;
            let refused = portion.iter().filter(|user| verdict.refused.contains(&user.id));
            let refused: u64 = refused.map(|user| user.subscriptions).sum();
            part.subscriptions = part.subscriptions.map(|held| held.saturating_sub(refused));
            whole.add(verdict);
            if users.len() == 0 {
                break;
            }
        }
        self.remove_users(channel, &part, is_kept, &mut whole).await?;
        if let Some(former) = batch.former.as_deref() {
            self.remove_part(channel, former, &mut whole).await?;
        }
        Ok(whole)
    }

    /// Removes all that an instance has in a channel.
    async fn remove_part(
        &self,
        channel: &Channel,
        instance: &str,
        whole: &mut Verdict,
    ) -> Result<(), BackplaneError> {
        let mut part =
            Part { instance, subscriptions: None, tells_counts: None, is_told: false, notes_loss: false };
        self.remove_users(channel, &part, |_| false, whole).await?;
        part.subscriptions = Some(0);
        whole.add(self.change(channel, &part, &[]).await?);
        Ok(())
    }

    /// Removes users that an instance has in a channel, a page at a time.
    async fn remove_users(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        is_kept: impl Fn(&str) -> bool,
        whole: &mut Verdict,
    ) -> Result<(), BackplaneError> {
        let (tag, key) = (channel.as_str(), self.prefix.census_part(channel.as_str(), part.instance));
        let mut cursor = "0".to_owned();
        loop {
            let (next, page) = leases::hash_page(&*self.commands, tag, &key, &cursor).await?;
            let ids = page.into_iter().filter_map(|(id, _)| String::from_utf8(id).ok());
            let gone: Vec<_> = ids.filter(|id| !is_kept(id)).map(|id| BatchUser::gone(id.into())).collect();
            if !gone.is_empty() {
                whole.add(self.change(channel, part, &gone.iter().collect::<Vec<_>>()).await?);
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
        let own_set = self.prefix.census_channels(&self.registry.instance());
        // First, so that whoever comes after this node knows what it had to settle.
        leases::list(&*self.commands, &own_set, channel.as_str()).await?;
        let mut verdict = Verdict::default();
        let removed = self.remove_part(&channel, instance, &mut verdict).await;
        // What was found before it failed is told all the same.
        self.with(|own| own.adopt(&channel, verdict.settle_at));
        if verdict.settle_at.is_some() {
            self.is_due.notify_one();
        }
        self.tell(&channel, &verdict.transitions);
        removed?;
        self.tallies.census_removed.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn change(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        users: &[&BatchUser],
    ) -> Result<Verdict, BackplaneError> {
        let own = self.prefix.census_part(channel.as_str(), part.instance);
        let head = [
            part.instance.to_owned(),
            part.subscriptions.map_or_else(String::new, |subscriptions| subscriptions.to_string()),
            part.tells_counts.map_or("", flag).to_owned(),
            flag(part.is_told).to_owned(),
            flag(part.notes_loss).to_owned(),
        ];
        let texts: Vec<[String; 4]> = users.iter().map(|user| user_args(user)).collect();
        let mut args: Vec<&[u8]> = head.iter().map(String::as_bytes).collect();
        for (user, texts) in users.iter().zip(&texts) {
            let [id, subscriptions, users_max, is_told] = texts.each_ref().map(|text| text.as_bytes());
            let info = user.info.as_deref().unwrap_or_default().as_bytes();
            args.extend([id, subscriptions, users_max, is_told, info]);
        }
        self.call(&scripts::CENSUS_CHANGE, channel, Some(own), &args).await
    }

    async fn settle(&self, channel: &Channel) -> Result<Verdict, BackplaneError> {
        self.call(&scripts::CENSUS_SETTLE, channel, None, &[]).await
    }

    async fn call(
        &self,
        script: &scripts::Script,
        channel: &Channel,
        part: Option<String>,
        more: &[&[u8]],
    ) -> Result<Verdict, BackplaneError> {
        let tag = channel.as_str();
        let keys = [self.prefix.census(tag), self.prefix.census_users(tag), self.prefix.census_ends(tag)];
        let keys: Vec<&[u8]> = keys.iter().chain(&part).map(String::as_bytes).collect();
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

    /// Reads a channel; what instances that nobody knows left in it is removed first.
    async fn read_alive(&self, channel: &Channel) -> Result<Read, BackplaneError> {
        let read = self.read(channel).await?;
        let is_doubtful =
            |instance: &str| !self.registry.is_own(instance) && !self.registry.may_live(instance);
        if !read.instances.iter().any(|instance| is_doubtful(instance)) {
            return Ok(read);
        }
        // When it cannot be asked, nobody is declared dead.
        if let Err(error) = self.registry.round(None).await {
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
        let keys = [self.prefix.census(tag), self.prefix.census_users(tag)];
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

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").field("subscriptions", &self.own_len()).finish_non_exhaustive()
    }
}
