//! Publications that an application leaves in its own stores, so that they are written in its own transactions: entries of a
//! Redis stream, rows of a table of PostgreSQL.
//!
//! The way of an entry: a [`Source`] reads a batch, oldest first; `batch` publishes it, in order within a channel and many
//! channels at a time; the source forgets what was accepted, sets aside what never can be, and keeps the rest for the next
//! round. Each is published at least once, with an idempotency key of its own, and so delivered once.
//!
//! One node of the deployment reads a source at a time, because two readers would publish one channel's entries in no order. The
//! turn is a lease in the store itself. Two nodes that both believe to have it break nothing: each begins with the oldest entry
//! that is not done, and a key counts once.
//!
//! - `settings`: the sections of the configuration. `batch`: what is published and what becomes of it, without I/O.
//! - `append`: entries for the application, events of hooks, into a stream. `stream`, `outbox`: the sources. `run`: reads them until the node drains. `counts`: what they count.

mod append;
mod batch;
mod counts;
mod outbox;
mod run;
mod settings;
mod stream;

use std::{fmt, future::Future, pin::Pin};

pub use append::{AppendError, Appender, Fields};
pub use counts::{Counts, CountsOf};
pub use run::Consumers;
pub use settings::{Address, ConsumersConfig, OutboxEntry, StreamEntry};

/// A future of a trait's method.
pub type Boxed<'f, T> = Pin<Box<dyn Future<Output = T> + Send + 'f>>;

/// What an entry asks to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    pub channel: Box<str>,
    pub event: Option<Box<str>>,
    pub data: Data,
    /// Of its channel: a second publication with it is none.
    pub key: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Text(String),
    Binary(Vec<u8>),
}

/// What became of a publication that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its key was seen before, and nothing was published.
    pub duplicate: bool,
}

/// Why a publication was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unpublished {
    /// It never can be: it is set aside.
    Never(String),
    /// It may be accepted later; those after it in its channel wait.
    Later(String),
}

/// Where publications go.
pub trait Publish: Send + Sync + fmt::Debug {
    fn publish(&self, publication: Publication) -> Boxed<'_, Result<Published, Unpublished>>;
}

/// Where publications come from. One that has failed is connected anew.
trait Source: Send {
    /// Reads a batch, if it is this node's turn, publishes it, and forgets what is done. Waits a moment where nothing is there.
    fn round<'s>(&'s mut self, publish: &'s dyn Publish) -> Boxed<'s, Result<Round, SourceError>>;

    /// Lets another node have the turn.
    fn release(&mut self) -> Boxed<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What a round found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Round {
    /// Another node has the turn.
    Waiting,
    /// Nothing was there.
    Empty,
    /// All that was read is done.
    Worked,
    /// Some of it has to be published later, for this reason.
    Later(String),
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("{0}")]
    Redis(#[from] redis::RedisError),
    /// Its own text says 'db error' and nothing else.
    #[error("{}", told(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Settings(String),
    #[error("its answer is not that of a stream: {0}")]
    Answer(&'static str),
}

fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(server) => match server.detail().or(server.hint()) {
            Some(more) => format!("{}: {more}", server.message()),
            None => server.message().to_owned(),
        },
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
