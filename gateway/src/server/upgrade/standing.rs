//! Shards that stand still while another process reads what their connections are.

use std::{
    collections::HashSet,
    os::fd::BorrowedFd,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use tidegate_ops::succession::{Talk, TalkError};
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::succession::{SOCKETS_MAX, Step};

use super::{SHARD_PATIENCE, UpgradeError, send};
use crate::session::{
    Earlier, Head, Phase, Session,
    core::{Core, ShardMailbox},
    leaving::{ComeBack, Leave},
    protocol::Stays,
};

/// All shards of the process, each in the middle of a turn. Dropped, they go on.
pub(super) struct Standing {
    pub(super) written: Vec<Written>,
    words: Vec<Sender<Word>>,
    began: Instant,
}

/// What a shard has written down.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) newest_generation: u32,
    /// Its connections that can go on elsewhere, each with its record.
    pub(super) records: Vec<(ConnectionId, Vec<u8>)>,
    /// Another one has something under way, and could perhaps in a moment.
    has_under_way: bool,
}

/// What a shard that stands still is told.
enum Word {
    /// Send the sockets, in the order of the records.
    Send(Talk, Sender<Result<(), TalkError>>),
    /// Another process has them, but for these, by their places among the records. The answer: how many stay.
    LetGo(HashSet<usize>, Sender<usize>),
}

/// No shard stands longer, whatever becomes of who had it stop.
const STAND_MAX: Duration = Duration::from_secs(30);

/// Nothing is handed on later: what is said then has time to reach a shard before it goes on by itself.
const HAND_ON_MAX: Duration = Duration::from_secs(15);

impl Standing {
    pub(super) fn begin(shards: &[ShardMailbox]) -> Result<Self, UpgradeError> {
        let mut standing = Self { written: Vec::new(), words: Vec::new(), began: Instant::now() };
        let mut writings: Vec<Receiver<Written>> = Vec::new();
        for shard in shards {
            let (word, words) = mpsc::channel();
            let (writing, written) = mpsc::channel();
            send(shard, move |core, connections| stand(core, connections, &writing, &words));
            standing.words.push(word);
            writings.push(written);
        }
        for writing in writings {
            standing.written.push(writing.recv_timeout(SHARD_PATIENCE).map_err(|_| UpgradeError::Shard)?);
        }
        Ok(standing)
    }

    /// Whether more connections could go along if they were waited for.
    pub(super) fn has_under_way(&self) -> bool {
        self.written.iter().any(|written| written.has_under_way)
    }

    /// One shard after the other sends its sockets.
    pub(super) fn send_sockets(&self, talk: &Talk) -> Result<(), UpgradeError> {
        for word in &self.words {
            let (done, sent) = mpsc::channel();
            let told = word.send(Word::Send(talk.try_clone()?, done));
            told.map_err(|_| UpgradeError::Shard)?;
            sent.recv_timeout(STAND_MAX).map_err(|_| UpgradeError::Shard)??;
        }
        Ok(())
    }

    /// Whether all of them stand for long enough, so that never two processes serve.
    pub(super) fn check(&self) -> Result<(), UpgradeError> {
        if self.began.elapsed() < HAND_ON_MAX { Ok(()) } else { Err(UpgradeError::Slow) }
    }

    /// They let go of what another process has taken, and tell the others to come back. How many those are.
    pub(super) fn let_go(self, refused: &[u32]) -> usize {
        let mut first = 0;
        let mut answers = Vec::new();
        for (word, written) in self.words.iter().zip(&self.written) {
            let places = first..first + written.records.len();
            let stay = refused.iter().map(|&at| at as usize).filter(|at| places.contains(at));
            let (answer, stayed) = mpsc::channel();
            // A shard that stands no longer has failed, and its connections with it.
            drop(word.send(Word::LetGo(stay.map(|at| at - first).collect(), answer)));
            answers.push(stayed);
            first = places.end;
        }
        answers.iter().filter_map(|stayed| stayed.recv_timeout(SHARD_PATIENCE).ok()).sum()
    }
}

/// In the shard.
fn stand(
    core: &mut Core,
    connections: &mut Connections<Session>,
    writing: &Sender<Written>,
    words: &Receiver<Word>,
) {
    let ids: Vec<ConnectionId> =
        (0..connections.slots()).filter_map(|slot| connections.in_slot(slot)).collect();
    let mut has_under_way = false;
    let record = |id| match core.ctx(connections, id).moving() {
        Ok(connection) => Some((id, connection.to_bytes())),
        Err(stays) => {
            has_under_way |= stays == Stays::NotNow;
            None
        }
    };
    let records: Vec<(ConnectionId, Vec<u8>)> = ids.into_iter().filter_map(record).collect();
    let moving: Vec<ConnectionId> = records.iter().map(|(id, _)| *id).collect();
    let newest_generation = connections.newest_generation();
    if writing.send(Written { newest_generation, records, has_under_way }).is_err() {
        return;
    }
    while let Ok(word) = words.recv_timeout(STAND_MAX) {
        match word {
            Word::Send(talk, done) => drop(done.send(send_sockets(connections, &moving, &talk))),
            Word::LetGo(refused, answer) => {
                let stayed = let_go(core, connections, &moving, &refused);
                let _told = answer.send(stayed);
                return;
            }
        }
    }
}

fn send_sockets(
    connections: &Connections<Session>,
    moving: &[ConnectionId],
    talk: &Talk,
) -> Result<(), TalkError> {
    for portion in moving.chunks(SOCKETS_MAX) {
        let sockets: Vec<BorrowedFd<'_>> = portion.iter().filter_map(|&id| connections.socket(id)).collect();
        talk.say(&Step::Sockets { number: sockets.len() as u32 }, &sockets)?;
    }
    Ok(())
}

fn let_go(
    core: &mut Core,
    connections: &mut Connections<Session>,
    moving: &[ConnectionId],
    refused: &HashSet<usize>,
) -> usize {
    for (_, &id) in moving.iter().enumerate().filter(|(at, _)| !refused.contains(at)) {
        match connections.let_go(id) {
            Ok(Some(session)) => {
                if matches!(&session.phase, Phase::Head(Head { earlier: Earlier::Answered, .. })) {
                    core.publishers -= 1;
                }
                core.count_out(connections, session.address);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a connection that moved is still polled here"),
        }
    }
    let rest: Vec<ConnectionId> =
        (0..connections.slots()).filter_map(|slot| connections.in_slot(slot)).collect();
    for &id in &rest {
        core.ctx(connections, id).leave(Leave::ComeBack(ComeBack::Drain));
    }
    rest.len()
}
