//! A whole router in this process, over its sockets: assign, probes, metrics, drain, a shared port.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    members::{NoSink, record},
    support::HttpStub,
};
use tidegate_backplane::{Backplane as _, RedisBackplane, RedisOptions};
use tidegate_ops::config::Sources;
use tidegate_router::{
    config::{Config, flags},
    server::{Server, StartError},
};
use tidegate_testkit::{DEADLINE, Metrics, Rest, eventually, redis::RedisServer};

struct Router {
    public: SocketAddr,
    internal: SocketAddr,
    thread: JoinHandle<Result<(), StartError>>,
}

fn config(members: &str) -> Config {
    let overrides =
        [(flags::LISTEN, "127.0.0.1:0"), (flags::INTERNAL, "127.0.0.1:0"), (flags::MEMBERS, members)];
    let overrides = overrides.map(|(flag, value)| (flag, value.to_owned())).into();
    let environment = vec![("TIDEGATE__ASSIGN__URL".into(), "ws://{address}".into())];
    let mut config = Config::load(&Sources { overrides, environment, ..Sources::default() }).unwrap();
    config.health.interval = Duration::from_millis(50);
    config.drain.settle = Duration::from_millis(200);
    config.drain.period = Duration::from_secs(1);
    config
}

impl Router {
    fn start(config: Config) -> Self {
        let server = Server::bind(config).unwrap();
        let (public, internal) = (server.public_address(), server.internal_address());
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || server.run(|| ready.send(()).unwrap()));
        is_ready.recv_timeout(DEADLINE).unwrap();
        Self { public, internal, thread }
    }

    fn assigned(&self, key: &str) -> String {
        let answer = Rest::new(self.public).get(&format!("/v1/assign?key={key}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["node"].as_str().unwrap().to_owned()
    }

    fn stop(self) {
        let answer = Rest::new(self.internal).post("/drain", "text/plain", "");
        assert_eq!(answer.status, 202);
        self.thread.join().unwrap().unwrap();
    }
}

/// Stubs live on a runtime of their own.
fn stubs<const N: usize>() -> (tokio::runtime::Runtime, [HttpStub; N]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stubs = std::array::from_fn(|_| runtime.block_on(HttpStub::start()));
    (runtime, stubs)
}

fn list(stubs: &[HttpStub]) -> String {
    let addresses: Vec<_> = stubs.iter().map(|stub| stub.address.to_string()).collect();
    format!("static:{}", addresses.join(","))
}

#[test]
fn two_routers_agree() {
    let (_runtime, stubs) = stubs::<3>();
    let routers = [Router::start(config(&list(&stubs))), Router::start(config(&list(&stubs)))];
    let all_live =
        |router: &Router| Metrics::scrape(router.internal).sum("tidegate_nodes", &[("state", "live")]) == 3.0;
    eventually("both see three nodes", DEADLINE, || routers.iter().all(all_live));
    for i in 0..30 {
        let key = format!("room-{i}");
        assert_eq!(routers[0].assigned(&key), routers[1].assigned(&key), "{key}");
    }
    let digest = |router: &Router| Metrics::scrape(router.internal).sum("tidegate_placement_digest", &[]);
    assert!(digest(&routers[0]) > 0.0 && digest(&routers[0]) == digest(&routers[1]));
    let assigned =
        Metrics::scrape(routers[0].internal).sum("tidegate_assignments_total", &[("result", "ok")]);
    assert_eq!(assigned, 30.0);
    routers.into_iter().for_each(Router::stop);
}

#[test]
fn probes_follow_the_members_and_the_drain() {
    let (_runtime, stubs) = stubs::<1>();
    let router = Router::start(config(&list(&stubs)));
    let internal = Rest::new(router.internal);
    eventually("ready", DEADLINE, || internal.get("/readyz").status == 200);
    stubs[0].answer(500);
    eventually("not ready", DEADLINE, || internal.get("/readyz").status == 503);
    assert!(internal.get("/readyz").text().contains("nearly all gateways look bad"));
    assert_eq!(Rest::new(router.public).get("/v1/assign?key=a").status, 200, "it may be the router");
    stubs[0].answer(200);
    eventually("ready again", DEADLINE, || internal.get("/readyz").status == 200);
    stubs[0].answer(503);
    eventually("not ready", DEADLINE, || internal.get("/readyz").status == 503);
    assert!(internal.get("/readyz").text().contains("no gateway takes clients"));
    assert_eq!(internal.get("/livez").status, 200);
    let refused = Rest::new(router.public).get("/v1/assign?key=a");
    assert_eq!(
        (refused.status, refused.json()["type"].as_str()),
        (503, Some("urn:tidegate:problem:no-gateway"))
    );
    stubs[0].answer(200);
    eventually("ready again", DEADLINE, || internal.get("/readyz").status == 200);
    assert_eq!(internal.post("/drain", "text/plain", "").status, 202);
    assert!(internal.get("/readyz").text().contains("the router drains"));
    router.thread.join().unwrap().unwrap();
}

#[test]
fn routers_share_a_port() {
    let (_runtime, stubs) = stubs::<1>();
    let shared = |listen: SocketAddr| Config { listen, reuse_port: true, ..config(&list(&stubs)) };
    let first = Router::start(shared("127.0.0.1:0".parse().unwrap()));
    let second = Router::start(shared(first.public));
    assert_eq!(first.public, second.public);
    let refused = Server::bind(Config { listen: first.public, ..config(&list(&stubs)) }).unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("cannot listen on"), "{refused}");
    first.stop();
    second.assigned("key");
    second.stop();
}

/// Gateways are known from a real Redis; those that are known stay while it is away.
#[test]
fn members_from_redis() {
    let mut redis = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = format!("redis://{}", redis.address());
    let options = RedisOptions::new(url.parse().unwrap(), "g-0");
    let gateway = runtime.block_on(RedisBackplane::connect(options, Arc::new(NoSink))).unwrap();
    let record = record("g-0", 7, false);
    let announcing = Arc::clone(&gateway);
    runtime.spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(500));
        loop {
            every.tick().await;
            if announcing.announce(record.clone()).await.is_err() {
                continue;
            }
        }
    });
    let router = Router::start(config(&url));
    let live = || Metrics::scrape(router.internal).sum("tidegate_nodes", &[("state", "live")]);
    eventually("the node is known", DEADLINE, || live() == 1.0);
    assert_eq!(router.assigned("room"), "g-0");
    redis.kill();
    let failed =
        || Metrics::scrape(router.internal).sum("tidegate_members_refreshes_total", &[("result", "failed")]);
    eventually("the outage is seen", DEADLINE, || failed() >= 3.0);
    assert_eq!((live(), router.assigned("room").as_str()), (1.0, "g-0"), "who was known stays");
    redis.restart();
    let before = failed();
    let ok = || Metrics::scrape(router.internal).sum("tidegate_members_refreshes_total", &[("result", "ok")]);
    let ok_before = ok();
    eventually("it is read again", DEADLINE, || ok() > ok_before);
    assert!(live() == 1.0 && before >= 3.0);
    router.stop();
    drop(runtime);
}

/// Addresses of gateways are told to nobody, unless the configuration says so; then to who has the key, and not more often
/// than it says.
#[test]
fn assign_is_off_until_it_is_asked_for_and_bounded_then() {
    let (_runtime, stubs) = stubs::<1>();
    let mut off = config(&list(&stubs));
    off.assign.url = None;
    let off = Router::start(off);
    assert_eq!(Rest::new(off.public).get("/v1/assign?key=a").status, 404);
    off.stop();

    let directory = tempfile::tempdir().unwrap();
    let key_file = directory.path().join("key");
    std::fs::write(&key_file, "sesame-of-the-test\n").unwrap();
    let mut bounded = config(&list(&stubs));
    bounded.assign.key_file = Some(key_file);
    (bounded.assign.requests_per_second, bounded.assign.requests_burst) = (1, 3);
    bounded.assign.keys = 2;
    let router = Router::start(bounded);
    let live = || Metrics::scrape(router.internal).sum("tidegate_nodes", &[("state", "live")]);
    eventually("the node is live", DEADLINE, || live() == 1.0);
    let stranger = Rest::new(router.public);
    assert_eq!(stranger.get("/v1/assign?key=a").status, 401);
    let friend = Rest::new(router.public).with_key("sesame-of-the-test");
    let three = serde_json::json!({"keys": ["a", "b", "c"]});
    assert_eq!(friend.post_json("/v1/assign", &three).status, 400);
    assert_eq!(friend.get("/v1/assign?key=a").status, 200);
    let statuses: Vec<u16> = (0..10).map(|_| friend.get("/v1/assign?key=a").status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    router.stop();
}
