//! One `redis-server` of one's own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::client::{RedisClient, RedisError, Value, info_field};
use super::ports::free_port;
use crate::process::{Process, Stop};
use crate::wait::{DEADLINE, eventually, eventually_some};

/// Two test processes may pick the same port at the same moment; the one that comes second picks another.
const PORT_TRIES: usize = 5;

/// The user of the kit itself, on servers with ACL users.
const KIT_USER: [&str; 2] = ["testkit", "testkit-secret"];

/// A running `redis-server`, ended when it is dropped. Its directory outlives its process, for [`RedisServer::restart`].
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    port: u16,
    tls_port: Option<u16>,
    acl: bool,
    kind: Kind,
    directory: TempDir,
}

/// How its process is started.
#[derive(Debug, Clone, Copy)]
struct Kind {
    sentinel: bool,
    /// Its clock can be set.
    clock: bool,
}

/// How to start one. The default appends every write to a file, synced each second, and takes no snapshots.
#[derive(Debug, Default, Clone)]
pub struct RedisServerBuilder {
    options: Vec<(String, String)>,
    users: Vec<String>,
    tls: bool,
    sentinel: bool,
    clock: bool,
}

impl RedisServer {
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// Where it listens without TLS.
    pub fn address(&self) -> SocketAddr {
        loopback(self.port)
    }

    /// `redis://…`, or `rediss://…` when it was started with TLS.
    pub fn url(&self) -> String {
        match self.tls_port {
            Some(port) => format!("rediss://{}", loopback(port)),
            None => format!("redis://{}", self.address()),
        }
    }

    /// [`RedisServer::url`] with credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url().replacen("://", &format!("://{user}:{password}@"), 1)
    }

    /// The certificate authority (PEM) that signed the server's certificate, when it was started with TLS.
    pub fn ca_certificate(&self) -> PathBuf {
        self.directory.path().join(CA_CERTIFICATE)
    }

    /// A certificate (PEM) that the authority signed, and its key: the server's, good for a client too.
    pub fn certificate(&self) -> [PathBuf; 2] {
        [CERTIFICATE, KEY].map(|name| self.directory.path().join(name))
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A new connection to it, without TLS, with all rights.
    ///
    /// # Errors
    /// See [`RedisError`]; a dead server refuses, a stopped one does not answer.
    pub fn try_client(&self) -> Result<RedisClient, RedisError> {
        let mut client = RedisClient::connect(self.address())?;
        if self.acl {
            let [user, password] = KIT_USER;
            client.command(&["AUTH", user, password])?;
        }
        Ok(client)
    }

    /// # Panics
    /// When it cannot be reached.
    #[track_caller]
    pub fn client(&self) -> RedisClient {
        match self.try_client() {
            Ok(client) => client,
            Err(error) => panic!("redis-server at {}: {error}", self.address()),
        }
    }

    /// One command over a new connection.
    ///
    /// # Panics
    /// When there is no answer, or an error.
    #[track_caller]
    pub fn command(&self, words: &[impl AsRef<[u8]>]) -> Value {
        match self.client().command(words) {
            Ok(value) => value,
            Err(error) => panic!("redis-server at {}: {error}", self.address()),
        }
    }

    /// A field of INFO, `None` while it does not answer.
    pub fn info(&self, field: &str) -> Option<String> {
        let text = self.try_client().ok()?.command(&["INFO"]).ok()?.text();
        info_field(&text, field)
    }

    /// SIGKILL, and waits until it is gone.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process.signal(Stop::Kill);
        self.process.wait(DEADLINE);
    }

    /// Starts it again on the same port with what its directory holds; one that still runs is killed first. Waits
    /// until it has loaded that.
    ///
    /// # Panics
    /// When it does not come up.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.process.try_wait().is_none() {
            self.kill();
        }
        self.process = spawn(self.directory.path(), self.kind);
        assert!(self.comes_up(), "redis-server at {}: {}", self.address(), self.process.stdout());
    }

    /// [`RedisServer::restart`] without what it had kept.
    #[track_caller]
    pub fn restart_empty(&mut self) {
        if self.process.try_wait().is_none() {
            self.kill();
        }
        for kept in ["appendonlydir", "dump.rdb"].map(|name| self.directory.path().join(name)) {
            let removed = if kept.is_dir() { fs::remove_dir_all(&kept) } else { fs::remove_file(&kept) };
            if let Err(error) = removed {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{}: {error}", kept.display());
            }
        }
        self.restart();
    }

    /// SIGSTOP: it stands still with all its connections open.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.signal(Stop::Freeze);
    }

    /// SIGCONT: it goes on after [`RedisServer::stop`].
    #[track_caller]
    pub fn cont(&mut self) {
        self.process.signal(Stop::Thaw);
    }

    /// Waits until it has all that its master has, and hears the rest.
    #[track_caller]
    pub fn eventually_follows(&self) {
        eventually_info(self, "master_link_status", "up");
    }

    /// Its clock jumps: so many seconds before or after the machine's. For one that was started with
    /// [`RedisServerBuilder::clock`].
    ///
    /// # Panics
    /// When it does not see it.
    #[track_caller]
    pub fn set_clock(&self, seconds: i64) {
        assert!(self.kind.clock, "it was started with a clock of its own");
        // In place: the server has it mapped.
        let file = File::options().write(true).open(self.directory.path().join(CLOCK));
        let written = file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0));
        written.expect("the temporary directory is writable");
        eventually(&format!("the clock of redis-server is {seconds:+} s off"), DEADLINE, || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
            let time =
                self.command(&["TIME"]).elements().first().and_then(|time| time.text().parse::<i64>().ok());
            time.is_some_and(|time| (time - now - seconds).abs() <= 1)
        });
    }

    /// Whether it answers before it ends.
    #[track_caller]
    fn comes_up(&mut self) -> bool {
        let what = format!("redis-server at {} answers", self.address());
        eventually_some(&what, DEADLINE, || {
            if self.process.try_wait().is_some() {
                return Some(false);
            }
            // While it loads its file it answers PING with an error.
            let pong = self.try_client().and_then(|mut client| client.command(&["PING"]));
            pong.is_ok().then_some(true)
        })
    }
}

impl RedisServerBuilder {
    /// A line of its configuration file.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A line of its ACL file without the word `user`, such as `alice on >secret ~app:* &app:* +@all`, or
    /// `default off`.
    #[must_use]
    pub fn user(mut self, rules: &str) -> Self {
        self.users.push(rules.to_owned());
        self
    }

    /// A second port with TLS and a certificate for 127.0.0.1 and localhost; [`RedisServer::url`] names that one.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// What it has answered for is on its disk: nothing of it is lost when it is killed. The default may postpone a write
    /// for two seconds where the disk is slow.
    #[must_use]
    pub fn durable(self) -> Self {
        self.option("appendfsync", "always")
    }

    /// It follows another one.
    #[must_use]
    pub fn following(self, master: &RedisServer) -> Self {
        let builder = self.option("replicaof", &format!("127.0.0.1 {}", master.port));
        if master.acl {
            builder.option("masteruser", KIT_USER[0]).option("masterauth", KIT_USER[1])
        } else {
            builder
        }
    }

    /// Its clock can be set with [`RedisServer::set_clock`].
    #[must_use]
    pub fn clock(mut self) -> Self {
        self.clock = true;
        self
    }

    /// Watches other servers instead of holding data.
    #[must_use]
    pub(super) fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start(self) -> RedisServer {
        for _ in 0..PORT_TRIES {
            let mut server = self.launch();
            if server.comes_up() {
                return server;
            }
            let said = server.process.stdout();
            assert!(said.contains("Address already in use"), "redis-server ended: {said}");
        }
        panic!("redis-server found every port taken");
    }

    #[track_caller]
    fn launch(&self) -> RedisServer {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let port = free_port();
        let tls_port = self.tls.then(free_port);
        let configuration = self.configuration(directory.path(), port, tls_port);
        write(&directory.path().join(CONFIGURATION), &configuration);
        let kind = Kind { sentinel: self.sentinel, clock: self.clock };
        if self.clock {
            make_clock(directory.path());
        }
        let process = spawn(directory.path(), kind);
        let acl = !self.users.is_empty();
        RedisServer { process, port, tls_port, acl, kind, directory }
    }

    fn configuration(&self, directory: &Path, port: u16, tls_port: Option<u16>) -> String {
        let mut lines = vec![
            format!("port {port}"),
            "bind 127.0.0.1".to_owned(),
            "protected-mode no".to_owned(),
            format!("dir \"{}\"", directory.display()),
        ];
        if !self.sentinel {
            lines.extend(["appendonly yes", "appendfsync everysec", "save \"\""].map(str::to_owned));
        }
        if let Some(tls_port) = tls_port {
            make_certificates(directory);
            lines.push(format!("tls-port {tls_port}\ntls-auth-clients no"));
            lines.push(format!(
                "tls-cert-file {CERTIFICATE}\ntls-key-file {KEY}\ntls-ca-cert-file {CA_CERTIFICATE}"
            ));
        }
        if !self.users.is_empty() {
            let [user, password] = KIT_USER;
            let mut users = format!("user {user} on >{password} ~* &* +@all\n");
            users.extend(self.users.iter().map(|rules| format!("user {rules}\n")));
            write(&directory.join(USERS), &users);
            lines.push(format!("aclfile \"{}\"", directory.join(USERS).display()));
        }
        lines.extend(self.options.iter().map(|(name, value)| format!("{name} {value}")));
        lines.join("\n") + "\n"
    }
}

const CONFIGURATION: &str = "redis.conf";
const USERS: &str = "users.acl";
const CLOCK: &str = "clock";
const CLOCK_LIBRARY: &str = "clock.so";
const CERTIFICATE: &str = "server.pem";
const KEY: &str = "server.key";
const CA_CERTIFICATE: &str = "ca.pem";

pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Waits until the server answers INFO with `value` in `field`.
#[track_caller]
pub(super) fn eventually_info(server: &RedisServer, field: &str, value: &str) {
    let what = format!("{field}:{value} of redis-server at {}", server.address());
    eventually(&what, DEADLINE, || server.info(field).as_deref() == Some(value));
}

fn spawn(directory: &Path, kind: Kind) -> Process {
    let mut command = Command::new("redis-server");
    command.current_dir(directory).arg(CONFIGURATION);
    if kind.sentinel {
        command.arg("--sentinel");
    }
    if kind.clock {
        command.env("LD_PRELOAD", directory.join(CLOCK_LIBRARY)).env("TESTKIT_CLOCK", directory.join(CLOCK));
    }
    Process::spawn("redis-server", &mut command)
}

/// A clock that can be set: eight bytes with the seconds that it is off, and a library that adds them.
#[track_caller]
fn make_clock(directory: &Path) {
    write(&directory.join("clock.c"), include_str!("clock.c"));
    fs::write(directory.join(CLOCK), 0_i64.to_ne_bytes()).expect("the temporary directory is writable");
    let mut command = Command::new("cc");
    command.current_dir(directory).args(["-O2", "-shared", "-fPIC", "-o", CLOCK_LIBRARY, "clock.c"]);
    let exit = Process::spawn("cc", &mut command).wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
}

/// An authority and a certificate that it signed, by OpenSSL.
#[track_caller]
fn make_certificates(directory: &Path) {
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let authority = ["-keyout", "ca.key", "-out", CA_CERTIFICATE, "-subj", "/CN=testkit authority"];
    openssl(directory, &[&new_key[..], &authority].concat());
    let server =
        ["-keyout", KEY, "-out", CERTIFICATE, "-subj", "/CN=localhost", "-CA", CA_CERTIFICATE, "-CAkey"];
    let names = ["ca.key", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext"];
    openssl(directory, &[&new_key[..], &server, &names, &["basicConstraints=critical,CA:FALSE"]].concat());
}

#[track_caller]
fn openssl(directory: &Path, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(["req", "-x509"]).args(arguments);
    let exit = Process::spawn("openssl", &mut command).wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[track_caller]
fn write(path: &Path, content: &str) {
    fs::write(path, content).expect("the temporary directory is writable");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_a_kill() {
        let mut server = RedisServer::start();
        server.command(&["SET", "a", "1"]);
        server.kill();
        assert!(server.try_client().is_err());
        server.restart();
        assert_eq!(server.command(&["GET", "a"]).text(), "1");
    }

    #[test]
    fn nothing_is_there_after_a_restart_without_data() {
        let mut server = RedisServer::start();
        server.command(&["SET", "a", "1"]);
        server.command(&["SAVE"]);
        server.restart_empty();
        assert_eq!(server.command(&["GET", "a"]), Value::Nil);
        server.restart_empty();
    }

    #[test]
    fn a_stopped_server_goes_on_where_it_was() {
        let mut server = RedisServer::start();
        let pid = server.process().pid();
        let mut client = server.client();
        server.stop();
        eventually("the server stands still", DEADLINE, || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
        });
        server.cont();
        assert_eq!(client.command(&["PING"]).expect("the connection lived on").text(), "PONG");
    }

    #[test]
    fn a_clock_is_set_forward_and_back() {
        let server = RedisServer::builder().clock().start();
        for seconds in [3_600, -3_600, 0] {
            server.set_clock(seconds);
        }
    }

    #[test]
    fn users_have_the_rights_they_were_given() {
        let server = RedisServer::builder().user("default off").user("alice on >secret ~a:* +get").start();
        let mut client = RedisClient::connect(server.address()).expect("it listens");
        assert!(matches!(client.command(&["GET", "a:1"]), Err(RedisError::Refused(_))));
        client.command(&["AUTH", "alice", "secret"]).expect("the user is known");
        assert_eq!(client.command(&["GET", "a:1"]).expect("allowed"), Value::Nil);
        assert!(client.command(&["GET", "b:1"]).is_err());
        assert_eq!(server.url_as("alice", "secret"), format!("redis://alice:secret@{}", server.address()));
    }

    #[test]
    fn tls_is_served_with_a_certificate_that_verifies() {
        let server = RedisServer::builder().tls().start();
        let url = server.url();
        let mut command = Command::new("redis-cli");
        command.args(["-u", &url, "--cacert"]).arg(server.ca_certificate()).arg("PING");
        let exit = Process::spawn("redis-cli", &mut command).wait(DEADLINE);
        assert_eq!(exit.stdout.trim(), "PONG", "{url}: {exit}");
    }
}
