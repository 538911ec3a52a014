//! `tidegate healthcheck`: asks a URL, or finds out itself where the process of this container answers.

use std::{ffi::OsString, fs, net::SocketAddr, os::unix::ffi::OsStringExt as _, path::Path, time::Duration};

use clap::Parser as _;
use tidegate_gateway::config::{Config, ConfigError};
use tidegate_router::config::Config as RouterConfig;

use crate::args::{Args, Command, HealthcheckArgs};

/// Why the answer is not 'healthy'.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HealthError {
    #[error("{url} does not answer: {source}")]
    Silent { url: String, source: reqwest::Error },
    #[error("{url} answers {status}")]
    Unwell { url: String, status: reqwest::StatusCode },
    #[error(
        "no tidegate gateway or router runs here: give the URL to ask, such as http://127.0.0.1:9000/livez"
    )]
    NobodyRuns,
    #[error(
        "the internal port of process {pid} is chosen by the system (0): give the URL to ask, or a fixed port"
    )]
    AnyPort { pid: u32 },
    #[error("the configuration of process {pid} cannot be read: {source}")]
    Config { pid: u32, source: ConfigError },
}

/// Asks; `Ok` is healthy.
pub(crate) fn run(args: &HealthcheckArgs) -> Result<(), HealthError> {
    match &args.url {
        Some(url) => ask(url, args.timeout),
        None => match found(Path::new("/proc"))? {
            Found::At(address) => ask(&format!("http://{address}/livez"), args.timeout),
            // A storm answers nobody; that it runs is all there is to say.
            Found::WithoutPort => Ok(()),
        },
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(url: &str, timeout: Duration) -> Result<(), HealthError> {
    let answer = async {
        let client = reqwest::Client::builder().timeout(timeout).build()?;
        client.get(url).send().await
    };
    let answer = answer.await.map_err(|source| HealthError::Silent { url: url.to_owned(), source })?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(HealthError::Unwell { url: url.to_owned(), status }),
    }
}

/// What the process of this container is.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    At(SocketAddr),
    WithoutPort,
}

/// The first process of ours, by its number: in a container that is 1, or the one below an init.
fn found(proc: &Path) -> Result<Found, HealthError> {
    let mut pids: Vec<u32> = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let ours = pids.into_iter().filter(|pid| *pid != std::process::id());
    let read = |pid: u32| Some((pid, command(&fs::read(proc.join(pid.to_string()).join("cmdline")).ok()?)?));
    for (pid, command) in ours.filter_map(read) {
        let address = match command {
            Command::Gateway(args) => Config::load(&args.into_sources()).map(|config| config.internal),
            Command::Router(args) => RouterConfig::load(&args.into_sources()).map(|config| config.internal),
            Command::Serve(args) => Ok(args.internal),
            Command::Storm(_) => return Ok(Found::WithoutPort),
            _ => continue,
        };
        let address = address.map_err(|source| HealthError::Config { pid, source })?;
        return match address.port() {
            0 => Err(HealthError::AnyPort { pid }),
            _ => Ok(Found::At(reachable(address))),
        };
    }
    Err(HealthError::NobodyRuns)
}

/// The command of a process of ours, from its words with a zero byte after each.
fn command(cmdline: &[u8]) -> Option<Command> {
    let words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline).split(|byte| *byte == 0);
    let words: Vec<OsString> = words.map(|word| OsString::from_vec(word.to_vec())).collect();
    let program = Path::new(words.first()?).file_name()?;
    (program == "tidegate").then(|| Args::try_parse_from(words).ok().map(Args::into_command))?
}

/// A wildcard address is reached at the loopback one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[track_caller]
    fn check(processes: &[(u32, &str)], expect: Result<&str, &str>) {
        let proc = std::env::temp_dir().join(format!("tidegate-health-{}", std::process::id()));
        for (pid, line) in processes {
            let directory = proc.join(pid.to_string());
            fs::create_dir_all(&directory).unwrap();
            let words: String = line.split(' ').flat_map(|word| [word, "\0"]).collect();
            fs::write(directory.join("cmdline"), words).unwrap();
        }
        fs::create_dir_all(proc.join("sys")).unwrap();
        let got = found(&proc);
        fs::remove_dir_all(&proc).unwrap();
        match expect {
            Ok("storm") => assert_eq!(got.unwrap(), Found::WithoutPort),
            Ok(address) => assert_eq!(got.unwrap(), Found::At(address.parse().unwrap())),
            Err(part) => assert!(got.unwrap_err().to_string().contains(part)),
        }
    }

    #[test]
    fn the_port_of_what_runs_is_found() {
        let entry = "/usr/local/bin/tidegate";
        let line = |rest: &str| format!("{entry} {rest}");
        check(&[(1, &line("gateway --internal 0.0.0.0:9000"))], Ok("127.0.0.1:9000"));
        check(&[(1, &line("router --internal [::]:9081"))], Ok("[::1]:9081"));
        check(&[(1, &line("router"))], Ok("127.0.0.1:9080"));
        check(&[(1, &line("serve --gateways 4 --internal 0.0.0.0:9100"))], Ok("127.0.0.1:9100"));
        check(&[(1, entry)], Ok("127.0.0.1:9000"));
        check(&[(1, "/sbin/docker-init -- x"), (7, &line("gateway --dev-anywhere"))], Ok("127.0.0.1:9000"));
        check(&[(1, &line("storm http://router:8080"))], Ok("storm"));
        check(&[(1, &line("healthcheck")), (2, "sh")], Err("no tidegate gateway or router runs here"));
        check(&[(3, &line("gateway --internal 127.0.0.1:0"))], Err("process 3"));
        check(&[(4, &line("gateway --config /nowhere.toml"))], Err("/nowhere.toml"));
    }
}
