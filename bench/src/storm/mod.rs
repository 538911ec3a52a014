//! `tidegate storm`: opens connections against any deployment, publishes, and reports what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::publish::{Pace, PublishConfig, PublishConfigError, Publisher, Request};
use crate::report::{Connections, Deliveries, Percentiles, Report};
use crate::stats::{ConnectFailure, FleetStats};
use crate::sys::{now_ns, raise_descriptor_limit};
use crate::target::{Target, TargetError};

mod load;
mod metrics;
mod threads;

use metrics::Metrics;
use threads::{ClientThread, start_threads};

/// Descriptors besides connections and publishers: standard streams, one epoll per thread, metrics pages.
const DESCRIPTORS_SPARE: u64 = 64;

/// What to do to a deployment.
#[derive(Debug, Clone)]
pub struct StormOptions {
    /// `ws://HOST:PORT[/PREFIX]`.
    pub url: String,
    pub connections: u32,
    /// Connection `i` subscribes to channel `i mod channels`.
    pub channels: u32,
    /// Channels are named `PREFIX-0`, `PREFIX-1`, …
    pub channel_prefix: String,
    pub publish: PublishLoad,
    /// Where to publish when that is another origin than `url`.
    pub publish_url: Option<String>,
    pub payload_bytes: usize,
    /// How long to publish (or to stay idle) once the connections are open.
    pub duration: Duration,
    pub api_key: Option<String>,
    /// Metrics pages of the nodes, `http://HOST:PORT/metrics`.
    pub metrics_urls: Vec<String>,
    /// Loopback source addresses, each with its own range of ports; only used for loopback targets.
    pub sources: u8,
    pub handshakes_in_flight: u32,
    pub connects_per_second: Option<u32>,
    /// Subscribe over `/sse` instead of `/ws`.
    pub sse: bool,
    /// Token that each connection shows.
    pub token: Option<String>,
    /// Set to end before `duration` is over; the report is made all the same.
    pub stop: Arc<AtomicBool>,
    /// A line on standard error every ten seconds where that is no terminal.
    pub lines: bool,
    /// Connect here and not to the address of `url`, whose scheme may then be an encrypted one.
    pub via: Option<SocketAddr>,
    /// Client threads; `None` takes one per core and at least 5,000 connections each.
    pub threads: Option<u32>,
}

/// How to publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PublishLoad {
    /// Only hold connections.
    Nothing,
    /// Each publisher keeps this many requests under way (one per keep-alive connection).
    Closed { publishers: u16, in_flight: u16 },
    /// This many per second in total, over this many connections.
    PerSecond { rate: f64, publishers: u16 },
}

/// Why a storm could not run.
#[derive(Debug, thiserror::Error)]
pub enum StormError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Publish(#[from] PublishConfigError),
    #[error(
        "{needed} descriptors are needed and this process may have {limit}: raise ulimit -n, or run storm on several machines with fewer connections each"
    )]
    Descriptors { needed: u64, limit: u64 },
    #[error(
        "no connection to {url} opened: {reason} ({count} of {asked}); {}",
        advice(*status)
    )]
    NothingOpened { url: String, reason: String, status: Option<u16>, count: u64, asked: u32 },
    #[error("the publisher could not connect to {url} within {seconds} s: check the publish address")]
    PublisherDown { url: String, seconds: u64 },
    #[error("the rate is {rate} a second: use a number above 0")]
    Rate { rate: f64 },
    #[error("the load generator's own loop failed: {0}")]
    Loop(#[from] std::io::Error),
    #[error("a client thread panicked; this is a bug of storm")]
    Panicked,
}

/// What to do about an answer that is no upgrade.
fn advice(status: Option<u16>) -> &'static str {
    match status {
        Some(401) => "give a token with --token, or `anonymous_subscribe` to the namespace",
        Some(403) => "the token has to allow these channels",
        Some(429 | 503) => "the server takes no more at the moment: its metrics say which limit it is",
        _ => "check the address and that the server runs",
    }
}

impl Default for StormOptions {
    fn default() -> Self {
        Self {
            url: "ws://127.0.0.1:8000".to_owned(),
            connections: 1_000,
            channels: 1,
            channel_prefix: "storm".to_owned(),
            publish: PublishLoad::PerSecond { rate: 10.0, publishers: 16 },
            publish_url: None,
            payload_bytes: 130,
            duration: Duration::from_secs(10),
            api_key: None,
            metrics_urls: Vec::new(),
            // 28,000 ephemeral ports each: enough for several times the descriptors of one process.
            sources: 8,
            handshakes_in_flight: 256,
            connects_per_second: None,
            sse: false,
            token: None,
            stop: Arc::default(),
            lines: false,
            via: None,
            threads: None,
        }
    }
}

/// Runs the storm. Progress goes to standard error, and only if that is a terminal.
pub fn run(options: &StormOptions) -> Result<Report, StormError> {
    let publish_url = options.publish_url.as_ref().unwrap_or(&options.url);
    let (target, publish_target) = match options.via {
        Some(relay) => {
            let target = Target::parse(
                &options.url.replacen("wss://", "ws://", 1).replacen("https://", "http://", 1),
            )?;
            (target.clone().via(relay), target.via(relay))
        }
        None => (Target::parse(&options.url)?, Target::parse(publish_url)?),
    };
    check_descriptors(options)?;
    let run = (now_ns() / 1_000) as u16;
    let channels: Arc<[String]> =
        (0..options.channels.max(1)).map(|index| format!("{}-{index}", options.channel_prefix)).collect();
    let publisher = publisher(options, publish_target, &channels, run)?;
    let metrics = Metrics::before(&options.metrics_urls);

    let threads = start_threads(options, &target, &channels, run)?;
    let ramp = load::ramp(options, &threads);
    if ramp.opened == 0 && options.connections > 0 {
        return Err(nothing_opened(options, finish(threads, Arc::default())?));
    }
    let load = match publisher {
        Some(publisher) => load::publish(options, publisher, &threads, publish_url)?,
        None => load::hold(options, &threads),
    };
    let (saturation, metrics_errors) = metrics.after();
    let stats = finish(threads, Arc::new(load.acknowledged))?;
    Ok(Report {
        url: options.url.clone(),
        connections: connections(options, &stats, ramp.took),
        publishes: load.publishes,
        deliveries: Deliveries {
            received: stats.messages,
            per_second: load.deliveries_per_second,
            bytes: stats.bytes,
            latency_us: Percentiles::from(&stats.latency_us),
            order: stats.order,
            foreign: stats.foreign,
        },
        saturation,
        metrics_errors,
        client_busy: load.client_busy,
    })
}

/// Ends every client thread and adds up what they counted.
fn finish(
    threads: Vec<ClientThread>,
    acknowledged: Arc<threads::Acknowledged>,
) -> Result<FleetStats, StormError> {
    let mut total = FleetStats::default();
    for thread in threads {
        total.merge(&thread.finish(&acknowledged)?);
    }
    Ok(total)
}

fn connections(options: &StormOptions, stats: &FleetStats, took: Duration) -> Connections {
    let seconds = took.as_secs_f64();
    Connections {
        asked: options.connections,
        opened: stats.opened,
        returned: stats.returned,
        seconds,
        per_second: stats.opened as f64 / seconds.max(1e-9),
        handshake_us: Percentiles::from(&stats.handshake_us),
        failed: by_text(&stats.failures),
        ended: by_text(&stats.endings),
        pings_answered: stats.pings_answered,
    }
}

fn nothing_opened(options: &StormOptions, stats: FleetStats) -> StormError {
    let most = stats.failures.iter().max_by_key(|(_, count)| **count);
    StormError::NothingOpened {
        url: options.url.clone(),
        reason: most.map_or_else(String::new, |(failure, _)| failure.to_string()),
        status: most.and_then(|(failure, _)| match failure {
            ConnectFailure::Status(status) => Some(*status),
            _ => None,
        }),
        count: stats.failed(),
        asked: options.connections,
    }
}

pub(crate) fn by_text<K: fmt::Display>(counts: &BTreeMap<K, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(reason, &count)| (reason.to_string(), count)).collect()
}

fn check_descriptors(options: &StormOptions) -> Result<(), StormError> {
    let publishers = match options.publish {
        PublishLoad::Nothing => 0,
        PublishLoad::Closed { publishers, in_flight } => u64::from(publishers) * u64::from(in_flight),
        PublishLoad::PerSecond { publishers, .. } => u64::from(publishers),
    };
    let needed = u64::from(options.connections) + publishers + DESCRIPTORS_SPARE;
    let limit = raise_descriptor_limit();
    if needed > limit { Err(StormError::Descriptors { needed, limit }) } else { Ok(()) }
}

fn publisher(
    options: &StormOptions,
    target: Target,
    channels: &Arc<[String]>,
    run: u16,
) -> Result<Option<Publisher>, StormError> {
    let (connections, pace) = match options.publish {
        PublishLoad::Nothing => return Ok(None),
        PublishLoad::Closed { publishers, in_flight } => (publishers.saturating_mul(in_flight), Pace::Closed),
        PublishLoad::PerSecond { rate, .. } if rate.is_nan() || rate <= 0.0 => {
            return Err(StormError::Rate { rate });
        }
        PublishLoad::PerSecond { rate, publishers } => (publishers, Pace::PerSecond(rate)),
    };
    let config = PublishConfig {
        target,
        api_key: options.api_key.clone(),
        request: Request::Publish,
        connections: connections.max(1),
        pace,
        payload_bytes: options.payload_bytes,
        channels: Arc::clone(channels),
        run,
    };
    Ok(Some(Publisher::new(0, config)?))
}
