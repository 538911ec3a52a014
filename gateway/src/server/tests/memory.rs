//! What a connection keeps when nothing is under way.

use std::sync::mpsc;

use tidegate_reactor::Mail;
use tidegate_testkit::{DEADLINE, SseClient, WsClient, eventually};

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

#[test]
fn an_idle_client_of_centrifugo_keeps_nothing() {
    let rig = Rig::start(config());
    rig.publish("a", "1");
    let mut client = WsClient::connect(rig.address, "/connection/websocket");
    client.send_text("{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"plain:a\"}}");
    assert_eq!([client.expect_json()["id"].take(), client.expect_json()["id"].take()], [1, 2]);
    assert_eq!(rooms(&rig), Vec::<usize>::new());
    client.send_text("{\"id\":3,\"subscribe\":{\"channel\":\"a\"}}");
    assert_eq!(client.expect_json()["id"], 3);
    eventually("the last subscription stands", DEADLINE, || rooms(&rig).is_empty());
}
