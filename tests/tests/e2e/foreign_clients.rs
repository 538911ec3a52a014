//! Clients that others wrote: Node `ws` and Python `websockets`, with compression and EventSource-like reading.

use tidegate_testkit::{DEADLINE, Gateway, Tool};

/// Messages are deflated for clients that negotiated it in the namespace `packed`.
const CONFIG: &str = "[namespaces.packed]\ncompression = true\nhistory_size = 10\nhistory_age = \"5m\"\n";

/// Runs a script against a gateway of its own; the script exits with 0 and says `ok` at its end.
#[track_caller]
fn check(tool: Tool) {
    let gateway = Gateway::builder().config(CONFIG).start();
    let exit = tool.gateway(gateway.public()).spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stdout.trim_end().ends_with("ok"), "{exit}");
    gateway.eventually_connections(0);
    // Whatever the client did, the server had no complaint about it.
    assert_eq!(gateway.metric("tidegate_close_frames_total", &[("code", "1002")]), 0.0);
}

#[test]
fn node_ws_subscribes_publishes_and_closes() {
    check(Tool::node("client.cjs"));
}

#[test]
fn python_websockets_subscribes_publishes_and_closes() {
    check(Tool::python("client.py"));
}

#[test]
fn a_token_made_by_node_lets_its_bearer_in_and_no_further() {
    let secret = "a-secret-of-at-least-32-bytes-for-hs256";
    let builder = Gateway::builder();
    let path = builder.file("jwt.secret", secret.as_bytes());
    let config = format!("[[auth.jwt]]\nalgorithm = \"HS256\"\nsecret_file = {path:?}\n");
    let gateway = builder.production().config(&config).start();
    let script = Tool::node("token.cjs").gateway(gateway.public()).environment("SECRET", secret);
    let exit = script.spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(gateway.metric("tidegate_auth_failures_total", &[]) >= 3.0, "each refusal is counted");
}
