//! The loss table: three gateways, 300 clients, publications on 100 channels, and a fault in the midst.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_testkit::Rest;
use tidegate_testkit::redis::{Cut, RedisCluster, RedisServer, Sentinel};

use crate::figures::record;
use crate::fleet::Fleet;
use crate::ledger::Verdict;
use crate::publishers::{FLIGHT, Manner, Progress, Publishers};
use crate::room::Room;
use crate::site::Site;

const GATEWAYS: usize = 3;
const CLIENTS: usize = 300;
const CHANNELS: usize = 100;
/// With history, 100 channels × 500 = 50,000; without, 20,000 show the same and leave the whole suite at four minutes.
const PUBLICATIONS_PER_CHANNEL: [u32; 2] = [200, 500];
/// In flights of 16, and one at the end: 20 flights, 7 s of publishing.
const PUBLICATIONS_ONCE: u32 = 20 * FLIGHT + 1;
/// 500 rounds of 20 ms: 10 s of publishing at 5,000 a second, when nothing is in the way.
const ROUND: Duration = Duration::from_millis(20);

/// Of 16,384: about six of the hundred channels each time.
const SLOTS_MOVED: usize = 1_000;

/// What is tried: a fault, and what is published meanwhile.
#[derive(Debug, Clone, Copy)]
struct Trial {
    fault: &'static str,
    history: bool,
    manner: Manner,
    /// Redis may lose what it accepted: that is told.
    forgets: bool,
    /// Nothing but Redis fails: no client is closed.
    spares_clients: bool,
}

/// One row of the table.
struct Row {
    trial: Trial,
    publications: usize,
    repeated: usize,
    let_go: usize,
    per_channel: u32,
    verdict: Verdict,
    /// Publications that were accepted and that history does not have at the end.
    taken_back: usize,
    missing_though_kept: usize,
    seconds: f64,
}

impl Trial {
    fn of(fault: &'static str, history: bool, manner: Manner) -> Self {
        Self { fault, history, manner, forgets: false, spares_clients: false }
    }

    /// Only Redis fails.
    fn of_redis(fault: &'static str, history: bool, manner: Manner) -> Self {
        Self { spares_clients: true, ..Self::of(fault, history, manner) }
    }

    /// Publishes at the gateways while `disturb` does its worst, and judges what their clients have at the end.
    #[track_caller]
    fn run(self, site: &mut Site, disturb: impl FnOnce(&mut Site, &Progress)) {
        let addresses = site.addresses();
        self.run_apart(site, &addresses, disturb);
    }

    /// The same with clients that reach the gateways under other addresses.
    #[track_caller]
    fn run_apart(
        self,
        site: &mut Site,
        gateways_of_clients: &[SocketAddr],
        disturb: impl FnOnce(&mut Site, &Progress),
    ) {
        let start = Instant::now();
        let Self { history, manner, .. } = self;
        let namespace = if history { "kept" } else { "live" };
        let channels: Vec<String> = (0..CHANNELS).map(|number| format!("{namespace}:{number}")).collect();
        let each = CLIENTS / gateways_of_clients.len();
        let per_channel = match manner {
            Manner::Keyed => PUBLICATIONS_PER_CHANNEL[usize::from(history)],
            Manner::Plain | Manner::Flight => PUBLICATIONS_ONCE,
        };
        let fleet = Fleet::start(gateways_of_clients, &channels, each, history, per_channel);
        let mut room = Room::start(&site.gateways);
        let gateways = site.addresses();
        let publishers =
            Publishers { gateways: &gateways, channels: &channels, per_channel, round: ROUND, manner };
        let progress = publishers.run(|progress| {
            progress.eventually(10);
            room.leave();
            disturb(site, progress);
            site.eventually_ready(true);
            room.join(&site.gateways, 0);
            room.judge(&site.gateways);
        });
        fleet.eventually_finished();
        let (verdict, missing) = fleet.judge(&progress.excused());
        let excused = progress.excused();
        let is_excused = |channel: &str, number: &u32| {
            excused.get(channel).is_some_and(|numbers| numbers.contains(number))
        };
        let mut taken_back =
            if history { taken_back(&site.addresses(), &channels, per_channel) } else { BTreeSet::new() };
        taken_back.retain(|(channel, number)| !is_excused(channel, number));
        let row = Row {
            trial: self,
            publications: progress.accepted(),
            repeated: progress.repeated(),
            let_go: progress.let_go(),
            per_channel,
            verdict,
            taken_back: taken_back.len(),
            missing_though_kept: missing.difference(&taken_back).count(),
            seconds: start.elapsed().as_secs_f64(),
        };
        row.keep();
        row.assert();
    }
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

impl Row {
    /// Prints the row, and keeps it for `cargo xtask faults`.
    fn keep(&self) {
        let Row { trial, publications, repeated, let_go, verdict, taken_back, seconds, .. } = self;
        let history = if trial.history { "on" } else { "off" };
        let fault = trial.fault;
        let manner = match trial.manner {
            Manner::Keyed => "keyed",
            Manner::Plain => "plain",
            Manner::Flight => "flights",
        };
        let Verdict { lost, silent, duplicated, misordered, gaps, closes } = verdict;
        let line = format!(
            "| {fault} | {manner} | {history} | {publications} | {repeated} | {let_go} | {taken_back} | {lost} | {silent} \
             | {duplicated} | {misordered} | {gaps} | {closes} | {seconds:.1} |"
        );
        record(&format!("loss-table/{}-{manner}-{history}.md", fault.replace([' ', '(', ')'], "-")), &line);
    }

    fn assert(&self) {
        let Trial { history, forgets, spares_clients, .. } = self.trial;
        let Verdict { lost, silent, duplicated, misordered, closes, .. } = self.verdict;
        assert_eq!(self.publications + self.let_go, CHANNELS * self.per_channel as usize);
        assert_eq!((duplicated, misordered), (0, 0), "once and in order");
        assert_eq!(silent, 0, "whoever misses something was told so, at that place");
        if spares_clients {
            assert_eq!(closes, 0, "no client is closed for what Redis does");
        }
        if history {
            assert_eq!(self.missing_though_kept, 0, "every client has what history has");
            if !forgets {
                assert_eq!((self.taken_back, lost), (0, 0), "history has everything");
            }
        }
    }
}

/// Each fault of `faults` with history and without.
macro_rules! both {
    ($manner:ident: $($fault:ident)*) => { $(
        mod $fault {
            use crate::publishers::Manner;

            #[test]
            fn with_history() {
                super::faults::$fault(true, Manner::$manner);
            }

            #[test]
            fn without_history() {
                super::faults::$fault(false, Manner::$manner);
            }
        }
    )* };
}

mod states;

use crate::loss as faults;

both! { Keyed: clients_cut_off no_fault gateway_killed killed_twice hung failed_over hung_master_failed_over resharded master_killed }

/// What takes the whole beyond ten minutes: with `cargo xtask test --all`.
mod long {
    mod plain {
        use crate::loss as faults;

        both! { Plain: gateway_killed killed_twice }
    }

    mod flights {
        use crate::loss as faults;

        both! { Flight: gateway_killed killed_twice hung resharded master_killed }
    }
}

/// Members of the room who stay, at one gateway.
const IN_ROOM: usize = 1;

/// No Redis at all: what is left to go wrong is the way to the clients.
fn clients_cut_off(history: bool, manner: Manner) {
    let mut site = Site::start("memory", 1);
    let cut = Cut::before(site.gateways[0].public());
    Trial::of("clients cut off twice (memory)", history, manner).run_apart(
        &mut site,
        &[cut.address()],
        |site, progress| {
            for percent in [30, 60] {
                progress.eventually(percent);
                cut.close();
                site.gateways[0].eventually_connections(IN_ROOM);
                cut.go_on();
            }
            // Without history, what is published before a client is back is not for it.
            site.gateways[0].eventually_connections(CLIENTS + IN_ROOM);
        },
    );
}

fn no_fault(history: bool, manner: Manner) {
    let redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of("none", history, manner).run(&mut site, |_, _| {});
}

fn gateway_killed(history: bool, manner: Manner) {
    let redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of("a gateway killed", history, manner).run(&mut site, |site, progress| {
        progress.eventually(40);
        site.gateways.pop().expect("three were started").kill();
    });
}

fn killed_twice(history: bool, manner: Manner) {
    let mut redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of_redis("killed and restarted twice", history, manner).run(&mut site, |site, progress| {
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

fn hung(history: bool, manner: Manner) {
    let mut redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of_redis("hung", history, manner).run(&mut site, |site, progress| {
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

fn failed_over(history: bool, manner: Manner) {
    let mut sentinel = Sentinel::start();
    let mut site = Site::replicated(&sentinel.url(), GATEWAYS, replicas(history));
    Trial::of_redis("failed over by Sentinel", history, manner).run(&mut site, |site, progress| {
        progress.eventually(20);
        sentinel.failover();
        site.eventually_ready(true);
    });
}

/// The old master goes on with what was in its sockets and takes itself for the master, until Sentinel tells it.
fn hung_master_failed_over(history: bool, manner: Manner) {
    let mut sentinel = Sentinel::start();
    let mut site = Site::replicated(&sentinel.url(), GATEWAYS, replicas(history));
    Trial::of_redis("hung master failed over by Sentinel", history, manner).run(
        &mut site,
        |site, progress| {
            progress.eventually(20);
            sentinel.failover_of_hung();
            progress.eventually(60);
            sentinel.revive();
            site.eventually_ready(true);
        },
    );
}

fn resharded(history: bool, manner: Manner) {
    let mut cluster = RedisCluster::start(3, 0);
    let mut site = Site::start(&cluster.url(), GATEWAYS);
    Trial::of_redis("resharded", history, manner).run(&mut site, |_, progress| {
        progress.eventually(20);
        cluster.move_slots(0, 1, SLOTS_MOVED);
        cluster.move_slots(1, 2, SLOTS_MOVED);
    });
}

fn master_killed(history: bool, manner: Manner) {
    let mut cluster = RedisCluster::start(3, 1);
    let mut site = Site::replicated(&cluster.url(), GATEWAYS, replicas(history));
    Trial::of_redis("master of a Cluster killed", history, manner).run(&mut site, |site, progress| {
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
