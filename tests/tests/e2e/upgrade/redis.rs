//! The same over Redis, whose connections go along.

use tidegate_testkit::redis::{RedisCluster, RedisServer, Sentinel};

use super::*;

#[test]
fn nothing_is_lost_over_one_server() {
    let redis = RedisServer::start();
    all_stay(&Carried::over(redis.url(), ANYONE));
}

#[test]
fn nothing_is_lost_over_several_servers() {
    let servers = [RedisServer::start(), RedisServer::start()];
    let [first, second] = servers.each_ref().map(RedisServer::address);
    all_stay(&Carried::over(format!("redis://{first},{second}"), ANYONE));
}

#[test]
fn nothing_is_lost_over_a_cluster() {
    let cluster = RedisCluster::start(3, 0);
    all_stay(&Carried::over(cluster.url(), ANYONE));
}

#[test]
fn nothing_is_lost_with_sentinels() {
    let sentinel = Sentinel::start();
    all_stay(&Carried::over(sentinel.url(), ANYONE));
}

#[test]
fn clients_of_pusher_stay() {
    let redis = RedisServer::start();
    pushers_clients_stay(&Carried::over(redis.url(), PUSHER));
}

#[test]
fn clients_of_centrifugo_stay() {
    let redis = RedisServer::start();
    centrifugos_clients_stay(&Carried::over(redis.url(), CENTRIFUGE), "json");
}

#[test]
fn streams_of_centrifugo_stay() {
    let redis = RedisServer::start();
    centrifugos_streams_stay(&Carried::over(redis.url(), CENTRIFUGE), "json");
}

#[test]
fn nobody_joins_or_leaves() {
    let redis = RedisServer::start();
    presence_stays(&Carried::over(redis.url(), ROOM));
}

#[test]
fn a_process_that_ends_before_it_has_taken_over_changes_nothing() {
    let redis = RedisServer::start();
    goes_on_after_a_failure(&Carried::over(redis.url(), ANYONE));
}

/// The old process finds out when it goes on; the next upgrade waits until the server is back.
#[test]
fn a_server_that_ends_meanwhile_is_away_for_whoever_goes_on() {
    let mut redis = RedisServer::start();
    let program = Program::real();
    let builder = Gateway::builder().program(&program.path).config(ANYONE);
    let gateway = builder.backplane(&redis.url()).node("one").start();
    let mut client = WsClient::connect(gateway.public(), "/ws?channel=kept:a&envelope=json");
    gateway.rest().publish("kept:a", "before");
    assert!(next_text(&mut client).contains("before"));
    let (state, end) = (program.path.with_extension("state"), program.path.with_extension("end"));
    let record = "dd bs=65536 count=1 2>/dev/null of=$0.state";
    program.replace(&format!(
        "{record}\nprintf '\\001\\001' >&0\n{record}\nwhile [ ! -e $0.end ]; do sleep 0.05; done"
    ));
    let rest = gateway.internal_rest();
    let upgrade = thread::spawn(move || rest.post("/upgrade", "text/plain", ""));
    eventually("it was given the state", DEADLINE, || {
        fs::read(&state).is_ok_and(|state| state.get(..2) == Some(&[1, 3]))
    });
    redis.kill();
    fs::write(&end, "").unwrap();
    assert_eq!(upgrade.join().unwrap().status, 409);
    program.restore();
    eventually("an upgrade is refused", DEADLINE, || refused(gateway.internal()).contains("is away"));
    redis.restart();
    eventually("it is ready", DEADLINE, || gateway.internal_rest().get("/readyz").status == 200);
    let mut successors = Successors::default();
    successors.upgrade(gateway.pid(), gateway.internal());
    gateway.rest().publish("kept:a", "after");
    // The server may have lost what it had: that is told.
    loop {
        let text = next_text(&mut client);
        if text.contains("after") {
            break;
        }
        assert!(text.contains("gap"), "{text}");
    }
}

#[test]
fn what_cannot_move_says_so() {
    let redis = RedisServer::builder().tls().start();
    let config = format!("[redis]\nca_file = \"{}\"\n", redis.ca_certificate().display());
    let gateway = Gateway::builder().config(&config).backplane(&redis.url()).node("one").start();
    let mut client = gateway.subscribe("news");
    let why = refused(gateway.internal());
    assert!(why.contains("over TLS"), "{why}");
    goes_on(&gateway, &mut client, "after");
    let redis = RedisServer::start();
    let builder = Gateway::builder().config("[redis]\nprefix = \"a\"\n");
    let file = builder.file("tidegate.toml", b"[redis]\nprefix = \"a\"\n");
    let gateway = builder.backplane(&redis.url()).node("one").start();
    let mut client = gateway.subscribe("news");
    fs::write(&file, "[redis]\nprefix = \"b\"\n").unwrap();
    let why = refused(gateway.internal());
    assert!(why.contains("another prefix"), "{why}");
    goes_on(&gateway, &mut client, "after");
}
