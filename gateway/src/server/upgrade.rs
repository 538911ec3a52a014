//! Another process takes this one's place, with its connections: what a gateway hands on. How, and what becomes of it when
//! either process fails, is `tidegate_ops::succession`.

mod standing;
pub(super) mod successor;

use std::sync::Arc;

use tidegate_backplane::{Channel, MemoryBackplane};
use tidegate_ops::succession::{self, ShardMailbox, Talk, Upgradable, UpgradeError, Written, ask_all};
use tidegate_reactor::Connections;
use tidegate_wire::succession::Step;

use crate::{
    node::{Node, Stage},
    session::{
        Session,
        core::{Command, Core},
    },
};

/// What an upgrade takes of a gateway, kept while the node runs.
pub(crate) struct Handing {
    /// `None`: publications are carried by something else, which this does not hand on.
    pub(super) memory: Option<Arc<MemoryBackplane>>,
    pub(super) life: u64,
    pub(super) node: Arc<Node>,
}

pub(super) type Upgrades = succession::Upgrades<Handing>;

impl Upgradable for Handing {
    type Connection = Session;
    type Command = Command;
    type Shard = Core;

    fn refusal(&self) -> Option<&'static str> {
        let config = self.node.config();
        if self.memory.is_none() {
            Some(
                "a gateway with Redis cannot hand its connections on yet: restart it, and its clients recover what they miss",
            )
        } else if config.tls.is_on() {
            Some(
                "a gateway that ends TLS itself cannot hand its sessions on: restart it, or end TLS before it",
            )
        } else if config.handover.socket.is_some() {
            Some(
                "a gateway that takes connections over from a router (`handover.socket`) cannot hand them on yet: restart it",
            )
        } else if !config.consumers.is_empty() {
            Some("a gateway with consumers cannot be upgraded live yet: restart it")
        } else if !config.hooks.0.is_empty() {
            Some(
                "a gateway with hooks (`hooks.*`) cannot be upgraded live yet, because two processes would ask and tell the application: restart it",
            )
        } else {
            None
        }
    }

    fn who(&self) -> (Box<str>, u64) {
        (self.node.name().into(), self.life)
    }

    /// Nothing is read or accepted, and who publishes waits.
    fn suspend(&self, shards: &[ShardMailbox<Self>]) -> Result<(), UpgradeError> {
        ask_all::<Self, ()>(shards, |_, connections| connections.hold_reads(true))?;
        if let Some(memory) = &self.memory {
            memory.suspend();
        }
        Ok(())
    }

    fn resume(&self, _: &[ShardMailbox<Self>]) {
        if let Some(memory) = &self.memory {
            memory.resume();
        }
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
        self.memory.as_ref().map_or_else(Vec::new, |memory| memory.to_bytes())
    }

    /// Heads that are read from now on are refused here.
    fn given(&self) {
        self.node.set_stage(Stage::Closing);
    }

    /// Connections that stayed leave their channels there.
    fn forward(&self, talk: &Talk) {
        let Some(memory) = &self.memory else { return };
        // The end of this process is the end of the talk.
        let Ok(talk) = talk.try_clone() else { return };
        let tell = move |channel: &Channel, connection: Option<&str>| {
            let left =
                Step::Left { channel: channel.as_str().into(), connection: connection.map(Into::into) };
            if let Err(error) = talk.say(&left, &[]) {
                tracing::warn!(%error, "the new process still lists a connection that has left");
            }
        };
        memory.give_away(Box::new(tell));
    }
}
