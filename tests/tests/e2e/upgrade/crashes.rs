//! Either process is killed at a step of the upgrade.

use tidegate_testkit::{Position, redis::RedisServer};
use tidegate_tests::succession::Kill;

use super::*;

const BETWEEN: &str = env!("CARGO_BIN_EXE_tidegate-between");

/// A gateway with a client of each kind, and one that is killed at the next upgrade, or its successor.
struct Site {
    gateway: Gateway,
    program: Program,
    sockets: Vec<WsClient>,
    stream: SseClient,
    /// Of all that was published.
    position: Position,
}

impl Site {
    #[track_caller]
    fn start(carried: &Carried, kill: Kill) -> Self {
        let program = Program::real();
        let builder = carried.of(Gateway::builder().program(&program.path).config(ANYONE));
        let gateway = builder.argument("--shards").argument("2").start();
        let mut sockets: Vec<WsClient> = (0..20).map(|_| gateway.subscribe("kept:a")).collect();
        let mut stream = gateway.event_stream("kept:a");
        let position = gateway.rest().publish("kept:a", "before").unwrap();
        sockets.iter_mut().for_each(|socket| assert_eq!(next_text(socket), "before"));
        assert_eq!(stream.expect_event().data, "before");
        program.replace_with_kill(BETWEEN, kill);
        Self { gateway, program, sockets, stream, position }
    }

    /// Asks for the upgrade, whose answer may end with the process; the new process.
    fn upgrade(&self) -> u32 {
        drop(self.gateway.internal_rest().try_post("/upgrade", "text/plain", ""));
        self.program.successor()
    }

    #[track_caller]
    fn expect_closed(&mut self) {
        for socket in &mut self.sockets {
            assert!(matches!(socket.next(DEADLINE), Received::Closed(_)));
        }
    }
}

/// The new process has everything, and goes on.
#[track_caller]
fn goes_on_alone(carried: &Carried) {
    let mut site = Site::start(carried, Kill::OldAtTaken);
    let mut successors = Successors::default();
    successors.note(site.upgrade());
    let gateway = &site.gateway;
    eventually("the old one is gone", DEADLINE, || !pid_runs(gateway.pid()));
    eventually("the new one is ready", DEADLINE, || {
        gateway.internal_rest().try_get("/readyz").is_some_and(|answer| answer.status == 200)
    });
    let publishing = carried.other.as_ref().unwrap_or(gateway).rest();
    for (text, offset) in [("after", 2), ("and after", 3)] {
        assert_eq!(publishing.publish("kept:a", text).unwrap().offset, offset);
        site.sockets.iter_mut().for_each(|socket| assert_eq!(next_text(socket), text));
        assert_eq!(site.stream.expect_event().data, text);
    }
}

#[test]
fn the_new_process_goes_on_when_the_old_one_dies_after_all_was_read() {
    goes_on_alone(&Carried::in_memory());
}

#[test]
fn the_new_process_goes_on_over_redis() {
    let redis = RedisServer::start();
    goes_on_alone(&Carried::over(redis.url(), ANYONE));
}

/// The clients are gone as with any crash, the old process says so by how it ends, and the port is free.
#[track_caller]
fn is_lost(carried: &Carried) {
    let mut site = Site::start(carried, Kill::NewAtGo);
    let process = site.upgrade();
    let exit = site.gateway.process().wait(DEADLINE);
    assert_eq!(exit.code, Some(1), "{exit}");
    assert!(exit.stderr.contains("has ended before it served"), "{exit}");
    assert!(!pid_runs(process));
    site.expect_closed();
    if let Some(other) = &carried.other {
        assert_eq!(other.rest().publish("kept:a", "meanwhile").unwrap().offset, 2);
    }
    let builder = carried.of(Gateway::builder().listen(site.gateway.public()).config(ANYONE));
    let again = builder.start();
    if carried.other.is_some() {
        let Position { epoch, offset } = site.position;
        let mut client = again.subscribe(&format!("kept:a&since={epoch}:{offset}"));
        assert_eq!(next_text(&mut client), "meanwhile");
    }
}

#[test]
fn clients_are_gone_when_the_new_process_dies_after_it_has_taken_over() {
    is_lost(&Carried::in_memory());
}

#[test]
fn clients_recover_from_redis_when_the_new_process_dies_after_it_has_taken_over() {
    let redis = RedisServer::start();
    is_lost(&Carried::over(redis.url(), ANYONE));
}

#[test]
fn the_new_process_ends_when_the_old_one_dies_before_all_was_read() {
    let mut site = Site::start(&Carried::in_memory(), Kill::OldAtState);
    let process = site.upgrade();
    eventually("the new one has ended", DEADLINE, || !pid_runs(process));
    site.expect_closed();
    Gateway::builder().listen(site.gateway.public()).start();
}
