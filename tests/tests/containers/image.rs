//! What one container of the image does: size, health of each role, the one-line trial, limits, signals.

use std::time::Duration;

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Rest, SseClient, eventually_some};

use crate::{
    docker::{Container, HEALTHY_MAX, IMAGE, docker, expect_health, inspect, log, try_docker},
    stack::message,
};

/// The base is 24 MB and the stripped binary about 20; with line tables it is 99.
const IMAGE_BYTES_MAX: u64 = 70_000_000;

#[test]
fn the_image_is_small_and_runs_as_nobody() {
    let bytes: u64 = docker(&["image", "inspect", "--format", "{{.Size}}", IMAGE]).parse().unwrap();
    println!("the image has {} MB", bytes / 1_000_000);
    assert!(bytes < IMAGE_BYTES_MAX, "{bytes} bytes");
    let version = docker(&["run", "--rm", "--network", "none", IMAGE, "--version"]);
    assert!(version.starts_with("tidegate "), "{version}");
    assert_eq!(docker(&["image", "inspect", "--format", "{{.Config.User}}", IMAGE]), "65532:65532");
    // No shell and nothing else to run.
    assert!(
        !try_docker(&["run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", IMAGE]).status.success()
    );
}

#[test]
fn every_role_is_found_healthy_without_an_address() {
    let locked = ["--read-only", "--cap-drop", "ALL", "--health-interval", "5s"];
    let gateway = Container::run(&locked, &[]);
    let router = Container::run(&locked, &["router", "--members", "static:127.0.0.1:8000"]);
    let moved = Container::run(&locked, &["gateway", "--dev", "--internal", "127.0.0.1:9555"]);
    let below_an_init = Container::run(&[&locked[..], &["--init"]].concat(), &["router"]);
    for container in [&gateway, &router, &moved, &below_an_init] {
        expect_health(container.id(), "healthy");
        // The engine makes a place for the init that it brings.
        let diff = docker(&["diff", container.id()]);
        assert!(diff.lines().all(|line| line.contains("/sbin")), "something was written: {diff}");
    }
}

#[test]
fn one_line_is_a_trial() {
    let container = Container::run(&["--publish", "127.0.0.1:0:8000"], &["gateway", "--dev-anywhere"]);
    expect_health(container.id(), "healthy");
    let address = container.address("8000/tcp");
    assert_eq!(Rest::new(address).get("/").status, 200, "the page is there");
    let mut stream = SseClient::connect(address, "/sse?channel=news", None);
    Rest::new(address).with_key("dev-key").publish("news", "hello");
    assert_eq!(message(&mut stream, DEADLINE).unwrap().data, "hello");
    assert!(log(container.id()).contains("whoever reaches 0.0.0.0:8000"));
}

/// What the control groups and limits of the container allow is what the doctor reckons with.
#[test]
fn the_doctor_is_right_inside_limits() {
    let limits = ["--memory", "512m", "--cpus", "0.5", "--ulimit", "nofile=4096:4096"];
    let mut words = vec!["run", "--rm", "--network", "none"];
    words.extend(limits);
    words.extend([IMAGE, "doctor", "--json"]);
    let report: Value = serde_json::from_str(&docker(&words)).unwrap();
    let text = report.to_string();
    println!("{text}");
    assert_eq!(report["machine"]["place"], "container", "{text}");
    let limits = report["machine"]["limits"].as_array().unwrap();
    let of = |resource: &str| {
        let limit = limits.iter().find(|limit| limit["resource"] == resource);
        limit.unwrap_or_else(|| panic!("no {resource} in {text}"))["because"].as_str().unwrap().to_owned()
    };
    assert!(of("descriptors").contains("4,096"), "{text}");
    assert!(of("memory").contains("512"), "{text}");
    assert!(of("cpu").contains("0.5"), "{text}");
}

/// The kernel ignores signals that process 1 has no handler for.
#[test]
fn every_role_ends_on_a_signal_within_its_grace() {
    let gateway = Container::run(&[], &["gateway", "--dev"]);
    let router = Container::run(&[], &["router"]);
    for container in [&gateway, &router] {
        expect_health(container.id(), "healthy");
        docker(&["stop", "--time", "40", container.id()]);
        assert_eq!(inspect(container.id(), ".State.ExitCode"), "0", "{}", log(container.id()));
    }
}

/// A load whose server goes away comes back when it does, says so, and reports when it is told to end.
#[test]
fn a_storm_survives_its_server_and_reports_when_it_is_stopped() {
    let server = Container::run(&["--publish", "127.0.0.1:0:8000"], &["gateway", "--dev-anywhere"]);
    expect_health(server.id(), "healthy");
    let url = format!("http://{}", server.address("8000/tcp"));
    let load = ["storm", &url, "--connections=20", "--rate=10", "--duration=1h"];
    let network = ["run", "--detach", "--network", "host"];
    let storm = docker(&[&network[..], &[IMAGE], &load].concat());
    let received = |what: &str| {
        eventually_some(what, HEALTHY_MAX, || log(&storm).contains("20 of 20 connections").then_some(()))
    };
    received("the storm is up");
    docker(&["restart", server.id()]);
    eventually_some("the storm says that it lost connections", HEALTHY_MAX, || {
        log(&storm).contains("connections came back").then_some(())
    });
    let began = std::time::Instant::now();
    docker(&["stop", "--time", "30", &storm]);
    let told = log(&storm);
    let code = inspect(&storm, ".State.ExitCode");
    docker(&["rm", "--force", &storm]);
    assert!(told.contains("storm of http://"), "{told}");
    assert_ne!(code, "137", "it was killed after {:?}: {told}", began.elapsed());
    assert!(Duration::from_secs(30) > began.elapsed());
}
