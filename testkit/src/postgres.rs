//! One PostgreSQL server of one's own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, Stop};
use crate::redis::free_port;
use crate::wait::{DEADLINE, eventually};

/// Where Debian has the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A running server, ended when it is dropped. Its directory outlives its process, for [`PostgresServer::restart`].
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    port: u16,
    directory: TempDir,
}

impl PostgresServer {
    /// Makes a cluster and starts its server.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        if let Some((user, group)) = postgres_user() {
            chown(directory.path(), Some(user), Some(group)).expect("root may give a directory away");
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))
            .expect("its mode can be set");
        let data = directory.path().join("data");
        let mut init = command("initdb");
        init.args([
            "--auth",
            "trust",
            "--username",
            "postgres",
            "--no-sync",
            "--encoding",
            "UTF8",
            "--pgdata",
        ]);
        let made = init.arg(&data).output().expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let process = spawn(&data, port);
        let server = Self { process, port, directory };
        server.eventually_up();
        server
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// `postgres://…`, of a user that may everything.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    /// What `psql` prints for these statements: rows of columns with `|` between them.
    ///
    /// # Panics
    /// When one of them fails.
    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        let output = self.psql(text);
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    fn psql(&self, text: &str) -> std::process::Output {
        let mut psql = command("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]);
        psql.args(["--dbname", &self.url(), "--command", text]).output().expect("psql runs")
    }

    /// SIGKILL, and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.signal(Stop::Kill);
        self.process.wait(DEADLINE);
    }

    /// Starts it again on the same port with what it has committed.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.process.try_wait().is_none() {
            self.kill();
        }
        // Its own children go when they see that it is gone; a new one waits for that.
        let data = self.directory.path().join("data");
        let port = self.port;
        eventually("the server comes back", DEADLINE, || {
            if self.process.try_wait().is_some() {
                self.process = spawn(&data, port);
            }
            self.psql("SELECT 1").status.success()
        });
    }

    #[track_caller]
    fn eventually_up(&self) {
        eventually("PostgreSQL answers", DEADLINE, || self.psql("SELECT 1").status.success());
    }
}

fn spawn(data: &Path, port: u16) -> Process {
    let mut command = command("postgres");
    command.arg("-D").arg(data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    // What is committed outlives the process, which is all that tests kill.
    command.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB"]);
    Process::spawn("postgres", &mut command)
}

/// One of PostgreSQL's programs. It refuses to run as root, so root becomes the user of Debian's package.
fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    if let Some((user, group)) = postgres_user() {
        command.uid(user).gid(group).current_dir("/");
    }
    command
}

fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.is_file());
    found.max().unwrap_or_else(|| PathBuf::from(name))
}

/// The ids of the user `postgres`, where this is root.
fn postgres_user() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
