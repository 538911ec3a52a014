//! One node against servers of its kind: what is done to a server and what is read from it.
//!
//! A scenario starts a fresh server and yields the measures that can share it.

use std::time::{Duration, Instant};

use crate::client::{Fleet, Role};
use crate::driver::Driver;
use crate::probe::Probe;
use crate::publish::Pace;
use crate::target::Target;

use super::launch::{Places, Running};
use super::plan::{Measure, Scenario, Sizes};
use super::process::{cpu_ns, pss_bytes};
use super::rig::{
    MeasureError, PUBLISHERS_IN_FLIGHT, Reading, Rig, TURN, WARMUP_CONNECTIONS, Window, one_channel,
    order_at_the_end, publisher, stuck, wait_quiet,
};
use super::servers::{Server, start};

const ECHO_BYTES: usize = 512;
const ECHO_CONNECTIONS: u32 = 100;
const REST_CONNECTIONS: u16 = 16;
const BROADCASTS: u32 = 5;
/// The bystander's pings keep the server's CPU moving, so a broadcast's end is a time: 15,000 sends at 13 µs
/// (the slowest server) are 200 ms, and a second covers that five times.
const BROADCAST_TIME: Duration = Duration::from_secs(1);

/// Starts a server and takes the readings of a scenario.
pub(super) fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
    wanted: &[Measure],
) -> Result<Vec<Reading>, MeasureError> {
    if scenario == Scenario::Kinds {
        return KINDS.iter().map(|kind| kind.measure(server, places, sizes)).collect();
    }
    let running = start(server, places)?;
    let mut bench = Bench { rig: Rig::new()?, target: running.target(), running, sizes: *sizes };
    match scenario {
        Scenario::Fanout => bench.fanout(),
        Scenario::Rest => bench.rest(),
        Scenario::Echo => bench.echo(),
        _ => bench.idle(wanted),
    }
}

/// A kind of connection whose memory is measured beside that of the simplest.
struct Kind {
    measure: Measure,
    role: Role,
    channels: fn() -> Vec<String>,
}

const KINDS: [Kind; 3] = [
    Kind { measure: Measure::MemoryThree, role: Role::Subscribe, channels: three },
    Kind { measure: Measure::MemoryThreeSse, role: Role::SubscribeSse, channels: three },
    Kind { measure: Measure::MemoryPresence, role: Role::SubscribePresence, channels: rooms },
];

/// As many as an app's channel has at most unless it is configured.
const MEMBERS_PER_ROOM: u32 = 100;

fn three() -> Vec<String> {
    vec!["bench&channel=bench-b&channel=bench-c".to_owned()]
}

fn rooms() -> Vec<String> {
    (0..Sizes::FULL.idle_connections / MEMBERS_PER_ROOM).map(|room| format!("presence-{room}")).collect()
}

impl Kind {
    fn measure(&self, server: Server, places: &Places, sizes: &Sizes) -> Result<Reading, MeasureError> {
        let (running, mut rig) = (start(server, places)?, Rig::new()?);
        let (target, pid, channels) = (running.target(), running.pid(), (self.channels)().into());
        drop(rig.open_over(&target, self.role, WARMUP_CONNECTIONS, &channels)?);
        wait_quiet(pid)?;
        let memory = pss_bytes(pid)?;
        let mut fleet = rig.open_over(&target, self.role, sizes.idle_connections, &channels)?;
        rig.drive(&mut [&mut fleet], sizes.settle)?;
        let grown = pss_bytes(pid)? as f64 - memory as f64;
        Ok(Reading::of(self.measure, grown / f64::from(fleet.open())))
    }
}

struct Bench {
    rig: Rig,
    running: Running,
    target: Target,
    sizes: Sizes,
}

impl Bench {
    fn fanout(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let mut fleet = self.rig.open(&self.target, Role::Subscribe, self.sizes.subscribers)?;
        let cpu = self.fanout_cpu(&mut fleet)?;
        // Fresh subscribers, because a publisher's sequence numbers begin anew.
        drop(fleet);
        let mut fleet = self.rig.open(&self.target, Role::Subscribe, self.sizes.subscribers)?;
        Ok(vec![cpu, self.fanout_rate(&mut fleet)?])
    }

    /// One publication at a time, each awaited at every subscriber.
    fn fanout_cpu(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let mut publisher = publisher(&self.target, 1, Pace::OnDemand, &one_channel())?;
        let pids = [self.running.pid()];
        let (usage, _, deliveries) =
            self.rig.one_at_a_time(&mut publisher, fleet, &pids, self.sizes.window)?;
        Ok(Reading {
            client_busy: Some(usage.client_busy),
            order: fleet.stats().order,
            ..Reading::of(Measure::FanoutCpu, usage.cpu_us(deliveries))
        })
    }

    /// A closed loop of many publishers; what arrives is counted at the client.
    fn fanout_rate(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let mut publisher = publisher(&self.target, PUBLISHERS_IN_FLIGHT, Pace::Closed, &one_channel())?;
        self.rig.drive(&mut [fleet, &mut publisher], self.sizes.warmup)?;
        let (window, before) = (Window::begin(&[self.running.pid()])?, fleet.stats().messages);
        self.rig.drive(&mut [fleet, &mut publisher], self.sizes.window)?;
        let reading = window.usage()?.rate(Measure::FanoutRate, fleet.stats().messages - before);
        publisher.stop();
        self.rig.drain(fleet, &mut publisher)?;
        Ok(Reading { order: order_at_the_end(fleet, &publisher), ..reading })
    }

    fn rest(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let mut publisher = publisher(&self.target, REST_CONNECTIONS, Pace::Closed, &one_channel())?;
        self.rig.drive(&mut [&mut publisher], self.sizes.warmup)?;
        let (window, before) = (Window::begin(&[self.running.pid()])?, publisher.stats().published);
        self.rig.drive(&mut [&mut publisher], self.sizes.window)?;
        Ok(vec![window.usage()?.rate(Measure::PublishRate, publisher.stats().published - before)])
    }

    fn echo(&mut self) -> Result<Vec<Reading>, MeasureError> {
        let role = Role::Echo { bytes: ECHO_BYTES };
        let mut fleet = self.rig.open(&self.target, role, ECHO_CONNECTIONS)?;
        self.rig.drive(&mut [&mut fleet], self.sizes.warmup)?;
        let (window, before) = (Window::begin(&[self.running.pid()])?, fleet.stats().messages);
        self.rig.drive(&mut [&mut fleet], self.sizes.window)?;
        Ok(vec![window.usage()?.rate(Measure::EchoRate, fleet.stats().messages - before)])
    }

    /// The long ones of its measures are left out where nobody wants them.
    fn idle(&mut self, wanted: &[Measure]) -> Result<Vec<Reading>, MeasureError> {
        let pid = self.running.pid();
        self.rig.warm_up(&self.target, &self.target)?;
        wait_quiet(pid)?;
        let (memory, cpu) = (pss_bytes(pid)?, cpu_ns(pid)?);
        let mut fleet = self.rig.open(&self.target, Role::Subscribe, self.sizes.idle_connections)?;
        let connections = f64::from(fleet.open());
        let per_connection = |bytes: u64| (bytes as f64 - memory as f64) / connections;
        let accept_us = (cpu_ns(pid)? - cpu) as f64 / 1e3 / connections;
        let ramped = per_connection(pss_bytes(pid)?);
        self.rig.drive(&mut [&mut fleet], self.sizes.settle)?;
        let settled = per_connection(pss_bytes(pid)?);
        let mut readings = vec![
            Reading::of(Measure::AcceptCpu, accept_us),
            Reading::of(Measure::Memory, ramped),
            Reading::of(Measure::MemorySettled, settled),
        ];
        if wanted.contains(&Measure::IdleCpu) {
            readings.push(self.idle_cpu(&mut fleet)?);
        }
        if wanted.contains(&Measure::Pause) {
            readings.push(self.pause(&mut fleet)?);
        }
        Ok(readings)
    }

    /// Share of a core in percent while the clients only answer pings.
    fn idle_cpu(&mut self, fleet: &mut Fleet) -> Result<Reading, MeasureError> {
        let (window, pings) = (Window::begin(&[self.running.pid()])?, fleet.stats().pings_answered);
        self.rig.drive(&mut [fleet], self.sizes.idle)?;
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
        let baseline = Probe::start(&self.target, "/ws?channel=bystander")?;
        std::thread::sleep(self.sizes.warmup);
        let baseline_us = baseline.finish()?.max();
        let mut publisher = publisher(&self.target, 1, Pace::OnDemand, &one_channel())?;
        let mut publisher_driver = Driver::new()?;
        let mut longest_us = 0;
        for count in 1..=BROADCASTS {
            let expected = fleet.stats().messages + u64::from(fleet.open());
            let probe = Probe::start(&self.target, "/ws?channel=bystander")?;
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
                self.rig.driver.turn(&mut [fleet], TURN)?;
                stuck(began, "a broadcast", fleet.stats().messages, expected)?;
            }
        }
        Ok(Reading {
            baseline: Some(baseline_us as f64 / 1e3),
            order: fleet.stats().order,
            ..Reading::of(Measure::Pause, longest_us as f64 / 1e3)
        })
    }
}
