//! Writes that count when replicas have them: a connection of their own, and one `WAIT` at a time for all of them.
//!
//! `WAIT` answers for what its own connection wrote, and nothing behind it is run until it is answered. So these writes
//! have a connection to themselves: while a replica hangs, only they are slow.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};

use super::dial::{Raw, ask};
use super::link::{Link, Live, Sent};
use super::pipe::Pipe;
use super::{Links, call};
use crate::BackplaneError;
use crate::redis::contract::Commands;
use crate::redis::error::Trouble;

/// Replicas have so long. A write that comes when a `WAIT` has just been sent runs behind that one and shares the next:
/// 2 × 500 ms, each answer well before the 2 s after which the link counts as away.
const REPLICA_DEADLINE: Duration = Duration::from_millis(500);

/// Writes that ask for a `WAIT`; more wait for room. Their bytes are in the link's bound already.
const WAITERS_MAX: usize = 1024;

/// What one `WAIT` said of all who share it.
type Verdict = Result<(), Trouble>;

/// The part of a session that is there when replicas are asked for.
pub(super) struct Replication {
    replicas: u8,
    pub(super) pipe: Arc<Pipe>,
    waiters: mpsc::Sender<oneshot::Sender<Verdict>>,
}

/// Who waits to be told; [`run`] tells them.
pub(super) type Waiters = mpsc::Receiver<oneshot::Sender<Verdict>>;

/// [`Links`] whose every call is a write that replicas must have.
pub(super) struct Replicated(pub(super) Links);

impl Replication {
    pub(super) fn new(replicas: u8) -> (Self, Waiters) {
        let (waiters, waiting) = mpsc::channel(WAITERS_MAX);
        (Self { replicas, pipe: Arc::default(), waiters }, waiting)
    }

    /// Whether the replicas have what was answered before this is called.
    pub(super) async fn reached(&self) -> Verdict {
        let (told, verdict) = oneshot::channel();
        // Either fails when the session is over.
        self.waiters.send(told).await.map_err(|_| Trouble::Closed)?;
        verdict.await.unwrap_or(Err(Trouble::Closed))
    }
}

impl Commands for Replicated {
    fn call(&self, tag: &str, command: Cmd) -> BoxFuture<'_, Result<Value, BackplaneError>> {
        let tag: Box<str> = tag.into();
        async move { call::call(&self.0.shared, &tag, &command, true).await }.boxed()
    }

    fn is_sharded(&self) -> bool {
        self.0.is_sharded()
    }
}

/// Whether this user may say `WAIT`: asked for no replica, it is answered at once.
pub(super) async fn check(raw: &mut Raw) -> Result<(), Trouble> {
    ask(raw, &wait_for(0)).await.map(|_| ())
}

/// Sends one `WAIT` after the other. Whoever was answered before one was sent shares it.
pub(super) async fn run(live: Arc<Live>, mut waiters: Waiters, link: Arc<Link>) {
    let Some(replication) = &live.replication else { return };
    let mut sharing = Vec::new();
    while waiters.recv_many(&mut sharing, WAITERS_MAX).await > 0 {
        link.counts.waits.add();
        let verdict = wait(&live, replication).await;
        for told in sharing.drain(..) {
            // A caller that has gone needs no answer.
            drop(told.send(verdict.clone()));
        }
    }
}

async fn wait(live: &Live, replication: &Replication) -> Verdict {
    let asked = replication.replicas;
    match live.send_over(&replication.pipe, &wait_for(asked), false, None).await.0 {
        Sent::Answer(Value::Int(reached)) if reached >= i64::from(asked) => Ok(()),
        Sent::Answer(Value::Int(reached)) => {
            Err(Trouble::NotReplicated { reached, asked, within: REPLICA_DEADLINE })
        }
        Sent::Refused(error) => {
            // It became a replica, or ended all that waited because it is about to.
            let trouble = Trouble::Refused(error);
            live.give_up(trouble.clone());
            Err(trouble)
        }
        Sent::Unknown(trouble) => Err(trouble),
        Sent::Answer(_) | Sent::Never(_) => Err(Trouble::Protocol),
    }
}

fn wait_for(replicas: u8) -> Cmd {
    let mut command = redis::cmd("WAIT");
    command.arg(replicas).arg(u64::try_from(REPLICA_DEADLINE.as_millis()).unwrap_or(u64::MAX));
    command
}
