//! What is not ours on our Redis: garbage, envelopes of another version, another deployment.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, WsClient};

use tidegate_tests::cluster::site::{CONFIG, Site, node};

#[test]
fn garbage_and_other_versions_are_counted_and_passed_over() {
    let redis = RedisServer::start();
    let site = Site::start(&redis.url(), 2);
    let far = &site.gateways[1];
    for channel in ["kept:a", "live:a"] {
        let mut client = WsClient::connect(far.public(), &format!("/ws?channel={channel}&envelope=json"));
        site.gateways[0].rest().publish(channel, "1");
        assert_eq!(client.expect_json()["data"], "1");
        let before = skipped(far);
        let envelopes: [&[u8]; 6] = [
            b"",
            b"\x00",
            b"\xff\xff\xff\xff\xff\xff\xff\xff",
            b"hello",
            b"\x02\x00\x00\x00",
            b"\x01\x01\x00\x00",
        ];
        for envelope in envelopes {
            redis.command(&[b"PUBLISH", format!("tidegate:{{{channel}}}").as_bytes(), envelope]);
        }
        site.gateways[0].rest().publish(channel, "2");
        assert_eq!(client.expect_json()["data"], "2", "nothing of it reached the client");
        assert_eq!(skipped(far) - before, envelopes.len() as f64);
    }
}

fn skipped(gateway: &Gateway) -> f64 {
    let reasons = ["version", "truncated", "malformed"];
    reasons
        .map(|reason| gateway.metric("tidegate_backplane_dropped_total", &[("reason", reason)]))
        .iter()
        .sum()
}

#[test]
fn two_deployments_on_one_redis_are_apart() {
    let redis = RedisServer::start();
    let start = |number: usize, prefix: &str| {
        let config = format!("{CONFIG}prefix = \"{prefix}\"\n");
        node(&redis.url(), number).config(&config).start()
    };
    let (one, other) = (start(1, "one"), start(2, "other"));
    for channel in ["kept:a", "live:a"] {
        let mut client = other.subscribe(channel);
        one.rest().publish(channel, "of the other deployment");
        other.rest().publish(channel, "of its own");
        assert_eq!(client.expect_text(), "of its own");
    }
    let history = other.rest().get("/v1/channels/kept:a/history").json();
    assert_eq!(history["publications"].as_array().map(Vec::len), Some(1), "{history}");
    let nodes = other.rest().get("/v1/nodes").json();
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes}");
}
