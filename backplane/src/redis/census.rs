//! The census: this node's part of each channel, written as presence is, and who is in a channel on all nodes.
//!
//! One script makes every change (`scripts/census.lua`): it finds the transitions and publishes the events. Changes of a
//! channel are sent one batch after the other. A batch that fails leaves its channel *stale*; stale channels are written
//! whole by the next sweep, and so is every channel when the instance has changed or a server came back. Ends that are
//! told when they last are settled by the node whose batch found them; the channel stays in its instance's set until
//! then, so that others take it over if the node dies.

mod own;

use std::{
    collections::BTreeSet,
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

use self::own::{Batch, End, Mode, Own, Taken};
use super::{
    contract::Commands,
    counters::Tallies,
    instances::{self, CONCURRENCY, WAITING_MAX},
    names::Prefix,
    nodes::Registry,
    scripts::{self, Answer},
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

/// What the script says.
struct Verdict {
    attended: Attended,
    settle_at: Option<Instant>,
    refused: Vec<Box<str>>,
    transitions: Vec<Transition>,
    /// The server has lost this node's part.
    is_lost: bool,
}

/// What the other script reads.
struct Read {
    roll: Roll,
    users: u64,
    instances: Vec<Box<str>>,
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

    pub(crate) async fn roll(&self, channel: &Channel) -> Result<Roll, BackplaneError> {
        let mut roll = self.read_alive(channel, true).await?.roll;
        roll.users.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(roll)
    }

    pub(crate) async fn sums(&self, channel: &Channel) -> Result<Sums, BackplaneError> {
        let Read { roll, users, .. } = self.read_alive(channel, false).await?;
        Ok(Sums { subscriptions: roll.subscriptions, users })
    }

    /// Channels that living instances list. They are asked for their sums one by one: those of which the list is out
    /// of date are left out.
    pub(crate) async fn channels(
        &self,
        app: Option<&str>,
        prefix: &str,
    ) -> Result<Vec<CensusChannel>, BackplaneError> {
        let inside = app.map_or_else(|| prefix.to_owned(), |app| format!("{app}!{prefix}"));
        if instances::is_pattern(&inside) {
            return Ok(Vec::new());
        }
        self.registry.round(None).await?;
        let mut found = BTreeSet::new();
        for instance in self.registry.live() {
            let set = self.prefix.census_channels(&instance);
            instances::scan(&*self.commands, &set, &inside, &mut found).await?;
        }
        let channels = found.iter().filter_map(|channel| Channel::from_inside(channel).ok());
        let of_app: Vec<Channel> = channels.filter(|channel| channel.app() == app).collect();
        let read = |channel: Channel| async move {
            let sums = self.read(&channel, false).await?;
            let sums = Sums { subscriptions: sums.roll.subscriptions, users: sums.users };
            Ok::<_, BackplaneError>(CensusChannel { channel, sums })
        };
        let all: Vec<_> = stream::iter(of_app).map(read).buffered(CONCURRENCY).collect().await;
        let all: Result<Vec<_>, _> = all.into_iter().collect();
        Ok(all?.into_iter().filter(|found| found.sums.subscriptions > 0).collect())
    }

    /// Writes stale channels whole.
    pub(crate) async fn sweep(self: &Arc<Self>) {
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

    /// A server is back, perhaps without what it had.
    pub(crate) fn doubt(&self) {
        self.with(Own::doubt);
    }

    /// Removes what an instance left behind, and takes over what it had to settle.
    pub(crate) async fn remove_instance(&self, instance: &str) -> Result<(), BackplaneError> {
        let set = self.prefix.census_channels(instance);
        instances::clear_all(&*self.commands, &set, |channel| self.clear(channel, instance)).await
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
            let Some(batch) = self.with(|own| own.next_batch(&channel, &instance)) else { return };
            let outcome = self.send(&channel, &instance, &batch).await;
            let is_lost = outcome.as_ref().is_ok_and(|verdict| verdict.is_lost);
            let is_outdated = is_lost || *self.registry.instance() != *instance;
            let refused = outcome.as_ref().map_or(&[][..], |verdict| &verdict.refused);
            let settle_at = outcome.as_ref().map_or(None, |verdict| verdict.settle_at);
            let end = match &outcome {
                Ok(_) => End::Written { refused, settle_at, is_outdated },
                Err(_) => End::Failed,
            };
            let is_left = self.with(|own| own.finish(&channel, &batch, &instance, end));
            if settle_at.is_some() {
                self.is_due.notify_one();
            }
            self.answer(&channel, batch, &outcome);
            if is_left {
                let set = self.prefix.census_channels(&instance);
                if let Err(error) = instances::unlist(&*self.commands, &set, channel.as_str()).await {
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
            instances::list(&*self.commands, &set, channel.as_str()).await?;
        }
        let mode = match batch.mode {
            Mode::Change => "change",
            Mode::Whole => "whole",
            Mode::Settle => "settle",
        };
        let users: Vec<[String; 4]> = batch.users.iter().map(user_args).collect();
        let mut args: Vec<&[u8]> = Vec::new();
        for (user, texts) in batch.users.iter().zip(&users) {
            let [id, subscriptions, users_max, is_told] = texts.each_ref().map(|text| text.as_bytes());
            let info = user.info.as_deref().unwrap_or_default().as_bytes();
            args.extend([id, subscriptions, users_max, is_told, info]);
        }
        let part = Part {
            mode,
            instance,
            former: batch.former.as_deref(),
            subscriptions: batch.subscriptions,
            tells_counts: Some(batch.tells_counts),
            is_told: batch.is_told,
        };
        self.call(channel, &part, &args).await
    }

    /// Clears a channel of what a dead instance left in it.
    async fn clear(&self, channel: String, instance: &str) -> Result<(), BackplaneError> {
        let Ok(channel) = Channel::from_inside(&channel) else { return Ok(()) };
        let own_set = self.prefix.census_channels(&self.registry.instance());
        // First, so that whoever comes after this node knows what it had to settle.
        instances::list(&*self.commands, &own_set, channel.as_str()).await?;
        let part = Part {
            mode: "clear",
            instance,
            former: None,
            subscriptions: 0,
            tells_counts: None,
            is_told: false,
        };
        let verdict = self.call(&channel, &part, &[]).await?;
        self.tallies.census_removed.fetch_add(1, Relaxed);
        self.with(|own| own.adopt(&channel, verdict.settle_at));
        if verdict.settle_at.is_some() {
            self.is_due.notify_one();
        }
        self.tell(&channel, &verdict.transitions);
        Ok(())
    }

    async fn call(
        &self,
        channel: &Channel,
        part: &Part<'_>,
        users: &[&[u8]],
    ) -> Result<Verdict, BackplaneError> {
        let tag = channel.as_str();
        let former = part.former.map(|former| self.prefix.census_part(tag, former));
        let mut keys = vec![
            self.prefix.census(tag),
            self.prefix.census_users(tag),
            self.prefix.census_ends(tag),
            self.prefix.census_part(tag, part.instance),
        ];
        keys.extend(former);
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        let verb = if self.commands.is_sharded() { "SPUBLISH" } else { "PUBLISH" };
        let head = [
            verb.to_owned(),
            self.prefix.pubsub(tag),
            self.settle.as_millis().to_string(),
            COUNTS_SMALL_MAX.to_string(),
            COUNTS_INTERVAL.as_millis().to_string(),
            part.mode.to_owned(),
            part.instance.to_owned(),
            part.former.unwrap_or_default().to_owned(),
            part.subscriptions.to_string(),
            part.tells_counts.map_or("", flag).to_owned(),
            flag(part.is_told).to_owned(),
            COUNTS_SMALL_INTERVAL.as_millis().to_string(),
        ];
        let args: Vec<&[u8]> = head.iter().map(String::as_bytes).chain(users.iter().copied()).collect();
        let answer = scripts::CENSUS.call(&*self.commands, tag, &keys, &args).await?;
        read_verdict(answer)
    }

    /// Reads a channel; what instances that nobody knows left in it is removed first.
    async fn read_alive(&self, channel: &Channel, users: bool) -> Result<Read, BackplaneError> {
        let read = self.read(channel, users).await?;
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
        if dead.is_empty() { Ok(read) } else { self.read(channel, users).await }
    }

    async fn read(&self, channel: &Channel, users: bool) -> Result<Read, BackplaneError> {
        let tag = channel.as_str();
        let keys = [self.prefix.census(tag), self.prefix.census_users(tag)];
        let keys = keys.each_ref().map(|key| key.as_bytes());
        let args = [flag(users).as_bytes()];
        read_roll(scripts::ROLL.call(&*self.commands, tag, &keys, &args).await?)
    }

    fn with<R>(&self, f: impl FnOnce(&mut Own) -> R) -> R {
        f(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends that come one after the other are settled together: a channel is asked 20 times a second at most.
const SETTLE_MIN: Duration = Duration::from_millis(50);

/// How long the keeper sleeps when nothing is to be settled; it is woken before.
const IDLE: Duration = Duration::from_secs(3600);

/// An instance's part in a channel, but for the users.
struct Part<'a> {
    mode: &'a str,
    instance: &'a str,
    former: Option<&'a str>,
    subscriptions: u64,
    tells_counts: Option<bool>,
    is_told: bool,
}

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").field("subscriptions", &self.own_len()).finish_non_exhaustive()
    }
}

fn user_args(user: &own::BatchUser) -> [String; 4] {
    let users_max = user.users_max.map_or_else(String::new, |users_max| users_max.to_string());
    [user.id.to_string(), user.subscriptions.to_string(), users_max, flag(user.is_told).to_owned()]
}

fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

fn read_verdict(mut answer: Answer) -> Result<Verdict, BackplaneError> {
    let (sequence, subscriptions, users) = (answer.number()?, answer.number()?, answer.number()?);
    let settle_ms = answer.number()?;
    let (mut refused, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        refused.push(list.text()?);
    }
    let (mut transitions, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        transitions.push(read_transition(&mut list)?);
    }
    Ok(Verdict {
        attended: Attended { sequence, sums: Sums { subscriptions, users } },
        settle_at: (settle_ms > 0).then(|| Instant::now() + SETTLE_MIN.max(Duration::from_millis(settle_ms))),
        refused,
        transitions,
        is_lost: answer.flag()?,
    })
}

fn read_transition(list: &mut Answer) -> Result<Transition, BackplaneError> {
    let kind = list.text()?;
    Ok(match &*kind {
        "joined" => Transition::UserJoined { user: list.text()? },
        "left" => Transition::UserLeft { user: list.text()? },
        "count" => Transition::Count { subscriptions: list.number()? },
        end => {
            list.text()?;
            if end == "vacated" { Transition::Vacated } else { Transition::Occupied }
        }
    })
}

fn read_roll(mut answer: Answer) -> Result<Read, BackplaneError> {
    let (sequence, subscriptions, users) = (answer.number()?, answer.number()?, answer.number()?);
    let (mut instances, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        instances.push(list.text()?);
    }
    let mut roll = Roll { sequence, subscriptions, users: Vec::new() };
    let mut list = answer.list()?;
    while !list.is_empty() {
        let (id, info) = (list.text()?, list.text()?);
        roll.users.push(User { id, info: (!info.is_empty()).then_some(info) });
    }
    Ok(Read { roll, users, instances })
}
