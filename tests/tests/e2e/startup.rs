//! Start-ups that must fail: exit code 2 and one line that names what is wrong. And one on a port that another has.

use std::process::Command;

use tidegate_testkit::{
    DEADLINE, Exit, Gateway, GatewayBuilder, Process, WsClient, eventually, product_binary,
};

/// Runs it to its end: exit code 2, and one line on standard error with all of `words`.
#[track_caller]
fn check(builder: GatewayBuilder, words: &[&str]) {
    check_exit(&builder.run_to_exit(), words);
}

#[track_caller]
fn check_exit(exit: &Exit, words: &[&str]) {
    assert_eq!(exit.code, Some(2), "{exit}");
    assert_eq!(exit.stderr.trim_end().lines().count(), 1, "one line: {exit}");
    for word in words {
        assert!(exit.stderr.contains(word), "{word:?} is named: {exit}");
    }
}

#[test]
fn an_unknown_key_in_the_file_is_named() {
    check(Gateway::builder().config("lissen = \"127.0.0.1:0\"\n"), &["lissen", "tidegate.toml"]);
    check(Gateway::builder().config("[limits]\nconections = 5\n"), &["limits.conections"]);
    check(Gateway::builder().config("[namespaces.a]\nhistory = 5\n"), &["namespaces.a.history"]);
}

#[test]
fn an_unknown_key_in_the_environment_is_named() {
    check(
        Gateway::builder().environment("TIDEGATE__LIMITS__CONECTIONS", "5"),
        &["TIDEGATE__LIMITS__CONECTIONS"],
    );
}

#[test]
fn a_bad_value_is_named_with_its_key() {
    check(Gateway::builder().config("[heartbeat]\ninterval = \"soon\"\n"), &["heartbeat.interval", "soon"]);
    check(
        Gateway::builder().config("[limits]\nmessage_bytes = \"many\"\n"),
        &["limits.message_bytes", "many"],
    );
    check(Gateway::builder().environment("TIDEGATE__LIMITS__CONNECTIONS", "-1"), &["-1"]);
    check(Gateway::builder().listen("nowhere"), &["nowhere"]);
    check(Gateway::builder().argument("--backplane").argument("carrier-pigeon"), &["carrier-pigeon"]);
}

#[test]
fn a_file_that_is_no_toml_is_named_with_the_place() {
    check(Gateway::builder().config("[limits\n"), &["tidegate.toml"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    check(Gateway::builder().argument("--config").argument("no-such-file.toml"), &["no-such-file.toml"]);
}

#[test]
fn a_taken_port_is_named() {
    let first = Gateway::start();
    check(Gateway::builder().listen(first.public()), &[&first.public().to_string()]);
    check(Gateway::builder().internal(first.internal()), &[&first.internal().to_string()]);
}

#[test]
fn development_mode_does_not_listen_on_all_addresses() {
    check(Gateway::builder().listen("0.0.0.0:0"), &["--dev", "0.0.0.0"]);
}

#[test]
fn an_unknown_flag_is_an_error_of_use() {
    let mut process =
        Process::spawn("tidegate", Command::new(product_binary()).args(["gateway", "--nonsense"]));
    let exit = process.wait(DEADLINE);
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.contains("--nonsense"), "{exit}");
}

#[test]
fn environment_and_flags_win_over_the_file() {
    let gateway = Gateway::builder()
        .config("[limits]\nconnections = 7\n")
        .environment("TIDEGATE__LIMITS__CONNECTIONS", "9")
        .start();
    assert_eq!(gateway.metric("tidegate_connections_limit", &[]), 9.0);
}

#[test]
fn healthcheck_tells_by_its_exit_code() {
    let gateway = Gateway::start();
    let healthcheck = |url: &str| {
        let mut process =
            Process::spawn("healthcheck", Command::new(product_binary()).args(["healthcheck", url]));
        process.wait(DEADLINE).code
    };
    let url = format!("http://{}/readyz", gateway.internal());
    assert_eq!(healthcheck(&url), Some(0));
    gateway.kill();
    assert_ne!(healthcheck(&url), Some(0));
}

#[test]
fn no_command_prints_the_password_of_an_address() {
    let url = "http://me:hunter2@127.0.0.1:1";
    for words in [
        vec!["healthcheck", url],
        vec!["top", "--once", "--url", url],
        vec!["storm", url],
        vec!["check", url],
        vec!["doctor", "--url", url],
    ] {
        let exit = Process::spawn("tidegate", Command::new(product_binary()).args(&words)).wait(DEADLINE);
        assert_ne!(exit.code, Some(0), "{words:?}: {exit}");
        assert!(!format!("{exit}").contains("hunter2"), "{words:?}: {exit}");
    }
}

/// The kernel deals connections to both; with the first one gone, the second has them all.
#[test]
fn gateways_share_a_port_where_both_say_so() {
    let first = Gateway::builder().argument("--reuse-port").start();
    let shared = first.public();
    check(Gateway::builder().listen(shared), &["cannot listen on", "`listen`"]);
    let second = Gateway::builder().argument("--reuse-port").listen(shared).start();
    assert_eq!(second.public(), shared);
    let mut clients = Vec::new();
    eventually("both have clients", DEADLINE, || {
        clients.push(WsClient::connect(shared, "/ws?channel=news"));
        [&first, &second].iter().all(|gateway| gateway.metric("tidegate_connections", &[]) > 0.0)
    });
    drop((clients, first));
    let mut client = second.subscribe("news");
    second.rest().publish("news", "still here");
    assert_eq!(client.expect_text(), "still here");
}
