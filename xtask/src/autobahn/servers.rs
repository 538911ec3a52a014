//! What the suite connects to: a gateway, and a router in front of it when that is asked for.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Owned;

/// Case 9.1.6 and its kin echo one message of 16 MiB, far over the defaults; others send thousands at once, which the
/// budgets of a connection would spread over minutes.
const GATEWAY_LIMITS: &str = "\
[limits]
message_bytes = \"17MiB\"
left_behind_bytes = \"17MiB\"
send_queue_bytes = \"40MiB\"
publish_bytes_per_second = 0
messages_per_second = 0
inflated_bytes_per_second = 0
";

/// A router knows its one gateway in milliseconds; past this it never will.
const READY_MAX: Duration = Duration::from_secs(30);

/// They end when this is dropped.
#[derive(Debug)]
pub(super) struct Servers {
    _processes: Vec<Owned>,
}

/// Where a process listens.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    public: String,
    internal: String,
}

impl Servers {
    /// Starts them on free ports; gives the public address that the suite is for.
    pub(super) fn start(binary: &Path, directory: &Path, router: bool) -> Result<(Self, String)> {
        let (gateway, addresses) = start(binary, directory, "gateway", &["--dev"], GATEWAY_LIMITS)?;
        if !router {
            return Ok((Self { _processes: vec![gateway] }, addresses.public));
        }
        let members = format!("static:{}", addresses.public);
        let (router, addresses) = start(binary, directory, "router", &["--members", &members], "")?;
        wait_ready(&addresses.internal)?;
        Ok((Self { _processes: vec![router, gateway] }, addresses.public))
    }
}

/// Starts a subcommand and reads from its first line where it listens. What else it says goes to a log.
fn start(
    binary: &Path,
    directory: &Path,
    subcommand: &str,
    more: &[&str],
    settings: &str,
) -> Result<(Owned, Addresses)> {
    let config = directory.join(format!("{subcommand}.toml"));
    fs::write(&config, settings)?;
    let log = File::create(directory.join(format!("{subcommand}.log")))?;
    let mut command = Command::new(binary);
    command.args([subcommand, "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"]);
    command.args(more).arg("--config").arg(&config);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut process = Owned(command.spawn().with_context(|| format!("start {}", binary.display()))?);
    let stdout = process.0.stdout.take().context("standard output is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let found = lines.by_ref().map_while(Result::ok).find_map(|line| addresses(&line));
    // What it prints later must not fill the pipe and stop it.
    std::thread::spawn(move || lines.for_each(drop));
    let found = found.with_context(|| {
        format!("the {subcommand} ended before it listened: see {subcommand}.log in target/autobahn")
    })?;
    Ok((process, found))
}

/// Waits until `/readyz` answers 200: before, a router has no gateway and refuses.
fn wait_ready(internal: &str) -> Result<()> {
    let start = Instant::now();
    while !is_ready(internal).unwrap_or(false) {
        if start.elapsed() > READY_MAX {
            bail!("the router knows no gateway after {} s", READY_MAX.as_secs());
        }
        pause();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a condition that has a deadline")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

fn is_ready(internal: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(internal)?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}

/// `listening public=http://HOST:PORT internal=http://HOST:PORT`
fn addresses(line: &str) -> Option<Addresses> {
    let (_, rest) = line.split_once("listening public=http://")?;
    let (public, internal) = rest.split_once(" internal=http://")?;
    Some(Addresses { public: public.to_owned(), internal: internal.split_whitespace().next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_listening_line() {
        let line = "listening public=http://127.0.0.1:41 internal=http://127.0.0.1:42";
        let expect = Addresses { public: "127.0.0.1:41".to_owned(), internal: "127.0.0.1:42".to_owned() };
        assert_eq!(addresses(line), Some(expect));
        assert_eq!(addresses("starting"), None);
    }
}
