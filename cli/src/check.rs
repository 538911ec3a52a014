//! `tidegate check`: a storm of one connection and a few messages, judged strictly.

use std::{net::SocketAddr, time::Duration};

use tidegate_bench::{
    report::Report,
    storm::{self, PublishLoad, StormError, StormOptions},
};

use crate::args::CheckArgs;

/// Ten messages: one could arrive by a lucky order of subscribe and publish.
const PER_SECOND: f64 = 10.0;
const DURATION: Duration = Duration::from_secs(1);

/// Why a deployment did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Storm(#[from] StormError),
    #[error("{url} refuses the API key (401): give the right one in --api-key-file")]
    Key { url: String },
    #[error(
        "{url} refuses the subscription (401): anyone must be able to subscribe, or give a token with --token"
    )]
    Token { url: String },
    #[error("{url} refuses the subscription (403): the token does not have the channels `{prefix}-*`")]
    Rights { url: String, prefix: String },
    #[error("{url} refused to publish: {status}")]
    Refused { url: String, status: u16 },
    #[error(
        "{url} delivered {received} of {accepted} messages: {lost} lost, {doubled} doubled, {misordered} out of order"
    )]
    Lossy { url: String, received: u64, accepted: u64, lost: u64, doubled: u64, misordered: u64 },
}

/// Subscribes to a channel, publishes to it, and gives the number of messages, all of which arrived.
pub(crate) fn run(args: &CheckArgs, api_key: String, via: Option<SocketAddr>) -> Result<u64, CheckError> {
    let options = StormOptions {
        url: args.url.clone(),
        connections: 1,
        channels: 1,
        channel_prefix: args.channel_prefix.clone(),
        publish: PublishLoad::PerSecond { rate: PER_SECOND, publishers: 1 },
        duration: DURATION,
        token: if args.subscribe_with_key { Some(api_key.clone()) } else { args.token.clone() },
        api_key: Some(api_key),
        via,
        ..StormOptions::default()
    };
    match storm::run(&options) {
        Ok(report) => judge(&report),
        Err(StormError::NothingOpened { url, status: Some(401), .. }) if args.subscribe_with_key => {
            Err(CheckError::Key { url })
        }
        Err(StormError::NothingOpened { url, status: Some(401), .. }) => Err(CheckError::Token { url }),
        Err(StormError::NothingOpened { url, status: Some(403), .. }) => {
            Err(CheckError::Rights { url, prefix: args.channel_prefix.clone() })
        }
        Err(error) => Err(error.into()),
    }
}

fn judge(report: &Report) -> Result<u64, CheckError> {
    let url = report.url.clone();
    let (accepted, received) = (report.publishes.accepted, report.deliveries.received);
    let refused = report.publishes.refused.keys().chain(report.publishes.pushed_back.keys()).next();
    if let (0, Some(401)) = (accepted, refused) {
        return Err(CheckError::Key { url });
    }
    if let (0, Some(&status)) = (accepted, refused) {
        return Err(CheckError::Refused { url, status });
    }
    if accepted > 0 && received >= accepted && report.is_clean() {
        return Ok(received);
    }
    let order = report.deliveries.order;
    let (lost, doubled, misordered) = (order.lost, order.duplicated, order.misordered);
    Err(CheckError::Lossy { url, received, accepted, lost, doubled, misordered })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate_bench::{
        order::OrderCounts,
        report::{Connections, Deliveries, Percentiles, Publishes},
    };

    use super::*;

    fn report(accepted: u64, received: u64, refused: Option<u16>) -> Report {
        let none = Percentiles::default();
        Report {
            url: "http://gate".to_owned(),
            connections: Connections {
                asked: 1,
                opened: 1,
                returned: 0,
                seconds: 0.1,
                per_second: 10.0,
                handshake_us: none,
                failed: BTreeMap::new(),
                ended: BTreeMap::new(),
                pings_answered: 0,
            },
            publishes: Publishes {
                seconds: 1.0,
                accepted,
                per_second: 10.0,
                pushed_back: BTreeMap::new(),
                refused: refused.into_iter().map(|status| (status, 10)).collect(),
                uncertain: 0,
                behind: 0,
                failed: BTreeMap::new(),
                answer_us: none,
            },
            deliveries: Deliveries {
                received,
                per_second: 10.0,
                bytes: 1300,
                latency_us: none,
                order: OrderCounts { lost: accepted.saturating_sub(received), ..OrderCounts::default() },
                foreign: 0,
            },
            saturation: Vec::new(),
            metrics_errors: Vec::new(),
            client_busy: 0.0,
        }
    }

    #[test]
    fn only_a_deployment_that_delivers_everything_passes() {
        assert!(matches!(judge(&report(10, 10, None)), Ok(10)));
        assert!(matches!(judge(&report(10, 9, None)), Err(CheckError::Lossy { lost: 1, .. })));
        assert!(matches!(judge(&report(0, 0, Some(401))), Err(CheckError::Key { .. })));
        assert!(matches!(judge(&report(0, 0, Some(403))), Err(CheckError::Refused { status: 403, .. })));
        // Nothing was published and nothing was refused: that proves nothing.
        assert!(matches!(judge(&report(0, 0, None)), Err(CheckError::Lossy { .. })));
        let mut ended = report(10, 10, None);
        ended.connections.ended.insert("closed".to_owned(), 1);
        assert!(judge(&ended).is_err());
    }
}
