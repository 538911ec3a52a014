//! The memory backplane against a naive model: random publishes, subscriptions, queries, sweeps and time.
//!
//! The model keeps every publication for ever and computes each answer from that.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::FutureExt;
use proptest::prelude::*;
use tidegate_backplane::{
    Backplane, Channel, Clock, Epoch, History, HistoryPolicy, HistoryQuery, ManualClock, MemoryBackplane,
    MemoryOptions, NewPublication, Payload, Position, conformance::Recorder,
};

const WINDOW: Duration = Duration::from_secs(20);
const CHANNELS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Publish { channel: usize, history: Option<(u32, u64)>, key: Option<u8> },
    Subscribe { channel: usize },
    Unsubscribe { channel: usize, generations_ago: u64 },
    Query { channel: usize, since: Since, limit: usize },
    Advance { seconds: u64 },
    Sweep,
}

#[derive(Debug, Clone)]
enum Since {
    Nothing,
    /// So many offsets below (above, if negative) the top of the model.
    Below(i64),
    /// The position of an earlier publication, perhaps of an earlier epoch.
    Earlier(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let channel = 0..CHANNELS;
    let history =
        prop_oneof![1 => Just(None), 6 => (0u32..6, prop_oneof![Just(3), Just(10), Just(60)]).prop_map(Some)];
    let key = prop_oneof![3 => Just(None), 2 => (0u8..4).prop_map(Some)];
    let since = prop_oneof![
        Just(Since::Nothing),
        (-2i64..8).prop_map(Since::Below),
        any::<prop::sample::Index>().prop_map(|index| Since::Earlier(index.index(1000))),
    ];
    let limit = prop_oneof![0usize..5, Just(usize::MAX)];
    prop_oneof![
        8 => (channel.clone(), history, key).prop_map(|(channel, history, key)| Step::Publish { channel, history, key }),
        1 => channel.clone().prop_map(|channel| Step::Subscribe { channel }),
        1 => (channel.clone(), 0u64..2)
            .prop_map(|(channel, generations_ago)| Step::Unsubscribe { channel, generations_ago }),
        5 => (channel, since, limit).prop_map(|(channel, since, limit)| Step::Query { channel, since, limit }),
        3 => prop_oneof![0u64..4, 5u64..30].prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Sweep),
    ]
}

#[derive(Default)]
struct ModelChannel {
    /// All that was published with history in the current epoch: when, and what.
    log: Vec<(u64, String)>,
    epoch: Option<Epoch>,
    epochs_seen: Vec<Epoch>,
    policy: Option<(u32, u64)>,
    /// Publications below this offset left when a smaller policy came.
    floor: usize,
    used: u64,
    generation: u64,
    subscribed: bool,
    keys: HashMap<u8, (u64, Option<Position>)>,
    positions: Vec<Position>,
    handed: Vec<String>,
}

impl ModelChannel {
    /// Ends the epoch of a channel that is out of use.
    fn expire(&mut self, now: u64) {
        if let Some((_, age)) = self.policy
            && !self.subscribed
            && now >= self.used + age
        {
            (self.epoch, self.policy, self.floor) = (None, None, 0);
            self.log.clear();
        }
    }

    /// Leaves out for good what is over the policy now, so that a larger policy later does not bring it back.
    fn trim(&mut self, now: u64) {
        let Some((size, age)) = self.policy else { return };
        let by_size = self.log.len().saturating_sub(size as usize);
        let by_age = self.log.iter().take_while(|(at, _)| now >= at + age).count();
        self.floor = self.floor.max(by_size).max(by_age);
    }

    fn top(&self) -> Option<Position> {
        self.epoch.map(|epoch| Position { epoch, offset: self.log.len() as u64 })
    }

    fn query(&self, query: &HistoryQuery) -> (Vec<String>, bool) {
        let retained = self.log[self.floor..].iter().enumerate();
        let retained: Vec<(u64, &String)> =
            retained.map(|(at, (_, text))| ((self.floor + at + 1) as u64, text)).collect();
        let texts = |of: &[(u64, &String)]| of.iter().map(|(_, text)| (*text).clone()).collect::<Vec<_>>();
        let Some(since) = query.since else {
            return (texts(&retained[retained.len().saturating_sub(query.limit)..]), true);
        };
        if self.top().is_none_or(|top| top.epoch != since.epoch || since.offset > top.offset) {
            return (vec![], false);
        }
        let after: Vec<_> = retained.into_iter().filter(|(offset, _)| *offset > since.offset).collect();
        let continuous = after.len() == self.log.len() - since.offset as usize;
        (texts(&after[..after.len().min(query.limit)]), continuous)
    }
}

struct Run {
    clock: Arc<ManualClock>,
    recorder: Arc<Recorder>,
    backplane: MemoryBackplane,
    names: Vec<Channel>,
    model: Vec<ModelChannel>,
    now: u64,
    count: usize,
}

impl Run {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new());
        let recorder = Arc::new(Recorder::default());
        let options =
            MemoryOptions { clock: clock.clone(), idempotency_window: WINDOW, ..MemoryOptions::default() };
        Self {
            backplane: MemoryBackplane::new(recorder.clone(), options),
            clock,
            recorder,
            names: (0..CHANNELS).map(|at| Channel::new(&format!("c{at}")).expect("a name")).collect(),
            model: (0..CHANNELS).map(|_| ModelChannel::default()).collect(),
            now: 0,
            count: 0,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Publish { channel, history, key } => self.publish(channel, history, key),
            Step::Subscribe { channel } => self.subscribe(channel),
            Step::Unsubscribe { channel, generations_ago } => self.unsubscribe(channel, generations_ago),
            Step::Query { channel, since, limit } => self.query(channel, &since, limit),
            Step::Advance { seconds } => {
                self.now += seconds;
                self.clock.advance(Duration::from_secs(seconds));
            }
            Step::Sweep => self.backplane.sweep(self.clock.now()),
        }
    }

    fn publish(&mut self, at: usize, history: Option<(u32, u64)>, key: Option<u8>) {
        self.count += 1;
        let text = self.count.to_string();
        let new = NewPublication {
            channel: self.names[at].clone(),
            event: None,
            payload: Payload::Text(text.clone().into()),
            history: history.map(|(size, age)| HistoryPolicy { size, age: Duration::from_secs(age) }),
            idempotency_key: key.map(|key| format!("key {key}").into()),
            sender: None,
        };
        let published = self.backplane.publish(new).now_or_never().expect("ready").expect("accepted");

        let (now, model) = (self.now, &mut self.model[at]);
        let seen = key.and_then(|key| model.keys.get(&key)).filter(|(at, _)| now < at + WINDOW.as_secs());
        if let Some((_, position)) = seen {
            assert!(published.duplicate);
            assert_eq!(published.position, *position);
            return;
        }
        assert!(!published.duplicate);
        assert_eq!(published.position.is_some(), history.is_some());
        if let (Some(policy), Some(position)) = (history, published.position) {
            model.expire(now);
            model.trim(now);
            if model.epoch.is_none() {
                assert!(!model.epochs_seen.contains(&position.epoch), "an epoch came back");
                model.epochs_seen.push(position.epoch);
                model.epoch = Some(position.epoch);
            }
            (model.policy, model.used) = (Some(policy), now);
            model.log.push((now, text.clone()));
            model.trim(now);
            model.positions.push(position);
            assert_eq!(Some(position), model.top());
        }
        if let Some(key) = key {
            model.keys.insert(key, (now, published.position));
        }
        if model.subscribed {
            model.handed.push(text);
        }
    }

    fn subscribe(&mut self, at: usize) {
        let model = &mut self.model[at];
        model.expire(self.now);
        model.generation += 1;
        model.subscribed = true;
        self.backplane
            .subscribe(&self.names[at], model.generation)
            .now_or_never()
            .expect("ready")
            .expect("accepted");
    }

    fn unsubscribe(&mut self, at: usize, generations_ago: u64) {
        let model = &mut self.model[at];
        self.backplane.unsubscribe(&self.names[at], model.generation.saturating_sub(generations_ago));
        if model.subscribed && (generations_ago == 0 || model.generation == 0) {
            model.subscribed = false;
            model.used = model.used.max(self.now);
        }
    }

    fn query(&mut self, at: usize, since: &Since, limit: usize) {
        let model = &mut self.model[at];
        model.expire(self.now);
        model.trim(self.now);
        let since = match since {
            Since::Nothing => None,
            Since::Below(below) => model.top().and_then(|top| {
                Some(Position { offset: u64::try_from(top.offset as i64 - below).ok()?, ..top })
            }),
            Since::Earlier(index) => {
                (!model.positions.is_empty()).then(|| model.positions[index % model.positions.len()])
            }
        };
        let query = HistoryQuery { since, limit, bytes: usize::MAX };
        let (expected, continuous) = model.query(&query);
        let history =
            self.backplane.history(&self.names[at], query).now_or_never().expect("ready").expect("read");
        assert_eq!(texts(&history), expected, "{query:?}");
        assert_eq!(history.continuous, continuous, "{query:?}");
        assert_eq!(history.top, model.top(), "{query:?}");
    }

    /// What the sinks were handed, and that all that is kept is given back in the end.
    fn finish(mut self) {
        for (name, model) in self.names.iter().zip(&self.model) {
            let handed = self.recorder.publications(name);
            let handed: Vec<_> = handed.iter().map(|publication| text(&publication.payload)).collect();
            assert_eq!(handed, model.handed, "{name}");
        }
        for at in 0..CHANNELS {
            self.unsubscribe(at, 0);
        }
        self.clock.advance(Duration::from_secs(100));
        for _ in 0..tidegate_backplane::SWEEPS_PER_ROUND {
            self.backplane.sweep(self.clock.now());
        }
        assert_eq!(self.backplane.counters(), Default::default());
    }
}

fn texts(history: &History) -> Vec<String> {
    history.publications.iter().map(|publication| text(&publication.payload)).collect()
}

fn text(payload: &Payload) -> String {
    String::from_utf8(payload.bytes().to_vec()).expect("UTF-8")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_behaves_as_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for step in steps {
            run.apply(step);
        }
        run.finish();
    }
}
