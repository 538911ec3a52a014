//! What everyone but the attackers goes through: pings, deliveries, memory, processor, Redis, bytes.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, Metrics, RawTcp, WsClient, masked_frame};

use super::Scene;

/// The channel of the bystanders.
const CHANNEL: &str = "bystander";

/// Between an answer and the next ping: short against any wait worth telling, and no more than half of what a connection
/// may send (`limits.messages_per_second`).
const PING_GAP: Duration = Duration::from_millis(8);

/// Between a delivery and the next publish.
const PUBLISH_GAP: Duration = Duration::from_millis(10);

/// Longer than any freeze that was measured.
const ANSWER_DEADLINE: Duration = Duration::from_secs(90);

/// How often memory is looked at.
const MEMORY_GAP: Duration = Duration::from_millis(5);

/// How long the bystanders are watched after the attackers have done their part.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What the others felt.
#[derive(Debug, Clone, Default)]
pub struct Felt {
    /// The longest wait for a pong, and the wait that 99 of 100 pings stayed under.
    pub ping_max: Duration,
    pub ping_p99: Duration,
    /// From before the publish to the delivery.
    pub delivery_p50: Duration,
    pub delivery_p99: Duration,
    /// The most that the process grew by.
    pub memory_bytes: u64,
    /// Of one core.
    pub cpu: f64,
    pub seconds: f64,
    pub bytes_in: f64,
    pub bytes_out: f64,
    /// Of all clients of Redis, gateways' own work included.
    pub redis_commands: f64,
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    pings: JoinHandle<Vec<Duration>>,
    deliveries: JoinHandle<Vec<Duration>>,
    memory: JoinHandle<u64>,
    before: Reading,
    started: Instant,
}

#[derive(Debug)]
struct Reading {
    cpu: f64,
    bytes_in: f64,
    bytes_out: f64,
    redis: f64,
}

impl Watch {
    /// Watches while the attack runs and a second longer.
    #[track_caller]
    pub fn during(scene: &Scene, attack: impl FnOnce()) -> Felt {
        let watch = Self::start(scene);
        attack();
        thread::sleep(AFTERMATH);
        watch.finish(scene)
    }

    #[track_caller]
    fn start(scene: &Scene) -> Self {
        let gateway = scene.gateway();
        let stop = Arc::new(AtomicBool::new(false));
        let ping = RawTcp::upgraded(gateway.public(), &format!("/ws?channel={CHANNEL}-ping"));
        let subscriber = gateway.subscribe(CHANNEL);
        let rest = scene.rest();
        let pid = gateway.pid();
        let (seen_by_ping, seen_by_publisher, seen_by_memory) =
            (Arc::clone(&stop), Arc::clone(&stop), Arc::clone(&stop));
        Self {
            before: Reading::of(scene),
            started: Instant::now(),
            pings: thread::spawn(move || ping_until(ping, &seen_by_ping)),
            deliveries: thread::spawn(move || {
                publish_until(subscriber, &seen_by_publisher, |payload| {
                    rest.publish(CHANNEL, payload);
                })
            }),
            memory: thread::spawn(move || grow_until(pid, &seen_by_memory)),
            stop,
        }
    }

    #[track_caller]
    fn finish(self, scene: &Scene) -> Felt {
        self.stop.store(true, Ordering::Relaxed);
        let mut pings = self.pings.join().expect("the pinging bystander was served");
        let mut deliveries = self.deliveries.join().expect("the subscribed bystander was served");
        let memory_bytes = self.memory.join().expect("memory was read");
        let seconds = self.started.elapsed().as_secs_f64();
        let after = Reading::of(scene);
        pings.sort_unstable();
        deliveries.sort_unstable();
        Felt {
            ping_max: quantile(&pings, 1.0),
            ping_p99: quantile(&pings, 0.99),
            delivery_p50: quantile(&deliveries, 0.5),
            delivery_p99: quantile(&deliveries, 0.99),
            memory_bytes,
            cpu: (after.cpu - self.before.cpu) / seconds,
            seconds,
            bytes_in: after.bytes_in - self.before.bytes_in,
            bytes_out: after.bytes_out - self.before.bytes_out,
            redis_commands: after.redis - self.before.redis,
        }
    }
}

impl Reading {
    fn of(scene: &Scene) -> Self {
        let metrics = settled_metrics(scene.gateway());
        Self {
            cpu: tidegate_testkit::memory::cpu_seconds(scene.gateway().pid()),
            bytes_in: metrics.sum("tidegate_bytes_received_total", &[]),
            bytes_out: metrics.sum("tidegate_bytes_sent_total", &[]),
            redis: scene.redis.as_ref().map_or(0.0, redis_commands),
        }
    }
}

fn settled_metrics(gateway: &Gateway) -> Metrics {
    gateway.metrics()
}

fn redis_commands(redis: &RedisServer) -> f64 {
    redis.info("total_commands_processed").and_then(|count| count.parse().ok()).unwrap_or(f64::NAN)
}

fn ping_until(mut connection: RawTcp, stop: &AtomicBool) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        connection.send(&masked_frame(0x89, b"now"));
        loop {
            match connection.read_frame(ANSWER_DEADLINE) {
                Ok((0x8A, payload)) if payload == b"now" => break,
                Ok(_) => {}
                Err(error) => panic!("the bystander's ping was not answered: {error}"),
            }
        }
        waits.push(sent.elapsed());
        thread::sleep(PING_GAP);
    }
    waits
}

fn publish_until(mut subscriber: WsClient, stop: &AtomicBool, publish: impl Fn(&str)) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let payload = format!("{}", waits.len());
        let sent = Instant::now();
        publish(&payload);
        loop {
            match subscriber.next(ANSWER_DEADLINE) {
                tidegate_testkit::Received::Text(text) if text == payload => break,
                tidegate_testkit::Received::Ping(_) | tidegate_testkit::Received::Text(_) => {}
                other => panic!("the bystander's publication did not come: {other:?}"),
            }
        }
        waits.push(sent.elapsed());
        thread::sleep(PUBLISH_GAP);
    }
    waits
}

/// The most that resident memory grows by.
fn grow_until(pid: u32, stop: &AtomicBool) -> u64 {
    let before = resident_bytes(pid);
    let mut most = before;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(resident_bytes(pid));
        thread::sleep(MEMORY_GAP);
    }
    most - before
}

/// The second field of `/proc/PID/statm` (proc(5)), in pages.
pub(super) fn resident_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(Duration::ZERO)
}
