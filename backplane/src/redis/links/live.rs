//! A session with one server: its connections, what is sent on them, and why it ended.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use redis::{Cmd, ServerError, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::halt::Halt;
use super::pipe::{Answers, Pipe};
use super::replication::Replication;
use super::room::{Room, WAITING_BYTES_MAX};
use crate::redis::contract::Session;
use crate::redis::error::Trouble;
use crate::redis::url::Server;

/// The connections to one server, made and replaced together.
pub(crate) struct Live {
    pub(crate) session: Session,
    pub(crate) server: Server,
    /// When it began; probes carry the time since then.
    pub(super) began: Instant,
    pub(crate) outbox: Outbox,
    /// Publications, history, probes.
    pub(super) pipe: Arc<Pipe>,
    /// What keeps this node and what it holds alive: no bulk load stands before it.
    pub(super) vital: Arc<Pipe>,
    /// Of publications that replicas must have.
    pub(super) replication: Option<Replication>,
    pub(super) halt: Arc<Halt>,
    /// Why it was given up; whoever comes first says it.
    why: OnceLock<Trouble>,
    pub(crate) ended: CancellationToken,
}

/// Subscribe commands that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Mutex<Vec<u8>>,
    pub(super) filled: Notify,
    /// Channels whose end was asked for and not yet confirmed.
    pub(super) ending: AtomicUsize,
}

/// What became of a command.
#[derive(Debug)]
pub(crate) enum Sent {
    Answer(Value),
    Refused(ServerError),
    /// Nothing was sent, or not all of it: the server has not run it.
    Never(Trouble),
    /// As many bytes wait as may.
    NoRoom,
    /// It was sent, the outcome is not known.
    Unknown(Trouble),
}

impl Live {
    pub(super) fn new(
        session: Session,
        server: Server,
        began: Instant,
        replication: Option<Replication>,
    ) -> Arc<Self> {
        Arc::new(Self {
            session,
            server,
            began,
            outbox: Outbox::default(),
            pipe: Arc::default(),
            vital: Arc::default(),
            replication,
            halt: Arc::default(),
            why: OnceLock::new(),
            ended: CancellationToken::new(),
        })
    }

    /// Ends the session; its link makes another one.
    pub(crate) fn give_up(&self, why: Trouble) {
        // Whoever comes later has nothing to add.
        if self.why.set(why).is_ok() {
            self.ended.cancel();
        }
    }

    /// Why it is over; `None` while it is not.
    pub(super) fn why(&self) -> Option<&Trouble> {
        self.why.get()
    }

    /// Sends a command without regard to the bound: the Cluster's slots, the first probe.
    pub(super) async fn send(&self, command: &Cmd) -> Sent {
        let mut sent = self.send_over(&self.pipe, &[command], false, None).await;
        sent.pop().unwrap_or(Sent::Never(Trouble::Closed))
    }

    /// The same, with nobody waiting: what became of them is looked at later.
    pub(super) fn post(&self, commands: &[&Cmd]) -> Option<oneshot::Receiver<Answers>> {
        self.pipe.push(commands, false, None)
    }

    /// Commands that wait for their answers.
    pub(super) fn waiting(&self) -> usize {
        self.pipes().map(|pipe| pipe.waiting()).sum()
    }

    pub(super) fn pipes(&self) -> impl Iterator<Item = &Arc<Pipe>> {
        let replicated = self.replication.iter().map(|replication| &replication.pipe);
        [&self.pipe, &self.vital].into_iter().chain(replicated)
    }

    /// Sends writes, and waits until the replicas that are asked for have what was accepted.
    pub(super) async fn send_replicated(
        &self,
        replication: &Replication,
        commands: &[&Cmd],
        asking: bool,
        room: Room,
    ) -> Vec<Sent> {
        let mut sent = self.send_over(&replication.pipe, commands, asking, Some(room)).await;
        let is_accepted = |sent: &Sent| matches!(sent, Sent::Answer(_));
        if sent.iter().any(is_accepted)
            && let Err(trouble) = replication.reached().await
        {
            for sent in sent.iter_mut().filter(|sent| is_accepted(sent)) {
                *sent = Sent::Unknown(trouble.clone());
            }
        }
        sent
    }

    /// What became of each of the commands.
    pub(super) async fn send_over(
        &self,
        pipe: &Pipe,
        commands: &[&Cmd],
        asking: bool,
        room: Option<Room>,
    ) -> Vec<Sent> {
        let why = || self.why.get().cloned().unwrap_or(Trouble::Closed);
        let Some(answered) = pipe.push(commands, asking, room) else {
            return commands.iter().map(|_| Sent::Never(why())).collect();
        };
        // The sender is kept until it has sent.
        let Ok(answers) = answered.await else {
            return commands.iter().map(|_| Sent::Unknown(why())).collect();
        };
        let mut sent: Vec<_> = answers.values.into_iter().map(Sent::of).collect();
        for _ in sent.len()..commands.len() {
            sent.push(if answers.are_rest_unsent { Sent::Never(why()) } else { Sent::Unknown(why()) });
        }
        sent
    }
}

impl Sent {
    pub(super) fn of(value: Value) -> Self {
        match value {
            Value::ServerError(error) => Self::Refused(error),
            value => Self::Answer(value),
        }
    }
}

impl Outbox {
    /// False: as many bytes wait as may.
    pub(crate) fn push(&self, command: &Cmd) -> bool {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = bytes.len();
        command.write_packed_command(&mut bytes);
        if bytes.len() > WAITING_BYTES_MAX {
            bytes.truncate(before);
            return false;
        }
        drop(bytes);
        self.filled.notify_one();
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn take(&self, spent: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner), spent)
    }
}
