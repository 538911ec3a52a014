//! Where log events go: standard error, as text or JSON.

use std::{io::IsTerminal as _, sync::OnceLock};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::{choice, config::Setting, section};

section! {
    /// What is logged, to standard error.
    Log {
        /// `json` is one object per line.
        format: LogFormat = LogFormat::Text;
        /// A level, or levels per module: `info,tidegate_gateway=debug`. `info,refused=debug` has a line for each
        /// request, handshake, command or message that a gateway refuses, with the reason.
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
    /// Also what has this target, from this level on.
    #[must_use]
    pub fn and(self, target: &str, level: &str) -> Self {
        Self(format!("{},{target}={level}", self.0).into())
    }

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

/// Lines that may wait for standard error: at 200 bytes each, 1.6 MiB. Whoever logs never waits for whoever reads: a
/// terminal that is stopped, or a log collector that is behind, would hold a shard with all its connections.
const LINES_WAITING_MAX: usize = 8192;

/// Keeps logging; what waits is written when it ends.
#[derive(Debug)]
#[must_use = "lines are written for as long as it is kept"]
pub struct Logging {
    _writer: Option<WorkerGuard>,
}

struct Running {
    dropped: ErrorCounter,
    filter: reload::Handle<EnvFilter, Registry>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Begins to log. A second call changes nothing, so that tests may run several of them in one process.
pub fn init(log: &Log) -> Logging {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let (filter, handle) = reload::Layer::new(EnvFilter::builder().parse_lossy(log.level.as_str()));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_err() {
        tracing::debug!("logging was set up before");
        return Logging { _writer: None };
    }
    RUNNING.get_or_init(|| Running { dropped, filter: handle });
    Logging { _writer: Some(guard) }
}

/// Lines that were not written because too many waited.
pub fn lines_dropped() -> u64 {
    RUNNING.get().map_or(0, |running| running.dropped.dropped_lines() as u64)
}

/// Keeps other events from now on.
pub fn set_level(level: &LogFilter) {
    let filter = EnvFilter::builder().parse_lossy(level.as_str());
    if let Some(Err(error)) = RUNNING.get().map(|running| running.filter.reload(filter)) {
        tracing::error!(%error, "the log level stays as it is");
    }
}
