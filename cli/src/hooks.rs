//! `tidegate hooks test`: what an application makes of what gateways ask it.

use std::process::ExitCode;

use tidegate_gateway::{
    config::{ConfigError, read_secret},
    hook_trial,
};

use crate::args::HooksTestArgs;

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HooksError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// A line for each question, and whether all were answered.
pub(crate) fn test(args: &HooksTestArgs) -> Result<(String, ExitCode), HooksError> {
    let secret = args.secret_file.as_deref().map(|path| read_secret("--secret-file", path)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let told = runtime.block_on(hook_trial::run(&args.url, &args.dialect, secret))?;
    let lines: String = told.iter().map(|told| format!("{}\n", told.sentence)).collect();
    let is_answered = told.iter().all(|told| told.is_answered);
    Ok((lines, if is_answered { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}
