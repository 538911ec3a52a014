//! `cargo xtask bench`: release builds of the product and the bench, then `tidegate-bench`.

use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, run as run_command};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Passed on to tidegate-bench (try --help)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let product = workspace.build_product()?;
    run_cargo_build(workspace)?;
    let bench = workspace.target.join("release/tidegate-bench");
    run_command(
        Command::new(bench)
            .current_dir(&workspace.root)
            .arg("--tidegate")
            .arg(product)
            .args(&options.arguments),
    )
}

fn run_cargo_build(workspace: &Workspace) -> Result<()> {
    run_command(cargo(&workspace.root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "tidegate-bench",
        "--bins",
    ]))
}
