//! The task that asks the server for positions, pages of streams and new epochs, so many at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    entry::Entry,
    keeper::Due,
    registry::Registry,
    sequence::{Ask, Failed, Page},
};
use crate::{
    BackplaneError, Position,
    redis::{
        envelope::Place,
        history::{self, Standing},
    },
};

/// Enough that a server is never idle between them: 256 of 20 µs each are 5 ms of its time.
const POSITIONS_AT_ONCE: usize = 256;

/// Each holds a page in memory: 64 of 1 MiB at most.
const READS_AT_ONCE: usize = 64;

/// Publications of a page; the reader bounds its bytes to 1 MiB.
const PAGE: usize = 256;

/// A page for a sink that had no room a moment ago.
const PROBE: usize = 16;

/// A channel's position is looked at three times in the age of its history, so that two may fail before its state
/// expires, and at least each 30 s.
const LOOKS_PER_AGE: u32 = 3;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(30);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// What is to be asked. A channel has at most one of its repair and one look in here.
#[derive(Default)]
pub(super) struct Asks {
    positions: VecDeque<(Arc<Entry>, Ask)>,
    reads: VecDeque<(Arc<Entry>, Ask)>,
}

enum Answer {
    Position { serial: u32, handed: Option<Place>, standing: Result<Option<Standing>, BackplaneError> },
    Page { serial: u32, since: Position, page: Result<history::Page, BackplaneError> },
    Renounced { serial: u32, outcome: Result<Option<Standing>, BackplaneError> },
    Nothing,
}

impl Asks {
    pub(super) fn push(&mut self, entry: Arc<Entry>, ask: Ask) {
        match ask {
            Ask::Position { .. } => self.positions.push_back((entry, ask)),
            _ => self.reads.push_back((entry, ask)),
        }
    }
}

/// Runs until it is aborted.
pub(super) async fn run(registry: Arc<Registry>) {
    let mut running = FuturesUnordered::new();
    let (mut positions, mut reads) = (0, 0);
    loop {
        let next = take(&registry, POSITIONS_AT_ONCE - positions, READS_AT_ONCE - reads);
        for (entry, ask) in next {
            *if is_position(&ask) { &mut positions } else { &mut reads } += 1;
            running.push(perform(Arc::clone(&registry), entry, ask));
        }
        tokio::select! {
            Some((entry, answer)) = running.next(), if !running.is_empty() => {
                *if matches!(answer, Answer::Position { .. }) { &mut positions } else { &mut reads } -= 1;
                hear(&registry, &entry, answer);
            }
            () = registry.asks_filled.notified() => {}
        }
    }
}

fn take(registry: &Registry, positions: usize, reads: usize) -> Vec<(Arc<Entry>, Ask)> {
    let mut asks = registry.asks.lock().unwrap_or_else(PoisonError::into_inner);
    let (positions, reads) = (positions.min(asks.positions.len()), reads.min(asks.reads.len()));
    let mut next: Vec<_> = asks.positions.drain(..positions).collect();
    next.extend(asks.reads.drain(..reads));
    next
}

fn is_position(ask: &Ask) -> bool {
    matches!(ask, Ask::Position { .. })
}

async fn perform(registry: Arc<Registry>, entry: Arc<Entry>, ask: Ask) -> (Arc<Entry>, Answer) {
    let (reader, channel) = (&registry.reader, &entry.channel);
    let answer = match ask {
        Ask::Position { serial, handed } => {
            Answer::Position { serial, handed, standing: reader.position(channel).await }
        }
        Ask::Page { serial, since, probe } => {
            let limit = if probe { PROBE } else { PAGE };
            let page = reader.page(channel, Some(since.position), limit).await;
            Answer::Page { serial, since: since.position, page }
        }
        Ask::Renounce { serial, epoch } => {
            Answer::Renounced { serial, outcome: reader.renounce(channel, epoch).await }
        }
        Ask::Grace { .. } | Ask::Retry { .. } => Answer::Nothing,
    };
    (entry, answer)
}

fn hear(registry: &Registry, entry: &Arc<Entry>, answer: Answer) {
    match answer {
        Answer::Position { serial, handed, standing } => {
            look_again(registry, entry, standing.as_ref().ok().copied().flatten());
            let top = standing.map(|standing| standing.map(|standing| standing.top)).map_err(|_| Failed);
            registry.advance(entry, |state, spout| state.sequence.checked(serial, handed, top, spout));
        }
        Answer::Page { serial, since, page } => {
            let page = page.map(|page| consecutive(page, since)).map_err(|_| Failed);
            registry.advance(entry, |state, spout| state.sequence.page(serial, page, spout));
        }
        Answer::Renounced { serial, outcome } => {
            let outcome = outcome.map(|_| ()).map_err(|_| Failed);
            registry.advance(entry, |state, spout| state.sequence.renounced(serial, outcome, spout));
        }
        Answer::Nothing => {}
    }
}

/// A page up to the first entry that could not be decoded: there the stream has a hole.
fn consecutive(page: history::Page, since: Position) -> Page {
    let offsets = (since.offset + 1)..;
    let follows = |(publication, offset): &((_, Arc<crate::Publication>), u64)| {
        publication.1.position.is_some_and(|position| position.offset == *offset)
    };
    let publications = page.publications.into_iter().zip(offsets).take_while(follows).map(|(it, _)| it);
    Page {
        publications: publications.collect(),
        top: page.standing.map(|standing| standing.top),
        since_tag: page.since_tag,
    }
}

/// Sets the time of a channel's next look, unless there is one before.
pub(super) fn look_again(registry: &Registry, entry: &Arc<Entry>, standing: Option<Standing>) {
    let by_age = standing.map_or(LOOK_INTERVAL_MAX, |standing| standing.age / LOOKS_PER_AGE);
    let interval = by_age.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
    let at = Instant::now() + registry.spread(interval);
    let is_first = entry.locked(|state| {
        let is_first = state.look_at.is_none_or(|planned| at < planned) && !state.is_closed;
        if is_first {
            state.look_at = Some(at);
        }
        is_first
    });
    if is_first {
        registry.order(|desk| desk.timers.push((at, Arc::clone(entry), Due::Look)));
    }
}
