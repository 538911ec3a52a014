//! A JSON Web Key Set that is read again: from an address or a file, one read at a time, never more often than
//! its least interval, and never worse than before when a read fails.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    Algorithm,
    keys::{Key, from_jwks},
};
use crate::config::KeyProblem;

/// Where a set comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Url { url: reqwest::Url, client: reqwest::Client },
    File(PathBuf),
}

/// How often a set is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) refresh: Duration,
    pub(super) min_refetch: Duration,
}

#[derive(Debug)]
pub(super) struct KeySet {
    algorithm: Algorithm,
    source: Source,
    pace: Pace,
    current: ArcSwap<Snapshot>,
    /// Whether a read is under way. Held for a few instructions, by Tokio threads only.
    in_flight: Mutex<bool>,
    /// The number of reads that ended, for those who wait.
    ended: watch::Sender<u64>,
}

/// What reactor threads look at: replaced as a whole, after every read.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) keys: Arc<[Key]>,
    /// Reads that ended, well or not.
    reads: u64,
    /// When the last of them ended.
    read_at: Option<SystemTime>,
}

/// Why a set could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("it answered {0}")]
    Status(reqwest::StatusCode),
    #[error("it is larger than {KEY_SET_BYTES_MAX} bytes")]
    TooLarge,
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Keys(#[from] KeyProblem),
    #[error("the read was interrupted")]
    Interrupted,
}

/// For a whole request with its answer. An issuer that takes longer is as good as away.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// A key with its certificates has some 5 KiB; 200 of them fit.
const KEY_SET_BYTES_MAX: usize = 1 << 20;

impl KeySet {
    pub(super) fn new(algorithm: Algorithm, source: Source, pace: Pace, keys: Arc<[Key]>) -> Self {
        let snapshot = Snapshot { keys, reads: 0, read_at: None };
        Self {
            algorithm,
            source,
            pace,
            current: ArcSwap::from_pointee(snapshot),
            in_flight: Mutex::new(false),
            ended: watch::Sender::new(0),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its keys, if they are of this algorithm and come from this address.
    pub(super) fn keys_from(&self, algorithm: Algorithm, address: &reqwest::Url) -> Option<Arc<[Key]>> {
        match &self.source {
            Source::Url { url, .. } if url == address && algorithm == self.algorithm => {
                Some(Arc::clone(&self.current.load().keys))
            }
            _ => None,
        }
    }

    pub(super) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The read after which to look again, if one is allowed now. While one is under way it is always that one.
    pub(super) fn next_read(&self, now: SystemTime) -> Option<u64> {
        let snapshot = self.current.load();
        let rested = snapshot.read_at.is_none_or(|at| apart(at, now) >= self.pace.min_refetch);
        rested.then_some(snapshot.reads + 1)
    }

    /// Waits for the end of read number `read`, and begins it if nobody did. Dropping the future does not stop
    /// the read: clients that go away early must not be able to restart it over and over.
    pub(super) async fn read(self: Arc<Self>, read: u64, tasks: &TaskTracker) {
        let mut ended = self.ended.subscribe();
        self.begin(read, tasks);
        // An error means that the sender is gone, which `self` owns.
        if ended.wait_for(|&reads| reads >= read).await.is_err() {
            tracing::debug!("a key set was dropped during a read");
        }
    }

    /// Reads again and again, forever.
    pub(super) async fn keep_fresh(self: Arc<Self>, tasks: &TaskTracker) {
        let mut failures = 0u32;
        loop {
            let before = self.current.load().keys.clone();
            let next = self.current.load().reads + 1;
            Arc::clone(&self).read(next, tasks).await;
            let renewed = !Arc::ptr_eq(&before, &self.current.load().keys);
            failures = if renewed { 0 } else { failures.saturating_add(1) };
            tokio::time::sleep(self.pace.until_next(failures)).await;
        }
    }

    fn begin(self: &Arc<Self>, read: u64, tasks: &TaskTracker) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if *in_flight || self.current.load().reads >= read {
            return;
        }
        *in_flight = true;
        drop(in_flight);
        let flight = Flight { set: Arc::clone(self), result: Err(ReadError::Interrupted) };
        tasks.spawn(flight.fly());
    }

    async fn fetch(&self) -> Result<Vec<Key>, ReadError> {
        let json = match &self.source {
            Source::Url { url, client } => download(client, url).await?,
            Source::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
                read.map_err(|_| ReadError::Interrupted)??
            }
        };
        Ok(from_jwks(self.algorithm, &json)?)
    }

    fn end(&self, result: Result<Vec<Key>, ReadError>) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current.load();
        let keys = match result {
            Ok(keys) => keys.into(),
            Err(error) => {
                tracing::warn!(source = %self.source, %error, "a key set could not be read; its old keys stay");
                Arc::clone(&old.keys)
            }
        };
        let reads = old.reads + 1;
        self.current.store(Arc::new(Snapshot { keys, reads, read_at: Some(SystemTime::now()) }));
        *in_flight = false;
        drop(in_flight);
        self.ended.send_replace(reads);
    }
}

/// A read under way. However it ends, also when its task is dropped, those who wait are told.
struct Flight {
    set: Arc<KeySet>,
    result: Result<Vec<Key>, ReadError>,
}

impl Flight {
    async fn fly(mut self) {
        self.result = self.set.fetch().await;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.set.end(std::mem::replace(&mut self.result, Err(ReadError::Interrupted)));
    }
}

impl Pace {
    /// After a failure it is tried again soon, then less and less soon. A tenth at random keeps the nodes of a
    /// cluster from asking in the same instant.
    fn until_next(self, failures: u32) -> Duration {
        let regular = match failures {
            0 => self.refresh,
            failures => self.min_refetch.saturating_mul(1 << failures.min(16)).min(self.refresh),
        };
        let tenths = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX) / 10.0;
        regular.mul_f64(1.0 - tenths)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // Not the whole address: it may have credentials.
            Self::Url { url, .. } => write!(f, "{}{}", url.host_str().unwrap_or_default(), url.path()),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A clock that was set back counts as time that passed: waiting for it to catch up could take years.
fn apart(a: SystemTime, b: SystemTime) -> Duration {
    b.duration_since(a).unwrap_or_else(|error| error.duration())
}

/// The declared length is not believed; what arrives is counted.
async fn download(client: &reqwest::Client, url: &reqwest::Url) -> Result<Vec<u8>, ReadError> {
    let mut response = client.get(url.clone()).send().await.map_err(reqwest::Error::without_url)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(ReadError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + chunk.len() > KEY_SET_BYTES_MAX {
            return Err(ReadError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
