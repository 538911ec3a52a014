//! The other way: entries that are appended to a stream of the application's, for it to read in its own time.

use std::time::Duration;

use redis::{Pipeline, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::{SourceError, settings::Address, stream};

/// A stream of which about the newest `length` entries are kept. Connects when there is something to append, and anew after
/// an append that failed.
#[derive(Debug)]
pub struct Appender {
    address: Address,
    stream: Box<str>,
    length: u64,
    timeout: Duration,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// An entry's fields, in their order.
pub type Fields<'f> = Vec<(&'static str, &'f [u8])>;

/// Why nothing was appended, or it is not known.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct AppendError(#[from] SourceError);

impl Appender {
    /// `timeout`: of each append.
    pub fn new(address: Address, stream: &str, length: u64, timeout: Duration) -> Self {
        Self { address, stream: stream.into(), length, timeout, connection: Mutex::default() }
    }

    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Appends all of them in one step, or none. After an error they may be there all the same: who repeats them, repeats them.
    pub async fn append(&self, entries: &[Fields<'_>]) -> Result<(), AppendError> {
        let mut pipeline = Pipeline::new();
        pipeline.atomic();
        for fields in entries {
            pipeline.cmd("XADD").arg(&*self.stream).arg("MAXLEN").arg("~").arg(self.length).arg("*");
            for (name, value) in fields {
                pipeline.arg(*name).arg(*value);
            }
            pipeline.ignore();
        }
        let mut connection = self.connect().await?;
        let appended: Result<(), _> = pipeline.query_async(&mut connection).await;
        if appended.is_err() {
            *self.connection.lock().await = None;
        }
        Ok(appended.map_err(SourceError::from)?)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, AppendError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok(connection.clone());
        }
        let connection = stream::connect(&self.address, self.timeout).await?;
        Ok(held.insert(connection).clone())
    }
}
