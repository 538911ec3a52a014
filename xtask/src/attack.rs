//! `cargo xtask attack`: hostile clients against a release build, and the table of what the others felt.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Another tidegate binary than this workspace's release build
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Attacks to play, separated by commas; all unless given (an unknown name lists them)
    #[arg(long, value_name = "ROW")]
    only: Option<String>,
    /// Settings that the binary is too old to know, separated by commas: they are left out
    #[arg(long, value_name = "KEY")]
    unknown: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare::redis()?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => workspace.build_product()?,
    };
    let build = ["build", "--locked", "--release", "--package", "tidegate-tests", "--bin", "tidegate-attack"];
    run_command(cargo(&workspace.root).args(build))?;
    let mut attack = Command::new(workspace.target.join("release/tidegate-attack"));
    attack.env("TIDEGATE_BIN", binary);
    if let Some(only) = &options.only {
        attack.arg("--only").arg(only);
    }
    if let Some(unknown) = &options.unknown {
        attack.arg("--unknown").arg(unknown);
    }
    run_command(&mut attack)
}
