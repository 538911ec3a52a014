//! All gateways restarted, one after the other, while 2,000 recovering clients listen through two routers.
//!
//! The timeline is in `target/e2e/rolling-restart.csv` and `.svg`; with `TIDEGATE_PLOT=1` the plot is written to
//! `docs/rolling-restart.svg` as well.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tidegate_testkit::{
    DEADLINE, Gateway, Stop, eventually_some, net::raise_descriptor_limit, redis::RedisServer,
    target_directory,
};

use crate::site::{Router, SHORT_DRAIN, node};
use crate::timeline::{Recorder, Timeline};
use tidegate_tests::cluster::fleet::Fleet;
use tidegate_tests::cluster::ledger::Verdict;
use tidegate_tests::cluster::publishers::{Manner, Publishers};

const CLIENTS: usize = 2_000;
/// 20 clients each.
const CHANNELS: usize = 100;
/// At 200 ms a round, 48 s: the restarts take a little less.
const PUBLICATIONS_PER_CHANNEL: u32 = 240;
const ROUND: Duration = Duration::from_millis(200);

const GATEWAYS: usize = 3;
/// The clients that belong to a gateway that is back have come to it a little after this.
const FILL: &str = "[fill]\nperiod = \"3s\"\n";

/// Longer than routers take to hear of a drain: they ask the registry once a second.
const SETTLE: Duration = Duration::from_millis(2_500);
/// Some 130 closes per second. Routers hear of loads once a second: with more, what both place meanwhile would be a larger
/// part of the bound.
const PERIOD: Duration = Duration::from_secs(6);
/// What the gateway closes at once: the tick of its shards.
const TICK: Duration = Duration::from_millis(250);

/// Of `placement::LoadFactor`.
const LOAD_FACTOR: f64 = 1.25;

/// History that holds all that is published, so that whoever comes back gets what it missed.
const CONFIG: &str = "\
[drain]
settle = \"2500ms\"
period = \"6s\"
close_wait = \"1s\"
[redis]
lease = \"3s\"
[namespaces.kept]
history_size = 1000
history_age = \"10m\"
";

/// Redis, gateways, two routers.
struct Roll {
    redis: RedisServer,
    gateways: Vec<Option<Gateway>>,
    routers: [Router; 2],
    recorder: Recorder,
    drains: Vec<Drain>,
}

/// A gateway that was told to end.
#[derive(Debug)]
struct Drain {
    process: u32,
    /// Before it was told.
    asked: Duration,
    connections: f64,
}

#[test]
fn a_rolling_restart_loses_nothing_and_keeps_its_pace_and_the_balance() {
    raise_descriptor_limit();
    let mut roll = Roll::start();
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("kept:{number}")).collect();
    let routers = roll.addresses();
    let each = CLIENTS / routers.len();
    let fleet = Fleet::start(&routers, &channels, each, true, PUBLICATIONS_PER_CHANNEL);
    let publishers = Publishers {
        gateways: &routers,
        channels: &channels,
        per_channel: PUBLICATIONS_PER_CHANNEL,
        round: ROUND,
        manner: Manner::KEYED_SINGLY,
    };
    let progress = publishers.run(|progress| {
        progress.eventually(4);
        // As a StatefulSet does it: from the last to the first.
        for (index, percent) in (0..GATEWAYS).rev().zip([5, 25, 45]) {
            progress.eventually(percent);
            roll.leave(index);
            roll.join(index);
            roll.mark(index, "back");
        }
    });
    fleet.eventually_finished();
    let loads = roll.eventually_balanced();
    let timeline = roll.recorder.finish();
    let (verdict, _) = fleet.judge(&progress.excused());
    let cut = roll.routers.iter().map(|router| router.metric("tidegate_cuts_total", &[("reason", "node")]));
    let cut: f64 = cut.sum();
    let drains = roll.drains;
    keep(&timeline, &drains);
    println!("{verdict:?}, loads at the end {loads:?}, {} publications", progress.accepted());
    println!("{} tries were repeated; {drains:?}", progress.repeated());

    assert_eq!(
        verdict,
        Verdict { closes: verdict.closes, ..Verdict::default() },
        "nothing lost, in order, once"
    );
    assert_eq!(cut, 0.0, "no gateway vanished");
    expect_pace(&timeline, &drains);
}

impl Roll {
    fn start() -> Self {
        let redis = RedisServer::start();
        let routers = [(); 2].map(|()| Router::start(&redis.url(), &format!("{SHORT_DRAIN}{FILL}")));
        let recorder = Recorder::start(GATEWAYS);
        let mut roll = Self { redis, gateways: Vec::new(), routers, recorder, drains: Vec::new() };
        roll.gateways.resize_with(GATEWAYS, || None);
        (0..GATEWAYS).for_each(|index| roll.join(index));
        roll
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.routers.iter().map(|router| router.public).collect()
    }

    /// Starts a gateway and waits until both routers know it.
    fn join(&mut self, index: usize) {
        let gateway = node(&self.redis, index + 1).config(CONFIG).start();
        self.recorder.watch(index, gateway.pid(), gateway.internal());
        self.gateways[index] = Some(gateway);
        let running = self.gateways.iter().flatten().count();
        self.routers.iter().for_each(|router| router.eventually_live(running));
    }

    /// Tells a gateway to end, when all clients are connected, and waits until it has.
    fn leave(&mut self, index: usize) {
        self.eventually_all_are_connected();
        let mut gateway = self.gateways[index].take().expect("a gateway that runs");
        let connections = connections(&gateway);
        self.mark(index, "drains");
        self.drains.push(Drain { process: gateway.pid(), asked: self.recorder.now(), connections });
        gateway.process().signal(Stop::Terminate);
        let exit = gateway.process().wait(DEADLINE);
        assert_eq!(exit.code, Some(0), "{exit}");
        self.mark(index, "ended");
    }

    fn mark(&self, index: usize, words: &str) {
        self.recorder.mark(&format!("g{} {words}", index + 1));
    }

    /// Nobody stands in for a gateway that is away, so each comes back empty, and is filled.
    fn eventually_balanced(&self) -> Vec<f64> {
        let bound = (LOAD_FACTOR * CLIENTS as f64 / GATEWAYS as f64).ceil();
        eventually_some("all are connected, and no gateway is over its bound", DEADLINE * 2, || {
            let loads = self.eventually_all_are_connected();
            loads.iter().all(|load| *load <= bound).then_some(loads)
        })
    }

    /// Gives what each gateway holds then.
    fn eventually_all_are_connected(&self) -> Vec<f64> {
        eventually_some("all clients are connected", DEADLINE, || {
            let loads: Vec<f64> = self.gateways.iter().flatten().map(connections).collect();
            (loads.iter().sum::<f64>() == CLIENTS as f64).then_some(loads)
        })
    }
}

/// Each client has one subscription; publishers' connections have none.
fn connections(gateway: &Gateway) -> f64 {
    gateway.metric("tidegate_subscriptions", &[])
}

/// No gateway was ahead of its pace at any look: what it had closed is at most the part of its connections that is the
/// part of its period that had passed, and one portion. Being late is no failure: a machine may stall.
#[track_caller]
fn expect_pace(timeline: &Timeline, drains: &[Drain]) {
    let shards = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    for drain in drains {
        let pace = drain.pace();
        let portion = pace * TICK.as_secs_f64() + shards;
        let own = timeline.samples.iter().filter_map(|sample| {
            let readings = sample.readings.iter().flatten();
            let reading = readings.into_iter().find(|reading| reading.process == drain.process)?;
            Some((sample.at, reading.closed))
        });
        for (at, closed) in own {
            let closing = at.saturating_sub(drain.asked + SETTLE).as_secs_f64();
            let allowed = if closing > 0.0 { pace * closing + portion } else { 0.0 };
            assert!(closed <= allowed, "{closed} closed where {allowed} may be, at {at:?} of {drain:?}");
        }
    }
}

impl Drain {
    /// Connections per second.
    fn pace(&self) -> f64 {
        self.connections / PERIOD.as_secs_f64()
    }
}

/// Leaves the timeline where a person can look at it.
fn keep(timeline: &Timeline, drains: &[Drain]) {
    let (mut even, mut closed) = (vec![(Duration::ZERO, 0.0)], 0.0);
    for drain in drains {
        let begin = drain.asked + SETTLE;
        even.extend([(begin, closed), (begin + PERIOD, closed + drain.connections)]);
        closed += drain.connections;
    }
    let title = format!("Rolling restart of {GATEWAYS} gateways behind two routers, {CLIENTS} clients");
    let svg = timeline.plot(&title, &even).svg();
    let directory = target_directory();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let asked = std::env::var_os("TIDEGATE_PLOT").is_some();
    let files = [
        (directory.join("rolling-restart.csv"), Some(timeline.csv())),
        (directory.join("rolling-restart.svg"), Some(svg.clone())),
        (docs.join("rolling-restart.svg"), asked.then_some(svg)),
    ];
    for (path, content) in files {
        if let Some(content) = content {
            fs::write(path, content).expect("the repository is writable");
        }
    }
}
