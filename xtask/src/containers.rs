//! `cargo xtask containers`: the Dockerfile is built and the compose file run on a real engine, which is started for it
//! and ended after. No registry is asked: the base images are made of Debian's packages.

mod engine;
mod images;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::command::{cargo, run as run_command};
use crate::prepare;
use crate::workspace::Workspace;
use engine::Engine;

/// The executable of `tests/tests` that holds the image and the compose file against that engine.
pub(crate) const TESTS: &str = "containers";

#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Make the image of this binary, and do not compile in a container: seconds, not minutes
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Keep the engine's images and caches in target/containers: the next run builds only what changed
    #[arg(long)]
    keep: bool,
    /// A filter for the names of the tests
    filter: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("a container engine is started only on Linux; elsewhere: docker compose up --build");
    }
    let compose = prepare::containers(workspace)?;
    let engine = Engine::start(&workspace.target.join("containers"), options.keep)?;
    images::stand_ins(&engine)?;
    match &options.binary {
        Some(binary) => images::wrap(&engine, &workspace.root, binary)?,
        None => images::build(&engine, &workspace.root)?,
    }
    let mut tests = cargo(&workspace.root);
    tests.args(["test", "--locked", "--package", "tidegate-tests", "--test", TESTS]).args(&options.filter);
    // One after the other: they share an engine and two cores.
    tests.args(["--", "--test-threads", "1", "--nocapture"]);
    tests.env("DOCKER_HOST", engine.host()).env("TIDEGATE_DOCKER", engine.docker());
    run_command(tests.env("TIDEGATE_COMPOSE", compose))
}
