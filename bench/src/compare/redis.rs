//! Nodes joined by Redis: what the way over Redis adds, for the time, the CPU and the rate of a message.
//!
//! Node A takes publications, node B has the subscribers. Who has which core is said at each scenario.

mod many;
pub(super) mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Fleet, Role};
use crate::publish::{Pace, Publisher};
use crate::target::Target;

use super::launch::{Places, Running, output_of};
use super::plan::{Measure, Scenario, Sizes};
use super::rig::{
    CHANNEL, MeasureError, PAYLOAD_BYTES, PUBLISHERS_IN_FLIGHT, Reading, Rig, TURN, Usage, Window,
    one_channel, order_at_the_end, publisher,
};
use super::servers::{Server, launch_gateway, start_gateway, start_redis, start_socket_io};
use wire::{Posts, Redis};

/// Subscribers per channel, from which the cost of a publication and of a delivery are told apart. Few, because
/// a publication costs about as much as one delivery: among 100 of them it would drown in the noise.
const SUBSCRIBERS: [u32; 4] = [1, 2, 4, 8];
/// With one channel per publication in flight, two publications seldom meet in one write.
const CHANNELS: u32 = 64;

/// Takes the readings of a scenario with fresh servers.
pub(super) fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
) -> Result<Vec<Reading>, MeasureError> {
    match (scenario, server) {
        (Scenario::RedisLatency, _) => latency(server, places, sizes),
        (Scenario::RedisReceive, _) => receive(places, sizes),
        (Scenario::RedisFanout, _) => fanout(server, places, sizes),
        (Scenario::RedisMany, _) => many::run(places, sizes),
        (Scenario::RedisKept, Server::RedisBenchmark) => redis_benchmark(Kind::Kept, places, sizes),
        (Scenario::RedisKept, _) => publish(Kind::Kept, places, sizes),
        (_, Server::RedisBenchmark) => redis_benchmark(Kind::Plain, places, sizes),
        _ => publish(Kind::Plain, places, sizes),
    }
}

/// Two nodes and their Redis, or one node that is both.
struct Nodes {
    _redis: Option<Running>,
    a: Option<Running>,
    b: Running,
    role: Role,
}

impl Nodes {
    /// Starts B on the servers' core, A and Redis on `others`.
    fn start(server: Server, places: &Places, others: usize) -> Result<Self, MeasureError> {
        let core = places.server_core;
        if server == Server::OneNode {
            let b = start_gateway(places, core, &[])?;
            return Ok(Self { _redis: None, a: None, b, role: Role::Subscribe });
        }
        let redis = start_redis(places, others)?;
        let node = |core| match server {
            Server::SocketIo => start_socket_io(places, core, redis.address),
            _ => start_gateway(places, core, &["--backplane", &format!("redis://{}", redis.address)]),
        };
        let role = if server == Server::SocketIo { Role::SubscribeSocketIo } else { Role::Subscribe };
        let (a, b) = (Some(node(others)?), node(core)?);
        Ok(Self { _redis: Some(redis), a, b, role })
    }

    /// Where to publish.
    fn a(&self) -> Target {
        self.a.as_ref().unwrap_or(&self.b).target()
    }
}

/// The median way of a publication, request to arrival, one after the other. All servers share their core: at any
/// moment only one of them has work.
fn latency(server: Server, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let nodes = Nodes::start(server, places, places.server_core)?;
    let mut rig = Rig::new()?;
    let mut fleet = rig.open(&nodes.b.target(), nodes.role, 1)?;
    let mut publisher = publisher(&nodes.a(), 1, Pace::OnDemand, &one_channel())?;
    for _ in 0..sizes.timed_publications {
        rig.publish_and_wait(&mut publisher, &mut fleet)?;
    }
    let order = order_at_the_end(&fleet, &publisher);
    let median_us = fleet.stats().latency_us.value_at_quantile(0.5) as f64;
    Ok(vec![Reading { order, ..Reading::of(Measure::RedisLatency, median_us) }])
}

/// What a publication costs node B beside its deliveries: B alone on its core, more and more subscribers per
/// channel, and of the line through the points the value at no subscriber.
fn receive(places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let nodes = Nodes::start(Server::Tidegate, places, places.client_core)?;
    let mut rig = Rig::new()?;
    let at_rest = at_rest(&mut rig, &nodes, sizes)?;
    let (mut single, mut loaded) = (Vec::new(), Vec::new());
    for subscribers in SUBSCRIBERS {
        let mut fleet = rig.open(&nodes.b.target(), Role::Subscribe, subscribers)?;
        let mut one = publisher(&nodes.a(), 1, Pace::OnDemand, &one_channel())?;
        let pids = [nodes.b.pid()];
        let (usage, published, _) =
            rig.one_at_a_time(&mut one, &mut fleet, &pids, sizes.window / SUBSCRIBERS.len() as u32)?;
        single.push((f64::from(subscribers), at_rest.deducted(&usage, published)));
        drop((fleet, one));
        loaded.push((f64::from(subscribers), loaded_cpu(&mut rig, &nodes, subscribers, &at_rest, sizes)?));
    }
    Ok(vec![
        Reading::of(Measure::RedisReceiveCpu, at_zero(&single)),
        Reading::of(Measure::RedisReceiveCpuLoaded, at_zero(&loaded)),
    ])
}

/// CPU of node B per publication with 64 in flight over 64 channels, µs.
fn loaded_cpu(
    rig: &mut Rig,
    nodes: &Nodes,
    subscribers: u32,
    at_rest: &AtRest,
    sizes: &Sizes,
) -> Result<f64, MeasureError> {
    let channels: Arc<[String]> = (0..CHANNELS).map(|index| format!("{CHANNEL}-{index}")).collect();
    let mut fleet = rig.open_over(&nodes.b.target(), Role::Subscribe, subscribers * CHANNELS, &channels)?;
    let mut publisher = publisher(&nodes.a(), PUBLISHERS_IN_FLIGHT, Pace::OnDemand, &channels)?;
    let mut flood = Flood { asked: 0, subscribers };
    flood.run(rig, &mut fleet, &mut publisher, sizes.warmup)?;
    let (window, before) = (Window::begin(&[nodes.b.pid()])?, fleet.stats().messages);
    flood.run(rig, &mut fleet, &mut publisher, sizes.window / SUBSCRIBERS.len() as u32)?;
    let usage = window.usage()?;
    Ok(at_rest.deducted(&usage, (fleet.stats().messages - before) / u64::from(subscribers)))
}

/// What node B uses for itself: leases, probes, housekeeping.
struct AtRest {
    ns_per_second: f64,
}

fn at_rest(rig: &mut Rig, nodes: &Nodes, sizes: &Sizes) -> Result<AtRest, MeasureError> {
    rig.warm_up(&nodes.b.target(), &nodes.a())?;
    let window = Window::begin(&[nodes.b.pid()])?;
    std::thread::sleep(sizes.window / 2);
    let usage = window.usage()?;
    Ok(AtRest { ns_per_second: usage.server_ns as f64 / usage.seconds })
}

impl AtRest {
    /// CPU for each of `count`, µs, without what is used at rest.
    fn deducted(&self, usage: &Usage, count: u64) -> f64 {
        (usage.server_ns as f64 - self.ns_per_second * usage.seconds) / 1e3 / count.max(1) as f64
    }
}

/// A closed loop over the whole way: the next publication follows when an earlier one has arrived. Without it
/// node A would accept what node B cannot deliver.
struct Flood {
    asked: u64,
    /// Deliveries of one publication.
    subscribers: u32,
}

impl Flood {
    fn run(
        &mut self,
        rig: &mut Rig,
        fleet: &mut Fleet,
        publisher: &mut Publisher,
        time: Duration,
    ) -> Result<(), MeasureError> {
        let began = Instant::now();
        while began.elapsed() < time {
            let arrived = fleet.stats().messages / u64::from(self.subscribers);
            while self.asked < arrived + u64::from(PUBLISHERS_IN_FLIGHT) {
                publisher.publish();
                self.asked += 1;
            }
            rig.driver.turn(&mut [fleet, publisher], TURN)?;
        }
        Ok(())
    }
}

/// Deliveries per CPU second of node B. B has its core for itself; A and Redis share the client's, so that B's
/// share of the wall clock says nothing and its CPU time all.
fn fanout(server: Server, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let nodes = Nodes::start(server, places, places.client_core)?;
    let mut rig = Rig::new()?;
    let mut fleet = rig.open(&nodes.b.target(), nodes.role, sizes.subscribers)?;
    let mut publisher = publisher(&nodes.a(), PUBLISHERS_IN_FLIGHT, Pace::OnDemand, &one_channel())?;
    let mut flood = Flood { asked: 0, subscribers: sizes.subscribers };
    flood.run(&mut rig, &mut fleet, &mut publisher, sizes.warmup)?;
    let (window, before) = (Window::begin(&[nodes.b.pid()])?, fleet.stats().messages);
    flood.run(&mut rig, &mut fleet, &mut publisher, sizes.window)?;
    let (usage, deliveries) = (window.usage()?, fleet.stats().messages - before);
    publisher.stop();
    rig.drain(&mut fleet, &mut publisher)?;
    let value = deliveries as f64 / (usage.server_ns as f64 / 1e9);
    Ok(vec![Reading {
        order: order_at_the_end(&fleet, &publisher),
        client_busy: Some(usage.client_busy),
        ..Reading::of(Measure::RedisFanoutRate, value)
    }])
}

/// What is published.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A `PUBLISH`.
    Plain,
    /// With history: a script.
    Kept,
}

/// Publications that a channel keeps, and for how many milliseconds.
const KEPT: [&str; 2] = ["100", "300000"];

/// The gateway's own script.
const SCRIPT: [&str; 3] = [
    include_str!("../../../backplane/src/redis/scripts/time.lua"),
    include_str!("../../../backplane/src/redis/scripts/age.lua"),
    include_str!("../../../backplane/src/redis/scripts/publish.lua"),
];

/// Publications accepted by one node, nobody subscribed: 64 single requests in flight, then batches of 64, one
/// in flight. Redis has the client's core, as it has for `redis-benchmark`.
fn publish(kind: Kind, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let redis = start_redis(places, places.client_core)?;
    let url = format!("redis://{}", redis.address);
    let arguments = ["--backplane", &url];
    let node = match kind {
        Kind::Plain => start_gateway(places, places.server_core, &arguments)?,
        Kind::Kept => {
            let [size, age] = [KEPT[0].to_owned(), format!("{}ms", KEPT[1])];
            let environment = vec![
                ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_SIZE", size),
                ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_AGE", age),
            ];
            launch_gateway(places, places.tidegate.clone(), places.server_core, &arguments, environment)?
        }
    };
    let mut rig = Rig::new()?;
    let mut publisher = publisher(&node.target(), PUBLISHERS_IN_FLIGHT, Pace::Closed, &one_channel())?;
    rig.drive(&mut [&mut publisher], sizes.warmup)?;
    let (window, before) = (Window::begin(&[node.pid()])?, publisher.stats().published);
    rig.drive(&mut [&mut publisher], sizes.window)?;
    let [single, batch] = kind.measures();
    let single = window.usage()?.rate(single, publisher.stats().published - before);
    drop(publisher);
    let mut posts = Posts::connect(&node.target())?;
    let payload = "x".repeat(PAYLOAD_BYTES);
    let entries: Vec<_> =
        (0..PUBLISHERS_IN_FLIGHT).map(|_| json!({"channel": CHANNEL, "data": payload})).collect();
    let request = posts.request("/v1/batch", &json!({ "publications": entries }));
    batches(&mut posts, &request, sizes.warmup)?;
    let window = Window::begin(&[node.pid()])?;
    let published = batches(&mut posts, &request, sizes.window)?;
    Ok(vec![single, window.usage()?.rate(batch, published)])
}

/// Batches of 64, one after the other, for `time`; gives the number of publications.
fn batches(posts: &mut Posts, request: &[u8], time: Duration) -> Result<u64, MeasureError> {
    let (began, mut published) = (Instant::now(), 0);
    while began.elapsed() < time {
        posts.post(request)?;
        published += u64::from(PUBLISHERS_IN_FLIGHT);
    }
    Ok(published)
}

/// The same commands from Redis' own load generator: 64 connections with one command in flight each, and one
/// connection with 64.
fn redis_benchmark(kind: Kind, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let redis = start_redis(places, places.client_core)?;
    let port = redis.address.port().to_string();
    let command = kind.command(&mut Redis::connect(redis.address)?)?;
    let [singles, pipelined] = sizes.redis_requests.map(|requests| (requests / kind.cost()).to_string());
    let rate = |[connections, pipeline, requests]: [&str; 3]| {
        let mut arguments = vec!["-p", &port, "-c", connections, "-P", pipeline, "-n", requests, "--csv"];
        arguments.extend(command.iter().map(String::as_str));
        let program = Path::new("redis-benchmark");
        let output = output_of(places, places.server_core, program, &arguments)?;
        parse_rate(&output).ok_or(MeasureError::RedisBenchmark { output })
    };
    let [single, batch] = kind.measures();
    Ok(vec![
        Reading::of(single, rate(["64", "1", &singles])?),
        Reading::of(batch, rate(["1", "64", &pipelined])?),
    ])
}

/// The second field of the last line: `"PUBLISH …","126742.72",…`.
fn parse_rate(csv: &str) -> Option<f64> {
    csv.lines().rev().find(|line| !line.is_empty())?.split(',').nth(1)?.trim_matches('"').parse().ok()
}

impl Kind {
    fn measures(self) -> [Measure; 2] {
        match self {
            Self::Plain => [Measure::RedisPublishRate, Measure::RedisBatchRate],
            Self::Kept => [Measure::RedisKeptRate, Measure::RedisKeptBatchRate],
        }
    }

    /// How many times as long as a plain one, about.
    fn cost(self) -> u32 {
        match self {
            Self::Plain => 1,
            Self::Kept => 8,
        }
    }

    /// What a gateway sends for one publication.
    fn command(self, redis: &mut Redis) -> Result<Vec<String>, MeasureError> {
        let payload = "x".repeat(PAYLOAD_BYTES);
        let words = match self {
            Self::Plain => vec!["PUBLISH".to_owned(), CHANNEL.to_owned(), payload],
            Self::Kept => {
                let digest = redis.text(&["SCRIPT", "LOAD", &SCRIPT.concat()])?;
                let [meta, stream] = ["m", "s"].map(|end| format!("b:{{{CHANNEL}}}:{end}"));
                let [size, age] = KEPT.map(str::to_owned);
                let [verb, channel] = ["PUBLISH", CHANNEL].map(str::to_owned);
                let (window, tag, epoch) = (String::new(), "12345678".to_owned(), "abcdefgh".to_owned());
                let call = vec!["EVALSHA".to_owned(), digest, "2".to_owned(), meta, stream];
                [call, vec![verb, channel, window, payload, size, age, tag, epoch]].concat()
            }
        };
        Ok(words)
    }
}

/// The value at 0 of the line through the points that is nearest by relative distance: CPU times have errors in
/// proportion to themselves.
fn at_zero(points: &[(f64, f64)]) -> f64 {
    let weighted = |term: fn(f64, f64) -> f64| points.iter().map(|&(x, y)| term(x, y) / (y * y)).sum::<f64>();
    let (w, x, y) = (weighted(|_, _| 1.0), weighted(|x, _| x), weighted(|_, y| y));
    let (xx, xy) = (weighted(|x, _| x * x), weighted(|x, y| x * y));
    (y * xx - x * xy) / (w * xx - x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_gives_what_no_subscriber_costs() {
        let on_a_line = [(1.0, 7.5), (2.0, 12.0), (4.0, 21.0), (8.0, 39.0)];
        assert!((at_zero(&on_a_line) - 3.0).abs() < 1e-9);
        let noisy = on_a_line.map(|(x, y)| (x, if x > 4.0 { y * 1.02 } else { y }));
        assert!((at_zero(&noisy) - 3.0).abs() < 0.3, "{}", at_zero(&noisy));
    }

    #[test]
    fn a_rate_is_read_from_csv() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"PUBLISH bench xxx\",\"126742.72\",\"0.275\"\n";
        assert_eq!(parse_rate(csv), Some(126_742.72));
        assert_eq!(parse_rate("Could not connect"), None);
    }
}
