//! Publishers that number what they publish and repeat, under the same key, what was not accepted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_testkit::{eventually, observe};

use crate::http::Http;

/// Each has its own share of the channels, so that the numbers of a channel are published in order.
const PUBLISHERS: usize = 10;

/// A publication that nobody accepts for so long ends the test.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(60);

/// Between two tries of the same publication.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What is published: `per_channel` numbers to each channel, and the pace.
#[derive(Debug)]
pub(crate) struct Publishers<'a> {
    pub(crate) gateways: &'a [SocketAddr],
    pub(crate) channels: &'a [String],
    pub(crate) per_channel: u32,
    /// One publication to each channel takes at least this long, so that faults come in the midst.
    pub(crate) round: Duration,
}

/// How far they are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    accepted: AtomicUsize,
    repeated: AtomicUsize,
    total: usize,
    /// Nothing happens any more: the last publication of each channel may go out.
    is_calm: AtomicBool,
}

impl Publishers<'_> {
    /// Publishes everything while `meanwhile` runs; the last publication of each channel, by which clients know that
    /// they are through, after it.
    pub(crate) fn run(&self, meanwhile: impl FnOnce(&Progress)) -> Progress {
        let progress =
            Progress { total: self.channels.len() * self.per_channel as usize, ..Progress::default() };
        thread::scope(|scope| {
            let shares = self.channels.chunks(self.channels.len().div_ceil(PUBLISHERS));
            for (index, share) in shares.enumerate() {
                let progress = &progress;
                scope.spawn(move || self.publish_all(index, share, progress));
            }
            meanwhile(&progress);
            progress.is_calm.store(true, Ordering::Relaxed);
        });
        progress
    }

    fn publish_all(&self, index: usize, channels: &[String], progress: &Progress) {
        let mut publisher = Publisher { gateways: self.gateways, gateway: index, http: None };
        for number in 0..self.per_channel {
            if number + 1 == self.per_channel {
                eventually("the faults are over", ACCEPT_DEADLINE * 2, || {
                    progress.is_calm.load(Ordering::Relaxed)
                });
            }
            let round_start = Instant::now();
            for channel in channels {
                publisher.publish(channel, number, progress);
            }
            if let Some(rest) = self.round.checked_sub(round_start.elapsed()) {
                observe(rest);
            }
        }
    }
}

impl Progress {
    /// Waits until this share of all publications was accepted.
    #[track_caller]
    pub(crate) fn eventually(&self, percent: usize) {
        let what = format!("{percent} % of {} publications are accepted", self.total);
        eventually(&what, ACCEPT_DEADLINE * 2, || {
            self.accepted.load(Ordering::Relaxed) * 100 >= self.total * percent
        });
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Tries that were answered 503 or not at all.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }
}

/// One thread's connection.
struct Publisher<'a> {
    gateways: &'a [SocketAddr],
    gateway: usize,
    http: Option<Http>,
}

impl Publisher<'_> {
    fn publish(&mut self, channel: &str, number: u32, progress: &Progress) {
        let (key, payload) = (format!("n{number}"), number.to_string());
        let give_up = Instant::now() + ACCEPT_DEADLINE;
        while !self.try_publish(channel, &key, &payload) {
            assert!(Instant::now() < give_up, "{channel} {number} is not accepted");
            progress.repeated.fetch_add(1, Ordering::Relaxed);
            observe(RETRY_DELAY);
        }
        progress.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn try_publish(&mut self, channel: &str, key: &str, payload: &str) -> bool {
        let http = match self.http.take() {
            Some(http) => Ok(http),
            None => {
                self.gateway += 1;
                let address =
                    self.gateways.get(self.gateway % self.gateways.len()).expect("there are gateways");
                Http::connect(*address)
            }
        };
        let answer = http.and_then(|mut http| Ok((http.publish(channel, key, payload)?, http)));
        match answer {
            Ok((200, http)) => {
                self.http = Some(http);
                true
            }
            // The next try asks another gateway. 502 and 504 are what a router says of one that went away meanwhile.
            Ok((502..=504, _)) | Err(_) => false,
            Ok((status, _)) => panic!("publish to {channel}: {status}"),
        }
    }
}
