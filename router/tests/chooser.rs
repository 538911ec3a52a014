//! The chooser: order of candidates under load and refusals, claims, reports, changes of members.
#![allow(clippy::unwrap_used)]

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_router::{
    Chooser, Node,
    chooser::{Observed, PassedOver},
    placement::{LOAD_FLOOR, LoadFactor, Member},
};

fn observed(name: &str, connections: Option<u64>) -> Observed {
    Observed {
        member: Member {
            name: name.into(),
            address: format!("{name}:8000").into(),
            weight: NonZeroU32::MIN,
            draining: false,
        },
        is_down: false,
        is_lost: false,
        socket: "127.0.0.1:8000".parse().unwrap(),
        connections,
        capacity: None,
        handover: None,
    }
}

fn chooser(connections: &[(&str, Option<u64>)]) -> Chooser {
    let chooser = Chooser::new(LoadFactor::DEFAULT);
    assert!(chooser.update(connections.iter().map(|(name, load)| observed(name, *load)).collect()));
    chooser
}

fn order(chooser: &Chooser, key: &str, now: Instant) -> Vec<Arc<Node>> {
    chooser.candidates(key.as_bytes(), now).collect()
}

fn names(nodes: &[Arc<Node>]) -> Vec<String> {
    nodes.iter().map(|node| node.name().to_owned()).collect()
}

const THREE: [(&str, Option<u64>); 3] = [("a", None), ("b", None), ("c", None)];

#[test]
fn candidates_are_every_live_node_once() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    for i in 0..100 {
        let mut names = names(&order(&chooser, &format!("key-{i}"), now));
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
    }
    let mut draining = observed("b", None);
    draining.member.draining = true;
    assert!(chooser.update(vec![observed("a", None), draining.clone()]));
    assert_eq!(names(&order(&chooser, "key", now)), ["a"]);
    assert_eq!(chooser.members().len(), 2);
    assert!(chooser.update(vec![draining]));
    assert!(!chooser.has_live() && order(&chooser, "key", now).is_empty());
}

/// One that is asked to come back has another port then, and would go anywhere by that.
#[test]
fn who_has_no_key_is_brought_to_a_node_with_no_more_than_its_share() {
    let now = Instant::now();
    let chooser = chooser(&[("a", Some(500)), ("b", Some(450)), ("c", Some(100))]);
    for port in 0..100 {
        let mut candidates = chooser.candidates_anywhere(format!("127.0.0.1:{port}").as_bytes(), now);
        assert_eq!((candidates.next().unwrap().name(), candidates.passed_over()), ("c", None));
        assert_eq!(candidates.count(), 2, "the others are asked where it refuses");
    }
}

/// One key fills its first node up to the bound, then its second.
#[test]
fn claims_are_load() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    let mut claims = Vec::new();
    for _ in 0..300 {
        claims.push(chooser.candidates(b"room", now).next().unwrap().claim(now));
    }
    let mut loads: Vec<u64> = chooser.members().iter().map(|(_, node)| node.claims()).collect();
    loads.sort_unstable();
    assert_eq!(loads, [50, 125, 125], "ceil(1.25 * 300 / 3) = 125");
    drop(claims);
    assert!(chooser.members().iter().all(|(_, node)| node.claims() == 0 && node.load() == 0));
    let mut candidates = chooser.candidates(b"room", now);
    assert!(candidates.next().is_some() && candidates.passed_over().is_none());
}

#[test]
fn reports_and_what_they_cannot_have_yet() {
    let now = Instant::now();
    let chooser = chooser(&[("a", Some(1000)), ("b", Some(10))]);
    let claims: Vec<_> = (0..5).map(|_| chooser.members()[1].1.claim(now)).collect();
    let load = |index: usize| chooser.members()[index].1.load();
    assert_eq!((load(0), load(1)), (1000, 15));
    let mut full = 0;
    for i in 0..50 {
        let mut candidates = chooser.candidates(format!("key-{i}").as_bytes(), now);
        assert_eq!(candidates.next().unwrap().name(), "b");
        full += usize::from(candidates.passed_over() == Some(PassedOver::Full));
        assert_eq!(candidates.next().unwrap().name(), "a", "over its bound, but better than nothing");
    }
    assert!((10..40).contains(&full), "{full} keys belong to a");
    chooser.tick();
    assert_eq!(load(1), 15, "one tick is too early to be sure that the report has them");
    assert!(
        !chooser.update(vec![observed("a", Some(1000)), observed("b", Some(15))]),
        "the view is the same"
    );
    chooser.tick();
    assert_eq!(load(1), 15, "now the report has them");
    drop(claims);
    assert_eq!(load(1), 10, "what has gone is no load, before the report says so");
    chooser.members()[1].1.note_assigned();
    assert_eq!(load(1), 11);
}

/// A router that took over has clients that the node has reported (or, where it reports none, that it counts itself), and some
/// that were placed a moment ago.
#[test]
fn who_was_connected_before_is_counted_once() {
    for (reported, before) in [(Some(10), 10), (None, 2)] {
        let chooser = chooser(&[("a", reported)]);
        let node = Arc::clone(&chooser.members()[0].1);
        let claims: Vec<_> = (0..2).map(|_| node.claim_reported()).collect();
        assert_eq!((node.load(), node.claims()), (before, 2));
        node.note_recent(3);
        assert_eq!((node.load(), node.recent()), (before + 3, 3));
        drop(claims);
        assert_eq!((node.load(), node.claims()), (before + 1, 0), "they have left, and no report says so");
    }
}

#[test]
fn who_refuses_comes_last_for_a_while() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    let before = order(&chooser, "key", now);
    before[0].claim(now).refused(now, now);
    assert_eq!(before[0].claims(), 0);
    let mut candidates = chooser.candidates(b"key", now);
    assert_eq!(candidates.next().unwrap().name(), before[1].name());
    assert_eq!(candidates.passed_over(), Some(PassedOver::Avoided));
    assert_eq!(candidates.map(|node| node.name().to_owned()).last().unwrap(), before[0].name());
    let later = now + Duration::from_millis(1_001);
    assert_eq!(names(&order(&chooser, "key", later)), names(&before), "over");

    let trial = before[0].claim(later);
    assert_eq!(
        order(&chooser, "key", later)[0].name(),
        before[1].name(),
        "one client tries, the others wait"
    );
    trial.refused(later, later);
    let still = later + Duration::from_millis(1_999);
    assert_eq!(order(&chooser, "key", still)[0].name(), before[1].name(), "twice as long");
    let late = later + Duration::from_millis(2_001);
    let trial = before[0].claim(late);
    trial.connected();
    assert_eq!(names(&order(&chooser, "key", late)), names(&before), "it is trusted again");
}

#[test]
fn all_refuse() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    for node in order(&chooser, "key", now) {
        node.claim(now).refused(now, now);
    }
    assert_eq!(order(&chooser, "key", now).len(), 3, "still worth a try");
}

/// A node that comes back under its name elsewhere is the same node, but has refused nobody.
#[test]
fn a_node_moves() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    let (_, node) = chooser.members().remove(0);
    let claim = node.claim(now);
    node.claim(now).refused(now, now);
    assert!(node.is_avoided(now));
    let mut moved = observed("a", None);
    moved.socket = "127.0.0.2:8000".parse().unwrap();
    moved.member.address = "a:9000".into();
    assert!(chooser.update(vec![moved, observed("b", None), observed("c", None)]));
    let (_, same) = chooser.members().remove(0);
    assert!(Arc::ptr_eq(&node, &same) && !node.is_avoided(now));
    assert_eq!((node.claims(), &*node.location().address), (1, "a:9000"));
    assert_eq!(node.socket().to_string(), "127.0.0.2:8000");
    drop(claim);
}

/// Another address behind the same name and `HOST:PORT` changes where to connect, not the view.
#[test]
fn a_name_resolves_anew() {
    let chooser = chooser(&THREE);
    let digest = chooser.digest();
    let mut moved = observed("a", None);
    moved.socket = "127.0.0.2:8000".parse().unwrap();
    assert!(!chooser.update(vec![moved, observed("b", None), observed("c", None)]));
    assert_eq!(chooser.digest(), digest);
    assert_eq!(chooser.members()[0].1.socket().to_string(), "127.0.0.2:8000");
}

/// Many threads claim and drop: nothing is lost or left.
#[test]
fn claims_from_many_threads() {
    let chooser = chooser(&THREE);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let chooser = &chooser;
            scope.spawn(move || {
                let now = Instant::now();
                let mut held = Vec::new();
                for i in 0..2_000 {
                    let key = format!("{thread}-{i}");
                    held.push(chooser.candidates(key.as_bytes(), now).next().unwrap().claim(now));
                    if i % 3 == 0 {
                        drop(held.swap_remove(i % held.len()));
                    }
                    if i % 500 == 0 {
                        chooser.tick();
                    }
                }
                assert!(held.len() as u64 > LOAD_FLOOR);
            });
        }
    });
    chooser.tick();
    assert!(chooser.members().iter().all(|(_, node)| node.load() == 0));
}

/// What a node that is gone loses was no part of the total any more: the others are not over their bounds for it.
#[test]
fn the_bound_is_right_while_a_lost_node_is_cut() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    let claims = |index: usize, count| -> Vec<_> {
        let (_, node) = chooser.members().remove(index);
        (0..count).map(|_| node.claim(now)).collect()
    };
    let (_full, _free, lost) = (claims(0, 200), claims(1, 100), claims(2, 300));
    assert!(chooser.update(vec![observed("a", None), observed("b", None)]));
    drop(lost);
    // 1.25 * 301 / 2 = 188: a has more, b has less. A total of 0 would have both over the floor of 64.
    for i in 0..50 {
        assert_eq!(order(&chooser, &format!("key-{i}"), now)[0].name(), "b");
    }
    // A node that is back counts with what it has.
    assert!(chooser.update(THREE.iter().map(|(name, load)| observed(name, *load)).collect()));
    let _more = claims(2, 10);
    assert_eq!(order(&chooser, "key", now).len(), 3);
    assert_eq!(order(&chooser, "key", now)[2].name(), "a");
}

#[test]
fn who_has_as_many_as_it_takes_comes_last() {
    let now = Instant::now();
    let chooser = Chooser::new(LoadFactor::DEFAULT);
    let node = |name, connections, capacity| Observed {
        capacity: Some(capacity),
        ..observed(name, Some(connections))
    };
    assert!(chooser.update(vec![node("a", 10, 10), node("b", 50, 100), node("c", 9, 10)]));
    for i in 0..50 {
        let order = names(&order(&chooser, &format!("key-{i}"), now));
        assert_eq!(order[2], "a", "{order:?}");
    }
    let claim = chooser.members()[2].1.claim(now);
    let last = |key: &str| order(&chooser, key, now)[0].name().to_owned();
    assert!((0..50).all(|i| last(&format!("key-{i}")) == "b"), "what is placed counts before it is reported");
    drop(claim);
}

#[test]
fn failures_at_the_same_time_are_one_failure() {
    let now = Instant::now();
    let chooser = chooser(&THREE);
    let (_, node) = chooser.members().remove(0);
    let asked = now + Duration::from_millis(10);
    let trials: Vec<_> = (0..20).map(|_| node.claim(asked)).collect();
    let failed = now + Duration::from_millis(20);
    trials.into_iter().for_each(|trial| trial.refused(asked, failed));
    assert!(node.is_avoided(failed + Duration::from_millis(999)));
    assert!(!node.is_avoided(failed + Duration::from_millis(1_001)), "as after one");
}
