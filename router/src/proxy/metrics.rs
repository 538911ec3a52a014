//! What the proxy counts: one group for each shard, and one for the door and HTTP.

use std::fmt;

use tidegate_ops::{
    label,
    metrics::{Counter, Counters, Gauge, Page},
    tls::TlsHandshake,
};

label!(
    /// Why a request did not come to a node, or its answer not to the client.
    RefusalReason, "reason", {
        Malformed = "malformed",
        TooLarge = "too_large",
        Timeout = "timeout",
        RateLimit = "rate_limit",
        NoCapacity = "no_capacity",
        Draining = "draining",
        NoNode = "no_node",
        Descriptors = "descriptors",
        BadAnswer = "bad_answer",
        NoAnswer = "no_answer",
        /// No TLS session came about.
        TlsFailed = "tls_failed",
        /// The connection does not begin with the balancer's header.
        ProxyHeader = "proxy_header",
        /// The connection does not come from a balancer that may name clients.
        ProxyPeer = "proxy_peer",
        /// A node failed, and the budget for asking another one is used up.
        RetryBudget = "retry_budget",
        /// The request has come through this router before.
        Loop = "loop",
    }
);

label!(
    /// What came of asking a node.
    ConnectResult, "result", {
        /// It answered.
        Answered = "answered",
        /// The connection was refused, or there is no way to the node.
        Refused = "refused",
        /// The connection did not stand in time.
        Timeout = "timeout",
        /// It took the request, and ended without an answer.
        Closed = "closed",
        /// It took the request, and did not answer in time.
        Silent = "silent",
        /// It answered that it takes no more clients.
        Busy = "busy",
        /// This process lacks descriptors, ports or memory for a connection.
        Lack = "lack",
        /// It left the members meanwhile.
        Removed = "removed",
        /// It has taken the client's socket over.
        HandedOver = "handed_over",
    }
);

label!(
    /// Why a client did not come to the first node of its key.
    Fallback, "reason", {
        /// It is over its bound.
        Full = "full",
        /// It refused connections a moment ago.
        Avoided = "avoided",
        /// It failed this client.
        Failed = "failed",
    }
);

label!(
    /// Why a client of a gateway on this machine goes through this router.
    HandoverMiss, "reason", {
        /// Its TLS session is here.
        Tls = "tls",
        /// Nothing answers on the gateway's socket, or not this user.
        Unreachable = "unreachable",
        /// The gateway ended before it had answered, or the kernel refused to send the socket.
        Failed = "failed",
    }
);

label!(
    Direction, "direction", {
        ToNodes = "to_nodes",
        ToClients = "to_clients",
        /// From clients, where nothing may be sent: after the request for a stream, or after a refusal.
        Ignored = "ignored",
    }
);

label!(
    /// Why pairs were closed from here.
    CutReason, "reason", {
        /// The node is gone.
        Node = "node",
        Drain = "drain",
        /// One side had ended, and the other was quiet.
        HalfClosed = "half_closed",
        /// The last bytes were not taken, or the end not answered, in time.
        Lingered = "lingered",
    }
);

/// A group.
#[derive(Debug, Default)]
pub struct ProxyMetrics {
    /// Pairs whose bytes move now.
    pub pairs: Gauge,
    pub pairs_opened: Counter,
    /// Connections that left for HTTP.
    pub http_connections: Counter,
    pub refusals: Counters<RefusalReason>,
    pub connects: Counters<ConnectResult>,
    pub fallbacks: Counters<Fallback>,
    pub handover_misses: Counters<HandoverMiss>,
    pub bytes: Counters<Direction>,
    pub cuts: Counters<CutReason>,
    /// Clients that belong to another node, which has room.
    pub asked_back: Counter,
    pub tls_handshakes: Counters<TlsHandshake>,
    /// Bytes that wait in queues now.
    pub queued_bytes: Gauge,
    pub busy_ns: Counter,
}

impl ProxyMetrics {
    /// Writes the families, summed over all groups.
    pub fn encode(groups: &[&Self], page: &mut Page<'_>) -> fmt::Result {
        let sum = |of: &dyn Fn(&Self) -> u64| groups.iter().map(|group| of(group)).sum::<u64>();
        let gauge = |of: &dyn Fn(&Self) -> i64| groups.iter().map(|group| of(group)).sum::<i64>() as f64;
        page.gauge("proxied_connections", "Clients connected to a node.", gauge(&|group| group.pairs.get()))?;
        page.counter(
            "proxied_connections_opened",
            "Clients brought to a node.",
            sum(&|group| group.pairs_opened.get()),
        )?;
        page.counter(
            "http_connections",
            "Connections whose requests are balanced one by one.",
            sum(&|group| group.http_connections.get()),
        )?;
        let each = || groups.iter().copied();
        page.counters("refusals", "Requests that were refused.", each().map(|group| &group.refusals))?;
        page.counters("upstream_connects", "Nodes asked.", each().map(|group| &group.connects))?;
        page.counters(
            "fallbacks",
            "Clients not brought to the first node of their key.",
            each().map(|group| &group.fallbacks),
        )?;
        page.counters(
            "handover_misses",
            "Clients of gateways on this machine that were not handed over to them.",
            each().map(|group| &group.handover_misses),
        )?;
        page.counters("bytes", "Bytes passed on.", each().map(|group| &group.bytes))?;
        page.counters("cuts", "Clients closed by the router.", each().map(|group| &group.cuts))?;
        page.counter(
            "asked_back",
            "Times that a node was asked to send a client back, because its own node has room.",
            sum(&|group| group.asked_back.get()),
        )?;
        let tls = each().map(|group| &group.tls_handshakes);
        page.counters("tls_handshakes", "TLS sessions that began or broke off, by result.", tls)?;
        page.gauge(
            "send_queue_bytes",
            "Bytes that wait for a socket.",
            gauge(&|group| group.queued_bytes.get()),
        )
    }
}
