//! A sink that records what it is told, and can be awaited.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use super::DEADLINE;
use crate::{Channel, Control, Gap, Intake, PresenceEvent, Publication, Sink, Transition};

/// Records all calls, in their order.
#[derive(Debug, Default)]
pub struct Recorder {
    records: Mutex<Records>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Records {
    publications: HashMap<Channel, Vec<Arc<Publication>>>,
    /// With the number of publications of the channel before it.
    gaps: Vec<(Channel, Gap, usize)>,
    controls: Vec<Control>,
    presence: HashMap<Channel, Vec<Arc<PresenceEvent>>>,
    transitions: HashMap<Channel, Vec<Transition>>,
}

impl Recorder {
    /// What was handed over for a channel so far.
    pub fn publications(&self, channel: &Channel) -> Vec<Arc<Publication>> {
        self.with(|records| records.publications.get(channel).cloned().unwrap_or_default())
    }

    /// The newest publication that was handed over for a channel.
    pub fn newest(&self, channel: &Channel) -> Option<Arc<Publication>> {
        self.with(|records| records.publications.get(channel).and_then(|list| list.last().cloned()))
    }

    pub fn gaps(&self) -> Vec<(Channel, Gap)> {
        self.with(|records| records.gaps.iter().map(|(channel, gap, _)| (channel.clone(), *gap)).collect())
    }

    /// For each gap of a channel, how many of its publications had been handed over before.
    pub fn gaps_after(&self, channel: &Channel) -> Vec<usize> {
        self.with(|records| {
            let of_channel = records.gaps.iter().filter(|(of, ..)| of == channel);
            of_channel.map(|(.., after)| *after).collect()
        })
    }

    /// Awaits at least `count` publications of a channel, and returns all there are.
    pub async fn until_publications(&self, channel: &Channel, count: usize) -> Vec<Arc<Publication>> {
        self.until(|records| records.publications.get(channel).filter(|list| list.len() >= count).cloned())
            .await
    }

    /// Awaits at least `count` orders, and returns all there are.
    pub async fn until_controls(&self, count: usize) -> Vec<Control> {
        self.until(|records| (records.controls.len() >= count).then(|| records.controls.clone())).await
    }

    /// What was told of who is in a channel so far.
    pub fn presence(&self, channel: &Channel) -> Vec<Arc<PresenceEvent>> {
        self.with(|records| records.presence.get(channel).cloned().unwrap_or_default())
    }

    pub fn transitions(&self, channel: &Channel) -> Vec<Transition> {
        self.with(|records| records.transitions.get(channel).cloned().unwrap_or_default())
    }

    /// Awaits at least `count` changes of who is in a channel, and returns all there are.
    pub async fn until_presence(&self, channel: &Channel, count: usize) -> Vec<Arc<PresenceEvent>> {
        self.until(|records| records.presence.get(channel).filter(|list| list.len() >= count).cloned()).await
    }

    async fn until<T>(&self, mut ask: impl FnMut(&mut Records) -> Option<T>) -> T {
        let answer = async {
            loop {
                // Registered before the question is asked, so that no change falls between the two.
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if let Some(answer) = self.with(&mut ask) {
                    return answer;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(answer) => answer,
            Err(_) => panic!("after {DEADLINE:?} the sink was only told {:?}", self.records),
        }
    }

    fn record(&self, f: impl FnOnce(&mut Records)) {
        self.with(f);
        self.changed.notify_waiters();
    }

    fn with<R>(&self, f: impl FnOnce(&mut Records) -> R) -> R {
        f(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Recorder {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        self.record(|records| records.publications.entry(channel.clone()).or_default().push(publication));
        Intake::Taken
    }

    fn gap(&self, channel: &Channel, gap: Gap) {
        self.record(|records| {
            let after = records.publications.get(channel).map_or(0, Vec::len);
            records.gaps.push((channel.clone(), gap, after));
        });
    }

    fn control(&self, control: Control) {
        self.record(|records| records.controls.push(control));
    }

    fn presence(&self, channel: &Channel, event: Arc<PresenceEvent>) {
        self.record(|records| records.presence.entry(channel.clone()).or_default().push(event));
    }

    fn transition(&self, channel: &Channel, transition: Transition) {
        self.record(|records| records.transitions.entry(channel.clone()).or_default().push(transition));
    }
}
