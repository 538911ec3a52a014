//! `cargo xtask autobahn`: Autobahn's fuzzing client against `/echo`, every case, compression included; at a gateway, or
//! through a router in front of it.

mod install;
mod report;
mod servers;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use self::install::Installation;
use self::report::Report;
use self::servers::Servers;
use crate::command::succeeds;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Test this server instead of a gateway started for it
    #[arg(long, value_name = "ws://HOST:PORT/PATH")]
    url: Option<String>,
    /// Through `tidegate router` in front of the gateway
    #[arg(long, conflicts_with = "url")]
    router: bool,
    /// Only these cases, for example 1.*,7.7.*
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
}

/// Clients that run side by side, with their cases. The compression cases (12 and 13: 1,000 messages each, up to
/// 128 KiB) are nine tenths of the time and bound by the Python client, so two of them keep two cores busy. The
/// split gives each about half, by the durations of a run against Node ws.
const CLIENTS: [&[&str]; 2] = [
    &["12.1.*", "12.2.*", "12.3.*", "12.4.*"],
    &["12.5.*", "13.*", "1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"],
];

/// What autobahntestsuite 0.8.2 has in all: a case that did not run is no case that passed.
const CASES_TOTAL: usize = 517;

/// The name in the report.
const AGENT: &str = "tidegate";

impl Options {
    pub(crate) fn all_cases() -> Self {
        Self { url: None, router: false, cases: Vec::new() }
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let installation = install::ensure(&workspace.cache("autobahn"))?;
    let directory = workspace.target.join("autobahn");
    fs::create_dir_all(&directory)?;
    let (_servers, url) = match &options.url {
        Some(url) => (None, url.clone()),
        None => {
            let (servers, address) = Servers::start(&workspace.build_product()?, &directory, options.router)?;
            (Some(servers), format!("ws://{address}/echo"))
        }
    };
    let start = Instant::now();
    let report = match options.cases.as_slice() {
        [] => fuzz(&installation, &directory, &url, &CLIENTS.map(<[&str]>::to_vec))?,
        cases => fuzz(&installation, &directory, &url, &[cases.iter().map(String::as_str).collect()])?,
    };
    println!("{report}");
    println!(
        "took {} s; details: {}",
        start.elapsed().as_secs(),
        directory.join("client-0/index.html").display()
    );
    if options.cases.is_empty() && report.cases() != CASES_TOTAL {
        bail!("{} cases ran, {CASES_TOTAL} were expected", report.cases());
    }
    if !report.is_clean() {
        bail!("not every case is OK or INFORMATIONAL");
    }
    Ok(())
}

/// Runs one client per entry of `cases` at the same time and joins what they found.
fn fuzz(installation: &Installation, directory: &Path, url: &str, cases: &[Vec<&str>]) -> Result<Report> {
    let mut clients = Vec::new();
    for (index, cases) in cases.iter().enumerate() {
        let outdir = directory.join(format!("client-{index}"));
        if outdir.exists() {
            fs::remove_dir_all(&outdir)?;
        }
        fs::create_dir_all(&outdir)?;
        let spec = json!({
            // A failed case is told by a close frame where possible, as the suite's own default spec has it.
            "options": { "failByDrop": false },
            "outdir": outdir,
            "servers": [{ "agent": AGENT, "url": url, "options": { "version": 18 } }],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        });
        let spec_file = directory.join(format!("client-{index}.json"));
        fs::write(&spec_file, spec.to_string())?;
        let log = File::create(directory.join(format!("client-{index}.log")))?;
        let mut command = installation.wstest();
        command.arg("--mode").arg("fuzzingclient").arg("--spec").arg(&spec_file);
        command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start wstest")?;
        clients.push((Owned(child), outdir));
    }
    let mut report = Report::default();
    for (mut client, outdir) in clients {
        let status = client.0.wait()?;
        let log = outdir.with_extension("log");
        if !status.success() {
            bail!("wstest ended with {status}: see {}", log.display());
        }
        let index = outdir.join("index.json");
        let text = fs::read_to_string(&index).with_context(|| format!("no result; see {}", log.display()))?;
        report.add(&text, AGENT)?;
    }
    Ok(report)
}

/// A child that does not outlive us.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Errors mean that it has ended, which is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Whether this machine can install the suite at all: it comes in Debian packages.
fn is_debian() -> bool {
    succeeds(Command::new("dpkg").arg("--version")) && succeeds(Command::new("apt-get").arg("--version"))
}
