//! What live processes expose: `promtool` accepts it, and `docs/metrics.md` lists it.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use tidegate_testkit::{DEADLINE, Gateway, Rest, eventually_some, redis::RedisServer, tls::Authority};

use crate::{
    nodes::Router,
    tools::{read, root},
};

/// One of each kind of process.
struct Nodes {
    memory: Gateway,
    over_tls: Gateway,
    over_redis: Gateway,
    router: Router,
    _redis: RedisServer,
}

/// A family as a scraper sees it.
#[derive(Debug, Clone, PartialEq)]
struct Family {
    name: String,
    kind: String,
    help: String,
    /// With their values, in the order of the exposition.
    labels: Vec<(String, Vec<String>)>,
}

/// Labels whose values depend on where the process runs.
const OPEN_LABELS: [&str; 5] = ["server", "consumer", "version", "os", "arch"];

const PAGE: &str = "docs/metrics.md";
const SKELETON: &str = "tests/tests/deploy/metrics.md";

#[test]
fn promtool_accepts_what_live_processes_expose() {
    let nodes = Nodes::start();
    for internal in nodes.internal() {
        let text = exposition(internal);
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool runs: cargo xtask test --only prepare");
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn the_page_lists_what_live_processes_expose() {
    let nodes = Nodes::start();
    let page = page(&nodes);
    if std::env::var_os("BLESS").is_some() {
        fs::write(root().join(PAGE), &page).unwrap();
    }
    let written = read(PAGE);
    for (line, expect) in written.lines().zip(page.lines()) {
        assert_eq!(line, expect, "{PAGE} is stale: BLESS=1 cargo test -p tidegate-tests --test deploy page");
    }
    assert!(written == page, "{PAGE} is stale: BLESS=1 cargo test -p tidegate-tests --test deploy page");
}

impl Nodes {
    fn start() -> Self {
        let redis = RedisServer::start();
        let encrypted = Gateway::builder();
        let issued = Authority::new().issue(2099);
        encrypted.file("tls.crt", issued.certificate_pem.as_bytes());
        let key = encrypted.file("tls.key", issued.key_pem.as_bytes());
        let consumer = format!(
            "[[consumers.streams]]\nname = \"orders\"\nurl = {:?}\nstream = \"publications\"\n",
            redis.url()
        );
        let tls = format!("[tls]\ndirectory = {:?}\n", key.parent().unwrap());
        Self {
            memory: Gateway::start(),
            over_tls: encrypted.config(&tls).start(),
            over_redis: Gateway::builder().backplane(&redis.url()).config(&consumer).start(),
            router: Router::start("", &["--members", &redis.url()]),
            _redis: redis,
        }
    }

    fn internal(&self) -> [SocketAddr; 4] {
        let gateways = [&self.memory, &self.over_tls, &self.over_redis].map(Gateway::internal);
        let [memory, over_tls, over_redis] = gateways;
        [memory, over_tls, over_redis, self.router.internal]
    }
}

/// When the share of the CPU is known, and the first probe of the backplane is back.
#[track_caller]
fn exposition(internal: SocketAddr) -> String {
    let rest = Rest::new(internal);
    eventually_some("everything is exposed", DEADLINE, || {
        let text = rest.get("/metrics").text();
        let is_redis = text.contains("tidegate_backplane_connected");
        let lag = !is_redis || text.contains("\ntidegate_backplane_lag_seconds{");
        (text.contains(r#"resource="cpu""#) && lag).then_some(text)
    })
}

fn page(nodes: &Nodes) -> String {
    let [memory, over_tls, over_redis, router] =
        nodes.internal().map(|internal| families(&exposition(internal)));
    let has = |families: &[Family], name: &str| families.iter().any(|family| family.name == name);
    let only = |families: &[Family], wanted: &dyn Fn(&str) -> bool| -> Vec<Family> {
        families.iter().filter(|family| wanted(&family.name)).cloned().collect()
    };
    let both = only(&memory, &|name| has(&router, name));
    for family in &both {
        let other = router.iter().find(|other| other.name == family.name).unwrap();
        assert_eq!((&family.kind, &family.help), (&other.kind, &other.help), "{}", family.name);
    }
    let is_consumers = |name: &str| name.starts_with("tidegate_consumer_");
    let sections = [
        ("{consumers}", only(&over_redis, &is_consumers)),
        ("{both}", both),
        ("{tls}", only(&over_tls, &|name| !has(&memory, name))),
        ("{gateway}", only(&memory, &|name| !has(&router, name) && has(&over_redis, name))),
        ("{memory}", only(&memory, &|name| !has(&router, name) && !has(&over_redis, name))),
        ("{redis}", only(&over_redis, &|name| !has(&memory, name) && !is_consumers(name))),
        ("{router}", only(&router, &|name| !has(&memory, name))),
    ];
    let mut page = read(SKELETON);
    for (mark, families) in sections {
        assert!(!families.is_empty() && page.contains(mark), "{mark}");
        page = page.replace(mark, &table(&families));
    }
    page
}

fn table(families: &[Family]) -> String {
    let mut table = "| name | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for Family { name, kind, help, labels } in families {
        let labels: Vec<String> = labels.iter().map(|(label, values)| described(label, values)).collect();
        table += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
    }
    table
}

fn described(label: &str, values: &[String]) -> String {
    if OPEN_LABELS.contains(&label) {
        return format!("`{label}`");
    }
    let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
    format!("`{label}`: {}", values.join(" "))
}

/// Reads the Prometheus text format.
#[track_caller]
fn families(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let family =
                Family { name: name.into(), kind: kind.into(), help: help.into(), labels: Vec::new() };
            families.push(family);
        } else {
            let family = families.last_mut().unwrap();
            assert!(line.starts_with(&family.name), "{line} stands below {}", family.name);
            note_labels(&mut family.labels, line);
        }
    }
    families
}

fn note_labels(labels: &mut Vec<(String, Vec<String>)>, sample: &str) {
    let Some((_, rest)) = sample.split_once('{') else { return };
    let inside = rest.rsplit_once('}').unwrap().0;
    for (label, value) in inside.split(',').map(|pair| pair.split_once('=').unwrap()) {
        // A histogram's bounds are no label of ours.
        if label == "le" {
            continue;
        }
        let value = value.trim_matches('"').to_owned();
        match labels.iter_mut().find(|(name, _)| name == label) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => labels.push((label.to_owned(), vec![value])),
        }
    }
}
