//! `centrifuge` and `cent.js` (npm) in Node, and `cent` with `centrifuge-python` (PyPI), against two nodes on one Redis, in both
//! encodings.
//! What they must see is in `tests/clients/node/centrifuge` and `tests/clients/python`.

use tidegate_testkit::{DEADLINE, Gateway, Tool, chromium_path, redis::RedisServer};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// What the scripts need of a gateway.
const CONFIG: &str = include_str!("../../clients/node/centrifuge/gateway.toml");

fn run(script: Tool, least: usize) {
    run_with(CONFIG, script, least);
}

fn run_with(config: &str, script: Tool, least: usize) {
    let redis = RedisServer::start();
    let start = |number: u32| {
        let node = Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"));
        node.config(config).start()
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
    run(Tool::node("centrifuge/commands.cjs").environment("ENCODING", "json"), 18);
}

#[test]
fn every_command_in_protobuf() {
    run(Tool::node("centrifuge/commands.cjs").environment("ENCODING", "protobuf"), 18);
}

/// Behind a proxy that passes no upgrades on, and with commands that reach another node than their connection.
#[test]
fn clients_without_a_web_socket_in_json() {
    let script = Tool::node("centrifuge/transports.cjs").environment("CHROMIUM", chromium_path());
    run(script.environment("ENCODING", "json"), 4);
}

#[test]
fn clients_without_a_web_socket_in_protobuf() {
    let script = Tool::node("centrifuge/transports.cjs").environment("CHROMIUM", chromium_path());
    run(script.environment("ENCODING", "protobuf"), 4);
}

#[test]
fn the_python_sdk_asks_one_node_and_clients_of_another_see_it() {
    run(Tool::python("centrifuge_server.py"), 8);
}

#[test]
fn the_node_sdk_asks_one_node_and_clients_of_another_see_it() {
    run(Tool::node("centrifuge/server.cjs").environment("ENCODING", "json"), 6);
}

#[test]
fn what_is_refused_for_now_is_asked_for_again() {
    let limits = "subscriptions = 4\nanonymous_subscriptions = 4\nsubscribes_per_second = 1\n";
    let script = Tool::node("centrifuge/retries.cjs").environment("ENCODING", "json");
    run_with(&format!("{CONFIG}[limits]\n{limits}"), script, 1);
}

#[test]
fn who_was_on_a_killed_node_is_gone_within_its_lease() {
    let redis = RedisServer::start();
    let start = |number: u32| {
        let node = Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"));
        node.config(&format!("{CONFIG}[redis]\nlease = \"3s\"\n")).start()
    };
    let [killed, stays] = [start(1), start(2)];
    let addresses = format!("http://{},http://{}", killed.public(), stays.public());
    let script = Tool::node("centrifuge/presence.cjs").environment("GATEWAYS", addresses);
    let mut script = script.environment("SECRET", SECRET).spawn();
    script.wait_line("both are there", DEADLINE, |line| line.contains("\"ready\"").then_some(()));
    killed.kill();
    let exit = script.wait(DEADLINE * 3);
    assert_eq!(exit.code, Some(0), "{exit}");
}
