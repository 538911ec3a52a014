//! The client threads of a storm: each drives a part of the connections until told to finish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Fleet, FleetConfig, Role};
use crate::driver::Driver;
use crate::stats::FleetStats;
use crate::sys::thread_cpu_ns;
use crate::target::Target;

use super::{StormError, StormOptions};

/// Longest turn of the loop, so that commands and progress are looked at.
const TURN: Duration = Duration::from_millis(20);

/// Time for close frames to be answered.
const CLOSE_WAIT: Duration = Duration::from_millis(300);

/// A thread with a part of the connections.
#[derive(Debug)]
pub(super) struct ClientThread {
    pub(super) progress: Arc<Progress>,
    finish: Sender<Arc<Acknowledged>>,
    handle: JoinHandle<std::io::Result<FleetStats>>,
}

/// What a thread tells while it runs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) opened: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) settled: AtomicBool,
    /// Open now, and opened again so far.
    pub(super) open: AtomicU64,
    pub(super) returned: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) cpu_ns: AtomicU64,
}

/// The last sequence numbers acknowledged, to find what never arrived.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    pub(super) streams: u16,
    pub(super) channels: u32,
    pub(super) sequences: Vec<u32>,
}

impl ClientThread {
    /// The thread ended by itself, with an error to give.
    pub(super) fn is_over(&self) -> bool {
        self.handle.is_finished()
    }

    pub(super) fn finish(self, acknowledged: &Arc<Acknowledged>) -> Result<FleetStats, StormError> {
        // A thread that is gone has an error to give, which `join` returns.
        if self.finish.send(Arc::clone(acknowledged)).is_err() && !self.handle.is_finished() {
            return Err(StormError::Panicked);
        }
        Ok(self.handle.join().map_err(|_| StormError::Panicked)??)
    }
}

pub(super) fn start_threads(
    options: &StormOptions,
    target: &Target,
    channels: &Arc<[String]>,
    run: u16,
) -> Result<Vec<ClientThread>, StormError> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let threads = options.threads.unwrap_or_else(|| cores.min(options.connections.div_ceil(5_000))).max(1);
    (0..threads)
        .map(|thread| {
            let count = channels.len() as u32;
            let config = FleetConfig {
                target: target.clone(),
                role: if options.sse { Role::SubscribeSse } else { Role::Subscribe },
                // Thread t owns connections t, t + threads, …
                connections: (options.connections + threads - 1 - thread) / threads,
                channels: Arc::clone(channels),
                channel_of: Arc::new(move |index| (index * threads + thread) % count),
                handshakes_in_flight: options.handshakes_in_flight.div_ceil(threads).max(1),
                connects_per_second: options.connects_per_second.map(|rate| rate.div_ceil(threads).max(1)),
                sources: options.sources,
                run,
                reset_on_close: false,
                token: options.token.as_deref().map(Arc::from),
                comes_back: true,
            };
            start_thread(thread, config)
        })
        .collect()
}

fn start_thread(index: u32, config: FleetConfig) -> Result<ClientThread, StormError> {
    let progress = Arc::new(Progress::default());
    let told = Arc::clone(&progress);
    let (finish, finished) = mpsc::channel();
    let handle = std::thread::Builder::new()
        .name(format!("storm-{index}"))
        .spawn(move || drive(Fleet::new(0, config), &told, &finished))?;
    Ok(ClientThread { progress, finish, handle })
}

/// The life of a client thread: connect and count until told to finish.
fn drive(
    mut fleet: Fleet,
    progress: &Progress,
    finished: &Receiver<Arc<Acknowledged>>,
) -> std::io::Result<FleetStats> {
    let mut driver = Driver::new()?;
    let acknowledged = loop {
        driver.turn(&mut [&mut fleet], TURN)?;
        let stats = fleet.stats();
        progress.opened.store(stats.opened, Ordering::Relaxed);
        progress.open.store(u64::from(fleet.open()), Ordering::Relaxed);
        progress.returned.store(stats.returned, Ordering::Relaxed);
        progress.failed.store(stats.failed(), Ordering::Relaxed);
        progress.messages.store(stats.messages, Ordering::Relaxed);
        progress.settled.store(fleet.settled(), Ordering::Release);
        progress.cpu_ns.store(thread_cpu_ns(), Ordering::Relaxed);
        match finished.try_recv() {
            Ok(acknowledged) => break acknowledged,
            Err(TryRecvError::Empty) => {}
            // The main thread gave up; nobody wants the outcome.
            Err(TryRecvError::Disconnected) => break Arc::default(),
        }
    };
    let Acknowledged { streams, channels, sequences } = &*acknowledged;
    let missing = fleet.missing_tail(*streams, |stream, channel| {
        let index = u32::from(stream) * channels + channel;
        sequences.get(index as usize).copied().unwrap_or(0)
    });
    let mut stats = fleet.stats().clone();
    stats.order.lost += missing;
    fleet.close_all();
    let until = Instant::now() + CLOSE_WAIT;
    while Instant::now() < until {
        driver.turn(&mut [&mut fleet], TURN)?;
    }
    Ok(stats)
}
