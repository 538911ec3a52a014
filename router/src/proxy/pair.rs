//! A pair of connections: bytes, pauses and ends are carried from each to the other.
//!
//! What is read goes to the other socket at once. Only what that socket does not take waits, in its queue, and then
//! the source is not read until the queue is empty. So a queue holds at most what one read took: 64 KiB.

use std::time::Duration;

use tidegate_reactor::{ConnectionId, Tick, Written};

use super::{
    ConnectResult,
    driver::{Links, ProxyDriver},
    link::{End, Kind, Link, Phase, Pipe},
    metrics::{CutReason, Direction},
};

/// Once one side has ended, the other may be quiet for so long. Half-closed exchanges are rare with WebSockets; a peer
/// that vanished in the middle of one is not found in another way.
const HALF_CLOSED_QUIET_MAX: Duration = Duration::from_secs(30);

/// A connection that ends has so long to take its last bytes, and to end its side.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// The kernel gives up a client of a stream, which says nothing by itself, when what it was sent is not acknowledged.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

impl ProxyDriver {
    /// The node has answered: from now on bytes move. `answer` is what it has said.
    pub(super) fn open_pair(
        &mut self,
        links: &mut Links,
        client: ConnectionId,
        node: ConnectionId,
        answer: &[u8],
    ) {
        let Some(link) = links.get_mut(client) else { return };
        let Phase::Waiting(attempt) = std::mem::replace(&mut link.phase, Phase::Leaving { node: None })
        else {
            return;
        };
        let deaf = attempt.kind == Kind::Stream;
        let key = attempt.candidates.key().halves();
        link.phase = Phase::Piped(Pipe { peer: node, key, deaf, ended: false });
        let Some(link) = links.get_mut(node) else { return };
        link.end.answered(&self.metrics);
        link.phase = Phase::Piped(Pipe { peer: client, key, deaf: false, ended: false });
        for id in [client, node] {
            links.set_half_open(id);
            links.set_timer(id, Tick::NEVER);
        }
        #[cfg(target_os = "linux")]
        if deaf && let Err(error) = links.set_unacknowledged_max(client, UNACKNOWLEDGED_MAX) {
            tracing::debug!(%error, "the limit for unacknowledged bytes could not be set");
        }
        self.metrics.pairs.add(1);
        self.metrics.pairs_opened.add(1);
        if let Some(drain) = &mut self.drain {
            drain.join(client);
        }
        links.set_paused(client, false);
        self.pass(links, Direction::ToClients, node, client, answer);
        let early = attempt.early();
        if !early.is_empty() {
            self.pass(links, Direction::ToNodes, client, node, early);
        }
    }

    /// Hands bytes on from one connection to another.
    pub(super) fn pass(
        &mut self,
        links: &mut Links,
        direction: Direction,
        from: ConnectionId,
        to: ConnectionId,
        bytes: &[u8],
    ) {
        match direction {
            Direction::ToClients => self.to_clients += bytes.len() as u64,
            _ => self.to_nodes += bytes.len() as u64,
        }
        match links.write(to, bytes) {
            Written::Sent => {}
            Written::Queued | Written::Dropped(_) => Self::wait_for(links, to, from),
            // Its end is told next, and ends the other one.
            Written::Closed => {}
        }
    }

    /// Where something waits for a connection, its source is not read until that has been sent.
    pub(super) fn wait_for(links: &mut Links, to: ConnectionId, from: ConnectionId) {
        links.set_paused(from, true);
        links.tell_flushed(to);
    }

    /// A connection has ended what it sends.
    pub(super) fn end(&mut self, links: &mut Links, id: ConnectionId) {
        let pipe = match links.get_mut(id).map(|link| &mut link.phase) {
            Some(Phase::Piped(pipe)) => {
                pipe.ended = true;
                *pipe
            }
            // It was told all, and has now said all.
            Some(Phase::Leaving { .. }) => return links.close_when_flushed(id),
            _ => return,
        };
        let Some(Phase::Piped(other)) = links.get(pipe.peer).map(|link| &link.phase) else { return };
        if other.ended {
            // The other one takes what waits for it; this one ends with it.
            return self.part(links, id, pipe.peer);
        }
        links.shut_when_flushed(pipe.peer);
        links.set_timer(pipe.peer, links.now().after(HALF_CLOSED_QUIET_MAX));
    }

    /// One side has ended; this is the other, whose time to be quiet has passed.
    pub(super) fn time_out_half(&mut self, links: &mut Links, id: ConnectionId) {
        let quiet = links.silent(id);
        if quiet < HALF_CLOSED_QUIET_MAX {
            return links.set_timer(id, links.now().after(HALF_CLOSED_QUIET_MAX - quiet));
        }
        self.metrics.cuts.add(CutReason::HalfClosed, 1);
        links.close(id);
    }

    /// A pair ends because `gone` is gone or has nothing more to say; `other` takes what waits for it.
    pub(super) fn part(&mut self, links: &mut Links, gone: ConnectionId, other: ConnectionId) {
        let is_pair = |links: &Links, id, peer| matches!(links.get(id), Some(Link { phase: Phase::Piped(pipe), .. }) if pipe.peer == peer);
        if is_pair(links, other, gone) {
            self.metrics.pairs.add(-1);
            self.leave(links, other);
        }
        if is_pair(links, gone, other) {
            self.leave(links, gone);
        }
    }

    /// A connection is to take what waits for it, and ends.
    pub(super) fn leave(&mut self, links: &mut Links, id: ConnectionId) {
        let Some(link) = links.get_mut(id) else { return };
        let ended = matches!(link.phase, Phase::Piped(Pipe { ended: true, .. }));
        let of_node = matches!(link.end, End::Node(_));
        link.phase = Phase::Leaving { node: None };
        links.set_timer(id, links.now().after(LINGER_MAX));
        if ended || of_node {
            return links.close_when_flushed(id);
        }
        // Read to its end: a socket closed with unread bytes is reset, and the client may lose what it was told last
        // (RFC 9112 §9.6).
        links.set_paused(id, false);
        links.shut_when_flushed(id);
    }

    /// The node of a pair, or one that was asked, is gone from the members.
    pub(super) fn cut_node(&mut self, links: &mut Links, id: ConnectionId) {
        match links.get(id).map(|link| &link.phase) {
            Some(&Phase::Piped(pipe)) => {
                // A node that has ended its side has told its client all, and is gone because it has.
                if !links.has_ended(id) {
                    self.metrics.cuts.add(CutReason::Node, 1);
                }
                self.part(links, id, pipe.peer);
            }
            Some(Phase::Awaiting { .. }) => self.abandon_node(links, id, ConnectResult::Removed),
            Some(Phase::Relaying { .. }) => links.close(id),
            _ => {}
        }
    }

    pub(super) fn drain_client(&mut self, links: &mut Links, id: ConnectionId) {
        if let Some(Phase::Piped(pipe)) = links.get(id).map(|link| &link.phase) {
            let node = pipe.peer;
            self.metrics.cuts.add(CutReason::Drain, 1);
            self.part(links, node, id);
        }
    }
}
