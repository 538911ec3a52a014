//! Members from each source, with real sockets: a list, DNS, the registry of a backplane; and outages of each.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::support::{Data, HttpStub, NameServer};
use tidegate_backplane::{
    Backplane, Channel, Control, Gap, Intake, MemoryBackplane, MemoryOptions, NodeRecord, PresenceEvent,
    Publication, Sink, Transition,
};
use tidegate_ops::metrics::Bounds;
use tidegate_router::{
    Chooser,
    members::{DnsName, Health, HostPort, Members, Names},
    metrics::{Metrics, Refresh},
    placement::LoadFactor,
};

/// What every test looks at.
struct Rig {
    chooser: Arc<Chooser>,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn new() -> Self {
        let chooser = Arc::new(Chooser::new(LoadFactor::DEFAULT));
        Self { chooser, metrics: Arc::new(Metrics::new(Bounds::default())) }
    }

    fn parts(&self) -> (Arc<Chooser>, Arc<Metrics>) {
        (Arc::clone(&self.chooser), Arc::clone(&self.metrics))
    }

    fn of_list(&self, places: &[SocketAddr], health: Health) -> Members {
        let (chooser, metrics) = self.parts();
        let list = places.iter().map(|place| HostPort::parse(&place.to_string()).unwrap()).collect();
        Members::of_list(list, Names::new(&[]), health, chooser, metrics)
    }

    fn of_dns(&self, name: DnsName, server: &NameServer) -> Members {
        let (chooser, metrics) = self.parts();
        Members::of_dns(name, Names::new(&[server.address]), health(), chooser, metrics)
    }

    /// `NAME STATE` of each member.
    fn states(&self) -> Vec<String> {
        let state = |draining, down| match (draining, down) {
            (_, true) => "down",
            (true, _) => "draining",
            _ => "live",
        };
        let members = self.chooser.members().into_iter();
        members
            .map(|(member, node)| format!("{} {}", member.name, state(member.draining, node.is_down())))
            .collect()
    }

    fn failed(&self) -> u64 {
        self.metrics.members_refreshes.get(Refresh::Failed)
    }
}

fn health() -> Health {
    Health {
        path: "/livez".into(),
        port: None,
        proxy_protocol: false,
        interval: Duration::from_secs(3600),
        timeout: Duration::from_millis(500),
        failures: 2,
        cut_after: Duration::ZERO,
    }
}

/// Rounds until a check that may be late on a busy machine has come through.
async fn rounds_until(members: &mut Members, what: &str, holds: impl Fn() -> bool) {
    for _ in 0..20 {
        members.round().await;
        if holds() {
            return;
        }
    }
    panic!("not within 20 rounds: {what}");
}

#[tokio::test]
async fn a_list_is_checked() {
    let (a, b) = (HttpStub::start().await, HttpStub::start().await);
    let rig = Rig::new();
    let mut members = rig.of_list(&[a.address, b.address], health());
    let states = |of_a: &str, of_b: &str| {
        let mut states = vec![format!("{} {of_a}", a.address), format!("{} {of_b}", b.address)];
        states.sort();
        states
    };
    rounds_until(&mut members, "both live", || rig.states() == states("live", "live")).await;
    let request = a.requests().remove(0);
    assert!(request.starts_with("GET /livez HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nHost: {}\r\n", a.address)), "{request}");

    a.answer(404);
    members.round().await;
    assert_eq!(rig.states(), states("live", "live"), "a public port may have no page");
    a.answer(503);
    rounds_until(&mut members, "a refuses", || rig.states() == states("draining", "live")).await;
    a.answer(500);
    members.round().await;
    assert_eq!(rig.states(), states("draining", "live"), "one failure is not enough");
    rounds_until(&mut members, "a fails", || rig.states() == states("down", "live")).await;
    assert!(
        rig.chooser
            .candidates(b"key", std::time::Instant::now())
            .all(|node| node.name() == b.address.to_string())
    );
    a.answer(200);
    rounds_until(&mut members, "a is back", || rig.states() == states("live", "live")).await;
    b.answer(HttpStub::SILENT);
    rounds_until(&mut members, "b hangs", || rig.states() == states("live", "down")).await;
}

/// The hook that cuts clients hears of nodes that went down or away, once each.
#[tokio::test]
async fn lost_nodes_are_told() {
    let (a, b) = (HttpStub::start().await, HttpStub::start().await);
    let nobody: SocketAddr = tidegate_testkit::net::free_address();
    let rig = Rig::new();
    let lost = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&lost);
    rig.chooser.on_lost(Box::new(move |node| told.lock().unwrap().push(node.name().to_owned())));
    let mut members = rig.of_list(&[a.address, b.address, nobody], Health { failures: 1, ..health() });
    let live = |stub: &HttpStub| format!("{} live", stub.address);
    rounds_until(&mut members, "both live", || {
        [&a, &b].iter().all(|stub| rig.states().contains(&live(stub)))
    })
    .await;
    lost.lock().unwrap().clear();
    a.answer(500);
    rounds_until(&mut members, "a is down", || rig.states().contains(&format!("{} down", a.address))).await;
    members.round().await;
    assert_eq!(*lost.lock().unwrap(), [a.address.to_string()], "once");
    rig.chooser.update(Vec::new());
    let mut all = [a.address, a.address, b.address, nobody].map(|address| address.to_string());
    all.sort();
    lost.lock().unwrap().sort();
    assert_eq!(*lost.lock().unwrap(), all);
}

/// With a port of its own the check sees a drain; only 200 is good there.
#[tokio::test]
async fn an_internal_port_is_asked() {
    let (public, internal) = (HttpStub::start().await, HttpStub::start().await);
    let rig = Rig::new();
    let check =
        Health { path: "/readyz".into(), port: Some(internal.address.port()), failures: 1, ..health() };
    let mut members = rig.of_list(&[public.address], check);
    rounds_until(&mut members, "live", || rig.states() == [format!("{} live", public.address)]).await;
    assert!(internal.requests()[0].starts_with("GET /readyz HTTP/1.1\r\n"));
    assert_eq!(public.requests().len(), 0);
    // That all of one gateway look down is not believed.
    for (status, state) in [(503, "draining"), (200, "live"), (404, "live")] {
        internal.answer(status);
        let expect = [format!("{} {state}", public.address)];
        rounds_until(&mut members, state, || rig.states() == expect).await;
    }
}

/// A and AAAA of a headless service; an outage of the name server changes nothing.
#[tokio::test]
async fn addresses_of_a_name() {
    let server = NameServer::start().await;
    let stub = HttpStub::start().await;
    let port = stub.address.port();
    let name = "gateway.live.svc.";
    server.set(name, vec![Data::A([127, 0, 0, 1].into())]);
    let rig = Rig::new();
    let place = HostPort { host: name.into(), port };
    let mut members = rig.of_dns(DnsName::Addresses(place), &server);
    let one = [format!("127.0.0.1:{port} live")];
    rounds_until(&mut members, "one address", || rig.states() == one).await;

    // Nobody listens on the second: it is known, and gets no clients.
    server.set(name, vec![Data::A([127, 0, 0, 1].into()), Data::A([127, 0, 0, 2].into())]);
    let two = [one[0].clone(), format!("127.0.0.2:{port} down")];
    rounds_until(&mut members, "two addresses", || rig.states() == two).await;

    let failed = rig.failed();
    server.silence(true);
    rounds_until(&mut members, "the outage is noticed", || rig.failed() > failed).await;
    assert_eq!(rig.states(), two, "the last known members stay");
    stub.answer(503);
    members.round().await;
    assert_eq!(rig.states()[0], format!("127.0.0.1:{port} draining"), "and are checked");
    stub.answer(200);
    server.silence(false);
    server.set(name, Vec::new());
    members.round().await;
    assert_eq!(rig.states().len(), 2, "a name without addresses is an outage of the name");
    server.set(name, vec![Data::A([127, 0, 0, 1].into())]);
    rounds_until(&mut members, "the second is gone", || rig.states() == one).await;
}

/// A pod that is not ready leaves DNS, and its clients stay as long as it answers.
#[tokio::test]
async fn who_leaves_dns_keeps_its_clients() {
    let server = NameServer::start().await;
    let [stay, leave] = HttpStub::start_two().await;
    let name = "gateway.live.svc.";
    let both = || vec![Data::A([127, 0, 0, 1].into()), Data::A([127, 0, 0, 2].into())];
    server.set(name, both());
    let rig = Rig::new();
    let lost = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&lost);
    rig.chooser.on_lost(Box::new(move |node| told.lock().unwrap().push(node.name().to_owned())));
    let place = HostPort { host: name.into(), port: stay.address.port() };
    let mut members = rig.of_dns(DnsName::Addresses(place), &server);
    let states = |state: &str| [format!("{} live", stay.address), format!("{} {state}", leave.address)];
    rounds_until(&mut members, "both live", || rig.states() == states("live")).await;
    lost.lock().unwrap().clear();
    let node = rig.chooser.members().remove(1).1;
    let digest = rig.chooser.digest();

    let client = node.claim(std::time::Instant::now());
    server.set(name, vec![Data::A([127, 0, 0, 1].into())]);
    rounds_until(&mut members, "it gets no more clients", || rig.states() == states("draining")).await;
    leave.answer(503);
    rounds_until(&mut members, "it drains", || leave.requests().len() > 3).await;
    assert_eq!(rig.states(), states("draining"));
    assert_ne!(rig.chooser.digest(), digest);
    let alone = rig.chooser.digest();
    assert!(lost.lock().unwrap().is_empty(), "its clients stay");

    leave.answer(200);
    server.set(name, both());
    rounds_until(&mut members, "it is back", || rig.states() == states("live")).await;
    server.set(name, vec![Data::A([127, 0, 0, 1].into())]);
    rounds_until(&mut members, "it leaves again", || rig.states() == states("draining")).await;
    leave.answer(500);
    rounds_until(&mut members, "it fails its checks", || rig.states() == states("down")).await;
    assert_eq!(*lost.lock().unwrap(), [leave.address.to_string()], "then its clients are cut");
    drop(client);
    rounds_until(&mut members, "it is forgotten", || rig.states().len() == 1).await;
    assert_eq!(rig.chooser.digest(), alone, "routers with and without such a node agree");
}

/// Names of SRV targets stay when their addresses change; the lowest priority counts.
#[tokio::test]
async fn services_of_a_name() {
    let server = NameServer::start().await;
    let stub = HttpStub::start().await;
    let port = stub.address.port();
    let srv = |priority, weight, target| Data::Srv { priority, weight, port, target };
    let name = "_ws._tcp.gateway.live.svc.";
    server.set(name, vec![srv(1, 5, "g-0.live."), srv(1, 0, "g-1.live."), srv(2, 9, "backup.live.")]);
    for target in ["g-0.live.", "g-1.live."] {
        server.set(target, vec![Data::A([127, 0, 0, 1].into())]);
    }
    let rig = Rig::new();
    let mut members = rig.of_dns(DnsName::Services(name.into()), &server);
    let both = [format!("g-0.live:{port} live"), format!("g-1.live:{port} live")];
    rounds_until(&mut members, "both targets", || rig.states() == both).await;
    let weights: Vec<u32> = rig.chooser.members().iter().map(|(member, _)| member.weight.get()).collect();
    assert_eq!(weights, [5, 1]);
    server.set("g-0.live.", vec![Data::A([127, 0, 0, 9].into())]);
    let moved = || rig.chooser.members()[0].1.socket().ip().to_string() == "127.0.0.9";
    rounds_until(&mut members, "another address", moved).await;
}

/// Two failed checks take new clients away; the clients that a node has are cut later.
#[tokio::test]
async fn no_new_clients_and_cut_are_two_decisions() {
    let (a, b) = (HttpStub::start().await, HttpStub::start().await);
    let rig = Rig::new();
    let lost = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&lost);
    rig.chooser.on_lost(Box::new(move |node| told.lock().unwrap().push(node.name().to_owned())));
    let patient = Health { cut_after: Duration::from_secs(3600), ..health() };
    let mut members = rig.of_list(&[a.address, b.address], patient);
    rounds_until(&mut members, "both live", || rig.states().iter().all(|state| state.ends_with("live")))
        .await;
    a.answer(500);
    let down = format!("{} down", a.address);
    rounds_until(&mut members, "a is down", || rig.states().contains(&down)).await;
    for _ in 0..5 {
        members.round().await;
    }
    assert!(lost.lock().unwrap().is_empty(), "its clients stay");
    a.answer(200);
    rounds_until(&mut members, "a is back", || !rig.states().contains(&down)).await;
}

/// A router that is cut off would otherwise cut everybody.
#[tokio::test]
async fn when_all_look_down_nobody_is_cut() {
    let stubs = [HttpStub::start().await, HttpStub::start().await, HttpStub::start().await];
    let rig = Rig::new();
    let lost = Arc::new(std::sync::Mutex::new(0));
    let told = Arc::clone(&lost);
    rig.chooser.on_lost(Box::new(move |_| *told.lock().unwrap() += 1));
    let mut members = rig.of_list(&stubs.each_ref().map(|stub| stub.address), health());
    let live = || rig.states().iter().filter(|state| state.ends_with("live")).count();
    rounds_until(&mut members, "all live", || live() == 3).await;
    stubs.iter().for_each(|stub| stub.answer(500));
    for _ in 0..4 {
        members.round().await;
        // While they fail one after the other, some may look down before it is nearly all.
    }
    assert_eq!((live(), rig.metrics.panicking.get()), (3, 1));
    stubs[0].answer(200);
    rounds_until(&mut members, "it is believed of two", || live() == 1).await;
    assert_eq!((*lost.lock().unwrap(), rig.metrics.panicking.get()), (2, 0));
}

/// Many names under a name server that is silent about them: the round is not held up by one after the other, and what
/// is known goes on.
#[tokio::test]
async fn names_are_looked_up_beside_each_other() {
    let (server, stub) = (NameServer::start().await, HttpStub::start().await);
    server.set("well.live.", vec![Data::A([127, 0, 0, 1].into())]);
    let rig = Rig::new();
    let (chooser, metrics) = rig.parts();
    let place = |host: String| HostPort { host: host.into(), port: stub.address.port() };
    let mut list: Vec<_> = (0..40).map(|number| place(format!("silent-{number}.live."))).collect();
    list.push(place("well.live.".into()));
    server.ignore("silent");
    let mut members = Members::of_list(list, Names::new(&[server.address]), health(), chooser, metrics);
    members.round().await;
    rounds_until(&mut members, "the one is live", || {
        rig.states() == [format!("well.live.:{} live", stub.address.port())]
    })
    .await;
    // One after the other they would take 80 s: more than the rounds that there are.
    assert_eq!(rig.metrics.unresolved.get(), 40);
    server.silence(true);
    stub.answer(503);
    let drains = [format!("well.live.:{} draining", stub.address.port())];
    rounds_until(&mut members, "a drain is seen while nothing is resolved", || rig.states() == drains).await;
}

pub(crate) struct NoSink;

impl Sink for NoSink {
    fn publication(&self, _: &Channel, _: Arc<Publication>) -> Intake {
        Intake::Taken
    }
    fn gap(&self, _: &Channel, _: Gap) {}
    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

pub(crate) fn record(name: &str, connections: u64, draining: bool) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        address: "127.0.0.1:8000".into(),
        zone: None,
        version: "1".into(),
        connections,
        capacity: 20_000,
        draining,
        handover: None,
    }
}

#[tokio::test]
async fn a_registry() {
    let backplane = Arc::new(MemoryBackplane::new(Arc::new(NoSink), MemoryOptions::default()));
    let rig = Rig::new();
    let (chooser, metrics) = rig.parts();
    let mut members =
        Members::of_registry(Arc::clone(&backplane) as _, Names::new(&[]), health(), chooser, metrics);
    members.round().await;
    assert!(rig.states().is_empty() && rig.failed() == 0);
    backplane.announce(record("g-0", 7, false)).await.unwrap();
    backplane.announce(record("g-1", 9, false)).await.unwrap();
    members.round().await;
    assert_eq!(rig.states(), ["g-0 live", "g-1 live"]);
    let of_g1 = rig.chooser.members().remove(1);
    assert_eq!((of_g1.0.weight.get(), of_g1.1.load()), (20_000, 9));
    assert_eq!(of_g1.1.socket().to_string(), "127.0.0.1:8000");
    backplane.announce(record("g-1", 8, true)).await.unwrap();
    members.round().await;
    assert_eq!(rig.states(), ["g-0 live", "g-1 draining"]);
    backplane.retire("g-1").await.unwrap();
    members.round().await;
    assert_eq!(rig.states(), ["g-0 live"], "it said that it goes");
    backplane.retire("g-0").await.unwrap();
    members.round().await;
    assert_eq!(rig.states(), ["g-0 live"], "it did not: the registry may have lost its data");
}
