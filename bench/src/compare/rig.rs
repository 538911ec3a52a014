//! The client's side of every scenario: one thread, subscribers and publishers in one loop, and what the
//! servers used meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::{Fleet, FleetConfig, Role};
use crate::driver::{Driver, Party};
use crate::order::OrderCounts;
use crate::probe::ProbeError;
use crate::publish::{Pace, PublishConfig, PublishConfigError, Publisher, Request};
use crate::stats::ConnectFailure;
use crate::sys::thread_cpu_ns;
use crate::target::Target;

use super::launch::ServerError;
use super::plan::Measure;
use super::process::{ProcessError, cpu_ns};

/// The channel that is measured, where one is enough.
pub(super) const CHANNEL: &str = "bench";
/// Run id in the stamps; one benchmark runs at a time.
pub(super) const RUN: u16 = 0x71de;
pub(super) const PAYLOAD_BYTES: usize = 130;
/// 16 publishers with 4 requests in flight each; a request in flight is a keep-alive connection.
pub(super) const PUBLISHERS_IN_FLIGHT: u16 = 64;
/// Opened and closed before memory is read, so that lazily loaded code does not count per connection.
pub(super) const WARMUP_CONNECTIONS: u32 = 200;
pub(super) const WARMUP_PUBLICATIONS: u32 = 20;
const HANDSHAKES_IN_FLIGHT: u32 = 256;
/// A connection count per source address that stays far from its 28,000 ports.
pub(super) const SOURCES: u8 = 50;

pub(super) const TURN: Duration = Duration::from_millis(50);
/// Nothing measured takes longer than this for one step; past it the step has failed.
pub(super) const STEP_MAX: Duration = Duration::from_secs(120);
/// The server is at rest when it used less than 1 ms of CPU in this time.
const QUIET_WINDOW: Duration = Duration::from_millis(60);
const QUIET_CPU_NS: u64 = 1_000_000;

/// Parties of the client loop.
const PUBLISHER: u16 = 0;

/// One reading, in the unit of the measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reading {
    pub measure: Measure,
    pub value: f64,
    /// Share of its core the client used meanwhile: near 1, the client was the limit.
    pub client_busy: Option<f64>,
    /// Share of its core the server got while it was asked for all it has: well under 1, something else ran
    /// there, and only ratios and the rate per CPU second mean something.
    pub server_busy: Option<f64>,
    /// Pings answered per connection while the server was idle: says that it did send heartbeats.
    pub pings: Option<f64>,
    /// The same without what is measured: no broadcast, no hook, an application that answers at once.
    pub baseline: Option<f64>,
    /// Loss, duplication and disorder seen at the client meanwhile.
    pub order: OrderCounts,
}

/// A measure that failed.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Publish(#[from] PublishConfigError),
    #[error("the client's loop failed: {0}")]
    Loop(#[from] std::io::Error),
    #[error("only {opened} of {asked} connections opened{}", failure.map(|failure| format!(": {failure}")).unwrap_or_default())]
    Connect { opened: u64, asked: u32, failure: Option<ConnectFailure> },
    #[error("{step} did not end within {} s: {seen} of {expected}", STEP_MAX.as_secs())]
    Stuck { step: &'static str, seen: u64, expected: u64 },
    #[error("redis-benchmark printed no rate: {output}")]
    RedisBenchmark { output: String },
    #[error("the example placement printed no {name}")]
    Placement { name: &'static str },
    #[error("a batch was answered with status {status}")]
    Batch { status: u16 },
    #[error("{path} of {address} gave no {metric}")]
    Metric { address: std::net::SocketAddr, path: &'static str, metric: &'static str },
    #[error("client process {index}: {problem}")]
    Worker { index: u32, problem: Box<str> },
}

/// The loop and what is opened in it.
pub(super) struct Rig {
    pub(super) driver: Driver,
    /// Fleets that were opened; each is a party of its own.
    fleets: u16,
}

impl Rig {
    pub(super) fn new() -> Result<Self, MeasureError> {
        Ok(Self { driver: Driver::new()?, fleets: 0 })
    }

    /// Opens connections of the measured channel; every one must open.
    pub(super) fn open(
        &mut self,
        target: &Target,
        role: Role,
        connections: u32,
    ) -> Result<Fleet, MeasureError> {
        self.open_over(target, role, connections, &one_channel())
    }

    /// Opens connections that take the channels in turn.
    pub(super) fn open_over(
        &mut self,
        target: &Target,
        role: Role,
        connections: u32,
        channels: &Arc<[String]>,
    ) -> Result<Fleet, MeasureError> {
        self.open_with(target, role, connections, channels, None, &mut || Ok(()))
    }

    /// The same with a token; `look` is called with each turn of the loop.
    pub(super) fn open_with(
        &mut self,
        target: &Target,
        role: Role,
        connections: u32,
        channels: &Arc<[String]>,
        token: Option<Arc<str>>,
        look: &mut dyn FnMut() -> Result<(), MeasureError>,
    ) -> Result<Fleet, MeasureError> {
        let count = channels.len() as u32;
        let config = FleetConfig {
            target: target.clone(),
            role,
            connections,
            channels: Arc::clone(channels),
            channel_of: Arc::new(move |index| index % count),
            handshakes_in_flight: HANDSHAKES_IN_FLIGHT,
            connects_per_second: None,
            sources: SOURCES,
            run: RUN,
            reset_on_close: true,
            token,
            comes_back: role == Role::SubscribeRecovering,
        };
        self.fleets += 1;
        let mut fleet = Fleet::new(PUBLISHER + self.fleets, config);
        let began = Instant::now();
        while !fleet.settled() {
            self.driver.turn(&mut [&mut fleet], TURN)?;
            look()?;
            stuck(began, "connecting", fleet.stats().opened, connections.into())?;
        }
        if fleet.open() < connections {
            let failure = fleet.stats().failures.keys().next().copied();
            return Err(MeasureError::Connect { opened: fleet.stats().opened, asked: connections, failure });
        }
        Ok(fleet)
    }

    /// One turn of the loop, in a step that ends when so many bytes have come.
    pub(super) fn turn(
        &mut self,
        fleet: &mut Fleet,
        began: Instant,
        step: &'static str,
        bytes: u64,
    ) -> Result<(), MeasureError> {
        self.driver.turn(&mut [fleet], TURN)?;
        stuck(began, step, fleet.stats().bytes, bytes)
    }

    pub(super) fn drive(
        &mut self,
        parties: &mut [&mut dyn Party],
        time: Duration,
    ) -> Result<(), MeasureError> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.driver.turn(parties, TURN.min(time.saturating_sub(began.elapsed())))?;
        }
        Ok(())
    }

    /// One publication, awaited at every subscriber.
    pub(super) fn publish_and_wait(
        &mut self,
        publisher: &mut Publisher,
        fleet: &mut Fleet,
    ) -> Result<(), MeasureError> {
        let published = publisher.stats().published + 1;
        let expected = fleet.stats().messages + u64::from(fleet.open());
        publisher.publish();
        let began = Instant::now();
        while publisher.stats().published < published || fleet.stats().messages < expected {
            self.driver.turn(&mut [fleet, publisher], TURN)?;
            stuck(began, "a broadcast", fleet.stats().messages, expected)?;
        }
        Ok(())
    }

    /// One publication after the other for `time`, after a few to warm up; gives the CPU time of `pids` and the
    /// publications and deliveries.
    pub(super) fn one_at_a_time(
        &mut self,
        publisher: &mut Publisher,
        fleet: &mut Fleet,
        pids: &[u32],
        time: Duration,
    ) -> Result<(Usage, u64, u64), MeasureError> {
        for _ in 0..WARMUP_PUBLICATIONS {
            self.publish_and_wait(publisher, fleet)?;
        }
        let (published, delivered) = (publisher.stats().published, fleet.stats().messages);
        let window = Window::begin(pids)?;
        while window.began.elapsed() < time {
            self.publish_and_wait(publisher, fleet)?;
        }
        let usage = window.usage()?;
        Ok((usage, publisher.stats().published - published, fleet.stats().messages - delivered))
    }

    /// Waits for what was published to arrive; what does not is for the order check to tell.
    pub(super) fn drain(&mut self, fleet: &mut Fleet, publisher: &mut Publisher) -> Result<(), MeasureError> {
        let quiet = Duration::from_secs(1);
        let (mut seen, mut since, began) = (fleet.stats().messages, Instant::now(), Instant::now());
        while !publisher.quiet() || since.elapsed() < quiet {
            self.driver.turn(&mut [fleet, publisher], TURN)?;
            if fleet.stats().messages != seen {
                (seen, since) = (fleet.stats().messages, Instant::now());
            }
            stuck(began, "the end of the deliveries", seen, seen)?;
        }
        Ok(())
    }

    /// Connections and publications that come and go before memory is read. `publish` is where to publish.
    pub(super) fn warm_up(&mut self, connect: &Target, publish: &Target) -> Result<(), MeasureError> {
        let mut fleet = self.open(connect, Role::Subscribe, WARMUP_CONNECTIONS)?;
        let mut publisher = publisher(publish, 1, Pace::OnDemand, &one_channel())?;
        for _ in 0..WARMUP_PUBLICATIONS {
            self.publish_and_wait(&mut publisher, &mut fleet)?;
        }
        Ok(())
    }
}

/// What was published and not delivered to a connection that is still open counts as lost.
pub(super) fn order_at_the_end(fleet: &Fleet, publisher: &Publisher) -> OrderCounts {
    let mut order = fleet.stats().order;
    order.lost +=
        fleet.missing_tail(publisher.streams(), |stream, channel| publisher.acknowledged(stream, channel));
    order
}

pub(super) fn one_channel() -> Arc<[String]> {
    [CHANNEL.to_owned()].into()
}

/// A publisher with this many keep-alive connections.
pub(super) fn publisher(
    target: &Target,
    connections: u16,
    pace: Pace,
    channels: &Arc<[String]>,
) -> Result<Publisher, MeasureError> {
    publisher_of(Request::Publish, target, connections, pace, channels)
}

/// The same with requests of another kind.
pub(super) fn publisher_of(
    request: Request,
    target: &Target,
    connections: u16,
    pace: Pace,
    channels: &Arc<[String]>,
) -> Result<Publisher, MeasureError> {
    let config = PublishConfig {
        target: target.clone(),
        api_key: Some("dev-key".to_owned()),
        request,
        connections,
        pace,
        payload_bytes: PAYLOAD_BYTES,
        channels: Arc::clone(channels),
        run: RUN,
    };
    Ok(Publisher::new(PUBLISHER, config)?)
}

/// Waits until a process uses almost no CPU. A server that never rests is measured all the same.
pub(super) fn wait_quiet(pid: u32) -> Result<(), MeasureError> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let before = cpu_ns(pid)?;
        std::thread::sleep(QUIET_WINDOW);
        if cpu_ns(pid)? - before < QUIET_CPU_NS {
            break;
        }
    }
    Ok(())
}

pub(super) fn stuck(
    began: Instant,
    step: &'static str,
    seen: u64,
    expected: u64,
) -> Result<(), MeasureError> {
    if began.elapsed() > STEP_MAX { Err(MeasureError::Stuck { step, seen, expected }) } else { Ok(()) }
}

impl Reading {
    pub(super) fn of(measure: Measure, value: f64) -> Self {
        Self {
            measure,
            value,
            client_busy: None,
            server_busy: None,
            pings: None,
            baseline: None,
            order: OrderCounts::default(),
        }
    }
}

/// A stretch of time in which the CPU use of both sides is known.
pub(super) struct Window {
    pids: Vec<u32>,
    pub(super) began: Instant,
    server_ns: u64,
    client_ns: u64,
}

/// What a window saw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) seconds: f64,
    /// Of all servers that were watched.
    pub(super) server_ns: u64,
    pub(super) client_busy: f64,
}

impl Window {
    pub(super) fn begin(pids: &[u32]) -> Result<Self, ProcessError> {
        let server_ns = cpu_of(pids)?;
        Ok(Self { pids: pids.to_vec(), server_ns, client_ns: thread_cpu_ns(), began: Instant::now() })
    }

    pub(super) fn usage(&self) -> Result<Usage, ProcessError> {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        Ok(Usage {
            seconds,
            server_ns: cpu_of(&self.pids)?.saturating_sub(self.server_ns),
            client_busy: (thread_cpu_ns() - self.client_ns) as f64 / 1e9 / seconds,
        })
    }
}

/// CPU time of several processes together.
pub(super) fn cpu_of(pids: &[u32]) -> Result<u64, ProcessError> {
    pids.iter().map(|&pid| cpu_ns(pid)).sum()
}

impl Usage {
    /// A closed loop asks the server for all it has, so its share of the core belongs to the reading.
    pub(super) fn rate(&self, measure: Measure, count: u64) -> Reading {
        Reading {
            client_busy: Some(self.client_busy),
            server_busy: Some(self.server_ns as f64 / 1e9 / self.seconds),
            ..Reading::of(measure, count as f64 / self.seconds)
        }
    }

    /// CPU time of the servers for each of `count` things, µs.
    pub(super) fn cpu_us(&self, count: u64) -> f64 {
        self.server_ns as f64 / 1e3 / count.max(1) as f64
    }
}
