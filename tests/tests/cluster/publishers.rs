//! Publishers that number what they publish. What was not accepted they repeat under the same key, or let go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde_json::{Value, json};
use tidegate_testkit::{eventually, observe};

use crate::http::Http;

/// Each has its own share of the channels, so that the numbers of a channel are published in order.
const PUBLISHERS: usize = 10;

/// A publication that nobody accepts for so long ends the test.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(60);

/// Between two tries of the same publication.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// So many publications of a channel are under way at once in [`Manner::Flight`].
pub(crate) const FLIGHT: u32 = 16;

/// What nobody accepted, by channel: it may have been published or not.
pub(crate) type Excused = BTreeMap<String, BTreeSet<u32>>;

/// How publications are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// One after the other, repeated under their keys until they are accepted.
    Keyed,
    /// One after the other, without a key, once.
    Plain,
    /// Sixteen at a time, without keys, once.
    Flight,
}

/// What is published: `per_channel` numbers to each channel, and the pace.
#[derive(Debug)]
pub(crate) struct Publishers<'a> {
    pub(crate) gateways: &'a [SocketAddr],
    pub(crate) channels: &'a [String],
    pub(crate) per_channel: u32,
    /// One publication to each channel takes at least this long, so that faults come in the midst.
    pub(crate) round: Duration,
    pub(crate) manner: Manner,
}

/// How far they are.
#[derive(Debug, Default)]
pub(crate) struct Progress {
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
        let last = self.per_channel - 1;
        let step = if self.manner == Manner::Flight { FLIGHT } else { 1 };
        for number in (0..last).step_by(step as usize) {
            let round_start = Instant::now();
            for channel in channels {
                let numbers: Vec<u32> = (number..last.min(number + step)).collect();
                match self.manner {
                    Manner::Keyed => publisher.publish(channel, number, progress),
                    Manner::Plain | Manner::Flight => publisher.publish_once(channel, &numbers, progress),
                }
            }
            if let Some(rest) = (self.round * step).checked_sub(round_start.elapsed()) {
                observe(rest);
            }
        }
        eventually("the faults are over", ACCEPT_DEADLINE * 2, || progress.is_calm.load(Ordering::Relaxed));
        for channel in channels {
            publisher.publish(channel, last, progress);
        }
    }
}

impl Progress {
    /// Waits until this share of all publications was accepted.
    #[track_caller]
    pub(crate) fn eventually(&self, percent: usize) {
        let what = format!("{percent} % of {} publications are accepted", self.total);
        eventually(&what, ACCEPT_DEADLINE * 2, || {
            let done = self.accepted.load(Ordering::Relaxed) + self.let_go.load(Ordering::Relaxed);
            done * 100 >= self.total * percent
        });
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Tries that were answered 503 or not at all.
    pub(crate) fn repeated(&self) -> usize {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Publications that were not accepted and not repeated.
    pub(crate) fn let_go(&self) -> usize {
        self.let_go.load(Ordering::Relaxed)
    }

    pub(crate) fn excused(&self) -> Excused {
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

    /// Publishes some numbers of a channel together; what is not accepted is let go.
    fn publish_once(&mut self, channel: &str, numbers: &[u32], progress: &Progress) {
        let accepted = self.try_publish_all(channel, numbers).unwrap_or_default();
        let lost: Vec<u32> = numbers.iter().copied().filter(|number| !accepted.contains(number)).collect();
        progress.accepted.fetch_add(accepted.len(), Ordering::Relaxed);
        if !lost.is_empty() {
            progress.let_go.fetch_add(lost.len(), Ordering::Relaxed);
            let mut excused = progress.excused.lock().unwrap_or_else(PoisonError::into_inner);
            excused.entry(channel.to_owned()).or_default().extend(lost);
        }
    }

    /// Those that were accepted; `None`: the answer did not come.
    fn try_publish_all(&mut self, channel: &str, numbers: &[u32]) -> Option<Vec<u32>> {
        let entry = |number: &u32| json!({ "channel": channel, "data": number.to_string() });
        let body = json!({ "publications": numbers.iter().map(entry).collect::<Vec<_>>() }).to_string();
        let mut http = self.connected().ok()?;
        if let [number] = numbers {
            let status = http.publish(channel, None, &number.to_string()).ok()?;
            self.http = (status == 200).then_some(http);
            assert!(matches!(status, 200 | 502..=504), "publish to {channel}: {status}");
            return (status == 200).then(|| vec![*number]);
        }
        let head = "POST /v1/batch";
        let (status, answer) = http.request(head, body.as_bytes()).ok()?;
        match status {
            200 => {
                self.http = Some(http);
                Some(numbers.to_vec())
            }
            207 => {
                let answer: Value = serde_json::from_slice(&answer).expect("an answer is JSON");
                let results = answer["results"].as_array().expect("a result for each");
                let is_accepted = |(_, result): &(&u32, &Value)| result["error"].is_null();
                Some(numbers.iter().zip(results).filter(is_accepted).map(|(number, _)| *number).collect())
            }
            502..=504 => None,
            status => panic!("a batch for {channel}: {status}"),
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

    fn try_publish(&mut self, channel: &str, key: &str, payload: &str) -> bool {
        let http = self.connected();
        let answer = http.and_then(|mut http| Ok((http.publish(channel, Some(key), payload)?, http)));
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
