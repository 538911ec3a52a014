//! Another process takes this one's place, with its connections: what a gateway hands on. How, and what becomes of it when
//! either process fails, is `tidegate_ops::succession`.

mod carrying;
mod standing;
pub(super) mod successor;

use std::{
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_backplane::Channel;
use tidegate_consumers::Consumers;
use tidegate_ops::succession::{self, ShardMailbox, Talk, Upgradable, UpgradeError, Written, ask_all};
use tidegate_reactor::Connections;
use tidegate_wire::{fields::Writer, succession::Step};
use tokio::{runtime::Handle, task::AbortHandle};

use crate::{
    app::webhooks::{Forward, Telling},
    edge::handover::Handovers,
    node::{Node, Stage},
    server::carrier::Carrier,
    session::{
        Session,
        core::{Command, Core},
    },
};

/// What an upgrade takes of a gateway, kept while the node runs.
pub(crate) struct Handing {
    pub(super) carrier: Carrier,
    pub(super) life: u64,
    pub(super) node: Arc<Node>,
    pub(super) handovers: Option<Arc<Handovers>>,
    /// What says to others that this node is there, and what takes connections over.
    pub(super) tasks: Vec<AbortHandle>,
    pub(super) consumers: Arc<Consumers>,
    pub(super) telling: Telling,
    pub(super) runtime: Handle,
}

/// What was begun ends within milliseconds of the last answer of the backplane, or its connections stay.
const SETTLE_MAX: Duration = Duration::from_millis(250);

/// All of that: a server of Redis that takes longer to answer is away.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Who is told something answers in this time, or is told it once more.
const TOLD_MAX: Duration = Duration::from_millis(500);

/// Between two looks at whether it has.
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

pub(super) type Upgrades = succession::Upgrades<Handing>;

impl Upgradable for Handing {
    type Connection = Session;
    type Command = Command;
    type Shard = Core;

    fn refusal(&self) -> Option<&'static str> {
        let config = self.node.config();
        if config.tls.is_on() {
            Some(
                "a gateway that ends TLS itself cannot hand its sessions on: restart it, or end TLS before it",
            )
        } else {
            None
        }
    }

    fn not_now(&self) -> Option<Box<str>> {
        self.carrier.not_now()
    }

    fn who(&self) -> (Box<str>, u64) {
        (self.node.name().into(), self.life)
    }

    /// Consumers end with their batches, and who is being told something answers; what is not finished then is read again, and
    /// told once more.
    fn prepare(&self) {
        self.runtime.block_on(self.consumers.pause());
        self.telling.suspend();
        wait(TOLD_MAX, || self.telling.has_sent());
    }

    /// Nothing is read or accepted, and who publishes waits.
    fn suspend(&self, shards: &[ShardMailbox<Self>]) -> Result<(), UpgradeError> {
        // Whoever was taken over before is in a shard when that is asked.
        if let Some(handovers) = &self.handovers
            && !handovers.suspend(&self.runtime)
        {
            return Err(UpgradeError::Process("a router does not read its answers; try again".into()));
        }
        ask_all::<Self, ()>(shards, |_, connections| connections.hold_reads(true))?;
        // What was read before goes on first, and what waits behind it: both would wait for the end of this.
        self.settle(shards, false)?;
        self.carrier.suspend();
        self.settle(shards, true)?;
        self.carrier.halt()
    }

    fn resume(&self, _: &[ShardMailbox<Self>]) {
        self.handovers.iter().for_each(|handovers| handovers.resume());
        self.carrier.resume();
        self.telling.resume();
        self.consumers.begin();
    }

    fn is_idle(core: &mut Core, connections: &mut Connections<Session>, _waits: bool) -> bool {
        !core.hub.is_delivering() && !connections.is_busy() && core.legacies.is_empty()
    }

    fn write(core: &mut Core, connections: &mut Connections<Session>) -> Written {
        standing::write(core, connections)
    }

    fn let_go(
        core: &mut Core,
        connections: &mut Connections<Session>,
        written: &Written,
        is_taken: &dyn Fn(usize) -> bool,
    ) -> usize {
        standing::let_go(core, connections, written, is_taken)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.node.rosters().write(&mut out);
        self.telling.write(&mut out);
        out.option(self.handovers.as_deref(), |out, handovers| {
            out.text(&handovers.place());
            out.u32(handovers.lines());
        });
        self.carrier.write(&mut out);
        out.into_bytes()
    }

    fn sockets(&self) -> Result<Vec<TcpStream>, UpgradeError> {
        let mut sockets = match &self.handovers {
            Some(handovers) => handovers.sockets()?,
            None => Vec::new(),
        };
        sockets.extend(self.carrier.sockets()?);
        Ok(sockets)
    }

    fn stands(&self) -> Result<(), UpgradeError> {
        self.carrier.stands()
    }

    /// Heads that are read from now on are refused here.
    fn given(&self) {
        self.node.set_stage(Stage::Closing);
        self.telling.give();
        self.tasks.iter().for_each(AbortHandle::abort);
        self.handovers.iter().for_each(|handovers| handovers.give());
    }

    /// Connections that stayed leave their channels there, and are told of there.
    fn forward(&self, talk: &Talk) {
        if let Ok(talk) = talk.try_clone() {
            self.telling.forward(Forward(Box::new(move |event, is_end| {
                if let Err(error) = talk.say(&Step::Told { event: (**event).into(), is_end }, &[]) {
                    tracing::warn!(%error, "an application is not told of a connection that stayed");
                }
            })));
        }
        // The end of this process is the end of the talk.
        let Ok(talk) = talk.try_clone() else { return };
        let tell = move |channel: &Channel, connection: Option<&str>| {
            let left =
                Step::Left { channel: channel.as_str().into(), connection: connection.map(Into::into) };
            if let Err(error) = talk.say(&left, &[]) {
                tracing::warn!(%error, "the new process still lists a connection that has left");
            }
        };
        self.carrier.give_away(Box::new(tell));
    }
}

fn wait(most: Duration, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() && began.elapsed() < most {
        std::thread::park_timeout(SETTLE_PAUSE);
    }
}

/// What is waited for before everything is written down.
#[derive(Debug)]
struct UnderWay {
    /// Clients that have left, and what they had published before is not all accepted.
    legacies: usize,
    /// Answers that shards wait for: of the backplane, of an application, of keys.
    answers: usize,
    /// The application is being told of connections of a node that is gone.
    has_will: bool,
    /// What the backplane is at.
    backplane: Option<&'static str>,
}

impl UnderWay {
    fn is_over(&self) -> bool {
        self.legacies == 0 && self.answers == 0 && !self.has_will && self.backplane.is_none()
    }
}

impl Handing {
    /// Waits until what shards have begun has ended, and, once nobody may change it any more, the backplane is at rest; but not
    /// for long.
    fn settle(&self, shards: &[ShardMailbox<Self>], is_suspended: bool) -> Result<(), UpgradeError> {
        let began = Instant::now();
        let (mut answered, mut quiet) = (began, 0);
        loop {
            // What a shard was given before it is asked is under way when it answers.
            let has_ended = |core: &mut Core, _: &mut _| (core.legacies.len(), core.awaiting());
            let ended = ask_all::<Self, _>(shards, has_ended)?;
            let backplane = self.carrier.under_way();
            let under_way = UnderWay {
                legacies: ended.iter().map(|(legacies, _)| legacies).sum(),
                answers: ended.iter().map(|(_, answers)| answers).sum(),
                has_will: is_suspended && !self.telling.has_no_will_under_way(),
                backplane: backplane.filter(|_| is_suspended),
            };
            quiet = if under_way.is_over() { quiet + 1 } else { 0 };
            if backplane.is_some() {
                answered = Instant::now();
            }
            if quiet == 2 {
                return Ok(());
            }
            if answered.elapsed() >= SETTLE_MAX || began.elapsed() >= ANSWER_MAX {
                let UnderWay { legacies, answers, has_will, backplane } = under_way;
                tracing::info!(
                    waited = ?began.elapsed(), answers, publishers_gone = legacies, will = has_will,
                    backplane = backplane.unwrap_or("at rest"),
                    "the upgrade waits no longer for what is under way: connections that it belongs to cannot go along, and are told to come back"
                );
                return Ok(());
            }
            std::thread::park_timeout(SETTLE_PAUSE);
        }
    }
}
