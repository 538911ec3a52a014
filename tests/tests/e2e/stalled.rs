//! A gateway that stands still for longer than its clients have for an answer blames none of them for it.

use std::time::Duration;

use tidegate_testkit::{DEADLINE, Gateway, RawTcp, Stop, masked_frame};

const HEARTBEAT: &str = "[heartbeat]\ninterval = \"2s\"\ntimeout = \"3s\"\n";

/// What a protocol pings with, and how it is answered.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Pings of WebSocket.
    Raw,
    Pusher,
    /// Empty replies, answered with empty commands.
    Centrifuge,
}

fn open(gateway: &Gateway, kind: Kind) -> RawTcp {
    let path = match kind {
        Kind::Raw => "/ws?channel=news",
        Kind::Pusher => "/app/dev-key?protocol=7",
        Kind::Centrifuge => "/connection/websocket",
    };
    let mut client = RawTcp::upgraded(gateway.public(), path);
    match kind {
        Kind::Raw => return client,
        Kind::Pusher => {}
        Kind::Centrifuge => client.send(&masked_frame(0x81, br#"{"id":1,"connect":{}}"#)),
    }
    let (opcode, greeting) = client.read_frame(DEADLINE).unwrap();
    assert_eq!(opcode, 0x81, "{}", String::from_utf8_lossy(&greeting));
    client
}

/// Reads until the ping; what answers it.
fn pinged(client: &mut RawTcp, kind: Kind) -> Vec<u8> {
    let (opcode, payload) = client.read_frame(DEADLINE).unwrap();
    match kind {
        Kind::Centrifuge => {
            assert_eq!((opcode, payload.as_slice()), (0x81, b"{}".as_slice()));
            masked_frame(0x81, b"{}")
        }
        Kind::Raw | Kind::Pusher => {
            assert_eq!(opcode, 0x89, "{}", String::from_utf8_lossy(&payload));
            masked_frame(0x8A, &payload)
        }
    }
}

#[test]
fn a_gateway_that_stood_still_cuts_nobody_who_answers() {
    let mut gateway = Gateway::builder().config(HEARTBEAT).start();
    let other = Gateway::builder().config(HEARTBEAT).start();
    let kinds = [Kind::Raw, Kind::Pusher, Kind::Centrifuge];
    let mut clients: Vec<(Kind, RawTcp)> =
        kinds.iter().cycle().take(60).map(|&kind| (kind, open(&gateway, kind))).collect();
    let mut answers: Vec<Vec<u8>> = clients.iter_mut().map(|(kind, client)| pinged(client, *kind)).collect();
    gateway.process().signal(Stop::Freeze);
    // Half of them answer while it stands still; the others are as late as it is.
    let late = answers.split_off(30);
    for ((_, client), answer) in clients.iter_mut().zip(&answers) {
        client.send(answer);
    }
    // Long enough for all of them to be cut, as one that never answers is by a gateway that runs.
    let mut silent = RawTcp::upgraded(other.public(), "/ws?channel=news");
    pinged(&mut silent, Kind::Raw);
    assert!(silent.read_frame(DEADLINE).is_err(), "it was not cut");
    gateway.process().signal(Stop::Thaw);

    for ((_, client), answer) in clients[30..].iter_mut().zip(&late) {
        client.send(answer);
    }
    // They live: each is pinged once more, and answers.
    for (kind, client) in &mut clients {
        let answer = pinged(client, *kind);
        client.send(&answer);
    }
    assert_eq!(gateway.metric("tidegate_disconnects_total", &[]), 0.0);
    gateway.eventually_connections(60);

    // Who never answers is found all the same.
    gateway.eventually_metric("tidegate_disconnects_total", &[("reason", "ping_timeout")], |cut| cut == 60.0);
}

/// The path to a client is proven by what it acknowledges, so it needs no ping; but for so long only, as whoever
/// acknowledges may be a proxy whose client is gone.
#[test]
fn deliveries_spare_pings_but_not_for_ever() {
    let gateway = Gateway::builder().config(HEARTBEAT).start();
    let mut client = gateway.subscribe("news");
    let spared = |gateway: &Gateway| gateway.metric("tidegate_heartbeats_total", &[("outcome", "spared")]);
    tidegate_testkit::eventually("pings are spared", DEADLINE, || {
        gateway.rest().publish("news", "tide");
        spared(&gateway) >= 2.0
    });
    assert_eq!(gateway.metric("tidegate_heartbeats_total", &[("outcome", "sent")]), 0.0);
    // It reads nothing any more, so it answers nothing; its kernel goes on to acknowledge.
    tidegate_testkit::eventually("it is cut", Duration::from_secs(60), || {
        gateway.rest().publish("news", "tide");
        gateway.metric("tidegate_disconnects_total", &[("reason", "ping_timeout")]) == 1.0
    });
    client.read_to_close(DEADLINE);
}
