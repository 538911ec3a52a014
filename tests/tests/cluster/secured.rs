//! Redis with users and with TLS: the gateway comes in with what it was given, and with nothing else.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, GatewayBuilder};

use tidegate_tests::cluster::site::{CONFIG, node};

/// What one node takes the other delivers, with and without history.
#[track_caller]
fn check(builder: impl Fn(usize) -> GatewayBuilder) {
    let (near, far) = (builder(1).start(), builder(2).start());
    for channel in ["kept:a", "live:a"] {
        let mut client = far.subscribe(channel);
        near.rest().publish(channel, "hello");
        assert_eq!(client.expect_text(), "hello");
    }
}

#[test]
fn a_user_needs_no_more_than_the_prefix() {
    // What an operator would give it: the keys and channels of the deployment, and no command that administrates.
    let rules = "tidegate on >pass/word ~tidegate:* &tidegate:* +@all -@admin -@dangerous +info";
    let redis = RedisServer::builder().user("default off").user(rules).start();
    check(|number| node(&redis.url_as("tidegate", "pass%2Fword"), number));
    check(|number| {
        let builder = Gateway::builder().backplane(&redis.url().replace("://", "://tidegate@"));
        let file = builder.file("password", b"pass/word\n");
        let config = format!("{CONFIG}password_file = \"{}\"\n", file.display());
        builder.node(&format!("g{number}")).config(&config)
    });
}

#[test]
fn tls_is_spoken_with_an_authority_of_ones_own() {
    let redis = RedisServer::builder().tls().start();
    let config = format!("{CONFIG}ca_file = \"{}\"\n", redis.ca_certificate().display());
    check(|number| node(&redis.url(), number).config(&config));
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    let redis = RedisServer::builder().tls().start();
    let exit = node(&redis.url(), 1).run_to_exit();
    assert_eq!(exit.code, Some(2), "{exit}");
    assert_eq!(exit.stderr.trim_end().lines().count(), 1, "{exit}");
}
