//! What happens in each row, while publications go on.

use std::time::{Duration, Instant};

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Rest, Stop, WsClient, eventually};
use tidegate_tests::cluster::figures::record;

use crate::trial::Moment;
use crate::world::World;

/// Of 16,384: about six of the hundred channels each time.
const SLOTS_MOVED: usize = 1_000;

pub(crate) fn nothing(_: &mut World, _: &Moment<'_>) {}

pub(crate) fn clients_cut_off(world: &mut World, moment: &Moment<'_>) {
    let World { wire: Some(wire), site, .. } = world else { unreachable!("the row has a wire") };
    let gateway = &site.gateways[0];
    for percent in [30, 60] {
        moment.eventually(percent);
        wire.close();
        gateway.eventually_connections(moment.members);
        wire.go_on();
    }
    // Without history, what is published before a client is back is not for it.
    gateway.eventually_connections(moment.clients + moment.members);
}

pub(crate) fn gateway_killed(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(40);
    world.site.gateways.pop().expect("three were started").kill();
}

pub(crate) fn killed_twice(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().kill();
    world.server().restart();
    moment.eventually(60);
    world.server().kill();
    world.site.eventually_ready(false);
    world.server().restart();
}

pub(crate) fn away_for_longer_than_the_lease(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().kill();
    for gateway in &world.site.gateways {
        gateway.eventually_metric("tidegate_backplane_leases_lapsed_total", &[], |lapsed| lapsed > 0.0);
    }
    world.server().restart();
}

pub(crate) fn one_of_three_killed(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.servers[1].master.kill();
    // Publishers that repeat come to a stand.
    moment.eventually_repeated_or(50);
    world.servers[1].master.restart();
}

pub(crate) fn hung(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().stop();
    let start = Instant::now();
    world.site.eventually_ready(false);
    let away = start.elapsed().as_secs_f64();
    record("figures/hung.md", &format!("A hung Redis counted as away at every gateway after {away:.2} s."));
    world.server().cont();
}

pub(crate) fn failed_over(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    let sentinel = world.sentinel.as_mut().expect("the row has a Sentinel");
    sentinel.failover();
}

/// The old master goes on with what was in its sockets and takes itself for the master, until Sentinel tells it.
pub(crate) fn hung_and_failed_over(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    let sentinel = world.sentinel.as_mut().expect("the row has a Sentinel");
    sentinel.failover_of_hung();
    moment.eventually(60);
    sentinel.revive();
}

pub(crate) fn resharded(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(20);
    let cluster = world.cluster.as_mut().expect("the row has a Cluster");
    cluster.move_slots(0, 1, SLOTS_MOVED);
    cluster.move_slots(1, 2, SLOTS_MOVED);
}

pub(crate) fn master_of_a_cluster_killed(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    let cluster = world.cluster.as_mut().expect("the row has a Cluster");
    cluster.kill_master(0);
    // The new master has no replica until the old one is back, and accepts nothing that one must have.
    moment.eventually_repeated_or(60);
    cluster.revive();
}

pub(crate) fn out_of_memory(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().command(&["CONFIG", "SET", "maxmemory", "1"]);
    takes_no_writes(world, moment);
    world.server().command(&["CONFIG", "SET", "maxmemory", "0"]);
}

/// A snapshot cannot be written, since its name is that of a folder: Redis answers writes with MISCONF.
pub(crate) fn snapshots_fail(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().command(&["CONFIG", "SET", "dbfilename", "appendonlydir"]);
    save(world.server(), "err");
    takes_no_writes(world, moment);
    world.server().command(&["CONFIG", "SET", "dbfilename", "dump.rdb"]);
    save(world.server(), "ok");
}

#[track_caller]
fn save(redis: &RedisServer, expect: &str) {
    redis.command(&["BGSAVE"]);
    eventually(&format!("the snapshot is {expect}"), DEADLINE, || {
        redis.info("rdb_last_bgsave_status").as_deref() == Some(expect)
            && redis.info("rdb_bgsave_in_progress").as_deref() == Some("0")
    });
}

/// Every gateway says so and stays ready. What is written is refused, what is not goes on.
#[track_caller]
fn takes_no_writes(world: &World, moment: &Moment<'_>) {
    for gateway in &world.site.gateways {
        gateway.eventually_metric("tidegate_backplane_writable", &[], |writable| writable == 0.0);
    }
    world.site.eventually_ready(true);
    let count = || {
        if moment.row.writes() { moment.repeated() + moment.let_go() } else { moment.accepted() }
    };
    let begin = count();
    eventually("it is seen by publishers", DEADLINE, || count() > begin + 16);
}

/// Each way takes 200 ms and more.
pub(crate) fn slow(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    let wire = world.wire.as_ref().expect("the row has a wire");
    wire.late(Duration::from_millis(200));
    let begin = moment.accepted();
    eventually("publications are accepted", DEADLINE, || moment.accepted() > begin + 200);
    world.site.eventually_ready(true);
    wire.go_on();
}

/// A lease that was given before the clock jumped back would hold for as long.
pub(crate) fn clock_jumps(world: &mut World, moment: &Moment<'_>) {
    for (percent, seconds) in [(30, 60), (60, -60)] {
        moment.eventually(percent);
        world.server().set_clock(seconds);
    }
}

pub(crate) fn password_rotated(world: &mut World, moment: &Moment<'_>) {
    moment.eventually(30);
    world.server().command(&["ACL", "SETUSER", "app", "resetpass", ">new"]);
    world.server().command(&["CLIENT", "KILL", "USER", "app"]);
    world.site.eventually_ready(false);
    let file = world.password.as_ref().expect("the row has a password");
    std::fs::write(file.path(), "new\n").expect("it is writable");
}

/// A gateway stands still until Redis has more for it than it may hold, and cuts it off.
pub(crate) fn subscriber_cut_off_for_its_backlog(world: &mut World, moment: &Moment<'_>) {
    let filler = WsClient::connect(world.first_gateway().public(), "/ws?channel=live:filler&envelope=json");
    moment.eventually(30);
    let subscribers = |world: &mut World| {
        world.server().command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text().lines().count()
    };
    let before = subscribers(world);
    world.first_gateway().process().signal(Stop::Freeze);
    let (rest, payload): (Rest, _) = (world.site.gateways[1].rest(), "x".repeat(60_000));
    eventually("Redis cuts it off", DEADLINE, || {
        rest.publish("live:filler", &payload);
        subscribers(world) < before
    });
    world.first_gateway().process().signal(Stop::Thaw);
    drop(filler);
}
