//! Heartbeats of thousands of clients under seeds: a gateway that stalls and starves, clients that answer late, vanish, or
//! read slowly; what must hold of each. A failure names its seed; `SIMULATION_SEED=N` runs that seed alone.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use fastrand::Rng;

use super::*;

const RULE: Rule = Rule { interval: Duration::from_secs(25), timeout: Duration::from_secs(10) };
const INTERVAL: u32 = 100;
const TIMEOUT: u32 = 40;

/// A client, and what its kernel and that of the gateway know of it; times in ticks of the clock.
#[derive(Debug, Default, Clone)]
struct Client {
    ping: Ping,
    due: u32,
    /// On the attended clock, as the shard has it.
    heard: u32,
    acknowledged: u32,
    /// Bytes that lie in the socket of the gateway, since when; those that wait for the client.
    unhandled: bool,
    unsent: bool,
    /// Answers on their way, by the tick at which they arrive.
    answers: VecDeque<u32>,
    pinged_at: Option<u32>,
    gone_at: Option<u32>,
    is_relayed: bool,
    ended_at: Option<u32>,
    pings: u32,
}

struct View<'c>(&'c Client, u32);

impl Line for View<'_> {
    fn has_unhandled(&self) -> bool {
        self.0.unhandled
    }
    fn has_unsent(&self) -> bool {
        self.0.unsent
    }
    fn acknowledged(&self) -> Option<Duration> {
        Some(TICK * (self.1 - self.0.acknowledged))
    }
    fn is_relayed(&self) -> bool {
        self.0.is_relayed
    }
}

/// The gateway: one shard that may stop, and that may be given a part of its time only.
struct World {
    random: Rng,
    now: u32,
    /// In hundredths of a tick.
    attended: u32,
    stalled_until: u32,
    share: u32,
    clients: Vec<Client>,
}

impl World {
    fn new(seed: u64, clients: usize) -> Self {
        let random = Rng::with_seed(seed);
        let mut world =
            Self { random, now: 1000, attended: 100_000, stalled_until: 0, share: 100, clients: Vec::new() };
        for spread in 0..clients {
            let due = RULE.next_look(Tick(world.now), Duration::ZERO, spread as u32).0;
            world.clients.push(Client {
                due,
                heard: world.attended_ticks(),
                acknowledged: world.now,
                ..Client::default()
            });
        }
        world
    }

    fn attended_ticks(&self) -> u32 {
        self.attended / 100
    }

    /// One tick passes. `deliver`: whether everybody is sent something.
    fn tick(&mut self, deliver: bool) {
        self.now += 1;
        for client in self.clients.iter_mut().filter(|client| client.ended_at.is_none()) {
            while client.answers.front().is_some_and(|&at| at <= self.now) {
                client.answers.pop_front();
                (client.unhandled, client.acknowledged) = (true, self.now);
            }
        }
        if self.now < self.stalled_until {
            return;
        }
        self.attended += self.share;
        let attended = Tick(self.attended_ticks());
        for (spread, client) in self.clients.iter_mut().enumerate() {
            if client.ended_at.is_some() {
                continue;
            }
            // A starved shard does not come to everyone in every tick.
            if client.unhandled && self.random.u32(0..100) < self.share {
                (client.unhandled, client.heard) = (false, attended.0);
            }
            if deliver && client.gone_at.is_none() && !client.unsent {
                client.acknowledged = self.now;
            }
            if client.due > self.now {
                continue;
            }
            let mut seen = Seen {
                now: Tick(self.now),
                silent: attended.since(Tick(client.heard)),
                pinged: client.ping.since(attended),
                is_delivering: deliver,
                spread: spread as u32,
            };
            if seen.pinged.is_some_and(|since| seen.silent <= since) {
                (client.ping, seen.pinged) = (Ping::NONE, None);
            }
            let step = RULE.step(seen, &View(client, self.now));
            match step {
                Step::Look { at, .. } | Step::PutOff { at } => client.due = at.0,
                Step::End => client.ended_at = Some(self.now),
                Step::Ping => {
                    client.ping = Ping::at(attended);
                    client.pings += 1;
                    client.pinged_at = Some(self.now);
                    client.due = self.now + TIMEOUT;
                    if client.gone_at.is_none() {
                        client.answers.push_back(self.now + 1 + self.random.u32(0..TIMEOUT / 2));
                    }
                }
            }
            assert!(client.due > self.now || client.ended_at.is_some(), "a look that is not ahead");
        }
    }
}

/// Runs each seed, and names the one that failed.
fn seeds(count: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let only = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    for seed in only.map_or(0..count, |seed| seed..seed + 1) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("failed with SIMULATION_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn whoever_answers_is_never_cut_however_late_the_node_is() {
    seeds(60, |seed| {
        let mut world = World::new(seed, 200);
        let mut stalls = Rng::with_seed(seed ^ 1);
        for _ in 0..4_000 {
            if stalls.u32(0..200) == 0 {
                world.stalled_until = world.now + stalls.u32(1..600);
            }
            if stalls.u32(0..100) == 0 {
                world.share = [100, 100, 20, 5][stalls.usize(0..4)];
            }
            world.tick(stalls.u32(0..10) == 0);
        }
        let cut = world.clients.iter().filter(|client| client.ended_at.is_some()).count();
        assert_eq!(cut, 0, "of 200 that answer all pings");
    });
}

#[test]
fn whoever_vanishes_is_found_in_an_interval_and_a_timeout() {
    seeds(60, |seed| {
        let mut world = World::new(seed, 200);
        let mut random = Rng::with_seed(seed ^ 2);
        for _ in 0..2_000 {
            let who = random.usize(0..200);
            if world.clients[who].gone_at.is_none() && random.u32(0..10) == 0 {
                world.clients[who].gone_at = Some(world.now);
                // What was on its way is lost with it.
                world.clients[who].answers.clear();
            }
            world.tick(random.u32(0..50) == 0);
        }
        for client in world.clients.iter().filter(|client| client.gone_at.is_some_and(|at| at < 2_500)) {
            let took = client.ended_at.expect("it is found") - client.gone_at.unwrap();
            // A delivery to it may have waited for half an interval more.
            assert!(took <= INTERVAL + INTERVAL / 2 + TIMEOUT + 2, "{took} ticks: {client:?}");
        }
    });
}

/// A proxy's kernel acknowledges what its vanished client will never read.
#[test]
fn whoever_vanishes_behind_an_unknown_proxy_is_found_in_four_intervals() {
    for is_relayed in [false, true] {
        let mut world = World::new(7, 100);
        world.clients.iter_mut().for_each(|client| client.is_relayed = is_relayed);
        let began = world.now;
        for _ in 0..INTERVAL * 8 {
            world.tick(true);
            world.clients.iter_mut().for_each(|client| client.answers.clear());
        }
        let bound = if is_relayed { INTERVAL * 3 / 2 + TIMEOUT } else { INTERVAL * 5 + TIMEOUT };
        for client in &world.clients {
            let took = client.ended_at.expect("it is found") - began;
            assert!(took <= bound + 2, "{took} {is_relayed}");
        }
    }
}

#[test]
fn pings_are_spared_where_deliveries_are_acknowledged() {
    let mut world = World::new(3, 1_000);
    (0..INTERVAL * 20).for_each(|tick| world.tick(tick % 40 == 0));
    let spared = world.clients.iter().map(|client| client.pings).sum::<u32>();
    let mut idle = World::new(3, 1_000);
    (0..INTERVAL * 20).for_each(|_| idle.tick(false));
    let sent = idle.clients.iter().map(|client| client.pings).sum::<u32>();
    assert!((19_000..=21_500).contains(&sent), "{sent} pings of 1,000 idle clients in 20 intervals");
    assert!(spared * 3 < sent, "{spared} against {sent}");
}

/// All are heard at one moment, and are due an interval later; half of them would be in one tick.
#[test]
fn those_that_were_heard_together_are_pinged_one_after_the_other() {
    let mut world = World::new(5, 5_000);
    let mut most = [0; 6];
    for tick in 0..INTERVAL * 6 {
        if tick == 250 {
            let attended = world.attended_ticks();
            world.clients.iter_mut().for_each(|client| client.heard = attended);
        }
        let before = world.clients.iter().map(|client| client.pings).sum::<u32>();
        world.tick(false);
        let pings = world.clients.iter().map(|client| client.pings).sum::<u32>() - before;
        let of_interval = &mut most[(tick / INTERVAL) as usize];
        *of_interval = pings.max(*of_interval);
    }
    // Evenly over half an interval they are 100 a tick, and over a whole one 50.
    assert!(
        most[2].max(most[3]) <= 150 && most[5] <= 75,
        "pings in one tick, at most in each interval: {most:?}"
    );
}

#[test]
fn a_slow_reader_is_left_to_its_queue_and_a_dead_one_is_not() {
    let seen = Seen {
        now: Tick(500),
        silent: Duration::from_secs(60),
        pinged: Some(Duration::from_secs(11)),
        is_delivering: false,
        spread: 1,
    };
    let slow = Client { unsent: true, acknowledged: 490, ..Client::default() };
    assert!(matches!(RULE.step(seen, &View(&slow, 500)), Step::PutOff { .. }));
    let dead = Client { acknowledged: 400, ..slow };
    assert_eq!(RULE.step(seen, &View(&dead, 500)), Step::End);
    let late = Client { unhandled: true, ..dead };
    assert_eq!(RULE.step(seen, &View(&late, 500)), Step::PutOff { at: Tick(501) });
}

#[test]
fn a_ping_remembers_when_it_was_written() {
    for (written, now) in [(0, 0), (7, 40), (65_000, 66_000), (65_534, 65_535), (200_000, 200_040)] {
        let ping = Ping::at(Tick(written));
        assert!(ping.is_under_way());
        assert_eq!(ping.since(Tick(now)), Some(TICK * (now - written)), "{written} {now}");
    }
    assert_eq!(Ping::NONE.since(Tick(9)), None);
}
