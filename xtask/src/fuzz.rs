//! `cargo xtask fuzz`: cargo-fuzz on the decoders, one target or all in turn.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{output, run as run_command, succeeds};
use crate::workspace::Workspace;

/// Installed when it is missing; coverage instrumentation needs a nightly compiler, so only fuzzing uses one.
const CARGO_FUZZ: &str = "0.13.2";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// One target of fuzz/; all of them when left out
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !succeeds(nightly().args(["cargo", "--version"])) {
        bail!("fuzzing needs a nightly toolchain: rustup toolchain install nightly");
    }
    if !succeeds(nightly().args(["cargo", "fuzz", "--version"])) {
        let version = format!("cargo-fuzz@{CARGO_FUZZ}");
        run_command(nightly().args(["cargo", "install", "--locked", &version]))?;
    }
    let fuzz = workspace.root.join("fuzz");
    let listed =
        output(nightly().current_dir(&fuzz).args(["cargo", "fuzz", "list"])).context("list fuzz targets")?;
    let targets: Vec<&str> = listed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let chosen = match &options.target {
        Some(target) if targets.contains(&target.as_str()) => vec![target.as_str()],
        Some(target) => bail!("no fuzz target {target}; there are: {}", targets.join(", ")),
        None => targets,
    };
    let limit = format!("-max_total_time={}", options.seconds);
    for target in chosen {
        println!("fuzz {target} for {} s", options.seconds);
        run_command(nightly().current_dir(&fuzz).args(["cargo", "fuzz", "run", target, "--", &limit]))
            .with_context(|| {
                format!("fuzz target {target}: the failing input is under fuzz/artifacts/{target}")
            })?;
    }
    Ok(())
}

/// `rustup run nightly …`: a cargo started by cargo is no rustup proxy and knows no `+nightly`.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}
