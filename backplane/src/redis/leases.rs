//! Leased state: how long what was written counts, how much waits and goes at once, and how the channels of an instance
//! are listed and cleared.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};
use futures_util::stream::{self, StreamExt};
use redis::{Cmd, FromRedisValue};
use tokio::sync::Notify;

use super::{
    contract::{Commands, Seat},
    names::NODES,
};
use crate::{BackplaneError, Channel};

/// Changes that may wait on a node. Each is of one connection, which waits for it: three for each of the 20,000
/// connections that a node has descriptors for.
pub(crate) const WAITING_MAX: u64 = 60_000;

/// Changes sent at once.
pub(crate) const BATCH: usize = 512;

/// Channels that are written, or cleared of an instance, at the same time.
pub(crate) const CONCURRENCY: usize = 64;

/// Channels asked for at once.
const PAGE: usize = 1000;

/// A channel that this node has left is remembered for so long: a server that comes back with older data may have this
/// node in it still. (One that lists it is asked to, however old its data is.)
const LEFT_FOR: Duration = Duration::from_secs(600);

/// So many of those at most; some 100 bytes each.
pub(crate) const LEFT_MAX: usize = 60_000;

/// What a server may have lost: raised with every new session and every new home of channels.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    is_there: AtomicBool,
    raised: Notify,
}

impl Doubt {
    pub(crate) fn raise(&self) {
        self.is_there.store(true, SeqCst);
        self.raised.notify_one();
    }

    pub(crate) async fn raised(&self) {
        self.raised.notified().await;
    }

    pub(crate) fn take(&self) -> bool {
        self.is_there.swap(false, SeqCst)
    }

    pub(crate) fn is_there(&self) -> bool {
        self.is_there.load(SeqCst)
    }
}

/// Where what a node holds in one channel was written. In another session, the server may have an older state of it.
#[derive(Debug, Default)]
pub(crate) struct Written {
    seat: Option<Seat>,
    /// Under which instance the channel is listed, and in which session.
    listed: Option<(Arc<str>, Option<Seat>)>,
    /// Since when nobody of this node is there.
    left_at: Option<Instant>,
}

/// Sessions as they were before something was written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seats {
    channel: Option<Seat>,
    nodes: Option<Seat>,
}

impl Seats {
    pub(crate) fn of(commands: &dyn Commands, channel: &Channel) -> Self {
        Self { channel: commands.seat(channel.as_str()), nodes: commands.seat(NODES) }
    }
}

impl Written {
    /// Whether a server that is there may have lost it.
    pub(crate) fn is_doubtful(&self, now: Seats) -> bool {
        let is_other = |held: Option<Seat>, now: Option<Seat>| now.is_some() && now != held;
        let listed = self.listed.as_ref();
        is_other(self.seat, now.channel) || listed.is_some_and(|(_, seat)| is_other(*seat, now.nodes))
    }

    pub(crate) fn is_listed(&self, instance: &str, now: Seats) -> bool {
        self.listed.as_ref().is_some_and(|(held, seat)| **held == *instance && *seat == now.nodes)
    }

    /// All that this node holds there was written; `listed`: the channel is listed for the instance.
    pub(crate) fn note_whole(&mut self, seats: Seats) {
        self.seat = seats.channel;
    }

    /// A part was written in the session of the rest, or in the first there is.
    pub(crate) fn note_part(&mut self, seats: Seats) {
        self.seat = self.seat.or(seats.channel);
    }

    pub(crate) fn note_listed(&mut self, instance: &Arc<str>, seats: Seats) {
        self.listed = Some((Arc::clone(instance), seats.nodes));
    }

    pub(crate) fn note_unlisted(&mut self) {
        self.listed = None;
    }

    pub(crate) fn leave(&mut self, now: Instant) {
        self.left_at.get_or_insert(now);
    }

    pub(crate) fn enter(&mut self) {
        self.left_at = None;
    }

    /// Whether it need not be remembered any more that this node was there.
    pub(crate) fn is_forgotten(&self, now: Instant) -> bool {
        self.left_at.is_some_and(|left_at| now.saturating_duration_since(left_at) >= LEFT_FOR)
    }

    pub(crate) fn is_left(&self) -> bool {
        self.left_at.is_some()
    }

    /// For another process, which is this node then.
    pub(crate) fn write(&self, out: &mut Writer, now: Instant) {
        out.option(self.seat, Seat::write);
        out.option(self.listed.as_ref(), |out, (instance, seat)| {
            out.text(instance);
            out.option(*seat, Seat::write);
        });
        out.option(self.left_at, |out, at| out.u64(now.saturating_duration_since(at).as_millis() as u64));
    }

    pub(crate) fn read(fields: &mut Reader<'_>, now: Instant) -> Result<Self, Malformed> {
        Ok(Self {
            seat: fields.option(Seat::read)?,
            listed: fields.option(|fields| Ok((fields.text()?.into(), fields.option(Seat::read)?)))?,
            left_at: fields.option(|fields| {
                let ago = Duration::from_millis(fields.u64()?);
                Ok(now.checked_sub(ago).unwrap_or(now))
            })?,
        })
    }
}

/// The names in an instance's set.
pub(crate) async fn listed(commands: &dyn Commands, set: &str) -> Result<BTreeSet<String>, BackplaneError> {
    let mut found = BTreeSet::new();
    scan(commands, set, "", &mut found).await?;
    Ok(found)
}

/// A page of a hash, and where the next begins; `0` is the end. What was in it all the time is in one of the pages.
pub(crate) async fn hash_page(
    commands: &dyn Commands,
    tag: &str,
    key: &str,
    cursor: &str,
) -> Result<(String, Vec<(Vec<u8>, Vec<u8>)>), BackplaneError> {
    let mut command = redis::cmd("HSCAN");
    command.arg(key).arg(cursor).arg("COUNT").arg(BATCH);
    let value = commands.call(tag, command).await?;
    FromRedisValue::from_redis_value(value).map_err(|_| not_ours())
}

/// Lists a channel in an instance's set, so that what is written is found when the instance is gone.
pub(crate) async fn list(commands: &dyn Commands, set: &str, channel: &str) -> Result<(), BackplaneError> {
    commands.call(NODES, set_command("SADD", set, channel)).await.map(|_| ())
}

pub(crate) async fn unlist(commands: &dyn Commands, set: &str, channel: &str) -> Result<(), BackplaneError> {
    commands.call(NODES, set_command("SREM", set, channel)).await.map(|_| ())
}

/// Clears the channels of an instance's set of what the instance left, and takes them out of it.
pub(crate) async fn clear_all<F>(
    commands: &dyn Commands,
    set: &str,
    clear: impl Fn(String) -> F,
) -> Result<(), BackplaneError>
where
    F: Future<Output = Result<(), BackplaneError>>,
{
    loop {
        let mut command = redis::cmd("SRANDMEMBER");
        command.arg(set).arg(BATCH);
        let value = commands.call(NODES, command).await?;
        let channels: Vec<String> = FromRedisValue::from_redis_value(value).map_err(|_| not_ours())?;
        if channels.is_empty() {
            return Ok(());
        }
        let mut cleared = stream::iter(channels.iter().cloned().map(&clear)).buffer_unordered(CONCURRENCY);
        while let Some(cleared) = cleared.next().await {
            cleared?;
        }
        drop(cleared);
        let mut command = redis::cmd("SREM");
        command.arg(set).arg(&channels);
        commands.call(NODES, command).await?;
    }
}

/// Whether a prefix has a character that means something in a pattern of Redis. No name of a channel has one.
pub(crate) fn is_pattern(prefix: &str) -> bool {
    prefix.contains(['*', '?', '[', ']', '\\', '^'])
}

/// Adds the channels of a set that begin with `prefix`, which is no pattern.
pub(crate) async fn scan(
    commands: &dyn Commands,
    set: &str,
    prefix: &str,
    found: &mut BTreeSet<String>,
) -> Result<(), BackplaneError> {
    let mut cursor = "0".to_owned();
    loop {
        let mut command = redis::cmd("SSCAN");
        command.arg(set).arg(&cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(PAGE);
        let value = commands.call(NODES, command).await?;
        let (next, page): (String, Vec<String>) =
            FromRedisValue::from_redis_value(value).map_err(|_| not_ours())?;
        found.extend(page.into_iter().filter(|channel| channel.starts_with(prefix)));
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

fn set_command(name: &str, set: &str, channel: &str) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(set).arg(channel);
    command
}

pub(crate) fn not_ours() -> BackplaneError {
    BackplaneError::Refused("a key holds something else than ours; do others use the same key prefix?".into())
}
