//! Which arguments are taken, and what is said of others.

#![allow(clippy::unwrap_used)]

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Command {
    Args::try_parse_from(line.split_whitespace()).unwrap().into_command()
}

fn gateway(line: &str) -> GatewayArgs {
    match parse(line) {
        Command::Gateway(args) => args,
        other => panic!("{other:?}"),
    }
}

fn storm(line: &str) -> StormArgs {
    match parse(line) {
        Command::Storm(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clap_is_content() {
    Args::command().debug_assert();
}

#[test]
fn nothing_is_gateway_dev() {
    assert_eq!(gateway("tidegate").overrides(), [(flags::DEV, "true".to_owned())]);
    assert_eq!(gateway("tidegate gateway").overrides(), []);
}

/// Every flag of the configuration is a flag of the command, sets itself, and no other.
#[test]
fn every_flag_of_the_configuration() {
    for flag in flags::ALL {
        let (line, value) = match flag {
            flags::DEV | flags::REUSE_PORT => (format!("tidegate gateway {}", flag.name), "true"),
            // Sets three: see below.
            flags::DEV_ANYWHERE => continue,
            _ => (format!("tidegate gateway {} value", flag.name), "value"),
        };
        assert_eq!(gateway(&line).overrides(), [(flag, value.to_owned())], "{line}");
    }
}

#[test]
fn dev_anywhere_is_dev_that_others_reach() {
    let of = |line: &str| gateway(line).overrides();
    let (dev, anywhere) = ((flags::DEV, "true".to_owned()), (flags::DEV_ANYWHERE, "true".to_owned()));
    let listen = |address: &str| (flags::LISTEN, address.to_owned());
    let expect = [listen("0.0.0.0:8000"), dev.clone(), anywhere.clone()];
    assert_eq!(of("tidegate gateway --dev-anywhere"), expect);
    let expect = [listen("[::]:80"), dev, anywhere];
    assert_eq!(of("tidegate gateway --dev-anywhere --listen [::]:80"), expect);
}

#[test]
fn every_flag_of_the_routers_configuration() {
    for flag in router_flags::ALL {
        let (line, value) = match flag {
            router_flags::REUSE_PORT => (format!("tidegate router {}", flag.name), "true"),
            _ => (format!("tidegate router {} value", flag.name), "value"),
        };
        match parse(&line) {
            Command::Router(args) => assert_eq!(args.overrides(), [(flag, value.to_owned())], "{line}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn config_and_check() {
    let args = gateway("tidegate gateway --check --config /etc/tidegate.toml");
    assert!(args.check);
    assert_eq!(args.into_sources().file, Some("/etc/tidegate.toml".into()));
}

#[test]
fn storm_defaults_and_units() {
    let args = storm("tidegate storm");
    assert_eq!((args.connections.get(), args.channels.get(), args.in_flight.get()), (1000, 1, 1));
    assert_eq!((args.rate, args.payload.bytes(), args.duration), (None, 130, Duration::from_secs(10)));
    let args = storm("tidegate storm http://gate:80 --rate 50 --payload 4KiB --duration 1m30s --json");
    assert_eq!((args.url.as_str(), args.rate.unwrap().get()), ("http://gate:80", 50));
    assert_eq!((args.payload.bytes(), args.duration, args.json), (4096, Duration::from_secs(90), true));
}

#[test]
fn refused() {
    for line in [
        "tidegate zebra",
        "tidegate --dev",
        "tidegate gateway --zebra",
        "tidegate storm --rate 1 --in-flight 2",
        "tidegate storm --api-key a --api-key-file b",
        "tidegate storm --connections 0",
        "tidegate storm --duration 10",
        "tidegate storm --payload 4kb",
        "tidegate check",
        "tidegate token --channel a --expires 5",
        "tidegate doctor --connections 0",
        "tidegate doctor --gateways 3",
        "tidegate doctor --idle 5s",
        "tidegate doctor --url http://gate --idle 2h",
        "tidegate doctor --url http://gate --idle 0s",
    ] {
        let error = Args::try_parse_from(line.split_whitespace()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn doctor() {
    match parse("tidegate doctor --connections 100000 --router --url http://gate --idle 1m30s") {
        Command::Doctor(args) => {
            assert_eq!((args.connections.unwrap().get(), args.router), (100_000, true));
            assert_eq!((args.gateways.get(), args.channel.as_str()), (1, "doctor"));
            assert_eq!(args.idle, Some(Duration::from_secs(90)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn check() {
    match parse("tidegate check http://gate:80 --channel-prefix a:b --api-key-file /run/key") {
        Command::Check(args) => {
            assert_eq!((args.url.as_str(), args.channel_prefix.as_str()), ("http://gate:80", "a:b"));
            assert_eq!(args.api_key_file, Some("/run/key".into()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn healthcheck() {
    match parse("tidegate healthcheck http://127.0.0.1:9000/readyz") {
        Command::Healthcheck(args) => assert_eq!(args.timeout, Duration::from_secs(3)),
        other => panic!("{other:?}"),
    }
}
