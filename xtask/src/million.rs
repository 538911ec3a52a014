//! `cargo xtask million`: many live WebSockets on this machine behind one port, all reached by one broadcast, also when each
//! gateway was upgraded under them.

use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    connections: u64,
    /// Seconds that they are held before the first publication and the second
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    hold: u64,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare::redis()?;
    let product = workspace.build_product()?;
    let build =
        ["build", "--locked", "--release", "--package", "tidegate-tests", "--bin", "tidegate-million"];
    run_command(cargo(&workspace.root).args(build))?;
    let mut million = Command::new(workspace.target.join("release/tidegate-million"));
    million.arg("--tidegate").arg(product);
    million.args(["--connections", &options.connections.to_string(), "--hold", &options.hold.to_string()]);
    run_command(&mut million)
}
