//! A Docker engine of our own: socket, data and state in folders of ours, ended and cleaned when it goes out of scope.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{output, run, succeeds, which};

/// From the start to the first answer; it is two seconds on a machine at rest.
const START_MAX: Duration = Duration::from_secs(90);
/// From SIGTERM to the end, containers included.
const STOP_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Engine {
    daemon: Child,
    docker: PathBuf,
    directory: PathBuf,
    keep: bool,
    /// The firewall as it was: the daemon adds chains and does not take them away.
    firewall: Option<String>,
}

impl Engine {
    /// Starts `dockerd` and waits until it answers.
    pub(crate) fn start(directory: &Path, keep: bool) -> Result<Self> {
        // Debian's client builds with BuildKit by itself; a newer one that lies before it in PATH may lack Buildx.
        let debian = PathBuf::from("/usr/bin/docker");
        let docker = if debian.is_file() { Some(debian) } else { which("docker") };
        let docker = docker.context("there is no docker command")?;
        if !keep && directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
        }
        fs::create_dir_all(directory)?;
        let firewall = output(&mut Command::new("iptables-save")).ok();
        let log = directory.join("dockerd.log");
        let mut command = Command::new("dockerd");
        command.arg("--data-root").arg(directory.join("data"));
        command.arg("--exec-root").arg(directory.join("exec"));
        command.arg("--pidfile").arg(directory.join("dockerd.pid"));
        command.arg("--host").arg(socket(directory));
        // A second daemon's default bridge would be the first one's; the compose file has a network of its own.
        command.args(["--bridge", "none"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let daemon = command.spawn().context("start dockerd")?;
        let mut engine = Self { daemon, docker, directory: directory.to_owned(), keep, firewall };
        let began = Instant::now();
        while !succeeds(engine.command().arg("version")) {
            if let Some(status) = engine.daemon.try_wait()? {
                bail!("dockerd ended with {status}; its log: {}", log.display());
            }
            if began.elapsed() > START_MAX {
                bail!("dockerd does not answer; its log: {}", log.display());
            }
            pause();
        }
        println!("dockerd runs in {}", directory.display());
        Ok(engine)
    }

    /// The value of `DOCKER_HOST`.
    pub(crate) fn host(&self) -> String {
        socket(&self.directory)
    }

    pub(crate) fn docker(&self) -> &Path {
        &self.docker
    }

    /// `docker` on this engine.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.docker);
        command.env("DOCKER_HOST", self.host()).env("DOCKER_BUILDKIT", "1");
        command
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
        let pid = self.daemon.id().to_string();
        run(Command::new("kill").args(["-TERM", &pid]))?;
        let began = Instant::now();
        while self.daemon.try_wait()?.is_none() {
            if began.elapsed() > STOP_MAX {
                self.daemon.kill()?;
                self.daemon.wait()?;
                bail!("dockerd (process {pid}) did not end in time and was killed");
            }
            pause();
        }
        Ok(())
    }

    /// The firewall as before, and nothing left on the disk that was not asked for.
    fn clean(&mut self) -> Result<()> {
        if let Some(rules) = self.firewall.take() {
            let file = self.directory.join("iptables");
            fs::write(&file, rules)?;
            let restored = Command::new("iptables-restore").stdin(File::open(&file)?).status()?;
            if !restored.success() {
                bail!("the firewall's rules were not restored: iptables-restore < {}", file.display());
            }
        }
        if !self.keep {
            fs::remove_dir_all(&self.directory)
                .with_context(|| format!("remove {}", self.directory.display()))?;
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

fn socket(directory: &Path) -> String {
    format!("unix://{}", directory.join("docker.sock").display())
}
