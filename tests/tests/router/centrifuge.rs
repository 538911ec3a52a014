//! Real clients of Centrifugo's protocol behind a router: nodes that are killed and drained under them, and networks without
//! WebSockets.

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Tool, chromium_path};

use crate::site::{GATEWAY_CONFIG, SHORT_DRAIN, Site};

/// What the scripts need of a gateway.
const CONFIG: &str = include_str!("../../clients/node/centrifuge/gateway.toml");

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// As many channels as a client recovers in one frame, which is 95 KB.
const MANY: &str = "\
[limits]
subscriptions = 1000
anonymous_subscriptions = 1000
message_bytes = \"256KiB\"
";

/// Ends the node that the client is on, by each way in turn: killed (1) or drained (3001), as the client sees it.
#[track_caller]
fn recovers(config: &str, codes: &[u16], channels: usize, encoding: &str) {
    let mut site = Site::with(codes.len() + 1, &format!("{GATEWAY_CONFIG}{config}"), SHORT_DRAIN);
    let mut names: Vec<String> = (1..=codes.len() + 1).map(|number| format!("g{number}")).collect();
    let script = Tool::node("centrifuge/recovery.cjs").environment("CODES", format!("{codes:?}"));
    let script = script.environment("CHANNELS", channels.to_string()).environment("ENCODING", encoding);
    let mut script = script.environment("ROUTER", format!("http://{}", site.router.public)).spawn();
    for (round, &code) in codes.iter().enumerate() {
        let name = script.wait_line("it is on a node", DEADLINE * 2, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["ready"] == round).then(|| line["node"].as_str().map(str::to_owned))?
        });
        let at = names.iter().position(|own| *own == name).unwrap();
        names.remove(at);
        let gateway = site.gateways.remove(at);
        if code == 1 {
            gateway.kill()
        } else {
            gateway.terminate()
        };
    }
    let exit = script.wait(DEADLINE * 3);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn a_client_of_centrifugo_recovers_when_its_node_is_killed_and_when_it_drains() {
    recovers("", &[1, 3001], 2, "json");
}

#[test]
fn and_so_does_one_that_speaks_protobuf() {
    recovers("", &[1, 3001], 2, "protobuf");
}

#[test]
fn a_thousand_channels_are_recovered_in_one_frame() {
    recovers(MANY, &[1], 1000, "json");
}

/// Streams belong to one node and their commands come to another; a page's are behind a proxy that passes no upgrades on, too.
#[track_caller]
fn streams(encoding: &str) {
    let site = Site::with(2, &format!("{GATEWAY_CONFIG}{CONFIG}"), SHORT_DRAIN);
    let keys = site.keys(64);
    let key = |node: &str| &keys.iter().find(|(_, of)| of == node).unwrap().0;
    let address = |node: &str| format!("http://{}?key={}", site.router.public, key(node));
    let script = Tool::node("centrifuge/transports.cjs").environment("CHROMIUM", chromium_path());
    let script = script.environment("GATEWAYS", format!("{},{}", address("g1"), address("g2")));
    let script = script.environment("SECRET", SECRET).environment("ENCODING", encoding);
    let exit = script.spawn().wait(DEADLINE * 3);
    assert_eq!(exit.code, Some(0), "{exit}");
    let cases = exit.stdout.lines().filter(|line| line.contains("\"ok\":true")).count();
    assert_eq!(cases, 4, "{exit}");
    for node in ["g1", "g2"] {
        let opened = site.gateway(node).metrics().sum("tidegate_connections_opened_total", &[]);
        assert!(opened > 0.0, "{node} had no client");
    }
}

#[test]
fn clients_without_a_web_socket_come_through_a_router_in_json() {
    streams("json");
}

#[test]
fn clients_without_a_web_socket_come_through_a_router_in_protobuf() {
    streams("protobuf");
}
