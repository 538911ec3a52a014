//! Single stories, and a simulator that plays faults of a registry and of nodes under a seed.

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { failures: 2, cut_after: Duration::from_secs(10) };

fn s(seconds: u64) -> At {
    Duration::from_secs(seconds)
}

fn named(names: &[&str]) -> Vec<Listed<()>> {
    let listed = |name: &&str| {
        let (name, draining) = name.strip_suffix('*').map_or((*name, false), |name| (name, true));
        Listed { name: name.into(), data: (), draining, renewed: true }
    };
    names.iter().map(listed).collect()
}

/// `a` is live, `a-` leaves, `a!` is down, `a#` is lost.
fn shown(membership: &mut Membership<()>, now: At) -> String {
    let sign = |standing| match standing {
        Standing::Live => "",
        Standing::Leaving => "-",
        Standing::Down => "!",
        Standing::Lost => "#",
    };
    let all = membership.decide(now);
    all.iter().map(|(name, _, standing)| format!("{name}{}", sign(*standing))).collect::<Vec<_>>().join(" ")
}

/// Answers of a registry, one a second; `None`: it cannot be read. Nodes that are `silent` do not answer us.
#[track_caller]
fn registry(answers: &[(Option<&[&str]>, &str)], silent: &[&str]) {
    let mut membership = Membership::new(RULES);
    for (second, (answer, expect)) in (0..).zip(answers) {
        match answer {
            Some(names) => membership.listed(s(second), named(names), true),
            None => membership.unreadable(),
        }
        look(&mut membership, s(second), |name| !silent.contains(&name));
        assert_eq!(shown(&mut membership, s(second)), *expect, "second {second}");
    }
}

/// Checks whom the source says nothing good of.
fn look(membership: &mut Membership<()>, now: At, answers: impl Fn(&str) -> bool) {
    let doubtful: Vec<String> = membership.doubtful(now).map(|(name, ())| name.to_owned()).collect();
    for name in doubtful {
        membership.checked(now, &name, if answers(&name) { Found::Healthy } else { Found::Failed });
    }
}

const ALL: &[&str] = &["a", "b", "c"];
const NOBODY: &[&str] = &[];

#[test]
fn a_node_that_neither_its_source_nor_we_hear_of_is_lost() {
    let two: &[&str] = &["a", "b"];
    registry(
        &[(Some(ALL), "a b c"), (Some(two), "a b c-"), (Some(two), "a b"), (Some(ALL), "a b c")],
        &["c"],
    );
    registry(
        &[(Some(ALL), "a b c"), (Some(two), "a b c-"), (Some(ALL), "a b c"), (Some(two), "a b c-")],
        &["c"],
    );
}

#[test]
fn a_node_that_only_we_hear_of_keeps_its_clients_for_a_while() {
    let mut story = vec![(Some(ALL), "a b c")];
    story.extend([(Some(&["a", "b"][..]), "a b c-"); 20]);
    story.push((Some(&["a", "b"]), "a b"));
    registry(&story, &[]);
}

/// It is cut off from its source, as it says: its lease was patience enough.
#[test]
fn a_node_that_says_that_it_serves_nobody_is_lost_with_its_lease() {
    let mut membership = Membership::new(RULES);
    membership.listed(s(0), named(ALL), true);
    membership.listed(s(1), named(&["a", "b"]), true);
    assert_eq!(shown(&mut membership, s(1)), "a b c-");
    membership.checked(s(1), "c", Found::Refusing);
    assert_eq!(shown(&mut membership, s(1)), "a b");
    // One that has announced itself again is believed, whatever it said before.
    let mut membership = Membership::new(RULES);
    membership.listed(s(0), named(ALL), true);
    let late = || named(ALL).into_iter().map(|listed| Listed { renewed: false, ..listed }).collect();
    membership.listed(s(1), late(), true);
    membership.checked(s(4), "c", Found::Refusing);
    assert_eq!(shown(&mut membership, s(4)), "a b c-");
    membership.listed(s(5), named(ALL), true);
    assert_eq!(shown(&mut membership, s(5)), "a b c");
    // Where nearly all say so, it is Redis that is away.
    membership.listed(s(6), named(NOBODY), true);
    ALL.iter().for_each(|name| membership.checked(s(6), name, Found::Refusing));
    assert_eq!(shown(&mut membership, s(60)), "a b c");
}

#[test]
fn a_node_that_drained_leaves_at_once() {
    registry(&[(Some(&["a", "b*"]), "a b-"), (Some(&["a"]), "a")], &[]);
}

/// An outage of any length: what counts is the first answer after it that lacks the node.
#[test]
fn after_an_outage_everybody_has_time_to_come_back() {
    let mut story = vec![(Some(ALL), "a b c")];
    story.extend([(None, "a b c"); 20]);
    story.extend([(Some(NOBODY), "a b c"), (Some(&["b"]), "a b c"), (Some(&["b"]), "a b c")]);
    story.extend([(None, "a b c"); 20]);
    story.extend([(Some(&["b"][..]), "a b c"); 3]);
    story.extend([(Some(ALL), "a b c"), (Some(&["a", "b"]), "a b c")]);
    registry(&story, ALL);
}

/// Leases end while nothing can be written; the registry is read well all the time.
#[test]
fn a_registry_without_writes_loses_nobody() {
    let mut story = vec![(Some(ALL), "a b c")];
    story.extend([(Some(NOBODY), "a b c"); 60]);
    story.extend([(Some(&["b"][..]), "a b c"), (Some(&["b"]), "a b c"), (Some(ALL), "a b c")]);
    registry(&story, &[]);
}

#[test]
fn who_does_not_come_back_after_an_outage_is_lost_later() {
    let mut story = vec![(Some(ALL), "a b c"), (None, "a b c")];
    story.extend([(Some(&["a", "b"][..]), "a b c"); 5]);
    story.push((Some(&["a", "b"]), "a b"));
    registry(&story, &["c"]);
}

/// Checks of listed nodes, one a second: `+` healthy, `-` failed, `r` refusing, `?` not made.
#[track_caller]
fn checks(rounds: &[(&str, &str)]) {
    let mut membership = Membership::new(RULES);
    for (second, (outcomes, expect)) in (0..).zip(rounds) {
        let names = ["a", "b", "c", "d"];
        membership.listed(s(second), named(&names[..outcomes.len()]), false);
        for (name, outcome) in names.iter().zip(outcomes.chars()) {
            let found = match outcome {
                '+' => Found::Healthy,
                '-' => Found::Failed,
                'r' => Found::Refusing,
                _ => Found::Nothing,
            };
            membership.checked(s(second), name, found);
        }
        assert_eq!(shown(&mut membership, s(second)), *expect, "second {second}");
    }
}

#[test]
fn two_failed_checks_take_new_clients_away_and_ten_seconds_of_them_all() {
    let mut story = vec![("+++", "a b c"), ("-++", "a b c")];
    story.extend([("-++", "a! b c"); 9]);
    story.extend([("-++", "a# b c"), ("+++", "a b c"), ("-++", "a b c"), ("+++", "a b c")]);
    checks(&story);
}

#[test]
fn the_first_check_decides_at_once() {
    checks(&[("-+?", "a! b c"), ("++-", "a b c!"), ("r++", "a- b c")]);
}

#[test]
fn when_all_look_down_nobody_is() {
    let mut story = vec![("+++", "a b c")];
    story.extend([("---", "a b c"); 60]);
    story.extend([("+--", "a b# c#"), ("+++", "a b c")]);
    checks(&story);
    checks(&[("+++r", "a b c d-"), ("---r", "a b c d-"), ("---r", "a! b! c! d-")]);
}

#[test]
fn what_is_not_checked_says_nothing() {
    let mut story = vec![("+++", "a b c")];
    story.extend([("???", "a b c"); 60]);
    checks(&story);
}

/// Two observers: its registry has heard nothing of it for 3 s, and it does not answer us.
#[test]
fn a_node_that_is_cut_off_from_everybody_is_lost_before_its_lease_ends() {
    let mut membership = Membership::new(RULES);
    let mut lost = None;
    for second in 0..10 {
        let listed = named(&["a", "b"]).into_iter();
        let renewed = |name: &str| name != "b" || second == 0;
        let listed = listed.map(|one| Listed { renewed: renewed(&one.name), ..one }).collect();
        membership.listed(s(second), listed, true);
        let doubtful: Vec<String> =
            membership.doubtful(s(second)).map(|(name, ())| name.to_owned()).collect();
        for name in doubtful {
            assert_eq!(name, "b");
            membership.checked(s(second), &name, Found::Failed);
        }
        let is_lost = membership.decide(s(second)).iter().any(|(_, _, standing)| *standing == Standing::Lost);
        lost = lost.or(is_lost.then_some(second));
    }
    // Silent from second 1 on: late at 4, checked at 4 and 5.
    assert_eq!(lost, Some(5));
}

const LEASE: u64 = 10;

/// Seconds that a node may need to announce itself again after the registry works again.
const RECONNECT: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Registry {
    Works,
    /// Out of reach for all.
    Away,
    /// Read, not written.
    Frozen,
}

#[derive(Debug)]
struct Node {
    name: String,
    alive: bool,
    /// Reaches neither the registry nor the router.
    cut_off: bool,
    /// When it is able to announce itself again.
    announces_at: u64,
    lease_end: u64,
    announced: bool,
    /// It has announced itself since it began.
    known: bool,
    dead_since: u64,
}

/// The truth, beside what the membership believes.
struct World {
    dice: Rng,
    now: u64,
    registry: Registry,
    fault_ends: u64,
    nodes: Vec<Node>,
    membership: Membership<()>,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Rng::with_seed(seed);
        let nodes = (0..2 + dice.u64(..6)).map(|number| Node::new(format!("n{number}"), 0)).collect();
        let (registry, membership, story) = (Registry::Works, Membership::new(RULES), Vec::new());
        Self { dice, now: 0, registry, fault_ends: 0, nodes, membership, story }
    }

    fn step(&mut self, faults: bool) {
        self.now += 1;
        if self.registry != Registry::Works && self.now >= self.fault_ends {
            self.tell("the registry works");
            self.registry = Registry::Works;
            let now = self.now;
            for node in &mut self.nodes {
                node.announces_at = now + self.dice.u64(..RECONNECT + 1);
            }
        }
        if faults {
            self.fault();
        }
        self.announce();
        self.round();
        self.judge();
    }

    fn fault(&mut self) {
        let now = self.now;
        match self.dice.u64(..120) {
            kind @ 0..3 if self.registry == Registry::Works => {
                self.fault_ends = now + 1 + self.dice.u64(..40);
                self.registry = if kind == 2 { Registry::Frozen } else { Registry::Away };
                self.tell(&format!("{:?} until {}", self.registry, self.fault_ends));
                if kind == 1 {
                    self.tell("and it comes back empty");
                    self.nodes.iter_mut().for_each(|node| node.lease_end = 0);
                }
            }
            3 | 4 if self.nodes.iter().filter(|node| node.is_good()).count() > 1 => {
                let at = self.pick();
                let kills = self.dice.u64(..2) == 0;
                let node = &mut self.nodes[at];
                node.dead_since = now;
                if kills {
                    node.alive = false;
                } else {
                    node.cut_off = true;
                }
                let what = format!("{} {}", node.name, if kills { "dies" } else { "is cut off" });
                self.tell(&what);
            }
            5 | 6 => {
                let at = self.pick();
                let announces_at = now + self.dice.u64(..RECONNECT + 1);
                let node = &mut self.nodes[at];
                if !node.is_good() {
                    *node =
                        Node { announces_at, lease_end: node.lease_end, ..Node::new(node.name.clone(), now) };
                    let what = format!("{} is back", node.name);
                    self.tell(&what);
                }
            }
            _ => {}
        }
    }

    fn pick(&mut self) -> usize {
        self.dice.usize(..self.nodes.len())
    }

    fn announce(&mut self) {
        let (now, works) = (self.now, self.registry == Registry::Works);
        for node in &mut self.nodes {
            node.announced = works && node.is_good() && now >= node.announces_at;
            if node.announced {
                (node.lease_end, node.known) = (now + LEASE, true);
            }
        }
    }

    fn round(&mut self) {
        let now = self.now;
        if self.registry == Registry::Away {
            return self.membership.unreadable();
        }
        let leased = self.nodes.iter().filter(|node| node.lease_end > now);
        let listed = leased.map(|node| Listed {
            name: node.name.as_str().into(),
            data: (),
            draining: false,
            renewed: node.announced,
        });
        self.membership.listed(s(now), listed.collect(), true);
        let nodes = &self.nodes;
        look(&mut self.membership, s(now), |name| {
            nodes.iter().any(|node| node.name == name && node.is_good())
        });
    }

    fn judge(&mut self) {
        let now = self.now;
        let decisions = self.membership.decide(s(now));
        let of = |node: &Node| decisions.iter().find(|(name, ..)| *name == node.name).map(|found| found.2);
        for node in &self.nodes {
            let standing = of(node);
            // Whatever the registry does: who is well and was heard of is not cut, and gets clients while its lease holds.
            if node.is_good() && node.known {
                let is_right = match standing {
                    Some(Standing::Live) => true,
                    Some(Standing::Leaving) => node.lease_end <= now,
                    _ => false,
                };
                assert!(is_right, "{} at {now} is {standing:?}: {:#?}", node.name, self.story);
            }
            // Its clients get nothing any more: they are cut, while the others are well.
            let others_fine =
                self.nodes.iter().filter(|other| other.is_good()).count() * 4 > self.nodes.len();
            let quiet = self.registry == Registry::Works
                && now > self.fault_ends + LEASE + RECONNECT + 10
                && now > node.dead_since + 2 * LEASE + RECONNECT;
            if !node.is_good() && quiet && others_fine {
                assert!(
                    matches!(standing, None | Some(Standing::Lost)),
                    "{} at {now} is {standing:?}: {:#?}",
                    node.name,
                    self.story
                );
            }
        }
    }

    fn tell(&mut self, what: &str) {
        self.story.push(format!("{}: {what}", self.now));
    }
}

impl Node {
    fn new(name: String, now: u64) -> Self {
        Self {
            name,
            alive: true,
            cut_off: false,
            announces_at: now,
            lease_end: 0,
            announced: false,
            known: false,
            dead_since: 0,
        }
    }

    fn is_good(&self) -> bool {
        self.alive && !self.cut_off
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// 300 seconds of faults, then 60 of peace in which everything must become right.
    #[test]
    fn nobody_who_is_well_is_cut_and_nobody_who_is_gone_stays(seed in 1u64..) {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step(true);
        }
        for _ in 0..60 {
            world.step(false);
        }
    }
}
