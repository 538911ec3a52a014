//! The node registry of one process: what was announced, and until when it holds.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::lock::locked;
use crate::NodeRecord;

#[derive(Debug)]
pub(super) struct Nodes {
    lease: Option<Duration>,
    records: Mutex<BTreeMap<Box<str>, (Instant, NodeRecord)>>,
}

impl Nodes {
    pub(super) fn new(lease: Option<Duration>) -> Self {
        Self { lease, records: Mutex::default() }
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

    /// Removes the records whose lease has ended.
    pub(super) fn sweep(&self, now: Instant) {
        let Some(lease) = self.lease else { return };
        locked(&self.records, |records| {
            records.retain(|_, (at, _)| now.saturating_duration_since(*at) < lease)
        });
    }
}
