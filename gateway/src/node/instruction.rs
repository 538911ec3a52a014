//! What a server asks of connections, or about them, on whichever node they are; and what the nodes answer.
//!
//! An instruction goes to every node as an order. Each of its shards carries it out for the connections that are meant. Where
//! somebody waits, the node gathers what its shards say and leaves it in the backplane, as a report under a name of its own,
//! where the node that asked reads it.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidegate_backplane::{Backplane, BackplaneError, Control, REPORT_BYTES_MAX, Target};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    time::Instant,
};

use super::{
    Node,
    channels::{self, ChannelsAsked},
    shards::{ConnectionState, Order},
};
use crate::metrics::{Instructed, Metrics};

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

/// How the answers of this node get where they are read.
pub(crate) struct Answering {
    backplane: Weak<dyn Backplane>,
    runtime: Handle,
    node: Box<str>,
    metrics: Arc<Metrics>,
    room: Arc<Semaphore>,
}

/// Instructions of which a node gathers answers at the same time; each has at most [`REPORT_BYTES_MAX`] in the end.
const GATHERED_MAX: usize = 64;

/// How long the nodes have to answer. A shard that is busy with a large fan-out takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often is looked for answers: soon at first, then seldom.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// What is asked of whom.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) target: Target,
    pub(crate) owner: Option<Owner>,
    pub(crate) what: What,
}

impl Node {
    /// Gives an instruction to all nodes. Nobody waits for what comes of it.
    pub(crate) async fn instruct(&self, asked: Asked) -> Result<(), BackplaneError> {
        self.give(asked, None).await
    }

    /// The same to this node alone.
    pub(crate) fn instruct_here(&self, Asked { target, owner, what }: Asked) {
        let instruction = Arc::new(Instruction { owner, question: None, what });
        self.relay.to_all(&Order::Instruct { target, instruction, round: None });
    }

    /// The same, and gathers what came of it on the nodes that are known, for as long as [`PATIENCE`].
    pub(crate) async fn ask(&self, asked: Asked) -> Result<Answers, BackplaneError> {
        let limit = match &asked.what {
            What::List { limit, .. } => *limit,
            _ => 0,
        };
        let mut waiting: Vec<Box<str>> = self.nodes().await?.into_iter().map(|node| node.name).collect();
        if !waiting.iter().any(|name| **name == *self.name()) {
            waiting.push(self.name().into());
        }
        let random = getrandom::u64().map_err(|error| BackplaneError::Refused(error.to_string().into()))?;
        let question: Box<str> = format!("{random:016x}").into();
        self.give(asked, Some(question.clone())).await?;
        let (mut answers, mut nodes, ends) = (Vec::new(), 0, Instant::now() + PATIENCE);
        let (mut pause, longest) = LOOK;
        while !waiting.is_empty() && Instant::now() < ends {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
            let names: Vec<_> = waiting.iter().map(|node| report_name(&question, node)).collect();
            let reports = self.backplane.reports(&names).await?;
            let mut reports = reports.into_iter();
            waiting.retain(|_| match reports.next().flatten() {
                None => true,
                Some(report) => {
                    nodes += 1;
                    answers.extend(serde_json::from_slice::<Answer>(&report));
                    false
                }
            });
        }
        Ok(Answers { answer: Answer::merged(answers, limit), nodes, silent: waiting })
    }

    async fn give(&self, asked: Asked, question: Option<Box<str>>) -> Result<(), BackplaneError> {
        let Asked { target, owner, what } = asked;
        let instruction = Instruction { owner, question, what };
        let text = serde_json::to_string(&instruction);
        let text = text.map_err(|error| BackplaneError::Refused(error.to_string().into()))?.into();
        self.backplane.control(Control::Instruct { target, text }).await
    }
}

fn report_name(question: &str, node: &str) -> Box<str> {
    format!("?{question}:{node}").into()
}

impl Answering {
    pub(crate) fn new(
        backplane: &Arc<dyn Backplane>,
        runtime: Handle,
        node: &str,
        metrics: Arc<Metrics>,
    ) -> Self {
        let room = Arc::new(Semaphore::new(GATHERED_MAX));
        Self { backplane: Arc::downgrade(backplane), runtime, node: node.into(), metrics, room }
    }

    /// Reads an instruction; one that cannot be read, of a node of another version, is counted.
    pub(crate) fn read(&self, text: &str) -> Option<Instruction> {
        let instruction = serde_json::from_str(text);
        instruction
            .inspect_err(|error| {
                self.metrics.node.instructions.add(Instructed::Unreadable, 1);
                tracing::warn!(%error, "an instruction cannot be read: is a node of another version in the cluster?");
            })
            .ok()
    }

    /// Runs what takes longer than what the backplane calls may.
    pub(super) fn apart(&self, run: impl FnOnce() + Send + 'static) {
        self.runtime.spawn_blocking(run);
    }

    /// Where the shards put what they say, if somebody waits for it. An instruction beyond what this node gathers at once is
    /// carried out all the same, and counted: who asked is told that this node is silent.
    pub(crate) fn round(&self, instruction: &Instruction) -> Option<Arc<Round>> {
        let question = instruction.question.as_deref()?;
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            self.metrics.node.instructions.add(Instructed::Unanswered, 1);
            return None;
        };
        let limit = match instruction.what {
            What::List { limit, .. } => limit,
            _ => 0,
        };
        let (reply, answered) = oneshot::channel::<Answer>();
        let (name, backplane) = (report_name(question, &self.node), Weak::clone(&self.backplane));
        self.runtime.spawn(async move {
            let _room = room;
            let (Ok(answer), Some(backplane)) = (answered.await, backplane.upgrade()) else { return };
            if let Err(error) = backplane.report(&name, answer.encode()).await {
                tracing::debug!(%error, "who asked about connections could not be answered");
            }
        });
        Some(Arc::new(Round { parts: Mutex::default(), limit, reply: Some(reply) }))
    }
}

impl Round {
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
    fn merged(answers: Vec<Self>, limit: usize) -> Self {
        let pages = answers.iter().map(|answer| (&*answer.channels, answer.more));
        let mut merged = Self { channels: channels::merged(pages), ..Self::default() };
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
    fn encode(mut self) -> String {
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

impl<'n> Place<'n> {
    /// Of a name as `NODE.LIFE-SHARD-SLOT-GENERATION`; `None` for what is no such name.
    pub(crate) fn of(name: &'n str) -> Option<Self> {
        let mut parts = name.rsplitn(4, '-').skip(1);
        let (slot, shard) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { life: parts.next()?, shard, slot })
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").field("node", &self.node).finish_non_exhaustive()
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
