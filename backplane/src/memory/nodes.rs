//! The node registry of one process: what was announced, and until when it holds.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::lock::locked;
use crate::{NodeRecord, REPORT_LEASE};

#[derive(Debug)]
pub(super) struct Nodes {
    lease: Option<Duration>,
    records: Mutex<BTreeMap<Box<str>, (Instant, NodeRecord)>>,
    /// What those who watch are told, and until when.
    reports: Mutex<BTreeMap<Box<str>, (Instant, String)>>,
}

impl Nodes {
    pub(super) fn new(lease: Option<Duration>) -> Self {
        Self { lease, records: Mutex::default(), reports: Mutex::default() }
    }

    pub(super) fn announce(&self, node: NodeRecord, now: Instant) {
        locked(&self.records, |records| records.insert(node.name.clone(), (now, node)));
    }

    pub(super) fn retire(&self, name: &str) {
        locked(&self.records, |records| records.remove(name));
    }

    pub(super) fn list(&self, now: Instant) -> Vec<NodeRecord> {
        self.sweep(now);
        locked(&self.records, |records| records.values().map(|(_, node)| node.clone()).collect())
    }

    pub(super) fn report(&self, node: &str, report: String, now: Instant) {
        locked(&self.reports, |reports| reports.insert(node.into(), (now + REPORT_LEASE, report)));
    }

    pub(super) fn reports(&self, nodes: &[Box<str>], now: Instant) -> Vec<Option<Vec<u8>>> {
        locked(&self.reports, |reports| {
            reports.retain(|_, (end, _)| now < *end);
            let last = nodes.iter().map(|node| reports.get(node));
            last.map(|found| found.map(|(_, report)| report.clone().into_bytes())).collect()
        })
    }

    /// Removes the records whose lease has ended.
    pub(super) fn sweep(&self, now: Instant) {
        let Some(lease) = self.lease else { return };
        locked(&self.records, |records| {
            records.retain(|_, (at, _)| now.saturating_duration_since(*at) < lease)
        });
    }
}
