//! What a server asks of connections, or about them, on whichever node they are, and what the nodes answer, as they say it to
//! each other. `asking.rs` gives and answers it.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tidegate_backplane::{REPORT_BYTES_MAX, Target};
use tokio::sync::oneshot;

use super::connection_state::ConnectionState;

/// What is asked of the connections that an order names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instruction {
    /// Whose they have to be, where the order names one connection by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<Owner>,
    /// What the nodes answer under; without it nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) question: Option<Box<str>>,
    pub(crate) what: What,
}

/// A user of an app; without one, of the default app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Owner {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<Box<str>>,
    pub(crate) user: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// Subscribe to a channel of the connection's app, whatever its client may by itself.
    Subscribe {
        channel: Box<str>,
        /// Where the client was in it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
        /// What the client is told with it, in base64, where its protocol has a place for that.
        #[serde(default, skip_serializing_if = "str::is_empty")]
        data: Box<str>,
        /// JSON that other members see of the subscription, where their protocols have a place for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        info: Option<Box<str>>,
    },
    Unsubscribe {
        channel: Box<str>,
    },
    /// Last until then, in seconds since 1970, whatever the token says; without it, as long as the client wants.
    Refresh {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<u64>,
    },
    /// End as when the token expires.
    Expire,
    Close {
        code: u16,
        reason: Box<str>,
        /// Connections that stay.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<Box<str>>,
    },
    /// Tell the client something that is no publication of a channel.
    Send(Message),
    /// What only this protocol reads.
    Own {
        protocol: Box<str>,
        text: Box<str>,
    },
    /// Say which they are: at most so many, after the one of this name.
    List {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Box<str>>,
        limit: usize,
    },
    /// Nothing: the node says which channels it has.
    Channels(ChannelsAsked),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Since {
    pub(crate) epoch: Box<str>,
    pub(crate) offset: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) event: Option<Box<str>>,
    pub(crate) data: Box<str>,
}

/// Which channels are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChannelsAsked {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) app: Option<Box<str>>,
    /// `*` stands for any characters, `?` for one.
    pub(crate) pattern: Box<str>,
    /// Only those after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<Box<str>>,
}

/// Names with their subscribers.
pub(crate) type Counted = BTreeMap<Box<str>, u64>;

/// What came of an instruction: on a shard, on a node, or on all of them.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Connections that carried it out.
    #[serde(default)]
    pub(crate) done: u64,
    /// Those that are meant and could not.
    #[serde(default)]
    pub(crate) not_done: u64,
    /// Those that were asked for, in the order of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) connections: Vec<ConnectionState>,
    /// Channels that were asked for with their subscribers, in the order of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) channels: Vec<(Box<str>, u64)>,
    /// There are more after the last of these.
    #[serde(default)]
    pub(crate) more: bool,
}

/// What the nodes of the cluster answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) answer: Answer,
    /// How many nodes have answered.
    pub(crate) nodes: usize,
    /// Those that have not: they may have carried it out all the same.
    pub(crate) silent: Vec<Box<str>>,
}

/// Where a connection is among all, by its name: those of a node's life together, in the order of shards and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place<'n> {
    /// The node and its life.
    pub(crate) life: &'n str,
    pub(crate) shard: usize,
    pub(crate) slot: u32,
}

/// Gathers what the shards of a node say; the last that lets go of it hands the whole over.
#[derive(Debug)]
pub(crate) struct Round {
    parts: Mutex<Vec<(usize, Answer)>>,
    limit: usize,
    reply: Option<oneshot::Sender<Answer>>,
}

/// What is asked of whom.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) target: Target,
    pub(crate) owner: Option<Owner>,
    pub(crate) what: What,
}

impl Round {
    pub(super) fn new(limit: usize, reply: oneshot::Sender<Answer>) -> Self {
        Self { parts: Mutex::default(), limit, reply: Some(reply) }
    }

    /// What one shard says.
    pub(crate) fn add(&self, shard: usize, part: Answer) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push((shard, part));
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        let parts = mem::take(self.parts.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Some(reply) = self.reply.take() {
            let answers = parts.into_iter().map(|(_, part)| part).collect();
            // Who would report it may be gone with the process.
            drop(reply.send(Answer::merged(answers, self.limit)));
        }
    }
}

impl Answer {
    /// Sums, and the first connections of all. After the last of one that has more nothing is known, so the page ends there.
    pub(super) fn merged(answers: Vec<Self>, limit: usize) -> Self {
        let pages = answers.iter().map(|answer| (&*answer.channels, answer.more));
        let mut merged = Self { channels: channels_of(pages), ..Self::default() };
        let mut known_to: Option<String> = None;
        for answer in answers {
            merged.done += answer.done;
            merged.not_done += answer.not_done;
            let last = answer.connections.last().filter(|_| answer.more).map(|last| last.name.clone());
            merged.more |= answer.more;
            known_to = match (known_to, last) {
                (Some(a), Some(b)) => Some(if Place::of(&a) <= Place::of(&b) { a } else { b }),
                (a, b) => a.or(b),
            };
            merged.connections.extend(answer.connections);
        }
        merged.connections.sort_by(|a, b| Place::of(&a.name).cmp(&Place::of(&b.name)));
        let known = |own: &ConnectionState| {
            known_to.as_deref().is_none_or(|last| Place::of(&own.name) <= Place::of(last))
        };
        let fits = merged.connections.iter().take(limit).take_while(|own| known(own)).count();
        merged.more |= fits < merged.connections.len();
        merged.connections.truncate(fits);
        merged
    }

    /// As JSON, with as many connections or channels as fit in a report: at least one.
    pub(super) fn encode(mut self) -> String {
        loop {
            let text = serde_json::to_string(&self).unwrap_or_default();
            let length = self.connections.len().max(self.channels.len());
            if text.len() <= REPORT_BYTES_MAX || length <= 1 {
                return text;
            }
            let fewer = (length * REPORT_BYTES_MAX / text.len()).clamp(1, length - 1);
            self.connections.truncate(fewer);
            self.channels.truncate(fewer);
            self.more = true;
        }
    }
}

/// What nodes say of channels, added up, in the order of their names. After the last of one that has more nothing is known, so
/// the page ends there.
fn channels_of<'a>(pages: impl Iterator<Item = (&'a [(Box<str>, u64)], bool)>) -> Vec<(Box<str>, u64)> {
    let (mut sums, mut known_to) = (Counted::new(), None::<&str>);
    for (page, more) in pages {
        for (name, count) in page {
            *sums.entry(name.clone()).or_default() += count;
        }
        let last = page.last().filter(|_| more).map(|(name, _)| &**name);
        known_to = match (known_to, last) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    sums.into_iter().take_while(|(name, _)| known_to.is_none_or(|last| **name <= *last)).collect()
}

impl<'n> Place<'n> {
    /// Of a name as `NODE.LIFE-SHARD-SLOT-GENERATION`; `None` for what is no such name.
    pub(crate) fn of(name: &'n str) -> Option<Self> {
        let mut parts = name.rsplitn(4, '-').skip(1);
        let (slot, shard) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { life: parts.next()?, shard, slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str) -> ConnectionState {
        ConnectionState { name: name.to_owned(), ..ConnectionState::default() }
    }

    fn answer(names: &[&str], more: bool) -> Answer {
        Answer {
            done: 1,
            connections: names.iter().map(|name| state(name)).collect(),
            more,
            ..Answer::default()
        }
    }

    fn names(answer: &Answer) -> Vec<&str> {
        answer.connections.iter().map(|own| &*own.name).collect()
    }

    #[test]
    fn a_page_is_in_order_and_ends_where_a_node_has_more() {
        let merged = Answer::merged(
            vec![answer(&["b.1-0-3-1", "b.1-0-20-9"], false), answer(&["a.1-1-0-1", "a-2.1-0-7-1"], false)],
            10,
        );
        assert_eq!(names(&merged), ["a-2.1-0-7-1", "a.1-1-0-1", "b.1-0-3-1", "b.1-0-20-9"]);
        assert_eq!((merged.done, merged.more), (2, false));
        let merged = Answer::merged(vec![answer(&["b.1-0-3-1"], false), answer(&["a.1-0-0-1"], true)], 10);
        assert_eq!((names(&merged), merged.more), (vec!["a.1-0-0-1"], true));
        let merged = Answer::merged(vec![answer(&["a.1-0-0-1", "a.1-0-1-1"], false)], 1);
        assert_eq!((names(&merged), merged.more), (vec!["a.1-0-0-1"], true));
    }

    #[test]
    fn a_page_of_channels_ends_where_a_node_has_more() {
        let page = |names: &[&str]| -> Vec<_> { names.iter().map(|name| (Box::from(*name), 1)).collect() };
        let (one, two) = (page(&["a", "c", "e"]), page(&["b", "c", "d"]));
        let sums = |one_more, two_more| -> Vec<_> {
            channels_of([(&*one, one_more), (&*two, two_more)].into_iter())
                .into_iter()
                .map(|(name, count)| format!("{name}{count}"))
                .collect()
        };
        assert_eq!(sums(false, false), ["a1", "b1", "c2", "d1", "e1"]);
        assert_eq!(sums(true, false), ["a1", "b1", "c2", "d1", "e1"]);
        assert_eq!(sums(true, true), ["a1", "b1", "c2", "d1"]);
    }

    #[test]
    fn an_answer_fits_in_a_report() {
        let names: Vec<_> = (0..200).map(|slot| format!("{}.1-0-{slot}-1", "n".repeat(100))).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let text = answer(&names, false).encode();
        let read: Answer = serde_json::from_str(&text).expect("an answer");
        assert!(text.len() <= REPORT_BYTES_MAX && read.more && !read.connections.is_empty());
    }

    #[test]
    fn names_have_places() {
        let place = Place::of("gateway-0.k3-1-20-4294967295").expect("a place");
        assert_eq!(place, Place { life: "gateway-0.k3", shard: 1, slot: 20 });
        for name in ["", "a", "1-2-3", "n.1-x-1-1", "123.456"] {
            assert_eq!(Place::of(name), None, "{name}");
        }
    }
}
