//! A Docker engine of our own, in namespaces of its own: its bridges, firewall rules and tracked connections are in a
//! network that ends with it, and so do all its processes. Nothing of it is seen on the machine but files in one folder.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{succeeds, which};
use crate::prepare::NoEngine;

/// From the start to the first answer; it is two seconds on a machine at rest.
const START_MAX: Duration = Duration::from_secs(90);
/// From the word to end to the end, containers included.
const STOP_MAX: Duration = Duration::from_secs(60);

/// The first process in there, below `tini`, which collects what containers leave. Standard input is a pipe from here:
/// when it is closed, also because this process died, the daemon is told to end, and with it ends everything.
const RUN: &str = r#"
ip link set lo up && mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd || exit 1
exec 3<&0
dockerd "$@" &
daemon=$!
{ read -r _ <&3; kill -TERM $daemon; } &
wait $daemon
"#;

pub(crate) struct Engine {
    /// `unshare`, which is in the engine's network itself.
    outer: Child,
    docker: PathBuf,
    /// Images and caches.
    data: PathBuf,
    keep: bool,
    /// Socket, state and log, in a short path: that of a socket has 107 bytes at most.
    state: PathBuf,
}

impl Engine {
    /// Starts `dockerd` and waits until it answers.
    pub(crate) fn start(data: &Path, keep: bool) -> Result<Self> {
        // Debian's client builds with BuildKit by itself; a newer one that lies before it in PATH may lack Buildx.
        let debian = PathBuf::from("/usr/bin/docker");
        let docker = if debian.is_file() { Some(debian) } else { which("docker") };
        let docker = docker.context("there is no docker command")?;
        let state = std::env::temp_dir().join(format!("tidegate-engine-{}", std::process::id()));
        // A run that was killed leaves containers that would be started again.
        for leftover in ["containers", "network", "volumes"].map(|name| data.join(name)) {
            if leftover.exists() {
                fs::remove_dir_all(&leftover).with_context(|| format!("clear {}", leftover.display()))?;
            }
        }
        for directory in [data, &state] {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let log = state.join("dockerd.log");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.args(["tini", "--", "sh", "-c", RUN, "dockerd"]);
        command.arg("--data-root").arg(data);
        command.arg("--exec-root").arg(state.join("exec"));
        command.arg("--pidfile").arg(state.join("dockerd.pid"));
        command.arg("--host").arg(socket(&state));
        let file = File::create(&log)?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let outer = command.spawn().context("start unshare")?;
        let mut engine = Self { outer, docker, data: data.to_owned(), keep, state };
        let began = Instant::now();
        while !succeeds(engine.command().arg("version")) {
            let ended = engine.outer.try_wait()?;
            if ended.is_some() || began.elapsed() > START_MAX {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                return Err(NoEngine(last.unwrap_or("dockerd does not answer").trim().to_owned()).into());
            }
            pause();
        }
        println!("dockerd runs; its log: {}", log.display());
        Ok(engine)
    }

    /// The value of `DOCKER_HOST`. A socket of the file system is reached from every network.
    pub(crate) fn host(&self) -> String {
        socket(&self.state)
    }

    /// `docker` on this engine.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.docker);
        command.env("DOCKER_HOST", self.host()).env("DOCKER_BUILDKIT", "1");
        command
    }

    /// A program in the engine's network, where the ports are that containers publish.
    pub(crate) fn inside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.outer.id())).arg(program);
        command.env("DOCKER_HOST", self.host()).env("TIDEGATE_DOCKER", &self.docker);
        command
    }

    /// An empty directory that goes with the engine.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let directory = self.state.join(name);
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(directory)
    }

    pub(crate) fn has_image(&self, name: &str) -> bool {
        succeeds(self.command().args(["image", "inspect", name]))
    }

    /// Makes an image of a root file system, which `tar` writes to its standard output.
    pub(crate) fn import(&self, name: &str, tar: &mut Command, changes: &[&str]) -> Result<()> {
        let mut writer = tar.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let archive = writer.stdout.take().context("it writes to a pipe")?;
        let mut import = self.command();
        import.arg("import").args(changes.iter().flat_map(|change| ["--change", change]));
        let imported = import.args(["-", name]).stdin(archive).stdout(Stdio::null()).status()?;
        let written = writer.wait()?;
        if !written.success() || !imported.success() {
            bail!("the image {name} was not made: {tar:?} {written}, docker import {imported}");
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        drop(self.outer.stdin.take());
        let began = Instant::now();
        while self.outer.try_wait()?.is_none() {
            if began.elapsed() > STOP_MAX {
                // With it the kernel ends the first process of the namespace, and so all others.
                self.outer.kill()?;
                self.outer.wait()?;
                bail!("dockerd did not end in {} s and was killed", STOP_MAX.as_secs());
            }
            pause();
        }
        Ok(())
    }

    /// Nothing stays on the disk that was not asked for.
    fn clean(&mut self) -> Result<()> {
        fs::remove_dir_all(&self.state).with_context(|| format!("remove {}", self.state.display()))?;
        if !self.keep {
            fs::remove_dir_all(&self.data).with_context(|| format!("remove {}", self.data.display()))?;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for step in [Self::stop, Self::clean] {
            if let Err(error) = step(self) {
                eprintln!("xtask: {error:#}");
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a condition that has a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(200));
}

fn socket(state: &Path) -> String {
    format!("unix://{}", state.join("docker.sock").display())
}
