//! What a person at the log is told: each refusal, and that nothing can be done here.

use tidegate_testkit::{DEADLINE, Gateway, GatewayBuilder, WsClient, eventually};

/// Browsers hide why they were refused; the log of `--dev` tells it, and any other one's on request.
#[test]
fn refusals_are_in_the_log() {
    let check = |gateway: GatewayBuilder, told: bool| {
        let mut gateway = gateway.start();
        let public = gateway.public();
        assert!(WsClient::try_connect(public, "/ws?channel=news", &[]).is_err());
        gateway.rest().with_key("a-key-that-nobody-has").post(
            "/v1/publish?secret=x",
            "application/json",
            "{}",
        );
        gateway.rest().get("/");
        let mut said = |what: &str| gateway.process().stderr().contains(what);
        for what in [
            "handshake: ",
            "POST /v1/publish: 401 ",
            "GET /: 404 there is nothing at this path of a Tidegate",
        ] {
            match told {
                true => eventually(what, DEADLINE, || said(what)),
                false => assert!(!said(what)),
            }
        }
        assert!(!gateway.process().stderr().contains("secret"), "queries may hold credentials");
    };
    let production = || Gateway::builder().production().config("");
    check(production().argument("--log-level").argument("info,refused=debug"), true);
    check(production(), false);
}

/// Everything would be refused; whoever starts it is told.
#[test]
fn a_gateway_without_keys_says_so() {
    let gateway = Gateway::builder().production().config("").start();
    let exit = gateway.terminate();
    assert!(exit.stderr.contains("no API key ([[auth.api_keys]]) and no app"), "{}", exit.stderr);
    assert!(exit.stderr.contains("tidegate init"), "{}", exit.stderr);
}
