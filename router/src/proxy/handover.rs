//! Clients that are handed over to gateways of this machine: the socket and what was read of it go through a Unix
//! socket, and from then on this router has nothing to do with them.
//!
//! ```text
//! client   Waiting ── offer + socket ──► gateway ── taken ──► released here
//!             │                            ├── refused ─────► the next node
//!             │ waits too long             └── gone ────────► the same node, through this router
//!             └─► the line is shut, its last answers are read; whoever has none is offered to the next node
//! ```
//!
//! A gateway touches a socket only after it has sent its answer, and to a line that is shut none can be sent: so a client
//! without an answer is still ours. One line from each shard to each gateway carries all offers.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_ops::handover::{Line, receive, send_with, shut_receiving};
use tidegate_reactor::{ConnectionId, Tick};
use tidegate_wire::handover::{
    ANSWERS_BYTES_MAX, Answer, Answers, OFFER_BYTES_MAX, OFFER_OVERHEAD_MAX, OFFERS_BYTES, OFFERS_MAX, Offer,
    Offers,
};

use super::{
    ConnectResult,
    driver::{Links, ProxyDriver},
    lines::{Lines, Offered, OpenLine},
    link::{Attempt, Link, Phase},
    metrics::HandoverMiss,
};
use crate::chooser::Node;

/// Records of answers taken in one turn: at 64 answers each and 10 µs to let go of a client, 16 are 10 ms at most, and
/// mostly far less, for a record has as many answers as the gateway had offers at once.
const RECORDS_PER_TURN: usize = 16;

/// A gateway that has restarted is announced anew within a second or two; meanwhile clients go through the router.
const PAUSE: Duration = Duration::from_secs(1);

impl ProxyDriver {
    /// Offers a client to a node of this machine. `false`: it has to go through this router.
    pub(super) fn hand_over(&mut self, links: &mut Links, client: ConnectionId, node: &Arc<Node>) -> bool {
        if !self.shared.options.handover {
            return false;
        }
        let location = node.location();
        let Some(path) = &location.handover else { return false };
        if links.tls(client).is_some() {
            self.metrics.handover_misses.add(HandoverMiss::Tls, 1);
            return false;
        }
        if !self.open_line(links, node, path) {
            self.metrics.handover_misses.add(HandoverMiss::Unreachable, 1);
            return false;
        }
        let (Some(attempt), Some(line)) = (waiting(links, client), self.lines.open.get_mut(&node.id()))
        else {
            return false;
        };
        if attempt.received.len() + OFFER_OVERHEAD_MAX >= OFFER_BYTES_MAX {
            self.metrics.handover_misses.add(HandoverMiss::Failed, 1);
            return false;
        }
        attempt.line = Some(node.id());
        let asked = Instant::now();
        // It counts for the node from now on, for whoever else is placed in this turn.
        line.waiting.push_back(Offered { client, claim: node.claim(asked), asked });
        self.lines.fresh.push(node.id());
        links.set_timer(client, links.now().after(self.shared.options.connect_timeout));
        true
    }

    /// Whether there is a line to the node, now.
    fn open_line(&mut self, links: &mut Links, node: &Arc<Node>, path: &Path) -> bool {
        let (lines, now) = (&mut self.lines, links.now());
        if lines.open.contains_key(&node.id()) {
            return true;
        }
        lines.paused.retain(|_, until| *until > now);
        if lines.paused.contains_key(&node.id()) {
            return false;
        }
        let opened = Line::connect(path).and_then(|line| {
            let id = links.reserve(Link::line(node.id()));
            links.attach(id, line.into()).inspect_err(|_| links.close(id)).map(|()| id)
        });
        match opened {
            Ok(id) => {
                let line = OpenLine {
                    id,
                    node: Arc::clone(node),
                    next_number: 0,
                    offers: HashMap::new(),
                    waiting: VecDeque::new(),
                };
                lines.open.insert(node.id(), line);
                true
            }
            Err(error) => {
                if let Some(left_out) = self.lineless.ask() {
                    tracing::warn!(
                        %error, node = node.name(), path = %path.display(), left_out,
                        "clients cannot be handed over to a gateway of this machine: they go through this router"
                    );
                }
                lines.paused.insert(node.id(), now.after(PAUSE));
                false
            }
        }
    }

    /// At the end of a turn: sends who came in it. Those of one gateway share records, and so system calls and the turn of
    /// its thread that reads them.
    pub(super) fn offer_fresh(&mut self, links: &mut Links) {
        while let Some(node) = self.lines.fresh.pop() {
            self.offer_waiting(links, node);
        }
    }

    /// Sends the sockets of the first of those that wait down an open line, in one record. How many; 0: nobody waits.
    fn offer_some(&mut self, links: &Links, node: u32) -> io::Result<usize> {
        let Lines { open, record, .. } = &mut self.lines;
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let line = open.get_mut(&node).ok_or_else(gone)?;
        line.waiting.retain(|offered| is_waiting(links, offered.client, node));
        record.clear();
        Offers::begin(record);
        let mut sockets = Vec::with_capacity(line.waiting.len().min(OFFERS_MAX));
        for Offered { client, .. } in line.waiting.iter().take(OFFERS_MAX) {
            let (Some(Phase::Waiting(attempt)), Some(socket)) =
                (links.get(*client).map(|link| &link.phase), links.socket(*client))
            else {
                return Err(gone());
            };
            let end = record.len() + OFFER_OVERHEAD_MAX + attempt.received.len();
            if !sockets.is_empty() && end > OFFERS_BYTES {
                break;
            }
            let number = line.next_number.wrapping_add(sockets.len() as u32);
            Offer { number, ends: attempt.ends, received: &attempt.received }.write(record);
            sockets.push(socket);
        }
        if sockets.is_empty() {
            return Ok(0);
        }
        send_with(links.socket(line.id).ok_or_else(gone)?, record, &sockets)?;
        for offered in line.waiting.drain(..sockets.len()) {
            line.offers.insert(line.next_number, offered);
            line.next_number = line.next_number.wrapping_add(1);
        }
        Ok(sockets.len())
    }

    /// A gateway has answered. Each record is a read of its own, and several may share one event.
    pub(super) fn read_answers(&mut self, links: &mut Links, id: ConnectionId, record: &[u8]) {
        let Some(Phase::Line(node)) = links.get(id).map(|link| &link.phase) else { return };
        let node = *node;
        if !self.take_answers(links, node, record) {
            return links.close(id);
        }
        let mut buffer = [0; ANSWERS_BYTES_MAX];
        for _ in 1..RECORDS_PER_TURN {
            match links.socket(id).map(|socket| receive(socket, &mut buffer)) {
                Some(Ok(Some(record))) => {
                    if !self.take_answers(links, node, record.bytes) {
                        return links.close(id);
                    }
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.offer_waiting(links, node);
                }
                // The reactor finds the end, too, and reports it.
                Some(Ok(None) | Err(_)) | None => break,
            }
        }
        links.read_out(id);
        self.offer_waiting(links, node);
    }

    /// `false`: they cannot be read, and the line is of no use.
    fn take_answers(&mut self, links: &mut Links, node: u32, record: &[u8]) -> bool {
        let answers = match Answers::parse(record) {
            Ok(answers) => answers,
            Err(error) => {
                if let Some(left_out) = self.lineless.ask() {
                    tracing::warn!(%error, left_out, "clients cannot be handed over to a gateway");
                }
                return false;
            }
        };
        answers.iter().for_each(|(number, answer)| self.take_answer(links, node, number, answer));
        true
    }

    fn take_answer(&mut self, links: &mut Links, node: u32, number: u32, answer: Answer) {
        let line = self.lines.open.get_mut(&node);
        let Some(Offered { client, claim, asked }) = line.and_then(|line| line.offers.remove(&number)) else {
            return;
        };
        match answer {
            Answer::Taken => {
                self.metrics.connects.add(ConnectResult::HandedOver, 1);
                claim.connected();
                claim.handed_over();
                self.let_go(links, client, node);
            }
            Answer::Draining | Answer::Full | Answer::Descriptors => {
                self.metrics.connects.add(ConnectResult::Busy, 1);
                claim.refused(asked, Instant::now());
                self.take_back(links, client, node, None);
            }
        }
    }

    /// The socket is the gateway's; this process has a descriptor of it that nobody needs.
    fn let_go(&mut self, links: &mut Links, client: ConnectionId, node: u32) {
        if waiting(links, client).is_none_or(|attempt| attempt.line != Some(node)) {
            return;
        }
        match links.release(client) {
            Ok(Some(released)) => self.count_client_out(&released.connection),
            // On its way out already: its end is still to be reported.
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a socket that was handed over could not leave the reactor"),
        }
    }

    /// A client was not taken: asks `next`, or the next node in its order.
    fn take_back(&mut self, links: &mut Links, client: ConnectionId, node: u32, next: Option<&Arc<Node>>) {
        let Some(attempt) = waiting(links, client).filter(|attempt| attempt.line == Some(node)) else {
            return;
        };
        attempt.line = None;
        if let Some(next) = next {
            attempt.next = Some(Arc::clone(next));
        }
        links.set_timer(client, Tick::NEVER);
        self.try_next(links, client);
    }

    /// The line has room again for those who wait.
    fn offer_waiting(&mut self, links: &mut Links, node: u32) {
        while self.lines.open.get(&node).is_some_and(|line| !line.waiting.is_empty()) {
            match self.offer_some(links, node) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "clients are not handed over");
                    // All of them are brought to the node in another way.
                    if let Some(line) = self.lines.open.get(&node) {
                        links.close(line.id);
                    }
                    return;
                }
            }
        }
    }

    /// A client has waited too long for an answer: so will all others of the line.
    pub(super) fn time_out_offer(&mut self, links: &mut Links, client: ConnectionId) {
        let Some(node) = waiting(links, client).and_then(|attempt| attempt.line) else { return };
        self.shut_line(links, node, ConnectResult::Timeout);
    }

    /// Waits for no more answers. Those that were sent before count; whoever has none is asked elsewhere.
    pub(super) fn shut_line(&mut self, links: &mut Links, node: u32, why: ConnectResult) {
        let Some(id) = self.lines.open.get(&node).map(|line| line.id) else { return };
        let mut buffer = [0; ANSWERS_BYTES_MAX];
        if let Some(socket) = links.socket(id) {
            // A line whose other end is gone cannot be shut, and nothing more comes from there either.
            if let Err(error) = shut_receiving(socket) {
                tracing::debug!(%error, "a line was not shut");
            }
        }
        while let Some(Ok(Some(record))) = links.socket(id).map(|socket| receive(socket, &mut buffer)) {
            if !self.take_answers(links, node, record.bytes) {
                break;
            }
        }
        let Some(line) = self.pause_line(links, node) else { return };
        for Offered { client, claim, asked } in line.offers.into_values() {
            self.metrics.connects.add(why, 1);
            claim.refused(asked, Instant::now());
            self.take_back(links, client, node, None);
        }
        for Offered { client, claim, .. } in line.waiting {
            drop(claim);
            self.take_back(links, client, node, None);
        }
    }

    /// The line to a gateway has ended: whoever it was not answered for has not been touched, and is brought there
    /// through this router.
    pub(super) fn line_closed(&mut self, links: &mut Links, node: u32, id: ConnectionId) {
        if self.lines.open.get(&node).is_none_or(|line| line.id != id) {
            return;
        }
        let Some(line) = self.pause_line(links, node) else { return };
        for Offered { client, claim, .. } in line.offers.into_values().chain(line.waiting) {
            // Its place is asked for anew.
            drop(claim);
            self.metrics.handover_misses.add(HandoverMiss::Failed, 1);
            self.take_back(links, client, node, Some(&line.node));
        }
    }

    /// No line to the node for a while.
    fn pause_line(&mut self, links: &mut Links, node: u32) -> Option<OpenLine> {
        let line = self.lines.open.remove(&node)?;
        self.lines.paused.insert(node, links.now().after(PAUSE));
        links.close(line.id);
        Some(line)
    }
}

/// Whether a client waits for an answer of this line.
fn is_waiting(links: &Links, client: ConnectionId, node: u32) -> bool {
    matches!(links.get(client).map(|link| &link.phase), Some(Phase::Waiting(attempt)) if attempt.line == Some(node))
}

/// A client for whom a node is asked.
fn waiting(links: &mut Links, client: ConnectionId) -> Option<&mut Attempt> {
    match links.get_mut(client).map(|link| &mut link.phase) {
        Some(Phase::Waiting(attempt)) => Some(attempt),
        _ => None,
    }
}
