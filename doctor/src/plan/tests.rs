//! Known cases, reckoned by hand beside them.

use super::*;

fn wanted(connections: u64) -> Wanted {
    Wanted {
        connections,
        publications: 0,
        fan_out: 1,
        payload_bytes: 200,
        nodes: None,
        machine: MachineSize { cores: 8, memory_bytes: 32 << 30, bits_per_second: 10_000_000_000 },
        path: Path::Direct,
        tls: false,
        settings: Settings::default(),
        price: None,
    }
}

fn plan(wanted: Wanted) -> Plan {
    let costs = Costs::parse(include_str!("tests/costs.toml")).expect("a file of costs");
    Plan::of(wanted, &costs)
}

fn need(fleet: &Fleet, resource: Resource) -> u64 {
    fleet.needs.iter().find(|need| need.0 == resource).expect("each is there").1
}

#[test]
fn ten_million_that_say_nothing() {
    let plan = plan(wanted(10_000_000));
    // Memory: 24 GiB of a machine / 4,326 bytes are 5.9 million: 2. Descriptors: 1,048,376 each: 10. CPU: 400,000 heartbeats
    // of 10.8 µs are 4.3 cores, of which a machine may spend 4: 2.
    assert_eq!(need(&plan.gateways, Resource::Memory), 2);
    assert_eq!(need(&plan.gateways, Resource::Descriptors), 10);
    assert_eq!(need(&plan.gateways, Resource::Cpu), 2);
    assert_eq!(plan.gateways.machines, 11, "and one that may be lost");
    assert_eq!(plan.gateways.each.connections, 909_091);
    assert!(plan.routers.is_none());
    assert_eq!(plan.redis_servers, 1);
}

#[test]
fn heartbeats_of_ten_million() {
    let beats = plan(wanted(10_000_000)).heartbeats;
    assert_eq!(beats.per_second, 400_000);
    // A ping of 10 bytes and the acknowledgement of its pong, in segments of 90: 190 bytes.
    assert_eq!(beats.bits_out, 400_000 * 190 * 8);
    assert_eq!(beats.bits_in, 400_000 * 104 * 8);
    assert_eq!(beats.cpu_millis, 4_334);
    // 10 million · 190 B · 8 = 15.2 Gbit.
    assert_eq!(beats.fills_ten_gigabit_at, Duration::from_millis(1_520));
}

#[test]
fn deliveries_take_the_network_first() {
    let wanted = Wanted { publications: 166_000, fan_out: 60, ..wanted(10_000_000) };
    let plan = plan(wanted);
    assert_eq!(plan.deliveries, 9_960_000);
    // A message of 204 + 90 bytes: 23.4 Gbit/s of deliveries, 0.6 of heartbeats and what goes to Redis; 7 Gbit/s a machine.
    assert_eq!(need(&plan.gateways, Resource::Bandwidth), 4);
    // 9.96 million · 4.7 µs are 46.8 cores; 4 of a machine, less what it receives.
    assert!(need(&plan.gateways, Resource::Cpu) > 12);
    assert_eq!(plan.redis_servers, 3, "81,000 publications each, and what they send");
}

#[test]
fn redis_pays_for_each_node_that_it_sends_to_and_that_it_knows() {
    let servers = |nodes, publications, fan_out| {
        let mut wanted = Wanted { nodes: Some(nodes), publications, fan_out, ..wanted(10_000_000) };
        // So that the network is not the ceiling.
        wanted.machine.bits_per_second = 100_000_000_000;
        plan(wanted).redis_servers
    };
    // 12.3 µs, and 0.21 for each of 500: 8,500 a second, less the 57 ms that 500 nodes take by themselves.
    assert_eq!(servers(500, 8_000, 1_000_000), 1);
    assert_eq!(servers(500, 8_300, 1_000_000), 2);
    assert_eq!(servers(500, 75_000, 1), 1);
    assert_eq!(servers(500, 76_000, 1), 2);
    assert_eq!(servers(8_000, 20_000, 1), 2, "8,000 leases take 0.9 of a second");
}

#[test]
fn many_sockets_want_more_lists() {
    let setting = |connections| {
        let kernel = plan(wanted(connections)).kernel;
        kernel.into_iter().find(|(name, _)| name == "thash_entries").map(|(_, value)| value)
    };
    assert_eq!(setting(500_000), None);
    assert!(setting(10_000_000).is_some_and(|value| value.starts_with("2097152 ")));
}

#[test]
fn a_router_keeps_two_descriptors_and_moves_every_message() {
    let direct = wanted(1_000_000);
    let through = plan(Wanted { path: Path::Router, publications: 1_000, fan_out: 100, ..direct });
    let routers = through.routers.expect("there are some");
    assert_eq!(need(&routers, Resource::Descriptors), 2);
    // 100,000 messages and 80,000 of heartbeats, at 9.8 µs: 1.8 cores.
    assert_eq!(need(&routers, Resource::Cpu), 1);
    assert_eq!(routers.each.descriptors, 2 * routers.each.connections + 200);
    // To two gateways a router has 56,464 ports.
    assert_eq!(need(&routers, Resource::Ports), 1_000_000u64.div_ceil(28_232 * through.gateways.machines));
}

#[test]
fn the_loss_of_a_node_and_a_roll_of_five_hundred() {
    let plan = plan(Wanted { nodes: Some(500), ..wanted(10_000_000) });
    assert_eq!(plan.gateways.machines, 500);
    assert_eq!(plan.storm.clients, 20_000);
    assert_eq!(plan.storm.handshakes_per_node, 41);
    assert!(plan.storm.lasts < Duration::from_millis(21));
    assert_eq!(plan.roll, Duration::from_secs(500 * 40));
    let settings = Settings { restarts_at_once: 25, ..Settings::default() };
    assert_eq!(roll(&settings, 500), Duration::from_secs(20 * 40));
}

#[test]
fn publications_reach_the_nodes_that_have_a_subscriber() {
    for (nodes, subscribers, expect) in [(1, 50, 1), (500, 1, 1), (500, 60, 57), (3, 1_000, 3), (2, 2, 2)] {
        let reached = nodes_reached(nodes, subscribers);
        assert!(reached.abs_diff(expect) <= 1, "{nodes} {subscribers}: {reached}");
    }
}

#[test]
fn nothing_wanted_is_one_machine_and_a_spare() {
    let plan = plan(wanted(0));
    assert_eq!((plan.gateways.machines, plan.redis_servers), (2, 1));
    assert!(plan.to_string().contains("0 connections"));
}

#[test]
fn more_than_any_machine_can_take_ends() {
    let wanted = Wanted { publications: 50_000_000, fan_out: 1_000_000, ..wanted(1_000_000) };
    assert!(plan(wanted).gateways.machines >= 1 << 20);
}

#[test]
fn a_file_of_costs_is_read_whole() {
    assert!(Costs::parse("").is_err());
    let text = include_str!("costs.toml");
    assert!(Costs::parse(&format!("{text}\nnew = 1\n")).is_err(), "an unknown key is a mistake");
}

/// The page shows what the command prints. `BLESS=1` writes it anew.
#[test]
fn the_page_shows_a_plan() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ten-million.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let (begin, end) = ("--fan-out 60\n", "```");
    let (before, rest) = page.split_once(begin).expect("the command");
    let (shown, after) = rest.split_once(end).expect("the end of the block");
    let wanted = Wanted { publications: 166_000, fan_out: 60, path: Path::Router, ..wanted(10_000_000) };
    let plan = Plan::of(wanted, &Costs::measured()).to_string();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, format!("{before}{begin}{plan}{end}{after}"))
            .expect("the repository is writable");
    } else {
        assert_eq!(shown, plan);
    }
}
