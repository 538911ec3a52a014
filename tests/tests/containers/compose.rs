//! The compose file as a person runs it, and what breaks on a bad day: scaled, killed, restarted, cut off.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, chown},
    time::Duration,
};

use tidegate_testkit::{DEADLINE, Rest, SseClient, WsClient, eventually_some};

use crate::{
    docker::{docker, expect_health, inspect, log, try_docker},
    stack::{Stack, kill, message},
};

#[test]
fn it_runs_and_bears_what_happens_to_it() {
    let stack = Stack::new("trial", None);
    stack.up(&[]);
    stack.expect_nodes(3);
    println!("--- three gateways, a router and Redis are healthy");
    clients_get_what_is_published(&stack);
    nothing_is_written(&stack);
    five_gateways(&stack);
    a_gateway_is_killed(&stack);
    a_gateway_is_restarted(&stack);
    redis_is_killed(&stack);
    a_gateway_is_cut_off_and_back(&stack);
    clients_get_what_is_published(&stack);
}

/// Over both transports, and from the client to others.
fn clients_get_what_is_published(stack: &Stack) {
    let router = stack.router();
    let mut sockets: Vec<WsClient> =
        (0..6).map(|key| WsClient::connect(router, &format!("/ws?channel=news&key={key}"))).collect();
    let mut stream = SseClient::connect(router, "/sse?channel=news&key=sse", None);
    assert!(stack.rest().publish("news", "hello").is_some(), "the channel has history");
    for socket in &mut sockets {
        assert_eq!(socket.expect_text(), "hello");
    }
    assert_eq!(message(&mut stream, DEADLINE).unwrap().data, "hello");
    println!("--- WebSockets and an event stream get what is published");
}

fn nothing_is_written(stack: &Stack) {
    for service in ["gateway", "router"] {
        for container in stack.containers(service) {
            assert_eq!(inspect(&container, ".HostConfig.ReadonlyRootfs"), "true");
            // Where the secrets and configurations are mounted, Docker made the folders.
            let diff = docker(&["diff", &container]);
            let is_a_mount = |line: &str| ["/run", "/etc"].iter().any(|folder| line[2..].starts_with(folder));
            assert!(diff.lines().all(is_a_mount), "{service}: {diff}");
        }
    }
    println!("--- the roots are read-only");
}

fn five_gateways(stack: &Stack) {
    stack.up(&["--scale", "gateway=5", "--no-recreate"]);
    stack.expect_nodes(5);
    println!("--- five gateways");
}

/// Its clients come back to another, with what they missed.
fn a_gateway_is_killed(stack: &Stack) {
    let router = stack.router();
    let mut clients = positioned(stack, 20);
    let victim = &stack.containers("gateway")[0];
    kill(victim);
    let first = publish(stack, "after the kill");
    come_back(router, &mut clients, "after the kill");
    stack.expect_nodes(4);
    docker(&["start", victim]);
    expect_health(victim, "healthy");
    stack.expect_nodes(5);
    println!("--- a gateway was killed at {first}: {} clients have all", clients.len());
}

/// It drains: it ends by itself, with 0, within its grace, and its clients have come back meanwhile.
fn a_gateway_is_restarted(stack: &Stack) {
    let router = stack.router();
    let mut clients = positioned(stack, 20);
    let victim = &stack.containers("gateway")[1];
    // The grace of the compose file, 40 s; past it the exit code is 137.
    docker(&["stop", victim]);
    assert_eq!(inspect(victim, ".State.ExitCode"), "0", "{}", log(victim));
    publish(stack, "after the drain");
    come_back(router, &mut clients, "after the drain");
    docker(&["start", victim]);
    expect_health(victim, "healthy");
    stack.expect_nodes(5);
    println!("--- a gateway was drained and is back");
}

fn redis_is_killed(stack: &Stack) {
    let redis = &stack.containers("redis")[0];
    kill(redis);
    let gateway = &stack.containers("gateway")[0];
    expect_health(gateway, "unhealthy");
    docker(&["start", redis]);
    for gateway in stack.containers("gateway") {
        expect_health(&gateway, "healthy");
    }
    stack.expect_nodes(5);
    println!("--- Redis was killed and is back");
}

fn a_gateway_is_cut_off_and_back(stack: &Stack) {
    let router = stack.router();
    let mut clients = positioned(stack, 20);
    let victim = &stack.containers("gateway")[2];
    docker(&["network", "disconnect", &stack.network(), victim]);
    stack.expect_nodes(4);
    publish(stack, "after the cut");
    come_back(router, &mut clients, "after the cut");
    let ready = ["exec", victim, "/usr/local/bin/tidegate", "healthcheck", "http://127.0.0.1:9000/readyz"];
    eventually_some("it says itself that it is not ready", DEADLINE * 2, || {
        (!try_docker(&ready).status.success()).then_some(())
    });
    docker(&["network", "connect", &stack.network(), victim]);
    expect_health(victim, "healthy");
    stack.expect_nodes(5);
    println!("--- a gateway was cut off and is back");
}

/// A client of the channel `news`, and the id of the last event that it has.
struct Client {
    key: usize,
    stream: SseClient,
    id: String,
}

/// Clients over all gateways that know where they stand.
fn positioned(stack: &Stack, count: usize) -> Vec<Client> {
    let router = stack.router();
    let connect = |key: usize| SseClient::connect(router, &format!("/sse?channel=news&key={key}"), None);
    let mut streams: Vec<SseClient> = (0..count).map(connect).collect();
    publish(stack, "before");
    let told = streams.iter_mut().map(|stream| message(stream, DEADLINE).unwrap().id);
    let ids: Vec<String> = told.collect();
    let clients = streams.into_iter().zip(ids).enumerate();
    clients.map(|(key, (stream, id))| Client { key, stream, id }).collect()
}

/// The next message of each is `data`, on its connection or, where that ended, on a new one from its position.
fn come_back(router: SocketAddr, clients: &mut [Client], data: &str) {
    let mut moved = 0;
    for client in &mut *clients {
        let path = format!("/sse?channel=news&key={}", client.key);
        let what = format!("client {} gets '{data}'", client.key);
        let event = eventually_some(&what, Duration::from_secs(90), || {
            if let Some(event) = message(&mut client.stream, Duration::from_secs(30)) {
                return Some(event);
            }
            if let Ok(stream) = SseClient::try_connect(router, &path, Some(&client.id)) {
                client.stream = stream;
                moved += 1;
            }
            None
        });
        assert_eq!(event.data, data, "client {}", client.key);
    }
    println!("    {moved} of {} clients had to come back", clients.len());
}

/// As an application does: again, when a node that dies took the request with it.
#[track_caller]
fn publish(stack: &Stack, payload: &str) -> String {
    let rest: Rest = stack.rest();
    eventually_some("it is published", DEADLINE * 2, || {
        let answer = rest.try_post("/v1/channels/news/publish", "text/plain", payload)?;
        (answer.status == 200).then(|| answer.text())
    })
}

/// Files of 0600 that belong to a person: the containers run as that person.
#[test]
fn secrets_that_only_their_owner_may_read() {
    const OWNER: u32 = 12_345;
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("secrets");
    fs::create_dir(&secrets).unwrap();
    for name in ["api-key", "redis-password", "grafana-password", "app-secret"] {
        let path = secrets.join(name);
        fs::write(&path, format!("0123456789-of-{name}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
    }
    chown(&secrets, Some(OWNER), Some(OWNER)).unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
    let stack = Stack::new("secrets", Some((&secrets, "12345:12345")));
    stack.up(&["--scale", "gateway=1"]);
    clients_get_what_is_published(&stack);
}

/// Prometheus finds every node by the names that the engine gives out.
#[test]
fn prometheus_scrapes_every_node() {
    let stack = Stack::new("observed", None);
    stack.up(&["redis", "gateway", "router", "prometheus"]);
    let prometheus = Rest::new(stack.address("prometheus", "9090"));
    eventually_some("three gateways and a router are up", Duration::from_secs(90), || {
        let answer = prometheus.try_get("/api/v1/query?query=sum(up)")?;
        (answer.json()["data"]["result"][0]["value"][1] == "4").then_some(())
    });
}
