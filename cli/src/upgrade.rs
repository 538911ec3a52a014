//! `tidegate upgrade`: has a process replaced while its connections stay open; and how one is started for that.

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use tidegate_ops::{probes::Upgraded, succession::Launch};

use crate::args::UpgradeArgs;

/// Why it was not replaced, or that is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("{url} does not answer: {source}; its log says whether it was replaced")]
    Silent { url: String, source: reqwest::Error },
    #[error("{url} was not replaced, and goes on: {why}")]
    Refused { url: String, why: String },
}

/// Longer than all that a process waits for in an upgrade.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// `serve` upgrades one process after the other.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(3_600);

/// Asks, and waits until another process serves.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: &UpgradeArgs) -> Result<String, UpgradeError> {
    let Upgraded { process, paused_ms } = ask(&args.url, PATIENCE_FOR_ALL).await?;
    Ok(format!("{} is served by process {process} now; it stood still for {paused_ms} ms\n", args.url))
}

/// Has the process replaced whose internal port this is.
pub(crate) async fn ask(base: &str, patience: Duration) -> Result<Upgraded, UpgradeError> {
    let silent = |source| UpgradeError::Silent { url: base.to_owned(), source };
    let client = reqwest::Client::builder().no_proxy().timeout(patience).build().map_err(silent)?;
    let url = format!("{}/upgrade", base.trim_end_matches('/'));
    let answer = client.post(url).send().await.map_err(silent)?;
    if answer.status().is_success() {
        return answer.json().await.map_err(silent);
    }
    let why = answer.text().await.map_err(silent)?.trim_end().to_owned();
    Err(UpgradeError::Refused { url: base.to_owned(), why })
}

/// This program, as it was started, and told that it takes over.
pub(crate) fn launch() -> io::Result<Launch> {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.is_empty() {
        args = vec!["gateway".into(), "--dev".into()];
    }
    if !args.iter().any(|arg| arg == TAKE_OVER) {
        args.push(TAKE_OVER.into());
    }
    Ok(Launch { program: program()?, args })
}

/// Where this program is. A path that is named leads where it leads by then, also where it is a link to another version.
pub(crate) fn program() -> io::Result<PathBuf> {
    let named = std::env::args_os().next().map(PathBuf::from).filter(|program| program.is_absolute());
    named.map_or_else(std::env::current_exe, Ok)
}

const TAKE_OVER: &str = "--take-over";
