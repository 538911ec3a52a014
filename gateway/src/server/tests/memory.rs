//! What a connection keeps when nothing is under way.

use std::sync::mpsc;

use tidegate_reactor::Mail;
use tidegate_testkit::{DEADLINE, SseClient, eventually};

use super::rig::{Rig, config};
use crate::session::{Session, core::Command};

/// For each connection that has something rare: the subscriptions under way that it has room for.
fn rooms(rig: &Rig) -> Vec<usize> {
    let (tell, told) = mpsc::channel();
    let look = Command::Continue(Box::new(move |_, connections| {
        let ids = (0..connections.slots()).filter_map(|slot| connections.in_slot(slot));
        let open = ids.filter_map(|id| connections.get(id).and_then(Session::open));
        let rare = open.filter_map(|open| open.rare.as_ref());
        tell.send(rare.map(|rare| rare.unsettled.capacity()).collect()).unwrap();
    }));
    rig.dealer.door(0).mailbox.send(Mail::Command(look));
    told.recv_timeout(DEADLINE).unwrap()
}

#[test]
fn subscriptions_that_stand_leave_nothing_of_their_way_there() {
    let rig = Rig::start(config());
    let _stream = SseClient::connect(rig.address, "/sse?channel=a&channel=b&channel=c", None);
    eventually("all three stand", DEADLINE, || rooms(&rig) == [0]);
}
