//! `cargo xtask`: everything a person or CI does with this repository, as plain Rust.

mod attack;
mod autobahn;
mod bench;
mod chaos;
mod charts;
mod cluster;
mod command;
mod containers;
mod dashboards;
mod dist;
mod faults;
mod fuzz;
mod k8s;
mod million;
mod prepare;
mod ten_million;
mod test;
mod upgrade;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "Project tasks", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing, then formatting, lints, build and all tests
    Test(test::Options),
    /// Attack a gateway in every way of the table, and print what the others felt
    Attack(attack::Options),
    /// Run the Autobahn fuzzing client against the gateway's /echo, every case
    Autobahn(autobahn::Options),
    /// Measure the gateway and its peers and write docs/benchmarks.md
    Bench(bench::Options),
    /// Build the image and run the compose file on a container engine that is started for it
    Containers(containers::Options),
    /// Make what a release offers: stripped binaries, symbols, checksums, the image's archive
    Dist(dist::Options),
    /// Start Redis and a few gateways on this machine, until Ctrl-C
    Cluster(cluster::Options),
    /// Break Redis, gateways and the router at random, from a seed, and judge what clients were told
    Chaos(chaos::Options),
    /// Break Redis in every way there is under load, and print what was lost
    Faults(faults::Options),
    /// Write the Grafana dashboards of deploy/grafana
    Dashboards,
    /// Make what comes of the chart, the configuration's pages and deploy/: schema, tables, k8s/
    K8s(k8s::Options),
    /// Open a million WebSockets on this machine behind one port, and reach all of them
    Million(million::Options),
    /// Place ten million keys on 500 nodes, and write the table and plots of docs/ten-million.md
    TenMillion(ten_million::Options),
    /// Upgrade a gateway live under 15,000 clients, again and again, and plot the pause
    Upgrade(upgrade::Options),
    /// Fuzz one decoder, or each for a while
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::discover().and_then(|workspace| match arguments.task {
        Task::Test(options) => test::run(&workspace, &options),
        Task::Attack(options) => attack::run(&workspace, &options),
        Task::Autobahn(options) => autobahn::run(&workspace, &options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::Containers(options) => containers::run(&workspace, &options),
        Task::Dist(options) => dist::run(&workspace, &options),
        Task::Cluster(options) => cluster::run(&workspace, &options),
        Task::Chaos(options) => chaos::run(&workspace, &options),
        Task::Faults(options) => faults::run(&workspace, &options),
        Task::Dashboards => dashboards::run(&workspace),
        Task::K8s(options) => k8s::run(&workspace, &options),
        Task::Million(options) => million::run(&workspace, &options),
        Task::TenMillion(options) => ten_million::run(&workspace, &options),
        Task::Upgrade(options) => upgrade::run(&workspace, &options),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
