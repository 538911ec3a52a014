//! TEMPORARY stand-in for the node, replaced at merge: the signatures `http` calls, over a map in memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidegate_backplane::{
    BackplaneError, Channel, DisconnectTarget, Epoch, History, HistoryQuery, Member, NodeRecord, Payload, Position,
    Publication, Published,
};

/// A publish as a front end asks for it.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    pub channel: Channel,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    pub idempotency_key: Option<Box<str>>,
}

/// Why a publish was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("this node has too many publications under way")]
    Overloaded { retry_after: Duration },
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    #[error("the payload has {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
}

/// A channel with subscribers on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    pub name: Channel,
    pub subscribers: u64,
}

/// Why the node is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not ready")]
pub struct NotReady {
    pub reasons: Vec<NotReadyReason>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReadyReason {
    #[error("draining")]
    Draining,
    #[error(transparent)]
    Backplane(BackplaneError),
}

/// Bounds that front ends apply while they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub payload_bytes_max: usize,
}

/// One node.
#[derive(Debug, Default)]
pub struct Node {
    channels: Mutex<BTreeMap<Channel, Vec<Arc<Publication>>>>,
    seen: Mutex<BTreeMap<(Channel, Box<str>), Published>>,
    draining: AtomicBool,
}

const EPOCH: Epoch = Epoch(723); // "k3"

impl Node {
    pub async fn publish(&self, request: PublishRequest) -> Result<Published, PublishError> {
        match request.channel.as_str() {
            "full" => return Err(PublishError::Overloaded { retry_after: Duration::from_millis(1500) }),
            "gone" => return Err(PublishError::Backplane(BackplaneError::Unavailable("connection refused".into()))),
            _ => {}
        }
        let (bytes, max) = (request.payload.bytes().len(), self.limits().payload_bytes_max);
        if bytes > max {
            return Err(PublishError::TooLarge { bytes, max });
        }
        let key = request.idempotency_key.map(|key| (request.channel.clone(), key));
        if let Some(first) = key.as_ref().and_then(|key| lock(&self.seen).get(key).copied()) {
            return Ok(Published { duplicate: true, ..first });
        }
        let mut channels = lock(&self.channels);
        let history = channels.entry(request.channel.clone()).or_default();
        let position = (request.channel.namespace() != Some("plain"))
            .then_some(Position { epoch: EPOCH, offset: history.len() as u64 + 1 });
        history.push(Arc::new(Publication { position, event: request.event, payload: request.payload }));
        let published = Published { position, duplicate: false };
        if let Some(key) = key {
            lock(&self.seen).insert(key, published);
        }
        Ok(published)
    }

    pub fn channels(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<ChannelInfo> {
        lock(&self.channels)
            .keys()
            .filter(|name| name.as_str().starts_with(prefix) && after.is_none_or(|after| name.as_str() > after))
            .take(limit)
            .map(|name| ChannelInfo { name: name.clone(), subscribers: 1 })
            .collect()
    }

    pub fn subscribers(&self, channel: &Channel) -> u64 {
        u64::from(lock(&self.channels).contains_key(channel))
    }

    pub async fn history(&self, channel: &Channel, query: HistoryQuery) -> Result<History, BackplaneError> {
        let publications = lock(&self.channels).get(channel).cloned().unwrap_or_default();
        let top = publications.last().and_then(|publication| publication.position);
        let after = |publication: &Arc<Publication>| {
            query.since.is_none_or(|since| publication.position.is_some_and(|position| position.offset > since.offset))
        };
        let publications = publications.into_iter().filter(after).take(query.limit).collect();
        let continuous = query.since.is_none_or(|since| since.epoch == EPOCH);
        Ok(History { publications, top, continuous })
    }

    pub async fn presence(&self, channel: &Channel) -> Result<Option<Vec<Member>>, BackplaneError> {
        let member =
            Member { connection: "node-1.7".into(), user: "ada".into(), info: Some(r#"{"name":"Ada"}"#.into()) };
        Ok((channel.namespace() == Some("room")).then(|| vec![member]))
    }

    pub async fn disconnect(&self, _target: DisconnectTarget, _reason: Box<str>) -> Result<(), BackplaneError> {
        Ok(())
    }

    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, BackplaneError> {
        Ok(vec![NodeRecord {
            name: "node-1".into(),
            address: "127.0.0.1:8000".into(),
            zone: None,
            version: "0.1.0".into(),
            connections: 0,
            capacity: 1000,
            draining: self.draining.load(Ordering::Relaxed),
        }])
    }

    pub fn readiness(&self) -> Result<(), NotReady> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(NotReady { reasons: vec![NotReadyReason::Draining] });
        }
        Ok(())
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub fn limits(&self) -> Limits {
        Limits { payload_bytes_max: 64 * 1024 }
    }

    pub fn connections(&self) -> u64 {
        0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
