//! The memory backplane runs the conformance suite, at the pace of a manual clock.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, ready};
use tidegate_backplane::{
    Backplane, Clock, ManualClock, MemoryBackplane, MemoryOptions, PRESENCE_SETTLE, Sink,
    conformance::{self, Subject},
};

const NODE_LEASE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Memory {
    clock: Arc<ManualClock>,
    nodes: Mutex<Vec<Weak<MemoryBackplane>>>,
}

impl Memory {
    fn options(&self) -> MemoryOptions {
        MemoryOptions { clock: self.clock.clone(), node_lease: Some(NODE_LEASE), ..MemoryOptions::default() }
    }
}

impl Subject for Memory {
    fn node(&self, sink: Arc<dyn Sink>) -> BoxFuture<'_, Arc<dyn Backplane>> {
        let backplane = Arc::new(MemoryBackplane::new(sink, self.options()));
        self.nodes.lock().expect("no panic").push(Arc::downgrade(&backplane));
        ready(backplane as Arc<dyn Backplane>).boxed()
    }

    fn shares_nodes(&self) -> bool {
        false
    }

    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        self.clock.advance(time);
        for node in self.nodes.lock().expect("no panic").iter().filter_map(Weak::upgrade) {
            node.sweep(self.clock.now());
        }
        ready(()).boxed()
    }

    fn is_real_time(&self) -> bool {
        false
    }

    fn idempotency_window(&self) -> Duration {
        self.options().idempotency_window
    }

    fn node_lease(&self) -> Option<Duration> {
        Some(NODE_LEASE)
    }

    fn presence_settle(&self) -> Duration {
        PRESENCE_SETTLE
    }

    fn lose_all(&self) -> BoxFuture<'_, bool> {
        ready(false).boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_conforms() {
    conformance::run(&Memory::default()).await;
}
