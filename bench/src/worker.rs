//! Connections held by a process of their own, because a process may have only so many descriptors.
//!
//! The parent writes lines to standard input and reads one [`Told`] as JSON for each: a number asks for the state
//! of things, given that so many publications were acknowledged. Standard input's end ends the process.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::{Fleet, FleetConfig, Role};
use crate::driver::{Driver, Party};
use crate::http::post;
use crate::stats::FleetStats;
use crate::sys::raise_descriptor_limit;
use crate::target::{Target, TargetError};

/// Keys of one `POST /v1/assign`: what a router takes by default.
const KEYS_PER_REQUEST: u32 = 1_000;
/// Several workers ramp at once: together they stay under a listener's backlog of 4,096.
const HANDSHAKES_IN_FLIGHT: u32 = 64;
const TURN: Duration = Duration::from_millis(20);

/// What a worker holds.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerOptions {
    /// Distinguishes the keys of workers.
    #[arg(long)]
    pub index: u32,
    #[arg(long)]
    pub connections: u32,
    #[arg(long)]
    pub channel: String,
    /// Run id expected in stamps.
    #[arg(long)]
    pub run: u16,
    /// See [`FleetConfig::sources`].
    #[arg(long)]
    pub sources: u8,
    /// A router.
    #[arg(long)]
    pub router: SocketAddr,
    /// Ask the router for the node of each connection, and connect there.
    #[arg(long)]
    pub assign: bool,
}

/// What a worker tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Every connection was tried.
    pub settled: bool,
    pub open: u64,
    pub messages: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub misordered: u64,
    /// Connections that failed or ended, by reason.
    pub gone: BTreeMap<String, u64>,
}

/// Why a worker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the loop failed: {0}")]
    Io(#[from] io::Error),
    #[error("the router's answer could not be read: {0}")]
    Answer(#[from] serde_json::Error),
    #[error(transparent)]
    Target(#[from] TargetError),
}

/// The answer of `POST /v1/assign`.
#[derive(Debug, Deserialize)]
struct Assignments {
    assignments: Vec<Assignment>,
}

#[derive(Debug, Deserialize)]
struct Assignment {
    url: String,
}

/// Connects and answers until standard input ends.
pub fn run(options: &WorkerOptions) -> Result<(), WorkerError> {
    raise_descriptor_limit();
    let mut fleets: Vec<Fleet> = nodes(options)?
        .into_iter()
        .zip(0..)
        .map(|((url, connections), id)| {
            Ok(Fleet::new(id, config(options, Target::parse(&url)?, connections)))
        })
        .collect::<Result<_, TargetError>>()?;
    let questions = questions()?;
    let mut driver = Driver::new()?;
    loop {
        let mut parties: Vec<&mut dyn Party> =
            fleets.iter_mut().map(|fleet| fleet as &mut dyn Party).collect();
        driver.turn(&mut parties, TURN)?;
        match questions.try_recv() {
            Ok(acknowledged) => answer(&told(&fleets, acknowledged))?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

/// Where to connect, and how often.
fn nodes(options: &WorkerOptions) -> Result<BTreeMap<String, u32>, WorkerError> {
    let router = Target::of(options.router);
    if !options.assign {
        return Ok(BTreeMap::from([(format!("ws://{}", router.authority), options.connections)]));
    }
    let keys: Vec<String> =
        (0..options.connections).map(|key| format!("client-{}-{key}", options.index)).collect();
    let mut nodes = BTreeMap::new();
    for keys in keys.chunks(KEYS_PER_REQUEST as usize) {
        let answer = post(&router, "/v1/assign", &serde_json::json!({ "keys": keys }).to_string())?;
        for assignment in serde_json::from_str::<Assignments>(&answer)?.assignments {
            *nodes.entry(assignment.url).or_default() += 1;
        }
    }
    Ok(nodes)
}

fn config(options: &WorkerOptions, target: Target, connections: u32) -> FleetConfig {
    FleetConfig {
        target,
        role: Role::Subscribe,
        connections,
        channels: [options.channel.clone()].into(),
        channel_of: Arc::new(|_| 0),
        handshakes_in_flight: HANDSHAKES_IN_FLIGHT,
        connects_per_second: None,
        sources: options.sources,
        run: options.run,
        reset_on_close: true,
        token: None,
        comes_back: false,
    }
}

/// Reads standard input from a thread: the loop must not wait for it.
fn questions() -> io::Result<Receiver<u32>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("questions".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            // A parent that asks nonsense is gone or mad: end, as for one that is gone.
            let Some(acknowledged) = line.trim().parse().ok() else { return };
            if sender.send(acknowledged).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

fn told(fleets: &[Fleet], acknowledged: u32) -> Told {
    let mut sum = FleetStats::default();
    let (mut open, mut missing) = (0, 0);
    for fleet in fleets {
        sum.merge(fleet.stats());
        open += u64::from(fleet.open());
        missing += fleet.missing_tail(1, |_, _| acknowledged);
    }
    let failures = sum.failures.iter().map(|(reason, &count)| (reason.to_string(), count));
    let endings = sum.endings.iter().map(|(reason, &count)| (reason.to_string(), count));
    Told {
        settled: fleets.iter().all(Fleet::settled),
        open,
        messages: sum.messages,
        lost: sum.order.lost + missing,
        duplicated: sum.order.duplicated,
        misordered: sum.order.misordered,
        gone: failures.chain(endings).collect(),
    }
}

fn answer(told: &Told) -> Result<(), WorkerError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, told)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_of_the_router_is_read() {
        let json = r#"{"assignments":[{"key":"a","node":"n","url":"ws://127.0.0.1:8000","expires_at":1}]}"#;
        let answer: Assignments = serde_json::from_str(json).unwrap();
        assert_eq!(answer.assignments[0].url, "ws://127.0.0.1:8000");
    }
}
