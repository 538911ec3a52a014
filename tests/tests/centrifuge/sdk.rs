//! `centrifuge` (npm) in Node, and `cent` with `centrifuge-python` (PyPI), against two nodes on one Redis, in both encodings.
//! What they must see is in `tests/clients/node/centrifuge` and `tests/clients/python`.

use tidegate_testkit::{DEADLINE, Gateway, Tool, redis::RedisServer};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Anybody may subscribe, but in `room` and `vault`; pings come fast, so that a few seconds have several.
fn config() -> String {
    format!(
        "\
[heartbeat]
interval = \"1s\"
timeout = \"5s\"
[[auth.jwt]]
algorithm = \"HS256\"
secret = \"{SECRET}\"
leeway = \"0s\"
[namespaces.default]
client_publish = \"token\"
[namespaces.plain]
history_size = 0
history_age = \"0s\"
[namespaces.news]
history_size = 100
history_age = \"5m\"
[namespaces.room]
anonymous_subscribe = false
presence = true
[namespaces.vault]
anonymous_subscribe = false
[namespaces.mine]
user_channels = true
[namespaces.cache]
history_size = 10
history_age = \"5m\"
recovery = \"cache\"
"
    )
}

fn run(script: Tool, least: usize) {
    let redis = RedisServer::start();
    let start = |number: u32| {
        let node = Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"));
        node.config(&config()).start()
    };
    let gateways = [start(1), start(2)];
    let addresses = gateways.each_ref().map(|gateway| format!("http://{}", gateway.public()));
    let script = script.environment("GATEWAYS", addresses.join(",")).environment("SECRET", SECRET);
    let exit = script.spawn().wait(DEADLINE * 3);
    assert_eq!(exit.code, Some(0), "{exit}");
    let cases = exit.stdout.lines().filter(|line| line.contains("\"ok\":true")).count();
    assert!(cases >= least, "{exit}");
}

#[test]
fn every_command_in_json() {
    run(Tool::node("centrifuge/commands.cjs").environment("ENCODING", "json"), 15);
}

#[test]
fn every_command_in_protobuf() {
    run(Tool::node("centrifuge/commands.cjs").environment("ENCODING", "protobuf"), 15);
}

#[test]
fn the_python_sdk_asks_one_node_and_clients_of_another_see_it() {
    run(Tool::python("centrifuge_server.py"), 5);
}
