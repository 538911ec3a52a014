//! `cargo xtask upgrade`: a gateway is upgraded live under clients and publications, again and again; prints what came of it
//! and writes the plot of `docs/upgrade.md`.

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Clients, of which a process may hold 20,000
    #[arg(long, value_name = "N", default_value_t = 15_000)]
    connections: u32,
    /// How often in a row
    #[arg(long, value_name = "N", default_value_t = 20)]
    times: u32,
    /// Leave the plot alone
    #[arg(long)]
    no_document: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let product = workspace.build_product()?;
    let mut measure = cargo(&workspace.root);
    measure.args(["run", "--locked", "--release", "--package", "tidegate-bench", "--example", "upgrade"]);
    measure.arg("--").arg(product);
    measure.args([options.connections.to_string(), options.times.to_string()]);
    if !options.no_document {
        measure.arg(workspace.root.join("docs/upgrade-pause.svg"));
    }
    run_command(&mut measure)
}
