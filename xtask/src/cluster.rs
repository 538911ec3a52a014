//! `cargo xtask cluster`: Redis, a few gateways and a router on this machine, without containers.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Passed on to tidegate-cluster: --gateways N, --redis standalone|sentinel|cluster, --base-port PORT, --router-port PORT
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare::redis()?;
    let product = workspace.build_product()?;
    let build = ["build", "--locked", "--package", "tidegate-tests", "--bin", "tidegate-cluster"];
    run_command(cargo(&workspace.root).args(build))?;
    let mut cluster = Command::new(workspace.target.join("debug/tidegate-cluster"));
    cluster.arg("--tidegate").arg(product).arg("--logs").arg(workspace.target.join("cluster"));
    cluster.args(&options.arguments);
    // It takes this process's place, so that a signal sent here reaches who has to clean up. Returns only on failure.
    Err(cluster.exec()).context("start tidegate-cluster")
}
