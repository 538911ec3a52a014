//! What the scripts of presence are told and what they say, and the bytes of an entry.

use std::time::{Duration, Instant};

use super::own::Entry;
use crate::{Attendance, BackplaneError, Member, Roll, Sums, Transition, redis::scripts::Answer};

/// Ends that come one after the other are settled together: a channel is asked 20 times a second at most.
const SETTLE_MIN: Duration = Duration::from_millis(50);

/// What the scripts say.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) attendance: Attendance,
    pub(super) settle_at: Option<Instant>,
    /// Connections.
    pub(super) refused: Vec<Box<str>>,
    pub(super) transitions: Vec<Transition>,
    /// The server has lost this node's part.
    pub(super) is_lost: bool,
    /// What the server has of the process, where it was asked to look.
    pub(super) of_process: u64,
}

/// What the other script reads.
pub(super) struct Read {
    pub(super) roll: Roll,
    pub(super) users: u64,
    pub(super) instances: Vec<Box<str>>,
}

/// What is said of an instance beside its entries.
pub(super) struct Part<'a> {
    pub(super) instance: &'a str,
    /// `None`: as before.
    pub(super) tells_counts: Option<bool>,
    pub(super) is_told: bool,
    /// `change`, `whole` or `dead`.
    pub(super) mode: &'static str,
}

impl Verdict {
    /// Takes in what came of the next portion.
    pub(super) fn add(&mut self, next: Self) {
        self.attendance = next.attendance;
        self.of_process = next.of_process;
        self.settle_at = match (self.settle_at, next.settle_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.refused.extend(next.refused);
        self.transitions.extend(next.transitions);
        self.is_lost |= next.is_lost;
    }
}

pub(super) fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

/// Subscriptions, a line feed, and where somebody is listed: length of the user (2 bytes), user, info.
pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = format!("{}\n", entry.subscriptions).into_bytes();
    if let Some(Member { user, info, .. }) = entry.member.as_deref() {
        // Longer ones were refused.
        let len = u16::try_from(user.len()).unwrap_or(u16::MAX);
        bytes.extend(len.to_be_bytes());
        bytes.extend_from_slice(user.as_bytes());
        bytes.extend_from_slice(info.as_deref().unwrap_or_default().as_bytes());
    }
    bytes
}

/// The instance that holds an entry, and what follows it.
pub(super) fn split(held: &[u8]) -> Option<(&str, &[u8])> {
    let at = held.iter().position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&held[..at]).ok()?, &held[at + 1..]))
}

/// Who is listed under a connection. The outer `None`: these are no bytes of ours; the inner: nobody, it is counted.
pub(super) fn decode(connection: Vec<u8>, held: &[u8]) -> Option<Option<Member>> {
    let (_, who) = split(split(held)?.1)?;
    if who.is_empty() {
        return Some(None);
    }
    let (len, rest) = who.split_first_chunk()?;
    let (user, info) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    let text = |bytes| std::str::from_utf8(bytes).ok().map(Box::from);
    Some(Some(Member {
        connection: String::from_utf8(connection).ok()?.into(),
        user: text(user)?,
        info: text(info).map(|info: Box<str>| (!info.is_empty()).then_some(info))?,
    }))
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
        attendance: Attendance { sequence, sums: Sums { subscriptions, users } },
        settle_at: (settle_ms > 0).then(|| Instant::now() + SETTLE_MIN.max(Duration::from_millis(settle_ms))),
        refused,
        transitions,
        is_lost: answer.flag()?,
        of_process: answer.number()?,
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
    let roll = Roll { sequence, subscriptions, members: Vec::new() };
    Ok(Read { roll, users, instances })
}
