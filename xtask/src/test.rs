//! `cargo xtask test`: the steps that decide whether a change is good, each repeatable alone.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::command::{cargo, environment, run as run_command, succeeds};
use crate::workspace::Workspace;
use crate::{autobahn, charts, containers, prepare};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also the Autobahn suite (517 cases), the image of the whole Dockerfile, compiler included, and tests named `long`
    #[arg(long)]
    all: bool,
    /// Only these steps and what they need
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<Step>,
    /// A filter for the names of the tests
    filter: Option<String>,
}

/// In the order they run: cheap and most often broken first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Install packages that tests need
    Prepare,
    /// Formatting
    Fmt,
    /// Lints, warnings denied; and that the fuzz targets compile
    Clippy,
    /// Licences and sources of dependencies
    Deny,
    /// Unit and integration tests of every crate but the end-to-end ones
    Unit,
    /// Examples in the documentation
    Doc,
    /// The product's release binary
    Build,
    /// The Helm chart and k8s/, with Helm, kubectl, schemas and that binary
    Charts,
    /// The JavaScript client: built, weighed, and tested against that binary
    Clients,
    /// End-to-end tests against that binary
    E2e,
    /// Image, compose file, metrics, alerts and dashboards, against that binary
    Deploy,
    /// The image and the compose file on a container engine, where one can be started
    Containers,
    /// Autobahn's fuzzing client against that binary
    Autobahn,
}

enum Outcome {
    Passed,
    Failed,
    /// It cannot run on this machine, which is nobody's fault.
    Skipped(String),
    /// A step that it needs failed.
    NotRun,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let steps = chosen(options);
    let start = Instant::now();
    let mut done: Vec<(Step, Outcome, Duration)> = Vec::new();
    for step in steps {
        let step_start = Instant::now();
        let needs_failed =
            |need: &Step| done.iter().any(|(s, outcome, _)| s == need && !matches!(outcome, Outcome::Passed));
        let outcome = if step.needs().iter().any(needs_failed) {
            Outcome::NotRun
        } else {
            println!("\n=== {} ===", step.name());
            attempt(workspace, step, options)
        };
        done.push((step, outcome, step_start.elapsed()));
    }
    report(&done, start.elapsed())
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Prepare => "prepare",
            Step::Fmt => "fmt",
            Step::Clippy => "clippy",
            Step::Deny => "deny",
            Step::Unit => "unit",
            Step::Doc => "doc",
            Step::Build => "build",
            Step::Charts => "charts",
            Step::Clients => "clients",
            Step::E2e => "e2e",
            Step::Deploy => "deploy",
            Step::Autobahn => "autobahn",
            Step::Containers => "containers",
        }
    }

    fn needs(self) -> &'static [Step] {
        match self {
            Step::Unit | Step::Deny => &[Step::Prepare],
            Step::Charts | Step::Clients | Step::E2e | Step::Deploy | Step::Containers => {
                &[Step::Prepare, Step::Build]
            }
            Step::Autobahn => &[Step::Build],
            _ => &[],
        }
    }

    fn run(self, workspace: &Workspace, options: &Options) -> Result<()> {
        let root = &workspace.root;
        match self {
            Step::Prepare => prepare::run_all(workspace),
            Step::Fmt => run_command(cargo(root).args(["fmt", "--all", "--check"])),
            Step::Clippy => {
                let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"];
                run_command(cargo(root).args(lint))?;
                // No members of the workspace, so nothing else would see that they no longer compile.
                let fuzz =
                    ["check", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--target-dir", "target"];
                run_command(cargo(root).args(fuzz))
            }
            // Advisories need a database from the network and change without a change of ours: not a test.
            Step::Deny => {
                let mut deny = Command::new(prepare::operators_tools(workspace).join("cargo-deny"));
                deny.current_dir(root).args([
                    "--log-level",
                    "error",
                    "--locked",
                    "check",
                    "--hide-inclusion-graph",
                ]);
                run_command(deny.args(["licenses", "bans", "sources"]))
            }
            Step::Unit => {
                let packages = ["--workspace", "--exclude", "tidegate-tests"];
                tests(workspace, options, &packages, &["--lib", "--bins", "--tests"])
            }
            Step::Doc => run_command(cargo(root).args(["test", "--workspace", "--doc", "--locked"])),
            // A binary that was given is tested as it is.
            Step::Build if environment("TIDEGATE_BIN").is_some() => Ok(()),
            Step::Build => workspace.build_product().map(drop),
            Step::Charts => charts::run(workspace),
            Step::Clients => clients(workspace),
            Step::E2e => {
                let executables = executables(workspace)?;
                let others = executables
                    .iter()
                    .filter(|name| ![DEPLOY, containers::TESTS].contains(&name.as_str()))
                    .flat_map(|name| ["--test", name]);
                let targets: Vec<&str> = ["--lib", "--bins"].into_iter().chain(others).collect();
                tests(workspace, options, &["--package", "tidegate-tests"], &targets)
            }
            Step::Deploy => tests(workspace, options, &["--package", "tidegate-tests"], &["--test", DEPLOY]),
            Step::Autobahn => autobahn::run(workspace, &autobahn::Options::all_cases()),
            Step::Containers => {
                containers::run(workspace, &containers::Options::in_test(workspace, options.all))
            }
        }
    }
}

/// The steps in order: the default ones, or those asked for with what they need.
fn chosen(options: &Options) -> Vec<Step> {
    let wanted = |step: &Step| match options.only.as_slice() {
        [] => options.all || *step != Step::Autobahn,
        only => only.iter().any(|asked| asked == step || asked.needs().contains(step)),
    };
    Step::value_variants().iter().copied().filter(wanted).collect()
}

fn attempt(workspace: &Workspace, step: Step, options: &Options) -> Outcome {
    match step.run(workspace, options) {
        Ok(()) => Outcome::Passed,
        Err(error) if error.is::<prepare::NoEngine>() => {
            let told = format!("{error}; elsewhere: cargo xtask {}", step.name());
            println!("skipped: {told}");
            Outcome::Skipped(told)
        }
        Err(error) => {
            eprintln!("{} failed: {error:#}", step.name());
            Outcome::Failed
        }
    }
}

/// The executable of the step `deploy`; the others are those of the step `e2e`.
const DEPLOY: &str = "deploy";

/// The test executables: a folder of `tests/tests` each.
fn executables(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("tests/tests");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let folders = entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Runs tests with nextest when it is installed (a process per test, hung ones are ended), else with cargo.
fn tests(workspace: &Workspace, options: &Options, packages: &[&str], targets: &[&str]) -> Result<()> {
    let mut command = cargo(&workspace.root);
    if succeeds(cargo(&workspace.root).args(["nextest", "--version"])) {
        command.args(["nextest", "run", "--locked", "--no-tests", "warn"]);
        if options.all {
            command.arg("--ignore-default-filter");
        }
    } else {
        command.args(["test", "--locked", "--no-fail-fast"]);
    }
    command.args(packages).args(targets).args(&options.filter);
    command.env("TIDEGATE_BIN", workspace.product());
    run_command(&mut command)
}

/// `npm ci`, build and tests of `clients/js`.
fn clients(workspace: &Workspace) -> Result<()> {
    let npm = |arguments: &[&str]| {
        let mut command = Command::new("npm");
        command.current_dir(workspace.root.join("clients/js")).args(arguments);
        command.env("TIDEGATE_BIN", workspace.product());
        run_command(&mut command)
    };
    npm(&["ci", "--no-audit", "--no-fund", "--ignore-scripts"])?;
    npm(&["run", "build"])?;
    npm(&["test"])
}

fn report(done: &[(Step, Outcome, Duration)], total: Duration) -> Result<()> {
    println!("\n=== summary ===");
    for (step, outcome, elapsed) in done {
        let word = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed => "FAILED".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::NotRun => "not run: a step that it needs failed".to_owned(),
        };
        println!("{:<10} {:>8}  {word}", step.name(), minutes(*elapsed));
    }
    let failed: Vec<&str> =
        done.iter().filter(|(_, o, _)| matches!(o, Outcome::Failed)).map(|(s, ..)| s.name()).collect();
    let passed = done.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Passed)).count();
    println!("{passed} of {} steps passed in {}", done.len(), minutes(total));
    if !failed.is_empty() {
        bail!(
            "{} failed; repeat only that: cargo xtask test --only {}",
            failed.join(" and "),
            failed.join(",")
        );
    }
    Ok(())
}

fn minutes(elapsed: Duration) -> String {
    format!("{}m {:02}s", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
}

#[cfg(test)]
mod tests_of_steps {
    use super::*;

    fn check(all: bool, only: &[Step], expect: &[&str]) {
        let options = Options { all, only: only.to_vec(), filter: None };
        let names: Vec<&str> = chosen(&options).into_iter().map(Step::name).collect();
        assert_eq!(names, expect);
    }

    #[test]
    fn steps_are_chosen_with_what_they_need() {
        let default = "prepare fmt clippy deny unit doc build charts clients e2e deploy containers";
        let default: Vec<&str> = default.split(' ').collect();
        check(false, &[], &default);
        check(true, &[], &[&default[..], &["autobahn"]].concat());
        check(false, &[Step::E2e], &["prepare", "build", "e2e"]);
        check(false, &[Step::Clippy, Step::Fmt], &["fmt", "clippy"]);
    }

    #[test]
    fn a_failed_step_fails_the_whole_and_is_named() {
        let done = [
            (Step::Build, Outcome::Failed, Duration::ZERO),
            (Step::E2e, Outcome::NotRun, Duration::ZERO),
            (Step::Fmt, Outcome::Passed, Duration::ZERO),
        ];
        let error = report(&done, Duration::ZERO).expect_err("a step failed");
        assert_eq!(error.to_string(), "build failed; repeat only that: cargo xtask test --only build");
        assert!(report(&done[2..], Duration::ZERO).is_ok());
    }
}
