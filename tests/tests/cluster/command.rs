//! `tidegate-cluster`, the program behind `cargo xtask cluster`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use tidegate_testkit::{
    DEADLINE, Gateway, Process, Rest, SseClient, Stop, eventually, product_binary, target_directory,
};

/// Started, with the public addresses and the process ids of its gateways, and the address of its router.
struct Cluster {
    process: Process,
    router: SocketAddr,
    gateways: Vec<(SocketAddr, u32)>,
}

impl Cluster {
    #[track_caller]
    fn start(redis: &str) -> Self {
        // Two gateways and a router on neighbouring ports: a place where another listens is left for the next.
        let base = free_base();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-cluster"));
        command.arg("--tidegate").arg(product_binary());
        command.arg("--logs").arg(target_directory().join(format!("cluster-{base}")));
        command.args(["--gateways", "2", "--redis", redis, "--base-port", &base.to_string()]);
        command.args(["--router-port", &(base + 2).to_string()]);
        let mut process = Process::spawn("tidegate-cluster", &mut command);
        process.wait_line("what to try", DEADLINE * 2, |line| line.starts_with("logs").then_some(()));
        let printed = process.stdout();
        let gateways = printed.lines().filter_map(gateway).collect();
        let router =
            printed.lines().find_map(|line| line.strip_prefix("open")?.trim().strip_prefix("http://"));
        let router =
            router.and_then(|address| address.trim_end_matches('/').parse().ok()).expect("an address");
        Self { process, router, gateways }
    }

    /// Waits until nothing listens where its gateways did.
    #[track_caller]
    fn expect_gone(&self) {
        let gateways = self.gateways.iter().map(|(address, _)| *address);
        for address in gateways.chain([self.router]) {
            eventually("nobody is left", DEADLINE, || TcpStream::connect(address).is_err());
        }
    }
}

impl Drop for Cluster {
    /// Lets it clean up also when the test fails: killed, it would leave its children behind.
    fn drop(&mut self) {
        if self.process.try_wait().is_none() {
            self.process.signal(Stop::Terminate);
            eventually("it has ended", DEADLINE, || self.process.try_wait().is_some());
        }
    }
}

/// `gN http://ADDRESS … pid PID`, after the label of the first line.
fn gateway(line: &str) -> Option<(SocketAddr, u32)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let address = words.iter().find_map(|word| word.strip_prefix("http://"))?.parse().ok()?;
    let [.., "pid", pid] = words.as_slice() else { return None };
    Some((address, pid.parse().ok()?))
}

/// A port with two free neighbours, and all free 1000 above; another one each time.
fn free_base() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = std::process::id() as u16 % 300;
    let next = || 31_000 + (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % 300 * 3;
    let mut candidates = (0..300).map(|_| next());
    let free =
        candidates.find(|base| [0, 1, 2, 1000, 1001, 1002].iter().all(|offset| is_free(base + offset)));
    free.expect("six free ports")
}

#[test]
fn what_one_gateway_takes_another_delivers_and_ctrl_c_ends_all() {
    let mut cluster = Cluster::start("standalone");
    let [(one, _), (other, _)] = cluster.gateways[..] else { panic!("two gateways: {:?}", cluster.gateways) };
    let mut stream = SseClient::connect(one, "/sse?channel=news", None);
    Rest::new(other).with_key("dev-key").publish("news", "hello");
    assert_eq!(stream.expect_event().data, "hello");
    let mut through = SseClient::connect(cluster.router, "/sse?channel=news", None);
    Rest::new(cluster.router).with_key("dev-key").publish("news", "by the router");
    for stream in [&mut stream, &mut through] {
        assert_eq!(stream.expect_event().data, "by the router");
    }
    cluster.process.signal(Stop::Interrupt);
    let exit = cluster.process.wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
    cluster.expect_gone();
}

#[test]
fn the_death_of_one_gateway_ends_all() {
    let mut cluster = Cluster::start("cluster");
    let (_, pid) = cluster.gateways[0];
    let killed =
        Process::spawn("kill", Command::new("kill").args(["-KILL", &pid.to_string()])).wait(DEADLINE);
    assert_eq!(killed.code, Some(0), "{killed}");
    let exit = cluster.process.wait(DEADLINE);
    assert_eq!(exit.code, Some(1), "{exit}");
    assert!(exit.stderr.contains("g1"), "{exit}");
    cluster.expect_gone();
}

#[test]
fn a_taken_port_is_told() {
    let taken = Gateway::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-cluster"));
    command.arg("--tidegate").arg(product_binary());
    command.arg("--logs").arg(target_directory().join("cluster-taken"));
    command.args(["--gateways", "1", "--base-port", &taken.public().port().to_string()]);
    let exit = Process::spawn("tidegate-cluster", &mut command).wait(DEADLINE);
    assert_eq!(exit.code, Some(1), "{exit}");
    assert!(exit.stderr.contains(&taken.public().to_string()), "{exit}");
}
