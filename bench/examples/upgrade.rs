//! A gateway, or a router before two, that is upgraded live, again and again, under clients, publications over HTTP and
//! clients that publish: who is closed, what is lost, doubled or out of order, how long anything waits, and what the
//! process holds afterwards.
//!
//! `upgrade TIDEGATE CONNECTIONS TIMES [router | redis | PLOT.svg]`; `cargo xtask upgrade` calls it. Ends with 1 where anybody was
//! closed, or anything lost, doubled or out of order.

use std::{
    error::Error,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidegate_bench::{
    client::{Fleet, FleetConfig, Role},
    driver::Driver,
    frame::write_client_frame,
    publish::{Pace, PublishConfig, Publisher, Request},
    stamp::Stamp,
    sys::{now_ns, raise_descriptor_limit},
    target::Target,
};
use tidegate_testkit::{
    DEADLINE, Gateway, Metrics, Process, Rest, end, eventually, memory, pid_runs,
    plot::{Plot, Points},
    redis::RedisServer,
};

const RUN: u16 = 0x71de;

/// 50 clients in each of 300 channels: 35,000 deliveries a second.
const CLIENTS_PER_CHANNEL: u32 = 50;

/// Publications a second over HTTP, and the connections that carry them.
const PUBLISHES: f64 = 500.0;
const PUBLISHERS: u16 = 16;

/// Publications a second by clients, and how many of them publish, each to the channel that it is in.
const TALKS: u32 = 200;
const TALKERS: u32 = 20;

const PAYLOAD_BYTES: usize = 130;

/// Between two upgrades.
const REST: Duration = Duration::from_secs(3);

/// What is still to come after the end comes in this time, or is lost.
const TAIL: Duration = Duration::from_secs(5);

/// Deliveries are counted for each of these, and drawn for so many before and after an upgrade is asked for.
const BIN: Duration = Duration::from_millis(10);
const DRAWN: (usize, usize) = (50, 150);

/// The longest turn of the loop: finer than a bin.
const TURN: Duration = Duration::from_millis(2);

const CONFIG: &str = "[limits]\npublishes_per_second = 100000\nmessages_per_second = 100000\n\
    [namespaces.default]\nclient_publish = \"anyone\"\nhistory_size = 0\nhistory_age = \"0s\"\n";

type Failed = Box<dyn Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("upgrade: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<bool, Failed> {
    let (program, connections, times, plot) = match arguments {
        [program, connections, times] => (program, connections, times, None),
        [program, connections, times, plot] => (program, connections, times, Some(plot)),
        _ => return Err("upgrade TIDEGATE CONNECTIONS TIMES [router | redis | PLOT.svg]".into()),
    };
    let (connections, times): (u32, u32) = (connections.parse()?, times.parse()?);
    raise_descriptor_limit();
    let (program, is) = (Path::new(program), |word| plot.is_some_and(|plot| plot == word));
    let site = if is("router") { Site::router(program) } else { Site::gateway(program, is("redis")) };
    let plot = plot.filter(|_| !is("router") && !is("redis"));
    let mut scene = Scene::open(&site, connections)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let talking = {
        let (address, is_over) = (site.public, Arc::clone(&is_over));
        thread::spawn(move || talk(address, &is_over))
    };
    scene.drive(REST)?;
    println!("| upgrade | asked to served | longest of a publication | MiB | descriptors |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let mut process = site.pid;
    println!("| none | | | {} |", held(process));
    let (mut slowest, mut drawn) = (Duration::ZERO, Points::new());
    for number in 1..=times {
        let before = process;
        scene.fleet.forget_latencies();
        let (asked, rest, began) = (scene.bin(), Rest::new(site.internal), Instant::now());
        let upgrade = thread::spawn(move || (rest.post("/upgrade", "text/plain", ""), began.elapsed()));
        while !upgrade.is_finished() {
            scene.drive(BIN)?;
        }
        let (answer, took) = upgrade.join().map_err(|_| "the upgrade was not answered")?;
        if answer.status != 200 {
            return Err(answer.text().into());
        }
        process = u32::try_from(answer.json()["process"].as_u64().ok_or("a process without an id")?)?;
        scene.drive(REST)?;
        eventually("the process before has ended", DEADLINE, || !pid_runs(before));
        let longest = Duration::from_micros(scene.fleet.stats().latency_us.max());
        if longest > slowest {
            (slowest, drawn) = (longest, scene.drawn(asked));
        }
        println!("| {number} | {took:.0?} | {longest:.1?} | {} |", held(process));
    }
    is_over.store(true, Ordering::Release);
    let talked = talking.join().map_err(|_| "a client that publishes was closed")?;
    scene.publisher.stop();
    scene.drive(TAIL)?;
    let verdict = scene.verdict(&talked);
    println!("\nwhat the pauses were made of:");
    let log = site.log();
    log.lines().filter_map(|line| line.split_once("laps=")).for_each(|(_, laps)| println!("- {laps}"));
    end(process);
    if let Some(path) = plot {
        let title =
            format!("{connections} clients while their gateway is upgraded, the slowest time of {times}");
        let (x, y) = ("seconds", "deliveries in 10 ms");
        std::fs::write(path, Plot { title, x, y, floor: 0.0, lines: vec![("", drawn)] }.svg())?;
    }
    Ok(verdict)
}

/// What a process has: MiB and descriptors.
fn held(process: u32) -> String {
    let bytes = memory::pss_bytes(process) as f64;
    format!("{:.1} | {}", bytes / f64::from(1 << 20), memory::descriptors(process))
}

/// What is upgraded, and what is behind it.
struct Site {
    /// Where clients come in, and where publishers do: the connections of those that publish over HTTP end with a router.
    public: SocketAddr,
    publishing: SocketAddr,
    internal: SocketAddr,
    pid: u32,
    _redis: Option<RedisServer>,
    gateways: Vec<Gateway>,
    router: Option<Process>,
}

impl Site {
    /// Of what is upgraded.
    fn log(&self) -> String {
        self.router.as_ref().map_or_else(|| self.gateways[0].stderr(), Process::stderr)
    }

    /// `is_joined`: by Redis, with nobody.
    fn gateway(program: &Path, is_joined: bool) -> Self {
        let redis = is_joined.then(RedisServer::start);
        let mut builder = Gateway::builder().program(program).config(CONFIG);
        if let Some(redis) = &redis {
            builder = builder.backplane(&redis.url());
        }
        let gateway = builder.start();
        let (public, internal, pid) = (gateway.public(), gateway.internal(), gateway.pid());
        let gateways = vec![gateway];
        Self { public, publishing: public, internal, pid, _redis: redis, gateways, router: None }
    }

    fn router(program: &Path) -> Self {
        let redis = RedisServer::start();
        let gateway = |name: &str| {
            let built = Gateway::builder().program(program).config(CONFIG);
            built.backplane(&redis.url()).node(name).start()
        };
        let gateways = vec![gateway("g1"), gateway("g2")];
        let mut command = Command::new(program);
        command.args([
            "router",
            "--listen",
            "127.0.0.1:0",
            "--internal",
            "127.0.0.1:0",
            "--key",
            "query:channel",
        ]);
        command.args(["--members", &redis.url()]);
        // All clients come at once, as to a gateway in development mode.
        command.envs([
            ("TIDEGATE__LIMITS__HANDSHAKES_PER_SECOND", "0"),
            ("TIDEGATE__LIMITS__ADDRESS_HANDSHAKES_PER_SECOND", "0"),
        ]);
        let mut router = Process::spawn("router", &mut command);
        let listening = |line: &str| {
            let address = |name: &str| {
                let (_, rest) = line.split_once(name)?.1.split_once("://")?;
                rest.split_whitespace().next()?.parse::<SocketAddr>().ok()
            };
            Some((address("public=")?, address("internal=")?))
        };
        let (public, internal) = router.wait_line("the router's addresses", DEADLINE, listening);
        let live = || Metrics::scrape(internal).sum("tidegate_nodes", &[("state", "live")]);
        eventually("the router knows both gateways", DEADLINE, || live() == 2.0);
        let (publishing, pid) = (gateways[0].public(), router.pid());
        let (_redis, router) = (Some(redis), Some(router));
        Self { public, publishing, internal, pid, _redis, gateways, router }
    }
}

struct Scene {
    driver: Driver,
    fleet: Fleet,
    publisher: Publisher,
    began: Instant,
    /// Deliveries in each [`BIN`].
    bins: Vec<u64>,
    connections: u32,
}

impl Scene {
    fn open(site: &Site, connections: u32) -> Result<Self, Failed> {
        let target = Target::of(site.public);
        let count = (connections / CLIENTS_PER_CHANNEL).max(TALKERS);
        let channels: Arc<[String]> = (0..count).map(channel).collect();
        let fleet = FleetConfig {
            target,
            role: Role::Subscribe,
            connections,
            channels: Arc::clone(&channels),
            channel_of: Arc::new(move |index| index % count),
            handshakes_in_flight: 256,
            connects_per_second: None,
            sources: 50,
            run: RUN,
            reset_on_close: true,
            token: None,
            comes_back: false,
        };
        let publisher = PublishConfig {
            target: Target::of(site.publishing),
            api_key: Some("dev-key".to_owned()),
            request: Request::Publish,
            connections: PUBLISHERS,
            pace: Pace::PerSecond(PUBLISHES),
            payload_bytes: PAYLOAD_BYTES,
            channels,
            run: RUN,
        };
        let (mut driver, mut fleet) = (Driver::new()?, Fleet::new(1, fleet));
        let until = Instant::now() + DEADLINE;
        while !fleet.settled() && Instant::now() < until {
            driver.turn(&mut [&mut fleet], TURN)?;
        }
        if fleet.open() < connections {
            return Err(format!("{} of {connections} clients are open", fleet.open()).into());
        }
        let publisher = Publisher::new(0, publisher)?;
        Ok(Self { driver, fleet, publisher, began: Instant::now(), bins: Vec::new(), connections })
    }

    fn bin(&self) -> usize {
        (self.began.elapsed().as_nanos() / BIN.as_nanos()) as usize
    }

    fn drive(&mut self, time: Duration) -> Result<(), Failed> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let before = self.fleet.stats().messages;
            self.driver.turn(&mut [&mut self.fleet, &mut self.publisher], TURN)?;
            let bin = self.bin();
            self.bins.resize(self.bins.len().max(bin + 1), 0);
            self.bins[bin] += self.fleet.stats().messages - before;
        }
        Ok(())
    }

    /// Around the moment at which an upgrade was asked for.
    fn drawn(&self, asked: usize) -> Points {
        let bins = self.bins.iter().skip(asked.saturating_sub(DRAWN.0)).take(DRAWN.0 + DRAWN.1);
        let second = |nth: usize| nth as f64 * BIN.as_secs_f64();
        bins.enumerate().map(|(nth, &count)| (second(nth), count as f64)).collect()
    }

    /// Prints it. `talked`: how often in each channel. False: somebody felt more than a pause.
    fn verdict(&self, talked: &[u32]) -> bool {
        let (fleet, publisher) = (self.fleet.stats(), self.publisher.stats());
        let sent = |stream: u16, channel: u32| match stream {
            PUBLISHERS => talked.get(channel as usize).copied().unwrap_or(0),
            _ => self.publisher.acknowledged(stream, channel),
        };
        let lost = fleet.order.lost + self.fleet.missing_tail(PUBLISHERS + 1, sent);
        let (doubled, misordered) = (fleet.order.duplicated, fleet.order.misordered);
        let closed = self.connections - self.fleet.open();
        println!(
            "\n{} publications over HTTP and {} by clients, {} deliveries: {closed} closed, {lost} lost, {doubled} \
             doubled, {misordered} out of order; publishers: {} told to come later, {} refused, {} not answered",
            publisher.published,
            talked.iter().sum::<u32>(),
            fleet.messages,
            publisher.pushed_back.values().sum::<u64>(),
            publisher.refused.values().sum::<u64>(),
            publisher.uncertain,
        );
        (closed, lost, doubled, misordered) == (0, 0, 0, 0) && publisher.refused.is_empty()
    }
}

fn channel(number: u32) -> String {
    format!("upgrade-{number}")
}

/// Clients that publish in turn until it is over; how often each did.
fn talk(address: SocketAddr, is_over: &AtomicBool) -> Vec<u32> {
    let mut clients: Vec<TcpStream> = (0..TALKERS).map(|number| talker(address, &channel(number))).collect();
    let (mut sent, began) = (vec![0; TALKERS as usize], Instant::now());
    for number in 0.. {
        let due = began + Duration::from_secs(1) * number / TALKS;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if is_over.load(Ordering::Acquire) {
            break;
        }
        let at = (number % TALKERS) as usize;
        sent[at] += 1;
        let mut payload = [b'.'; PAYLOAD_BYTES];
        Stamp { run: RUN, stream: PUBLISHERS, sequence: sent[at], sent_ns: now_ns() }.write(&mut payload);
        let mut frame = Vec::new();
        write_client_frame(&mut frame, 0x1, &payload);
        clients[at].write_all(&frame).expect("a client that publishes stays open");
        read_away(&mut clients[at]);
    }
    sent
}

/// A raw WebSocket of one channel.
fn talker(address: SocketAddr, channel: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("it is accepted");
    let request = format!(
        "GET /ws?channel={channel} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("it is read");
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).expect("it is answered");
    assert_eq!(&answer, b"HTTP/1.1 101");
    socket.set_nonblocking(true).expect("a socket of ours");
    socket
}

/// It is told of its own channel, too.
fn read_away(socket: &mut TcpStream) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => panic!("a client that publishes was closed"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("a client that publishes was closed: {error}"),
        }
    }
}
