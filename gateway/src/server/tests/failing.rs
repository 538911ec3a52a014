//! Which shard has a connection. One that fails: nobody new comes to it, the others go on until they are drained, the node
//! says so.

use std::{num::NonZeroUsize, sync::atomic::Ordering};

use futures_util::FutureExt;
use tidegate_reactor::Mail;
use tidegate_testkit::{DEADLINE, Received, WsClient, eventually};

use super::rig::{Rig, config};
use crate::{node::NotReadyReason, session::core::Command};

/// Whichever of them the kernel wakes.
#[test]
fn connections_are_spread_evenly_over_the_shards() {
    let mut config = config();
    config.shards = NonZeroUsize::new(4).unwrap();
    let rig = Rig::start(config);
    let clients: Vec<WsClient> = (0..40).map(|_| WsClient::connect(rig.address, "/ws?channel=a")).collect();
    let held = || [0, 1, 2, 3].map(|shard| rig.dealer.door(shard).connections.load(Ordering::Acquire));
    assert_eq!(held(), [10; 4]);
    drop(clients);
    eventually("their places are free", DEADLINE, || held() == [0; 4]);
}

#[test]
fn a_shard_that_panics_has_the_node_drain_and_takes_nobody_more() {
    let mut config = config();
    config.shards = NonZeroUsize::new(2).unwrap();
    let rig = Rig::start(config);
    let mut before: Vec<WsClient> = (0..4).map(|_| WsClient::connect(rig.address, "/ws?channel=a")).collect();
    assert_eq!(rig.node.readiness(), Ok(()));
    assert!(rig.node.drain_asked().now_or_never().is_none());

    let fail = Command::Continue(Box::new(|_, _| panic!("a shard fails, as this test asks")));
    rig.dealer.door(0).mailbox.send(Mail::Command(fail));
    rig.block_on(rig.node.drain_asked());
    let reasons = rig.node.readiness().unwrap_err().reasons;
    assert_eq!(reasons, [NotReadyReason::Draining, NotReadyReason::ShardFailed]);
    assert_eq!(rig.metric("tidegate_shards_failed "), 1.0);

    // Its own are cut, and their places are free; the others are served, and so is who comes while the node settles.
    eventually("the places of the failed shard are given back", DEADLINE, || rig.node.connections() == 2);
    let mut after: Vec<WsClient> = (0..4).map(|_| WsClient::connect(rig.address, "/ws?channel=a")).collect();
    rig.publish("a", "x");
    assert!(after.iter_mut().all(|client| client.expect_text() == "x"));
    let served = before
        .iter_mut()
        .map(|client| client.next(DEADLINE))
        .filter(|it| *it == Received::Text("x".into()))
        .count();
    assert_eq!(served, 2);
}
