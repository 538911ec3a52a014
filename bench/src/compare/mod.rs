//! This gateway and its peers, measured in one run: every round meets every server, so that what drifts on a
//! machine drifts for all, and a ratio is taken within a round.
//!
//! [`plan`] says what there is; [`gateway`], [`redis`], [`router`], [`scaling`], [`pusher`], [`centrifuge`], [`ledger`],
//! [`handover`], [`filling`] and [`hooks`] do it with [`rig`] on the client's side and [`servers`], [`launch`] and [`process`]
//! on the other; [`table`] writes it down, and [`costs`] what `tidegate plan` reckons with.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

mod centrifuge;
mod costs;
mod filling;
mod gateway;
mod handover;
mod hooks;
pub mod launch;
mod ledger;
pub mod plan;
pub mod process;
mod pusher;
mod redis;
pub mod rig;
mod router;
mod rows;
mod scaling;
pub mod servers;
pub mod table;

use launch::{Places, ServerError};
use plan::{Group, Measure, Scenario, Sizes};
use rig::{MeasureError, Reading};
use servers::Server;

/// What to compare.
#[derive(Debug, Clone)]
pub struct CompareOptions {
    pub places: Places,
    pub servers: Vec<Server>,
    pub measures: Vec<Measure>,
    pub rounds: u32,
    pub sizes: Sizes,
    /// The command line, for the reader of the table.
    pub command: String,
    /// Markdown file whose marked parts are replaced; `None` leaves documents alone.
    pub document: Option<PathBuf>,
    /// The file of costs that gets what was measured; `None` leaves it alone.
    pub costs: Option<PathBuf>,
    pub json: PathBuf,
}

/// Readings of one measure and server, one per round that succeeded.
pub type Readings = BTreeMap<Measure, BTreeMap<Server, Vec<RoundReading>>>;

/// A reading and its round, so that ratios compare what ran side by side.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RoundReading {
    pub round: u32,
    #[serde(flatten)]
    pub reading: Reading,
}

/// Everything a run found.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub command: String,
    pub rounds: u32,
    pub sizes: Sizes,
    pub readings: Readings,
    pub failures: Vec<Failure>,
}

/// A round without a result.
#[derive(Debug, Serialize)]
pub struct Failure {
    pub group: Group,
    pub text: String,
}

/// Where the run was made.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub kernel: String,
    /// Day in UTC by the system's clock.
    pub date: String,
    pub versions: BTreeMap<Server, String>,
}

/// Why a comparison could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error("{path} could not be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} could not be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has no line {marker:?}: the table goes between two such markers")]
    Marker { path: PathBuf, marker: &'static str },
    #[error("the results could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no server gave a single reading: see the messages above")]
    Nothing,
}

/// Runs the comparison; progress goes to standard error.
pub fn run(options: &CompareOptions) -> Result<Results, CompareError> {
    crate::sys::raise_descriptor_limit();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan = planned(options);
    if plan.iter().any(|(_, servers, _)| servers.iter().any(|server| server.is_peer())) {
        servers::install_peers(&options.places)?;
    }
    let mut results = Results {
        machine: machine(options, cores),
        command: options.command.clone(),
        rounds: options.rounds,
        sizes: options.sizes,
        readings: Readings::new(),
        failures: Vec::new(),
    };
    launch::pin(Some(options.places.client_core))?;
    for (scenario, servers, wanted) in plan {
        for round in 1..=options.rounds {
            for server in turn_order(&servers, round) {
                measure(options, scenario, server, round, &wanted, &mut results);
            }
        }
    }
    if results.readings.is_empty() {
        return Err(CompareError::Nothing);
    }
    write_json(&results, &options.json)?;
    if let Some(document) = &options.document {
        table::update_document(&results, document)?;
    }
    if let Some(path) = &options.costs
        && costs::update(&results, path)?
    {
        eprintln!("{} has new costs", path.display());
    }
    Ok(results)
}

/// Scenarios that yield something wanted, who takes part, and what is wanted of them.
fn planned(options: &CompareOptions) -> Vec<(Scenario, Vec<Server>, Vec<Measure>)> {
    let wanted = |scenario: Scenario| {
        let measures = scenario.measures().iter().copied();
        measures.filter(|measure| options.measures.contains(measure)).collect::<Vec<_>>()
    };
    let asked = |scenario: Scenario| {
        let servers = scenario.servers().iter().copied();
        let asked = servers.filter(|server| options.servers.contains(server));
        asked.filter(|&server| is_there(server, &options.places)).collect::<Vec<_>>()
    };
    let scenarios = Scenario::ALL.into_iter().map(|scenario| (scenario, asked(scenario), wanted(scenario)));
    scenarios.filter(|(_, servers, wanted)| !servers.is_empty() && !wanted.is_empty()).collect()
}

/// Some servers take part only where there is a program of them.
fn is_there(server: Server, places: &Places) -> bool {
    match server {
        Server::Sockudo => servers::sockudo().is_some(),
        Server::Before => places.before.is_some(),
        _ => true,
    }
}

fn take(
    options: &CompareOptions,
    scenario: Scenario,
    server: Server,
    wanted: &[Measure],
) -> Result<Vec<Reading>, MeasureError> {
    let CompareOptions { places, sizes, .. } = options;
    match scenario.group() {
        Group::Gateway => gateway::run(scenario, server, places, sizes, wanted),
        Group::Redis => redis::run(scenario, server, places, sizes),
        Group::Router if scenario == Scenario::Placement => router::placement::run(places),
        Group::Router => router::run(server, places, sizes),
        Group::Scaling => scaling::run(server, places, sizes),
        Group::Pusher => pusher::run(scenario, server, places, sizes),
        Group::Centrifuge => centrifuge::run(scenario, server, places, sizes),
        Group::Ledger => ledger::run(scenario, server, places, sizes),
        Group::Handover if scenario == Scenario::Filling => filling::run(places, sizes),
        Group::Handover => handover::run(server, places, sizes, wanted),
        Group::Hooks => hooks::run(places, sizes),
    }
}

/// Each round begins with another server, so that none is always first on a cold machine.
fn turn_order(servers: &[Server], round: u32) -> Vec<Server> {
    let mut order = servers.to_vec();
    let length = order.len().max(1);
    order.rotate_left((round as usize - 1) % length);
    order
}

fn measure(
    options: &CompareOptions,
    scenario: Scenario,
    server: Server,
    round: u32,
    wanted: &[Measure],
    results: &mut Results,
) {
    match take(options, scenario, server, wanted) {
        Ok(readings) => {
            for reading in readings.into_iter().filter(|reading| wanted.contains(&reading.measure)) {
                let Reading { measure, value, .. } = reading;
                eprintln!("round {round}  {:<15} {measure:?} {value:.3}", server.name());
                let rounds = results.readings.entry(measure).or_default().entry(server).or_default();
                rounds.push(RoundReading { round, reading });
            }
        }
        Err(error) => {
            let text = format!("round {round}, {}, {scenario:?}: {error}", server.name());
            eprintln!("{text}");
            results.failures.push(Failure { group: scenario.group(), text });
        }
    }
}

fn machine(options: &CompareOptions, cores: usize) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        cores,
        processor: processor.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        date: today(),
        versions: options
            .servers
            .iter()
            .filter_map(|&server| Some((server, servers::version(server, &options.places)?)))
            .collect(),
    }
}

fn write_json(results: &Results, path: &Path) -> Result<(), CompareError> {
    let write = |source| CompareError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(write)?;
    }
    fs::write(path, serde_json::to_vec_pretty(results)?).map_err(write)
}

fn today() -> String {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let (year, month, day) = civil(since_epoch.map_or(0, |time| time.as_secs() / 86_400));
    format!("{year:04}-{month:02}-{day:02}")
}

/// The date of a day since 1970-01-01, in the proleptic Gregorian calendar, counted in years from March so
/// that the leap day is the last one.
fn civil(days: u64) -> (u64, u64, u64) {
    // 719,468 days lie between 0000-03-01 and 1970-01-01; 146,097 days make 400 years.
    let days = days + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March are 153 days in groups of five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = days / 146_097 * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_779, (2026, 11, 22)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn rounds_begin_with_another_server() {
        let firsts: Vec<_> = (1..=5).map(|round| turn_order(Group::Gateway.servers(), round)[0]).collect();
        assert_eq!(firsts, [Server::Tidegate, Server::Before, Server::Floor, Server::Bun, Server::Ws]);
    }
}
