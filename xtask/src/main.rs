//! `cargo xtask`: everything a person or CI does with this repository, as plain Rust.

mod autobahn;
mod bench;
mod command;
mod fuzz;
mod prepare;
mod test;
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
    /// Run the Autobahn fuzzing client against the gateway's /echo, every case
    Autobahn(autobahn::Options),
    /// Measure the gateway and its peers and write docs/benchmarks.md
    Bench(bench::Options),
    /// Fuzz one decoder, or each for a while
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::discover().and_then(|workspace| match arguments.task {
        Task::Test(options) => test::run(&workspace, &options),
        Task::Autobahn(options) => autobahn::run(&workspace, &options),
        Task::Bench(options) => bench::run(&workspace, &options),
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
