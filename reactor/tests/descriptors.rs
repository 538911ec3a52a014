//! Shards whose process runs out of descriptors: they count, do not spin, and serve again.
//!
//! The server is this program started again with `--serve` and a low `RLIMIT_NOFILE`; it takes orders line by
//! line and answers each. A client that is served gets one byte, one that is refused gets none.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tidegate_reactor::{Closed, ConnectionId, Connections, Driver, Listener, Mail, Shard, Turn};
use tidegate_testkit::{
    DEADLINE, eventually,
    net::{SocketOptions, connect},
    observe,
};

const DESCRIPTORS: u64 = 64;

fn main() {
    if std::env::args().any(|argument| argument == "--serve") {
        return serve();
    }
    // What a test harness is asked by cargo and nextest: name the tests, all of them or the ignored ones.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("refuses_counts_and_recovers: test");
        }
        return;
    }
    refuses_counts_and_recovers();
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

// ---- the test ----

fn refuses_counts_and_recovers() {
    let mut server = Server::start();
    // Ten more than fit, so that the limit is met wherever the process starts from.
    let clients: Vec<TcpStream> = (0..DESCRIPTORS + 10).map(|_| server.connect()).collect();
    let served = clients.iter().filter(|client| is_served(client)).count() as u64;
    let refused = clients.len() as u64 - served;
    assert!(served > 32 && refused >= 10, "{served} served, {refused} refused");
    assert_eq!(server.report().counts(), (served, refused, 0));
    server.expect_rest("out of descriptors, nobody waits");

    // The spare one is lost, too: whoever comes now waits, and that is said once.
    server.order("hoard");
    assert!(!is_served_within(&server.connect(), Duration::from_millis(1)));
    eventually("the spare is lost", DEADLINE, || server.report().refused == refused + 1);
    let waiting = server.connect();
    eventually("it is said that there is no spare", DEADLINE, || server.report().starved == 1);
    server.expect_rest("no descriptor at all, somebody waits");
    assert_eq!(server.report().counts(), (served, refused + 1, 1));

    server.order("free");
    assert!(is_served(&waiting), "who waited is served");
    assert!(is_served(&server.connect()), "who comes is served");
    assert_eq!(server.report().counts(), (served + 2, refused + 1, 1));
    // The spare is back: at the limit again, connections are refused again.
    let more: Vec<TcpStream> = (0..DESCRIPTORS + 10).map(|_| server.connect()).collect();
    let served_more = more.iter().filter(|client| is_served(client)).count() as u64;
    let refused_more = more.len() as u64 - served_more;
    assert!(refused_more >= 10, "{served_more} served, {refused_more} refused");
    assert_eq!(server.report().counts(), (served + 2 + served_more, refused + 1 + refused_more, 1));
    server.order("stop");
    assert!(server.child.wait().unwrap().success());
}

fn is_served(client: &TcpStream) -> bool {
    is_served_within(client, DEADLINE)
}

fn is_served_within(mut client: &TcpStream, deadline: Duration) -> bool {
    client.set_read_timeout(Some(deadline)).unwrap();
    matches!(client.read(&mut [0]), Ok(1))
}

struct Server {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Report {
    served: u64,
    refused: u64,
    starved: u64,
    cpu: Duration,
}

impl Report {
    fn counts(&self) -> (u64, u64, u64) {
        (self.served, self.refused, self.starved)
    }
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let address = line(&mut answers).parse().unwrap();
        Self { child, orders, answers, address }
    }

    fn connect(&self) -> TcpStream {
        connect(self.address, SocketOptions::default()).unwrap()
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        line(&mut self.answers)
    }

    fn report(&mut self) -> Report {
        let answer = self.order("report");
        let numbers: Vec<u64> = answer.split(' ').map(|number| number.parse().unwrap()).collect();
        let [served, refused, starved, cpu_ns] = numbers[..] else { panic!("{answer}") };
        Report { served, refused, starved, cpu: Duration::from_nanos(cpu_ns) }
    }

    /// A spin takes all the time there is; half of it leaves room for a machine that gives us little.
    fn expect_rest(&mut self, when: &str) {
        let (started, before) = (Instant::now(), self.report().cpu);
        observe(Duration::from_secs(1));
        let (used, passed) = (self.report().cpu - before, started.elapsed());
        assert!(used < passed / 2, "{when}: {used:?} of CPU time in {passed:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only after a failure it is still there; then nothing more can be done about it than this.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

// ---- the server ----

#[derive(Default)]
struct Held {
    sockets: Vec<TcpStream>,
    served: u64,
    refused: u64,
    starved: u64,
    /// Keep what should be closed: the spare descriptor is gone.
    hoards: bool,
}

struct Holder(Arc<Mutex<Held>>);

/// Keeps the sockets to itself: the shard has none.
impl Driver for Holder {
    type Connection = ();
    type Command = ();

    fn on_connection(&mut self, mut socket: TcpStream, _: SocketAddr) -> Option<(TcpStream, ())> {
        let mut held = self.0.lock().unwrap();
        held.served += 1;
        // Counted before the client knows. It may be gone already.
        socket.write_all(b"!").ok();
        held.sockets.push(socket);
        None
    }

    fn on_exhausted(&mut self, socket: Option<TcpStream>) {
        let mut held = self.0.lock().unwrap();
        match socket {
            None => held.starved += 1,
            Some(socket) => {
                held.refused += 1;
                if held.hoards {
                    held.sockets.push(socket);
                }
            }
        }
    }

    fn on_adopted(&mut self, _: &mut Connections<()>, _: ConnectionId) {}

    fn on_bytes(&mut self, _: &mut Connections<()>, _: ConnectionId, bytes: &mut [u8]) -> usize {
        bytes.len()
    }

    fn on_timer(&mut self, _: &mut Connections<()>, _: ConnectionId) {}

    fn on_recovered(&mut self, _: &mut Connections<()>, _: ConnectionId, _: u64) {}

    fn on_command(&mut self, _: &mut Connections<()>, (): ()) {}

    fn on_closed(&mut self, _: &mut Connections<()>, _: ConnectionId, (): (), _: Closed) {}

    fn on_turn(&mut self, _: &mut Connections<()>, _: Duration) -> Turn {
        Turn::Idle
    }
}

fn serve() {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let held = Arc::new(Mutex::new(Held::default()));
    let mut shard = Shard::new(0).unwrap();
    shard.listen(Listener::new(listener).unwrap()).unwrap();
    let (mailbox, holder) = (shard.mailbox(), Holder(Arc::clone(&held)));
    let running = thread::spawn(move || shard.run(holder));
    answer(address);
    for order in std::io::stdin().lines() {
        let mut held = held.lock().unwrap();
        match order.unwrap().as_str() {
            "hoard" => held.hoards = true,
            "free" => {
                held.hoards = false;
                held.sockets.clear();
            }
            "stop" => break,
            _ => {}
        }
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ns = cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64;
        answer(format_args!("{} {} {} {cpu_ns}", held.served, held.refused, held.starved));
    }
    mailbox.send(Mail::Stop);
    running.join().unwrap().unwrap();
    assert!(TcpStream::connect(address).is_err(), "the listener is closed");
    assert!(File::open("/dev/null").is_ok(), "and there are descriptors again");
    answer("stopped");
}

fn answer(what: impl std::fmt::Display) {
    let mut out = std::io::stdout();
    writeln!(out, "{what}").unwrap();
    out.flush().unwrap();
}
