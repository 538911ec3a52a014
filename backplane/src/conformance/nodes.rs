//! Checks of several nodes of one cluster; nothing to check where each node is a cluster of its own.

use std::time::Duration;

use super::{
    AGE_LONG, Bench, DEADLINE, Subject, eventually, offsets, policy, text, texts, unique, unique_channel,
};
use crate::{Control, Published, REPORT_LEASE, Target};

/// What either node publishes reaches both, in one order, and is in the history that either reads.
pub async fn publications_reach_all_nodes_in_one_order(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("nodes");
    for bench in [&a, &b] {
        bench.subscribe(&channel, 1).await;
    }
    let publish = async |bench: &Bench, label: &str| {
        for number in 0..200 {
            let draft = text(&channel, &format!("{label}{number}")).with_history(policy(1000, AGE_LONG));
            bench.publish(draft.0).await;
        }
    };
    futures_util::join!(publish(&a, "a"), publish(&b, "b"));
    let expected: Vec<u64> = (1..=400).collect();
    let of_a = a.recorder.until_publications(&channel, 400).await;
    let of_b = b.recorder.until_publications(&channel, 400).await;
    assert_eq!(offsets(&of_a), expected);
    assert_eq!(of_a, of_b);
    for bench in [&a, &b] {
        assert_eq!(bench.history(&channel, None, 1000).await.publications, of_a);
        assert!(bench.recorder.gaps().is_empty());
    }
}

/// Without history, each publisher's order holds on the other node.
pub async fn publications_without_history_reach_the_other_node(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("nodes-plain");
    b.subscribe(&channel, 1).await;
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    for payload in &expected {
        a.publish(text(&channel, payload).0).await;
    }
    assert_eq!(texts(&b.recorder.until_publications(&channel, 200).await), expected);
}

/// A key that was used on one node is known on the other.
pub async fn a_key_counts_on_all_nodes(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("nodes-key");
    for history in [None, Some(policy(10, AGE_LONG))] {
        let mut draft = text(&channel, "a").with_key(if history.is_some() { "with" } else { "without" });
        draft.0.history = history;
        let first = a.publish(draft.0.clone()).await;
        assert_eq!(b.publish(draft.0).await, Published { duplicate: true, ..first });
    }
}

/// An order given on one node is handed to all.
pub async fn control_reaches_all_nodes(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let order = Control::Disconnect {
        target: Target::User { app: None, user: unique("user").into() },
        reason: "all nodes".into(),
    };
    a.backplane.control(order.clone()).await.expect("control");
    for bench in [&a, &b] {
        let received = async || bench.recorder.until_controls(1).await;
        // Others may give orders on the same server.
        eventually("the order arrives", received, |orders| orders.contains(&order)).await;
    }
}

/// Each node sees what the other one says of itself.
pub async fn a_record_is_read_by_all_nodes(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let record = super::cluster::record(&unique("nodes"), "a");
    a.backplane.announce(record.clone()).await.expect("announce");
    assert!(b.backplane.nodes().await.expect("nodes").contains(&record));
    a.backplane.retire(&record.name).await.expect("retire");
    assert!(!b.backplane.nodes().await.expect("nodes").contains(&record));
}

/// Each node reads what the other one says to those who watch, until that is too long ago.
pub async fn reports_are_read_by_all_nodes(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let (name, silent) = (unique("report"), unique("silent"));
    let names = [silent.as_str().into(), name.as_str().into()];
    assert_eq!(b.backplane.reports(&names).await, Ok(vec![None, None]));
    for report in ["{}", "{\"v\":1}"] {
        a.backplane.report(&name, report.to_owned()).await.expect("report");
        assert_eq!(b.backplane.reports(&names).await, Ok(vec![None, Some(report.as_bytes().to_vec())]));
    }
    assert_eq!(b.backplane.reports(&[]).await, Ok(vec![]));
    subject.pass(REPORT_LEASE + Duration::from_secs(1)).await;
    let read = async || b.backplane.reports(&names).await;
    let ended = eventually("the report ends", read, |reports| *reports == Ok(vec![None, None])).await;
    assert!(ended.is_ok());
}

pub(super) async fn pair(subject: &dyn Subject) -> Option<[Bench; 2]> {
    if !subject.shares_nodes() {
        return None;
    }
    let both = async { [Bench::new(subject).await, Bench::new(subject).await] };
    Some(tokio::time::timeout(DEADLINE, both).await.expect("two nodes connect"))
}
