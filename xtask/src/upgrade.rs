//! `cargo xtask upgrade`: a gateway, or a router before two, is upgraded live under clients and publications, again and again;
//! prints what came of it and writes the plot of `docs/upgrade.md`.

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Clients, of which a process may hold 20,000 [default: 15000]
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    /// How often in a row
    #[arg(long, value_name = "N", default_value_t = 20)]
    times: u32,
    /// Upgrade a router, with two gateways behind it: of 7,000 clients, unless it is said otherwise
    #[arg(long)]
    router: bool,
    /// Upgrade a gateway with Redis
    #[arg(long, conflicts_with = "router")]
    redis: bool,
    /// Leave the plot alone
    #[arg(long)]
    no_document: bool,
}

/// Clients: a router needs two descriptors for each.
const DIRECT: u32 = 15_000;
const ROUTED: u32 = 7_000;

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let product = workspace.build_product()?;
    let mut measure = cargo(&workspace.root);
    measure.args(["run", "--locked", "--release", "--package", "tidegate-bench", "--example", "upgrade"]);
    measure.arg("--").arg(product);
    let connections = options.connections.unwrap_or(if options.router { ROUTED } else { DIRECT });
    measure.args([connections.to_string(), options.times.to_string()]);
    if options.router {
        measure.arg("router");
    } else if options.redis {
        measure.arg("redis");
    } else if !options.no_document {
        measure.arg(workspace.root.join("docs/upgrade-pause.svg"));
    }
    run_command(&mut measure)
}
