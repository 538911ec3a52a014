//! The phases of a storm: ramp, then publish or hold, with progress on a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::driver::Driver;
use crate::publish::Publisher;
use crate::report::{Percentiles, Publishes};

use super::threads::{Acknowledged, ClientThread, Progress};
use super::{StormError, StormOptions, by_text};

/// Longest turn of the publisher's loop, so that the bar moves and the end is met.
const TURN: Duration = Duration::from_millis(20);

/// After the last publication: deliveries have ended when none came for this long …
const DRAIN_QUIET: Duration = Duration::from_millis(500);
/// … and are not waited for beyond this.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// A publisher that cannot connect within this time has a wrong address.
const PUBLISHER_CONNECT: Duration = Duration::from_secs(5);

/// The connections are up.
#[derive(Debug)]
pub(super) struct Ramp {
    pub(super) opened: u64,
    pub(super) took: Duration,
}

/// The load is over.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) publishes: Publishes,
    pub(super) deliveries_per_second: f64,
    pub(super) client_busy: f64,
    pub(super) acknowledged: Acknowledged,
}

/// Waits until every connection is open or failed.
pub(super) fn ramp(options: &StormOptions, threads: &[ClientThread]) -> Ramp {
    let bar = bar(u64::from(options.connections), "connecting {bar:30} {pos}/{len} {msg} {elapsed}");
    let began = Instant::now();
    loop {
        let settled =
            threads.iter().all(|thread| thread.progress.settled.load(Ordering::Acquire) || thread.is_over());
        let opened = sum(threads, |progress| progress.opened.load(Ordering::Relaxed));
        let failed = sum(threads, |progress| progress.failed.load(Ordering::Relaxed));
        bar.set_position(opened);
        if failed > 0 {
            bar.set_message(format!("{failed} failed"));
        }
        if settled || options.stop.load(Ordering::Relaxed) {
            bar.finish_and_clear();
            return Ramp { opened, took: began.elapsed() };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Publishes for the asked time, then waits for the deliveries to end.
pub(super) fn publish(
    options: &StormOptions,
    mut publisher: Publisher,
    threads: &[ClientThread],
    url: &str,
) -> Result<Load, StormError> {
    let mut driver = Driver::new()?;
    let began = Instant::now();
    let meter = Meter::start(threads);
    let bar = bar(options.duration.as_millis() as u64, "publishing {bar:30} {msg}");
    let mut lines = Lines::new(options);
    while began.elapsed() < options.duration && !options.stop.load(Ordering::Relaxed) {
        driver.turn(&mut [&mut publisher], TURN)?;
        if began.elapsed() > PUBLISHER_CONNECT && publisher.stats().published == 0 && !publisher.connected() {
            return Err(StormError::PublisherDown {
                url: url.to_owned(),
                seconds: PUBLISHER_CONNECT.as_secs(),
            });
        }
        show(&bar, began, &meter, publisher.stats().published, threads);
        lines.show(began, &meter, publisher.stats().published, threads);
    }
    let seconds = began.elapsed().as_secs_f64();
    let accepted = publisher.stats().published;
    let (deliveries_per_second, client_busy) = meter.read(threads);
    publisher.stop();
    bar.set_message("waiting for the last deliveries");
    drain(&mut driver, &mut publisher, threads)?;
    bar.finish_and_clear();
    let stats = publisher.stats();
    Ok(Load {
        publishes: Publishes {
            seconds,
            accepted: stats.published,
            per_second: accepted as f64 / seconds,
            pushed_back: stats.pushed_back.clone(),
            refused: stats.refused.clone(),
            uncertain: stats.uncertain,
            behind: publisher.behind(),
            failed: by_text(&stats.failures),
            answer_us: Percentiles::from(&stats.answer_us),
        },
        deliveries_per_second,
        client_busy,
        acknowledged: acknowledged(&publisher, options.channels.max(1)),
    })
}

/// Publishes nothing and watches the connections for the asked time.
pub(super) fn hold(options: &StormOptions, threads: &[ClientThread]) -> Load {
    let duration = options.duration;
    let mut lines = Lines::new(options);
    let began = Instant::now();
    let meter = Meter::start(threads);
    let bar = bar(duration.as_millis() as u64, "holding {bar:30} {msg}");
    while began.elapsed() < duration && !options.stop.load(Ordering::Relaxed) {
        std::thread::sleep(TURN.min(duration.saturating_sub(began.elapsed())));
        show(&bar, began, &meter, 0, threads);
        lines.show(began, &meter, 0, threads);
    }
    bar.finish_and_clear();
    let (deliveries_per_second, client_busy) = meter.read(threads);
    Load {
        publishes: Publishes {
            seconds: 0.0,
            accepted: 0,
            per_second: 0.0,
            pushed_back: BTreeMap::new(),
            refused: BTreeMap::new(),
            uncertain: 0,
            behind: 0,
            failed: BTreeMap::new(),
            answer_us: Percentiles::default(),
        },
        deliveries_per_second,
        client_busy,
        acknowledged: Acknowledged::default(),
    }
}

fn drain(driver: &mut Driver, publisher: &mut Publisher, threads: &[ClientThread]) -> Result<(), StormError> {
    let began = Instant::now();
    let mut last = (messages(threads), Instant::now());
    while began.elapsed() < DRAIN_MAX && (!publisher.quiet() || last.1.elapsed() < DRAIN_QUIET) {
        driver.turn(&mut [publisher], TURN)?;
        let now = messages(threads);
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(())
}

fn acknowledged(publisher: &Publisher, channels: u32) -> Acknowledged {
    let streams = publisher.streams();
    let sequences = (0..streams)
        .flat_map(|stream| (0..channels).map(move |channel| publisher.acknowledged(stream, channel)))
        .collect();
    Acknowledged { streams, channels, sequences }
}

/// Rates of the client threads between two moments.
struct Meter {
    began: Instant,
    messages: u64,
    cpu_ns: Vec<u64>,
}

impl Meter {
    fn start(threads: &[ClientThread]) -> Self {
        Self { began: Instant::now(), messages: messages(threads), cpu_ns: cpu_ns(threads) }
    }

    /// Deliveries per second, and the share of a core of the busiest thread.
    fn read(&self, threads: &[ClientThread]) -> (f64, f64) {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        let busiest = cpu_ns(threads)
            .iter()
            .zip(&self.cpu_ns)
            .map(|(now, before)| now.saturating_sub(*before))
            .max()
            .unwrap_or(0);
        ((messages(threads) - self.messages) as f64 / seconds, busiest as f64 / 1e9 / seconds)
    }
}

/// What a log gets in place of a bar that moves.
struct Lines {
    asked: u32,
    /// `None` where nobody reads them.
    next: Option<Instant>,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(10);

    fn new(options: &StormOptions) -> Self {
        let wanted = options.lines && !std::io::stderr().is_terminal();
        Self { asked: options.connections, next: wanted.then(Instant::now) }
    }

    fn show(&mut self, began: Instant, meter: &Meter, published: u64, threads: &[ClientThread]) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = Some(now + Self::EVERY);
        let open = sum(threads, |progress| progress.open.load(Ordering::Relaxed));
        let returned = sum(threads, |progress| progress.returned.load(Ordering::Relaxed));
        let (per_second, _) = meter.read(threads);
        eprintln!(
            "{} s: {open} of {} connections open, {returned} connections came back, {published} published, \
             {per_second:.0} deliveries/s",
            began.elapsed().as_secs(),
            self.asked
        );
    }
}

fn sum(threads: &[ClientThread], value: impl Fn(&Progress) -> u64) -> u64 {
    threads.iter().map(|thread| value(&thread.progress)).sum()
}

fn messages(threads: &[ClientThread]) -> u64 {
    sum(threads, |progress| progress.messages.load(Ordering::Relaxed))
}

fn cpu_ns(threads: &[ClientThread]) -> Vec<u64> {
    threads.iter().map(|thread| thread.progress.cpu_ns.load(Ordering::Relaxed)).collect()
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    // A template that does not parse costs the look of the bar and nothing else.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, began: Instant, meter: &Meter, published: u64, threads: &[ClientThread]) {
    if bar.is_hidden() {
        return;
    }
    let (per_second, _) = meter.read(threads);
    bar.set_position(began.elapsed().as_millis() as u64);
    bar.set_message(format!("{published} published, {per_second:.0} deliveries/s"));
}
