//! Where log events go: standard error, as text or JSON.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Begins to log. A second call changes nothing, so that tests may run several nodes in one process.
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
