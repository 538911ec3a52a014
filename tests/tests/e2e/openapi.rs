//! The OpenAPI document against the server that serves it: schemathesis makes the requests up.

use tidegate_testkit::{DEADLINE, Gateway, Tool, target_directory};

#[test]
fn the_document_is_served_and_names_every_path() {
    let gateway = Gateway::start();
    let document = gateway.rest().without_key().get("/openapi.json").json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{document}");
    for path in [
        "/v1/channels/{channel}/publish",
        "/v1/publish",
        "/v1/batch",
        "/v1/channels",
        "/v1/channels/{channel}",
        "/v1/channels/{channel}/history",
        "/v1/channels/{channel}/presence",
        "/v1/disconnect",
        "/v1/nodes",
    ] {
        assert!(document["paths"][path].is_object(), "{path} is documented");
    }
}

#[test]
fn schemathesis_finds_no_answer_that_the_document_does_not_allow() {
    let gateway = Gateway::start();
    let address = format!("http://{}", gateway.public());
    // A fixed seed: a failure repeats. Each operation gets up to 40 made-up requests.
    let run = Tool::python_program("schemathesis")
        .argument("run")
        .argument(format!("{address}/openapi.json"))
        .argument("--url")
        .argument(&address)
        .argument("--header")
        .argument("Authorization: Bearer dev-key")
        .argument("--phases")
        .argument("examples,coverage,fuzzing")
        .argument("--max-examples")
        .argument("40")
        .argument("--seed")
        .argument("2")
        .argument("--no-color")
        // It keeps what it learnt in the directory it runs in.
        .directory(&target_directory());
    let exit = run.spawn().wait(DEADLINE * 8);
    assert_eq!(exit.code, Some(0), "{exit}");
    // And it is as well as before.
    assert_eq!(gateway.internal_rest().get("/readyz").status, 200);
    assert_eq!(gateway.metric("tidegate_publish_requests_total", &[("code", "500")]), 0.0);
}
