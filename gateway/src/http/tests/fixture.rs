//! The node that the routers of the tests serve: the real one, over a scripted backplane.

use std::{
    collections::HashMap,
    future::ready,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use tidegate_backplane::{
    Attendance, Backplane, BackplaneError, Channel, Control, Epoch, History, HistoryQuery, Join, JoinError,
    Member, NewPublication, NodeRecord, Position, PresenceChannel, Publication, Published, Roll,
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{ALL, BODY_MAX, HttpContext, HttpState, NEWS, ORIGIN, PAYLOAD_MAX, READER};
use crate::{
    admission::Front,
    app::apps::Apps,
    app::webhooks::Webhooks,
    auth::{ApiKeys, Origins, Pattern, Scope},
    config::{ApiKeyEntry, BackplaneAway, ByteSize, Config, Namespace, OriginRule, Secret},
    console::Console,
    metrics::{Bounds, Metrics},
    node::interest::Load,
    node::{Node, Relay},
    protocols,
};

pub(in crate::http) struct Fixture {
    pub(in crate::http) state: HttpState,
    backplane: Arc<Scripted>,
    relay: Arc<Relay>,
    loads: Mutex<Vec<Load>>,
}

impl Fixture {
    pub(in crate::http) fn new(dev: bool) -> Self {
        let config = Arc::new(config(dev));
        let backplane = Arc::new(Scripted::default());
        let relay = Arc::new(Relay::new(Vec::new()));
        let metrics = Arc::new(Metrics::new(Bounds::default()));
        let front = Arc::new(Front::new(config.limits.clone()));
        let keys = Arc::new(ApiKeys::new(&config.auth.api_keys).unwrap());
        let origins = Arc::new(Origins::new(&config.auth.allowed_origins));
        let webhooks = Arc::new(Webhooks::new(config.webhooks.clone(), Handle::current()).unwrap());
        let apps = Arc::new(Apps::new(&config, Arc::clone(&webhooks)).unwrap());
        let shared = Arc::clone(&backplane) as Arc<dyn Backplane>;
        let node = Arc::new(Node::new(config, shared, Arc::clone(&relay), front, Arc::clone(&metrics)));
        let console = Arc::new(Console::new(Arc::clone(&node), Handle::current(), CancellationToken::new()));
        let state = Arc::new(HttpContext {
            node,
            console,
            keys,
            apps,
            origins,
            metrics,
            apis: protocols::APIS,
            is_shards: if dev { protocols::serve_dev } else { protocols::serve },
            internal: tidegate_ops::hosts::InternalAccess::default(),
            dev,
        });
        Self { state, backplane, relay, loads: Mutex::default() }
    }

    /// Gives a channel one subscriber.
    pub(super) fn subscribe(&self, name: &str) {
        let channel = Channel::new(name).unwrap();
        let interest = self.relay.interests.enter(&channel, 0, &*self.backplane);
        interest.subscribers.store(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Leaves a channel no room for another publication.
    pub(super) fn fill(&self, name: &str) {
        let channel = Channel::new(name).unwrap();
        let interest = self.relay.interests.enter(&channel, 0, &*self.backplane);
        self.loads.lock().unwrap().push(interest.load(1 << 20));
    }

    /// Publications that the backplane accepted.
    pub(super) fn published(&self) -> usize {
        self.backplane.channels.lock().unwrap().values().map(Vec::len).sum()
    }

    /// Those in one channel.
    pub(super) fn publications(&self, channel: &Channel) -> Vec<Arc<Publication>> {
        self.backplane.channels.lock().unwrap().get(channel).cloned().unwrap_or_default()
    }

    /// Orders that went to all nodes.
    pub(super) fn controls(&self) -> Vec<Control> {
        self.backplane.controls.lock().unwrap().clone()
    }
}

/// Namespace `plain` keeps no history, `room` has presence, `local` does without the backplane.
fn config(dev: bool) -> Config {
    let mut config = Config::dev();
    config.dev = dev;
    config.node = "gateway-0".into();
    config.limits.publish_bytes = ByteSize::new(PAYLOAD_MAX);
    config.limits.body_bytes = ByteSize::new(BODY_MAX);
    let plain = Namespace { history_size: 0, ..config.namespaces.default.clone() };
    let room = Namespace { presence: true, ..config.namespaces.default.clone() };
    let local = Namespace { backplane_away: BackplaneAway::Local, ..config.namespaces.default.clone() };
    config.namespaces.named =
        [("plain".into(), plain), ("room".into(), room), ("local".into(), local)].into();
    config.auth.api_keys.0 = vec![
        entry("all", ALL, &[Scope::Publish, Scope::Read, Scope::Admin], "*"),
        entry("news", NEWS, &[Scope::Publish, Scope::Read], "news*"),
        entry("reader", READER, &[Scope::Read], "*"),
    ];
    config.auth.allowed_origins = vec![OriginRule::Exact(ORIGIN.into())];
    config
}

fn entry(name: &str, key: &str, scopes: &[Scope], channels: &str) -> ApiKeyEntry {
    ApiKeyEntry {
        name: name.into(),
        key: Some(Secret::new(key.as_bytes())),
        scopes: scopes.to_vec(),
        channels: vec![Pattern::new(channels).unwrap()],
        ..ApiKeyEntry::default()
    }
}

/// A backplane whose answers are known: epoch `k3`, offsets from 1, no connection for the channel `gone`, and no answer for
/// `doubt`.
#[derive(Debug, Default)]
struct Scripted {
    channels: Mutex<HashMap<Channel, Vec<Arc<Publication>>>>,
    seen: Mutex<HashMap<(Channel, Box<str>), Published>>,
    controls: Mutex<Vec<Control>>,
}

const EPOCH: Epoch = Epoch(723); // "k3"

impl Scripted {
    fn accept(&self, publication: NewPublication) -> Result<Published, BackplaneError> {
        let NewPublication { channel, event, payload, history, idempotency_key, sender } = publication;
        match channel.as_str() {
            "gone" | "local:gone" => return Err(BackplaneError::Unavailable("connection refused".into())),
            "doubt" | "local:doubt" => {
                return Err(BackplaneError::Unconfirmed("the connection broke".into()));
            }
            _ => {}
        }
        let key = idempotency_key.map(|key| (channel.clone(), key));
        if let Some(first) = key.as_ref().and_then(|key| self.seen.lock().unwrap().get(key).copied()) {
            return Ok(Published { duplicate: true, ..first });
        }
        let mut channels = self.channels.lock().unwrap();
        let kept = channels.entry(channel).or_default();
        let position = history.map(|_| Position { epoch: EPOCH, offset: kept.len() as u64 + 1 });
        kept.push(Arc::new(Publication { position, event, payload, sender }));
        let published = Published { position, duplicate: false };
        if let Some(key) = key {
            self.seen.lock().unwrap().insert(key, published);
        }
        Ok(published)
    }

    fn read(&self, channel: &Channel, query: HistoryQuery) -> History {
        let kept = self.channels.lock().unwrap().get(channel).cloned().unwrap_or_default();
        let top = kept.last().and_then(|last| last.position);
        let after = query.since.map_or(0, |since| since.offset);
        let wanted = kept.into_iter().filter(|kept| kept.position.is_some_and(|at| at.offset > after));
        let continuous = query.since.is_none_or(|since| since.epoch == EPOCH);
        History { publications: wanted.take(query.limit).collect(), top, left: None, continuous }
    }
}

impl Backplane for Scripted {
    fn publish(&self, publication: NewPublication) -> BoxFuture<'_, Result<Published, BackplaneError>> {
        Box::pin(ready(self.accept(publication)))
    }

    fn subscribe(&self, _: &Channel, _: u64) -> BoxFuture<'static, Result<(), BackplaneError>> {
        Box::pin(ready(Ok(())))
    }

    fn unsubscribe(&self, _: &Channel, _: u64) {}

    fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> BoxFuture<'_, Result<History, BackplaneError>> {
        Box::pin(ready(Ok(self.read(channel, query))))
    }

    fn remove_history(&self, _: &Channel) -> BoxFuture<'_, Result<(), BackplaneError>> {
        Box::pin(ready(Ok(())))
    }

    fn join(&self, _: &Channel, _: Join) -> BoxFuture<'static, Result<Attendance, JoinError>> {
        Box::pin(ready(Ok(Attendance::default())))
    }

    fn leave(&self, _: &Channel, _: Option<&str>) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        Box::pin(ready(Ok(Attendance::default())))
    }

    fn roll(&self, _: &Channel) -> BoxFuture<'static, Result<Roll, BackplaneError>> {
        let info = Some(r#"{"name":"Ada"}"#.into());
        let member = Member { connection: "node-1.7".into(), user: "ada".into(), info };
        Box::pin(ready(Ok(Roll { sequence: 1, subscriptions: 1, members: vec![Arc::new(member)] })))
    }

    fn attendance(&self, _: &Channel) -> BoxFuture<'static, Result<Attendance, BackplaneError>> {
        Box::pin(ready(Ok(Attendance::default())))
    }

    fn presence_channels(
        &self,
        _: Option<&str>,
        _: &str,
    ) -> BoxFuture<'static, Result<Vec<PresenceChannel>, BackplaneError>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn announce(&self, _: NodeRecord) -> BoxFuture<'_, Result<(), BackplaneError>> {
        Box::pin(ready(Ok(())))
    }

    fn retire(&self, _: &str) -> BoxFuture<'_, Result<(), BackplaneError>> {
        Box::pin(ready(Ok(())))
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        Box::pin(ready(Ok(vec![NodeRecord {
            name: "gateway-0".into(),
            address: "127.0.0.1:8000".into(),
            zone: None,
            version: "0.1.0".into(),
            connections: 0,
            capacity: 1000,
            draining: false,
            handover: None,
        }])))
    }

    fn report(&self, _: &str, _: String) -> BoxFuture<'_, Result<(), BackplaneError>> {
        Box::pin(ready(Ok(())))
    }

    fn reports(&self, nodes: &[Box<str>]) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, BackplaneError>> {
        Box::pin(ready(Ok(vec![None; nodes.len()])))
    }

    fn control(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        self.controls.lock().unwrap().push(control);
        Box::pin(ready(Ok(())))
    }

    fn health(&self) -> Result<(), BackplaneError> {
        Ok(())
    }
}
