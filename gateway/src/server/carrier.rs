//! What carries publications, made from the configuration: the memory of this process, or Redis.

use std::{fmt, sync::Arc, time::Instant};

use tidegate_backplane::{Backplane, MemoryBackplane, MemoryOptions, RedisBackplane, Sink};
use tokio::runtime::Handle;

use crate::{
    config::Config,
    metrics::{Collector, MemoryCollector, RedisCollector},
    server::StartError,
};

/// A backplane, and what its kind needs beside the contract.
#[derive(Clone)]
pub(crate) struct Carrier {
    pub(crate) backplane: Arc<dyn Backplane>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Memory(Arc<MemoryBackplane>),
    Redis(Arc<RedisBackplane>),
}

impl Carrier {
    /// Connects where there is something to connect to.
    pub(crate) fn new(config: &Config, sink: Arc<dyn Sink>, runtime: &Handle) -> Result<Self, StartError> {
        let Some(options) = config.redis_options()? else {
            let memory = Arc::new(MemoryBackplane::new(sink, MemoryOptions::default()));
            return Ok(Self::of_memory(Arc::clone(&memory) as Arc<dyn Backplane>, memory));
        };
        let redis = runtime.block_on(RedisBackplane::connect(options, sink))?;
        Ok(Self { backplane: Arc::clone(&redis) as Arc<dyn Backplane>, kind: Kind::Redis(redis) })
    }

    /// A backplane that keeps what it has in the memory of this process.
    pub(crate) fn of_memory(backplane: Arc<dyn Backplane>, memory: Arc<MemoryBackplane>) -> Self {
        Self { backplane, kind: Kind::Memory(memory) }
    }

    /// The memory of this process, where that is what carries publications.
    pub(crate) fn memory(&self) -> Option<&Arc<MemoryBackplane>> {
        match &self.kind {
            Kind::Memory(memory) => Some(memory),
            Kind::Redis(_) => None,
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
