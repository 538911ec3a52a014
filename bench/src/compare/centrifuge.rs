//! Centrifugo's protocol beside the raw one of the same gateway: connections, deliveries, recovery, its server API's publish.

use std::time::Instant;

use serde_json::json;

use crate::centrifuge::{Dialect, SECRET, token};
use crate::client::Role;
use crate::publish::{Pace, Request};

use super::launch::{Places, Running, write};
use super::plan::{Measure, Scenario, Sizes};
use super::process::{cpu_ns, pss_bytes};
use super::redis::wire::{Posts, Redis};
use super::rig::{
    MeasureError, Reading, Rig, WARMUP_CONNECTIONS, WARMUP_PUBLICATIONS, Window, one_channel, publisher,
    publisher_of, wait_quiet,
};
use super::servers::{Server, launch_gateway, start_gateway, start_redis};

const JSON: Dialect = Dialect { is_protobuf: false, recovers: false };
const PROTOBUF: Dialect = Dialect { is_protobuf: true, recovers: false };
const RECOVERING: Dialect = Dialect { is_protobuf: false, recovers: true };

/// As in the table of the gateway.
const PUBLISHERS: u16 = 16;

/// What each client missed.
const MISSED: u32 = 100;
const MISSED_BYTES: usize = 130;
/// Channels over which the clients that recover are spread.
const CHANNELS: u32 = 50;

/// Starts a server and takes the readings of a scenario.
pub(super) fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
) -> Result<Vec<Reading>, MeasureError> {
    if scenario == Scenario::CentrifugeRecovery {
        return recovery(places, sizes);
    }
    let keys = format!("[[auth.jwt]]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n");
    let file = write(&places.logs, "centrifuge.toml", &keys)?;
    let running = start_gateway(places, places.server_core, &["--config", &file])?;
    match scenario {
        Scenario::CentrifugeIdle => idle(server, &running, sizes),
        Scenario::CentrifugeDelivery => delivery(server, &running, sizes),
        _ => publish(server, &running, sizes),
    }
}

fn role(server: Server, dialect: Dialect) -> Role {
    if server == Server::Raw { Role::Subscribe } else { Role::SubscribeCentrifuge(dialect) }
}

/// Memory of anonymous connections that do nothing, then what it costs to connect with a token and to subscribe.
fn idle(server: Server, running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let (mut rig, target, pid) = (Rig::new()?, running.target(), running.pid());
    let role = role(server, JSON);
    let mut warm = rig.open(&target, role, WARMUP_CONNECTIONS)?;
    let mut warming = publisher(&target, 1, Pace::OnDemand, &one_channel())?;
    for _ in 0..WARMUP_PUBLICATIONS {
        rig.publish_and_wait(&mut warming, &mut warm)?;
    }
    drop((warm, warming));
    wait_quiet(pid)?;
    let memory = pss_bytes(pid)?;
    let mut fleet = rig.open(&target, role, sizes.idle_connections)?;
    rig.drive(&mut [&mut fleet], sizes.settle)?;
    let grown = (pss_bytes(pid)? as f64 - memory as f64) / f64::from(fleet.open());
    drop(fleet);
    wait_quiet(pid)?;
    let cpu = cpu_ns(pid)?;
    let token = (server != Server::Raw).then(|| token("bench").into());
    let fleet =
        rig.open_with(&target, role, sizes.idle_connections, &one_channel(), token, &mut || Ok(()))?;
    let connect_us = (cpu_ns(pid)? - cpu) as f64 / 1e3 / f64::from(fleet.open());
    Ok(vec![
        Reading::of(Measure::CentrifugeMemory, grown),
        Reading::of(Measure::CentrifugeConnectCpu, connect_us),
    ])
}

/// One publication at a time, each awaited at every subscriber, in either encoding.
fn delivery(server: Server, running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let (target, pids) = (running.target(), [running.pid()]);
    let one = |measure, dialect| -> Result<Reading, MeasureError> {
        let mut rig = Rig::new()?;
        let mut fleet = rig.open(&target, role(server, dialect), sizes.subscribers)?;
        let mut publisher = publisher(&target, 1, Pace::OnDemand, &one_channel())?;
        let (usage, _, deliveries) = rig.one_at_a_time(&mut publisher, &mut fleet, &pids, sizes.window)?;
        Ok(Reading {
            client_busy: Some(usage.client_busy),
            order: fleet.stats().order,
            ..Reading::of(measure, usage.cpu_us(deliveries))
        })
    };
    Ok(vec![
        one(Measure::CentrifugeDeliveryCpu, JSON)?,
        one(Measure::CentrifugeDeliveryCpuProtobuf, PROTOBUF)?,
    ])
}

/// As many as the server takes, with no subscriber.
fn publish(server: Server, running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let (mut rig, target) = (Rig::new()?, running.target());
    let request = if server == Server::Raw { Request::Publish } else { Request::CentrifugePublish };
    let mut publisher = publisher_of(request, &target, PUBLISHERS, Pace::Closed, &one_channel())?;
    rig.drive(&mut [&mut publisher], sizes.warmup)?;
    let (window, before) = (Window::begin(&[running.pid()])?, publisher.stats().published);
    rig.drive(&mut [&mut publisher], sizes.window)?;
    Ok(vec![window.usage()?.rate(Measure::CentrifugePublishRate, publisher.stats().published - before)])
}

/// Clients come to a node that did not have them, as after the end of theirs, and recover from Redis all that they missed.
fn recovery(places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let redis = start_redis(places, places.client_core)?;
    let url = format!("redis://{}", redis.address);
    let environment = [
        ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_SIZE", MISSED.to_string()),
        ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_AGE", "1h".to_owned()),
    ];
    let (program, core) = (places.tidegate.clone(), places.server_core);
    let node = launch_gateway(places, program, core, &["--backplane", &url], environment.into())?;
    let channels: Vec<String> = (0..CHANNELS).map(|nth| format!("missed-{nth}")).collect();
    let mut posts = Posts::connect(&node.target())?;
    let body = json!({ "channels": channels, "data": "m".repeat(MISSED_BYTES) });
    let request = posts.request("/v1/publish", &body);
    for _ in 0..MISSED {
        posts.post(&request)?;
    }
    let (mut rig, target, pid) = (Rig::new()?, node.target(), node.pid());
    drop(rig.open(&target, Role::SubscribeCentrifuge(JSON), WARMUP_CONNECTIONS)?);
    wait_quiet(pid)?;
    let mut redis = Redis::connect(redis.address)?;
    let mut reads = || {
        let ranges = redis.info("commandstats", "cmdstat_xrange:calls=")?;
        Ok::<_, MeasureError>(ranges + redis.info("commandstats", "cmdstat_xrevrange:calls=")?)
    };
    let (memory, read, began) = (pss_bytes(pid)?, reads()?, Instant::now());
    let mut most = memory;
    let mut look = |pid| {
        most = most.max(pss_bytes(pid)?);
        Ok(())
    };
    let role = Role::SubscribeCentrifuge(RECOVERING);
    let mut fleet =
        rig.open_with(&target, role, sizes.subscribers, &channels.into(), None, &mut || look(pid))?;
    // Subscribed is who was answered; all that was missed has to have come, too.
    let missed = u64::from(fleet.open()) * u64::from(MISSED) * MISSED_BYTES as u64;
    while fleet.stats().bytes < missed {
        rig.turn(&mut fleet, began, "recovering", missed)?;
        look(pid)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![
        Reading::of(Measure::CentrifugeRecoveryTime, seconds),
        Reading::of(Measure::CentrifugeRecoveryMemory, (most - memory) as f64 / f64::from(1 << 20)),
        Reading::of(Measure::CentrifugeRecoveryReads, (reads()? - read) as f64 / f64::from(CHANNELS)),
    ])
}
