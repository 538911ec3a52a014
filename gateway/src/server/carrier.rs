//! What carries publications, made from the configuration: the memory of this process, or Redis.

use std::{fmt, sync::Arc, time::Instant};

use tidegate_backplane::{
    Backplane, Epoch, MemoryBackplane, MemoryOptions, RedisBackplane, RedisOptions, Sink,
};
use tokio::runtime::Handle;

use crate::{
    config::Config,
    metrics::{Collector, MemoryCollector, RedisCollector},
    server::{StartError, readers::Readers},
    session::core::ShardMailbox,
};

/// A backplane, and what its kind needs beside the contract.
#[derive(Clone)]
pub(crate) struct Carrier {
    pub(crate) backplane: Arc<dyn Backplane>,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Memory(Arc<MemoryBackplane>),
    Redis(Arc<RedisBackplane>),
}

impl Carrier {
    /// One that is connected to nothing yet. What arrives is read by `shards`.
    pub(crate) fn new(
        config: &Config,
        life: Epoch,
        sink: Arc<dyn Sink>,
        shards: Box<[ShardMailbox]>,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let Some(options) = config.redis_options()? else {
            let memory = Arc::new(MemoryBackplane::new(sink, MemoryOptions::default()));
            return Ok(Self::of_memory(Arc::clone(&memory) as Arc<dyn Backplane>, memory));
        };
        let options = RedisOptions { life: life.0, host: Some(Arc::new(Readers(shards))), ..options };
        let _here = runtime.enter();
        let redis = RedisBackplane::new(options, sink)?;
        Ok(Self { backplane: Arc::clone(&redis) as Arc<dyn Backplane>, kind: Kind::Redis(redis) })
    }

    /// A backplane that keeps what it has in the memory of this process.
    pub(crate) fn of_memory(backplane: Arc<dyn Backplane>, memory: Arc<MemoryBackplane>) -> Self {
        Self { backplane, kind: Kind::Memory(memory) }
    }

    /// Connects where there is something to connect to. Shards run.
    pub(super) async fn start(&self, sink: Arc<dyn Sink>) -> Result<(), StartError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => Ok(redis.start(sink).await?),
        }
    }

    /// To be called about once a second.
    pub(crate) fn sweep(&self) {
        match &self.kind {
            Kind::Memory(memory) => memory.sweep(Instant::now()),
            // It keeps its own time.
            Kind::Redis(_) => {}
        }
    }

    /// Its families.
    pub(crate) fn collector(&self) -> Arc<dyn Collector> {
        match &self.kind {
            Kind::Memory(memory) => Arc::new(MemoryCollector(Arc::clone(memory))),
            Kind::Redis(redis) => Arc::new(RedisCollector(Arc::clone(redis))),
        }
    }

    /// Ends its connections, when nothing is left to say.
    pub(crate) async fn close(&self) {
        match &self.kind {
            Kind::Memory(_) => {}
            Kind::Redis(redis) => redis.close().await,
        }
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Memory(_) => "Carrier(memory)",
            Kind::Redis(_) => "Carrier(redis)",
        })
    }
}
