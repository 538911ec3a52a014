//! `cargo xtask chaos`: random faults from a seed, for as long as wanted.

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The same seed makes the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long faults are made
    #[arg(long, value_name = "S", default_value_t = 120)]
    seconds: u64,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare::redis()?;
    let product = workspace.build_product()?;
    let test = ["test", "--locked", "--package", "tidegate-tests", "--test", "router", "chaos::", "--"];
    run_command(
        cargo(&workspace.root)
            .args(test)
            .arg("--nocapture")
            .env("TIDEGATE_BIN", product)
            .env("CHAOS_SEED", options.seed.to_string())
            .env("CHAOS_SECONDS", options.seconds.to_string()),
    )
}
