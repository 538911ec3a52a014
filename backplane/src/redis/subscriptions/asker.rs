//! The task that asks the server for positions, pages of streams and new epochs, so many at a time.
//!
//! Positions of channels of one route are asked for together. Reading them writes nothing; that their state is in use is
//! said afterwards, and may fail without harm to what was read.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};

use super::{
    entry::Entry,
    registry::Registry,
    sequence::{Ask, Failed, Page},
};
use crate::{
    BackplaneError, Position,
    redis::history::{self, Standing},
};

/// Positions in one question: 512 of some 2 µs are 1 ms of the server's time.
const POSITIONS: usize = 512;

/// Questions for positions at once: so that a server is never idle between them.
const QUESTIONS_AT_ONCE: usize = 4;

/// Each holds a page in memory: 64 of 1 MiB at most.
const READS_AT_ONCE: usize = 64;

/// Publications of a page; the reader bounds its bytes to 1 MiB.
const PAGE: usize = 256;

/// A page for a sink that had no room a moment ago.
const PROBE: usize = 16;

/// The position of a channel with history is looked at three times in its age, so that two may fail before its state
/// expires, and at least each 30 s.
const LOOKS_PER_AGE: u32 = 3;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(30);
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// A look that failed is made again after this.
const FAILED_LOOK_PAUSE: Duration = Duration::from_secs(5);

/// What a finished ask gives back.
enum Done {
    Question,
    Read,
}

type Running = FuturesUnordered<BoxFuture<'static, Done>>;

/// Runs until it is aborted.
pub(super) async fn run(registry: Arc<Registry>) {
    let mut running = Running::new();
    let (mut questions, mut reads) = (0, 0);
    loop {
        if questions < QUESTIONS_AT_ONCE {
            let asks =
                take(&registry, |asks| &mut asks.positions, POSITIONS * (QUESTIONS_AT_ONCE - questions));
            if !asks.is_empty() {
                questions += 1;
                running.push(ask_positions(Arc::clone(&registry), asks).map(|()| Done::Question).boxed());
            }
        }
        for (entry, ask) in take(&registry, |asks| &mut asks.reads, READS_AT_ONCE - reads) {
            reads += 1;
            running.push(read(Arc::clone(&registry), entry, ask).map(|()| Done::Read).boxed());
        }
        tokio::select! {
            Some(done) = running.next(), if !running.is_empty() => match done {
                Done::Question => questions -= 1,
                Done::Read => reads -= 1,
            },
            () = registry.asks_filled.notified() => {}
        }
    }
}

type Queue = std::collections::VecDeque<(Arc<Entry>, Ask)>;

fn take(
    registry: &Registry,
    of: impl FnOnce(&mut super::work::Asks) -> &mut Queue,
    number: usize,
) -> Vec<(Arc<Entry>, Ask)> {
    let mut asks = registry.asks.lock().unwrap_or_else(PoisonError::into_inner);
    let queue = of(&mut asks);
    let number = number.min(queue.len());
    queue.drain(..number).collect()
}

/// Asks for the positions of channels, by their routes.
async fn ask_positions(registry: Arc<Registry>, asks: Vec<(Arc<Entry>, Ask)>) {
    let mut routes: HashMap<_, Vec<(Arc<Entry>, Ask)>> = HashMap::new();
    for (entry, ask) in asks {
        let route = registry.subscribing.route(entry.channel.as_str());
        routes.entry(route).or_default().push((entry, ask));
    }
    let questions = routes.values().flat_map(|asks| asks.chunks(POSITIONS));
    join_all(questions.map(|asks| ask_question(&registry, asks))).await;
}

async fn ask_question(registry: &Registry, asks: &[(Arc<Entry>, Ask)]) {
    let channels: Vec<_> = asks.iter().map(|(entry, _)| &entry.channel).collect();
    let answer = registry.reader.positions(&channels).await;
    let standing = |nth: usize| answer.as_ref().map(|standings| standings[nth]);
    for (nth, (entry, ask)) in asks.iter().enumerate() {
        let Ask::Position { serial, handed } = *ask else { continue };
        match standing(nth) {
            Ok(None) => {}
            Ok(Some(standing)) => registry.look_after(entry, look_interval(&standing)),
            Err(_) => registry.look_after(entry, FAILED_LOOK_PAUSE),
        }
        let top = standing(nth).map(|standing| standing.map(|standing| standing.top)).map_err(|_| Failed);
        registry.advance(entry, |state, delivery| state.sequence.checked(serial, handed, top, delivery));
    }
    let used = channels.iter().enumerate();
    let used = used.filter_map(|(nth, channel)| Some((*channel, standing(nth).ok()??.age)));
    if registry.reader.renew(&used.collect::<Vec<_>>()).await.is_err() {
        registry.counters.failed_renewals.fetch_add(1, Relaxed);
    }
}

fn look_interval(standing: &Standing) -> Duration {
    (standing.age / LOOKS_PER_AGE).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX)
}

async fn read(registry: Arc<Registry>, entry: Arc<Entry>, ask: Ask) {
    let (reader, channel) = (&registry.reader, &entry.channel);
    match ask {
        Ask::Page { serial, since, probe } => {
            let limit = if probe { PROBE } else { PAGE };
            let page: Result<_, BackplaneError> = reader.page(channel, Some(since.position), limit).await;
            let page = page.map(|page| consecutive(page, since.position)).map_err(|_| Failed);
            registry.advance(&entry, |state, delivery| state.sequence.page(serial, page, delivery));
        }
        Ask::Renounce { serial, epoch } => {
            let outcome = reader.renounce(channel, epoch).await.map(|_| ()).map_err(|_| Failed);
            registry.advance(&entry, |state, delivery| state.sequence.renounced(serial, outcome, delivery));
        }
        Ask::Position { .. } | Ask::Grace { .. } | Ask::Retry { .. } => {}
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
