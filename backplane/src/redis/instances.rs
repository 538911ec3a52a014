//! What presence and census share: how much waits and goes at once, and how the channels of an instance are listed and
//! cleared.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt};
use redis::{Cmd, FromRedisValue};

use super::{contract::Commands, names::NODES};
use crate::BackplaneError;

/// Changes that may wait on a node. Each is of one connection, which waits for it: three for each of the 20,000
/// connections that a node has descriptors for.
pub(crate) const WAITING_MAX: u64 = 60_000;

/// Changes sent at once.
pub(crate) const BATCH: usize = 512;

/// Channels that are written, or cleared of an instance, at the same time.
pub(crate) const CONCURRENCY: usize = 64;

/// Channels asked for at once.
const PAGE: usize = 1000;

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

fn not_ours() -> BackplaneError {
    BackplaneError::Refused(
        "a set of channels holds something else; do others use the same key prefix?".into(),
    )
}
