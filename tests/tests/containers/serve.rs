//! `tidegate serve` in one container, by its compose file: healthy, one gateway killed and started again, stopped in time.

use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_testkit::{DEADLINE, Received, WsClient, eventually_some};

use crate::{
    docker::{HEALTHY_MAX, docker, expect_health, inspect, log},
    stack::Stack,
};

const CLIENTS: usize = 40;

#[test]
fn one_container_holds_gateways_and_starts_them_again() {
    let stack = Stack::serve("serve");
    stack.up(&[]);
    stack.expect_nodes(4);
    let containers = stack.containers("tidegate");
    let container = &containers[0];
    expect_health(container, "healthy");
    let diff = docker(&["diff", container]);
    let is_a_mount = |line: &str| ["/run", "/etc", "/tmp"].iter().any(|folder| line[2..].starts_with(folder));
    assert!(diff.lines().all(is_a_mount), "the root is read-only: {diff}");

    let open = |key: usize| WsClient::connect(stack.router(), &format!("/ws?channel=news&key={key}"));
    let mut clients: Vec<WsClient> = (0..CLIENTS).map(open).collect();
    stack.rest().publish("news", "hello");
    clients.iter_mut().for_each(|client| assert_eq!(client.expect_text(), "hello"));

    kill_one_gateway(container);
    let mut lost = 0;
    eventually_some("the gateway is started again", HEALTHY_MAX, || {
        log(container).contains("a child has ended and is started again").then_some(())
    });
    stack.expect_nodes(4);
    stack.rest().publish("news", "after");
    for (key, client) in clients.iter_mut().enumerate() {
        if !matches!(client.next(DEADLINE), Received::Text(text) if text == "after") {
            lost += 1;
            *client = open(key);
        }
    }
    assert!(lost > 0 && lost < CLIENTS, "{lost} of {CLIENTS} were on the gateway that was killed");
    assert_eq!(inspect(container, ".RestartCount"), "0");
    println!("--- a gateway was killed with {lost} of {CLIENTS} clients, and started again");

    docker(&["stop", "--time", "60", container]);
    clients.iter_mut().for_each(|client| drop(client.expect_close(1012)));
    assert_eq!(inspect(container, ".State.ExitCode"), "0", "{}", log(container));
    println!("--- stopped, with a close for each client");
}

/// From outside: the image has nothing that could do it.
fn kill_one_gateway(container: &str) {
    let processes = docker(&["top", container, "-eo", "pid,args"]);
    let gateway = processes.lines().find(|line| line.contains(" gateway ")).unwrap();
    let pid = here(gateway.split_whitespace().next().unwrap());
    kill_process(pid, Signal::KILL).unwrap();
}

/// What a process of a container is called here, where the engine may have processes of its own: by the names that the
/// kernel gives it in each of the nested namespaces, of which the container's is the last.
fn here(of_engine: &str) -> Pid {
    let name_here = |entry: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
        let names = status
            .starts_with("Name:\ttidegate\n")
            .then(|| status.lines())?
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        let names: Vec<&str> = names.split_whitespace().collect();
        (names.len() > 1 && names[names.len() - 2] == of_engine).then(|| names[0].parse().ok())?
    };
    let pid = fs::read_dir("/proc").unwrap().find_map(name_here).expect("a process of a container");
    Pid::from_raw(pid).unwrap()
}
