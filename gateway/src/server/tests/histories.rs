//! Reads of history that subscribers share: who gets which, and in what order within the budget.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tidegate_backplane::Channel;

use super::rig::{Rig, config};
use crate::{
    config::ByteSize,
    node::histories::{Page, Reading},
    subscription::Read,
};

fn read(rig: &Rig, channel: &str, read: Read) -> Reading {
    rig.node.histories().read(&Channel::new(channel).unwrap(), read)
}

/// The page if it is there; asking drives the read.
fn page(reading: &Reading) -> Option<Arc<Page>> {
    reading.clone().now_or_never().map(Result::unwrap)
}

#[test]
fn who_asks_after_a_read_was_sent_gets_the_next_one() {
    let rig = Rig::start(config());
    let after = Read::Page(rig.publish("a", "1").unwrap());
    let gate = &rig.backplane.history;
    gate.shut();
    let first = read(&rig, "a", after);
    assert!(page(&first).is_none());
    let sent = gate.arrived();
    // It is not in the read that was sent, and who asks now may not have heard it.
    rig.publish("a", "2");
    let [second, third] = [(); 2].map(|()| read(&rig, "a", after));
    assert!(page(&second).is_none() && page(&third).is_none());
    assert_eq!(gate.arrived(), sent, "the next is sent when the first is back");
    gate.open();
    let publications = |reading: &Reading| page(reading).unwrap().history.publications.len();
    assert_eq!([&first, &second, &third].map(publications), [0, 1, 1]);
    let usage = rig.node.histories().usage();
    assert_eq!((usage.reads_sent, usage.reads_joined), (2, 1));
}

#[test]
fn reads_wait_for_the_budget_in_their_order() {
    let mut config = config();
    // Room for one page.
    config.limits.recovery_bytes = ByteSize::kib(1);
    let rig = Rig::start(config);
    let after = Read::Page(rig.publish("a", "1").unwrap());
    let usage = || rig.node.histories().usage();
    let held = page(&read(&rig, "a", after)).unwrap();
    assert_eq!(usage().bytes, usage().bytes_max);
    let [second, third] = ["b", "c"].map(|channel| read(&rig, channel, after));
    assert!(page(&second).is_none() && page(&third).is_none());
    assert_eq!(usage().reads_sent, 1);
    drop(held);
    assert!(page(&third).is_none(), "the second asked first");
    let held = page(&second).unwrap();
    assert!(page(&third).is_none());
    drop((held, second));
    assert!(page(&third).is_some());
    drop(third);
    assert_eq!(usage().bytes, 0);
}
