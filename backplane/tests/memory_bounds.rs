//! What the memory backplane keeps is bounded, counted, and given back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tidegate_backplane::{
    Backplane, Channel, Clock, History, HistoryPolicy, HistoryQuery, Join, ManualClock, Member,
    MemoryBackplane, MemoryCounters, MemoryOptions, NewPublication, PRESENCE_SETTLE, Payload, Position,
    Published, SWEEPS_PER_ROUND, conformance::Recorder,
};

const HOUR: Duration = Duration::from_secs(3600);

struct Bench {
    clock: Arc<ManualClock>,
    recorder: Arc<Recorder>,
    backplane: MemoryBackplane,
}

impl Bench {
    fn new(options: MemoryOptions) -> Self {
        let clock = Arc::new(ManualClock::new());
        let recorder = Arc::new(Recorder::default());
        let options = MemoryOptions { clock: clock.clone(), ..options };
        Self { backplane: MemoryBackplane::new(recorder.clone(), options), clock, recorder }
    }

    fn publish(&self, name: &str, payload: &[u8], history: Option<Duration>, key: Option<&str>) -> Published {
        let new = NewPublication {
            channel: channel(name),
            event: None,
            payload: Payload::Binary(Bytes::copy_from_slice(payload)),
            history: history.map(|age| HistoryPolicy { size: 1000, age }),
            idempotency_key: key.map(Into::into),
            sender: None,
        };
        self.backplane.publish(new).now_or_never().expect("ready").expect("accepted")
    }

    fn kept(&self, name: &str, payload: &[u8]) -> Position {
        self.publish(name, payload, Some(HOUR), None).position.expect("a position")
    }

    fn history(&self, name: &str, since: Option<Position>) -> History {
        let query = HistoryQuery { since, limit: usize::MAX, bytes: usize::MAX };
        self.backplane.history(&channel(name), query).now_or_never().expect("ready").expect("read")
    }

    fn subscribe(&self, name: &str) {
        self.backplane.subscribe(&channel(name), 1).now_or_never().expect("ready").expect("accepted");
    }

    fn sweep_all(&self) {
        for _ in 0..SWEEPS_PER_ROUND {
            self.backplane.sweep(self.clock.now());
        }
    }

    fn counters(&self) -> MemoryCounters {
        self.backplane.counters()
    }
}

fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a name")
}

#[test]
fn a_publication_that_nobody_wants_leaves_nothing() {
    let bench = Bench::new(MemoryOptions::default());
    for at in 0..1000 {
        bench.publish(&format!("c{at}"), b"x", None, None);
    }
    assert_eq!(bench.counters(), MemoryCounters::default());
}

#[test]
fn the_least_recently_published_channel_forgets_first() {
    let bench = Bench::new(MemoryOptions { history_bytes_max: 50_000, ..MemoryOptions::default() });
    let payload = [7; 1000];
    let quiet = bench.kept("quiet", &payload);
    for _ in 0..9 {
        bench.kept("quiet", &payload);
    }
    let busy = bench.kept("busy", &payload);
    for _ in 0..33 {
        bench.kept("busy", &payload);
    }
    assert!(bench.counters().history_evicted > 0, "{:?}", bench.counters());
    assert!(bench.counters().history_bytes <= 50_000);
    assert!(bench.history("busy", Some(busy)).continuous, "the busy channel is whole");

    let history = bench.history("quiet", Some(quiet));
    assert!(!history.continuous, "the quiet one says that it is not");
    assert!(!history.publications.is_empty(), "its newest are kept");
    assert_eq!(history.top, Some(Position { offset: 10, ..quiet }));
}

#[test]
fn a_channel_published_to_again_is_spared() {
    let bench = Bench::new(MemoryOptions { history_bytes_max: 10_000, ..MemoryOptions::default() });
    let (renewed, idle) = (bench.kept("renewed", &[1; 1000]), bench.kept("idle", &[1; 1000]));
    bench.kept("renewed", &[1; 1000]);
    while bench.counters().history_evicted == 0 {
        bench.kept("busy", &[2; 1000]);
    }
    assert!(
        bench.history("renewed", Some(Position { offset: 0, ..renewed })).continuous,
        "it came first, but was used"
    );
    assert!(!bench.history("idle", Some(Position { offset: 0, ..idle })).continuous);
}

#[test]
fn a_channel_without_subscriber_that_forgets_all_loses_its_epoch() {
    let bench = Bench::new(MemoryOptions { history_bytes_max: 10_000, ..MemoryOptions::default() });
    bench.subscribe("watched");
    let (watched, alone) = (bench.kept("watched", &[1; 1000]), bench.kept("alone", &[1; 1000]));
    for _ in 0..20 {
        bench.kept("busy", &[2; 1000]);
    }
    let history = bench.history("watched", Some(watched));
    assert!(history.continuous && history.top == Some(watched), "subscribers keep the place alive");
    let history = bench.history("alone", Some(alone));
    assert!(!history.continuous && history.top.is_none());
    assert_ne!(bench.kept("alone", &[1; 10]).epoch, alone.epoch);
    assert_eq!(bench.kept("watched", &[1; 10]), Position { offset: 2, ..watched });
}

#[test]
fn history_of_many_channels_stays_within_its_bytes() {
    const BYTES_MAX: u64 = 100_000;
    let bench = Bench::new(MemoryOptions { history_bytes_max: BYTES_MAX, ..MemoryOptions::default() });
    for at in 0..5_000 {
        bench.kept(&format!("c{}", at % 700), &[3; 100]);
        assert!(bench.counters().history_bytes <= BYTES_MAX);
    }
    let counters = bench.counters();
    assert_eq!(counters.history_publications + counters.history_evicted, 5_000);
    assert!(counters.history_bytes > BYTES_MAX / 2, "no more goes than must: {counters:?}");
    assert!(
        counters.channels <= counters.history_publications,
        "channels that forgot all are gone: {counters:?}"
    );
}

#[test]
fn a_publication_larger_than_the_bound_is_handed_over_and_not_kept() {
    let bench = Bench::new(MemoryOptions { history_bytes_max: 1_000, ..MemoryOptions::default() });
    bench.subscribe("c");
    let at = bench.kept("c", &[1; 5_000]);
    assert_eq!(bench.recorder.publications(&channel("c")).len(), 1);
    let before = Position { offset: 0, ..at };
    assert!(!bench.history("c", Some(before)).continuous);
    assert_eq!(bench.counters().history_bytes, 0);
}

#[test]
fn history_does_not_hold_the_buffer_a_payload_was_cut_from() {
    let bench = Bench::new(MemoryOptions::default());
    let buffer = Bytes::from(vec![5; 1 << 20]);
    let new = NewPublication {
        channel: channel("c"),
        event: None,
        payload: Payload::Text(buffer.slice(100..200).try_into().expect("ASCII")),
        history: Some(HistoryPolicy { size: 10, age: HOUR }),
        idempotency_key: None,
        sender: None,
    };
    bench.backplane.publish(new).now_or_never().expect("ready").expect("accepted");
    assert!(buffer.is_unique(), "a slice of the request's buffer is kept");
}

#[test]
fn keys_of_a_channel_are_bounded_in_number() {
    let bench = Bench::new(MemoryOptions { idempotency_keys_max: 10, ..MemoryOptions::default() });
    for at in 0..15 {
        assert!(!bench.publish("c", b"", None, Some(&format!("k{at}"))).duplicate);
    }
    assert_eq!((bench.counters().idempotency_keys, bench.counters().idempotency_evicted), (10, 5));
    assert!(bench.publish("c", b"", None, Some("k5")).duplicate, "the newest are remembered");
    assert!(!bench.publish("c", b"", None, Some("k4")).duplicate, "the oldest are not");
}

#[test]
fn keys_of_all_channels_are_bounded_in_bytes() {
    const BYTES_MAX: u64 = 100_000;
    let bench = Bench::new(MemoryOptions { idempotency_bytes_max: BYTES_MAX, ..MemoryOptions::default() });
    for at in 0..5_000 {
        bench.publish(&format!("c{at}"), b"", None, Some("key"));
        assert!(bench.counters().idempotency_bytes <= BYTES_MAX);
    }
    let counters = bench.counters();
    assert_eq!(counters.idempotency_keys + counters.idempotency_evicted, 5_000);
    assert_eq!(counters.channels, counters.idempotency_keys, "channels that forgot all are gone");
    assert!(bench.publish("c4999", b"", None, Some("key")).duplicate);
}

#[test]
fn what_has_aged_out_is_given_back_by_a_round_of_sweeps() {
    let bench = Bench::new(MemoryOptions::default());
    bench.subscribe("c1");
    for at in 0..2_000 {
        bench.publish(&format!("c{at}"), b"x", Some(HOUR), Some("key"));
    }
    let counters = bench.counters();
    assert_eq!(
        (counters.channels, counters.history_publications, counters.idempotency_keys),
        (2000, 2000, 2000)
    );
    assert_eq!(counters.subscriptions, 1);

    bench.clock.advance(2 * HOUR);
    bench.sweep_all();
    assert_eq!(
        bench.counters(),
        MemoryCounters { channels: 1, subscriptions: 1, ..MemoryCounters::default() }
    );
    bench.backplane.unsubscribe(&channel("c1"), 1);
    bench.clock.advance(2 * HOUR);
    bench.sweep_all();
    assert_eq!(bench.counters(), MemoryCounters::default());
}

#[test]
fn the_end_of_a_subscription_is_a_use() {
    let bench = Bench::new(MemoryOptions::default());
    bench.subscribe("c");
    let at = bench.kept("c", b"x");
    bench.clock.advance(3 * HOUR);
    bench.sweep_all();
    bench.backplane.unsubscribe(&channel("c"), 1);
    bench.clock.advance(HOUR / 2);
    bench.sweep_all();
    assert!(bench.history("c", Some(at)).continuous, "half an hour after its last subscriber left");
    bench.clock.advance(HOUR / 2);
    assert!(bench.history("c", Some(at)).top.is_none(), "an hour after");
    // No sweep has passed: a new subscriber must not bring the old epoch back.
    bench.subscribe("c");
    assert!(bench.history("c", Some(at)).top.is_none());
}

/// What presence holds goes when the ends have been told; what comes and goes meanwhile adds nothing.
#[test]
fn presence_holds_nothing_of_those_who_are_gone() {
    let bench = Bench::new(MemoryOptions::default());
    for round in 0..3 {
        for number in 0..1000 {
            let channel = channel(&format!("c{number}"));
            let (connection, user): (Box<str>, _) = (format!("n.{round}").into(), format!("u{round}").into());
            let join = Join::listed(Member { connection: connection.clone(), user, info: None });
            let joined = bench.backplane.join(&channel, Join { tells_counts: Some(true), ..join });
            joined.now_or_never().expect("ready").expect("joined");
            let left = bench.backplane.leave(&channel, Some(&connection));
            left.now_or_never().expect("ready").expect("left");
        }
    }
    let counters = bench.counters();
    assert_eq!(
        (counters.presence_channels, counters.presence_subscriptions, counters.presence_users),
        (1000, 0, 0)
    );
    bench.clock.advance(PRESENCE_SETTLE);
    bench.sweep_all();
    assert_eq!(bench.counters().presence_channels, 0);
}
