//! Tests of the router's configuration: values, refusals with their sentences, the reference.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;

use tidegate_ops::config::{Entry, PREFIX};

use super::*;

fn load(variables: &[(&str, &str)], overrides: &[(Flag, &str)]) -> Result<Config, ConfigError> {
    Config::load(&Sources {
        file: None,
        environment: variables
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect(),
        overrides: overrides.iter().map(|(flag, value)| (*flag, (*value).to_owned())).collect(),
    })
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() })
}

#[test]
fn nothing_given() {
    let config = load(&[], &[]).unwrap();
    assert_eq!(
        (config.listen.to_string(), config.internal.to_string()),
        ("127.0.0.1:8080".into(), "127.0.0.1:9080".into())
    );
    assert_eq!(config.members.show(), "\"static:127.0.0.1:8000\"");
    assert_eq!((config.key.to_string(), config.load_factor), ("query:key".into(), LoadFactor::DEFAULT));
    assert!(!config.reuse_port && config.limits.connections > 0);
}

#[test]
fn every_source() {
    let config =
        load_file("key = 'cookie:room'\nload_factor = 1.5\n[health]\nport = 9000\npath = '/readyz'").unwrap();
    assert_eq!((config.key.to_string(), config.load_factor.hundredths()), ("cookie:room".into(), 150));
    assert_eq!((config.health.port, config.health.path.as_str()), (Some(PortSetting(9000)), "/readyz"));
    let variables = [
        ("TIDEGATE__LOAD_FACTOR", "2"),
        ("TIDEGATE__KEY", "path"),
        ("TIDEGATE__ASSIGN__URL", "wss://{node}.example.com"),
        ("TIDEGATE__DNS__SERVERS", "127.0.0.1:53,[::1]:53"),
    ];
    let config =
        load(&variables, &[(flags::KEY, "client-ip"), (flags::MEMBERS, "dns:gateway:8000")]).unwrap();
    assert_eq!((config.key, config.load_factor.hundredths()), (KeyRule::ClientIp, 200));
    assert_eq!((config.members.show().as_str(), config.dns.servers.len()), ("\"dns:gateway:8000\"", 2));
    assert_eq!(config.assign.url.unwrap().to_string(), "wss://{node}.example.com");
}

#[test]
fn refused() {
    let check = |text: &str, expect: &str| {
        let error = load_file(text).unwrap_err().to_string();
        assert!(error.contains(expect) && !error.contains('\n'), "{text}: {error}");
    };
    check("keys = 'path'", "unknown key `keys`");
    check("key = 'query'", "bad value \"query\" for `key`");
    check("members = 'static:a'", "expected \"static:HOST:PORT,HOST:PORT\", \"dns:NAME:PORT\"");
    check("members = 'http://user:hunter2@gateway'", "\"http://…@gateway\"");
    for factor in ["0.99", "100.01", "1.255", "'x'", "-1", "nan", "true"] {
        check(&format!("load_factor = {factor}"), "for `load_factor`");
    }
    check("members = 'redis://h:port'", "`members` cannot be used");
    check("members = 'redis://h'\n[redis]\nprefix = '{}'", "for `redis.prefix`");
    check("members = 'rediss://h'\n[redis]\ncert_file = 'c'", "redis.key_file belongs to it");
    check("members = 'redis://h'\n[redis]\ncert_file = 'c'\nkey_file = 'k'", "not one over TLS");
    check("members = 'redis://h'\n[redis]\nsentinel_user = 'u'", "redis.sentinel_password_file");
    check("[assign]\nurl = 'ws://gateway'", "for `assign.url`");
    check("[assign]\nurl = 'ftp://{node}'", "for `assign.url`");
    check("[assign]\nkeys = 0", "`assign.keys` is 0, but it must be above zero");
    check("[assign]\nkey_file = '/nowhere'", "`assign.key_file`");
    check("proxy_protocol_from = ['10.1.0.0/8']", "for `proxy_protocol_from`");
    check("[health]\ninterval = '0s'", "`health.interval` is 0");
    check("[health]\npath = '/a b'", "for `health.path`");
    check("[health]\nport = 0", "for `health.port`");
}

#[test]
fn reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/router-configuration.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference(),
        "docs/router-configuration.md is stale: BLESS=1 cargo test -p tidegate-router reference"
    );
}

/// The reference names keys and variables that really work.
#[test]
fn every_key_of_the_reference_is_known() {
    let mut entries: Vec<Entry> = Vec::new();
    Config::default().describe("", &[], None, &mut entries);
    assert!(entries.len() > 20);
    for entry in entries {
        let variable = format!("{PREFIX}{}", entry.key.replace('.', "__").to_uppercase());
        // An empty variable is not set, but its name must be right.
        assert!(load(&[(&variable, "")], &[]).is_ok(), "{variable}");
        assert!(entry.doc.iter().any(|line| !line.trim().is_empty()), "{} is not described", entry.key);
    }
    assert!(load(&[("TIDEGATE__HEALTH__PORTS", "")], &[]).is_err());
}
