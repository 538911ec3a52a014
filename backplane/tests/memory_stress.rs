//! Threads do everything at once to a few channels; afterwards the order is whole and nothing is left behind.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::FutureExt;
use tidegate_backplane::{
    Backplane, Channel, Clock, Control, Epoch, Gap, HistoryPolicy, HistoryQuery, Intake, ManualClock,
    MemoryBackplane, MemoryCounters, MemoryOptions, NewPublication, Payload, PresenceEvent, Publication,
    SWEEPS_PER_ROUND, Sink, Transition,
};

const CHANNELS: usize = 4;
const PUBLISHERS: usize = 4;
const PUBLICATIONS_EACH: usize = 4_000;

/// Checks while it is called that a channel's calls come one at a time and in the order of their offsets.
#[derive(Default)]
struct OrderSink {
    newest: Mutex<HashMap<Channel, (Epoch, u64)>>,
    inside: [AtomicUsize; CHANNELS],
    handed: AtomicUsize,
    broken: AtomicBool,
}

impl Sink for OrderSink {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        let at: usize = channel.as_str()[1..].parse().expect("a number");
        let alone = self.inside[at].fetch_add(1, Ordering::SeqCst) == 0;
        let position = publication.position.expect("a position");
        let before =
            self.newest.lock().expect("lock").insert(channel.clone(), (position.epoch, position.offset));
        // With subscribers that come and go, some are not handed over; none comes late or twice.
        let ordered =
            before.is_none_or(|(epoch, offset)| epoch != position.epoch || offset < position.offset);
        if !alone || !ordered {
            self.broken.store(true, Ordering::SeqCst);
        }
        self.handed.fetch_add(1, Ordering::SeqCst);
        self.inside[at].fetch_sub(1, Ordering::SeqCst);
        Intake::Taken
    }

    fn gap(&self, _: &Channel, _: Gap) {
        self.broken.store(true, Ordering::SeqCst);
    }

    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

fn channel(at: usize) -> Channel {
    Channel::new(&format!("c{at}")).expect("a name")
}

fn publish(backplane: &MemoryBackplane, channel: &Channel, key: Option<String>, size: u32) {
    let new = NewPublication {
        channel: channel.clone(),
        event: None,
        payload: Payload::Binary(vec![0; 100].into()),
        history: Some(HistoryPolicy { size, age: Duration::from_secs(10) }),
        idempotency_key: key.map(Into::into),
        sender: None,
    };
    backplane.publish(new).now_or_never().expect("ready").expect("accepted");
}

/// Reads history as a recovering client would: what is answered as continuous has no hole.
fn read(backplane: &MemoryBackplane, channel: &Channel) -> bool {
    let history = |since| {
        let query = HistoryQuery { since, limit: 5, bytes: usize::MAX };
        backplane.history(channel, query).now_or_never().expect("ready").expect("read")
    };
    let newest = history(None);
    let since = newest.publications.first().and_then(|publication| publication.position);
    let after = history(since);
    let follows = |publication: &Publication, expected: u64| {
        publication
            .position
            .is_some_and(|at| Some(at.epoch) == since.map(|at| at.epoch) && at.offset == expected)
    };
    let first = since.map_or(0, |at| at.offset) + 1;
    let whole =
        after.publications.iter().zip(first..).all(|(publication, expected)| follows(publication, expected));
    since.is_none() || !after.continuous || whole
}

#[test]
fn threads_do_everything_at_once() {
    let clock = Arc::new(ManualClock::new());
    let sink = Arc::new(OrderSink::default());
    // Room for about 300 publications, so that eviction runs all the time.
    let options = MemoryOptions {
        clock: clock.clone(),
        history_bytes_max: 100_000,
        idempotency_bytes_max: 20_000,
        idempotency_keys_max: 50,
        ..MemoryOptions::default()
    };
    let backplane = MemoryBackplane::new(sink.clone(), options);
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let backplane = &backplane;
                scope.spawn(move || {
                    for at in 0..PUBLICATIONS_EACH {
                        let key = (at % 3 == 0).then(|| format!("{publisher}/{at}"));
                        publish(backplane, &channel((at / 16) % CHANNELS), key, 200);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut generation = 0;
            while !done.load(Ordering::SeqCst) {
                generation += 1;
                for at in 0..CHANNELS {
                    backplane.unsubscribe(&channel(at), generation - 1);
                    backplane
                        .subscribe(&channel(at), generation)
                        .now_or_never()
                        .expect("ready")
                        .expect("accepted");
                }
            }
            (0..CHANNELS).for_each(|at| backplane.unsubscribe(&channel(at), generation));
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                clock.advance(Duration::from_secs(4));
                backplane.sweep(clock.now());
                let whole = (0..CHANNELS).all(|at| read(&backplane, &channel(at)));
                if !whole {
                    sink.broken.store(true, Ordering::SeqCst);
                }
            }
        });
        let results: Vec<_> = publishers.into_iter().map(|publisher| publisher.join()).collect();
        done.store(true, Ordering::SeqCst);
        assert!(results.iter().all(Result::is_ok), "a publisher panicked");
    });

    assert!(!sink.broken.load(Ordering::SeqCst), "an order was broken");
    assert!(sink.handed.load(Ordering::SeqCst) > 0);
    let counters = backplane.counters();
    assert!(counters.history_bytes <= 100_000, "{counters:?}");
    clock.advance(Duration::from_secs(3600));
    (0..SWEEPS_PER_ROUND).for_each(|_| backplane.sweep(clock.now()));
    let expected = MemoryCounters {
        history_evicted: counters.history_evicted,
        idempotency_evicted: counters.idempotency_evicted,
        ..MemoryCounters::default()
    };
    assert_eq!(backplane.counters(), expected, "what was kept is given back, and counted exactly");
}
