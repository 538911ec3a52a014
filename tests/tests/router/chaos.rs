//! Random faults, alone and two at once, under recovering clients, publishers and a presence channel: all of it follows
//! from a seed. `cargo xtask chaos --seed N --seconds S`; the test run has a short one.
//!
//! Judged after each step: gateways are ready, lists of who is present are right, and nobody was closed for a fault of
//! Redis. At the end: nothing is lost, doubled or out of order, and no gap was told.

use std::env;
use std::time::{Duration, Instant};

use tidegate_testkit::redis::{RedisServer, Value};
use tidegate_testkit::{DEADLINE, Gateway, Stop, eventually, observe};

use crate::site::{Router, SHORT_DRAIN, node};
use tidegate_tests::cluster::fleet::Fleet;
use tidegate_tests::cluster::ledger::Verdict;
use tidegate_tests::cluster::publishers::{Manner, Publishers};
use tidegate_tests::cluster::room::{RIGHT_WITHIN, Room};
use tidegate_tests::cluster::site::CONFIG;

const GATEWAYS: usize = 3;
const CLIENTS: usize = 150;
const CHANNELS: usize = 50;
const MEMBERS: usize = 12;
const ROUND: Duration = Duration::from_millis(100);

const SEED: u64 = 1;
const SECONDS: u64 = 20;

/// What gateways of the cluster tests have, and drains that a test can wait for.
const DRAIN: &str = "[drain]\nsettle = \"1500ms\"\nperiod = \"1s\"\nclose_wait = \"1s\"\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    RedisKilled,
    RedisHung,
    RedisFull,
    RedisClientsCut,
    SubscribersCut,
    GatewayKilled(usize),
    GatewayHung(usize),
    GatewayDrained(usize),
    RouterKilled,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

/// Everything that runs.
struct World {
    redis: RedisServer,
    gateways: Vec<Option<Gateway>>,
    router: Option<Router>,
    /// Whoever was closed comes again after each step.
    room: Room,
}

#[test]
fn random_faults_lose_nothing() {
    let [seed, seconds] = [("CHAOS_SEED", SEED), ("CHAOS_SECONDS", SECONDS)].map(|(name, usual)| {
        env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    });
    let mut random = Random(seed);
    let mut world = World::start();
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("kept:{number}")).collect();
    let per_channel = (Duration::from_secs(seconds).as_millis() / ROUND.as_millis()) as u32;
    let router = [world.router().public];
    let fleet = Fleet::start(&router, &channels, CLIENTS, true, per_channel);
    let manner = [Manner::KEYED, Manner::PLAIN, Manner::FLIGHT][random.below(3)];
    let publishers = Publishers { gateways: &router, channels: &channels, per_channel, round: ROUND, manner };
    let mut steps = 0;
    let progress = publishers.run(|progress| {
        // A channel to which nothing was published has no position, and nobody can tell that nothing was missed.
        let flights = (2 * manner.flight * 100).div_ceil(per_channel);
        progress.eventually(flights as usize);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            let faults = random.faults();
            println!("{:5.1} s: {faults:?}", start.elapsed().as_secs_f64());
            world.step(&faults, &mut random);
            steps += 1;
        }
    });
    fleet.eventually_finished();
    let (verdict, _) = fleet.judge(&progress.excused());
    let (accepted, let_go) = (progress.accepted(), progress.let_go());
    println!("seed {seed}: {steps} steps, {accepted} publications accepted, {let_go} not, {verdict:?}");
    let expect = Verdict { closes: verdict.closes, ..Verdict::default() };
    assert_eq!(verdict, expect, "nothing is lost, doubled, out of order or told as a gap (seed {seed})");
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from))
    }

    fn fault(&mut self) -> Fault {
        let gateway = self.below(GATEWAYS);
        match self.below(9) {
            0 => Fault::RedisKilled,
            1 => Fault::RedisHung,
            2 => Fault::RedisFull,
            3 => Fault::RedisClientsCut,
            4 => Fault::SubscribersCut,
            5 => Fault::GatewayKilled(gateway),
            6 => Fault::GatewayHung(gateway),
            7 => Fault::GatewayDrained(gateway),
            _ => Fault::RouterKilled,
        }
    }

    /// One, or every third time two that are not of the same process.
    fn faults(&mut self) -> Vec<Fault> {
        let first = self.fault();
        let second = self.fault();
        if self.below(3) == 0 && second.process() != first.process() {
            vec![first, second]
        } else {
            vec![first]
        }
    }
}

impl Fault {
    /// 0 is Redis.
    fn process(self) -> usize {
        match self {
            Self::RedisKilled
            | Self::RedisHung
            | Self::RedisFull
            | Self::RedisClientsCut
            | Self::SubscribersCut => 0,
            Self::RouterKilled => 1,
            Self::GatewayKilled(index) | Self::GatewayHung(index) | Self::GatewayDrained(index) => 2 + index,
        }
    }
}

impl World {
    fn start() -> Self {
        // What was accepted is on the disk: a Redis that is killed loses nothing.
        let redis = RedisServer::builder().durable().start();
        let router = Some(Router::start(&redis.url(), SHORT_DRAIN));
        let mut world = Self { redis, gateways: Vec::new(), router, room: Room::default() };
        world.gateways.resize_with(GATEWAYS, || None);
        (0..GATEWAYS).for_each(|index| world.start_gateway(index));
        world.is_well();
        world
    }

    fn router(&self) -> &Router {
        self.router.as_ref().unwrap()
    }

    fn start_gateway(&mut self, index: usize) {
        self.gateways[index] = Some(node(&self.redis, index + 1).config(&format!("{CONFIG}{DRAIN}")).start());
    }

    /// Faults that begin and end together, and a judgement.
    fn step(&mut self, faults: &[Fault], random: &mut Random) {
        for &fault in faults {
            self.begin(fault);
        }
        observe(random.milliseconds(200, 4_000));
        for &fault in faults {
            self.end(fault);
        }
        if faults.iter().all(|fault| fault.process() == 0) {
            let closed = self.room.take_closed();
            assert!(closed.is_empty(), "{faults:?} closed members: {closed:?}");
        }
        self.is_well();
        observe(random.milliseconds(100, 1_000));
    }

    fn begin(&mut self, fault: Fault) {
        let cut = |redis: &RedisServer, kind: &str| redis.command(&["CLIENT", "KILL", "TYPE", kind]);
        match fault {
            Fault::RedisKilled => self.redis.kill(),
            Fault::RedisHung => self.redis.stop(),
            Fault::RedisFull => {
                self.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
            }
            Fault::RedisClientsCut => {
                assert_ne!(cut(&self.redis, "normal"), Value::Nil);
            }
            Fault::SubscribersCut => {
                assert_ne!(cut(&self.redis, "pubsub"), Value::Nil);
            }
            Fault::GatewayKilled(index) => drop(self.gateways[index].take().map(Gateway::kill)),
            Fault::GatewayHung(index) => self.signal(index, Stop::Freeze),
            Fault::GatewayDrained(index) => self.signal(index, Stop::Terminate),
            Fault::RouterKilled => self.router.as_mut().unwrap().signal(Stop::Kill),
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::RedisKilled => self.redis.restart(),
            Fault::RedisHung => self.redis.cont(),
            Fault::RedisFull => {
                self.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            Fault::RedisClientsCut | Fault::SubscribersCut => {}
            Fault::GatewayKilled(index) => self.start_gateway(index),
            Fault::GatewayHung(index) => self.signal(index, Stop::Thaw),
            Fault::GatewayDrained(index) => {
                if let Some(mut gateway) = self.gateways[index].take() {
                    gateway.process().wait(DEADLINE);
                }
                self.start_gateway(index);
            }
            Fault::RouterKilled => {
                let mut old = self.router.take().unwrap();
                old.wait();
                self.router = Some(Router::start_at(old.public, &self.redis.url(), SHORT_DRAIN));
            }
        }
    }

    fn signal(&mut self, index: usize, stop: Stop) {
        self.gateways[index].as_mut().unwrap().process().signal(stop);
    }

    /// Gateways are ready and known, whoever was closed is there again, and everybody is told who is there.
    fn is_well(&mut self) {
        for gateway in self.gateways.iter().flatten() {
            eventually("it is ready", RIGHT_WITHIN, || gateway.internal_rest().get("/readyz").status == 200);
        }
        let live = || self.router().metric("tidegate_nodes", &[("state", "live")]);
        eventually("the router knows all gateways", RIGHT_WITHIN, || live() == GATEWAYS as f64);
        self.room.take_closed();
        while self.room.len() < MEMBERS {
            self.room.join(self.router.as_ref().unwrap().public);
        }
        self.room.judge(self.gateways.iter().flatten());
        let closed = self.room.take_closed();
        assert!(closed.is_empty(), "closed after the faults: {closed:?}");
    }
}
