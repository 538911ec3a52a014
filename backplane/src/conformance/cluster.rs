//! Checks of the node registry and control.

use std::time::Duration;

use super::{Bench, Subject, eventually, unique};
use crate::{Control, NodeRecord, Target};

/// Nodes come in order of their names; an announcement replaces the one before; retiring takes it away.
pub async fn nodes_are_announced_and_retired(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let prefix = unique("node");
    let (a, b) = (record(&prefix, "a"), record(&prefix, "b"));
    bench.backplane.announce(b.clone()).await.expect("announce");
    bench.backplane.announce(a.clone()).await.expect("announce");
    assert_eq!(nodes(&bench, &prefix).await, [a.clone(), b.clone()]);

    let busy = NodeRecord { connections: 7, draining: true, zone: None, ..a };
    bench.backplane.announce(busy.clone()).await.expect("announce");
    assert_eq!(nodes(&bench, &prefix).await, [busy.clone(), b.clone()]);
    bench.backplane.retire(&b.name).await.expect("retire");
    bench.backplane.retire(&b.name).await.expect("retire twice");
    assert_eq!(nodes(&bench, &prefix).await, std::slice::from_ref(&busy));
    bench.backplane.retire(&busy.name).await.expect("retire");
    assert_eq!(nodes(&bench, &prefix).await, []);
}

/// Where records are leased, one that is not renewed goes and one that is stays.
pub async fn a_node_that_does_not_renew_vanishes(subject: &dyn Subject) {
    let Some(lease) = subject.node_lease() else { return };
    let bench = Bench::new(subject).await;
    let prefix = unique("lease");
    let (gone, kept) = (record(&prefix, "gone"), record(&prefix, "kept"));
    bench.backplane.announce(gone).await.expect("announce");
    subject.pass(lease + Duration::from_secs(1)).await;
    bench.backplane.announce(kept.clone()).await.expect("announce");
    let read = async || nodes(&bench, &prefix).await;
    eventually("the lease ends", read, |nodes| *nodes == [kept.clone()]).await;
    bench.backplane.retire(&kept.name).await.expect("retire");
}

/// An order reaches the node that gives it, too.
pub async fn control_reaches_the_own_sink(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let orders = [
        Control::Disconnect {
            target: Target::User { app: None, user: unique("user").into() },
            reason: "banned: ü".into(),
        },
        Control::Disconnect { target: Target::Connection(unique("connection").into()), reason: "".into() },
        Control::Watch { connections: vec![unique("connection").into()] },
        Control::Instruct {
            target: Target::User { app: None, user: unique("user").into() },
            text: "{}".into(),
        },
    ];
    for order in &orders {
        bench.backplane.control(order.clone()).await.expect("control");
    }
    // Others may give orders on the same server.
    let mut count = orders.len();
    loop {
        let received = bench.recorder.until_controls(count).await;
        let own: Vec<_> = received.iter().filter(|order| orders.contains(order)).cloned().collect();
        if own.len() >= orders.len() {
            assert_eq!(own, orders);
            break;
        }
        count = received.len() + 1;
    }
}

pub async fn health_is_good(subject: &dyn Subject) {
    assert_eq!(Bench::new(subject).await.backplane.health(), Ok(()));
}

pub(super) fn record(prefix: &str, name: &str) -> NodeRecord {
    NodeRecord {
        name: format!("{prefix}-{name}").into(),
        address: "[2001:db8::1]:8000".into(),
        zone: Some("zone-1".into()),
        version: "1.2.3".into(),
        connections: 1,
        capacity: 20_000,
        draining: false,
        handover: Some("m:1:2:/h".into()),
    }
}

/// The nodes of this check, among those that others may have announced.
async fn nodes(bench: &Bench, prefix: &str) -> Vec<NodeRecord> {
    let nodes = bench.backplane.nodes().await.expect("nodes");
    nodes.into_iter().filter(|node| node.name.starts_with(prefix)).collect()
}
