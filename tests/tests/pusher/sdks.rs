//! pusher-js, Laravel Echo and the server SDKs for Node and Python against two nodes on one Redis. What they must see is
//! in `tests/clients/node/pusher` and `tests/clients/python`.

use tidegate_testkit::{Gateway, Tool};

use crate::script::run;
use crate::site::Site;

#[test]
fn pusher_js_and_the_node_sdk_use_every_kind_of_channel_over_two_nodes() {
    let site = Site::start(2);
    run(Tool::node("pusher/channels.cjs"), "channels.cjs", &site.gateways);
}

#[test]
fn laravel_echo_works_with_the_broadcasters_pusher_and_reverb() {
    let site = Site::start(2);
    run(Tool::node("pusher/echo.cjs"), "echo.cjs", &site.gateways);
}

#[test]
fn raw_websockets_event_streams_and_rest_share_the_channels() {
    let site = Site::start(2);
    run(Tool::node("pusher/outside.cjs"), "outside.cjs", &site.gateways);
}

#[test]
fn webhooks_are_valid_for_the_sdk_and_come_once_for_all_nodes() {
    let site = Site::start(2);
    let script = Tool::node("pusher/webhooks.cjs").environment("INBOX", site.inbox.url());
    run(script, "webhooks.cjs", &site.gateways);
    // The SDK for Python judges the same requests.
    let script = Tool::python("pusher_webhooks.py").environment("INBOX", site.inbox.url());
    run(script, "pusher_webhooks.py", &site.gateways);
}

#[test]
fn each_limit_has_the_answer_that_is_documented() {
    let gateway = Gateway::start();
    run(Tool::node("pusher/limits.cjs"), "limits.cjs", &[gateway]);
}

#[test]
fn wrong_requests_to_the_http_api_are_answered_as_pusher_does() {
    let site = Site::start(1);
    run(Tool::node("pusher/requests.cjs"), "requests.cjs", &site.gateways);
}

#[test]
fn the_python_sdk_triggers_queries_and_authorises() {
    let site = Site::start(2);
    run(Tool::python("pusher_server.py"), "pusher_server.py", &site.gateways);
}
