//! The sections about traffic: limits, heartbeat, drain, namespaces.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use tidegate_backplane::{Channel, HistoryPolicy};

use tidegate_ops::{budget::Rate, choice, section};

use super::{ByteSize, ConfigError, Entry, Load, Node};

section! {
    /// What one node, one address and one connection may use. In rates, 0 means 'no limit'.
    Limits {
        /// Open client connections of this node. More are refused with 503 and counted.
        connections: u32 = connections_default(),
            shown "descriptor limit − 200";
        /// Open connections of one client address (for IPv6 of its /64). 0: no limit, because behind a proxy or a
        /// carrier's NAT many clients share one address.
        connections_per_address: u32 = 0;
        /// How old a connection may get; then its client is asked to come back, as in a drain, after three quarters of this to
        /// all of it. Behind a balancer that knows no load, nodes that were added fill so. It is looked at with each
        /// heartbeat. 0: no limit.
        connection_age: Duration = Duration::ZERO;
        /// Handshakes that this node accepts per second; more are answered 503 with `Retry-After`. Where this node ends TLS,
        /// every connection is one, and more are closed before the TLS handshake, which is what costs. 0: no
        /// limit. At 40 µs of CPU each, 2000 take 8 % of one core, and what is connected stays undisturbed
        /// when clients of a lost node all come at once.
        handshakes_per_second: u32 = 2_000;
        /// Handshakes that may come at once on top of the rate: two seconds' worth.
        handshakes_burst: u32 = 4_000;
        /// Handshakes per second from one client address (for IPv6 from its /64), with two seconds' worth at once; more
        /// are answered 429. Refused ones count, and where this node ends TLS every connection does. It is taken before
        /// `handshakes_per_second`, so that half of that is left for all others. 0: no limit, for a node that sees one
        /// address for all its clients: a balancer that is not in `trusted_proxies`.
        address_handshakes_per_second: u32 = 1_000;
        /// A client that has not sent its whole request head by then is disconnected.
        handshake_timeout: Duration = Duration::from_secs(10);
        /// A request line with its headers. Holds an 8 KiB token and a browser's usual headers.
        head_bytes: ByteSize = ByteSize::kib(16);
        /// One message from a client, whole and inflated; a longer one closes the connection with 1009.
        message_bytes: ByteSize = ByteSize::kib(64);
        /// The payload of one publication over REST; a longer one is answered 413.
        publish_bytes: ByteSize = ByteSize::kib(64);
        /// The whole body of one REST request, which may hold a batch of publications; else 413.
        body_bytes: ByteSize = ByteSize::mib(1);
        /// Channels that one connection may be subscribed to.
        subscriptions: u32 = 100;
        /// The same for a raw WebSocket or event stream without a token or key, and for a client of Pusher Channels while
        /// its app's server has signed neither a user nor a channel for it. A channel that nobody else is in costs about
        /// 1.8 KiB here and 1 KiB in Redis with a name of 200 bytes: 20 are 55 KiB.
        anonymous_subscriptions: u32 = 20;
        /// Channels of this node that have a subscriber. Subscriptions to more are refused with 503. At 1.8 KiB, 500,000
        /// take 0.9 GiB. 0: no limit.
        channels: u32 = 500_000;
        /// Subscriptions that one open connection may ask for per second, with as many at once, or `subscriptions` where
        /// that is more. Each costs up to 30 commands of Redis with its end: 10 are 300 a second. More are refused and
        /// told. 0: no limit.
        subscribes_per_second: u32 = 10;
        /// Messages that one connection may send per second, with one second's worth at once: publications, commands,
        /// pings, refused and malformed ones. More are not refused: they wait, unread. 0: no limit.
        messages_per_second: u32 = 250;
        /// Bytes per second that the compressed messages of one connection may inflate to, with one second's worth at
        /// once. More are not refused: they wait, unread. A frame of 90 bytes may inflate to 64 KiB. 0: no limit.
        inflated_bytes_per_second: ByteSize = ByteSize::kib(256);
        /// Whether clients may compress what they send (permessage-deflate). What they are sent follows the namespaces'
        /// `compression`; both need the extension, so switched off there is neither.
        compression: bool = true;
        /// Publications per second that one connection may send, with one second's worth at once. 0: no limit.
        publishes_per_second: u32 = 100;
        /// Payload bytes per second that one connection may publish, with one second's worth at once. A rate
        /// below `message_bytes` would refuse a message that `message_bytes` allows. 0: no limit.
        publish_bytes_per_second: ByteSize = ByteSize::kib(256);
        /// Bytes that may wait for one connection that reads too slowly, before its namespace's `slow_reader`
        /// policy applies. At 1 MiB, 1000 stuck readers hold at most 1 GiB.
        send_queue_bytes: ByteSize = ByteSize::mib(1);
        /// Bytes that clients had sent before they left and that wait to be published or are under way, in the whole
        /// node. It fills only while publishes wait for a backplane or for room. What waits beyond it is dropped, counted
        /// as `publish_failed`. What is under way to Redis is bounded there, by 16 MiB of commands for each server, which
        /// are held three times over until they are written.
        left_behind_bytes: ByteSize = ByteSize::mib(8);
        /// Bytes of history that may be read at once for clients that recover, in pages of 64 KiB; when it is used up,
        /// reads wait their turn. What was read and written counts in `send_queue_bytes` of its connection. A quarter more
        /// is kept for up to 6 s of what was read, for clients that ask for the same.
        recovery_bytes: ByteSize = ByteSize::mib(32);
    }
}

impl Limits {
    pub(crate) fn handshakes(&self) -> Rate {
        Rate { per_second: self.handshakes_per_second, at_once: self.handshakes_burst }
    }

    /// What one address may take of the node's handshakes; of no limit there is no share.
    pub(crate) fn address_handshakes(&self) -> Rate {
        let per_second = match self.handshakes_per_second {
            0 => 0,
            _ => self.address_handshakes_per_second,
        };
        Rate { per_second, at_once: per_second.saturating_mul(2) }
    }

    pub(crate) fn messages(&self) -> Rate {
        Rate::per_second(self.messages_per_second)
    }

    pub(crate) fn inflated_bytes(&self) -> Rate {
        Rate::per_second(u32::try_from(self.inflated_bytes_per_second.bytes()).unwrap_or(u32::MAX))
    }

    pub(crate) fn subscribes(&self) -> Rate {
        Rate {
            per_second: self.subscribes_per_second,
            at_once: self.subscriptions.max(self.subscribes_per_second),
        }
    }
}

section! {
    /// Routers of this machine.
    Handover {
        /// Path of a Unix socket on which this node takes clients' sockets over from routers of the same machine and user,
        /// so that no byte goes through the router: it is announced in the registry, so the backplane must be a Redis. The
        /// directory must exist; the path has at most 107 bytes. Without it, routers pass bytes on.
        socket: Option<PathBuf> = None;
    }
}

section! {
    /// Finding connections that died without a word.
    Heartbeat {
        /// A connection that was silent for so long is pinged. 25 s stays under the 30 s after which the
        /// strictest common proxies and carriers drop an idle connection.
        interval: Duration = Duration::from_secs(25);
        /// A connection that sends nothing for so long after the ping is closed. Time in which the node itself was late does
        /// not count.
        timeout: Duration = Duration::from_secs(10);
    }
}

section! {
    /// Stopping without a reconnect storm. A pod's grace period must exceed `settle` + `period` +
    /// `close_wait` + 10 s.
    Drain {
        /// Time to go on accepting after the node said that it drains, while routers hear of it.
        settle: Duration = Duration::from_secs(5);
        /// Time over which the connections are closed in equal slices. With 30 s, a node of 15,000
        /// connections closes 500 per second.
        period: Duration = Duration::from_secs(30);
        /// Time to wait for the clients' close frames at the end.
        close_wait: Duration = Duration::from_secs(5);
        /// Time over which clients are closed after a gap that they cannot be told of in any other way, when more than
        /// 128 of a shard have to be. They get nothing of the channel meanwhile. Only in namespaces whose
        /// `untold_gap` is `close`.
        gap_period: Duration = Duration::from_secs(10);
        /// File with a token. `POST /drain` with `Authorization: Bearer TOKEN` is then taken from other machines, too.
        token_file: Option<PathBuf> = None;
    }
}

section! {
    /// What the channels of one namespace are allowed and what they keep. The namespace of a channel is the
    /// part of its name before the first `:`.
    Namespace {
        /// Whether a client without a token may subscribe.
        anonymous_subscribe: bool = false;
        /// Whether a client whose token names a user (`sub`) may subscribe. A channel whose name begins with `$` is open to
        /// nobody by this or by `anonymous_subscribe`: it takes a token that has the channel.
        user_subscribe: bool = false;
        /// Whether a name that ends in `#` and users, with commas between them, is a channel of these users: `inbox:#ada`,
        /// `talk:7#ada,bob`. They may subscribe, and others only with a token that has the channel. Off, `#` means nothing.
        user_channels: bool = false;
        /// Who may publish over a client connection: `never`, `token` (a token whose `publish` claim has the
        /// channel), `subscribed` (who is in the channel), `anyone`. REST publishing with an API key is always possible.
        client_publish: ClientPublish = ClientPublish::Token;
        /// Who may ask who is in a channel over a client connection: `never`, `subscribed` (who is in it), `allowed` (who
        /// may subscribe to it). With `never` nobody is told who joins and leaves, either.
        client_presence: ClientRead = ClientRead::Allowed;
        /// Who may read the history of a channel over a client connection, by the same words. What a client missed it gets
        /// in any case.
        client_history: ClientRead = ClientRead::Allowed;
        /// Publications that are kept per channel, for recovery and `GET …/history`. 0: no history. History
        /// takes memory in the backplane, so it is off until asked for.
        history_size: u32 = 0;
        /// Age up to which publications are kept. Set it together with `history_size`.
        history_age: Duration = Duration::ZERO;
        /// What a client of Centrifugo's protocol gets that comes back to a channel: `stream`, all that it missed; `cache`,
        /// the newest publication, also when it comes for the first time and asks for it.
        recovery: RecoveryMode = RecoveryMode::Stream;
        /// Whether clients of Centrifugo's protocol that ask for it are told by how a publication differs from the one before
        /// (`delta`), computed once for all of them. Only where `slow_reader` is `disconnect`: whoever misses one cannot read
        /// the next.
        delta: bool = false;
        /// Whether the members of a channel are tracked. Costs a backplane write per subscribe and per leave.
        presence: bool = false;
        /// Which clients of Centrifugo's protocol are told who joins and leaves a channel whose members are tracked:
        /// `asked`, those that ask for it; `all`, also the others, and those that the server has subscribed.
        join_leave: JoinLeave = JoinLeave::Asked;
        /// What happens to a publish while the backplane is out of reach: `refuse` answers 503; `local` delivers it to
        /// the subscribers on this node alone, without position and history, and says so in the answer. A publish
        /// whose outcome is not known (`backplane-unconfirmed`) is refused in any case.
        backplane_away: BackplaneAway = BackplaneAway::Refuse;
        /// What happens to a client whose queue is full (`limits.send_queue_bytes`): `disconnect` closes it,
        /// so that it comes back and recovers; `drop` leaves out what does not fit; `latest` keeps only the
        /// newest publication per channel.
        slow_reader: SlowReader = SlowReader::Disconnect;
        /// What happens at a gap to clients that get payloads verbatim, which leaves no way to tell them: `close` ends
        /// the connection with 4010, so that they come back; `stay` goes on, and counts them in
        /// `tidegate_gaps_untold_total`.
        untold_gap: UntoldGap = UntoldGap::Close;
        /// Whether publications are deflated, once per publication, for clients that negotiated it. Off,
        /// because short messages do not shrink.
        compression: bool = false;
    }
}

choice! {
    /// Who may publish over a client connection.
    ClientPublish, r#""never", "token", "subscribed" or "anyone""#, "a list of these words", {
        Never = "never",
        /// Clients whose token has the right.
        Token = "token",
        /// Clients that are in the channel.
        Subscribed = "subscribed",
        Anyone = "anyone",
    }
}

choice! {
    /// Who may read something of a channel over a client connection.
    ClientRead, r#""never", "subscribed" or "allowed""#, "a list of these words", {
        Never = "never",
        /// Clients that are in the channel.
        Subscribed = "subscribed",
        /// Clients that may subscribe to it.
        Allowed = "allowed",
    }
}

choice! {
    /// What of the past a client gets that comes back.
    RecoveryMode, r#""stream" or "cache""#, "a list of these words", {
        Stream = "stream",
        Cache = "cache",
    }
}

choice! {
    /// Who is told who joins and leaves.
    JoinLeave, r#""asked" or "all""#, "a list of these words", {
        Asked = "asked",
        All = "all",
    }
}

choice! {
    /// What happens to a publish while the backplane is out of reach.
    BackplaneAway, r#""refuse" or "local""#, "a list of these words", {
        Refuse = "refuse",
        Local = "local",
    }
}

choice! {
    /// What happens at the bound of a connection's queue.
    SlowReader, r#""disconnect", "drop" or "latest""#, "a list of these words", {
        Disconnect = "disconnect",
        Drop = "drop",
        Latest = "latest",
    }
}

choice! {
    /// What happens at a gap to clients that cannot be told of it.
    UntoldGap, r#""close" or "stay""#, "a list of these words", {
        Close = "close",
        Stay = "stay",
    }
}

impl Namespace {
    /// What the backplane is asked to keep; `None` without history.
    pub fn history(&self) -> Option<HistoryPolicy> {
        (self.history_size > 0).then_some(HistoryPolicy { size: self.history_size, age: self.history_age })
    }

    /// Whether clients may be told by differences.
    pub(crate) fn may_tell_deltas(&self) -> bool {
        self.delta && self.slow_reader == SlowReader::Disconnect
    }

    /// Whether clients may be told who joins and leaves.
    pub(crate) fn tells_presence(&self) -> bool {
        self.presence && self.client_presence != ClientRead::Never
    }
}

impl ClientRead {
    /// Whether a client may read that may subscribe. `is_in`: it is in the channel.
    pub(crate) fn allows(self, is_in: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Subscribed => is_in,
            Self::Allowed => true,
        }
    }
}

/// All namespaces. Channels whose namespace is not configured, or that have none, use `default`.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    pub default: Namespace,
    pub named: BTreeMap<Box<str>, Namespace>,
}

impl Namespaces {
    /// The options of a channel.
    pub fn of(&self, channel: &Channel) -> &Namespace {
        channel.namespace().and_then(|name| self.named.get(name)).unwrap_or(&self.default)
    }

    /// Every namespace with its name, `default` first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        std::iter::once(("default", &self.default))
            .chain(self.named.iter().map(|(name, options)| (&**name, options)))
    }
}

impl Load for Namespaces {
    /// A namespace begins as a copy of `default` and changes what it names.
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError> {
        let table = node.table()?;
        if let Some(value) = table.get(DEFAULT) {
            self.default.load(&node.child(DEFAULT, value))?;
        }
        for (name, value) in table {
            let child = node.child(name, value);
            if name == DEFAULT {
                continue;
            }
            if name.contains(':') || !Channel::new(name).is_ok_and(|channel| !channel.is_private()) {
                return Err(child.unknown(name, &[]));
            }
            let mut options = self.default.clone();
            options.load(&child)?;
            self.named.insert(name.into(), options);
        }
        Ok(())
    }

    fn describe(
        &self,
        key: &str,
        doc: &[&'static str],
        shown: Option<&'static str>,
        entries: &mut Vec<Entry>,
    ) {
        self.default.describe(&format!("{key}.NAME"), doc, shown, entries);
    }
}

const DEFAULT: &str = "default";

/// Descriptors that are not clients: standard streams 3, listeners 2, epoll, wake-up and the spare one of 32 shards 96,
/// Tokio 4, the backplane's connections 16, keys being fetched 6, and some 70 kept-alive HTTP connections: 197, rounded up.
const DESCRIPTORS_RESERVED: u64 = 200;

fn connections_default() -> u32 {
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let usable = soft.unwrap_or(u64::from(u32::MAX)).saturating_sub(DESCRIPTORS_RESERVED);
    u32::try_from(usable).unwrap_or(u32::MAX).max(1)
}
