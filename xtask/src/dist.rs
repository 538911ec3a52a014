//! `cargo xtask dist`: what a release offers to take: the stripped binary, its symbols beside, the image as an archive,
//! checksums. For the architecture of the machine that it runs on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{cargo, output, run as run_command, which};
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// This target; without it, the static one of this architecture, else this machine's own
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Also build the image and save it as an archive, for `kind load image-archive` and the like
    #[arg(long)]
    image: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let directory = workspace.target.join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let target = chosen(options.target.as_deref())?;
    pack(&build(workspace, &target)?, &target, &directory)?;
    if options.image {
        image(workspace, &directory)?;
    }
    checksums(&directory)?;
    println!("{} has:", directory.display());
    run_command(Command::new("ls").arg("-lh").arg(&directory))
}

/// The target that was asked for; else the static one of this architecture, or, where its standard library is missing,
/// this machine's own.
fn chosen(asked: Option<&str>) -> Result<String> {
    let linux = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let target = asked.unwrap_or(&linux);
    if has_standard_library(target)? {
        return Ok(target.to_owned());
    }
    let missing = format!("the standard library of {target} is not installed: rustup target add {target}");
    if asked.is_some() {
        bail!(missing);
    }
    let host = host()?;
    println!("{missing}; built instead: {host}, which needs the C library of the system");
    Ok(host)
}

fn host() -> Result<String> {
    Ok(output(Command::new("rustc").args(["--print", "host-tuple"]))?.trim().to_owned())
}

fn has_standard_library(target: &str) -> Result<bool> {
    let folder = output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    Ok(Path::new(folder.trim()).is_dir())
}

fn build(workspace: &Workspace, target: &str) -> Result<PathBuf> {
    // The same as every other task builds, and not a second time.
    if target == host()? {
        return workspace.build_product();
    }
    let build = ["build", "--release", "--locked", "--package", "tidegate", "--target", target];
    let mut cargo = cargo(&workspace.root);
    cargo.args(build);
    if target.starts_with("aarch64") {
        // As in the Dockerfile: pages of 64 KiB (2^16).
        cargo.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
    }
    run_command(&mut cargo)?;
    Ok(workspace.target.join(target).join("release/tidegate"))
}

/// `tidegate-VERSION-TARGET.tar.gz` with the stripped binary and the licence, and one of its symbols.
fn pack(binary: &Path, target: &str, directory: &Path) -> Result<()> {
    let said = output(Command::new(binary).arg("--version"))?;
    let version = said.split_whitespace().nth(1).context("tidegate --version says its version")?;
    let name = format!("tidegate-{version}-{target}");
    let folder = directory.join(&name);
    fs::create_dir_all(&folder)?;
    let symbols = directory.join(format!("{name}.debug"));
    let stripped = folder.join("tidegate");
    let mut keep = Command::new("objcopy");
    keep.args(["--only-keep-debug", "--compress-debug-sections"]).arg(binary).arg(&symbols);
    run_command(&mut keep)?;
    let mut strip = Command::new("objcopy");
    strip.arg("--strip-debug").arg(format!("--add-gnu-debuglink={}", symbols.display()));
    run_command(strip.arg(binary).arg(&stripped))?;
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSE"), folder.join("LICENSE"))?;
    for (archive, what) in
        [(name.clone(), name.clone()), (format!("{name}-symbols"), format!("{name}.debug"))]
    {
        // The same input gives the same bytes.
        let mut tar = Command::new("tar");
        tar.current_dir(directory).args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.args(["--mtime=@0", "--use-compress-program", "gzip -9n", "-cf"]);
        run_command(tar.arg(format!("{archive}.tar.gz")).arg(&what))?;
    }
    fs::remove_file(&symbols)?;
    Ok(fs::remove_dir_all(&folder)?)
}

fn image(workspace: &Workspace, directory: &Path) -> Result<()> {
    if which("docker").is_none() {
        bail!("--image needs a container engine: docker build, docker save");
    }
    let name = "tidegate:dist";
    let mut build = Command::new("docker");
    build.env("DOCKER_BUILDKIT", "1").args(["build", "--tag", name]).arg(&workspace.root);
    run_command(&mut build)?;
    run_command(Command::new("docker").args(["save", "--output"]).arg(directory.join("image.tar")).arg(name))
}

/// `SHA256SUMS`, for `sha256sum --check`.
fn checksums(directory: &Path) -> Result<()> {
    let mut files: Vec<String> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    files.sort();
    let sums = output(Command::new("sha256sum").current_dir(directory).args(&files))?;
    Ok(fs::write(directory.join("SHA256SUMS"), sums)?)
}
