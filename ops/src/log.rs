//! Where log events go: standard error, as text or JSON.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

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

/// Lets one of many like events into the log: at most one in [`SELDOM`], with the number of those before it that were
/// left out.
#[derive(Debug)]
pub struct Seldom {
    begin: Instant,
    /// Milliseconds since `begin`; 0: none yet.
    last_ms: AtomicU64,
    left_out: AtomicU64,
}

/// What anybody on the network can cause fills no log: 1,440 lines a day.
pub const SELDOM: Duration = Duration::from_secs(60);

impl Default for Seldom {
    fn default() -> Self {
        Self { begin: Instant::now(), last_ms: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }
}

impl Seldom {
    /// `Some`: this event is to be logged, and so many were left out since the last one.
    pub fn ask(&self) -> Option<u64> {
        let now_ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let last_ms = self.last_ms.load(Relaxed);
        let is_due = last_ms == 0 || now_ms - last_ms.min(now_ms) >= SELDOM.as_millis() as u64;
        if is_due && self.last_ms.compare_exchange(last_ms, now_ms, Relaxed, Relaxed).is_ok() {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_logged() {
        let seldom = Seldom::default();
        let asked: Vec<_> = (0..5).map(|_| seldom.ask()).collect();
        assert_eq!(asked, [Some(0), None, None, None, None]);
        assert_eq!(seldom.left_out.load(Relaxed), 4);
    }
}
