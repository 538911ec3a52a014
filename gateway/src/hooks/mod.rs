//! Applications that are asked over HTTP while a client waits: who is asked what, in which words, and for how long. What
//! they are told without anybody waiting is written here (`events`), and sent as apps' webhooks are (`app/webhooks`).
//!
//! The way of a question: a shard looks which [`Hook`] takes it ([`Hooks::of`]), and goes on with the answer when that is
//! there (`session/asking.rs`). The hook has a place free (`hook`) and its circuit closed (`breaker`), says the question in its
//! dialect (`cloud_events`, `centrifugo`), signs it (`signature`), and reads what comes back into a [`Reply`] or a [`No`]
//! (`question`). What is kept of a connection for later questions goes along to another process (`moving`).

mod breaker;
mod centrifugo;
pub(crate) mod client;
mod cloud_events;
mod collector;
pub(crate) mod events;
mod hook;
mod metrics;
mod moving;
mod question;
pub(crate) mod signature;
mod subscription;
pub mod trial;

use std::sync::Arc;

use tokio::runtime::Handle;

pub(crate) use self::{
    collector::HookCollector,
    hook::{Hook, Source},
    question::{Caller, HandedOn, Known, No, Question, Reply},
    subscription::{Overrides, RawSubscription, ServerSubscription, info},
};
use crate::config::{Config, ConfigError, HeaderSetting, HookDialect, HookQuestion};

/// All hooks of the configuration.
#[derive(Debug)]
pub(crate) struct Hooks {
    all: Vec<Arc<Hook>>,
    source: Arc<Source>,
    runtime: Handle,
}

impl Hooks {
    /// Questions are asked on this runtime.
    pub(crate) fn new(config: &Config, runtime: Handle) -> Result<Self, ConfigError> {
        let hooks = config.hooks.0.iter().map(|(name, entry)| Hook::new(name, entry).transpose());
        let all = hooks.flatten().map(|hook| hook.map(Arc::new)).collect::<Result<_, _>>()?;
        let source = Source { node: format!("/nodes/{}", config.node), ..Source::default() };
        Ok(Self { all, source: Arc::new(source), runtime })
    }

    /// Whom to ask this; of a channel, where the question is about one.
    pub(crate) fn of(&self, kind: HookQuestion, channel: Option<&str>) -> Option<&Arc<Hook>> {
        self.all.iter().find(|hook| hook.takes(kind, channel))
    }

    /// Asks, and calls `then` with the answer, on whichever thread.
    pub(crate) fn ask(
        &self,
        hook: &Arc<Hook>,
        question: Question,
        then: impl FnOnce(Result<Reply, No>) + Send + 'static,
    ) {
        let (hook, source) = (Arc::clone(hook), Arc::clone(&self.source));
        self.runtime.spawn(async move { then(hook.ask(&question, &source).await) });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether what a request said is handed on with later questions, too.
    pub(crate) fn keeps_requests(&self) -> bool {
        self.all.iter().any(|hook| hook.entry.dialect == HookDialect::Centrifugo)
    }

    pub(crate) fn headers(&self) -> impl Iterator<Item = &HeaderSetting> {
        self.all.iter().flat_map(|hook| &hook.entry.headers)
    }

    /// Those that clients may say in place of sending them.
    pub(crate) fn emulated_headers(&self) -> impl Iterator<Item = &HeaderSetting> {
        self.all.iter().flat_map(|hook| &hook.entry.emulated_headers)
    }

    pub(crate) fn cookies(&self) -> impl Iterator<Item = &str> {
        self.all.iter().flat_map(|hook| &hook.entry.cookies).map(|name| &**name)
    }

    pub(crate) fn query(&self) -> impl Iterator<Item = &str> {
        self.all.iter().flat_map(|hook| &hook.entry.query).map(|name| &**name)
    }

    /// How much of the places of the busiest one is taken.
    pub(crate) fn fullness(&self) -> f64 {
        self.all.iter().map(|hook| hook.fullness()).fold(0.0, f64::max)
    }

    /// What names this node in requests.
    pub(crate) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// For `/metrics`.
    pub(crate) fn collector(&self) -> Arc<HookCollector> {
        Arc::new(HookCollector(self.all.clone()))
    }
}
