//! When a client is pinged, and when its silence ends its connection. Pure: what is known of the connection is asked of a
//! [`Line`], and time is passed in.
//!
//! ```text
//!            something proves the path          nothing has proven it lately
//!   ┌──────────────┐                                       │
//!   └─► quiet ─────┴──── look, at the phase of its own ────┴──► ping ──► answered ──► quiet
//!                                                                │
//!                        late ourselves, or it is still served ◄─┴──► no answer in time ──► end
//! ```
//!
//! Silence is measured in the time in which the shard attended to its connections
//! ([`Connections::attended`](tidegate_reactor::Connections::attended)), so a node that was late has listened to nobody
//! meanwhile, and blames nobody for it (docs/adr/0025-heartbeats.md).

use std::time::Duration;

use tidegate_reactor::{TICK, Tick};

/// So many intervals a client may say nothing while its kernel acknowledges what it is sent: behind a proxy of which the
/// node knows nothing, it is the proxy's kernel that does.
const UNHEARD_INTERVALS: u32 = 4;

/// The settings of `heartbeat.*`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// Whether a ping is under way, and when it was written: 0, or the low bits of that tick of the attended clock, and one.
/// They come round after 4.5 hours; a ping is answered or its connection ended long before.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ping(u16);

/// What the shard knows of a connection without asking the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) now: Tick,
    /// Since bytes last came in, of the attended time.
    pub(crate) silent: Duration,
    /// Since the ping that is under way was written, of the attended time.
    pub(crate) pinged: Option<Duration>,
    /// The shard has deliveries to make.
    pub(crate) is_delivering: bool,
    /// Any number that differs between connections.
    pub(crate) spread: u32,
}

/// How old a connection may get: three quarters of the maximum to all of it, so that those which came together do not leave
/// together.
pub(crate) fn age_max(max: Duration, spread: u32) -> Duration {
    let part = spread.wrapping_mul(2_654_435_761) >> 16;
    max * 3 / 4 + max / 4 * part / (1 << 16)
}

/// What the kernel is asked only when something depends on it.
pub(crate) trait Line {
    /// Whether something came from the client that was not handled yet.
    fn has_unhandled(&self) -> bool;
    /// Whether something written to the client still waits for its socket.
    fn has_unsent(&self) -> bool;
    /// Since the client's own kernel, or that of whoever stands between, acknowledged something.
    fn acknowledged(&self) -> Option<Duration>;
    /// Whether there is somebody in between, so that an acknowledgement says nothing of the client.
    fn is_relayed(&self) -> bool;
}

/// What is to be done with a client that is pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing. `is_proven`: a ping was spared, as what the client was sent was acknowledged.
    Look {
        at: Tick,
        is_proven: bool,
    },
    /// A ping was not answered in time, but it is not the client that is late.
    PutOff {
        at: Tick,
    },
    Ping,
    End,
}

/// What became of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Came,
    /// It has so much time left.
    Awaited(Duration),
    /// Its time is over, but something stands in the way that is not the client's.
    PutOff(Duration),
    Missed,
}

impl Ping {
    pub(crate) const NONE: Self = Self(0);

    /// Written at a tick of the attended clock.
    pub(crate) fn at(attended: Tick) -> Self {
        Self((attended.0 % u32::from(u16::MAX)) as u16 + 1)
    }

    /// Written so many ticks before a tick of the attended clock, which may not have begun by then.
    pub(crate) fn ago(attended: Tick, ticks: u32) -> Self {
        let round = u32::from(u16::MAX);
        Self::at(Tick(attended.0 % round + round - ticks % round))
    }

    /// How many ticks ago it was written.
    pub(crate) fn ticks_since(self, attended: Tick) -> Option<u32> {
        self.since(attended).map(|since| (since.as_millis() / TICK.as_millis()) as u32)
    }

    pub(crate) fn is_under_way(self) -> bool {
        self != Self::NONE
    }

    /// How long ago it was written.
    pub(crate) fn since(self, attended: Tick) -> Option<Duration> {
        let round = u32::from(u16::MAX);
        let at = u32::from(self.0).checked_sub(1)?;
        Some(TICK * ((attended.0 % round + round - at) % round))
    }
}

impl Rule {
    /// The heartbeat of a client that is pinged by the core.
    pub(crate) fn step(&self, seen: Seen, line: &impl Line) -> Step {
        match self.answer(seen, line) {
            Some(Answer::Missed) => return Step::End,
            Some(Answer::Awaited(left)) => {
                return Step::Look { at: seen.now.after(left), is_proven: false };
            }
            Some(Answer::PutOff(by)) => return Step::PutOff { at: seen.now.after(by) },
            Some(Answer::Came) | None => {}
        }
        // A ping is awaited by what comes after it: in the tick of the last bytes that would be undecided.
        if seen.silent < self.recent().max(TICK) {
            return Step::Look { at: self.next_look(seen.now, seen.silent, seen.spread), is_proven: false };
        }
        if seen.is_delivering && seen.silent < self.interval + self.interval / 2 {
            return Step::Look { at: seen.now.after(TICK), is_proven: false };
        }
        if let Some(proof) = self.proof(seen.silent, line) {
            return Step::Look { at: self.next_look(seen.now, proof, seen.spread), is_proven: true };
        }
        Step::Ping
    }

    /// What became of the ping that is under way, if one is.
    pub(crate) fn answer(&self, seen: Seen, line: &impl Line) -> Option<Answer> {
        let since = seen.pinged?;
        Some(if seen.silent <= since {
            Answer::Came
        } else if since < self.timeout {
            Answer::Awaited(self.timeout - since)
        } else if line.has_unhandled() {
            Answer::PutOff(TICK)
        } else if line.has_unsent() && line.acknowledged().is_some_and(|ago| ago < self.timeout) {
            // The ping may be behind what waits. How much may wait, and how long, is for the queue to say.
            Answer::PutOff(self.timeout)
        } else {
            Answer::Missed
        })
    }

    /// The heartbeat of an event stream, which answers nothing: when the next is due, or `None` if one is now. `sent`: since
    /// its kernel was given anything.
    pub(crate) fn stream(&self, seen: Seen, line: &impl Line, sent: Option<Duration>) -> Option<Tick> {
        if line.has_unsent() {
            return Some(self.next_look(seen.now, Duration::ZERO, seen.spread));
        }
        let sent = sent.filter(|&ago| ago < self.recent())?;
        Some(self.next_look(seen.now, sent, seen.spread))
    }

    /// A path that was proven so lately needs no ping. It is a tenth of an interval less than half of one, so that a client
    /// whose look is half an interval beside its phase, and who answers within that tenth, is pinged on its phase next.
    fn recent(&self) -> Duration {
        self.interval * 2 / 5
    }

    /// The next look at a connection whose path was proven so long ago: an interval later at most, on the connection's own phase,
    /// so that pings are even over an interval. Where that phase is too soon, as for many after they were all sent something
    /// at one moment, half an interval beside it; with the look after that, the connection is on its phase again.
    pub(crate) fn next_look(&self, now: Tick, proven: Duration, spread: u32) -> Tick {
        let ticks = |time: Duration| (time.as_millis() / TICK.as_millis()) as u32;
        let interval = ticks(self.interval).max(1);
        let last = now.0.saturating_sub(ticks(proven)).saturating_add(interval);
        // The high bits of a product are the ones that are spread.
        let phase = ((u64::from(spread.wrapping_mul(2_654_435_761)) * u64::from(interval)) >> 32) as u32;
        let beyond = last.wrapping_sub(phase) % interval;
        let is_too_soon = beyond > interval - ticks(self.recent());
        let beyond = if is_too_soon { beyond % (interval / 2).max(1) } else { beyond };
        Tick(last.saturating_sub(beyond).max(now.0 + 1))
    }

    /// Since the path to the client was last proven without its word, if that was lately.
    fn proof(&self, silent: Duration, line: &impl Line) -> Option<Duration> {
        if silent >= self.interval * UNHEARD_INTERVALS {
            return None;
        }
        let ago = line.acknowledged().filter(|&ago| ago < self.recent())?;
        (!line.is_relayed()).then_some(ago)
    }
}

#[cfg(test)]
#[path = "heartbeat/tests.rs"]
mod tests;
