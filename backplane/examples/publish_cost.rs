//! Prints what a publish costs in this process: nothing kept, handed over, kept, with a key; on one thread and more.
//!
//! `cargo run --release -p tidegate-backplane --example publish_cost`

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tidegate_backplane::{
    Backplane, Channel, Control, Gap, HistoryPolicy, Intake, MemoryBackplane, MemoryOptions, NewPublication,
    Payload, PresenceEvent, Publication, Sink, Text, Transition,
};

const PUBLISHES: usize = 400_000;
const CHANNELS: usize = 1_000;

/// Does the least that a node does: it looks at the publication.
#[derive(Default)]
struct CountingSink(AtomicU64);

impl Sink for CountingSink {
    fn publication(&self, _: &Channel, publication: Arc<Publication>) -> Intake {
        self.0.fetch_add(publication.payload.bytes().len() as u64, Ordering::Relaxed);
        Intake::Taken
    }

    fn gap(&self, _: &Channel, _: Gap) {}

    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    is_subscribed: bool,
    history: Option<HistoryPolicy>,
    has_key: bool,
}

fn main() {
    let history = Some(HistoryPolicy { size: 100, age: Duration::from_secs(300) });
    let plain = Case { name: "no subscriber", is_subscribed: false, history: None, has_key: false };
    let cases = [
        plain,
        Case { name: "subscriber", is_subscribed: true, ..plain },
        Case { name: "history", history, ..plain },
        Case { name: "history, subscriber", is_subscribed: true, history, ..plain },
        Case { name: "key", has_key: true, ..plain },
    ];
    let channels: Vec<Channel> =
        (0..CHANNELS).filter_map(|at| Channel::new(&format!("chat:room-{at:05}")).ok()).collect();
    for case in cases {
        for threads in [1, 2] {
            println!("{:<22}{threads} threads {:>6.0} ns", case.name, measure(case, &channels, threads));
        }
    }
}

/// Nanoseconds of one publish as a thread sees it; the best of five runs, as a noisy machine only ever adds.
fn measure(case: Case, channels: &[Channel], threads: usize) -> f64 {
    let run = |_| {
        let backplane = MemoryBackplane::new(Arc::new(CountingSink::default()), MemoryOptions::default());
        for channel in channels.iter().filter(|_| case.is_subscribed) {
            assert_eq!(backplane.subscribe(channel, 1).now_or_never(), Some(Ok(())));
        }
        let start = Instant::now();
        thread::scope(|scope| {
            for thread in 0..threads {
                let backplane = &backplane;
                scope.spawn(move || publish_all(backplane, channels, case, thread));
            }
        });
        start.elapsed().as_nanos() as f64 / PUBLISHES as f64
    };
    (0..5).map(run).fold(f64::INFINITY, f64::min)
}

fn publish_all(backplane: &MemoryBackplane, channels: &[Channel], case: Case, thread: usize) {
    let payload = Text::from("x".repeat(130));
    for at in 0..PUBLISHES {
        let publication = NewPublication {
            channel: channels[(at * 7 + thread) % CHANNELS].clone(),
            event: None,
            payload: Payload::Text(payload.clone()),
            history: case.history,
            idempotency_key: case.has_key.then(|| format!("{thread}-{at}").into()),
            sender: None,
        };
        let published = backplane.publish(publication).now_or_never();
        assert!(published.is_some_and(|published| published.is_ok()));
    }
}
