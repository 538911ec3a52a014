//! A gateway that dies without a word: no ghosts stay behind, and its clients go on elsewhere.

use std::time::Instant;

use serde_json::Value;
use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{DEADLINE, Gateway, SseClient, WsClient, eventually};

use tidegate_tests::cluster::figures::record;
use tidegate_tests::cluster::site::{Site, TOKEN};

fn presence(gateway: &Gateway, channel: &str) -> usize {
    let answer = gateway.rest().get(&format!("/v1/channels/{channel}/presence"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["members"].as_array().map_or(0, Vec::len)
}

fn node_names(gateway: &Gateway) -> Vec<String> {
    let nodes = gateway.rest().get("/v1/nodes").json();
    let names = nodes["nodes"].as_array().into_iter().flatten();
    names.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_killed_gateway_leaves_no_ghosts_and_its_clients_recover_elsewhere() {
    let redis = RedisServer::start();
    let mut site = Site::start(&redis.url(), 3);
    let path = format!("/ws?channel=room:a&envelope=json&token={TOKEN}");
    let stream_path = format!("/sse?channel=room:a&token={TOKEN}");
    let [first, second] = [site.gateways[0].public(), site.gateways[1].public()];
    let _stays = WsClient::connect(first, &path);
    let mut moves = WsClient::connect(site.gateways[2].public(), &path);
    let mut stream = SseClient::connect(site.gateways[2].public(), &stream_path, None);
    eventually("all three are present", DEADLINE, || presence(&site.gateways[0], "room:a") == 3);
    eventually("all nodes are known", DEADLINE, || node_names(&site.gateways[0]) == ["g1", "g2", "g3"]);

    let seen = site.gateways[0].rest().publish("room:a", "1").expect("the channel has history");
    assert_eq!(moves.expect_json()["data"], "1");
    assert_eq!(stream.expect_event().id, seen.to_string());

    let killed = site.gateways.pop().expect("three were started");
    let death = Instant::now();
    killed.kill();
    for payload in ["2", "3"] {
        site.gateways[0].rest().publish("room:a", payload);
    }
    let mut moves = WsClient::connect(second, &format!("{path}&since={seen}"));
    let mut stream = SseClient::connect(second, &stream_path, Some(&seen.to_string()));
    site.gateways[1].rest().publish("room:a", "4");
    for payload in ["2", "3", "4"] {
        assert_eq!(moves.expect_json()["data"], Value::from(payload));
        assert_eq!(stream.expect_event().data, payload);
    }

    // The two that came back and the one that stayed.
    for gateway in &site.gateways {
        eventually("the dead node's members are gone", DEADLINE, || presence(gateway, "room:a") == 3);
    }
    let gone = death.elapsed().as_secs_f64();
    record("figures/ghosts.md", &format!("The members of a killed gateway were gone after {gone:.1} s."));
    eventually("the dead node is gone", DEADLINE, || node_names(&site.gateways[0]) == ["g1", "g2"]);
}
