//! Rows of the loss table in which Redis does not just go and come back: it forgets, is full, refuses, is slow, or is away in
//! part or for long. Sixteen publications of a channel are under way at once, so that their order means something.

use std::time::Duration;

use tempfile::NamedTempFile;
use tidegate_testkit::redis::{Cut, RedisServer, RedisServerBuilder};
use tidegate_testkit::{DEADLINE, Rest, Stop, WsClient, eventually};

use super::{GATEWAYS, Trial};
use crate::publishers::{Manner, Progress};
use crate::site::{CONFIG, Site, node};

use crate::loss::states as faults;

both! { Flight:
    restarted_empty restarted_from_an_old_file one_of_three_servers_killed away_for_longer_than_the_lease out_of_memory
    snapshots_fail slow password_rotated subscriber_cut_off_for_its_backlog
}

/// Nothing that was accepted may be lost: it is on the disk before it is answered.
fn durable() -> RedisServerBuilder {
    RedisServer::builder().option("appendfsync", "always")
}

fn restarted_empty(history: bool, manner: Manner) {
    let mut redis = durable().start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    let trial = Trial { forgets: true, ..Trial::of_redis("restarted empty", history, manner) };
    trial.run(&mut site, |_, progress| {
        progress.eventually(40);
        redis.restart_empty();
    });
}

fn restarted_from_an_old_file(history: bool, manner: Manner) {
    let mut redis = RedisServer::builder().option("appendonly", "no").start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    let trial = Trial { forgets: true, ..Trial::of_redis("restarted from an old file", history, manner) };
    trial.run(&mut site, |_, progress| {
        progress.eventually(20);
        redis.command(&["SAVE"]);
        progress.eventually(50);
        redis.kill();
        redis.restart();
    });
}

fn one_of_three_servers_killed(history: bool, manner: Manner) {
    let mut servers = [(); 3].map(|()| durable().start());
    let addresses = servers.each_ref().map(|server| server.address().to_string());
    let mut site = Site::start(&format!("redis://{}", addresses.join(",")), GATEWAYS);
    Trial::of_redis("one of three servers killed", history, manner).run(&mut site, |_, progress| {
        progress.eventually(30);
        servers[1].kill();
        progress.eventually(60);
        servers[1].restart();
    });
}

fn away_for_longer_than_the_lease(history: bool, manner: Manner) {
    let mut redis = durable().start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of_redis("away for longer than the lease", history, manner).run(&mut site, |site, progress| {
        progress.eventually(30);
        redis.kill();
        for gateway in &site.gateways {
            gateway.eventually_metric("tidegate_backplane_leases_lapsed_total", &[], |lapsed| lapsed > 0.0);
        }
        redis.restart();
    });
}

fn out_of_memory(history: bool, manner: Manner) {
    let redis = durable().start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of_redis("out of memory", history, manner).run(&mut site, |site, progress| {
        progress.eventually(30);
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        takes_no_writes(site, history, progress);
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    });
}

/// A snapshot cannot be written, since its name is that of a folder: Redis answers writes with MISCONF.
fn snapshots_fail(history: bool, manner: Manner) {
    let redis = durable().option("save", "3600 1").option("enable-protected-configs", "yes").start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    Trial::of_redis("snapshots fail (MISCONF)", history, manner).run(&mut site, |site, progress| {
        progress.eventually(30);
        redis.command(&["CONFIG", "SET", "dbfilename", "appendonlydir"]);
        save(&redis, "err");
        takes_no_writes(site, history, progress);
        redis.command(&["CONFIG", "SET", "dbfilename", "dump.rdb"]);
        save(&redis, "ok");
    });
}

fn save(redis: &RedisServer, expect: &str) {
    redis.command(&["BGSAVE"]);
    eventually(&format!("the snapshot is {expect}"), DEADLINE, || {
        redis.info("rdb_last_bgsave_status").as_deref() == Some(expect)
            && redis.info("rdb_bgsave_in_progress").as_deref() == Some("0")
    });
}

/// Every gateway says so and stays ready. What is kept is refused, what is not goes on.
fn takes_no_writes(site: &Site, history: bool, progress: &Progress) {
    for gateway in &site.gateways {
        gateway.eventually_metric("tidegate_backplane_writable", &[], |writable| writable == 0.0);
    }
    site.eventually_ready(true);
    let count = || if history { progress.repeated() + progress.let_go() } else { progress.accepted() };
    let begin = count();
    eventually("it is seen by publishers", DEADLINE, || count() > begin + 16);
}

/// Each way takes 200 ms and more.
fn slow(history: bool, manner: Manner) {
    let redis = durable().start();
    let cut = Cut::before(redis.address());
    let mut site = Site::start(&cut.url(), GATEWAYS);
    Trial::of_redis("slow, 200 ms each way", history, manner).run(&mut site, |site, progress| {
        progress.eventually(30);
        cut.late(Duration::from_millis(200));
        let begin = progress.accepted();
        eventually("publications are accepted", DEADLINE, || progress.accepted() > begin + 200);
        site.eventually_ready(true);
        cut.go_on();
    });
}

fn password_rotated(history: bool, manner: Manner) {
    let redis = durable().user("default off").user("app on >old ~* &* +@all").start();
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "old\n").expect("it is written");
    let config = format!("{CONFIG}password_file = \"{}\"\n", file.path().display());
    let url = redis.url().replacen("redis://", "redis://app@", 1);
    let start = |number| node(&url, number).config(&config).start();
    let mut site = Site { gateways: (1..=GATEWAYS).map(start).collect() };
    Trial::of_redis("password rotated", history, manner).run(&mut site, |site, progress| {
        progress.eventually(30);
        redis.command(&["ACL", "SETUSER", "app", "resetpass", ">new"]);
        redis.command(&["CLIENT", "KILL", "USER", "app"]);
        site.eventually_ready(false);
        std::fs::write(file.path(), "new\n").expect("it is written");
    });
}

/// A gateway stands still until Redis has more for it than it may hold, and cuts it off.
fn subscriber_cut_off_for_its_backlog(history: bool, manner: Manner) {
    let limit = "pubsub 256kb 256kb 0";
    let redis = durable().option("client-output-buffer-limit", limit).start();
    let mut site = Site::start(&redis.url(), GATEWAYS);
    let filler = WsClient::connect(site.gateways[0].public(), "/ws?channel=live:filler&envelope=json");
    Trial::of_redis("subscriber cut off for its backlog", history, manner).run(
        &mut site,
        |site, progress| {
            progress.eventually(30);
            let subscribers = || {
                let list = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text();
                list.lines().count()
            };
            let before = subscribers();
            site.gateways[0].process().signal(Stop::Freeze);
            let (rest, payload): (Rest, _) = (site.gateways[1].rest(), "x".repeat(60_000));
            eventually("Redis cuts it off", DEADLINE, || {
                rest.publish("live:filler", &payload);
                subscribers() < before
            });
            site.gateways[0].process().signal(Stop::Thaw);
        },
    );
    drop(filler);
}
