//! The measures: what is done to a server and what is read from it.
//!
//! Every server meets the same client: one thread on its own core, subscribers and publishers in one loop.
//! A scenario starts a fresh server and yields the measures that can share it.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::{Fleet, FleetConfig, Role};
use crate::driver::{Driver, Party};
use crate::order::OrderCounts;
use crate::probe::{Probe, ProbeError};
use crate::publish::{Pace, PublishConfig, PublishConfigError, Publisher};
use crate::stats::ConnectFailure;
use crate::sys::thread_cpu_ns;

use super::process::{ProcessError, cpu_ns, pss_bytes};
use super::servers::{Places, Running, Server, ServerError, start};

/// The channel that is measured.
const CHANNEL: &str = "bench";
/// Run id in the stamps; one benchmark runs at a time.
const RUN: u16 = 0x71de;
const PAYLOAD_BYTES: usize = 130;
const ECHO_BYTES: usize = 512;
const ECHO_CONNECTIONS: u32 = 100;
const REST_CONNECTIONS: u16 = 16;
/// 16 publishers with 4 requests in flight each; a request in flight is a keep-alive connection.
const PUBLISHERS_IN_FLIGHT: u16 = 64;
const HANDSHAKES_IN_FLIGHT: u32 = 256;
/// Opened and closed before memory is read, so that lazily loaded code does not count per connection.
const WARMUP_CONNECTIONS: u32 = 200;
const WARMUP_PUBLICATIONS: u32 = 20;
const BROADCASTS: u32 = 5;
/// A connection count per source address that stays far from its 28,000 ports.
const SOURCES: u8 = 50;

const TURN: Duration = Duration::from_millis(50);
/// Nothing measured takes longer than this for one step; past it the step has failed.
const STEP_MAX: Duration = Duration::from_secs(120);
/// The bystander's pings keep the server's CPU moving, so a broadcast's end is a time: 15,000 sends at 13 µs
/// (the slowest server) are 200 ms, and a second covers that five times.
const BROADCAST_TIME: Duration = Duration::from_secs(1);
/// The server is at rest when it used less than 1 ms of CPU in this time.
const QUIET_WINDOW: Duration = Duration::from_millis(60);
const QUIET_CPU_NS: u64 = 1_000_000;

/// Parties of the client loop.
const FLEET: u16 = 0;
const PUBLISHER: u16 = 1;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    Memory,
    MemorySettled,
    FanoutCpu,
    FanoutRate,
    AcceptCpu,
    PublishRate,
    EchoRate,
    Pause,
    IdleCpu,
}

/// What one server has to be started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Fanout,
    Rest,
    Echo,
    Idle,
}

impl Scenario {
    pub const ALL: [Self; 4] = [Self::Fanout, Self::Rest, Self::Echo, Self::Idle];

    /// The measures it yields.
    #[must_use]
    pub fn measures(self) -> &'static [Measure] {
        match self {
            Self::Fanout => &[Measure::FanoutCpu, Measure::FanoutRate],
            Self::Rest => &[Measure::PublishRate],
            Self::Echo => &[Measure::EchoRate],
            Self::Idle => &[
                Measure::AcceptCpu,
                Measure::Memory,
                Measure::MemorySettled,
                Measure::IdleCpu,
                Measure::Pause,
            ],
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sizes {
    pub idle_connections: u32,
    pub subscribers: u32,
    pub warmup: Duration,
    pub window: Duration,
    pub settle: Duration,
    pub idle: Duration,
}

impl Sizes {
    /// The sizes of the table. Two heartbeat periods of 25 s idle, so that every connection is pinged twice.
    pub const FULL: Self = Self {
        idle_connections: 15_000,
        subscribers: 5_000,
        warmup: Duration::from_secs(1),
        window: Duration::from_secs(4),
        settle: Duration::from_secs(10),
        idle: Duration::from_secs(50),
    };

    /// Enough to see that everything works; not enough to believe a number.
    pub const QUICK: Self = Self {
        idle_connections: 3_000,
        subscribers: 1_000,
        warmup: Duration::from_millis(300),
        window: Duration::from_secs(1),
        settle: Duration::from_secs(2),
        idle: Duration::from_secs(5),
    };
}

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
    /// What the value would be without the event measured: the longest wait of an undisturbed bystander.
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
}

/// Starts a server and takes the readings of a scenario.
pub fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
) -> Result<Vec<Reading>, MeasureError> {
    let running = start(server, places)?;
    let mut bench = Bench { driver: Driver::new()?, running, sizes: *sizes };
    match scenario {
        Scenario::Fanout => bench.fanout(),
        Scenario::Rest => bench.rest(),
        Scenario::Echo => bench.echo(),
        Scenario::Idle => bench.idle(),
    }
}

struct Bench {
    driver: Driver,
    running: Running,
    sizes: Sizes,
}

impl Bench {
    fn fanout(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let mut fleet = self.open(Role::Subscribe, self.sizes.subscribers)?;
        let cpu = self.fanout_cpu(&mut fleet)?;
        // Fresh subscribers, because a publisher's sequence numbers begin anew.
        drop(fleet);
        let mut fleet = self.open(Role::Subscribe, self.sizes.subscribers)?;
        Ok(vec![cpu, self.fanout_rate(&mut fleet)?])
    }

    /// One publication at a time, each awaited at every subscriber.
    fn fanout_cpu(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let mut publisher = self.publisher(1, Pace::OnDemand)?;
        for _ in 0..WARMUP_PUBLICATIONS {
            self.publish_and_wait(&mut publisher, fleet)?;
        }
        let (window, delivered) = (self.window()?, fleet.stats().messages);
        while window.began.elapsed() < self.sizes.window {
            self.publish_and_wait(&mut publisher, fleet)?;
        }
        let usage = window.usage()?;
        let deliveries = fleet.stats().messages - delivered;
        Ok(Reading {
            client_busy: Some(usage.client_busy),
            order: fleet.stats().order,
            ..Reading::of(Measure::FanoutCpu, usage.server_ns as f64 / 1e3 / deliveries as f64)
        })
    }

    fn publish_and_wait(&mut self, publisher: &mut Publisher, fleet: &mut Fleet) -> Result<(), MeasureError> {
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

    /// A closed loop of many publishers; what arrives is counted at the client.
    fn fanout_rate(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let mut publisher = self.publisher(PUBLISHERS_IN_FLIGHT, Pace::Closed)?;
        self.drive(&mut [fleet, &mut publisher], self.sizes.warmup)?;
        let (window, before) = (self.window()?, fleet.stats().messages);
        self.drive(&mut [fleet, &mut publisher], self.sizes.window)?;
        let reading = window.usage()?.rate(Measure::FanoutRate, fleet.stats().messages - before);
        publisher.stop();
        self.drain(fleet, &mut publisher)?;
        let mut order = fleet.stats().order;
        order.lost += fleet
            .missing_tail(publisher.streams(), |stream, channel| publisher.acknowledged(stream, channel));
        Ok(Reading { order, ..reading })
    }

    /// Waits for what was published to arrive; what does not is for the order check to tell.
    fn drain(&mut self, fleet: &mut Fleet, publisher: &mut Publisher) -> Result<(), MeasureError> {
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

    fn rest(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let mut publisher = self.publisher(REST_CONNECTIONS, Pace::Closed)?;
        self.drive(&mut [&mut publisher], self.sizes.warmup)?;
        let (window, before) = (self.window()?, publisher.stats().published);
        self.drive(&mut [&mut publisher], self.sizes.window)?;
        Ok(vec![window.usage()?.rate(Measure::PublishRate, publisher.stats().published - before)])
    }

    fn echo(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let mut fleet = self.open(Role::Echo { bytes: ECHO_BYTES }, ECHO_CONNECTIONS)?;
        self.drive(&mut [&mut fleet], self.sizes.warmup)?;
        let (window, before) = (self.window()?, fleet.stats().messages);
        self.drive(&mut [&mut fleet], self.sizes.window)?;
        Ok(vec![window.usage()?.rate(Measure::EchoRate, fleet.stats().messages - before)])
    }

    fn idle(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let pid = self.running.pid();
        self.warm_up()?;
        let (memory, cpu) = (pss_bytes(pid)?, cpu_ns(pid)?);
        let mut fleet = self.open(Role::Subscribe, self.sizes.idle_connections)?;
        let connections = f64::from(fleet.open());
        let per_connection = |bytes: u64| (bytes as f64 - memory as f64) / connections;
        let accept_us = (cpu_ns(pid)? - cpu) as f64 / 1e3 / connections;
        let ramped = per_connection(pss_bytes(pid)?);
        self.drive(&mut [&mut fleet], self.sizes.settle)?;
        let settled = per_connection(pss_bytes(pid)?);
        let idle = self.idle_cpu(&mut fleet)?;
        let pause = self.pause(&mut fleet)?;
        Ok(vec![
            Reading::of(Measure::AcceptCpu, accept_us),
            Reading::of(Measure::Memory, ramped),
            Reading::of(Measure::MemorySettled, settled),
            idle,
            pause,
        ])
    }

    fn warm_up(&mut self) -> Result<(), MeasureError> {
        let mut fleet = self.open(Role::Subscribe, WARMUP_CONNECTIONS)?;
        let mut publisher = self.publisher(1, Pace::OnDemand)?;
        for _ in 0..WARMUP_PUBLICATIONS {
            self.publish_and_wait(&mut publisher, &mut fleet)?;
        }
        drop((fleet, publisher));
        self.wait_quiet()
    }

    /// Share of a core in percent while the clients only answer pings.
    fn idle_cpu(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let (window, pings) = (self.window()?, fleet.stats().pings_answered);
        self.drive(&mut [fleet], self.sizes.idle)?;
        let usage = window.usage()?;
        let pings = (fleet.stats().pings_answered - pings) as f64 / f64::from(fleet.open().max(1));
        Ok(Reading {
            client_busy: Some(usage.client_busy),
            pings: Some(pings),
            ..Reading::of(Measure::IdleCpu, usage.server_ns as f64 / 1e7 / usage.seconds)
        })
    }

    /// The longest wait for a pong while everybody gets a message. The subscribers are not read meanwhile
    /// (one small message waits in each socket's buffer), so the client's core is idle but for the bystander.
    fn pause(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let baseline = Probe::start(&self.running.target(), "/ws?channel=bystander")?;
        std::thread::sleep(self.sizes.warmup);
        let baseline_us = baseline.finish()?.max();
        let mut publisher = self.publisher(1, Pace::OnDemand)?;
        let mut publisher_driver = Driver::new()?;
        let mut longest_us = 0;
        for count in 1..=BROADCASTS {
            let expected = fleet.stats().messages + u64::from(fleet.open());
            let probe = Probe::start(&self.running.target(), "/ws?channel=bystander")?;
            publisher.publish();
            let began = Instant::now();
            while publisher.stats().published < u64::from(count) {
                publisher_driver.turn(&mut [&mut publisher], TURN)?;
                stuck(began, "a publication", publisher.stats().published, u64::from(count))?;
            }
            std::thread::sleep(BROADCAST_TIME);
            longest_us = longest_us.max(probe.finish()?.max());
            let began = Instant::now();
            while fleet.stats().messages < expected {
                self.driver.turn(&mut [fleet], TURN)?;
                stuck(began, "a broadcast", fleet.stats().messages, expected)?;
            }
        }
        Ok(Reading {
            baseline: Some(baseline_us as f64 / 1e3),
            order: fleet.stats().order,
            ..Reading::of(Measure::Pause, longest_us as f64 / 1e3)
        })
    }

    fn wait_quiet(&mut self) -> Result<(), MeasureError> {
        let began = Instant::now();
        loop {
            let before = cpu_ns(self.running.pid())?;
            std::thread::sleep(QUIET_WINDOW);
            if cpu_ns(self.running.pid())? - before < QUIET_CPU_NS {
                return Ok(());
            }
            // A server that never rests is measured all the same.
            if began.elapsed() > Duration::from_secs(3) {
                return Ok(());
            }
        }
    }

    /// Opens connections of the measured channel; every one must open.
    fn open(&mut self, role: Role, connections: u32) -> Result<Fleet, MeasureError> {
        let config = FleetConfig {
            target: self.running.target(),
            role,
            connections,
            channels: [CHANNEL.to_owned()].into(),
            channel_of: std::sync::Arc::new(|_| 0),
            handshakes_in_flight: HANDSHAKES_IN_FLIGHT,
            connects_per_second: None,
            sources: SOURCES,
            run: RUN,
            reset_on_close: true,
        };
        let mut fleet = Fleet::new(FLEET, config);
        let began = Instant::now();
        while !fleet.settled() {
            self.driver.turn(&mut [&mut fleet], TURN)?;
            stuck(began, "connecting", fleet.stats().opened, connections.into())?;
        }
        if fleet.open() < connections {
            let failure = fleet.stats().failures.keys().next().copied();
            return Err(MeasureError::Connect { opened: fleet.stats().opened, asked: connections, failure });
        }
        Ok(fleet)
    }

    fn window(&self) -> Result<Window, ProcessError> {
        let pid = self.running.pid();
        Ok(Window { pid, server_ns: cpu_ns(pid)?, client_ns: thread_cpu_ns(), began: Instant::now() })
    }

    fn publisher(&self, connections: u16, pace: Pace) -> Result<Publisher, MeasureError> {
        let config = PublishConfig {
            target: self.running.target(),
            api_key: Some("dev-key".to_owned()),
            connections,
            pace,
            payload_bytes: PAYLOAD_BYTES,
            channels: [CHANNEL.to_owned()].into(),
            run: RUN,
        };
        Ok(Publisher::new(PUBLISHER, config)?)
    }

    fn drive(&mut self, parties: &mut [&mut dyn Party], time: Duration) -> Result<(), MeasureError> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.driver.turn(parties, TURN.min(time.saturating_sub(began.elapsed())))?;
        }
        Ok(())
    }
}

impl Reading {
    fn of(measure: Measure, value: f64) -> Self {
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
struct Window {
    pid: u32,
    began: Instant,
    server_ns: u64,
    client_ns: u64,
}

/// What a window saw.
struct Usage {
    seconds: f64,
    server_ns: u64,
    client_busy: f64,
}

impl Window {
    fn usage(&self) -> Result<Usage, ProcessError> {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        Ok(Usage {
            seconds,
            server_ns: cpu_ns(self.pid)?.saturating_sub(self.server_ns),
            client_busy: (thread_cpu_ns() - self.client_ns) as f64 / 1e9 / seconds,
        })
    }
}

impl Usage {
    /// A closed loop asks the server for all it has, so its share of the core belongs to the reading.
    fn rate(&self, measure: Measure, count: u64) -> Reading {
        Reading {
            client_busy: Some(self.client_busy),
            server_busy: Some(self.server_ns as f64 / 1e9 / self.seconds),
            ..Reading::of(measure, count as f64 / self.seconds)
        }
    }
}

fn stuck(began: Instant, step: &'static str, seen: u64, expected: u64) -> Result<(), MeasureError> {
    if began.elapsed() > STEP_MAX { Err(MeasureError::Stuck { step, seen, expected }) } else { Ok(()) }
}
