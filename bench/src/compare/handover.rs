//! What a handshake costs router and gateway together, and a delivery the router: a gateway that clients reach directly, by
//! hand-over, or through a router that passes bytes on.

use std::fs;

use crate::client::Role;
use crate::publish::Pace;

use super::launch::{Places, Running, ServerError, free_address};
use super::plan::{Measure, Sizes};
use super::rig::{MeasureError, Reading, Rig, Window, cpu_of, one_channel, publisher, wait_quiet};
use super::scaling::wait_metric;
use super::servers::{Server, start_gateway, start_redis, start_router};

/// Takes the readings of one way to the gateway.
pub(super) fn run(
    server: Server,
    places: &Places,
    sizes: &Sizes,
    wanted: &[Measure],
) -> Result<Vec<Reading>, MeasureError> {
    let redis = start_redis(places, places.client_core)?;
    let url = format!("redis://{}", redis.address);
    let gateway = start(server, places, &url)?;
    let router = match server {
        Server::Direct => None,
        _ => Some(front(places, &url)?),
    };
    let front = router.as_ref().unwrap_or(&gateway);
    let mut rig = Rig::new()?;
    rig.warm_up(&front.target(), &gateway.target())?;
    wait_quiet(gateway.pid())?;
    let pids: Vec<u32> = router.iter().chain([&gateway]).map(Running::pid).collect();
    let before = cpu_of(&pids)?;
    let mut fleet = rig.open(&front.target(), Role::Subscribe, sizes.subscribers)?;
    let handshake_us = (cpu_of(&pids)? - before) as f64 / 1e3 / f64::from(fleet.open());
    let mut readings = vec![Reading::of(Measure::HandoverCpu, handshake_us)];
    let router = router.filter(|_| wanted.contains(&Measure::HandoverMessageCpu));
    if let Some(router) = &router {
        let pids = [router.pid()];
        let at_rest = Window::begin(&pids)?;
        rig.drive(&mut [&mut fleet], sizes.window)?;
        let at_rest = at_rest.usage()?;
        let mut publisher = publisher(&gateway.target(), 1, Pace::OnDemand, &one_channel())?;
        let (usage, _, deliveries) = rig.one_at_a_time(&mut publisher, &mut fleet, &pids, sizes.window)?;
        let own_ns = usage.server_ns as f64 - at_rest.server_ns as f64 * usage.seconds / at_rest.seconds;
        let each_us = own_ns.max(0.0) / 1e3 / deliveries.max(1) as f64;
        let order = fleet.stats().order;
        readings.push(Reading { order, ..Reading::of(Measure::HandoverMessageCpu, each_us) });
    }
    Ok(readings)
}

/// A gateway that takes sockets over, unless a router is to pass bytes on.
fn start(server: Server, places: &Places, redis: &str) -> Result<Running, ServerError> {
    let socket = places.logs.join("handover.sock");
    if socket.exists() {
        fs::remove_file(&socket).map_err(|source| ServerError::Write { path: socket.clone(), source })?;
    }
    let socket = socket.display().to_string();
    let mut more = vec!["--backplane", redis, "--node", "gateway"];
    if server != Server::Proxied {
        more.extend(["--handover-socket", &socket]);
    }
    start_gateway(places, places.server_core, &more)
}

/// A router that knows its gateway.
fn front(places: &Places, redis: &str) -> Result<Running, MeasureError> {
    let addresses = [free_address()?, free_address()?];
    let router = start_router(places, places.server_core, addresses, &["--members", redis])?;
    wait_metric(addresses[1], "tidegate_nodes{state=\"live\"}", 1.0)?;
    Ok(router)
}
