//! `tidegate upgrade`: has a gateway replaced while its connections stay open; and how a gateway is started for that.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use tidegate_ops::succession::Launch;

use crate::args::UpgradeArgs;

/// Why it was not replaced, or that is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("{url} does not answer: {source}; its log says whether it was replaced")]
    Silent { url: String, source: reqwest::Error },
    #[error("{url} was not replaced, and goes on: {why}")]
    Refused { url: String, why: String },
}

/// Longer than all that a gateway waits for in an upgrade.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks, and waits until another process serves.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: &UpgradeArgs) -> Result<String, UpgradeError> {
    let url = format!("{}/upgrade", args.url.trim_end_matches('/'));
    let silent = |source| UpgradeError::Silent { url: args.url.clone(), source };
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(silent)?;
    let answer = client.post(&url).send().await.map_err(silent)?;
    let status = answer.status();
    let text = answer.text().await.map_err(silent)?;
    match status.is_success() {
        true => Ok(format!("{} is served by another process now: {}\n", args.url, text.trim_end())),
        false => Err(UpgradeError::Refused { url: args.url.clone(), why: text.trim_end().to_owned() }),
    }
}

/// This program, as it was started, and told that it takes over. `None`: it is the child of another one, which would start it
/// again, or where it is is not known.
pub(crate) fn launch() -> Option<Launch> {
    let mut args = std::env::args_os();
    // A path that is named leads where it leads by then, also where it is a link to another version.
    let named = args.next().map(PathBuf::from).filter(|program| program.is_absolute());
    let program = named.or_else(|| std::env::current_exe().ok())?;
    let mut args: Vec<OsString> = args.collect();
    if args.iter().any(|arg| arg == "--parent") {
        return None;
    }
    if args.is_empty() {
        args = vec!["gateway".into(), "--dev".into()];
    }
    if !args.iter().any(|arg| arg == TAKE_OVER) {
        args.push(TAKE_OVER.into());
    }
    Some(Launch { program, args })
}

const TAKE_OVER: &str = "--take-over";
