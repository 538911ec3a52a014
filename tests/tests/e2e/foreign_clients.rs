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

/// Channels with all that commands ask for, and few enough subscriptions to reach the bound.
const COMMANDS: &str = r#"
[limits]
subscriptions = 3
publishes_per_second = 1000
messages_per_second = 1000
subscribes_per_second = 1000
[namespaces.news]
client_publish = "token"
history_size = 10
history_age = "5m"
presence = true
[namespaces.quiet]
presence = false
[[auth.api_keys]]
name = "backend"
key = "a-key-for-commands"
"#;
const API_KEY: &str = "a-key-for-commands";

/// A gateway that takes tokens of HS256.
fn with_tokens(config: &str, secret: &str) -> Gateway {
    let builder = Gateway::builder();
    let path = builder.file("jwt.secret", secret.as_bytes());
    let config = format!("{config}[[auth.jwt]]\nalgorithm = \"HS256\"\nsecret_file = {path:?}\n");
    builder.production().config(&config).start()
}

const SECRET: &str = "a-secret-of-at-least-32-bytes-for-hs256";

#[test]
fn a_token_made_by_node_lets_its_bearer_in_and_no_further() {
    let gateway = with_tokens("", SECRET);
    let script = Tool::node("token.cjs").gateway(gateway.public()).environment("SECRET", SECRET);
    let exit = script.spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(gateway.metric("tidegate_auth_failures_total", &[]) >= 3.0, "each refusal is counted");
}

#[test]
fn node_ws_sends_commands_on_its_open_connection() {
    let gateway = with_tokens(COMMANDS, SECRET);
    let script = Tool::node("commands.cjs").gateway(gateway.public());
    let exit = script.environment("SECRET", SECRET).environment("API_KEY", API_KEY).spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    gateway.eventually_connections(0);
}
