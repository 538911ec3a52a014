//! What placement costs and how well it spreads: `cargo run --release -p tidegate-router --example placement`. Each line is
//! a name and a number; `cargo xtask bench --group router` reads them.

use std::{hint::black_box, num::NonZeroU32, time::Instant};

use tidegate_router::placement::{LoadFactor, Member, View};

const NODES: u32 = 50;
const KEYS: u64 = 100_000;

fn main() {
    for nodes in [3, NODES, 1_000] {
        let view = View::new(members(nodes, alternating));
        let loads = vec![1_000u64; nodes as usize];
        let place =
            |i: u64| view.place(&i.to_le_bytes(), LoadFactor::DEFAULT, |index| loads[index]).is_some();
        let first = |i: u64| view.order(&i.to_le_bytes()).next().is_some();
        println!("first_us_{nodes} {:.3}", best_of(first));
        println!("place_us_{nodes} {:.3}", best_of(place));
    }
    println!("load_most {:.4}", load_most());
    println!("moved_most {:.4}", moved_most());
}

/// Microseconds per call, in the best of 20 rounds: the machine has other users.
fn best_of(call: impl Fn(u64) -> bool) -> f64 {
    const CALLS: u64 = 10_000;
    let round = || {
        let begin = Instant::now();
        let placed = (0..CALLS).filter(|&i| black_box(call(black_box(i)))).count();
        assert_eq!(placed as u64, CALLS);
        begin.elapsed().as_secs_f64() * 1e6 / CALLS as f64
    };
    (0..20).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// All keys placed one after the other on nodes of weight 1 and 2: the load of the fullest node, as a multiple of its
/// share by weight.
fn load_most() -> f64 {
    let view = View::new(members(NODES, alternating));
    let mut loads = vec![0u64; NODES as usize];
    for key in 0..KEYS {
        let placed = view.place(&key.to_le_bytes(), LoadFactor::DEFAULT, |index| loads[index]);
        loads[index_of(&view, placed)] += 1;
    }
    let share = |member: &Member| KEYS as f64 * f64::from(member.weight.get()) / view.weight_total() as f64;
    let multiples = view.members().iter().zip(&loads).map(|(member, &load)| load as f64 / share(member));
    multiples.fold(0.0, f64::max)
}

/// The part of all keys whose first node changes when a node of 50 equal ones leaves; of all that could leave, the one
/// that moves the most.
fn moved_most() -> f64 {
    let all = View::new(members(NODES, |_| NonZeroU32::MIN));
    let first = |view: &View, key: u64| {
        let placed = view.place(&key.to_le_bytes(), LoadFactor::DEFAULT, |_| 0);
        placed.map(|member| member.name.clone())
    };
    let firsts: Vec<Option<Box<str>>> = (0..KEYS).map(|key| first(&all, key)).collect();
    let moved = |gone: &Member| {
        let rest = View::new(all.members().iter().filter(|member| *member != gone).cloned());
        let changed = (0..KEYS).zip(&firsts).filter(|(key, before)| first(&rest, *key) != **before);
        changed.count() as f64 / KEYS as f64
    };
    all.members().iter().map(moved).fold(0.0, f64::max)
}

fn members(nodes: u32, weight: impl Fn(u32) -> NonZeroU32) -> impl Iterator<Item = Member> {
    (0..nodes).map(move |i| Member {
        name: format!("gateway-{i}.gateway.live.svc.cluster.local").into(),
        address: format!("10.0.{}.{}:8000", i / 256, i % 256).into(),
        weight: weight(i),
        draining: false,
    })
}

/// 1 and 2 in turn.
fn alternating(i: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(i % 2)
}

fn index_of(view: &View, placed: Option<&Member>) -> usize {
    let placed = placed.expect("a node takes clients");
    view.members().iter().position(|member| member == placed).expect("a member of the view")
}
