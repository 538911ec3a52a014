//! `cargo xtask containers`: the Dockerfile is built and the compose file run on a real engine, which is started for it
//! and ended after. No registry is asked: the base images are made of Debian's packages.

mod engine;
mod images;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{cargo, output, run as run_command};
use crate::prepare::{self, NoEngine};
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

impl Options {
    /// As a step of `cargo xtask test`: around the binary that the other steps test, or whole. What the stand-ins are
    /// made of changes seldom, so that they are kept.
    pub(crate) fn in_test(workspace: &Workspace, whole: bool) -> Self {
        let binary = (!whole).then(|| workspace.product());
        Self { binary, keep: true, filter: None }
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!(NoEngine("that is done on Linux only; docker compose up --build runs elsewhere".to_owned()));
    }
    prepare::containers(workspace)?;
    // Compiled before, where the network is that has the dependencies.
    let tests = executable(workspace)?;
    let engine = Engine::start(&workspace.target.join("containers"), options.keep)?;
    images::stand_ins(&engine)?;
    match &options.binary {
        Some(binary) => images::wrap(&engine, &workspace.root, binary)?,
        None => images::build(&engine, &workspace.root)?,
    }
    let mut tests = engine.inside(tests);
    // One after the other: they share an engine and two cores.
    tests.args(&options.filter).args(["--test-threads", "1", "--nocapture"]);
    run_command(tests.env("TIDEGATE_COMPOSE", prepare::operators_tools(workspace).join("docker-compose")))
}

/// The file of the compiled tests.
fn executable(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = cargo(&workspace.root);
    build.args(["test", "--locked", "--no-run", "--message-format", "json"]);
    let told = output(build.args(["--package", "tidegate-tests", "--test", TESTS]))?;
    let messages = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut of_tests = messages.filter(|message| message["target"]["name"] == TESTS);
    let path = of_tests.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.context("cargo names the executable of the tests")
}
