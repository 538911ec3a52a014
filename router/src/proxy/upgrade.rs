//! Another process takes this one's place, with its clients and their connections to nodes: what a router hands on. How, and
//! what becomes of it when either process fails, is `tidegate_ops::succession`.

use std::{collections::HashSet, net::TcpStream, sync::Arc};

use tidegate_ops::succession::{
    self, Predecessor, ShardMailbox, Upgradable, UpgradeError, Written, ask_all, send,
};
use tidegate_reactor::Connections;
use tidegate_wire::{
    fields::{Malformed, Reader, Writer},
    proxied::VERSION,
};

use super::{
    Proxy, cut,
    driver::{Command, ProxyDriver, Work},
    link::Link,
    moving::{self, Nodes},
};
use crate::chooser::Chooser;

/// What an upgrade takes of a router, kept while it runs.
pub(crate) struct Handing {
    pub(crate) has_tls: bool,
    pub(crate) chooser: Arc<Chooser>,
}

pub(crate) type Upgrades = succession::Upgrades<Handing>;

impl From<Work> for Command {
    fn from(work: Work) -> Self {
        Self::Do(work)
    }
}

impl Upgradable for Handing {
    type Connection = Link;
    type Command = Command;
    type Shard = ProxyDriver;

    fn refusal(&self) -> Option<&'static str> {
        self.has_tls.then_some(
            "a router that ends TLS itself cannot hand its sessions on: restart it, or end TLS before it",
        )
    }

    fn who(&self) -> (Box<str>, u64) {
        ("router".into(), 0)
    }

    /// Nobody new comes in, and handshakes that are under way end. Pairs are served meanwhile.
    fn suspend(&self, shards: &[ShardMailbox<Self>]) -> Result<(), UpgradeError> {
        ask_all::<Self, ()>(shards, |_, links| links.hold_accepts(true)).map(drop)
    }

    fn resume(&self, shards: &[ShardMailbox<Self>]) {
        for shard in shards {
            send::<Self>(shard, |_, links| links.hold_accepts(false));
        }
    }

    fn is_idle(_: &mut ProxyDriver, links: &mut Connections<Link>, waits: bool) -> bool {
        !waits || !ProxyDriver::has_handshakes(links)
    }

    fn write(driver: &mut ProxyDriver, links: &mut Connections<Link>) -> Written {
        driver.write(links)
    }

    fn let_go(
        driver: &mut ProxyDriver,
        links: &mut Connections<Link>,
        written: &Written,
        is_taken: &dyn Fn(usize) -> bool,
    ) -> usize {
        driver.release(links, written, is_taken)
    }

    /// Clients that nodes have and do not report yet.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        out.list(self.chooser.members().iter(), |out, (_, node)| {
            out.text(node.name());
            out.u64(node.recent().cast_unsigned());
        });
        out.into_bytes()
    }

    fn given(&self) {}
}

impl Proxy {
    /// Takes the clients of the process that started this one for that. When this returns all of them are there, and nothing
    /// was read.
    ///
    /// # Errors
    /// [`UpgradeError`]: the other process goes on.
    pub(crate) fn take_over(&self, predecessor: &Predecessor) -> Result<(), UpgradeError> {
        let chooser = &self.shared.chooser;
        let served = || chooser.members().into_iter().map(|(_, node)| node).filter(|node| !node.is_lost());
        let nodes: Nodes = served().map(|node| (node.name().into(), node)).collect();
        let nodes = Arc::new(nodes);
        let beside = |bytes: &[u8], sockets: Vec<TcpStream>| match sockets.is_empty() {
            true => note_recent(bytes, &nodes).map_err(UpgradeError::from),
            false => Err(UpgradeError::Malformed(Malformed)),
        };
        let taken =
            predecessor.take(beside, |record, sockets| moving::understand(record, sockets, &nodes))?;
        let known = Arc::clone(&nodes);
        taken.settle::<Handing>(&self.mailboxes, move |driver, links, record, sockets| {
            driver.go_on(links, record, sockets, &known)
        })?;
        // Who was lost meanwhile was lost before its clients were here.
        let still: HashSet<Box<str>> = served().map(|node| node.name().into()).collect();
        for node in nodes.values().filter(|node| !still.contains(node.name())) {
            cut(&self.mailboxes, node);
        }
        Ok(())
    }
}

fn note_recent(rest: &[u8], nodes: &Nodes) -> Result<(), Malformed> {
    let mut fields = Reader::new(rest);
    if fields.u8()? != VERSION {
        return Err(Malformed);
    }
    let recent = fields.list(|fields| Ok((fields.text()?, fields.u64()?.cast_signed())))?;
    fields.end()?;
    for (name, recent) in recent {
        if let Some(node) = nodes.get(name) {
            node.note_recent(recent);
        }
    }
    Ok(())
}
