//! The state of a connection of the proxy, a client's or one to a node.
//!
//! ```text
//! client   Head ──► Waiting ──► Piped ──► Leaving        node   Awaiting ──► Piped ──► Leaving
//!            └─► handed to HTTP    │         ▲                      └─► Relaying ──────┘
//!            └─────────► refused ──┴─────────┘
//!                  └─► handed over                            line   Line
//! ```

use std::{sync::Arc, time::Instant};

use tidegate_ops::edge::Preamble;
use tidegate_reactor::ConnectionId;
use tidegate_wire::proxy_v2::Addresses;

use super::metrics::ConnectResult;
use crate::chooser::{Candidates, Claim, Node};

/// State of one connection: at most 32 bytes, see the assertion below.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) end: End,
    pub(super) phase: Phase,
}

// Two of them and two entries of the reactor (40 bytes) are an idle pair: 144 bytes.
const _: () = assert!(size_of::<Link>() <= 32, "an idle connection pays for this twice");

/// Whose connection it is.
#[derive(Debug)]
pub(super) enum End {
    /// A client's, or a line's, with which no place is given back.
    Client,
    /// Its place on the node is given back with it.
    Node(Claim),
}

#[derive(Debug)]
pub(super) enum Phase {
    /// A client whose request head is not complete.
    Head(Box<Head>),
    /// A client for which a node is asked. It is not read.
    Waiting(Box<Attempt>),
    /// A node that was asked and has not answered.
    Awaiting { client: ConnectionId, failure: Option<ConnectResult> },
    /// A node that answered an upgrade with something else than a switch; so many bytes of its body are to come.
    Relaying { client: ConnectionId, left: BodyLeft },
    /// One end of a pair.
    Piped(Pipe),
    /// A line to the node of this number, which carries sockets and no bytes of clients.
    Line(u32),
    /// It was told all that it is told, or is about to be. The node that is still relayed, if there is one.
    Leaving { node: Option<ConnectionId> },
}

#[derive(Debug)]
pub(super) struct Head {
    /// Who it is and where it connected to: the ends of the socket, or those that the balancer's header names.
    pub(super) ends: Addresses,
    /// What is to come first.
    pub(super) preamble: Preamble,
    /// Bytes of an incomplete head, or of an incomplete header of the balancer.
    pub(super) received: Vec<u8>,
    /// It was let in only to be told that there is no room.
    pub(super) over: bool,
}

/// A request and where it may go.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) kind: Kind,
    /// The page that asks for a stream.
    pub(super) page: Option<Box<str>>,
    /// Who asks and where it connected to.
    pub(super) ends: Addresses,
    /// What was read: the head and what came after it. A node that gets the socket gets all of it. Another one gets what
    /// came after the head only when it has switched protocols: before that it would be another request.
    pub(super) received: Vec<u8>,
    pub(super) head_len: usize,
    /// The node to whose line it was given, and that has not answered.
    pub(super) line: Option<u32>,
    /// Nodes not tried yet.
    pub(super) candidates: Candidates,
    /// The node to be asked when the one that is asked has ended.
    pub(super) next: Option<Arc<Node>>,
    /// Nodes tried.
    pub(super) tried: u32,
    /// When the last of them was asked.
    pub(super) asked: Instant,
    pub(super) node: Option<ConnectionId>,
    /// The beginning of an answer that is not clear yet.
    pub(super) answer: Vec<u8>,
}

/// What becomes of a connection when its node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes move both ways after a 101.
    Upgrade,
    /// The answer is passed on until the node ends it; nothing of the client is.
    Stream,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Pipe {
    pub(super) peer: ConnectionId,
    /// Of the client's key: where the client belongs. Only the client's end says so.
    pub(super) key: [u32; 2],
    /// What it sends goes nowhere: a client after its one request for a stream.
    pub(super) deaf: bool,
    /// It has ended what it sends.
    pub(super) ended: bool,
}

/// How much of a body is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyLeft {
    Bytes(u32),
    /// Until the node ends it.
    Unknown,
}

impl Head {
    /// The balancer's header is not complete.
    pub(super) fn awaits_header(&self) -> bool {
        matches!(self.preamble, Preamble::Proxy)
    }
}

impl Link {
    pub(super) fn client(ends: Addresses, over: bool, preamble: Preamble) -> Self {
        let head = Head { ends, preamble, received: Vec::new(), over };
        Self { end: End::Client, phase: Phase::Head(Box::new(head)) }
    }

    pub(super) fn line(node: u32) -> Self {
        Self { end: End::Client, phase: Phase::Line(node) }
    }

    pub(super) fn node(claim: Claim, client: ConnectionId) -> Self {
        Self { end: End::Node(claim), phase: Phase::Awaiting { client, failure: None } }
    }
}
