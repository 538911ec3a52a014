//! Routers that cannot start: one line that names what is wrong, and exit code 2.

use tidegate_testkit::Gateway;

use crate::site::run_to_exit;

#[track_caller]
fn check(arguments: &[&str], config: &str, words: &[&str]) {
    let exit = run_to_exit(arguments, config);
    assert_eq!(exit.code, Some(2), "{exit}");
    assert_eq!(exit.stderr.trim_end().lines().count(), 1, "one line: {exit}");
    for word in words {
        assert!(exit.stderr.contains(word), "{word:?} is named: {exit}");
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    check(&["--members", "static:nowhere"], "", &["members", "nowhere"]);
    check(&["--key", "query"], "", &["key"]);
    check(&[], "trusted_proxies = [\"10.1.0.0/8\"]", &["trusted_proxies", "10.0.0.0/8"]);
    check(&[], "[tls]\ndirectory = \"/nonexistent\"", &["tls.directory", "/nonexistent"]);
}

#[test]
fn a_taken_port_is_named() {
    let taken = Gateway::start();
    let address = taken.public().to_string();
    check(&["--listen", &address], "", &[&address, "listen"]);
}
