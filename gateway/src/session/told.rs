//! What connections of a shard were told that is no publication, for a person who asks what happened to one: refusals,
//! gaps, drops. The shard keeps the last of all of them together; a connection owns nothing for it.

use std::{collections::VecDeque, fmt};

use tidegate_backplane::Channel;
use tidegate_reactor::ConnectionId;

use crate::node::connection_state::Notice;

/// Notices that a shard keeps: 1,024 of some 150 bytes.
const NOTICES_MAX: usize = 1_024;

/// Longest text that is kept of one, in characters.
const TEXT_CHARACTERS_MAX: usize = 120;

/// Notices that one connection shows.
pub(super) const NOTICES_TOLD: usize = 10;

/// The newest last.
#[derive(Debug, Default)]
pub(crate) struct Told(VecDeque<Entry>);

#[derive(Debug)]
struct Entry {
    to: To,
    /// On the clock of [`Session::accepted_ms`](super::Session::accepted_ms).
    at_ms: u32,
    text: Box<str>,
    times: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum To {
    Connection(ConnectionId),
    /// All who were subscribed.
    Channel(Channel),
}

impl Told {
    /// What is told again and again counts up, so that one client does not push out what others were told.
    pub(crate) fn note(&mut self, to: To, at_ms: u32, text: fmt::Arguments<'_>) {
        let text: String = text.to_string().chars().take(TEXT_CHARACTERS_MAX).collect();
        if let Some(last) = self.0.back_mut().filter(|last| last.to == to && *last.text == *text) {
            (last.at_ms, last.times) = (at_ms, last.times.saturating_add(1));
            return;
        }
        if self.0.len() == NOTICES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Entry { to, at_ms, text: text.into(), times: 1 });
    }

    /// The last that a connection was told, the newest first. `has`: whether it is subscribed to a channel.
    pub(super) fn to(
        &self,
        id: ConnectionId,
        accepted_ms: u32,
        now_ms: u32,
        has: impl Fn(&Channel) -> bool,
    ) -> Vec<Notice> {
        let lasts_ms = now_ms.wrapping_sub(accepted_ms);
        let is_its = |entry: &&Entry| match &entry.to {
            To::Connection(own) => *own == id,
            To::Channel(channel) => now_ms.wrapping_sub(entry.at_ms) <= lasts_ms && has(channel),
        };
        let its = self.0.iter().rev().filter(is_its).take(NOTICES_TOLD);
        its.map(|entry| Notice {
            ago_s: u64::from(now_ms.wrapping_sub(entry.at_ms) / 1_000),
            times: entry.times,
            text: entry.text.to_string(),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn texts(told: &Told, id: ConnectionId, accepted_ms: u32) -> Vec<(String, u32)> {
        let notices = told.to(id, accepted_ms, 10_000, |channel| channel.name() == "room");
        notices.into_iter().map(|notice| (notice.text, notice.times)).collect()
    }

    #[test]
    fn a_connection_has_its_own_and_those_of_its_channels_since_it_came() {
        let (own, other) = (ConnectionId { slot: 1, generation: 7 }, ConnectionId { slot: 1, generation: 6 });
        let channel = |name| To::Channel(Channel::new(name).unwrap());
        let mut told = Told::default();
        told.note(channel("room"), 1_000, format_args!("before"));
        told.note(To::Connection(other), 5_000, format_args!("who had the place before"));
        told.note(channel("elsewhere"), 5_000, format_args!("elsewhere"));
        told.note(channel("room"), 5_000, format_args!("gap"));
        told.note(To::Connection(own), 6_000, format_args!("no"));
        told.note(To::Connection(own), 7_000, format_args!("no"));
        assert_eq!(texts(&told, own, 2_000), [("no".to_owned(), 2), ("gap".to_owned(), 1)]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut told = Told::default();
        let id = ConnectionId { slot: 0, generation: 0 };
        for number in 0..2 * NOTICES_MAX as u32 {
            told.note(To::Connection(id), number, format_args!("{number} {}", "é".repeat(1_000)));
        }
        assert_eq!(told.0.len(), NOTICES_MAX);
        let notices = texts(&told, id, 0);
        assert_eq!(notices.len(), NOTICES_TOLD);
        assert_eq!(notices[0].0.chars().count(), TEXT_CHARACTERS_MAX);
    }
}
