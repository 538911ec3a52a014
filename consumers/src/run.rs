//! Reads sources until the node drains: connects, goes round, and connects anew with growing waits when a store is away.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Boxed, Counts, CountsOf, OutboxEntry, Publish, Round, Source, SourceError, StreamEntry, outbox::Outbox,
    stream::Stream,
};

/// The consumers of a node.
#[derive(Debug)]
pub struct Consumers {
    runtime: Handle,
    all: Vec<Arc<Consumer>>,
    reading: Mutex<Reading>,
}

struct Consumer {
    counts: Arc<CountsOf>,
    connect: Connect,
    publisher: Arc<dyn Publish>,
}

/// What is under way.
#[derive(Debug, Default)]
struct Reading {
    tasks: TaskTracker,
    stop: CancellationToken,
    /// They are not begun any more.
    is_over: bool,
}

/// The wait after a failure; it doubles up to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A store that answers nothing for so long is away.
const ROUND_MAX: Duration = Duration::from_secs(60);

/// How long the round that is under way may last when the node drains, or is upgraded. What it does not finish is repeated by who
/// has the next turn.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Makes a connection to a store.
type Connect =
    Box<dyn Fn(Arc<CountsOf>) -> Boxed<'static, Result<Box<dyn Source>, SourceError>> + Send + Sync>;

impl Consumers {
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, all: Vec::new(), reading: Mutex::default() }
    }

    /// One that reads a stream. `reader` names this node and its life.
    pub fn stream(&mut self, entry: StreamEntry, reader: &str, publisher: Arc<dyn Publish>) {
        let reader: Arc<str> = reader.into();
        let name = entry.name.clone();
        let connect = move |counts| -> Boxed<'static, Result<Box<dyn Source>, SourceError>> {
            let (entry, reader) = (entry.clone(), Arc::clone(&reader));
            Box::pin(
                async move { Ok(Box::new(Stream::connect(entry, reader, counts).await?) as Box<dyn Source>) },
            )
        };
        self.add(&name, Box::new(connect), publisher);
    }

    /// One that reads a table.
    pub fn outbox(&mut self, entry: OutboxEntry, publisher: Arc<dyn Publish>) {
        let name = entry.name.clone();
        let connect = move |counts| -> Boxed<'static, Result<Box<dyn Source>, SourceError>> {
            let entry = entry.clone();
            Box::pin(async move { Ok(Box::new(Outbox::connect(entry, counts).await?) as Box<dyn Source>) })
        };
        self.add(&name, Box::new(connect), publisher);
    }

    /// What they count.
    pub fn counts(&self) -> Counts {
        Counts(self.all.iter().map(|consumer| Arc::clone(&consumer.counts)).collect())
    }

    /// They read from now on; also after a pause, but not after the end.
    pub fn begin(&self) {
        let mut reading = self.reading();
        if reading.is_over {
            return;
        }
        *reading = Reading::default();
        for consumer in &self.all {
            let stop = reading.stop.clone();
            reading.tasks.spawn_on(run(Arc::clone(consumer), stop), &self.runtime);
        }
    }

    /// Ends them: another node, or another process of this one, has the turn as soon as this one has let go of it.
    pub async fn stop(&self) {
        self.reading().is_over = true;
        self.pause().await;
    }

    /// The same, until they [`begin`](Self::begin) again.
    pub async fn pause(&self) {
        let tasks = {
            let reading = self.reading();
            reading.stop.cancel();
            reading.tasks.close();
            reading.tasks.clone()
        };
        if timeout(STOP_PATIENCE, tasks.wait()).await.is_err() {
            tracing::warn!("a consumer was cut in the middle of a batch; who has the next turn repeats it");
        }
    }

    fn add(&mut self, name: &str, connect: Connect, publisher: Arc<dyn Publish>) {
        self.all.push(Arc::new(Consumer { counts: CountsOf::new(name), connect, publisher }));
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("name", &self.counts.name).finish_non_exhaustive()
    }
}

async fn run(consumer: Arc<Consumer>, stop: CancellationToken) {
    let Consumer { counts, connect, publisher } = &*consumer;
    let name = &*counts.name;
    let (mut wait, longest) = WAITS;
    let mut told = false;
    while !stop.is_cancelled() {
        let read = async {
            let mut source = connect(Arc::clone(counts)).await?;
            counts.connected.set(1);
            if std::mem::take(&mut told) {
                tracing::info!(consumer = name, "its store is read again");
            }
            read(&mut *source, counts, &**publisher, &stop).await?;
            source.release().await;
            Ok::<_, SourceError>(())
        };
        let end = tokio::select! {
            end = read => end,
            () = cut(&stop) => Ok(()),
        };
        counts.connected.set(0);
        counts.active.set(0);
        let Err(error) = end else { return };
        counts.failures.add(1);
        // A store that is away is away for many rounds: said once.
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(consumer = name, %error, "its store cannot be read; trying again until it can");
            wait = WAITS.0;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
        wait = (wait * 2).min(longest);
    }
}

/// A while after the order to stop.
async fn cut(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_PATIENCE).await;
}

/// Goes round until the store fails, or the node drains.
async fn read(
    source: &mut dyn Source,
    counts: &CountsOf,
    publisher: &dyn Publish,
    stop: &CancellationToken,
) -> Result<(), SourceError> {
    let name = &*counts.name;
    let (mut wait, longest) = WAITS;
    let mut told = false;
    while !stop.is_cancelled() {
        let round = timeout(ROUND_MAX, source.round(publisher)).await;
        let round = round.map_err(|_| SourceError::Settings("it has not answered for 60 s".to_owned()))??;
        counts.active.set(i64::from(round != Round::Waiting));
        let Round::Later(why) = round else {
            if round == Round::Worked && std::mem::take(&mut told) {
                tracing::info!(consumer = name, "its entries are published again");
            }
            wait = WAITS.0;
            continue;
        };
        counts.retries.add(1);
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(consumer = name, %why, "entries have to be published later");
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
        wait = (wait * 2).min(longest);
    }
    Ok(())
}
