//! What the census' scripts are told and what they say.

use std::time::{Duration, Instant};

use super::own::BatchUser;
use crate::{Attended, BackplaneError, Roll, Sums, Transition, redis::scripts::Answer};

/// Ends that come one after the other are settled together: a channel is asked 20 times a second at most.
const SETTLE_MIN: Duration = Duration::from_millis(50);

/// What the scripts say.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) attended: Attended,
    pub(super) settle_at: Option<Instant>,
    pub(super) refused: Vec<Box<str>>,
    pub(super) transitions: Vec<Transition>,
    /// The server has lost this node's part.
    pub(super) is_lost: bool,
}

/// What the other script reads.
pub(super) struct Read {
    pub(super) roll: Roll,
    pub(super) users: u64,
    pub(super) instances: Vec<Box<str>>,
}

/// An instance's part in a channel, but for the users.
pub(super) struct Part<'a> {
    pub(super) instance: &'a str,
    /// `None`: as before.
    pub(super) subscriptions: Option<u64>,
    pub(super) tells_counts: Option<bool>,
    pub(super) is_told: bool,
    pub(super) notes_loss: bool,
}

impl Verdict {
    /// Takes in what came of the next portion.
    pub(super) fn add(&mut self, next: Self) {
        self.attended = next.attended;
        self.settle_at = match (self.settle_at, next.settle_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.refused.extend(next.refused);
        self.transitions.extend(next.transitions);
        self.is_lost |= next.is_lost;
    }
}

pub(super) fn user_args(user: &BatchUser) -> [String; 4] {
    let users_max = user.users_max.map_or_else(String::new, |users_max| users_max.to_string());
    [user.id.to_string(), user.subscriptions.to_string(), users_max, flag(user.is_told).to_owned()]
}

pub(super) fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

pub(super) fn read_verdict(mut answer: Answer) -> Result<Verdict, BackplaneError> {
    let (sequence, subscriptions, users) = (answer.number()?, answer.number()?, answer.number()?);
    let settle_ms = answer.number()?;
    let (mut refused, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        refused.push(list.text()?);
    }
    let (mut transitions, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        transitions.push(read_transition(&mut list)?);
    }
    Ok(Verdict {
        attended: Attended { sequence, sums: Sums { subscriptions, users } },
        settle_at: (settle_ms > 0).then(|| Instant::now() + SETTLE_MIN.max(Duration::from_millis(settle_ms))),
        refused,
        transitions,
        is_lost: answer.flag()?,
    })
}

fn read_transition(list: &mut Answer) -> Result<Transition, BackplaneError> {
    let kind = list.text()?;
    Ok(match &*kind {
        "joined" => Transition::UserJoined { user: list.text()? },
        "left" => Transition::UserLeft { user: list.text()? },
        "count" => Transition::Count { subscriptions: list.number()? },
        end => {
            list.text()?;
            if end == "vacated" { Transition::Vacated } else { Transition::Occupied }
        }
    })
}

pub(super) fn read_roll(mut answer: Answer) -> Result<Read, BackplaneError> {
    let (sequence, subscriptions, users) = (answer.number()?, answer.number()?, answer.number()?);
    let (mut instances, mut list) = (Vec::new(), answer.list()?);
    while !list.is_empty() {
        instances.push(list.text()?);
    }
    let roll = Roll { sequence, subscriptions, users: Vec::new() };
    Ok(Read { roll, users, instances })
}

/// Id, and info if there is one: the value is the number of subscriptions, a line feed, info.
pub(super) fn read_user(id: Vec<u8>, held: &[u8]) -> Option<(Box<str>, Option<Box<str>>)> {
    let id = String::from_utf8(id).ok()?;
    let (_, info) = std::str::from_utf8(held).ok()?.split_once('\n')?;
    Some((id.into(), (!info.is_empty()).then(|| info.into())))
}
