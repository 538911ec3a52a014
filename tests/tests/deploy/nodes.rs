//! Routers and storms as processes, beside the gateways of the testkit.

use std::{fs, net::SocketAddr, process::Command};

use tempfile::TempDir;
use tidegate_testkit::{DEADLINE, Process, product_binary};

/// A running `tidegate router`.
#[derive(Debug)]
pub(crate) struct Router {
    _process: Process,
    pub(crate) public: SocketAddr,
    pub(crate) internal: SocketAddr,
    _directory: TempDir,
}

impl Router {
    #[track_caller]
    pub(crate) fn start(config: &str, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("router.toml");
        fs::write(&file, config).unwrap();
        let mut command = tidegate();
        command
            .args(["router", "--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--config"])
            .arg(file);
        let mut process = Process::spawn("router", command.args(arguments));
        let (public, internal) = process.wait_line("the router's addresses", DEADLINE, listening);
        Self { _process: process, public, internal, _directory: directory }
    }
}

/// The product, without the variables that are the tests' own.
pub(crate) fn tidegate() -> Command {
    let mut command = Command::new(product_binary());
    command.env_remove("TIDEGATE_BIN").env_remove("TIDEGATE_CACHE");
    command
}

/// `listening public=http://HOST:PORT internal=http://HOST:PORT`
pub(crate) fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let address = |name: &str| {
        let (_, rest) = line.split_once(name)?.1.split_once("://")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    line.starts_with("listening ").then(|| Some((address("public=")?, address("internal=")?)))?
}
