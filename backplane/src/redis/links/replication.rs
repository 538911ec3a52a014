//! Writes that count when replicas have them: a connection of their own, and one `WAIT` at a time for all of them.
//!
//! `WAIT` answers for what its own connection wrote, and nothing behind it is run until it is answered. So these writes
//! have a connection to themselves: while a replica hangs, only they are slow.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};

use super::dial::{Connection, ask};
use super::pipe::Pipe;
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
    pub(super) pipe: Arc<Pipe>,
    waiters: mpsc::Sender<oneshot::Sender<Verdict>>,
}

/// Who waits to be told; [`run`] tells them.
pub(super) type Waiters = mpsc::Receiver<oneshot::Sender<Verdict>>;

impl Replication {
    pub(super) fn new() -> (Self, Waiters) {
        let (waiters, waiting) = mpsc::channel(WAITERS_MAX);
        (Self { pipe: Arc::default(), waiters }, waiting)
    }

    /// Whether the replicas have what was answered before this is called.
    pub(super) async fn reached(&self) -> Verdict {
        let (told, verdict) = oneshot::channel();
        // Either fails when the session is over.
        self.waiters.send(told).await.map_err(|_| Trouble::Closed)?;
        verdict.await.unwrap_or(Err(Trouble::Closed))
    }
}

/// Whether this user may say `WAIT`: asked for no replica, it is answered at once.
pub(super) async fn check(connection: &mut Connection) -> Result<(), Trouble> {
    ask(connection, &wait_for(0)).await.map(|_| ())
}

/// Sends one `WAIT` after the other. Whoever was answered before one was sent shares it. `give_up`: the server takes no
/// writes any more.
pub(super) async fn run(
    replicas: u8,
    pipe: Arc<Pipe>,
    mut waiters: Waiters,
    count: impl Fn(),
    give_up: impl Fn(Trouble),
) {
    let mut sharing = Vec::new();
    while waiters.recv_many(&mut sharing, WAITERS_MAX).await > 0 {
        count();
        let verdict = wait(replicas, &pipe, &give_up).await;
        for told in sharing.drain(..) {
            // A caller that has gone needs no answer.
            drop(told.send(verdict.clone()));
        }
    }
}

async fn wait(asked: u8, pipe: &Pipe, give_up: &impl Fn(Trouble)) -> Verdict {
    let answers = match pipe.push(&[&wait_for(asked)], false, None) {
        Some(answered) => answered.await.map_err(|_| Trouble::Closed)?,
        None => return Err(Trouble::Closed),
    };
    match answers.values.into_iter().next() {
        Some(Value::Int(reached)) if reached >= i64::from(asked) => Ok(()),
        Some(Value::Int(reached)) => Err(Trouble::NotReplicated { reached, asked, within: REPLICA_DEADLINE }),
        Some(Value::ServerError(error)) => {
            // It became a replica, or ended all that waited because it is about to.
            let trouble = Trouble::Refused(error);
            give_up(trouble.clone());
            Err(trouble)
        }
        Some(_) => Err(Trouble::Protocol),
        None => Err(Trouble::Closed),
    }
}

fn wait_for(replicas: u8) -> Cmd {
    let mut command = redis::cmd("WAIT");
    command.arg(replicas).arg(u64::try_from(REPLICA_DEADLINE.as_millis()).unwrap_or(u64::MAX));
    command
}
