//! The server's own word on what was saturated, read before and after the load.

use std::collections::BTreeMap;

use crate::http;
use crate::report::{Saturation, parse_saturation};
use crate::target::{Target, TargetError};

/// The pages of a run and what they said before it.
#[derive(Debug)]
pub(super) struct Metrics {
    before: Vec<(String, Result<Gauges, MetricsError>)>,
}

/// Resource to saturation.
type Gauges = BTreeMap<String, f64>;

/// Why a metrics page said nothing.
#[derive(Debug, thiserror::Error)]
enum MetricsError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{url} could not be read ({source}): check the internal address")]
    Read { url: String, source: std::io::Error },
    #[error("{url} has no tidegate_saturation: give the internal port's /metrics")]
    NoSaturation { url: String },
}

impl Metrics {
    /// Reads every page once. A page that cannot be read is reported, not fatal.
    pub(super) fn before(urls: &[String]) -> Self {
        Self { before: urls.iter().map(|url| (url.clone(), read(url))).collect() }
    }

    /// Reads every page again; returns the series and one sentence per page that failed.
    pub(super) fn after(self) -> (Vec<Saturation>, Vec<String>) {
        let mut series = Vec::new();
        let mut errors = Vec::new();
        for (source, before) in self.before {
            match read(&source) {
                Ok(after) => series.extend(after.into_iter().map(|(resource, after)| Saturation {
                    before: before.as_ref().ok().and_then(|gauges| gauges.get(&resource).copied()),
                    source: source.clone(),
                    resource,
                    after,
                })),
                Err(error) => errors.push(error.to_string()),
            }
        }
        (series, errors)
    }
}

fn read(url: &str) -> Result<Gauges, MetricsError> {
    let target = Target::parse(url)?;
    let page = http::get(&target, &target.prefix)
        .map_err(|source| MetricsError::Read { url: url.to_owned(), source })?;
    let gauges = parse_saturation(&page);
    if gauges.is_empty() {
        return Err(MetricsError::NoSaturation { url: url.to_owned() });
    }
    Ok(gauges)
}
