//! A client process of the scaling table, in front of the floor server.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_bench::driver::Driver;
use tidegate_bench::floor;
use tidegate_bench::publish::{Pace, PublishConfig, Publisher, Request};
use tidegate_bench::target::Target;
use tidegate_bench::worker::Told;

const CONNECTIONS: u64 = 20;
const PUBLICATIONS: u32 = 3;
const RUN: u16 = 9;
const DEADLINE: Duration = Duration::from_secs(30);

struct Worker {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(server: SocketAddr) -> Self {
        let options =
            [("--index", 0), ("--connections", CONNECTIONS), ("--run", u64::from(RUN)), ("--sources", 1)];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-bench"));
        command.args(["worker", "--channel", "c", "--router", &server.to_string()]);
        for (name, value) in options {
            command.args([name, &value.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, questions, answers }
    }

    fn ask(&mut self, acknowledged: u32) -> Told {
        writeln!(self.questions, "{acknowledged}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Asks again until it tells what is awaited. It answers once per turn of its loop, so this does not spin.
    fn ask_until(&mut self, awaited: impl Fn(&Told) -> bool) -> Told {
        let began = Instant::now();
        loop {
            let told = self.ask(0);
            if awaited(&told) {
                return told;
            }
            assert!(began.elapsed() < DEADLINE, "{told:?}");
        }
    }
}

fn publish(server: SocketAddr) {
    let config = PublishConfig {
        target: Target::of(server),
        api_key: None,
        request: Request::Publish,
        connections: 1,
        pace: Pace::OnDemand,
        payload_bytes: 130,
        channels: ["c".to_owned()].into(),
        run: RUN,
    };
    let mut publisher = Publisher::new(0, config).unwrap();
    let mut driver = Driver::new().unwrap();
    (0..PUBLICATIONS).for_each(|_| publisher.publish());
    let began = Instant::now();
    while publisher.stats().published < u64::from(PUBLICATIONS) {
        driver.turn(&mut [&mut publisher], Duration::from_millis(20)).unwrap();
        assert!(began.elapsed() < DEADLINE);
    }
}

#[test]
fn a_worker_tells_what_it_holds_receives_and_misses() {
    let server = floor::spawn().unwrap();
    let mut worker = Worker::start(server);
    let told = worker.ask_until(|told| told.settled);
    assert_eq!((told.open, told.messages, told.gone.len()), (CONNECTIONS, 0, 0));
    publish(server);
    let expected = CONNECTIONS * u64::from(PUBLICATIONS);
    worker.ask_until(|told| told.messages == expected);
    let told = worker.ask(PUBLICATIONS);
    assert_eq!((told.lost, told.duplicated, told.misordered), (0, 0, 0));
    // One more was acknowledged than came.
    assert_eq!(worker.ask(PUBLICATIONS + 1).lost, CONNECTIONS);
    drop(worker.questions);
    assert!(worker.child.wait().unwrap().success());
}
