//! Event sources over a drain and a restart of their gateway: none of them is dead for good.

use tidegate_testkit::{DEADLINE, Gateway, Stop, Tool, chromium_path, eventually_some};

const DRAIN: &str = "[drain]\nsettle = \"1s\"\nperiod = \"3s\"\nclose_wait = \"1s\"\n";

/// The sources come to a gateway that drains, then to no process, then to the next one at the same address.
fn outlive(script: Tool) {
    let mut first = Gateway::builder().config(DRAIN).start();
    let address = first.public();
    let mut sources = script.gateway(address).spawn();
    sources.wait_line("all are open", DEADLINE, |line| (line == "open").then_some(()));
    first.process().signal(Stop::Terminate);
    let exit = first.process().wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    let second = Gateway::builder().config(DRAIN).listen(address).start();
    let status = eventually_some("all have come back", DEADLINE * 2, || {
        second.rest().publish("news", "after");
        sources.try_wait()
    });
    assert!(status.success(), "{}{}", sources.stdout(), sources.stderr());
}

#[test]
fn a_hundred_event_sources_of_node_outlive_a_restart() {
    outlive(Tool::node("sources.cjs"));
}

#[test]
fn event_sources_of_chromium_outlive_a_restart() {
    outlive(Tool::node("sources.cjs").environment("CHROMIUM", chromium_path()));
}
