//! The domain's words as types: channel, epoch, position, publication.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
/// Text in shared memory; there is none that is not UTF-8.
pub use bytestring::ByteString as Text;

/// Longest channel name in bytes. Pusher's SDKs allow 200; Centrifugo 255 by default.
pub const CHANNEL_BYTES_MAX: usize = 200;

/// Longest id of an app in bytes.
pub const APP_BYTES_MAX: usize = 32;

/// A validated channel name: 1 to [`CHANNEL_BYTES_MAX`] bytes of `[A-Za-z0-9_\-=@,.;:#/$]`, shared by reference.
///
/// The part before the first `:` is its namespace, without a `$` at its front. A channel of another app than the default one is `APP!NAME` inside:
/// no name has a `!`, so no name of one app is a name of another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Channel(Arc<str>);

/// Why a channel name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    #[error("the channel name is empty")]
    Empty,
    #[error("the channel name is {0} bytes long, {CHANNEL_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the channel name has {character:?} at byte {at}; allowed are letters, digits and _-=@,.;:#/$")]
    Character { character: char, at: usize },
    #[error("an app's id has 1 to {APP_BYTES_MAX} of letters, digits, _ and -")]
    App,
}

impl Channel {
    /// Checks and shares a name in the default app.
    pub fn new(name: &str) -> Result<Self, ChannelError> {
        check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The channel of that name in another app than the default one.
    pub fn in_app(app: &str, name: &str) -> Result<Self, ChannelError> {
        if !is_app(app) {
            return Err(ChannelError::App);
        }
        check_name(name)?;
        Ok(Self(format!("{app}{APP_END}{name}").into()))
    }

    /// The channel inside: the app and the name. What clients see is [`name`](Self::name).
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in its app.
    pub fn name(&self) -> &str {
        self.split().1
    }

    /// The app, if it is not the default one.
    pub fn app(&self) -> Option<&str> {
        self.split().0
    }

    /// The part of the name before the first `:`, if there is one. What makes a channel private is no part of it.
    pub fn namespace(&self) -> Option<&str> {
        let (namespace, _) = self.name().split_once(':')?;
        Some(namespace.strip_prefix(PRIVATE).unwrap_or(namespace))
    }

    /// Whether its name says that nobody may subscribe without a right of his own.
    pub fn is_private(&self) -> bool {
        self.name().starts_with(PRIVATE)
    }

    /// The users that its name ends with: behind the last `#`, with commas between them.
    pub fn users(&self) -> Option<impl Iterator<Item = &str>> {
        let (_, users) = self.name().rsplit_once('#')?;
        Some(users.split(','))
    }

    /// What [`as_str`](Self::as_str) answered, on another node.
    pub fn from_inside(inside: &str) -> Result<Self, ChannelError> {
        match inside.split_once(APP_END) {
            Some((app, name)) => Self::in_app(app, name),
            None => Self::new(inside),
        }
    }

    fn split(&self) -> (Option<&str>, &str) {
        // At most 32 bytes of an app come first: a name without app is not searched to its end.
        let head = &self.0.as_bytes()[..self.0.len().min(APP_BYTES_MAX + 1)];
        match head.iter().position(|&byte| byte == APP_END as u8) {
            Some(at) => (Some(&self.0[..at]), &self.0[at + 1..]),
            None => (None, &self.0),
        }
    }
}

/// Begins the name of a private channel.
const PRIVATE: char = '$';

/// Ends the app in a channel; names have none.
const APP_END: char = '!';

/// Whether it is the id of an app: 1 to [`APP_BYTES_MAX`] bytes of `[A-Za-z0-9_-]`.
pub fn is_app(app: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=APP_BYTES_MAX).contains(&app.len()) && app.bytes().all(is_character)
}

fn check_name(name: &str) -> Result<(), ChannelError> {
    if name.is_empty() {
        return Err(ChannelError::Empty);
    }
    if name.len() > CHANNEL_BYTES_MAX {
        return Err(ChannelError::TooLong(name.len()));
    }
    match name.char_indices().find(|&(_, character)| !is_channel_character(character)) {
        Some((at, character)) => Err(ChannelError::Character { character, at }),
        None => Ok(()),
    }
}

fn is_channel_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_-=@,.;:#/$".contains(character)
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::borrow::Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// Names one unbroken run of offsets in a channel. Rendered as lower-case base 36.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Epoch(pub u64);

/// A place in a channel's history: `EPOCH:OFFSET`. The first publication of an epoch has offset 1; offset 0 is
/// the place before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    pub epoch: Epoch,
    pub offset: u64,
}

/// A position that is not of the form `EPOCH:OFFSET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a position has the form EPOCH:OFFSET, for example k3f9:42")]
pub struct PositionError;

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut buffer = [0u8; 13]; // 36^13 > 2^64
        let mut at = buffer.len();
        let mut rest = self.0;
        loop {
            at -= 1;
            buffer[at] = DIGITS[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        f.write_str(std::str::from_utf8(&buffer[at..]).expect("base-36 digits are ASCII"))
    }
}

impl std::str::FromStr for Epoch {
    type Err = PositionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if !plain {
            return Err(PositionError);
        }
        u64::from_str_radix(text, 36).map(Epoch).map_err(|_| PositionError)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

impl std::str::FromStr for Position {
    type Err = PositionError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, offset) = text.split_once(':').ok_or(PositionError)?;
        if !offset.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PositionError);
        }
        Ok(Self { epoch: epoch.parse()?, offset: offset.parse().map_err(|_| PositionError)? })
    }
}

/// What a publication carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    Text(Text),
    Binary(Bytes),
}

impl Payload {
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// One message in a channel, as subscribers see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Present where the channel keeps history.
    pub position: Option<Position>,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    pub sender: Option<Box<Sender>>,
}

/// Who sent a publication, where that matters to those who get it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sender {
    /// This connection is not handed the publication, on whichever node it is.
    pub connection: Option<Box<str>>,
    /// Told to the subscribers of presence channels.
    pub user: Option<Box<str>>,
}

impl Sender {
    /// Bytes of its texts.
    pub(crate) fn len(&self) -> usize {
        [&self.connection, &self.user].into_iter().flatten().map(|text| text.len()).sum()
    }
}

/// How much history a channel keeps. Both bounds hold; the smaller wins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryPolicy {
    /// Number of publications.
    pub size: u32,
    /// Age of a publication, and how long a channel keeps its epoch that is neither published to nor subscribed.
    pub age: Duration,
}

/// A request to publish.
#[derive(Clone, Debug)]
pub struct NewPublication {
    pub channel: Channel,
    pub event: Option<Box<str>>,
    pub payload: Payload,
    /// `None`: no history, no position.
    pub history: Option<HistoryPolicy>,
    /// A second publish to the same channel with the same key, within the backplane's idempotency window,
    /// publishes nothing and answers what the first one answered.
    pub idempotency_key: Option<Box<str>>,
    pub sender: Option<Box<Sender>>,
}

/// The answer to a publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    pub position: Option<Position>,
    /// True when an idempotency key was seen before and nothing was published.
    pub duplicate: bool,
}

/// What of a channel's history is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryQuery {
    /// Only what came after this position.
    pub since: Option<Position>,
    /// At most so many publications: the oldest of those after `since`, or, without `since`, the newest.
    pub limit: usize,
    /// Of those, the oldest that are together no more than so many bytes, or the first one if it alone is more. Each
    /// counts as [`Publication::history_bytes`], or a little more where it is kept in another form.
    pub bytes: usize,
}

impl HistoryQuery {
    /// What came after a position, as far as it fits: the next page begins after the last of it.
    pub fn page(since: Position, bytes: usize) -> Self {
        Self { since: Some(since), limit: usize::MAX, bytes }
    }

    /// The newest publications.
    pub fn newest(limit: usize) -> Self {
        Self { since: None, limit, bytes: usize::MAX }
    }
}

impl Publication {
    /// What it counts as in a read of history that is bounded in bytes: its texts, and 64 for what is written around
    /// them, so that empty publications are bounded too.
    pub fn history_bytes(&self) -> usize {
        self.payload.bytes().len() + self.event.as_ref().map_or(0, |event| event.len()) + 64
    }
}

/// A part of a channel's history, oldest first, and where the channel stood when it was read.
///
/// | query | publications | continuous |
/// | --- | --- | --- |
/// | no `since` | the newest `limit` of those kept | true |
/// | `since` is the top | none | true |
/// | all after `since` are kept | the oldest `limit` of them | true |
/// | some after `since` are no longer kept | the oldest `limit` of those that are | false |
/// | `since` is of another epoch, or above the top | none | false |
/// | `since`, but the channel has no state (never published to with history, or lost it) | none, `top` is `None` | false |
#[derive(Clone, Debug)]
pub struct History {
    pub publications: Vec<Arc<Publication>>,
    /// Position of the newest publication; `None` when the channel has never had one (or lost its state).
    pub top: Option<Position>,
    /// How long the newest of `publications` is kept from now on; `None` without publications.
    pub left: Option<Duration>,
    /// With `since`: what followed it is here without a hole (up to `limit` and `bytes`). Without `since`: always true.
    pub continuous: bool,
}

/// Continuity was lost between the backplane and this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    pub reason: GapReason,
    /// Where the channel stands now, when that is known.
    pub top: Option<Position>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum GapReason {
    /// The connection to the backplane was lost and made again.
    Reconnect,
    /// A bounded queue was full.
    Overflow,
    /// An offset was skipped.
    Hole,
    /// A client's position is no longer, or not, in history.
    Unrecoverable,
    /// History was lost, and nothing else: all that was published was delivered to who was subscribed.
    Forgotten,
}

/// What a node says of itself; the router and `GET /v1/nodes` read it.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeRecord {
    pub name: Box<str>,
    /// `HOST:PORT` where clients reach it.
    pub address: Box<str>,
    pub zone: Option<Box<str>>,
    pub version: Box<str>,
    pub connections: u64,
    /// Connections it accepts at most.
    pub capacity: u64,
    pub draining: bool,
    /// Where routers of its machine hand sockets over to it, as it says it.
    pub handover: Option<Box<str>>,
}

/// How long nodes report after they were told that somebody watches.
pub const WATCH_LEASE: Duration = Duration::from_secs(15);

/// How long a report is kept: a node that reports each second may miss a few.
pub const REPORT_LEASE: Duration = Duration::from_secs(5);

/// Largest report. One of 16 resources, 100 counters and 40 channels with names of 40 characters has 8 KiB.
pub const REPORT_BYTES_MAX: usize = 16 * 1024;

/// Connections that nodes look up at once for those who watch.
pub const LOOKUPS_MAX: usize = 8;

/// An order for every node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// Close the connections of a user, or one connection.
    Disconnect { target: Target, reason: Box<str> },
    /// Somebody watches: report ([`Backplane::report`](crate::Backplane::report)) each second for [`WATCH_LEASE`], and
    /// look up these connections, as presence names them, at most [`LOOKUPS_MAX`].
    Watch { connections: Vec<Box<str>> },
    /// A router asks a node that these of its connections come back, by the other ends of their sockets: the node that they
    /// belong to has room.
    AskBack { node: Box<str>, peers: Vec<SocketAddr> },
    /// Something that a gateway asks of connections, or asks about them, in its own words.
    Instruct { target: Target, text: Box<str> },
}

/// Whom an order is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A user of an app; without one, of the default app.
    User {
        app: Option<Box<str>>,
        user: Box<str>,
    },
    Connection(Box<str>),
    /// Those that are subscribed to it.
    Channel(Channel),
    /// All of an app; without one, of every app.
    Everyone {
        app: Option<Box<str>>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_knows_its_app_and_its_name() {
        let check = |channel: Result<Channel, ChannelError>, app, name: &str, namespace, inside: &str| {
            let channel = channel.expect("a channel");
            assert_eq!((channel.app(), channel.name(), channel.namespace()), (app, name, namespace));
            assert_eq!(channel.as_str(), inside);
            assert_eq!(Channel::from_inside(inside), Ok(channel));
        };
        check(Channel::new("a:b"), None, "a:b", Some("a"), "a:b");
        check(Channel::in_app("1", "a:b:c"), Some("1"), "a:b:c", Some("a"), "1!a:b:c");
        check(Channel::in_app("A-1_", "x"), Some("A-1_"), "x", None, "A-1_!x");
        let (app, name) = ("a".repeat(APP_BYTES_MAX), "n".repeat(CHANNEL_BYTES_MAX));
        check(Channel::in_app(&app, &name), Some(&app), &name, None, &format!("{app}!{name}"));
        check(Channel::new(&name), None, &name, None, &name);
    }

    #[test]
    fn no_name_and_no_app_has_an_exclamation_mark() {
        assert_eq!(Channel::new("a!b"), Err(ChannelError::Character { character: '!', at: 1 }));
        assert_eq!(Channel::in_app("a", "b!c"), Err(ChannelError::Character { character: '!', at: 1 }));
        assert_eq!(Channel::in_app("a", ""), Err(ChannelError::Empty));
        for app in ["", "a!b", "a:b", "a.b", "ä", &"a".repeat(APP_BYTES_MAX + 1)] {
            assert_eq!(Channel::in_app(app, "c"), Err(ChannelError::App), "{app}");
        }
        for inside in ["!nodes", "a!b!c", "a!", "!"] {
            assert!(Channel::from_inside(inside).is_err(), "{inside}");
        }
    }
}
