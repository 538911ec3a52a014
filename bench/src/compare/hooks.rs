//! What it costs to ask an application: beside each handshake, for each message, and to those who ask nothing.

use crate::client::Role;
use crate::publish::{Pace, Request};

use super::launch::{Launch, Places, Running, ServerError, free_address, launch, write};
use super::ledger::build_go;
use super::plan::{Measure, Sizes};
use super::process::cpu_ns;
use super::rig::{MeasureError, Reading, Rig, Window, one_channel, publisher_of};
use super::servers::start_gateway;

/// Clients that ask, each again with its answer.
const ASKING: u32 = 64;
/// Publications a second whose way to others is timed.
const TIMED_PER_SECOND: f64 = 200.0;
const LISTENING: u32 = 100;

/// A gateway and the application that it asks.
struct Site {
    gateway: Running,
    _application: Running,
}

pub(super) fn run(places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let with = handshake(&start(places, "connect", "0s")?.gateway, sizes)?;
    let without = handshake(&start_gateway(places, places.server_core, &[])?, sizes)?;
    let connect = Reading { baseline: Some(without), ..Reading::of(Measure::HookConnectCpu, with - without) };
    let mut readings = vec![connect];
    readings.extend(messages(&start(places, "message", "0s")?.gateway, sizes)?);
    readings.push(others(&start(places, "message", "1s")?.gateway, sizes)?);
    Ok(readings)
}

fn start(places: &Places, question: &str, delay: &str) -> Result<Site, ServerError> {
    let program = build_go(places, "hooks", include_str!("../../peers/hooks.go"))?;
    let address = free_address()?;
    let arguments = vec![address.to_string(), delay.to_owned()];
    let core = Some(places.client_core);
    let launched = Launch { name: "application", program, arguments, environment: Vec::new(), address, core };
    let application = launch(places, launched)?;
    let config = format!(
        "[hooks.app]\nurl = \"http://{address}/\"\nquestions = [\"{question}\"]\ntimeout = \"30s\"\nconcurrency = 1024\n"
    );
    let file = write(&places.logs, "hooks.toml", &config)?;
    let gateway = start_gateway(places, places.server_core, &["--config", &file])?;
    Ok(Site { gateway, _application: application })
}

/// CPU of the gateway for each connection, µs.
fn handshake(gateway: &Running, sizes: &Sizes) -> Result<f64, MeasureError> {
    let (mut rig, target) = (Rig::new()?, gateway.target());
    drop(rig.open(&target, Role::Subscribe, ASKING)?);
    let before = cpu_ns(gateway.pid())?;
    let fleet = rig.open(&target, Role::Subscribe, sizes.subscribers)?;
    Ok((cpu_ns(gateway.pid())? - before) as f64 / 1e3 / f64::from(fleet.open()))
}

/// Messages that are answered at once, as many as the gateway takes on its core.
fn messages(gateway: &Running, sizes: &Sizes) -> Result<[Reading; 2], MeasureError> {
    let mut rig = Rig::new()?;
    let mut fleet = rig.open(&gateway.target(), Role::Ask, ASKING)?;
    rig.drive(&mut [&mut fleet], sizes.warmup)?;
    let (window, before) = (Window::begin(&[gateway.pid()])?, fleet.stats().messages);
    rig.drive(&mut [&mut fleet], sizes.window)?;
    let (usage, answered) = (window.usage()?, fleet.stats().messages - before);
    let rate = usage.rate(Measure::HookMessageRate, answered);
    Ok([Reading::of(Measure::HookMessageCpu, usage.cpu_us(answered)), rate])
}

/// From publish to delivery, at those who ask nothing, while the application takes a second; and while nobody asks.
fn others(gateway: &Running, sizes: &Sizes) -> Result<Reading, MeasureError> {
    let (mut rig, target) = (Rig::new()?, gateway.target());
    let mut p99 = |asking: u32| -> Result<f64, MeasureError> {
        // Those who ask last: they are at work at once.
        let mut listening = rig.open(&target, Role::Subscribe, LISTENING)?;
        let mut asking = rig.open(&target, Role::Ask, asking)?;
        let pace = Pace::PerSecond(TIMED_PER_SECOND);
        let mut publisher = publisher_of(Request::Publish, &target, 1, pace, &one_channel())?;
        rig.drive(&mut [&mut asking, &mut listening, &mut publisher], sizes.window)?;
        Ok(listening.stats().latency_us.value_at_quantile(0.99) as f64)
    };
    let baseline = p99(1)?;
    Ok(Reading { baseline: Some(baseline), ..Reading::of(Measure::HookOthersP99, p99(4 * ASKING)?) })
}
