//! Shards of a process that is upgraded, and what they are asked.

use std::{
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use tidegate_reactor::{Connections, Mail, Mailbox};

use super::{Upgradable, UpgradeError};

/// How a shard is reached.
pub type ShardMailbox<U> = Mailbox<Mail<<U as Upgradable>::Connection, <U as Upgradable>::Command>>;

/// What a shard does once.
pub type Work<U> =
    Box<dyn FnOnce(&mut <U as Upgradable>::Shard, &mut Connections<<U as Upgradable>::Connection>) + Send>;

/// A shard does what it is asked in one turn, some 10 ms; it has failed, or the machine stands still.
pub(super) const SHARD_PATIENCE: Duration = Duration::from_secs(5);

/// Has a shard do something.
pub fn send<U: Upgradable>(
    shard: &ShardMailbox<U>,
    work: impl FnOnce(&mut U::Shard, &mut Connections<U::Connection>) + Send + 'static,
) {
    let work: Work<U> = Box::new(work);
    shard.send(Mail::Command(work.into()));
}

/// Has a shard do something, and say what came of it.
pub(super) fn ask<U: Upgradable, R: Send + 'static>(
    shard: &ShardMailbox<U>,
    work: impl FnOnce(&mut U::Shard, &mut Connections<U::Connection>) -> R + Send + 'static,
) -> Receiver<R> {
    let (answer, answers) = mpsc::channel();
    // Who asked may have given up.
    send::<U>(shard, move |part, connections| drop(answer.send(work(part, connections))));
    answers
}

/// The same of all shards at once.
///
/// # Errors
/// [`UpgradeError::Shard`]: one of them does not answer.
pub fn ask_all<U: Upgradable, R: Send + 'static>(
    shards: &[ShardMailbox<U>],
    work: impl Fn(&mut U::Shard, &mut Connections<U::Connection>) -> R + Clone + Send + 'static,
) -> Result<Vec<R>, UpgradeError> {
    let asked: Vec<Receiver<R>> = shards.iter().map(|shard| ask::<U, R>(shard, work.clone())).collect();
    let answer = |answers: Receiver<R>| answers.recv_timeout(SHARD_PATIENCE).map_err(|_| UpgradeError::Shard);
    asked.into_iter().map(answer).collect()
}
