//! Tests of the configuration: precedence, refusals with their sentences, secrets, the reference.
#![allow(clippy::unwrap_used)]

mod pairs;

use std::{ffi::OsString, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use tidegate_backplane::Channel;

use tidegate_ops::{config::Load as _, log::LogFormat};

use super::*;
use crate::auth::Algorithm;

/// Sources made of texts; `FILE` in the expected sentence stands for the file's path.
#[derive(Default)]
struct Given<'a> {
    file: &'a str,
    variables: &'a [(&'a str, &'a str)],
    flags: &'a [(Flag, &'a str)],
}

impl Given<'_> {
    fn load(&self) -> (Result<Config, ConfigError>, Option<NamedTempFile>) {
        let file = (!self.file.is_empty()).then(|| file_with(self.file.as_bytes()));
        let sources = Sources {
            file: file.as_ref().map(|file| file.path().to_owned()),
            environment: self.variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            overrides: self.flags.iter().map(|(flag, value)| (*flag, (*value).to_owned())).collect(),
        };
        (Config::load(&sources), file)
    }

    fn config(&self) -> Config {
        self.load().0.unwrap()
    }

    #[track_caller]
    fn refused(&self, expect: &str) {
        let (result, file) = self.load();
        let path = file.map_or_else(|| PathBuf::from("no file"), |file| file.path().to_owned());
        let sentence = result.expect_err(expect).to_string();
        assert_eq!(sentence.replace(&path.display().to_string(), "FILE"), expect);
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}

fn file_with(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[track_caller]
fn refused_file(file: &str, expect: &str) {
    Given { file, ..Given::default() }.refused(expect);
}

#[track_caller]
fn refused_variable(name: &str, value: &str, expect: &str) {
    Given { variables: &[(name, value)], ..Given::default() }.refused(expect);
}

#[test]
fn nothing_given_is_production() {
    let config = Given::default().config();
    assert_eq!(config.listen, "127.0.0.1:8000".parse::<SocketAddr>().unwrap());
    assert!(!config.dev && config.auth.api_keys.is_empty() && config.auth.jwt.is_empty());
    assert!(!config.namespaces.default.anonymous_subscribe);
    assert_eq!(config.namespaces.default.history(), None);
    assert_eq!(&*config.advertised(), "127.0.0.1:8000");
    assert!(config.limits.connections > 0 && !config.node.is_empty());
}

#[test]
fn later_sources_win() {
    let file = "zone = 'file'\nnode = 'file'\nadvertise = 'file:1'\n[log]\nlevel = 'warn'\nformat = 'json'";
    let variables =
        [("TIDEGATE__NODE", "env"), ("TIDEGATE__ADVERTISE", "env:1"), ("TIDEGATE__LOG__LEVEL", "debug")];
    let config = Given {
        file,
        variables: &variables,
        flags: &[(flags::ADVERTISE, "flag:1"), (flags::LOG_LEVEL, "error")],
    }
    .config();
    assert_eq!(config.zone.as_deref(), Some("file"));
    assert_eq!(&*config.node, "env");
    assert_eq!(&*config.advertised(), "flag:1");
    assert_eq!(config.log.level.as_str(), "error");
    assert_eq!(config.log.format, LogFormat::Json, "a section is merged, not replaced");
}

#[test]
fn file_named_by_a_variable() {
    let named = file_with(b"zone = 'variable'");
    let path = named.path().to_str().unwrap();
    let variables = [("TIDEGATE__CONFIG", path)];
    assert_eq!(
        Given { variables: &variables, ..Given::default() }.config().zone.as_deref(),
        Some("variable")
    );
    let both = Given { file: "zone = 'flag'", variables: &variables, ..Given::default() };
    assert_eq!(both.config().zone.as_deref(), Some("flag"));
}

#[test]
fn every_kind_of_value_from_variables() {
    let config = Given {
        variables: &[
            ("TIDEGATE__SHARDS", "3"),
            ("TIDEGATE__LIMITS__MESSAGE_BYTES", "16KiB"),
            ("TIDEGATE__LIMITS__BODY_BYTES", "2097152"),
            ("TIDEGATE__DRAIN__PERIOD", "1m30s"),
            ("TIDEGATE__AUTH__ALLOWED_ORIGINS", "https://a.example, https://*.b.example"),
            ("TIDEGATE__AUTH__API_KEYS__0__NAME", "ci"),
            ("TIDEGATE__AUTH__API_KEYS__0__KEY", "0123456789abcdef"),
            ("TIDEGATE__AUTH__API_KEYS__0__SCOPES", "publish,admin"),
            ("TIDEGATE__NAMESPACES__CHAT__PRESENCE", "true"),
            ("TIDEGATE__ZONE", ""),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:8000"),
            ("PATH", "/bin"),
        ],
        ..Given::default()
    }
    .config();
    assert_eq!(config.shards.get(), 3);
    assert_eq!(config.limits.message_bytes, ByteSize::kib(16));
    assert_eq!(config.limits.body_bytes.bytes(), 2 << 20);
    assert_eq!(config.drain.period, Duration::from_secs(90));
    assert_eq!(config.auth.allowed_origins.len(), 2);
    assert_eq!(config.auth.api_keys[0].scopes, [Scope::Publish, Scope::Admin]);
    assert!(config.namespaces.named["chat"].presence);
    assert_eq!(config.zone, None, "an empty variable is not set");
}

#[test]
fn a_variable_reaches_into_an_entry_of_the_file() {
    let secret = file_with(b"0123456789abcdef0123456789abcdef\r\n");
    let config = Given {
        file: "[[auth.jwt]]\nalgorithm = 'HS256'\nissuer = 'me'",
        variables: &[("TIDEGATE__AUTH__JWT__0__SECRET_FILE", secret.path().to_str().unwrap())],
        ..Given::default()
    }
    .config();
    let key = &config.auth.jwt[0];
    assert_eq!((key.algorithm, key.issuer.as_deref()), (Some(Algorithm::Hs256), Some("me")));
    assert_eq!(key.secret, Some(Secret::new(b"0123456789abcdef0123456789abcdef")));
}

#[test]
fn a_variable_reaches_an_app_whose_id_is_a_number() {
    let config = Given {
        variables: &[
            ("TIDEGATE__APPS__1__KEY", "k"),
            ("TIDEGATE__APPS__1__SECRET", "s"),
            ("TIDEGATE__APPS__1__WEBHOOKS__0__URL", "http://h/"),
        ],
        ..Given::default()
    }
    .config();
    let (id, app) = config.apps.0.first_key_value().unwrap();
    assert_eq!((id.as_str(), app.key.as_deref()), ("1", Some("k")));
    assert_eq!(app.webhooks.len(), 1);
}

#[test]
fn unknown_keys() {
    refused_file("listne = 'x'", "unknown key `listne` in FILE; did you mean `listen`?");
    refused_file(
        "[limits]\nconections = 1",
        "unknown key `limits.conections` in FILE; did you mean `connections`?",
    );
    refused_file("[limits]\nzebra = 1", "unknown key `limits.zebra` in FILE");
    refused_file(
        "[namespaces.chat]\nhistroy_size = 1",
        "unknown key `namespaces.chat.histroy_size` in FILE; did you mean `history_size`?",
    );
    refused_file("[namespaces.default.x]\ny = 1", "unknown key `namespaces.default.x` in FILE");
    refused_file("[namespaces.'a:b']\npresence = true", "unknown key `namespaces.a:b` in FILE");
    refused_file(
        "[[auth.api_keys]]\nname = 'a'\nkeys = 'b'",
        "unknown key `auth.api_keys[0].keys` in FILE; did you mean `key`?",
    );
    let there = |name: &str, key: &str| format!("unknown key `{key}` in the environment variable {name}");
    for (name, key) in [
        ("TIDEGATE__ZEBRA", "zebra"),
        ("TIDEGATE__LIMITS__ZEBRA", "limits.zebra"),
        ("TIDEGATE__AUTH__JWT__0__ZEBRA", "auth.jwt[0].zebra"),
        ("TIDEGATE__", "TIDEGATE__"),
        ("TIDEGATE__LIMITS__", "TIDEGATE__LIMITS__"),
    ] {
        refused_variable(name, "1", &there(name, key));
    }
    // An empty value does not hide a misspelled name.
    refused_variable("TIDEGATE__ZEBRA", "", &there("TIDEGATE__ZEBRA", "zebra"));
}

#[test]
fn a_huge_index_is_no_index() {
    refused_variable(
        "TIDEGATE__AUTH__JWT__4000000000__KID",
        "k",
        "bad value (a table) for `auth.jwt` in the environment variable TIDEGATE__AUTH__JWT__4000000000__KID: \
         expected a list of tables",
    );
    refused_variable(
        "TIDEGATE__AUTH__JWT__1__KID",
        "k",
        "`auth.jwt[0].algorithm` is missing in the defaults",
    );
}

#[test]
fn bad_values_name_key_value_source_and_expectation() {
    refused_file(
        "listen = 'localhost'",
        r#"bad value "localhost" for `listen` in FILE: expected an IP address and port such as "127.0.0.1:8000" or "[::]:8000""#,
    );
    refused_file("shards = 0", "bad value 0 for `shards` in FILE: expected a whole number from 1 to 64");
    refused_file("dev = 'yes'", r#"bad value "yes" for `dev` in FILE: expected true or false"#);
    refused_file("limits = 3", "bad value 3 for `limits` in FILE: expected a table of keys");
    refused_file(
        "[limits]\nconnections = -1",
        "bad value -1 for `limits.connections` in FILE: expected a whole number from 0 to 4294967295",
    );
    refused_file(
        "[heartbeat]\ninterval = 25",
        r#"bad value 25 for `heartbeat.interval` in FILE: expected a duration such as "10s", "500ms" or "5m" (units: ms, s, m, h, d)"#,
    );
    refused_file(
        "[namespaces.chat]\nslow_reader = 'kick'",
        r#"bad value "kick" for `namespaces.chat.slow_reader` in FILE: expected "disconnect", "drop" or "latest""#,
    );
    refused_file(
        "[auth]\nallowed_origins = ['https://a.example', 'example.org']",
        r#"bad value (a list) for `auth.allowed_origins` in FILE: expected a list of origins: "https://app.example.org", "https://*.example.org", "same-origin", "localhost", "null", "*""#,
    );
    refused_variable(
        "TIDEGATE__LIMITS__MESSAGE_BYTES",
        "64kb",
        r#"bad value "64kb" for `limits.message_bytes` in the environment variable TIDEGATE__LIMITS__MESSAGE_BYTES: expected a size in bytes such as 65536 or "64KiB" (units: KiB, MiB, GiB)"#,
    );
    Given { flags: &[(flags::SHARDS, "many")], ..Given::default() }.refused(
        r#"bad value "many" for `shards` in the flag --shards: expected a whole number from 1 to 64"#,
    );
    Given { flags: &[(flags::LOG_LEVEL, "loud")], ..Given::default() }
        .refused(r#"bad value "loud" for `log.level` in the flag --log-level: expected a level (error, warn, info, debug, trace, off), or levels per module such as "info,tidegate_gateway=debug""#);
}

#[test]
fn redis_urls() {
    let with = |url: &str| Given { flags: &[(flags::BACKPLANE, url)], ..Given::default() }.load().0;
    for url in [
        "redis://h",
        "redis://:p@a,b,c/3",
        "rediss://user:pa55@host:6379",
        "redis-sentinel://s1,s2:26380/main",
        "rediss-cluster://a,[::1]:7000",
    ] {
        let config = with(url).unwrap();
        assert!(!format!("{config:?}").contains("pa55"), "{config:?}");
        assert_eq!(config.redis_options().unwrap().unwrap().node, config.node);
    }
    let refused =
        |url, expect| Given { flags: &[(flags::BACKPLANE, url)], ..Given::default() }.refused(expect);
    refused(
        "http://user:pass@host",
        r#"bad value "http://…@host" for `backplane` in the flag --backplane: expected "memory", or a URL such as "redis://h:6379", "redis-sentinel://s1,s2/NAME" or "redis-cluster://a,b""#,
    );
    // Also where it is no URL at all: a password comes before the last @.
    for (url, shown) in [
        (":hunter2@h:6379", "…@h:6379"),
        ("redis:/me:hunter2@h", "…@h"),
        ("redis//:hunter2@h:6379", "…@h:6379"),
        ("http://me:hun@ter2@h", "http://…@h"),
        ("me:hunter2@http://h", "…@http://h"),
    ] {
        let (config, _path) = Given { flags: &[(flags::BACKPLANE, url)], ..Given::default() }.load();
        let text = config.unwrap_err().to_string();
        assert!(text.starts_with(&format!("bad value {shown:?} for `backplane`")), "{text}");
    }
    refused("redis://user:pass@", "`backplane` cannot be used: the Redis URL names no host, or an empty one");
    refused(
        "redis://pass@host",
        "`backplane` cannot be used: the Redis URL has a user but no password; write user:password@",
    );
}

#[test]
fn the_section_about_redis() {
    let password = file_with(b"s3cret/\n");
    let path = password.path().display();
    let file = |url: &str, more: &str| format!("backplane = '{url}'\n[redis]\n{more}");
    let password_file = format!("password_file = '{path}'");
    let good =
        file("rediss://me@h", &format!("{password_file}\nprefix = 'two'\nlease = '3s'\nca_file = 'ca.pem'"));
    let options = Given { file: &good, ..Given::default() }.config().redis_options().unwrap().unwrap();
    assert_eq!((options.prefix.as_str(), options.lease.as_secs()), ("two", 3));
    assert!(options.files.ca.is_some() && options.files.password.is_some());
    assert!(options.url == "rediss://me:s3cret%2F@h".parse().unwrap());
    refused_file(
        &file("redis://:p@h", &password_file),
        "`redis.password_file` and `backplane` do not fit together: the URL has a password itself",
    );
    refused_file(
        &file("redis://h", "password_file = '/nonexistent/password'"),
        "cannot read /nonexistent/password for `redis.password_file`: No such file or directory (os error 2)",
    );
    refused_file(
        &file("redis://h", "ca_file = 'ca.pem'"),
        "`redis.ca_file` and `backplane` do not fit together: the URL is not one over TLS, such as rediss://",
    );
    refused_file(&file("redis://h", "lease = '500ms'"), r#"`redis.lease` is "500ms", but the least is "1s""#);
    refused_file(
        "[redis]\nprefix = 'a:b'",
        r#"bad value "a:b" for `redis.prefix` in FILE: expected 1 to 64 letters, digits or characters of _-."#,
    );
}

#[test]
fn broken_files() {
    refused_file("zone = 'a'\nnode == 1", "FILE:2:7: not valid TOML: extra `=`, expected nothing");
    let missing = Sources { file: Some("/nonexistent/tidegate.toml".into()), ..Sources::default() };
    let sentence = Config::load(&missing).unwrap_err().to_string();
    assert!(
        sentence.starts_with("cannot read the configuration file /nonexistent/tidegate.toml: "),
        "{sentence}"
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text() {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = vec![(OsString::from("TIDEGATE__ZONE"), OsString::from_vec(vec![0xff]))];
    let error = Config::load(&Sources { environment, ..Sources::default() }).unwrap_err();
    assert_eq!(error.to_string(), "the environment variable TIDEGATE__ZONE is not valid UTF-8");
}

#[test]
fn secrets_are_complete_and_of_one_kind() {
    let jwt = |keys: &str| format!("[[auth.jwt]]\n{keys}");
    let one_of = "secret, secret_file, public_key, public_key_file, jwks_file, jwks_url";
    refused_file(&jwt("secret = 'x'"), "`auth.jwt[0].algorithm` is missing in FILE");
    refused_file(
        &jwt("algorithm = 'RS256'"),
        &format!("`auth.jwt[0]` in FILE needs exactly one of {one_of}, but has 0"),
    );
    refused_file(
        &jwt("algorithm = 'HS256'\nsecret = 'x'\nsecret_file = 'y'"),
        &format!("`auth.jwt[0]` in FILE needs exactly one of {one_of}, but has 2"),
    );
    refused_file(
        &jwt("algorithm = 'none'\nsecret = 'x'"),
        r#"bad value "none" for `auth.jwt[0].algorithm` in FILE: expected "HS256", "RS256", "ES256" or "EdDSA""#,
    );
    refused_file(
        &jwt("algorithm = 'RS256'\nsecret = '0123456789abcdef0123456789abcdef'"),
        "`auth.jwt[0].algorithm` and `auth.jwt[0].secret` do not fit together: a secret is for HS256 only",
    );
    refused_file(
        &jwt("algorithm = 'HS256'\njwks_url = 'https://id.example/jwks'"),
        "`auth.jwt[0].algorithm` and `auth.jwt[0].jwks_url` do not fit together: a secret must not be served over HTTP",
    );
    refused_file(
        &jwt("algorithm = 'HS256'\nsecret = 'short'"),
        "`auth.jwt[0].secret` cannot be used: HS256 needs a secret of at least 32 bytes",
    );
    refused_file(
        &jwt("algorithm = 'ES256'\njwks_url = 'https://id.example/jwks'\njwks_min_refetch = '0s'"),
        "`auth.jwt[0].jwks_min_refetch` and `auth.jwt[0].jwks_refresh` do not fit together: jwks_min_refetch is at least 1s, and jwks_refresh at least jwks_min_refetch",
    );
    let api = |keys: &str| format!("[[auth.api_keys]]\n{keys}");
    refused_file(&api("key = '0123456789abcdef'"), "`auth.api_keys[0].name` is missing in FILE");
    refused_file(
        &api("name = 'a'"),
        "`auth.api_keys[0]` in FILE needs exactly one of key, key_file, key_sha256, but has 0",
    );
    refused_file(
        &api("name = 'a'\nkey = 'short'"),
        "`auth.api_keys[0].key` cannot be used: an API key has at least 16 characters",
    );
    refused_file(
        &api("name = 'a'\nkey_sha256 = 'abc'"),
        "bad value (hidden) for `auth.api_keys[0].key_sha256` in FILE: expected a SHA-256 digest as 64 hexadecimal digits",
    );
    let twice = format!("{0}{0}", api("name = 'a'\nkey = '0123456789abcdef'\n"));
    refused_file(&twice, r#"two entries of `auth.api_keys` are named "a""#);
}

#[test]
fn secret_files() {
    let empty = file_with(b"\n");
    let path = empty.path().display();
    refused_file(
        &format!("[[auth.api_keys]]\nname = 'a'\nkey_file = '{path}'"),
        &format!("`auth.api_keys[0].key_file` in {path} cannot be used: it is empty"),
    );
    refused_file(
        "[[auth.api_keys]]\nname = 'a'\nkey_file = '/nonexistent/key'",
        "cannot read /nonexistent/key for `auth.api_keys[0].key_file`: No such file or directory (os error 2)",
    );
    let key = file_with(b"0123456789abcdef\n");
    let config = Given {
        file: &format!("[[auth.api_keys]]\nname = 'a'\nkey_file = '{}'", key.path().display()),
        ..Given::default()
    }
    .config();
    assert_eq!(config.auth.api_keys[0].key, Some(Secret::new(b"0123456789abcdef")));
}

#[test]
fn debug_hides_secrets() {
    let file = "[[auth.jwt]]\nalgorithm = 'HS256'\nsecret = 'jwt-secret-jwt-secret-jwt-secret-'\n\
                [[auth.api_keys]]\nname = 'a'\nkey = 'api-key-api-key-api-key'";
    let shown = format!("{:?}", Given { file, ..Given::default() }.config());
    assert!(!shown.contains("jwt-secret") && !shown.contains("api-key-api"), "{shown}");
}

#[test]
fn dev_is_loopback_with_fixed_credentials() {
    let config = Given { flags: &[(flags::DEV, "true")], ..Given::default() }.config();
    assert!(config.dev && config.namespaces.default.anonymous_subscribe);
    assert_eq!(config.namespaces.default.history().unwrap().size, 100);
    let names: Vec<_> = config.auth.api_keys.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["dev-key"]);

    let listen = [(flags::DEV, "true"), (flags::LISTEN, "0.0.0.0:8000")];
    let sentence = |key, address| {
        format!(
            "`{key}` is {address}, but --dev has fixed credentials and listens on loopback addresses only \
             (for a trial in a container: --dev-anywhere)"
        )
    };
    Given { flags: &listen, ..Given::default() }.refused(&sentence("listen", "0.0.0.0:8000"));
    let internal = [(flags::DEV, "true"), (flags::INTERNAL, "[::]:9000")];
    Given { flags: &internal, ..Given::default() }.refused(&sentence("internal", "[::]:9000"));
    let loopback = [(flags::DEV, "true"), (flags::LISTEN, "[::1]:0")];
    assert_eq!(Given { flags: &loopback, ..Given::default() }.config().listen.port(), 0);
    let anywhere = [(flags::DEV, "true"), (flags::DEV_ANYWHERE, "true"), (flags::LISTEN, "0.0.0.0:8000")];
    assert!(Given { flags: &anywhere, ..Given::default() }.config().listen.ip().is_unspecified());
}

#[test]
fn dev_can_be_overridden_and_keeps_its_key() {
    let file = "dev = true\n[namespaces.default]\nanonymous_subscribe = false\n\
                [[auth.api_keys]]\nname = 'mine'\nkey = '0123456789abcdef'";
    let config = Given { file, ..Given::default() }.config();
    assert!(!config.namespaces.default.anonymous_subscribe);
    let names: Vec<_> = config.auth.api_keys.iter().map(|key| &*key.name).collect();
    assert_eq!(names, ["mine", "dev-key"]);
}

#[test]
fn a_configuration_without_any_key_is_good_for_nothing() {
    let lacks = |file: &str| Given { file, ..Given::default() }.config().without_use().len();
    assert_eq!(lacks(""), 2);
    assert_eq!(lacks("[namespaces.news]\nanonymous_subscribe = true"), 1);
    assert_eq!(lacks("[[auth.api_keys]]\nname = 'a'\nkey = '0123456789abcdef'"), 0);
    assert_eq!(lacks("[apps.shop]\nkey = 'k'\nsecret = '0123456789abcdef'"), 0);
    assert_eq!(lacks("dev = true"), 0);
}

#[test]
fn namespaces_inherit_from_default() {
    let file =
        "[namespaces.chat]\npresence = true\n[namespaces.default]\nhistory_size = 5\nhistory_age = '1m'";
    let config = Given { file, ..Given::default() }.config();
    let of = |name: &str| config.namespaces.of(&Channel::new(name).unwrap()).clone();
    assert!(of("chat:1").presence && !of("chat").presence && !of("other:1").presence);
    assert_eq!(of("chat:1").history_size, 5);
}

#[test]
fn advertised_is_reachable() {
    let config = Given { flags: &[(flags::LISTEN, "0.0.0.0:8123")], ..Given::default() }.config();
    let advertised = config.advertised();
    assert!(advertised.ends_with(":8123") && !advertised.starts_with("0.0.0.0"), "{advertised}");
    refused_file(
        "advertise = 'nowhere'",
        r#"bad value "nowhere" for `advertise` in FILE: expected a host and port such as "gateway-0.gateway:8000""#,
    );
}

proptest! {
    /// Whatever a file or a variable says, the answer is a configuration or one line.
    #[test]
    fn refusals_are_one_line(file in "\\PC{0,40}|[a-z\\[\\]=.'\"\n 0-9]{0,60}", name in "[A-Z0-9_]{0,20}", value in "\\PC{0,10}") {
        let name = format!("TIDEGATE__{name}");
        prop_assume!(name != "TIDEGATE__CONFIG");
        let given = Given { file: &file, variables: &[(&name, &value)], ..Given::default() };
        if let (Err(error), _file) = given.load() {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

/// `docs/configuration.md` is what the code says. `BLESS=1` writes it.
#[test]
fn reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference(),
        "docs/configuration.md is stale: BLESS=1 cargo test -p tidegate-gateway reference"
    );
}

/// The reference names keys and variables that really work.
#[test]
fn every_key_of_the_reference_is_known() {
    let mut entries = Vec::new();
    Config::default().describe("", &[], None, &mut entries);
    assert!(entries.len() > 50, "{}", entries.len());
    for entry in entries {
        let variable =
            format!("{PREFIX}{}", entry.key.replace("[N]", "__0").replace('.', "__").to_uppercase());
        let given = Given { variables: &[(&variable, "\u{1}")], ..Given::default() };
        if let (Err(error), _) = given.load() {
            assert!(!matches!(error, ConfigError::UnknownKey { .. }), "{}: {error}", entry.key);
        }
    }
}

#[test]
fn flags_are_settings() {
    let mut entries = Vec::new();
    Config::default().describe("", &[], None, &mut entries);
    for flag in flags::ALL {
        assert!(entries.iter().any(|entry| entry.key == flag.key), "{}", flag.name);
    }
}

/// What `docs/authentication.md` shows can be loaded, but for the files that it names.
#[test]
fn examples_of_the_documentation() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/authentication.md")).unwrap();
    let examples: Vec<_> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        match (Given { file: example, ..Given::default() }.load()).0 {
            Ok(_) | Err(ConfigError::KeyFile { .. }) => {}
            Err(error) => panic!("{error}:\n{example}"),
        }
    }
}
