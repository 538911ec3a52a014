//! `cargo xtask bench`: release builds of the product, the bench and the router's example, the servers it is compared with, then
//! `tidegate-bench`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{cargo, run as run_command, succeeds, which};
use crate::prepare::apt_get;
use crate::workspace::Workspace;

/// Programs that the bench starts, and the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 5] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx"),
    ("go", "golang-go"),
];

/// What `tidegate plan` reckons with. The bench writes it.
const COSTS: &str = "doctor/src/plan/costs.toml";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Passed on to tidegate-bench (try --help)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    prepare();
    let product = workspace.build_product()?;
    run_cargo_build(workspace)?;
    let bench = workspace.target.join("release/tidegate-bench");
    let costs = || std::fs::read(workspace.root.join(COSTS)).context(COSTS);
    let before = costs()?;
    run_command(
        Command::new(bench)
            .current_dir(&workspace.root)
            .arg("--tidegate")
            .arg(product)
            .args(&options.arguments),
    )?;
    if costs()? == before {
        return Ok(());
    }
    // What `tidegate plan` says of them stands in docs/ten-million.md.
    let page = ["test", "--locked", "--package", "tidegate-doctor", "--lib", "the_page_shows_a_plan"];
    run_command(cargo(&workspace.root).args(page).env("BLESS", "1"))
}

/// Installs what is missing. Where that fails, the bench goes on and says which server it could not start: most
/// groups need none of them.
fn prepare() {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !is_there(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return;
    }
    let mut install = apt_get();
    install.args(["install", "--yes", "--no-install-recommends"]).args(&missing);
    if !succeeds(&mut install) {
        eprintln!("missing, and not installed: {}; as root: apt-get install them", missing.join(" "));
    }
}

/// Debian keeps servers where an ordinary user's PATH does not look.
fn is_there(program: &str) -> bool {
    which(program).is_some() || Path::new("/usr/sbin").join(program).is_file()
}

fn run_cargo_build(workspace: &Workspace) -> Result<()> {
    let build = |what: &[&str]| {
        run_command(cargo(&workspace.root).args(["build", "--release", "--locked", "--package"]).args(what))
    };
    build(&["tidegate-bench", "--bins"])?;
    build(&["tidegate-router", "--example", "placement"])
}
