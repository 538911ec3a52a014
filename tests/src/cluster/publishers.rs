//! Publishers that number what they publish. What was not accepted they repeat under the same key, or let go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde_json::{Value, json};
use tidegate_testkit::{eventually, observe};

use crate::cluster::http::Http;

/// Each has its own share of the channels, so that the numbers of a channel are published in order.
const PUBLISHERS: usize = 10;

/// A publication that nobody accepts for so long ends the test.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(60);

/// Between two tries of the same publications.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What nobody accepted, by channel: it may have been published or not.
pub type Excused = BTreeMap<String, BTreeSet<u32>>;

/// How publications are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    pub name: &'static str,
    /// So many of a channel are under way at once.
    pub flight: u32,
    /// Repeated under their keys until they are accepted; else each is tried once.
    pub keyed: bool,
}

impl Manner {
    pub const PLAIN: Self = Self { name: "plain", flight: 1, keyed: false };
    pub const FLIGHT: Self = Self { name: "flight", flight: 16, keyed: false };
    pub const KEYED: Self = Self { name: "keyed", flight: 16, keyed: true };
    pub const KEYED_SINGLY: Self = Self { name: "keyed singly", flight: 1, keyed: true };
}

/// What is published: `per_channel` numbers to each channel, and the pace.
#[derive(Debug)]
pub struct Publishers<'a> {
    pub gateways: &'a [SocketAddr],
    pub channels: &'a [String],
    pub per_channel: u32,
    /// One publication to each channel takes at least this long, so that faults come in the midst.
    pub round: Duration,
    pub manner: Manner,
}

/// How far they are.
#[derive(Debug, Default)]
pub struct Progress {
    accepted: AtomicUsize,
    repeated: AtomicUsize,
    let_go: AtomicUsize,
    excused: Mutex<Excused>,
    total: usize,
    /// Nothing happens any more: the last publication of each channel may go out.
    is_calm: AtomicBool,
}

impl Publishers<'_> {
    /// Publishes everything while `meanwhile` runs; the last publication of each channel, by which clients know that
    /// they are through, after it.
    pub fn run(&self, meanwhile: impl FnOnce(&Progress)) -> Progress {
        let progress =
            Progress { total: self.channels.len() * self.per_channel as usize, ..Progress::default() };
        thread::scope(|scope| {
            let shares = self.channels.chunks(self.channels.len().div_ceil(PUBLISHERS));
            for (index, share) in shares.enumerate() {
                let progress = &progress;
                scope.spawn(move || self.publish_all(index, share, progress));
            }
            // Publishers wait for the calm, also when what was to happen panics.
            let _calm = Calm(&progress.is_calm);
            meanwhile(&progress);
        });
        progress
    }

    fn publish_all(&self, index: usize, channels: &[String], progress: &Progress) {
        let mut publisher = Publisher { gateways: self.gateways, gateway: index, http: None };
        let (last, Manner { flight, keyed, .. }) = (self.per_channel - 1, self.manner);
        for first in (0..last).step_by(flight as usize) {
            let round_start = Instant::now();
            let numbers: Vec<u32> = (first..last.min(first + flight)).collect();
            for channel in channels {
                if keyed {
                    publisher.publish(channel, &numbers, progress);
                } else {
                    publisher.publish_once(channel, &numbers, progress);
                }
            }
            if let Some(rest) = (self.round * flight).checked_sub(round_start.elapsed()) {
                observe(rest);
            }
        }
        eventually("the faults are over", ACCEPT_DEADLINE * 4, || progress.is_calm.load(Ordering::Relaxed));
        for channel in channels {
            publisher.publish(channel, &[last], progress);
        }
    }
}

struct Calm<'a>(&'a AtomicBool);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Progress {
    /// Waits until this share of all publications was accepted, or let go.
    #[track_caller]
    pub fn eventually(&self, percent: usize) {
        let what = format!("{percent} % of {} publications are through", self.total);
        eventually(&what, ACCEPT_DEADLINE * 2, || {
            (self.accepted() + self.let_go()) * 100 >= self.total * percent
        });
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Tries after the first, each of one publication or of a flight.
    pub fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Publications that were not accepted and not repeated.
    pub fn let_go(&self) -> usize {
        self.let_go.load(Ordering::Relaxed)
    }

    pub fn excused(&self) -> Excused {
        self.excused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One thread's connection.
struct Publisher<'a> {
    gateways: &'a [SocketAddr],
    gateway: usize,
    http: Option<Http>,
}

impl Publisher<'_> {
    /// Publishes some numbers of a channel until all are accepted.
    fn publish(&mut self, channel: &str, numbers: &[u32], progress: &Progress) {
        let give_up = Instant::now() + ACCEPT_DEADLINE;
        while self.try_publish(channel, numbers, true).len() < numbers.len() {
            assert!(Instant::now() < give_up, "{channel} {numbers:?} are not accepted");
            progress.repeated.fetch_add(1, Ordering::Relaxed);
            observe(RETRY_DELAY);
        }
        progress.accepted.fetch_add(numbers.len(), Ordering::Relaxed);
    }

    /// Publishes some numbers of a channel; what is not accepted is let go.
    fn publish_once(&mut self, channel: &str, numbers: &[u32], progress: &Progress) {
        let accepted = self.try_publish(channel, numbers, false);
        let lost: Vec<u32> = numbers.iter().copied().filter(|number| !accepted.contains(number)).collect();
        progress.accepted.fetch_add(accepted.len(), Ordering::Relaxed);
        if !lost.is_empty() {
            progress.let_go.fetch_add(lost.len(), Ordering::Relaxed);
            let mut excused = progress.excused.lock().unwrap_or_else(PoisonError::into_inner);
            excused.entry(channel.to_owned()).or_default().extend(lost);
        }
    }

    /// Those that were accepted. After anything but 200 the next try asks another gateway.
    fn try_publish(&mut self, channel: &str, numbers: &[u32], keyed: bool) -> Vec<u32> {
        let Ok(mut http) = self.connected() else { return Vec::new() };
        let answer = match *numbers {
            [number] => {
                let key = keyed.then(|| format!("n{number}"));
                http.publish(channel, key.as_deref(), &number.to_string())
            }
            _ => http.request("POST /v1/batch", batch(channel, numbers, keyed).as_bytes()),
        };
        match answer {
            Ok((200, _)) => {
                self.http = Some(http);
                numbers.to_vec()
            }
            Ok((207, body)) => {
                let body: Value = serde_json::from_slice(&body).expect("an answer is JSON");
                let results = body["results"].as_array().expect("a result for each");
                let is_accepted = |(_, result): &(&u32, &Value)| result["error"].is_null();
                numbers.iter().zip(results).filter(is_accepted).map(|(number, _)| *number).collect()
            }
            // 502 and 504 are what a router says of a gateway that went away meanwhile.
            Ok((502..=504, _)) | Err(_) => Vec::new(),
            Ok((status, body)) => {
                panic!("publish to {channel}: {status} {}", String::from_utf8_lossy(&body))
            }
        }
    }

    /// The connection of before, or one to the next gateway.
    fn connected(&mut self) -> io::Result<Http> {
        if let Some(http) = self.http.take() {
            return Ok(http);
        }
        self.gateway += 1;
        Http::connect(*self.gateways.get(self.gateway % self.gateways.len()).expect("there are gateways"))
    }
}

fn batch(channel: &str, numbers: &[u32], keyed: bool) -> String {
    let entry = |number: &u32| {
        let mut entry = json!({ "channel": channel, "data": number.to_string() });
        if keyed {
            entry["idempotency_key"] = format!("n{number}").into();
        }
        entry
    };
    json!({ "publications": numbers.iter().map(entry).collect::<Vec<_>>() }).to_string()
}
