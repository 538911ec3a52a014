//! The Pusher protocol beside another server of it: connections, deliveries, signed requests.

use crate::client::Role;
use crate::publish::{Pace, Request};

use super::launch::{Places, Running};
use super::plan::{Measure, Scenario, Sizes};
use super::process::{cpu_ns, pss_bytes};
use super::rig::{
    MeasureError, PUBLISHERS_IN_FLIGHT, Reading, Rig, WARMUP_CONNECTIONS, WARMUP_PUBLICATIONS, Window,
    one_channel, publisher_of, wait_quiet,
};
use super::servers::{Server, start_pusher_gateway, start_sockudo};

/// Starts a server and takes the readings of a scenario.
pub(super) fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
) -> Result<Vec<Reading>, MeasureError> {
    let core = places.server_core;
    let running = match server {
        Server::Sockudo => start_sockudo(places, core)?,
        _ => start_pusher_gateway(places, core)?,
    };
    match scenario {
        Scenario::PusherIdle => idle(&running, sizes),
        _ => events(&running, sizes),
    }
}

/// Connect and subscribe, then memory of connections that do nothing.
fn idle(running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let (mut rig, target, pid) = (Rig::new()?, running.target(), running.pid());
    let mut warm = rig.open(&target, Role::SubscribePusher, WARMUP_CONNECTIONS)?;
    let mut publisher = publisher_of(Request::SignedEvent, &target, 1, Pace::OnDemand, &one_channel())?;
    for _ in 0..WARMUP_PUBLICATIONS {
        rig.publish_and_wait(&mut publisher, &mut warm)?;
    }
    drop((warm, publisher));
    wait_quiet(pid)?;
    let (memory, cpu) = (pss_bytes(pid)?, cpu_ns(pid)?);
    let mut fleet = rig.open(&target, Role::SubscribePusher, sizes.idle_connections)?;
    let connections = f64::from(fleet.open());
    let connect_us = (cpu_ns(pid)? - cpu) as f64 / 1e3 / connections;
    rig.drive(&mut [&mut fleet], sizes.settle)?;
    let settled = (pss_bytes(pid)? as f64 - memory as f64) / connections;
    Ok(vec![Reading::of(Measure::PusherConnectCpu, connect_us), Reading::of(Measure::PusherMemory, settled)])
}

/// One signed event at a time to many subscribers; then as many events as the server takes, with no subscriber.
fn events(running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let (mut rig, target, pids) = (Rig::new()?, running.target(), [running.pid()]);
    let mut fleet = rig.open(&target, Role::SubscribePusher, sizes.subscribers)?;
    let mut publisher = publisher_of(Request::SignedEvent, &target, 1, Pace::OnDemand, &one_channel())?;
    let (usage, _, deliveries) = rig.one_at_a_time(&mut publisher, &mut fleet, &pids, sizes.window)?;
    let delivery = Reading {
        client_busy: Some(usage.client_busy),
        order: fleet.stats().order,
        ..Reading::of(Measure::PusherDeliveryCpu, usage.cpu_us(deliveries))
    };
    drop((fleet, publisher));
    wait_quiet(running.pid())?;
    let mut publisher =
        publisher_of(Request::SignedEvent, &target, PUBLISHERS_IN_FLIGHT, Pace::Closed, &one_channel())?;
    rig.drive(&mut [&mut publisher], sizes.warmup)?;
    let (window, before) = (Window::begin(&pids)?, publisher.stats().published);
    rig.drive(&mut [&mut publisher], sizes.window)?;
    let rate = window.usage()?.rate(Measure::PusherEventsRate, publisher.stats().published - before);
    Ok(vec![delivery, rate])
}
