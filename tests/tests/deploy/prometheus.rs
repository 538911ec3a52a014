//! A real Prometheus that scrapes a test's nodes every second and has the rules of `deploy/prometheus`.

use std::{fmt::Write as _, fs, net::SocketAddr, process::Command, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Process, Rest, eventually, eventually_some,
    net::{SocketOptions, connect, free_address},
};

use crate::tools::root;

#[derive(Debug)]
pub(crate) struct Prometheus {
    _process: Process,
    rest: Rest,
    _directory: TempDir,
}

/// Another process may take the free port first; then Prometheus ends at once.
const STARTS: usize = 5;

/// How long after a new value a query must not wait in vain: a scrape and an evaluation a second, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

impl Prometheus {
    /// Scrapes jobs of nodes, and has scraped each once.
    #[track_caller]
    pub(crate) fn start(jobs: &[(&str, &[SocketAddr])]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("prometheus.yml"), configuration(jobs)).unwrap();
        let (process, rest) = (0..STARTS).find_map(|_| launch(&directory)).expect("Prometheus starts");
        let prometheus = Self { _process: process, rest, _directory: directory };
        let nodes: usize = jobs.iter().map(|(_, nodes)| nodes.len()).sum();
        eventually("every node was scraped", PATIENCE, || {
            prometheus.query("up == 1").is_ok_and(|values| values.len() == nodes)
        });
        prometheus
    }

    /// The values of an instant query that are numbers, or what is wrong with it.
    pub(crate) fn query(&self, expr: &str) -> Result<Vec<f64>, String> {
        let answer = self.rest.post(
            "/api/v1/query",
            "application/x-www-form-urlencoded",
            format!("query={}", encoded(expr)),
        );
        let answer = answer.json();
        if answer["status"] != "success" {
            return Err(format!("{expr}: {answer}"));
        }
        let result = &answer["data"]["result"];
        let values: Vec<&Value> = match answer["data"]["resultType"].as_str() {
            Some("scalar") => vec![&result[1]],
            _ => result.as_array().unwrap().iter().map(|sample| &sample["value"][1]).collect(),
        };
        let numbers = values.into_iter().filter_map(|value| value.as_str()?.parse::<f64>().ok());
        Ok(numbers.filter(|number| !number.is_nan()).collect())
    }

    /// All rules of the groups, as Prometheus lists them.
    #[track_caller]
    pub(crate) fn rules(&self) -> Vec<Value> {
        let answer = self.rest.get("/api/v1/rules").json();
        let groups = answer["data"]["groups"].as_array().unwrap().iter();
        groups.flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
    }
}

fn launch(directory: &TempDir) -> Option<(Process, Rest)> {
    let address = free_address();
    let mut command = Command::new("prometheus");
    command.current_dir(directory.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
    command.arg(format!("--web.listen-address={address}"));
    let mut process = Process::spawn("prometheus", &mut command);
    let rest = Rest::new(address);
    let is_ready = eventually_some("Prometheus is ready", PATIENCE.max(DEADLINE), || {
        if process.try_wait().is_some() {
            return Some(false);
        }
        let answers = connect(address, SocketOptions::default()).is_ok();
        (answers && rest.get("/-/ready").status == 200).then_some(true)
    });
    is_ready.then_some((process, rest))
}

fn configuration(jobs: &[(&str, &[SocketAddr])]) -> String {
    let rules = root().join("deploy/prometheus/rules.yml");
    let mut text = format!(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [{rules:?}]\nscrape_configs:\n"
    );
    for (job, nodes) in jobs {
        let targets: Vec<String> = nodes.iter().map(|node| format!("{:?}", node.to_string())).collect();
        let targets = targets.join(", ");
        writeln!(text, "  - job_name: {job}\n    static_configs: [{{ targets: [{targets}] }}]").unwrap();
    }
    text
}

/// As a value of a form.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02X}").unwrap(),
        }
    }
    out
}
