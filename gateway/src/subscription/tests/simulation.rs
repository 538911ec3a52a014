//! Every order of confirmation, history, deliveries, overflow, gap, unsubscribing and loss of the backplane.
//!
//! A model of a channel with epochs and a history that is trimmed, of a delivery that lags, and of a hub with a lane.
//! One subscription lives in it. After every step the client must have been told everything once and in order, or
//! a gap; what is kept is bounded; the hold is given back once. A failure names its seed and mix;
//! `SIMULATION_SEED=N` runs that seed alone, in every mix.

use std::collections::{HashSet, VecDeque};

use fastrand::Rng;
use tidegate_backplane::{Epoch, Payload};

use crate::subscription::*;

const SEEDS: u64 = 1_500;
const STEPS: usize = 120;

/// What may happen in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// Nothing is lost anywhere: no gap may be told.
    Calm,
    /// History is trimmed, deliveries are lost, the channel begins new epochs.
    Lossy,
    /// Reads fail too, and clients leave.
    Rough,
}

/// A defect that the simulation has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    ForgetsOverflow,
    KeepsNothing,
    JoinsTheLaneUnseen,
}

/// What is on its way to the shard, in order.
#[derive(Clone)]
enum Mail {
    Item(Item),
    Presence(u64),
    /// The answer to a request of the list.
    List(u64),
}

struct Channel {
    epoch: u64,
    /// 0: it has no state.
    top: u64,
    log: VecDeque<Arc<Publication>>,
    presence: u64,
}

/// What the client knows and may be told next.
#[derive(Debug, Default)]
struct Client {
    /// `None` before the answer.
    answered: bool,
    refused: bool,
    at: Option<Position>,
    /// Anything newer than `at` may come: it was told of a gap, or has no place yet.
    anything: bool,
    last_was_gap: bool,
    gaps: usize,
    plain: HashSet<u64>,
    presence: Option<u64>,
}

struct World {
    random: Rng,
    mix: Mix,
    defect: Defect,
    channel: Channel,
    /// The node is subscribed.
    subscribed: bool,
    flight: VecDeque<Mail>,
    delivered: Option<Position>,
    lane: VecDeque<Mail>,
    machine: Machine,
    reading: Option<(Read, Option<Result<History, BackplaneError>>)>,
    awaits_list: bool,
    awaits_room: bool,
    /// In its lane; `Some`: it follows.
    joined: Option<Option<Seen>>,
    holds: i32,
    ended: bool,
    client: Client,
    plain: u64,
    /// Publications without position that the client must be told of.
    owed: HashSet<u64>,
    /// Something was published after the answer.
    published: bool,
}

impl World {
    fn new(seed: u64, mix: Mix, defect: Defect) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut channel = Channel { epoch: 1, top: 0, log: VecDeque::new(), presence: 0 };
        for _ in 0..random.usize(..30) {
            channel.publish(random.usize(..20));
        }
        let since = channel.top.saturating_sub(random.usize(..12) as u64);
        let want = match random.usize(..8) {
            0 => Want::Live,
            1 => Want::Place,
            2 => Want::Newest,
            3 => {
                channel.top = 0;
                channel.log.clear();
                let age = Duration::from_secs(60);
                Want::SinceEmpty { offset: 0, away: Duration::from_secs(1), history_age: age }
            }
            _ if channel.top == 0 => Want::Place,
            _ => Want::After(Position { epoch: Epoch(1), offset: since }),
        };
        let mut machine = Machine::new(want, random.usize(..4) == 0);
        machine.forgets_overflow = defect == Defect::ForgetsOverflow;
        let subscribed = random.usize(..2) == 0;
        Self {
            random,
            mix,
            defect,
            channel,
            subscribed,
            flight: VecDeque::new(),
            delivered: None,
            lane: VecDeque::new(),
            machine,
            reading: None,
            awaits_list: false,
            awaits_room: false,
            joined: None,
            holds: 1,
            ended: false,
            client: Client::default(),
            plain: 0,
            owed: HashSet::new(),
            published: false,
        }
    }

    fn step(&mut self) {
        match self.random.usize(..20) {
            0..=3 => self.publish(),
            4 => self.publish_plain(),
            5 => self.change_presence(),
            6..=8 => self.deliver(),
            9..=10 => self.serve(),
            11 => self.confirm(),
            12..=13 => self.evaluate(),
            14..=15 => self.answer(),
            16 => self.room(),
            17 => self.send_list(),
            18 if self.mix != Mix::Calm => self.lose(),
            19 if self.mix == Mix::Rough && self.random.usize(..6) == 0 => self.end(),
            _ => {}
        }
        self.check();
    }

    fn publish(&mut self) {
        // Sometimes as much at once as is kept, and more.
        let (count, bytes) = match self.random.usize(..10) {
            0 => (6, 20 * 1024),
            1 => (1, 70 * 1024),
            _ => (1, self.random.usize(..40)),
        };
        for _ in 0..count {
            let publication = self.channel.publish(bytes);
            self.published |= self.client.answered;
            self.send(Mail::Item(Item::Publication(publication)));
        }
    }

    fn publish_plain(&mut self) {
        self.plain += 1;
        let publication = publication(None, &self.plain.to_string());
        if self.client.answered && !self.ended {
            self.owed.insert(self.plain);
        }
        self.send(Mail::Item(Item::Publication(publication)));
    }

    fn change_presence(&mut self) {
        self.channel.presence += 1;
        self.send(Mail::Presence(self.channel.presence));
    }

    fn send(&mut self, mail: Mail) {
        if self.subscribed {
            self.flight.push_back(mail);
        }
    }

    /// The shard takes what is next.
    fn deliver(&mut self) {
        let Some(mail) = self.flight.pop_front() else { return };
        if let Mail::List(sequence) = mail {
            let outputs = self.machine.listed(sequence);
            self.client.presence = (!outputs.is_empty()).then_some(sequence);
            return self.perform(outputs);
        }
        match &mail {
            Mail::Item(item) => {
                self.delivered = match item {
                    Item::Publication(publication) => publication.position,
                    Item::Gap(gap) => gap.top,
                }
                .or(self.delivered);
                if self.joined.is_none() && !self.ended && self.defect != Defect::KeepsNothing {
                    let outputs = self.machine.delivered(item);
                    self.perform(outputs);
                }
            }
            Mail::Presence(sequence) => {
                if self.joined.is_none() && !self.ended && self.machine.tells_presence(*sequence) {
                    self.client.told_presence(*sequence);
                }
            }
            Mail::List(_) => {}
        }
        self.lane.push_back(mail);
    }

    /// The lane's members are written what is next.
    fn serve(&mut self) {
        let Some(mail) = self.lane.pop_front() else { return };
        let Some(follows) = &mut self.joined else { return };
        let arrival = match &mail {
            Mail::Item(item) => item.arrival(),
            Mail::Presence(sequence) => Arrival::Presence(*sequence),
            Mail::List(_) => return,
        };
        let is_news = match follows {
            Some(seen) => seen.follow(arrival),
            None => true,
        };
        if is_news {
            match &mail {
                Mail::Item(item) => self.client.told(item),
                Mail::Presence(sequence) => self.client.told_presence(*sequence),
                Mail::List(_) => {}
            }
        }
        if self.lane.is_empty() && follows.is_some_and(|seen| seen.is_settled(self.delivered)) {
            *follows = None;
        }
    }

    fn confirm(&mut self) {
        self.subscribed = true;
        let outputs = match self.mix == Mix::Rough && self.random.usize(..10) == 0 {
            true => self.machine.refused(unavailable().into()),
            false => self.machine.confirmed(),
        };
        self.perform(outputs);
    }

    /// The backplane reads history for a read that was asked for; the answer is still on its way.
    fn evaluate(&mut self) {
        let fails = self.mix == Mix::Rough && self.random.usize(..8) == 0;
        if let Some((read, answer @ None)) = &mut self.reading {
            *answer = Some(match fails {
                true => Err(unavailable()),
                false => Ok(self.channel.read(*read)),
            });
        }
    }

    fn answer(&mut self) {
        if let Some((read, Some(answer))) = self.reading.take_if(|(_, answer)| answer.is_some()) {
            let bytes: usize =
                answer.iter().flat_map(|it| &it.publications).map(|it| it.payload.bytes().len()).sum();
            let is_one = answer.as_ref().is_ok_and(|history| history.publications.len() == 1);
            assert!(is_one || bytes <= PAGE_BYTES, "{read:?} brought {bytes} bytes");
            let outputs = self.machine.page(answer);
            self.perform(outputs);
        }
    }

    fn room(&mut self) {
        if std::mem::take(&mut self.awaits_room) {
            let outputs = self.machine.room();
            self.perform(outputs);
        }
    }

    fn send_list(&mut self) {
        if std::mem::take(&mut self.awaits_list) {
            self.flight.push_back(Mail::List(self.channel.presence));
        }
    }

    fn lose(&mut self) {
        match self.random.usize(..3) {
            0 => {
                let kept = self.random.usize(..8);
                while self.channel.log.len() > kept {
                    self.channel.log.pop_front();
                }
            }
            // Publications are lost, and a gap comes in their place.
            1 => {
                let mut lost = self.random.usize(..3) + 1;
                let mut through = None;
                while let Some(Mail::Item(Item::Publication(publication))) = self.flight.front()
                    && lost > 0
                {
                    if publication.position.is_none() {
                        self.owed.remove(&number(publication));
                    }
                    through = publication.position.or(through);
                    self.flight.pop_front();
                    lost -= 1;
                }
                if self.subscribed && lost < 3 {
                    let gap = Gap { reason: GapReason::Overflow, top: through };
                    self.flight.push_front(Mail::Item(Item::Gap(gap)));
                }
            }
            // The server lost the channel.
            _ => {
                self.channel.epoch += 1;
                self.channel.log.clear();
                self.channel.top = 0;
                let top = match self.random.usize(..2) == 0 {
                    true => {
                        self.channel.publish(3);
                        self.channel.position()
                    }
                    false => None,
                };
                self.send(Mail::Item(Item::Gap(Gap { reason: GapReason::Reconnect, top })));
            }
        }
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let outputs = self.machine.end();
        self.joined = None;
        self.perform(outputs);
        self.owed.clear();
    }

    fn perform(&mut self, outputs: Outputs) {
        for output in outputs {
            match output {
                Output::AwaitRoom => self.awaits_room = true,
                Output::Read(read) => {
                    assert!(self.reading.is_none(), "two reads at once");
                    self.reading = Some((read, None));
                }
                Output::List => self.awaits_list = true,
                Output::Subscribed { position, recovered } => {
                    let claims = matches!(self.machine.want, Want::After(_) | Want::SinceEmpty { .. });
                    assert!(claims || !recovered, "recovered what was not asked for");
                    self.client.subscribed(position);
                }
                Output::Tell(items) => {
                    items.iter().for_each(|item| self.client.told(item));
                }
                Output::Join(mut seen) => {
                    assert!(self.joined.is_none() && self.client.answered);
                    if self.defect == Defect::JoinsTheLaneUnseen {
                        seen = Seen::default();
                    }
                    seen.set_skip(self.lane.len());
                    let settled = self.lane.is_empty() && seen.is_settled(self.delivered);
                    self.joined = Some((!settled).then_some(seen));
                }
                Output::Refuse(_) => {
                    assert!(!self.client.answered, "refused after the answer");
                    self.client.refused = true;
                }
                Output::Release => {
                    self.holds -= 1;
                    assert_eq!(self.holds, 0, "the hold was given back twice");
                    self.ended = true;
                }
            }
        }
    }

    fn check(&self) {
        if let State::Reading { kept, .. } | State::Listing { kept, .. } = &self.machine.state {
            // Of a channel's newest publication there is one, however large.
            let is_bounded = kept.bytes() <= KEPT_BYTES_MAX || kept.len() <= 2;
            assert!(is_bounded, "{} bytes are kept", kept.bytes());
        }
        assert!(self.mix != Mix::Calm || self.client.gaps == 0, "a gap where nothing was lost");
        assert!(self.joined.is_none() || !self.ended);
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            self.confirm_at_last();
            self.evaluate();
            self.answer();
            self.room();
            self.send_list();
            self.deliver();
            self.serve();
            self.check();
        }
        assert!(self.flight.is_empty() && self.lane.is_empty());
        if self.client.refused || self.ended {
            assert_eq!(self.holds, 0, "the hold was not given back");
            return;
        }
        assert!(self.joined.is_some(), "it never came to its lane: {:?}", self.machine.state);
        let missing: Vec<_> = self.owed.difference(&self.client.plain).collect();
        assert!(missing.is_empty(), "never told: {missing:?}");
        let is_at_top = self.client.at == self.channel.position();
        let knows_nothing = self.client.at.is_none() && !self.published;
        assert!(
            is_at_top || self.client.last_was_gap || knows_nothing,
            "it stands at {:?}, the channel at {:?}",
            self.client.at,
            self.channel.position()
        );
        if self.machine.lists {
            assert_eq!(self.client.presence, Some(self.channel.presence), "presence events are missing");
        }
        self.end();
        assert_eq!(self.holds, 0, "the hold was not given back");
    }

    fn confirm_at_last(&mut self) {
        if matches!(self.machine.state, State::Pending) {
            self.subscribed = true;
            let outputs = self.machine.confirmed();
            self.perform(outputs);
        }
    }
}

impl Channel {
    fn position(&self) -> Option<Position> {
        (self.top > 0).then_some(Position { epoch: Epoch(self.epoch), offset: self.top })
    }

    fn publish(&mut self, bytes: usize) -> Arc<Publication> {
        self.top += 1;
        let publication = publication(self.position(), &"x".repeat(bytes));
        self.log.push_back(Arc::clone(&publication));
        publication
    }

    /// As the table of [`History`] says, with the bound in bytes.
    fn read(&self, read: Read) -> History {
        let mut history =
            History { publications: Vec::new(), top: self.position(), left: None, continuous: true };
        match read {
            Read::Place => {}
            Read::Newest => history.publications.extend(self.log.back().cloned()),
            Read::Page(since) => {
                if self.top == 0 || since.epoch.0 != self.epoch || since.offset > self.top {
                    return History { continuous: false, ..history };
                }
                let after =
                    self.log.iter().filter(|it| it.position.is_some_and(|at| at.offset > since.offset));
                let kept = after.clone().count() as u64;
                history.continuous = kept == self.top - since.offset;
                let mut bytes = 0;
                history.publications = after
                    .take_while(|publication| {
                        let is_first = bytes == 0;
                        bytes += publication.payload.bytes().len() + 1;
                        is_first || bytes <= PAGE_BYTES
                    })
                    .cloned()
                    .collect();
            }
        }
        history
    }
}

impl Client {
    fn subscribed(&mut self, position: Option<Position>) {
        assert!(!std::mem::replace(&mut self.answered, true), "answered twice");
        self.at = position;
        self.anything = position.is_none();
    }

    fn told(&mut self, item: &Item) {
        assert!(self.answered, "told before the answer");
        if !matches!(item.arrival(), Arrival::Publication(None)) {
            self.last_was_gap = matches!(item, Item::Gap(_));
        }
        match item {
            Item::Gap(gap) => {
                self.gaps += 1;
                self.anything = gap.top.is_none();
                if let (Some(at), Some(top)) = (self.at, gap.top) {
                    assert!(
                        at.epoch != top.epoch || at.offset <= top.offset,
                        "a gap from {at} back to {top}"
                    );
                }
                self.at = gap.top.or(self.at);
            }
            Item::Publication(publication) => match (self.at, publication.position) {
                (_, None) => assert!(self.plain.insert(number(publication)), "a plain one twice"),
                (Some(at), Some(position)) => {
                    let follows = at.epoch == position.epoch && at.offset + 1 == position.offset;
                    let is_newer = at.epoch != position.epoch || at.offset < position.offset;
                    assert!(follows || (self.anything && is_newer), "{position} was told after {at}");
                    self.at = Some(position);
                    self.anything = false;
                }
                (None, Some(position)) => {
                    self.at = Some(position);
                    self.anything = false;
                }
            },
        }
    }

    fn told_presence(&mut self, sequence: u64) {
        if let Some(presence) = &mut self.presence {
            assert_eq!(sequence, *presence + 1, "a presence event out of order");
            *presence = sequence;
        }
    }
}

fn publication(position: Option<Position>, text: &str) -> Arc<Publication> {
    let payload = Payload::Text(text.to_owned().into());
    Arc::new(Publication { position, event: None, payload, sender: None })
}

fn number(publication: &Publication) -> u64 {
    String::from_utf8_lossy(publication.payload.bytes()).parse().unwrap_or_default()
}

fn unavailable() -> BackplaneError {
    BackplaneError::Unavailable("gone".into())
}

fn simulate(seed: u64, mix: Mix, defect: Defect) {
    let mut world = World::new(seed, mix, defect);
    let steps = world.random.usize(..STEPS);
    (0..steps).for_each(|_| world.step());
    world.settle();
}

/// Runs a seed; what it found wrong, if anything.
fn attempt(seed: u64, mix: Mix, defect: Defect) -> Result<(), String> {
    std::panic::catch_unwind(|| simulate(seed, mix, defect)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

#[track_caller]
fn check(mix: Mix) {
    let only = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(found) = attempt(seed, mix, Defect::None) {
            panic!("seed {seed}, {mix:?}: {found}");
        }
    }
}

#[test]
fn nothing_is_lost_where_nothing_is_lost_on_the_way() {
    check(Mix::Calm);
}

#[test]
fn what_is_lost_is_told() {
    check(Mix::Lossy);
}

#[test]
fn holds_come_back_whatever_fails() {
    check(Mix::Rough);
}

/// A simulation that finds nothing proves nothing. The first defect is what the machines before this one did: the
/// overflow of what is kept was looked at only when the read came back, and not while something else was awaited.
#[test]
fn defects_are_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = |defect| (0..SEEDS).find_map(|seed| attempt(seed, Mix::Calm, defect).err());
    let all = [Defect::ForgetsOverflow, Defect::KeepsNothing, Defect::JoinsTheLaneUnseen].map(found);
    std::panic::set_hook(quiet);
    assert!(all.iter().all(Option::is_some), "{all:?}");
}
