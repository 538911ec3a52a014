//! The node registry, read by a process that is no node: a router. It writes nothing there.

use std::{fmt, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt};
use redis::{FromRedisValue, Value};

use super::{
    contract::{Changed, Commands, LinkId, Session, Subscriber},
    control,
    error::RedisStartError,
    leases::not_ours,
    links::{LinkOptions, Links, Login},
    names::{NODES, Prefix},
    nodes,
    options::RedisOptions,
};
use crate::{BackplaneError, Control, NodeRecord, ReadNodes};

/// Reads who has announced itself.
pub struct RedisNodes {
    links: Links,
    prefix: Prefix,
    runtime: tokio::runtime::Handle,
}

impl RedisNodes {
    /// Connects, as a node does; of the options, only what leads to the servers counts.
    ///
    /// # Errors
    /// What trying again cannot help: one sentence that says what to do.
    pub async fn connect(options: RedisOptions) -> Result<Arc<Self>, RedisStartError> {
        let RedisOptions { url, files, sentinel, prefix, node, .. } = options;
        let prefix = prefix.in_database(url.db);
        let login = Login { credentials: url.credentials.clone(), is_tls: url.tls, files, sentinel };
        let life = super::scripts::random().unwrap_or_default();
        let links = Links::new(LinkOptions {
            url,
            login,
            prefix: prefix.as_str().into(),
            instance: format!("{node}.{life:016x}").into(),
            node,
            replicas: 0,
            scripts: Vec::new(),
            host: None,
        })?;
        links.start(Arc::new(Unsubscribed)).await?;
        Ok(Arc::new(Self { links, prefix, runtime: tokio::runtime::Handle::current() }))
    }

    /// The records of nodes whose leases hold, by the server's clock. While nodes were away with their server, they count
    /// until it says otherwise.
    async fn read(&self) -> Result<Vec<NodeRecord>, BackplaneError> {
        let mut doubt = redis::cmd("HGET");
        doubt.arg(self.prefix.instances()).arg("?");
        let mut all = redis::cmd("HGETALL");
        all.arg(self.prefix.nodes());
        let commands = vec![redis::cmd("TIME"), doubt, all];
        let mut answers = self.links.call_all(NODES, commands).await.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(not_ours()));
        let now_ms = milliseconds(next()?)?;
        let doubt_ms = u64::from_redis_value(next()?).unwrap_or_default();
        let held: Vec<(Vec<u8>, Vec<u8>)> =
            FromRedisValue::from_redis_value(next()?).map_err(|_| not_ours())?;
        let counts = |end_ms: u64| end_ms.max(doubt_ms) > now_ms;
        let mut records: Vec<_> =
            held.into_iter().filter_map(|(name, held)| nodes::read(name, &held, counts)).collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }
}

impl ReadNodes for RedisNodes {
    fn order(&self, control: Control) -> BoxFuture<'_, Result<(), BackplaneError>> {
        async move { control::send(&self.links, &self.prefix, &control).await }.boxed()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<NodeRecord>, BackplaneError>> {
        self.read().boxed()
    }
}

impl Drop for RedisNodes {
    fn drop(&mut self) {
        let links = self.links.clone();
        self.runtime.spawn(async move { links.stop().await });
    }
}

impl fmt::Debug for RedisNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisNodes").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Seconds and microseconds.
fn milliseconds(time: Value) -> Result<u64, BackplaneError> {
    let (seconds, microseconds): (u64, u64) =
        FromRedisValue::from_redis_value(time).map_err(|_| not_ours())?;
    Ok(seconds * 1000 + microseconds / 1000)
}

/// Nothing is subscribed, so nothing is told.
struct Unsubscribed;

impl Subscriber for Unsubscribed {
    fn up(&self, _: LinkId, _: Session) {}
    fn down(&self, _: LinkId, _: Session) {}
    fn routes_changed(&self, _: &Changed) {}
    fn confirmed(&self, _: LinkId, _: Session, _: &[u8]) {}
    fn ended(&self, _: LinkId, _: Session, _: &[u8]) {}
    fn message(&self, _: LinkId, _: Session, _: &[u8], _: &[u8]) {}
}
