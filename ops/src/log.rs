//! Where log events go: standard error, as text or JSON.

use tracing_subscriber::EnvFilter;

use crate::{choice, config::Setting, section};

section! {
    /// What is logged, to standard error.
    Log {
        /// `json` is one object per line.
        format: LogFormat = LogFormat::Text;
        /// A level, or levels per module: `info,tidegate_gateway=debug`.
        level: LogFilter = LogFilter("info".into());
    }
}

choice! {
    /// How log lines look.
    LogFormat, r#""text" or "json""#, "a list of log formats", {
        Text = "text",
        Json = "json",
    }
}

/// Which log events are kept, in the syntax of `tracing_subscriber::EnvFilter`. Checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(Box<str>);

impl LogFilter {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for LogFilter {
    const EXPECTED: &'static str = r#"a level (error, warn, info, debug, trace, off), or levels per module such as "info,tidegate_gateway=debug""#;

    fn from_text(text: &str) -> Option<Self> {
        // A lone word that is no level would be taken as the name of a module and silence everything else.
        let word = !text.contains(['=', ',', '[']);
        if text.trim().is_empty()
            || (word && text.parse::<tracing_subscriber::filter::LevelFilter>().is_err())
        {
            return None;
        }
        tracing_subscriber::EnvFilter::builder().parse(text).ok()?;
        Some(Self(text.into()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// Begins to log. A second call changes nothing, so that tests may run several of them in one process.
pub fn init(log: &Log) {
    let filter = EnvFilter::builder().parse_lossy(log.level.as_str());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if result.is_err() {
        tracing::debug!("logging was set up before");
    }
}
