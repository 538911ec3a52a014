//! SIGHUP: keys, secrets and the log level are read again; what needs a restart is said, and what is wrong changes nothing.

use std::{fs, path::Path};

use tidegate_testkit::{DEADLINE, Gateway, Rest, Stop, eventually};

fn write(directory: &Path, more: &str) {
    let key = directory.join("key");
    let text = format!(
        "{more}\n[[auth.api_keys]]\nname = \"a\"\nkey_file = {key:?}\n[drain]\nsettle = \"0s\"\nperiod = \"0s\"\n"
    );
    fs::write(directory.join("tidegate.toml"), text).unwrap();
}

#[test]
fn keys_and_the_log_level_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("key"), "the-first-key-of-all\n").unwrap();
    write(path, "");
    let config = path.join("tidegate.toml");
    let builder = Gateway::builder().production().argument("--config").argument(config.to_str().unwrap());
    let mut gateway = builder.start();
    let public = gateway.public();
    let status = |key: &str| {
        let rest = Rest::new(public).with_key(key);
        rest.post("/v1/channels/news/publish", "text/plain", "x").status
    };
    assert_eq!((status("the-first-key-of-all"), status("the-second-key-of-all")), (200, 401));

    fs::write(path.join("key"), "the-second-key-of-all\n").unwrap();
    write(path, "log.level = \"debug\"\nlimits.connections = 77");
    gateway.process().signal(Stop::HangUp);
    eventually("the second key is taken", DEADLINE, || status("the-second-key-of-all") == 200);
    assert_eq!(status("the-first-key-of-all"), 401);
    let told = |gateway: &mut Gateway, words: &str| {
        eventually(words, DEADLINE, || gateway.process().stderr().contains(words));
    };
    told(&mut gateway, "needs_restart=\"limits.connections\"");
    // A refused handshake is a line of that level.
    assert_eq!(Rest::new(public).without_key().get("/sse?channel=news").status, 401);
    told(&mut gateway, "DEBUG");

    write(path, "no_such_key = 1");
    gateway.process().signal(Stop::HangUp);
    told(&mut gateway, "all stays as it is");
    assert_eq!(status("the-second-key-of-all"), 200);
    let exit = gateway.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(!exit.stderr.contains('\u{1b}'), "colours are for terminals: {exit}");
}
