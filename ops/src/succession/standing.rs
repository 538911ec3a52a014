//! Shards that stand still while another process reads what their connections are.

use std::{
    collections::HashSet,
    os::fd::BorrowedFd,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::{
    fields::Writer,
    succession::{SOCKETS_MAX, Step},
};

use super::{
    FORM, Talk, TalkError,
    shards::{SHARD_PATIENCE, send},
    upgradable::{ShardMailbox, Upgradable, UpgradeError, Written},
};

/// All shards of the process, each in the middle of a turn. Dropped, they go on.
pub(super) struct Standing<U: Upgradable> {
    /// Of each shard: the begin of its part of the state, its records and their sockets.
    written: Vec<Noted>,
    words: Vec<Sender<Word>>,
    began: Instant,
    process: std::marker::PhantomData<U>,
}

/// What a shard has written, without what it keeps to itself.
struct Noted {
    state: Vec<u8>,
    records: usize,
    sockets: usize,
    has_under_way: bool,
}

/// What a shard that stands still is told.
enum Word {
    /// Send the sockets, in the order of the records.
    Send(Talk, Sender<Result<(), TalkError>>),
    /// Another process has them, but for these, by their places among the records.
    LetGo(LetGo),
}

struct LetGo {
    refused: HashSet<usize>,
    /// Ends when the other process serves: clients wait for that one, and this one leaves it the cores.
    served: Receiver<()>,
    /// How many stay.
    stayed: Sender<usize>,
}

/// Shards that let go of what they had once [the other process serves](Self::served).
#[derive(Debug)]
pub(super) struct LettingGo {
    serves: Vec<Sender<()>>,
    stayed: Vec<Receiver<usize>>,
}

impl LettingGo {
    /// How many connections stay.
    pub(super) fn served(self) -> usize {
        drop(self.serves);
        self.stayed.iter().filter_map(|stayed| stayed.recv_timeout(SHARD_PATIENCE).ok()).sum()
    }
}

/// No shard stands longer, whatever becomes of who had it stop.
const STAND_MAX: Duration = Duration::from_secs(30);

/// Nothing is handed on later: what is said then has time to reach a shard before it goes on by itself.
const HAND_ON_MAX: Duration = Duration::from_secs(15);

impl<U: Upgradable> Standing<U> {
    pub(super) fn begin(shards: &[ShardMailbox<U>]) -> Result<Self, UpgradeError> {
        let mut words = Vec::new();
        let mut writings: Vec<Receiver<Noted>> = Vec::new();
        let began = Instant::now();
        for shard in shards {
            let (word, told) = mpsc::channel();
            let (writing, written) = mpsc::channel();
            send::<U>(shard, move |part, connections| stand::<U>(part, connections, &writing, &told));
            words.push(word);
            writings.push(written);
        }
        let written =
            |writing: Receiver<Noted>| writing.recv_timeout(SHARD_PATIENCE).map_err(|_| UpgradeError::Shard);
        let written = writings.into_iter().map(written).collect::<Result<_, _>>()?;
        Ok(Self { written, words, began, process: std::marker::PhantomData })
    }

    /// Whether more connections could go along if they were waited for.
    pub(super) fn has_under_way(&self) -> bool {
        self.written.iter().any(|written| written.has_under_way)
    }

    pub(super) fn sockets(&self) -> u32 {
        self.written.iter().map(|written| written.sockets as u32).sum()
    }

    /// The state; `rest` is what goes along beside the connections.
    pub(super) fn to_bytes(&self, rest: &[u8]) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(FORM);
        out.list(self.written.iter(), |out, written| out.bytes(&written.state));
        out.bytes(rest);
        out.into_bytes()
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

    /// Another process has everything but these. From here on no shard goes on with what that one has.
    pub(super) fn let_go(self, refused: &[u32]) -> LettingGo {
        let mut first = 0;
        let mut letting_go = LettingGo { serves: Vec::new(), stayed: Vec::new() };
        for (word, written) in self.words.iter().zip(&self.written) {
            let places = first..first + written.records;
            let stay = refused.iter().map(|&at| at as usize).filter(|at| places.contains(at));
            let refused = stay.map(|at| at - first).collect();
            let (serves, served) = mpsc::channel();
            let (stayed, answer) = mpsc::channel();
            // A shard that stands no longer has failed, and its connections with it.
            drop(word.send(Word::LetGo(LetGo { refused, served, stayed })));
            letting_go.serves.push(serves);
            letting_go.stayed.push(answer);
            first = places.end;
        }
        letting_go
    }
}

/// In the shard.
fn stand<U: Upgradable>(
    part: &mut U::Shard,
    connections: &mut Connections<U::Connection>,
    writing: &Sender<Noted>,
    words: &Receiver<Word>,
) {
    let written = U::write(part, connections);
    let moving: Vec<ConnectionId> =
        written.records.iter().flat_map(|record| record.connections.iter().copied()).collect();
    let noted = Noted {
        state: written.to_bytes(),
        records: written.records.len(),
        sockets: moving.len(),
        has_under_way: written.has_under_way,
    };
    if writing.send(noted).is_err() {
        return;
    }
    while let Ok(word) = words.recv_timeout(STAND_MAX) {
        match word {
            Word::Send(talk, done) => drop(done.send(send_sockets(connections, &moving, &talk))),
            Word::LetGo(LetGo { refused, served, stayed }) => {
                let _served = served.recv_timeout(STAND_MAX);
                let stay = U::let_go(part, connections, &written, &|at| !refused.contains(&at));
                let _told = stayed.send(stay);
                return;
            }
        }
    }
}

impl Written {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.newest_generation);
        out.list(self.records.iter(), |out, record| {
            out.u8(record.connections.len() as u8);
            out.bytes(&record.bytes);
        });
        out.into_bytes()
    }
}

fn send_sockets<C>(
    connections: &Connections<C>,
    moving: &[ConnectionId],
    talk: &Talk,
) -> Result<(), TalkError> {
    for portion in moving.chunks(SOCKETS_MAX) {
        let sockets: Vec<BorrowedFd<'_>> = portion.iter().filter_map(|&id| connections.socket(id)).collect();
        talk.say(&Step::Sockets { number: sockets.len() as u32 }, &sockets)?;
    }
    Ok(())
}
