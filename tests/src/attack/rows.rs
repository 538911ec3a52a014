//! The rows of the table: the scene of each attack, its size, and what the others may feel of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::{Gateway, RawTcp, masked_frame};

use super::watch::{Felt, Watch, resident_bytes};
use super::{Scene, channels, doors, frames, recoveries};

/// How long the attacks go on that have a rate.
const LASTING: Duration = Duration::from_secs(5);

/// One attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Nobody attacks: what this machine does to the bystanders by itself
    Quiet,
    /// 20 anonymous connections, a 64 KB burst of compressed frames each
    Compressed20,
    /// 200 such
    Compressed200,
    /// One connection, 5.5 Mbit/s of compressed frames that may not be published
    CompressedStream,
    /// 200 x 64 KB of empty pings
    Pings,
    /// 500 x 64 KB of `{` to /app/KEY
    Braces,
    /// 50 streams that recover 40 channels of 100 x 4 KB and read nothing
    RecoverMany,
    /// 20 streams that recover 10 channels of 100 x 60 KB and read nothing
    RecoverLarge,
    /// 4,000 clients that recover the same 100 messages after an outage
    RecoverSame,
    /// One address, 13,200 GET /ws a second without an upgrade
    BareRequests,
    /// One connection subscribing and unsubscribing 7,200 own channels a second, two nodes on Redis
    Churn,
    /// subscription_count on, one client joining and leaving at 4 Mbit/s
    SubscriptionCount,
    /// cache_miss webhooks by an anonymous client, to an address that hangs
    CacheMiss,
    /// 100 names of 200 bytes on each of 50 anonymous connections (75 where they stand in the URL)
    Names,
    /// Publishers that leave what they sent behind, 64 KiB each, 1,000 times, while Redis hangs
    Legacies,
}

/// What came of an attack.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub felt: Felt,
    /// What counts for this attack beside the columns that all have.
    pub said: String,
    pub bar: &'static str,
}

/// Plays attacks, each against a gateway of its own.
#[derive(Debug, Default)]
pub struct Player {
    /// Settings that the gateway's program does not know.
    pub unknown: Vec<String>,
}

impl Player {
    #[track_caller]
    fn open(&self, config: &str) -> Scene {
        Scene::of(0, config, &self.unknown)
    }

    #[track_caller]
    fn on_redis(&self, gateways: usize, config: &str) -> Scene {
        Scene::of(gateways, config, &self.unknown)
    }

    #[track_caller]
    pub fn play(&self, row: Row) -> Outcome {
        match row {
            Row::Quiet => self.on_open("", "", |_| {
                thread::sleep(LASTING);
                String::new()
            }),
            Row::Compressed20 => self.on_open("", "ping <= 20 ms", |gateway| {
                format!("{} of 20 cut", frames::compressed_burst(gateway.public(), 20))
            }),
            Row::Compressed200 => self.on_open("", "ping <= 20 ms, senders cut or slowed", |gateway| {
                format!("{} of 200 cut", frames::compressed_burst(gateway.public(), 200))
            }),
            Row::CompressedStream => self.on_open("", "delivery p50 <= 5 ms, CPU <= 10 %", |gateway| {
                let taken = frames::compressed_stream(gateway.public(), 5.5e6, LASTING);
                format!("{} KB taken", taken / 1000)
            }),
            Row::Pings => self.on_open("", "ping <= 20 ms", |gateway| {
                format!("{} of 200 cut", frames::pings(gateway.public(), 200))
            }),
            Row::Braces => self.on_open("", "ping <= 20 ms", |gateway| {
                format!("{} of 500 cut", frames::braces(gateway.public(), 500))
            }),
            Row::RecoverMany => self.recover("many-", 40, 4_000, 50, "memory <= +64 MB"),
            Row::RecoverLarge => self.recover("large-", 10, 60_000, 20, "memory <= +64 MB, ping <= 20 ms"),
            Row::RecoverSame => self.recover_same(),
            Row::BareRequests => self.bare_requests(),
            Row::Churn => self.churn(),
            Row::SubscriptionCount => self.subscription_count(),
            Row::CacheMiss => self.cache_miss(),
            Row::Names => self.names(),
            Row::Legacies => self.legacies(),
        }
    }

    fn on_open(&self, config: &str, bar: &'static str, attack: impl FnOnce(&Gateway) -> String) -> Outcome {
        let scene = self.open(config);
        watched(&scene, bar, |scene| attack(scene.gateway()))
    }

    fn recover(
        &self,
        prefix: &str,
        channels: usize,
        bytes: usize,
        streams: usize,
        bar: &'static str,
    ) -> Outcome {
        // Who is anonymous may have 20 channels; this row is about clients that may have more.
        let scene = self.open("[limits]\nanonymous_subscriptions = 100\n");
        let positions = recoveries::fill(&scene, prefix, channels, 100, bytes);
        watched(&scene, bar, |scene| {
            let held = recoveries::recover_unread(scene.gateway().public(), prefix, &positions, streams);
            thread::sleep(LASTING);
            format!("{} of {streams} streams let in", recoveries::let_in(held))
        })
    }

    fn recover_same(&self) -> Outcome {
        let clients = 4_000;
        let scene = self.on_redis(1, "[limits]\nhandshakes_per_second = 0\n");
        let position = recoveries::fill(&scene, "same-", 1, 100, 100).remove(0);
        let mut outcome = watched(&scene, "one read for all that ask within it", |scene| {
            recoveries::return_together(scene.gateway().public(), "same-0", &position, clients);
            String::new()
        });
        let metrics = scene.gateway().metrics();
        outcome.said = format!(
            "{:.2} Redis commands a recovery; {:.0} reads, shared {:.0} times",
            outcome.felt.redis_commands / clients as f64,
            metrics.sum("tidegate_recovery_reads_total", &[]),
            metrics.sum("tidegate_recovery_reads_shared_total", &[]),
        );
        outcome
    }

    fn bare_requests(&self) -> Outcome {
        let scene = self.open("");
        watched(&scene, "no handshake of others refused", |scene| {
            let address = scene.gateway().public();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let others = thread::spawn(move || doors::knock(address, &stopped));
            let doors::Sent { requests, answers } = doors::bare_requests(address, 13_200, LASTING);
            stop.store(true, Ordering::Relaxed);
            let (refused, knocked) = others.join().expect("the others' thread ends");
            let per_second = |count: usize| count as f64 / LASTING.as_secs_f64();
            format!(
                "{refused} of {knocked} others refused; {:.0} requests/s sent, {:.0} answered",
                per_second(requests),
                per_second(answers),
            )
        })
    }

    fn churn(&self) -> Outcome {
        let scene = self.on_redis(2, "");
        // The bystander's publishes are most of what Redis does here.
        let quiet = watched(&scene, "", |_| {
            thread::sleep(LASTING);
            String::new()
        });
        let mut outcome =
            watched(&scene, "Redis <= 500 commands/s for it, the rest refused and told", |scene| {
                let asked = channels::churn(scene.gateway().public(), "own-", 7_200.0, LASTING);
                format!("{asked} channels asked for")
            });
        let per_second = |felt: &Felt| felt.redis_commands / felt.seconds;
        let (with, without) = (per_second(&outcome.felt), per_second(&quiet.felt));
        outcome.said =
            format!("{}; {:.0} commands/s for it, {without:.0} without it", outcome.said, with - without);
        outcome
    }

    fn subscription_count(&self) -> Outcome {
        let scene = self.open("subscription_count = true\n");
        let others = 156;
        let path = "/app/dev-key?protocol=7";
        let channels: Vec<String> = (0..8).map(|at| format!("counted-{at}")).collect();
        let mut joins = Vec::new();
        channels.iter().for_each(|channel| channels::say_channel("subscribe", channel, &mut joins));
        let held: Vec<RawTcp> = (0..others)
            .map(|_| {
                let mut client = RawTcp::upgraded(scene.gateway().public(), path);
                client.send(&joins);
                client
            })
            .collect();
        let mut outcome = watched(&scene, "coalesced in time", |scene| {
            let sent = channels::churn_counted(scene.gateway().public(), &channels, 4e6, LASTING);
            format!("{} KB asked; {} others", sent / 1000, held.len())
        });
        let times = outcome.felt.bytes_out / outcome.felt.bytes_in.max(1.0);
        outcome.said = format!("{}; bytes out are {times:.1} x those in", outcome.said);
        outcome
    }

    /// The webhook's address accepts and never answers, so that what is told to it piles up.
    fn cache_miss(&self) -> Outcome {
        let hangs = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = hangs.local_addr().expect("a bound socket has an address");
        let hook = format!(
            "[[apps.1.webhooks]]\nurl = \"http://{address}\"\n[webhooks]\nqueue_bytes = \"256KiB\"\n"
        );
        let scene = self.open(&hook);
        watched(
            &scene,
            "occupied, vacated and members keep a queue of their own; cache_miss coalesced",
            |scene| {
                let asked = channels::churn(scene.gateway().public(), "cache-", 2_000.0, LASTING);
                let metrics = scene.gateway().metrics();
                format!(
                    "{asked} misses asked for; events dropped {:?}; waiting {} KB",
                    metrics.by_label("tidegate_webhook_events_dropped_total", "reason"),
                    metrics.sum("tidegate_webhook_queue_bytes", &[]) / 1e3,
                )
            },
        )
    }

    fn names(&self) -> Outcome {
        let connections = 50;
        let scene = self.on_redis(1, "");
        watched(&scene, "bounded by limits.*, in the memory table", |scene| {
            let address = scene.gateway().public();
            let mut held = Vec::new();
            let measure = |what: &str, join: &mut dyn FnMut() -> usize| {
                let (here, there) = memory(scene);
                let joined = join();
                let each = |bytes: f64| bytes / 1024.0 / connections as f64;
                let (here, there) = (each(memory(scene).0 - here), each(memory(scene).1 - there));
                format!(
                    "{what}: {joined} of {connections} let in, {here:.0} KiB here and {there:.0} KiB in Redis for each"
                )
            };
            let mut clients = Vec::new();
            let asked = [
                // As many as fit into a request head.
                measure("/ws, 75 names", &mut || {
                    let joined = channels::join_names(address, connections, 75);
                    held.extend(joined);
                    held.len()
                }),
                measure("/app, 100 names", &mut || {
                    clients.extend(channels::hold_names(address, connections, 100));
                    clients.len()
                }),
            ];
            asked.join("; ")
        })
    }

    fn legacies(&self) -> Outcome {
        let mut scene = self.on_redis(1, "");
        // A bystander would wait for Redis, too: this row has none. The channel is held, so that nobody subscribes anew.
        let _held = scene.gateway().subscribe("open:legacy");
        let address = scene.gateway().public();
        let before = resident_bytes(scene.gateway().pid());
        if let Some(redis) = scene.redis.as_mut() {
            redis.stop();
        }
        let frame = masked_frame(0x82, &[7; 15 * 1024]);
        let options = SocketOptions { reset_on_close: false, ..SocketOptions::default() };
        for _ in 0..1_000 {
            leave_legacy(address, options, &frame.repeat(4));
        }
        let grown = resident_bytes(scene.gateway().pid()).saturating_sub(before);
        if let Some(redis) = scene.redis.as_mut() {
            redis.cont();
        }
        let felt = Felt { memory_bytes: grown, seconds: 1.0, ..Felt::default() };
        let dropped = scene.gateway().metrics().by_label("tidegate_messages_dropped_total", "reason");
        let dropped: f64 = dropped.values().sum();
        let said = format!("1,000 publishers of 60 KiB; {dropped:.0} of 4,000 messages dropped");
        Outcome { felt, said, bar: "bounded in bytes" }
    }
}

/// The head of the table, in Markdown.
pub const TABLE_HEAD: &str = "\
| attack | ping max (p99), ms | publish to delivery p50 / p99, ms | memory, MB | CPU | Redis commands/s | KB in / out | said | must |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |";

impl Outcome {
    /// A line of the table.
    #[must_use]
    pub fn line(&self, row: Row) -> String {
        let Self { felt, said, bar } = self;
        let name = row.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        format!(
            "| {} | {:.1} ({:.1}) | {:.1} / {:.1} | +{:.1} | {:.0} % | {:.0} | {:.0} / {:.0} | {said} | {bar} |",
            name.unwrap_or_default(),
            ms(felt.ping_max),
            ms(felt.ping_p99),
            ms(felt.delivery_p50),
            ms(felt.delivery_p99),
            felt.memory_bytes as f64 / 1e6,
            felt.cpu * 100.0,
            felt.redis_commands / felt.seconds,
            felt.bytes_in / 1e3,
            felt.bytes_out / 1e3,
        )
    }
}

fn watched(scene: &Scene, bar: &'static str, attack: impl FnOnce(&Scene) -> String) -> Outcome {
    let mut said = String::new();
    let felt = Watch::during(scene, || said = attack(scene));
    Outcome { felt, said, bar }
}

/// Resident bytes of the attacked gateway, and of Redis what it says that it uses.
fn memory(scene: &Scene) -> (f64, f64) {
    let redis = scene.redis.as_ref().and_then(|redis| redis.info("used_memory")?.parse().ok());
    (resident_bytes(scene.gateway().pid()) as f64, redis.unwrap_or(0.0))
}

/// Subscriptions wait for Redis, too: the channel is one that the gateway holds already.
fn leave_legacy(address: std::net::SocketAddr, options: SocketOptions, publications: &[u8]) {
    let Ok(mut client) = RawTcp::try_connect(address, options) else { return };
    let request = "GET /ws?channel=open:legacy HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Version: 13\r\n\r\n";
    client.send(request.as_bytes());
    if client.read_head(Duration::from_millis(500)).is_ok_and(|head| head.status == 101) {
        // It leaves at once; whether all of it was taken does not matter to it.
        let _sent = client.try_send(publications);
    }
}
