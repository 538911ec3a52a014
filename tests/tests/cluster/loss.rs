//! The loss table: three gateways, 300 clients, publications on 100 channels, and a fault in the midst.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_testkit::Rest;
use tidegate_testkit::redis::{Cut, RedisCluster, RedisServer, Sentinel};

use crate::figures::record;
use crate::fleet::Fleet;
use crate::ledger::Verdict;
use crate::publishers::{Progress, Publishers};
use crate::site::Site;

const GATEWAYS: usize = 3;
const CLIENTS: usize = 300;
const CHANNELS: usize = 100;
/// With history, 100 channels × 500 = 50,000; without, 20,000 show the same and leave the whole suite at four minutes.
const PUBLICATIONS_PER_CHANNEL: [u32; 2] = [200, 500];
/// 500 rounds of 20 ms: 10 s of publishing at 5,000 a second, when nothing is in the way.
const ROUND: Duration = Duration::from_millis(20);

/// Of 16,384: about six of the hundred channels each time.
const SLOTS_MOVED: usize = 1_000;

/// One row of the table.
struct Row<'a> {
    fault: &'a str,
    history: bool,
    publications: usize,
    repeated: usize,
    clients: usize,
    per_channel: u32,
    verdict: Verdict,
    /// Publications that were accepted and that history does not have at the end.
    taken_back: usize,
    missing_though_kept: usize,
    seconds: f64,
}

/// Publishes at the gateways while `disturb` does its worst, and judges what their clients have at the end.
#[track_caller]
fn run(fault: &str, history: bool, gateways: &[SocketAddr], disturb: impl FnOnce(&Progress)) {
    run_apart(fault, history, gateways, gateways, disturb);
}

/// The same with clients that reach the gateways under other addresses.
#[track_caller]
fn run_apart(
    fault: &str,
    history: bool,
    gateways: &[SocketAddr],
    gateways_of_clients: &[SocketAddr],
    disturb: impl FnOnce(&Progress),
) {
    let start = Instant::now();
    let namespace = if history { "kept" } else { "live" };
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("{namespace}:{number}")).collect();
    let each = CLIENTS / gateways_of_clients.len();
    let per_channel = PUBLICATIONS_PER_CHANNEL[usize::from(history)];
    let fleet = Fleet::start(gateways_of_clients, &channels, each, history, per_channel);
    let publishers = Publishers { gateways, channels: &channels, per_channel, round: ROUND };
    let progress = publishers.run(disturb);
    fleet.eventually_finished();
    let (verdict, missing) = fleet.judge();
    let taken_back = if history { taken_back(gateways, &channels, per_channel) } else { BTreeSet::new() };
    let row = Row {
        fault,
        history,
        publications: progress.accepted(),
        repeated: progress.repeated(),
        clients: CLIENTS,
        per_channel,
        verdict,
        taken_back: taken_back.len(),
        missing_though_kept: missing.difference(&taken_back).count(),
        seconds: start.elapsed().as_secs_f64(),
    };
    row.keep();
    row.assert();
}

/// What history does not have of what was accepted, by channel and number.
fn taken_back(gateways: &[SocketAddr], channels: &[String], per_channel: u32) -> BTreeSet<(String, u32)> {
    let rest = Rest::new(*gateways.first().expect("there are gateways")).with_key("dev-key");
    let missing = channels.iter().flat_map(|channel| {
        let history = rest.get(&format!("/v1/channels/{channel}/history?limit=1000")).json();
        let publications = history["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
        let number = |publication: &Value| publication["data"].as_str()?.parse().ok();
        let kept: BTreeSet<u32> = publications.iter().filter_map(number).collect();
        let missing = (0..per_channel).filter(move |number| !kept.contains(number));
        missing.map(|number| (channel.clone(), number))
    });
    missing.collect()
}

impl Row<'_> {
    /// Prints the row, and keeps it for `cargo xtask faults`.
    fn keep(&self) {
        let Row { fault, publications, repeated, clients, verdict, taken_back, seconds, .. } = self;
        let history = if self.history { "on" } else { "off" };
        let Verdict { lost, silent, duplicated, misordered, gaps, closes } = verdict;
        let mut line = String::new();
        write!(
            line,
            "| {fault} | {history} | {publications} | {repeated} | {clients} | {taken_back} | {lost} | {silent} | {duplicated} \
             | {misordered} | {gaps} | {closes} | {seconds:.1} |"
        )
        .expect("a string takes everything");
        record(&format!("loss-table/{}-{history}.md", fault.replace([' ', '(', ')'], "-")), &line);
    }

    fn assert(&self) {
        let Verdict { lost, silent, duplicated, misordered, .. } = self.verdict;
        assert_eq!(self.publications, CHANNELS * self.per_channel as usize);
        assert_eq!((duplicated, misordered), (0, 0), "once and in order");
        assert_eq!(silent, 0, "whoever misses something was told so, at that place");
        if self.history {
            assert_eq!(self.missing_though_kept, 0, "every client has what history has");
            assert_eq!((self.taken_back, lost), (0, 0), "history has everything");
        }
    }
}

/// Each fault with history and without.
macro_rules! both {
    ($($fault:ident)*) => { $(
        mod $fault {
            #[test]
            fn with_history() {
                super::$fault(true);
            }

            #[test]
            fn without_history() {
                super::$fault(false);
            }
        }
    )* };
}

both! { clients_cut_off no_fault gateway_killed killed_twice hung failed_over hung_master_failed_over resharded master_killed }

/// No Redis at all: what is left to go wrong is the way to the clients.
fn clients_cut_off(history: bool) {
    let site = Site::start("memory", 1);
    let cut = Cut::before(site.gateways[0].public());
    run_apart("clients cut off twice (memory)", history, &site.addresses(), &[cut.address()], |progress| {
        for percent in [30, 60] {
            progress.eventually(percent);
            cut.close();
            site.gateways[0].eventually_connections(0);
            cut.go_on();
        }
        // Without history, what is published before a client is back is not for it.
        site.gateways[0].eventually_connections(CLIENTS);
    });
}

fn no_fault(history: bool) {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), GATEWAYS);
    run("none", history, &site.addresses(), |_| {});
}

fn gateway_killed(history: bool) {
    let redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    run("a gateway killed", history, &site.addresses(), |progress| {
        progress.eventually(40);
        site.gateways.pop().expect("three were started").kill();
    });
}

fn killed_twice(history: bool) {
    let mut redis = RedisServer::start();
    let site = Site::start(&redis.url(), GATEWAYS);
    run("killed and restarted twice", history, &site.addresses(), |progress| {
        progress.eventually(20);
        redis.kill();
        redis.restart();
        progress.eventually(60);
        redis.kill();
        site.eventually_ready(false);
        redis.restart();
        site.eventually_ready(true);
    });
}

fn hung(history: bool) {
    let mut redis = RedisServer::start();
    let site = Site::start(&redis.url(), GATEWAYS);
    run("hung", history, &site.addresses(), |progress| {
        progress.eventually(30);
        redis.stop();
        let start = Instant::now();
        site.eventually_ready(false);
        let away = start.elapsed().as_secs_f64();
        record(
            "figures/hung.md",
            &format!("A hung Redis counted as away at every gateway after {away:.2} s."),
        );
        redis.cont();
        site.eventually_ready(true);
    });
}

/// Redis answers before its replicas have what it answered for, and another master may lack the last of it. So what is
/// kept has to reach one.
fn replicas(history: bool) -> u8 {
    u8::from(history)
}

fn failed_over(history: bool) {
    let mut sentinel = Sentinel::start();
    let site = Site::replicated(&sentinel.url(), GATEWAYS, replicas(history));
    run("failed over by Sentinel", history, &site.addresses(), |progress| {
        progress.eventually(20);
        sentinel.failover();
        site.eventually_ready(true);
    });
}

/// The old master goes on with what was in its sockets and takes itself for the master, until Sentinel tells it.
fn hung_master_failed_over(history: bool) {
    let mut sentinel = Sentinel::start();
    let site = Site::replicated(&sentinel.url(), GATEWAYS, replicas(history));
    run("hung master failed over by Sentinel", history, &site.addresses(), |progress| {
        progress.eventually(20);
        sentinel.failover_of_hung();
        progress.eventually(60);
        sentinel.revive();
        site.eventually_ready(true);
    });
}

fn resharded(history: bool) {
    let mut cluster = RedisCluster::start(3, 0);
    let site = Site::start(&cluster.url(), GATEWAYS);
    run("resharded", history, &site.addresses(), |progress| {
        progress.eventually(20);
        cluster.move_slots(0, 1, SLOTS_MOVED);
        cluster.move_slots(1, 2, SLOTS_MOVED);
    });
}

fn master_killed(history: bool) {
    let mut cluster = RedisCluster::start(3, 1);
    let site = Site::replicated(&cluster.url(), GATEWAYS, replicas(history));
    run("master of a Cluster killed", history, &site.addresses(), |progress| {
        progress.eventually(30);
        cluster.kill_master(0);
        // The new master has no replica until the old one is back, and accepts nothing that one must have.
        if !history {
            progress.eventually(60);
        }
        cluster.revive();
        site.eventually_ready(true);
    });
}
