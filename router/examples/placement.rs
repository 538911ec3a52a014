//! How long one placement takes: `cargo run --release -p tidegate-router --example placement`.

use std::{hint::black_box, num::NonZeroU32, time::Instant};

use tidegate_router::placement::{LoadFactor, Member, View};

fn main() {
    for nodes in [3u32, 50, 1_000] {
        let view = View::new((0..nodes).map(|i| Member {
            name: format!("gateway-{i}.gateway.live.svc.cluster.local").into(),
            address: format!("10.0.{}.{}:8000", i / 256, i % 256).into(),
            weight: NonZeroU32::MIN.saturating_add(i % 2),
            draining: false,
        }));
        let loads = vec![1_000u64; nodes as usize];
        let place =
            |i: u64| view.place(&i.to_le_bytes(), LoadFactor::DEFAULT, |index| loads[index]).is_some();
        let order = |i: u64| view.order(&i.to_le_bytes()).next().is_some();
        println!(
            "{nodes:5} nodes: first of the order {:5.0} ns, place {:5.0} ns",
            best_of(order),
            best_of(place)
        );
    }
}

/// Nanoseconds per call, in the best of 20 rounds: the machine has other users.
fn best_of(call: impl Fn(u64) -> bool) -> f64 {
    const CALLS: u64 = 10_000;
    let round = || {
        let begin = Instant::now();
        let placed = (0..CALLS).filter(|&i| black_box(call(black_box(i)))).count();
        assert_eq!(placed as u64, CALLS);
        begin.elapsed().as_nanos() as f64 / CALLS as f64
    };
    (0..20).map(|_| round()).fold(f64::INFINITY, f64::min)
}
