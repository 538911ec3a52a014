//! A seeded simulation of a sequence against a model of Redis: a stream, pub/sub, answers that come late or not at
//! all, connections that break, other processes that go on, failovers that take publications back, data that vanishes, a sink without room.
//!
//! A failure names its seed; `simulate(SEED, MIX)` runs it again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use fastrand::Rng;

use super::{
    counters::Counters,
    outlet::Outlet,
    sequence::{Ask, Failed, Page, Sequence},
};
use crate::{
    Epoch, Gap, Intake, Payload, Position, Publication,
    redis::envelope::{Envelope, Place, Tag, Tags},
};

const SEEDS: u64 = 2_000;
const STEPS: usize = 300;
/// Small, so that pages end often.
const PAGE: usize = 3;
/// A few publications, so that memory runs out.
const NODE_BYTES_MAX: usize = 1_500;
/// Far above what is left to do when the world has become quiet.
const QUIET_STEPS_MAX: usize = 20_000;

/// How many of ten publications have a position.
#[derive(Debug, Clone, Copy)]
struct Mix(u64);

#[test]
fn channels_with_history() {
    (0..SEEDS).for_each(|seed| simulate(seed, Mix(10)));
}

#[test]
fn channels_without_history() {
    (0..SEEDS).for_each(|seed| simulate(seed, Mix(0)));
}

#[test]
fn channels_that_mix() {
    (0..SEEDS).for_each(|seed| simulate(seed, Mix(6)));
}

fn simulate(seed: u64, mix: Mix) {
    let mut world = World::new(seed, mix);
    for _ in 0..STEPS {
        world.step();
    }
    world.come_to_rest();
    world.check();
}

/// What the server has of the channel.
#[derive(Debug, Clone, Default)]
struct Server {
    top: Option<Place>,
    stream: VecDeque<(Tag, Arc<Publication>)>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    place: Option<Place>,
    previous: Tag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Publication(u64),
    Gap,
}

enum Answer {
    Position(Result<Option<Place>, Failed>),
    Page(Result<Page, Failed>),
    Renounced(Result<(), Failed>),
}

struct Node {
    told: Vec<Told>,
    has_room: bool,
    held: usize,
    counters: Counters,
}

struct World {
    seed: u64,
    mix: Mix,
    random: Rng,
    server: Server,
    /// What a failover would fall back to, and the first publication that it lacks.
    replica: (Server, u64),
    is_connected: bool,
    pushes: VecDeque<(u64, Envelope)>,
    asks: VecDeque<Ask>,
    answers: VecDeque<(Ask, Answer)>,
    timers: Vec<Ask>,
    sequence: Sequence,
    node: Node,
    published: BTreeMap<u64, Record>,
    /// Publications that nobody can know of any more.
    excused: BTreeSet<u64>,
    unseen: BTreeSet<u64>,
    /// From here on everything must be handed over or told.
    begins_at: Option<u64>,
}

impl World {
    fn new(seed: u64, mix: Mix) -> Self {
        let counters = Counters::default();
        Self {
            seed,
            mix,
            random: Rng::with_seed(seed),
            server: Server::default(),
            replica: (Server::default(), 0),
            is_connected: false,
            pushes: VecDeque::new(),
            asks: VecDeque::new(),
            answers: VecDeque::new(),
            timers: Vec::new(),
            sequence: Sequence::new(),
            node: Node { told: Vec::new(), has_room: true, held: 0, counters },
            published: BTreeMap::new(),
            excused: BTreeSet::new(),
            unseen: BTreeSet::new(),
            begins_at: None,
        }
    }

    fn step(&mut self) {
        match self.random.u64(..100) {
            0..24 => self.publish(),
            24 => self.hand_on(),
            25..50 => self.deliver(),
            50..62 => self.execute(),
            62..74 => self.answer(),
            74..80 => self.fire(),
            80..82 => self.look(),
            82..84 => self.lose(),
            84..87 => self.disconnect(),
            87..91 => self.connect(),
            91..93 => self.fail(),
            93..95 => self.node.has_room = !self.node.has_room,
            95..97 => drop(self.server.stream.pop_front()),
            97 => self.replica = (self.server.clone(), self.next_id()),
            98 => self.fail_over(),
            _ => self.flush(),
        }
        if self.begins_at.is_none() && self.sequence.is_based() {
            self.begins_at = Some(self.next_id());
        }
    }

    fn next_id(&self) -> u64 {
        self.published.len() as u64
    }

    fn publish(&mut self) {
        let id = self.next_id();
        let is_placed = self.random.u64(..10) < self.mix.0;
        let payload = Payload::Binary(Bytes::copy_from_slice(&id.to_be_bytes()));
        let mut publication = Publication { position: None, event: None, payload, sender: None };
        let (mut tags, mut place) = (None, None);
        if is_placed {
            let fresh = Place { position: Position { epoch: self.epoch(), offset: 0 }, tag: Tag::NONE };
            let before = self.server.top.unwrap_or(fresh);
            let position = Position { offset: before.position.offset + 1, ..before.position };
            let own = Tag(self.random.u64(..u64::from(u32::MAX)) + 1);
            publication.position = Some(position);
            tags = Some(Tags { previous: before.tag, own });
            place = Some(Place { position, tag: own });
            self.server.top = place;
            self.server.stream.push_back((own, Arc::new(publication.clone())));
        }
        self.published.insert(id, Record { place, previous: tags.map_or(Tag::NONE, |tags| tags.previous) });
        if self.is_connected {
            self.pushes.push_back((id, Envelope { tags, publication }));
        }
    }

    fn epoch(&mut self) -> Epoch {
        Epoch(self.random.u64(..u64::from(u32::MAX)))
    }

    fn deliver(&mut self) {
        if let Some((_, envelope)) = self.pushes.pop_front() {
            let ask = self.sequence.arrived(envelope, &mut self.node);
            self.take(ask);
        }
    }

    /// A publication with position vanishes on its way; of others nobody could know.
    fn lose(&mut self) {
        if self.pushes.front().is_some_and(|(_, envelope)| envelope.tags.is_some()) {
            self.unseen.extend(self.pushes.pop_front().map(|(id, _)| id));
        }
    }

    fn take(&mut self, ask: Option<Ask>) {
        match ask {
            Some(ask @ (Ask::Grace { .. } | Ask::Retry { .. })) => self.timers.push(ask),
            Some(ask) => self.asks.push_back(ask),
            None => {}
        }
    }

    /// The server does what is asked, at this moment.
    fn execute(&mut self) {
        let Some(ask) = self.asks.pop_front() else { return };
        let answer = match ask {
            Ask::Position { .. } => Answer::Position(Ok(self.server.top)),
            Ask::Page { since, .. } => Answer::Page(Ok(self.server.page(since))),
            Ask::Renounce { epoch, .. } => {
                let next = self.epoch();
                self.server.renounce(epoch, next);
                Answer::Renounced(Ok(()))
            }
            Ask::Grace { .. } | Ask::Retry { .. } => unreachable!("kept as timers"),
        };
        self.answers.push_back((ask, answer));
    }

    /// An ask gets no answer in time, whether the server did it or not.
    fn fail(&mut self) {
        if self.random.u64(..2) == 0 {
            self.execute();
            self.answers.pop_back().into_iter().for_each(|(ask, _)| self.answers.push_back(failed(ask)));
        } else if let Some(ask) = self.asks.pop_front() {
            self.answers.push_back(failed(ask));
        }
    }

    fn answer(&mut self) {
        let Some((ask, answer)) = self.answers.pop_front() else { return };
        let (sequence, node) = (&mut self.sequence, &mut self.node);
        let next = match (ask, answer) {
            (Ask::Position { serial, handed }, Answer::Position(top)) => {
                sequence.checked(serial, handed, top, node)
            }
            (Ask::Page { serial, .. }, Answer::Page(page)) => sequence.page(serial, page, node),
            (Ask::Renounce { serial, .. }, Answer::Renounced(done)) => sequence.renounced(serial, done, node),
            _ => unreachable!("asks and answers are paired"),
        };
        self.take(next);
    }

    fn fire(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let at = self.random.usize(..self.timers.len());
        let next = match self.timers.swap_remove(at) {
            Ask::Grace { serial, top } => self.sequence.grace_over(serial, top, &mut self.node),
            Ask::Retry { serial, .. } => self.sequence.retry(serial, &mut self.node),
            _ => unreachable!("only these are timers"),
        };
        self.take(next);
    }

    fn look(&mut self) {
        let ask = self.sequence.look();
        self.take(ask);
    }

    fn connect(&mut self) {
        if !self.is_connected {
            self.is_connected = true;
            let ask = self.sequence.confirmed();
            self.take(ask);
        }
    }

    fn disconnect(&mut self) {
        if self.is_connected {
            self.is_connected = false;
            self.pushes.clear();
            self.answers.extend(self.asks.drain(..).map(failed));
            self.sequence.interrupted(&mut self.node);
        }
    }

    /// Another process goes on with the subscription, and with what is under way to it; not with what was asked.
    fn hand_on(&mut self) {
        let Some(parts) = self.sequence.parts() else { return };
        self.sequence = Sequence::of(parts);
        self.node.held = 0;
        self.asks.clear();
        self.answers.clear();
        self.timers.clear();
        if self.is_connected {
            let ask = self.sequence.confirmed();
            self.take(ask);
        }
    }

    fn fail_over(&mut self) {
        self.disconnect();
        let (server, next) = self.replica.clone();
        self.excused.extend(next..self.next_id());
        self.server = server;
    }

    /// The data is gone, the connections stay.
    fn flush(&mut self) {
        self.server = Server::default();
        // What was lost in silence before left no trace now.
        self.excused.append(&mut self.unseen);
    }

    fn come_to_rest(&mut self) {
        self.node.has_room = true;
        self.connect();
        // The first look may find what is under way, and the second that there is nothing more.
        for _ in 0..3 {
            self.look();
            for steps in 0.. {
                if self.is_quiet() {
                    break;
                }
                assert!(
                    steps < QUIET_STEPS_MAX,
                    "seed {} {:?}: never at rest: {:?}",
                    self.seed,
                    self.mix,
                    self.sequence
                );
                [Self::deliver, Self::execute, Self::answer, Self::fire].iter().for_each(|act| act(self));
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.pushes.is_empty() && self.asks.is_empty() && self.answers.is_empty() && self.timers.is_empty()
    }

    fn check(&self) {
        let who = format!("seed {}, {:?}, told {:?}", self.seed, self.mix, self.node.told);
        assert!(self.sequence.is_live(), "{who}: not live but {:?}", self.sequence);
        assert_eq!(self.node.held, 0, "{who}: memory is still held");
        for is_placed in [true, false] {
            self.check_track(is_placed, &who);
        }
    }

    /// Publications with position, or those without: in order, once, and told where some are missing.
    fn check_track(&self, is_placed: bool, who: &str) {
        let is_of_track = |id: &u64| self.published[id].place.is_some() == is_placed;
        let mut begins_at = self.begins_at.unwrap_or(self.next_id());
        if !is_placed && self.mix.0 > 0 {
            // That a channel with history also has others is known from the first that came.
            let first = self.node.told.iter().find_map(|told| match told {
                Told::Publication(id) if is_of_track(id) => Some(*id),
                _ => None,
            });
            begins_at = first.unwrap_or(self.next_id());
        }
        let mut last: Option<u64> = None;
        let mut is_told = false;
        let end = self.next_id();
        for told in self.node.told.iter().chain([&Told::Publication(end)]) {
            let id = match told {
                Told::Gap => {
                    is_told = true;
                    continue;
                }
                Told::Publication(id) if *id == end || is_of_track(id) => *id,
                Told::Publication(_) => continue,
            };
            let from = match last {
                Some(last) => last + 1,
                None => begins_at,
            };
            assert!(last.is_none_or(|last| last < id), "{who}: {id} after {last:?}");
            let missed =
                (from..id).find(|id| *id >= begins_at && is_of_track(id) && !self.excused.contains(id));
            assert!(is_told || missed.is_none(), "{who}: {missed:?} was missed in silence");
            if let (Some(last), true, false) = (last, is_placed && id != end, is_told) {
                assert!(self.is_next(last, id), "{who}: {id} does not follow {last}, and no gap was told");
            }
            (last, is_told) = (Some(id), false);
        }
    }

    fn is_next(&self, last: u64, id: u64) -> bool {
        let (last, next) = (self.published[&last], self.published[&id]);
        last.place.zip(next.place).is_some_and(|(last, place)| {
            let follows = Position { offset: last.position.offset + 1, ..last.position };
            place.position == follows && next.previous == last.tag
        })
    }
}

impl Server {
    /// What the stream has stays, under the new epoch.
    fn renounce(&mut self, old: Epoch, new: Epoch) {
        let Some(top) = self.top.as_mut().filter(|top| top.position.epoch == old) else { return };
        top.position.epoch = new;
        for (_, publication) in &mut self.stream {
            let position = publication.position.map(|position| Position { epoch: new, ..position });
            *publication = Arc::new(Publication { position, ..Publication::clone(publication) });
        }
    }

    fn page(&self, since: Place) -> Page {
        let Some(top) = self.top else { return Page::default() };
        let Position { epoch, offset } = since.position;
        if top.position.epoch != epoch || top.position.offset < offset {
            return Page { top: self.top, ..Page::default() };
        }
        let is_at = |publication: &Publication, is: fn(u64, u64) -> bool| {
            publication.position.is_some_and(|position| is(position.offset, offset))
        };
        let kept = self
            .stream
            .iter()
            .find(|(_, kept)| is_at(kept, |kept, since| kept == since))
            .map(|(tag, _)| *tag);
        let since_tag = match offset {
            _ if offset == top.position.offset => Some(top.tag),
            0 => Some(Tag::NONE),
            _ => kept,
        };
        let after = self.stream.iter().filter(|(_, kept)| is_at(kept, |kept, since| kept > since));
        Page { publications: after.take(PAGE).cloned().collect(), top: self.top, since_tag }
    }
}

impl Outlet for Node {
    fn publication(&mut self, publication: Arc<Publication>) -> Intake {
        if !self.has_room {
            return Intake::Full;
        }
        let id: [u8; 8] = publication.payload.bytes()[..].try_into().expect("8 bytes");
        self.told.push(Told::Publication(u64::from_be_bytes(id)));
        Intake::Taken
    }

    fn gap(&mut self, _: Gap) {
        self.told.push(Told::Gap);
    }

    fn presence_lost(&mut self) {}

    fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.held + bytes <= NODE_BYTES_MAX;
        self.held += if fits { bytes } else { 0 };
        fits
    }

    fn release(&mut self, bytes: usize) {
        self.held = self.held.checked_sub(bytes).expect("no more is released than was reserved");
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn failed(ask: Ask) -> (Ask, Answer) {
    let answer = match ask {
        Ask::Position { .. } => Answer::Position(Err(Failed)),
        Ask::Page { .. } => Answer::Page(Err(Failed)),
        _ => Answer::Renounced(Err(Failed)),
    };
    (ask, answer)
}
