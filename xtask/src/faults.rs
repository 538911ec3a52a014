//! `cargo xtask faults`: the fault tests one by one, then the loss table and the other figures that they left.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;

/// The columns that `tests/tests/loss/trial.rs` fills.
const HEAD: &str = "\
| fault | published | with | accepted | repeated | let go | taken back | lost | silently | duplicated | misordered | gaps told | closed | seconds |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Every row of the loss table; an hour and more
    #[arg(long)]
    all: bool,
    /// A filter for the names of tests and rows
    filter: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare::redis()?;
    let product = workspace.build_product()?;
    let directories = ["loss-table", "figures"].map(|name| workspace.target.join("e2e").join(name));
    for directory in directories.iter().filter(|directory| directory.exists()) {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    let mut tests = cargo(&workspace.root);
    tests.args(["test", "--locked", "--no-fail-fast", "--package", "tidegate-tests"]);
    tests
        .args(["--test", "cluster", "--test", "loss", "--"])
        .args(&options.filter)
        .args(["--test-threads", "1"]);
    if !options.all {
        tests.args(["--skip", "long::"]);
    }
    let outcome = run_command(tests.env("TIDEGATE_BIN", product));
    // A fault that failed its test has a row as well: that is the one to look at.
    let [rows, figures] = directories;
    println!("\n{HEAD}\n{}\n{}", lines(&rows)?, lines(&figures)?);
    outcome
}

/// The files of a directory, one after the other; each holds a line.
fn lines(directory: &Path) -> Result<String> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let rows = paths.iter().map(|path| fs::read_to_string(path).with_context(|| path.display().to_string()));
    rows.collect()
}
