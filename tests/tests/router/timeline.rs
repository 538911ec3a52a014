//! What gateways say of themselves four times a second while things happen to them; as CSV, and as a plot.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tidegate_testkit::{Metrics, Rest, observe};

use crate::plot::{Line, Panel, Plot};

const INTERVAL: Duration = Duration::from_millis(250);

/// Publishers publish every 0.2 s; rates are taken over this many samples.
const RATE_SAMPLES: usize = 4;

/// Looks at gateways g1, g2, … from a thread of its own.
#[derive(Debug)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Sample>>,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Timeline {
    pub(crate) samples: Vec<Sample>,
    marks: Vec<(Duration, String)>,
    gateways: usize,
}

/// One look at all gateways.
#[derive(Debug)]
pub(crate) struct Sample {
    /// When the last of them had answered.
    pub(crate) at: Duration,
    /// By gateway; `None` where none runs.
    pub(crate) readings: Vec<Option<Reading>>,
}

/// What a process said; counts begin with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    pub(crate) process: u32,
    pub(crate) connections: f64,
    /// Connections that a drain closed.
    pub(crate) closed: f64,
    /// Publications written to clients.
    delivered: f64,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    watched: Mutex<Vec<Option<(u32, Rest)>>>,
    marks: Mutex<Vec<(Duration, String)>>,
    stop: AtomicBool,
}

impl Recorder {
    /// For so many gateways; none of them is watched yet.
    pub(crate) fn start(gateways: usize) -> Self {
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            watched: Mutex::new(vec![None; gateways]),
            marks: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let mut samples = Vec::new();
                while !shared.stop.load(Ordering::Relaxed) {
                    samples.push(shared.look());
                    observe(INTERVAL);
                }
                samples
            }
        });
        Self { shared, thread }
    }

    /// This process is gateway `index` from now on.
    pub(crate) fn watch(&self, index: usize, process: u32, internal: SocketAddr) {
        locked(&self.shared.watched)[index] = Some((process, Rest::new(internal)));
    }

    pub(crate) fn now(&self) -> Duration {
        self.shared.begin.elapsed()
    }

    pub(crate) fn mark(&self, words: &str) {
        locked(&self.shared.marks).push((self.now(), words.to_owned()));
    }

    pub(crate) fn finish(self) -> Timeline {
        self.shared.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join().expect("the recorder does not panic");
        let (marks, gateways) = (locked(&self.shared.marks).clone(), locked(&self.shared.watched).len());
        Timeline { samples, marks, gateways }
    }
}

impl Shared {
    fn look(&self) -> Sample {
        let watched = locked(&self.watched).clone();
        let readings = watched.iter().map(|watched| Reading::of(watched.as_ref()?)).collect();
        Sample { at: self.begin.elapsed(), readings }
    }
}

impl Reading {
    fn of((process, internal): &(u32, Rest)) -> Option<Self> {
        let metrics = Metrics::try_read(internal)?;
        Some(Self {
            process: *process,
            connections: metrics.sum("tidegate_connections", &[]),
            closed: metrics.sum("tidegate_disconnects_total", &[("reason", "drain")]),
            delivered: metrics.sum("tidegate_messages_sent_total", &[]),
        })
    }
}

impl Timeline {
    /// Of each gateway its connections and what it closed since the line before; deliveries of all; what happened.
    pub(crate) fn csv(&self) -> String {
        let mut csv = "seconds".to_owned();
        for gateway in 1..=self.gateways {
            write!(csv, ",g{gateway}_connections,g{gateway}_closed").expect("a string takes everything");
        }
        csv += ",deliveries,events\n";
        let mut since = Duration::ZERO;
        for (number, sample) in self.samples.iter().enumerate() {
            write!(csv, "{:.3}", sample.at.as_secs_f64()).expect("a string takes everything");
            for (gateway, reading) in sample.readings.iter().enumerate() {
                let connections = reading.map(|reading| reading.connections.to_string()).unwrap_or_default();
                let closed = self.gained(number, 1, gateway, |reading| reading.closed);
                write!(csv, ",{connections},{closed}").expect("a string takes everything");
            }
            let events = self.marks.iter().filter(|(at, _)| (since..sample.at).contains(at));
            let events: Vec<&str> = events.map(|(_, words)| words.as_str()).collect();
            let deliveries = self.gained_by_all(number, 1, |reading| reading.delivered);
            writeln!(csv, ",{deliveries},{}", events.join("; ")).expect("a string takes everything");
            since = sample.at;
        }
        csv
    }

    /// `even` is how many connections drains would have closed at which time, if they closed evenly.
    pub(crate) fn plot(&self, title: &str, even: &[(Duration, f64)]) -> Plot {
        let seconds = |number: usize| self.samples[number].at.as_secs_f64();
        let numbers = || 0..self.samples.len();
        let connections = |gateway: usize| Line {
            name: format!("g{}", gateway + 1),
            points: numbers()
                .map(|number| {
                    (
                        seconds(number),
                        self.samples[number].readings[gateway].map(|reading| reading.connections),
                    )
                })
                .collect(),
        };
        let mut sum = 0.0;
        let closed = numbers().map(|number| {
            sum += self.gained_by_all(number, 1, |reading| reading.closed);
            (seconds(number), Some(sum))
        });
        let closed = Line { name: "closed".to_owned(), points: closed.collect() };
        let even = even.iter().map(|&(at, closed)| (at.as_secs_f64(), Some(closed)));
        let even = Line { name: "even pace".to_owned(), points: even.collect() };
        let delivered = numbers().skip(RATE_SAMPLES).map(|number| {
            let elapsed = seconds(number) - seconds(number - RATE_SAMPLES);
            let gained = self.gained_by_all(number, RATE_SAMPLES, |reading| reading.delivered);
            (seconds(number), Some(gained / elapsed))
        });
        let delivered = Line { name: "delivered".to_owned(), points: delivered.collect() };
        let panel = |title: &str, lines| Panel { title: title.to_owned(), lines };
        Plot {
            title: title.to_owned(),
            panels: vec![
                panel("connections of each gateway", (0..self.gateways).map(connections).collect()),
                panel(
                    "connections closed by drains, as counted at the last look before each end",
                    vec![even, closed],
                ),
                panel("deliveries per second", vec![delivered]),
            ],
            marks: self.marks.iter().map(|(at, words)| (at.as_secs_f64(), words.clone())).collect(),
        }
    }

    fn gained_by_all(&self, number: usize, samples: usize, count: fn(&Reading) -> f64) -> f64 {
        (0..self.gateways).map(|gateway| self.gained(number, samples, gateway, count)).sum()
    }

    /// What was counted in the last so many samples up to `number`. A process that began meanwhile counted from 0.
    fn gained(&self, number: usize, samples: usize, gateway: usize, count: fn(&Reading) -> f64) -> f64 {
        let first = number.saturating_sub(samples);
        let mut readings = self.samples[first..=number].iter().map(|sample| sample.readings[gateway]);
        let mut before: Option<Reading> = readings.next().flatten();
        let mut gained = 0.0;
        for reading in readings.flatten() {
            let same = before.filter(|before| before.process == reading.process);
            gained += count(&reading) - same.map_or(0.0, |before| count(&before));
            before = Some(reading);
        }
        gained
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn what_was_counted_is_told_across_a_restart() {
    let reading = |process, closed| Some(Reading { process, connections: 7.0, closed, delivered: 2.0 });
    let readings = [None, reading(1, 3.0), reading(1, 5.0), None, reading(2, 1.0), reading(2, 1.0)];
    let samples = (0u8..)
        .zip(readings)
        .map(|(number, reading)| Sample { at: INTERVAL * u32::from(number), readings: vec![reading] });
    let marks = vec![(INTERVAL, "g1 drains".to_owned())];
    let timeline = Timeline { samples: samples.collect(), marks, gateways: 1 };
    let gained = |number, samples| timeline.gained(number, samples, 0, |reading| reading.closed);
    assert_eq!(
        [gained(1, 1), gained(2, 1), gained(3, 1), gained(4, 1), gained(5, 1)],
        [3.0, 2.0, 0.0, 1.0, 0.0]
    );
    assert_eq!(gained(5, 5), 6.0);
    let csv = timeline.csv();
    let expect = "seconds,g1_connections,g1_closed,deliveries,events\n0.000,,0,0,\n0.250,7,3,2,\n0.500,7,2,0,g1 drains\n";
    assert!(csv.starts_with(expect), "{csv}");
    assert_eq!(timeline.plot("t", &[(INTERVAL, 4.0)]).panels.len(), 3);
}
