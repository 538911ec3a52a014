//! More and more gateways on one Redis: what they hold together, what it costs, and that nothing is lost.
//!
//! All servers share the servers' core and all clients the other, so the times of the wall clock mean nothing;
//! connections, memory, CPU time and loss do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::http::get;
use crate::order::OrderCounts;
use crate::publish::{Pace, Publisher};
use crate::target::Target;
use crate::worker::Told;

use super::launch::{Launch, Places, Running, ServerError, free_address, launch, on_core, write};
use super::plan::{Measure, Sizes};
use super::rig::{
    CHANNEL, MeasureError, RUN, Reading, Rig, SOURCES, TURN, Window, one_channel, publisher, stuck,
    wait_quiet,
};
use super::router::pss_of;
use super::servers::{Server, start_redis, start_router};

/// A router needs two descriptors per client and has 20,000; the kernel deals connections to routers at random,
/// so the mean stays 9 standard deviations under its limit of 9,900.
const PER_ROUTER: u32 = 9_000;

/// Development mode without history, which costs a script in Redis for each publication, and not bound to loopback:
/// routers reach a gateway by several addresses. The key is that of development mode, `dev-key`. Up to 31 processes
/// share two cores, and a client whose answer to a ping waits for its turn is not gone.
const GATEWAY_CONFIG: &str = "\
[limits]
handshakes_per_second = 0
[heartbeat]
timeout = \"60s\"
[[auth.api_keys]]
name = \"bench\"
key_sha256 = \"7e9f8fd111802be56c379d597842e29b2cebd35ff2133d431a49fa556a18704e\"
[namespaces.default]
anonymous_subscribe = true
history_size = 0
history_age = \"0s\"
";

/// Takes the readings of one deployment.
pub(super) fn run(server: Server, places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let gateways = match server {
        Server::Gateways1 => 1,
        Server::Gateways2 => 2,
        Server::Gateways4 => 4,
        _ => 8,
    };
    let proxied = server == Server::Proxied8;
    let mut rig = Rig::new()?;
    let deployment = Deployment::start(places, gateways, proxied, sizes.per_gateway)?;
    for gateway in &deployment.gateways {
        rig.warm_up(&gateway.target(), &gateway.target())?;
        wait_quiet(gateway.pid())?;
    }
    let holders = deployment.holders();
    let memory = pss_of(&holders)?;
    let mut clients = Clients::start(places, &deployment, proxied, sizes.per_gateway)?;
    clients.wait_open()?;
    let held = clients.ask(0)?;
    let per_connection = (pss_of(&holders)? as f64 - memory as f64) / held.open.max(1) as f64;
    let fullest = deployment.fullest()?;
    let nodes: Vec<u32> = deployment.gateways.iter().map(Running::pid).collect();
    let (node_window, all_window) = (Window::begin(&nodes)?, Window::begin(&deployment.everybody())?);
    let mut publisher = publisher(&deployment.gateways[0].target(), 1, Pace::OnDemand, &one_channel())?;
    for broadcast in 1..=u64::from(sizes.broadcasts) {
        clients.broadcast(&mut rig, &mut publisher, broadcast * held.open)?;
    }
    let (node_usage, all_usage) = (node_window.usage()?, all_window.usage()?);
    let told = clients.ask(sizes.broadcasts)?;
    let mean = held.open as f64 / f64::from(gateways);
    let order = OrderCounts { lost: told.lost, duplicated: told.duplicated, misordered: told.misordered };
    Ok(vec![
        Reading::of(Measure::ScalingHeld, told.open as f64),
        Reading::of(Measure::ScalingMemory, per_connection),
        Reading { order, ..Reading::of(Measure::ScalingNodeCpu, node_usage.cpu_us(told.messages)) },
        Reading::of(Measure::ScalingAllCpu, all_usage.cpu_us(told.messages)),
        Reading::of(Measure::ScalingBalance, fullest / mean.max(1.0)),
        Reading::of(Measure::ScalingLost, told.lost as f64),
    ])
}

/// The servers.
struct Deployment {
    redis: Running,
    gateways: Vec<Running>,
    /// Internal ports of the gateways.
    internals: Vec<SocketAddr>,
    routers: Vec<Running>,
    /// Where clients meet the routers.
    front: SocketAddr,
}

impl Deployment {
    fn start(places: &Places, gateways: u32, proxied: bool, per_gateway: u32) -> Result<Self, MeasureError> {
        let core = places.server_core;
        let redis = start_redis(places, core)?;
        let url = format!("redis://{}", redis.address);
        let mut deployment = Self {
            redis,
            gateways: Vec::new(),
            internals: Vec::new(),
            routers: Vec::new(),
            front: free_address()?,
        };
        for index in 0..gateways {
            let internal = free_address()?;
            deployment.gateways.push(start_gateway(places, index, internal, &url)?);
            deployment.internals.push(internal);
        }
        let routers = if proxied { (gateways * per_gateway).div_ceil(PER_ROUTER) } else { 1 };
        for index in 0..routers {
            let (internal, front) = (free_address()?, deployment.front);
            let members = if proxied { deployment.listed_for(index) } else { url.clone() };
            let more = ["--members", &members, "--reuse-port"];
            deployment.routers.push(start_router(places, core, [front, internal], &more)?);
            wait_metric(internal, "tidegate_nodes{state=\"live\"}", f64::from(gateways))?;
        }
        Ok(deployment)
    }

    /// The gateways by loopback addresses of this router's own. All routers connect from one address here, which has
    /// 28,232 ports per destination, and Linux tries half of them first: past 14,116 connections each further one
    /// begins with a search through all of that half: 4 ms of CPU instead of 12 µs.
    fn listed_for(&self, router: u32) -> String {
        let ip = Ipv4Addr::from(Ipv4Addr::LOCALHOST.to_bits() + router);
        let listed = self.gateways.iter().map(|gateway| format!("{ip}:{}", gateway.address.port()));
        format!("static:{}", listed.collect::<Vec<_>>().join(","))
    }

    /// Processes that hold something for each connection.
    fn holders(&self) -> Vec<u32> {
        self.gateways.iter().chain(&self.routers).map(Running::pid).collect()
    }

    fn everybody(&self) -> Vec<u32> {
        let mut pids = self.holders();
        pids.push(self.redis.pid());
        pids
    }

    /// Connections of the gateway that has the most.
    fn fullest(&self) -> Result<f64, MeasureError> {
        let counts: Result<Vec<f64>, _> =
            self.internals.iter().map(|&internal| metric(internal, "tidegate_connections")).collect();
        Ok(counts?.into_iter().fold(0.0, f64::max))
    }
}

/// The client processes.
struct Clients {
    workers: Vec<Worker>,
    /// Connections asked for.
    asked: u32,
}

struct Worker {
    index: u32,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Clients {
    /// As many processes as gateways: they have the same limit of descriptors.
    fn start(
        places: &Places,
        deployment: &Deployment,
        proxied: bool,
        per_gateway: u32,
    ) -> Result<Self, MeasureError> {
        let count = deployment.gateways.len() as u32;
        let mut clients = Self { workers: Vec::new(), asked: count * per_gateway };
        for index in 0..count {
            clients.workers.push(Worker::start(places, deployment.front, index, per_gateway, proxied)?);
        }
        Ok(clients)
    }

    /// What all workers tell together, given that so many publications were acknowledged.
    fn ask(&mut self, acknowledged: u32) -> Result<Told, MeasureError> {
        let mut sum = Told {
            settled: true,
            open: 0,
            messages: 0,
            lost: 0,
            duplicated: 0,
            misordered: 0,
            gone: BTreeMap::new(),
        };
        for worker in &mut self.workers {
            let told = worker.ask(acknowledged)?;
            sum.settled &= told.settled;
            sum.open += told.open;
            sum.messages += told.messages;
            sum.lost += told.lost;
            sum.duplicated += told.duplicated;
            sum.misordered += told.misordered;
            for (reason, count) in told.gone {
                *sum.gone.entry(reason).or_default() += count;
            }
        }
        Ok(sum)
    }

    /// The same; a connection that failed or ended is an error that says why.
    fn ask_all_open(&mut self) -> Result<Told, MeasureError> {
        let told = self.ask(0)?;
        match told.gone.first_key_value() {
            Some((reason, count)) => {
                let problem = format!("{count} of {} connections: {reason}", self.asked).into();
                Err(MeasureError::Worker { index: 0, problem })
            }
            None => Ok(told),
        }
    }

    /// Waits until every connection was tried; every one must be open.
    fn wait_open(&mut self) -> Result<(), MeasureError> {
        let began = Instant::now();
        loop {
            let told = self.ask_all_open()?;
            if told.settled {
                return Ok(());
            }
            stuck(began, "connecting", told.open, self.asked.into())?;
            std::thread::sleep(TURN);
        }
    }

    /// One publication, awaited until all workers together have `expected` messages.
    fn broadcast(
        &mut self,
        rig: &mut Rig,
        publisher: &mut Publisher,
        expected: u64,
    ) -> Result<(), MeasureError> {
        publisher.publish();
        let began = Instant::now();
        loop {
            rig.driver.turn(&mut [publisher], TURN)?;
            let messages = self.ask_all_open()?.messages;
            if messages >= expected {
                return Ok(());
            }
            stuck(began, "a broadcast", messages, expected)?;
        }
    }
}

impl Worker {
    fn start(
        places: &Places,
        front: SocketAddr,
        index: u32,
        connections: u32,
        proxied: bool,
    ) -> Result<Self, MeasureError> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(&program);
        command.args(["worker", "--channel", CHANNEL]).args(["--router", &front.to_string()]);
        for (name, value) in [
            ("--index", index),
            ("--connections", connections),
            ("--run", RUN.into()),
            ("--sources", SOURCES.into()),
        ] {
            command.args([name, &value.to_string()]);
        }
        if !proxied {
            command.arg("--assign");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = on_core(places, Some(places.client_core), || command.spawn())?;
        let mut child = child.map_err(|source| ServerError::Spawn { program, source })?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (questions, answers) = pipes.ok_or_else(|| worker_problem(index, "it has no pipes"))?;
        Ok(Self { index, child, questions, answers: BufReader::new(answers) })
    }

    fn ask(&mut self, acknowledged: u32) -> Result<Told, MeasureError> {
        let gone = |_| worker_problem(self.index, "it ended; its message is above");
        writeln!(self.questions, "{acknowledged}").map_err(gone)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(gone)?;
        serde_json::from_str(&line).map_err(|_| worker_problem(self.index, "it ended; its message is above"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if the process is gone already, which is what is wanted.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn worker_problem(index: u32, problem: &'static str) -> MeasureError {
    MeasureError::Worker { index, problem: problem.into() }
}

/// A gateway on all loopback addresses. What it advertises is the first of them.
fn start_gateway(
    places: &Places,
    index: u32,
    internal: SocketAddr,
    redis: &str,
) -> Result<Running, ServerError> {
    let address = free_address()?;
    let config = write(&places.logs.join("scaling"), "gateway.toml", GATEWAY_CONFIG)?;
    let (listen, advertise) = (format!("0.0.0.0:{}", address.port()), address.to_string());
    let (internal, name) = (internal.to_string(), format!("gateway-{index}"));
    let mut arguments = vec!["gateway", "--config", &config, "--listen", &listen, "--internal", &internal];
    arguments.extend(["--advertise", &advertise, "--backplane", redis, "--node", &name]);
    arguments.extend(places.tidegate_args.iter().map(String::as_str));
    let arguments = arguments.into_iter().map(str::to_owned).collect();
    let (program, core) = (places.tidegate.clone(), places.server_core);
    launch(
        places,
        Launch { name: "gateway", program, arguments, environment: Vec::new(), address, core: Some(core) },
    )
}

/// Waits until a metric of a process has a value. The process may not listen yet: on a shared port, the connection that
/// looked for it may have met another router.
pub(super) fn wait_metric(
    internal: SocketAddr,
    name: &'static str,
    expected: f64,
) -> Result<(), MeasureError> {
    let began = Instant::now();
    loop {
        let value = metric(internal, name);
        if value.as_ref().is_ok_and(|value| *value >= expected) {
            return Ok(());
        }
        let seen = value.map_or(0, |value| value as u64);
        stuck(began, "learning of the gateways", seen, expected as u64)?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(super) fn metric(internal: SocketAddr, name: &'static str) -> Result<f64, MeasureError> {
    let path = "/metrics";
    let page = get(&Target::of(internal), path)?;
    parse_metric(&page, name).ok_or(MeasureError::Metric { address: internal, path, metric: name })
}

/// The value of a series, named with its labels if it has any.
fn parse_metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_from_a_page() {
        let page = "# TYPE x gauge\nx_limit 9\nx 7\ny{state=\"live\"} 8\n";
        assert_eq!(parse_metric(page, "x"), Some(7.0));
        assert_eq!(parse_metric(page, "y{state=\"live\"}"), Some(8.0));
        assert_eq!(parse_metric(page, "z"), None);
    }
}
