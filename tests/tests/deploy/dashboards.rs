//! Every query of the dashboards and of the rules, on a real Prometheus that scrapes live nodes under a small storm.

use std::collections::BTreeSet;

use serde_json::Value;
use tidegate_testkit::{
    DEADLINE, Gateway, Process, eventually,
    redis::RedisServer,
    tls::{Authority, Issued},
};

use crate::{
    nodes::{Router, tidegate},
    prometheus::{PATIENCE, Prometheus},
    tools::read,
};

/// Silent clients are pinged at once, so that round trips are known.
const GATEWAY_CONFIG: &str = "[heartbeat]\ninterval = \"1s\"\n";

/// Redis, two gateways, a router, another one with TLS, and Prometheus, which has seen all of them before the load.
struct Site {
    prometheus: Prometheus,
    _storm: Process,
    _routers: [Router; 2],
    _gateways: Vec<Gateway>,
    _redis: RedisServer,
    _directory: tempfile::TempDir,
}

/// A query of a panel, with Grafana's variables filled in.
struct Query {
    panel: String,
    expr: String,
}

#[test]
fn every_panel_and_every_rule_has_data_under_load() {
    let site = Site::start();
    for query in queries("deploy/grafana/fleet.json").into_iter().chain(queries("deploy/grafana/node.json")) {
        site.expect_data(&query.panel, &query.expr);
    }
    let rules = site.prometheus.rules();
    assert!(rules.len() > 10, "{rules:?}");
    for rule in &rules {
        let (name, expr) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        assert_eq!(rule["health"], "ok", "{rule}");
        match rule["type"].as_str() {
            Some("recording") => site.expect_data("a recording rule", name),
            // That it can fire is tested with promtool; what it reads must be there.
            _ => series_of(expr).iter().for_each(|series| site.expect_data(name, series)),
        }
    }
}

#[test]
fn the_series_of_an_expression_are_found() {
    let expr = r#"max by (job) (tidegate_a_total{x="up"}) > 5 and up == 0 or tidegate:b:rate5m offset 1h"#;
    let found = series_of(expr);
    assert_eq!(
        found.iter().map(String::as_str).collect::<Vec<_>>(),
        ["tidegate:b:rate5m", "tidegate_a_total", "up"]
    );
}

impl Site {
    #[track_caller]
    fn start() -> Self {
        let redis = RedisServer::start();
        let start = |number| {
            let gateway = Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"));
            gateway.config(GATEWAY_CONFIG).start()
        };
        let gateways: Vec<Gateway> = (1..=2).map(start).collect();
        let directory = tempfile::tempdir().unwrap();
        let members = redis.url();
        let plain = Router::start("", &["--members", &members]);
        let encrypted = Router::start(&tls_of(&directory), &["--members", &members]);
        let internal: Vec<_> = gateways.iter().map(Gateway::internal).collect();
        let jobs = [
            ("tidegate-gateway", &internal[..]),
            ("tidegate-router", &[plain.internal, encrypted.internal][..]),
        ];
        let prometheus = Prometheus::start(&jobs);
        // One whose connections end, and one that goes on.
        storm(&plain, "1s").wait(DEADLINE);
        let storm = storm(&plain, "1h");
        Self {
            prometheus,
            _storm: storm,
            _routers: [plain, encrypted],
            _gateways: gateways,
            _redis: redis,
            _directory: directory,
        }
    }

    #[track_caller]
    fn expect_data(&self, what: &str, expr: &str) {
        eventually(&format!("{what} has data: {expr}"), PATIENCE, || match self.prometheus.query(expr) {
            Ok(values) => !values.is_empty(),
            Err(error) => panic!("{what}: {error}"),
        });
    }
}

fn storm(router: &Router, duration: &str) -> Process {
    let mut command = tidegate();
    command.args(["storm", &format!("http://{}", router.public), "--connections", "20", "--channels", "4"]);
    command.args(["--rate", "10", "--duration", duration, "--json"]);
    Process::spawn("storm", &mut command)
}

fn tls_of(directory: &tempfile::TempDir) -> String {
    let Issued { certificate_pem, key_pem, .. } = Authority::new().issue(2099);
    std::fs::write(directory.path().join("tls.crt"), certificate_pem).unwrap();
    std::fs::write(directory.path().join("tls.key"), key_pem).unwrap();
    format!("[tls]\ndirectory = {:?}\n", directory.path())
}

fn queries(file: &str) -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&read(file)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let queries = panels.flat_map(|panel| {
        let title = format!("{}: {}", dashboard["title"].as_str().unwrap(), panel["title"].as_str().unwrap());
        let targets = panel["targets"].as_array().unwrap().iter();
        targets
            .map(move |target| Query { panel: title.clone(), expr: filled(target["expr"].as_str().unwrap()) })
    });
    let queries: Vec<Query> = queries.collect();
    assert!(queries.len() > 20, "{file} has {} queries", queries.len());
    queries
}

/// Everything is chosen, and the window holds all that was scraped.
fn filled(expr: &str) -> String {
    let mut expr = expr.to_owned();
    for (variable, value) in
        [("$namespace", ".*"), ("$job", ".*"), ("$instance", ".*"), ("$__rate_interval", "5m")]
    {
        expr = expr.replace(variable, value);
    }
    assert!(!expr.contains('$'), "{expr} has a variable that is not known here");
    expr
}

/// Names of what an expression reads: ours, and `up`.
fn series_of(expr: &str) -> BTreeSet<String> {
    let unquoted: String = expr.split('"').step_by(2).collect();
    let words =
        unquoted.split(|character: char| !character.is_ascii_alphanumeric() && !"_:".contains(character));
    words.filter(|word| *word == "up" || word.starts_with("tidegate")).map(str::to_owned).collect()
}
