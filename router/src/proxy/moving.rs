//! Clients that go on in another process, with their connections to nodes, and those that come from one.
//!
//! A pair is little more than two sockets: what was read from one and not taken by the other is the only thing that is
//! nowhere else. That a side is paused, or has ended, follows from that and from the sockets.

use std::{
    collections::{HashMap, HashSet},
    net::TcpStream,
    sync::Arc,
};

use tidegate_ops::{
    edge::Preamble,
    succession::{Record, Written},
};
use tidegate_reactor::{ConnectionId, Kept};
use tidegate_wire::{
    fields::Malformed,
    proxied::{self, Client, Side},
    proxy_v2::Addresses,
};

use super::{
    driver::{Links, ProxyDriver},
    link::{End, Head, Link, Phase, Pipe},
};
use crate::chooser::{Claim, Node};

/// Nodes by name, of those that are known.
pub(super) type Nodes = HashMap<Box<str>, Arc<Node>>;

/// Whether a client can go on here.
///
/// # Errors
/// [`Malformed`]: it is of another form, or its node is not among those that are known.
pub(super) fn understand(record: &[u8], sockets: usize, nodes: &Nodes) -> Result<(), Malformed> {
    let is_understood = match Client::parse(record)? {
        Client::Head(_) => sockets == 1,
        Client::Pair(pair) => sockets == 2 && nodes.contains_key(&pair.node),
    };
    if is_understood { Ok(()) } else { Err(Malformed) }
}

impl ProxyDriver {
    /// Whether a node is asked for a client, which is a pair in a moment.
    pub(super) fn has_handshakes(links: &Links) -> bool {
        let mut all = (0..links.slots()).filter_map(|slot| links.in_slot(slot));
        all.any(|id| matches!(links.get(id), Some(Link { phase: Phase::Waiting(_), .. })))
    }

    /// What of this shard's clients can go on elsewhere.
    pub(super) fn write(&self, links: &mut Links) -> Written {
        // Those are about to be closed, whose nodes have gone.
        let cut: HashSet<ConnectionId> = self.cut.iter().map(|(id, _)| *id).collect();
        let ids: Vec<ConnectionId> = (0..links.slots()).filter_map(|slot| links.in_slot(slot)).collect();
        let records = ids.into_iter().filter_map(|id| match links.get(id)? {
            Link { end: End::Client, phase: Phase::Head(_) } => moving_head(links, id),
            Link { end: End::Client, phase: Phase::Piped(pipe) } if !cut.contains(&pipe.peer) => {
                let pipe = *pipe;
                moving_pair(links, id, pipe)
            }
            _ => None,
        });
        let records = records.collect();
        let (newest_generation, has_under_way) = (links.newest_generation(), Self::has_handshakes(links));
        Written { newest_generation, records, has_under_way }
    }

    /// Lets go of what another process has. How many clients stay.
    pub(super) fn release(
        &mut self,
        links: &mut Links,
        written: &Written,
        is_taken: &dyn Fn(usize) -> bool,
    ) -> usize {
        let taken = written.records.iter().enumerate().filter(|(at, _)| is_taken(*at));
        for &id in taken.flat_map(|(_, record)| &record.connections) {
            match links.let_go(id) {
                Ok(Some(link)) if matches!(link.end, End::Client) => {
                    self.count_client_out(&link);
                    self.metrics.pairs.add(-i64::from(matches!(link.phase, Phase::Piped(_))));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a connection that moved is still polled here"),
            }
        }
        let is_client =
            |link: &Link| matches!(link.end, End::Client) && !matches!(link.phase, Phase::Line(_));
        let rest = (0..links.slots()).filter_map(|slot| links.in_slot(slot));
        rest.filter(|&id| links.get(id).is_some_and(is_client)).count()
    }

    /// Goes on with a client of another process.
    ///
    /// # Errors
    /// [`Malformed`]: it is none that was [understood](understand).
    pub(super) fn go_on(
        &mut self,
        links: &mut Links,
        record: &[u8],
        sockets: Vec<TcpStream>,
        nodes: &Nodes,
    ) -> Result<(), Malformed> {
        match Client::parse(record)? {
            Client::Head(head) => {
                let [socket] = <[TcpStream; 1]>::try_from(sockets).map_err(|_| Malformed)?;
                let proxied::Head { source, destination, awaits_header, received, timer_in } = head;
                let preamble = if awaits_header { Preamble::Proxy } else { Preamble::None };
                let ends = Addresses { source, destination };
                let head = Head { ends, preamble, received, over: false };
                self.shared.door.arrived(self.shard);
                let id = links.reserve(Link { end: End::Client, phase: Phase::Head(Box::new(head)) });
                links.resume(id, socket, Kept { timer_in, ..Kept::default() });
            }
            Client::Pair(pair) => {
                let sockets = <[TcpStream; 2]>::try_from(sockets).map_err(|_| Malformed)?;
                let claim = nodes.get(&pair.node).ok_or(Malformed)?.claim_reported();
                self.shared.door.arrived(self.shard);
                self.go_on_pair(links, pair, claim, sockets);
            }
        }
        Ok(())
    }

    fn go_on_pair(
        &mut self,
        links: &mut Links,
        pair: proxied::Pair,
        claim: Claim,
        [client_socket, node_socket]: [TcpStream; 2],
    ) {
        let proxied::Pair { key, is_deaf, to_client, to_node, .. } = pair;
        let client = links.reserve(Link { end: End::Client, phase: Phase::Leaving { node: None } });
        let pipe = Pipe { peer: client, key, deaf: false, ended: false };
        let node = links.reserve(Link { end: End::Node(claim), phase: Phase::Piped(pipe) });
        if let Some(link) = links.get_mut(client) {
            link.phase = Phase::Piped(Pipe { peer: node, key, deaf: is_deaf, ended: false });
        }
        self.metrics.pairs.add(1);
        for (id, socket, side) in [(client, client_socket, to_client), (node, node_socket, to_node)] {
            let Side { heard_ago, unsent } = side;
            links.resume(id, socket, Kept { heard_ago, unsent, is_half_open: true, ..Kept::default() });
        }
        for (to, from) in [(client, node), (node, client)] {
            if links.queued_bytes(to) > 0 {
                Self::wait_for(links, to, from);
            }
        }
    }
}

fn moving_head(links: &mut Links, id: ConnectionId) -> Option<Record> {
    let Kept { timer_in, .. } = links.kept(id)?;
    let Some(Phase::Head(head)) = links.get(id).map(|link| &link.phase) else { return None };
    let awaits_header = match head.preamble {
        Preamble::None => false,
        Preamble::Proxy => true,
        Preamble::Tls | Preamble::Session(_) => return None,
    };
    if head.over {
        return None;
    }
    let Addresses { source, destination } = head.ends;
    let received = head.received.clone();
    let head = Client::Head(proxied::Head { source, destination, awaits_header, received, timer_in });
    Some(Record { connections: vec![id], bytes: head.to_bytes() })
}

fn moving_pair(links: &mut Links, client: ConnectionId, pipe: Pipe) -> Option<Record> {
    let side = |kept: Kept| Side { heard_ago: kept.heard_ago, unsent: kept.unsent };
    let to_client = links.kept_of_pair(client).map(side)?;
    let to_node = links.kept_of_pair(pipe.peer).map(side)?;
    let Some(Link { end: End::Node(claim), phase: Phase::Piped(back) }) = links.get(pipe.peer) else {
        return None;
    };
    if back.peer != client {
        return None;
    }
    let (node, key, is_deaf) = (claim.node().name().into(), pipe.key, pipe.deaf);
    let pair = Client::Pair(proxied::Pair { node, key, is_deaf, to_client, to_node });
    Some(Record { connections: vec![client, pipe.peer], bytes: pair.to_bytes() })
}
