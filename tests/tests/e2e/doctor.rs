//! `tidegate doctor`: this machine's limits, and deployments that are well or not, through real proxies.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::process::Command;
use std::thread;

use rustix::net::{AddressFamily, SocketType};
use serde_json::Value;
use tempfile::TempDir;
use tidegate_testkit::net::free_address;
use tidegate_testkit::tls::Authority;
use tidegate_testkit::{
    DEADLINE, Exit, Gateway, Metrics, Process, eventually, eventually_some, product_binary,
};

/// Runs `tidegate doctor --json` to its end.
struct Doctor {
    command: Command,
}

/// Its exit code and what it found.
struct Diagnosis {
    code: Option<i32>,
    json: Value,
}

impl Doctor {
    fn new() -> Self {
        let mut command = Command::new(product_binary());
        command.args(["doctor", "--json"]).env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
        Self { command }
    }

    fn of(url: &str) -> Self {
        Self::new().arguments(&["--url", url])
    }

    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    fn environment(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn spawn(mut self) -> Process {
        Process::spawn("doctor", &mut self.command)
    }

    #[track_caller]
    fn run(self) -> Diagnosis {
        Diagnosis::read(&self.spawn().wait(DEADLINE * 2))
    }
}

impl Diagnosis {
    #[track_caller]
    fn read(exit: &Exit) -> Self {
        let json = serde_json::from_str(&exit.stdout).unwrap_or_else(|error| panic!("{error}: {exit}"));
        Self { code: exit.code, json }
    }

    /// The step of that name.
    #[track_caller]
    fn step(&self, name: &str) -> &Value {
        let steps = self.json["deployment"]["steps"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no step {name}: {steps:?}"))
    }

    /// The outcome of a step, and words of its sentence and advice.
    #[track_caller]
    fn check(&self, name: &str, outcome: &str, words: &[&str]) {
        let step = self.step(name);
        assert_eq!(step["outcome"], outcome, "{step}");
        let text = format!("{} {}", step["sentence"], step["advice"]);
        for word in words {
            assert!(text.contains(word), "{word:?} is in {text}");
        }
        assert_eq!(step["advice"].is_null(), matches!(outcome, "passed" | "skipped"), "{step}");
    }

    /// Exit code 1, one failed step, and the rest of the way skipped.
    #[track_caller]
    fn check_failed(&self, name: &str, words: &[&str]) {
        self.check(name, "failed", words);
        assert_eq!(self.code, Some(1), "{}", self.json);
        let steps = self.json["deployment"]["steps"].as_array().unwrap();
        let failed = steps.iter().filter(|step| step["outcome"] == "failed").count();
        assert_eq!((failed, steps.len()), (1, 7), "{steps:?}");
    }

    #[track_caller]
    fn check_well(&self) {
        assert_eq!(self.code, Some(0), "{}", self.json);
        for name in ["name", "connect", "request", "clock", "upgrade"] {
            self.check(name, "passed", &[]);
        }
    }
}

/// nginx in front of `upstream`, with these lines in its location.
struct Nginx {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

const UPGRADE: &str = "proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection \"upgrade\";";

impl Nginx {
    /// A port that was free a moment ago may be taken now: then nginx ends, and another is tried.
    #[track_caller]
    fn start(location: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("nginx.pid");
        let (address, process) = eventually_some("nginx listens", DEADLINE, || {
            let address = free_address();
            let config = directory.path().join("nginx.conf");
            fs::write(&config, Self::configuration(directory.path().to_str().unwrap(), address, location))
                .unwrap();
            let mut command = Command::new("nginx");
            let mut process = Process::spawn("nginx", command.arg("-c").arg(&config).args(["-e", "stderr"]));
            // It writes its pid when it has its port.
            let listens = eventually_some("nginx has started or ended", DEADLINE, || {
                let started = fs::read_to_string(&pid_file).is_ok_and(|pid| !pid.trim().is_empty());
                started.then_some(true).or_else(|| process.try_wait().map(|_| false))
            });
            listens.then_some((address, process))
        });
        Self { address, _process: process, _directory: directory }
    }

    fn configuration(directory: &str, address: SocketAddr, location: &str) -> String {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("  {kind}_temp_path {directory}/{kind};\n"))
            .collect();
        format!(
            "daemon off;
master_process off;
pid {directory}/nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log off;
{temporary}  server {{
    listen {address};
    location / {{
      {location}
    }}
  }}
}}
"
        )
    }

    fn before(gateway: &Gateway, lines: &str) -> Self {
        Self::start(&format!("proxy_pass http://{};\n      {lines}", gateway.public()))
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

#[test]
fn the_limits_of_this_machine_are_said() {
    let diagnosis = Doctor::new().run();
    assert_eq!(diagnosis.code, Some(0));
    let machine = &diagnosis.json["machine"];
    assert!(machine["connections"].as_u64().is_some(), "{machine}");
    assert_eq!(machine["first"], machine["limits"][0]["resource"]);
    assert!(diagnosis.json.get("deployment").is_none());
}

#[test]
fn the_exit_code_says_whether_connections_fit() {
    // The shell's limit is the program's: 1,000 less 200.
    let run = |connections: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 1000 && exec \"$0\" doctor --json --connections \"$1\""]);
        let exit = Process::spawn("doctor", shell.arg(product_binary()).arg(connections)).wait(DEADLINE);
        Diagnosis::read(&exit)
    };
    let descriptors = |diagnosis: &Diagnosis| {
        let limits = diagnosis.json["machine"]["limits"].as_array().unwrap().clone();
        limits.into_iter().find(|limit| limit["resource"] == "descriptors").unwrap()
    };
    let fits = run("1");
    assert_eq!((fits.code, &fits.json["machine"]["met"]), (Some(0), &Value::Bool(true)), "{}", fits.json);
    let fails = run("801");
    assert_eq!((fails.code, &fails.json["machine"]["met"]), (Some(1), &Value::Bool(false)), "{}", fails.json);
    assert_eq!(descriptors(&fails)["connections"], 800);
    assert!(!descriptors(&fails)["raise"].as_array().unwrap().is_empty());
}

#[test]
fn a_gateway_is_well() {
    let gateway = Gateway::start();
    let diagnosis = Doctor::of(&url(gateway.public())).arguments(&["--idle", "200ms"]).run();
    diagnosis.check_well();
    diagnosis.check("request", "passed", &["404", "Tidegate"]);
    diagnosis.check("tls", "skipped", &[]);
    diagnosis.check("idle", "passed", &["still open"]);
    gateway.eventually_connections(0);
}

#[test]
fn a_gateway_behind_a_router_is_well() {
    let gateway = Gateway::start();
    let mut command = Command::new(product_binary());
    command.args(["router", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"]);
    command.args(["--members", &format!("static:{}", gateway.public())]);
    let mut router = Process::spawn("router", &mut command);
    let address = |line: &str, name: &str| -> Option<SocketAddr> {
        line.split_once(name)?.1.split_once("://")?.1.split_whitespace().next()?.parse().ok()
    };
    let (public, internal) = router.wait_line("the router's addresses", DEADLINE, |line| {
        Some((address(line, "public=")?, address(line, "internal=")?))
    });
    eventually("the router knows the gateway", DEADLINE, || {
        Metrics::scrape(internal).sum("tidegate_nodes", &[("state", "live")]) == 1.0
    });
    let well = Doctor::of(&url(public)).arguments(&["--idle", "200ms"]).run();
    well.check_well();
    well.check("request", "passed", &["404", "Tidegate"]);

    gateway.kill();
    // It was all of them, so the router believes its own checks the less; the client is refused all the same.
    eventually("the router finds all of its gateways bad", DEADLINE, || {
        Metrics::scrape(internal).sum("tidegate_members_panic", &[]) == 1.0
    });
    Doctor::of(&url(public)).run().check("request", "failed", &["503", "members"]);
}

#[test]
fn a_channel_that_needs_a_token_is_said_to() {
    let gateway = Gateway::builder()
        .production()
        .config("[[auth.jwt]]\nalgorithm = \"HS256\"\nsecret = \"0123456789abcdef0123456789abcdef\"\n")
        .start();
    let without = Doctor::of(&url(gateway.public())).arguments(&["--channel", "news:1"]).run();
    without.check_failed("upgrade", &["401", "news:1", "--token"]);
    without.check("request", "passed", &["Tidegate"]);
    let wrong =
        Doctor::of(&url(gateway.public())).environment("TIDEGATE_DOCTOR_TOKEN", "no.token.this").run();
    wrong.check_failed("upgrade", &["401", "the token is refused"]);
}

/// A port that is bound, and on which nobody listens.
#[test]
fn a_closed_port() {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let diagnosis = Doctor::of(&url(address)).run();
    diagnosis.check_failed("connect", &["does not take connections", "nothing listens there"]);
    diagnosis.check("upgrade", "skipped", &[]);
}

#[test]
fn a_name_that_is_nobodys() {
    // RFC 6761 section 6.4: never resolves.
    Doctor::of("http://gate.invalid").run().check("name", "failed", &["gate.invalid", "check the name"]);
}

#[test]
fn what_is_no_url_is_an_error_of_use() {
    let exit = Doctor::of("gate.example.org").spawn().wait(DEADLINE);
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.contains("gate.example.org"), "{exit}");
}

#[test]
fn a_server_of_something_else() {
    let other = Nginx::start("return 200 hello;");
    let diagnosis = Doctor::of(&other.url()).run();
    diagnosis.check("request", "warned", &["200", "not by Tidegate"]);
    diagnosis.check_failed("upgrade", &["200", "nginx", "not Tidegate"]);
}

#[test]
fn a_server_that_speaks_no_http() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // The other side may have left already.
            drop(stream.and_then(|mut stream| stream.write_all(b"220 mail.example.org ready\r\n")));
        }
    });
    Doctor::of(&url(address)).run().check_failed("request", &["no HTTP/1.1 answer", "another protocol"]);
}

#[test]
fn a_proxy_that_drops_the_upgrade() {
    let gateway = Gateway::start();
    let nginx = Nginx::before(&gateway, "");
    let diagnosis = Doctor::of(&nginx.url()).run();
    diagnosis.check("request", "passed", &["404", "Tidegate"]);
    diagnosis.check_failed("upgrade", &["426", "proxy_set_header Upgrade"]);
}

#[test]
fn a_proxy_that_passes_the_upgrade_on() {
    let gateway = Gateway::start();
    let nginx = Nginx::before(&gateway, UPGRADE);
    Doctor::of(&nginx.url()).run().check_well();
}

#[test]
fn a_proxy_that_has_no_gateway() {
    let gateway = Gateway::start();
    let nginx = Nginx::before(&gateway, UPGRADE);
    gateway.kill();
    Doctor::of(&nginx.url()).run().check("request", "failed", &["502", "cannot reach a gateway"]);
}

#[test]
fn a_proxy_that_ends_silent_connections() {
    let gateway = Gateway::start();
    let nginx = Nginx::before(&gateway, &format!("{UPGRADE}\n      proxy_read_timeout 2s;"));
    let diagnosis = Doctor::of(&nginx.url()).arguments(&["--idle", "10m"]).run();
    diagnosis.check_failed("idle", &["the end of the stream", "sent 0 heartbeats", "proxy_read_timeout"]);
    assert!(diagnosis.step("idle")["seconds"].as_f64().is_some());
    diagnosis.check("upgrade", "passed", &[]);
}

#[test]
fn heartbeats_keep_a_connection_open() {
    let gateway = Gateway::builder().config("[heartbeat]\ninterval = \"100ms\"\ntimeout = \"60s\"\n").start();
    // How soon the gateway gets to its heartbeats is the machine's matter: the bound grows until one has come.
    let seen = ["1s", "4s", "16s", "60s"].iter().any(|bound| {
        let diagnosis = Doctor::of(&url(gateway.public())).arguments(&["--idle", bound]).run();
        diagnosis.check("idle", "passed", &["still open"]);
        diagnosis.step("idle")["sentence"].as_str().unwrap().contains("heartbeats")
    });
    assert!(seen);
}

#[test]
fn a_gateway_that_drains_says_so() {
    let gateway = Gateway::start();
    let mut doctor = Doctor::of(&url(gateway.public())).arguments(&["--idle", "10m"]).spawn();
    gateway.eventually_metric("tidegate_subscriptions", &[], |held| held == 1.0);
    gateway.terminate();
    Diagnosis::read(&doctor.wait(DEADLINE)).check_failed("idle", &["close code 1012", "docs/protocols.md"]);
}

#[test]
fn a_gateway_that_dies_is_seen() {
    let gateway = Gateway::start();
    let mut doctor = Doctor::of(&url(gateway.public())).arguments(&["--idle", "10m"]).spawn();
    gateway.eventually_metric("tidegate_subscriptions", &[], |held| held == 1.0);
    gateway.kill();
    Diagnosis::read(&doctor.wait(DEADLINE)).check("idle", "failed", &["was ended after"]);
}

#[test]
fn tls_and_what_can_be_wrong_with_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    authority.issue(2040).write_to(directory.path());
    let gateway = Gateway::builder().config(&format!("[tls]\ndirectory = {:?}\n", directory.path())).start();
    let trusted = directory.path().join("authority.pem");
    fs::write(&trusted, authority.pem()).unwrap();
    let other = directory.path().join("stranger.pem");
    fs::write(&other, stranger.pem()).unwrap();
    let address = gateway.public();
    let run = |url: &str, roots: &std::path::Path| {
        Doctor::of(url).environment("SSL_CERT_FILE", roots.to_str().unwrap()).run()
    };

    let well = run(&format!("wss://{address}"), &trusted);
    well.check_well();
    well.check("tls", "passed", &["TLSv1_3"]);
    run(&format!("https://{address}"), &other).check_failed("tls", &["not accepted", "SSL_CERT_FILE"]);
    run(&format!("http://{address}"), &trusted).check("request", "failed", &["https"]);

    let plain = Gateway::start();
    run(&format!("https://{}", plain.public()), &trusted).check_failed("tls", &["does not speak TLS"]);
}
