//! How an instruction gets to the connections that are meant, and what came of it back to who asked.
//!
//! It goes to every node as an order. Each of its shards carries it out for its own connections. Where somebody waits, the node
//! gathers what its shards say and leaves it in the backplane, as a report under a name of its own, where the node that asked
//! reads it.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use tidegate_backplane::{Backplane, BackplaneError, Control};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
    time::Instant,
};

use super::{
    Node,
    instruction::{Answer, Answers, Asked, Instruction, Round, What},
    shards::Order,
};
use crate::metrics::{Instructed, Metrics};

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
        Some(Arc::new(Round::new(limit, reply)))
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").field("node", &self.node).finish_non_exhaustive()
    }
}
