//! What clients are told when a node ends: a close that pusher-js answers after a second, for it has no spread of its own.

use tidegate_testkit::{DEADLINE, Gateway, SHORT_DRAIN, WsClient};

#[test]
fn a_drain_closes_with_a_code_that_clients_answer_with_a_wait() {
    let gateway = Gateway::builder().config(SHORT_DRAIN).start();
    let path = "/app/dev-key?protocol=7";
    let mut clients: Vec<_> = (0..20).map(|_| WsClient::connect(gateway.public(), path)).collect();
    for client in &mut clients {
        assert_eq!(client.expect_json()["event"], "pusher:connection_established");
    }
    let exit = std::thread::spawn(move || gateway.terminate());
    for client in &mut clients {
        // 4200 to 4299 are answered at once, by all clients together.
        client.expect_close(1001);
    }
    assert_eq!(exit.join().unwrap().code, Some(0));
}

#[test]
fn a_node_that_is_gone_refuses_nobody_for_good() {
    let gateway = Gateway::start();
    let mut client = WsClient::connect(gateway.public(), "/app/dev-key?protocol=7");
    client.expect_json();
    gateway.kill();
    // No code at all: pusher-js comes back after a second.
    client.read_to_close(DEADLINE);
}
