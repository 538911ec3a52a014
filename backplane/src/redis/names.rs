//! The names of keys and pub/sub channels: `P:{TAG}…`, where everything of one tag is in one slot.

use std::fmt;

/// Longest prefix in bytes.
const PREFIX_BYTES_MAX: usize = 64;

/// Routes the node registry and what belongs to it. No channel's name has a `!`, so none shares these tags.
pub(crate) const NODES: &str = "!nodes";

/// Routes orders to all nodes.
pub(crate) const CONTROL: &str = "!control";

/// What every name of a deployment begins with: 1 to 64 bytes of `[A-Za-z0-9_.-]`.
///
/// It has no brace, so the first pair of braces in a name is that of its tag, whatever follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    name: Box<str>,
    /// What pub/sub channels begin with: those of all databases of a server are in one room, so the database is a part
    /// of their names.
    pubsub: Box<str>,
}

/// Why a prefix is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    #[error("the key prefix is empty; `tidegate` is the usual one")]
    Empty,
    #[error("the key prefix is {0} bytes long, {PREFIX_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the key prefix has {0:?}; allowed are letters, digits and _.-")]
    Character(char),
}

impl Prefix {
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        if prefix.is_empty() {
            return Err(PrefixError::Empty);
        }
        if prefix.len() > PREFIX_BYTES_MAX {
            return Err(PrefixError::TooLong(prefix.len()));
        }
        match prefix.chars().find(|c| !c.is_ascii_alphanumeric() && !"_.-".contains(*c)) {
            Some(character) => Err(PrefixError::Character(character)),
            None => Ok(Self { name: prefix.into(), pubsub: prefix.into() }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The same in a database of the server.
    pub(crate) fn in_database(self, db: u32) -> Self {
        let pubsub = if db == 0 { self.name.clone() } else { format!("{}:{db}", self.name).into() };
        Self { pubsub, ..self }
    }

    /// The pub/sub channel of a tag: `P:{TAG}`, in database 3 `P:3:{TAG}`.
    pub(crate) fn pubsub(&self, tag: &str) -> String {
        join(&[&self.pubsub, ":{", tag, "}"])
    }

    /// `P:{C}:m`, the hash that holds where a channel stands.
    pub(crate) fn meta(&self, channel: &str) -> String {
        self.key(channel, ":m")
    }

    /// `P:{C}:s`, the stream of a channel's publications.
    pub(crate) fn stream(&self, channel: &str) -> String {
        self.key(channel, ":s")
    }

    /// `P:{C}:i:KEY`, what was answered to an idempotency key.
    pub(crate) fn idempotency(&self, channel: &str, key: &str) -> String {
        format!("{}:{{{channel}}}:i:{key}", self.name)
    }

    /// `P:{C}:pe`, the hash of the entries of a channel: who is there, or counts.
    pub(crate) fn presence_entries(&self, channel: &str) -> String {
        self.key(channel, ":pe")
    }

    /// `P:{C}:ps`, the hash of how many are in a channel.
    pub(crate) fn presence_state(&self, channel: &str) -> String {
        self.key(channel, ":ps")
    }

    /// `P:{C}:pu`, the hash of the users in a channel.
    pub(crate) fn presence_users(&self, channel: &str) -> String {
        self.key(channel, ":pu")
    }

    /// `P:{C}:pd`, the ends that are told when they last.
    pub(crate) fn presence_ends(&self, channel: &str) -> String {
        self.key(channel, ":pd")
    }

    /// `P:{!nodes}`, the hash of node records.
    pub(crate) fn nodes(&self) -> String {
        self.key(NODES, "")
    }

    /// `P:{!nodes}:i`, the hash of the leases of instances.
    pub(crate) fn instances(&self) -> String {
        self.key(NODES, ":i")
    }

    /// `P:{!nodes}:s`, which is there while nobody need look through all nodes.
    pub(crate) fn nodes_swept(&self) -> String {
        self.key(NODES, ":s")
    }

    /// `P:{!nodes}:r:NODE`, what a node says to those who watch.
    pub(crate) fn report(&self, node: &str) -> String {
        format!("{}:{{{NODES}}}:r:{node}", self.name)
    }

    /// `P:{!nodes}:pc:INSTANCE`, the set of channels that an instance has to do with: it has entries there, or ends to
    /// tell.
    pub(crate) fn instance_channels(&self, instance: &str) -> String {
        format!("{}:{{{NODES}}}:pc:{instance}", self.name)
    }

    /// `P:{!nodes}:w:INSTANCE`, the hash of what is to be told of an instance's connections when it is dead.
    pub(crate) fn wills(&self, instance: &str) -> String {
        format!("{}:{{{NODES}}}:w:{instance}", self.name)
    }

    /// The tag of a pub/sub channel that [`pubsub`](Self::pubsub) named; `None` for names of others.
    pub(crate) fn tag_of<'a>(&self, pubsub: &'a [u8]) -> Option<&'a [u8]> {
        pubsub.strip_prefix(self.pubsub.as_bytes())?.strip_prefix(b":{")?.strip_suffix(b"}")
    }

    fn key(&self, tag: &str, end: &str) -> String {
        join(&[&self.name, ":{", tag, "}", end])
    }
}

fn join(parts: &[&str]) -> String {
    let mut name = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| name.push_str(part));
    name
}

impl Default for Prefix {
    fn default() -> Self {
        Self { name: "tidegate".into(), pubsub: "tidegate".into() }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_checked() {
        let check = |text: &str, expect: Result<(), PrefixError>| {
            assert_eq!(Prefix::new(text).map(|_| ()), expect, "{text}");
        };
        check("tidegate", Ok(()));
        check("A-1_b.c", Ok(()));
        check(&"p".repeat(64), Ok(()));
        check("", Err(PrefixError::Empty));
        check(&"p".repeat(65), Err(PrefixError::TooLong(65)));
        for (text, character) in [("a{b", '{'), ("a:b", ':'), ("a b", ' '), ("ä", 'ä')] {
            check(text, Err(PrefixError::Character(character)));
        }
    }

    #[test]
    fn names_are_those_of_the_adr() {
        let prefix = Prefix::new("P").expect("a prefix");
        assert_eq!(prefix.pubsub("C"), "P:{C}");
        assert_eq!(prefix.meta("C"), "P:{C}:m");
        assert_eq!(prefix.stream("C"), "P:{C}:s");
        assert_eq!(prefix.idempotency("C", "K"), "P:{C}:i:K");
        assert_eq!(prefix.presence_entries("C"), "P:{C}:pe");
        assert_eq!(prefix.presence_state("C"), "P:{C}:ps");
        assert_eq!(prefix.presence_users("C"), "P:{C}:pu");
        assert_eq!(prefix.presence_ends("C"), "P:{C}:pd");
        assert_eq!(prefix.nodes(), "P:{!nodes}");
        assert_eq!(prefix.instances(), "P:{!nodes}:i");
        assert_eq!(prefix.instance_channels("I"), "P:{!nodes}:pc:I");
        assert_eq!(prefix.wills("I"), "P:{!nodes}:w:I");
    }

    #[test]
    fn the_tag_of_a_pubsub_channel_is_read_back() {
        let prefix = Prefix::new("P").expect("a prefix");
        assert_eq!(prefix.tag_of(b"P:{a:b}"), Some(&b"a:b"[..]));
        let third = prefix.clone().in_database(3);
        assert_eq!(third.pubsub("C"), "P:3:{C}");
        assert_eq!(third.meta("C"), "P:{C}:m", "keys are apart by themselves");
        assert_eq!(third.tag_of(b"P:3:{a:b}"), Some(&b"a:b"[..]));
        assert_eq!((third.tag_of(b"P:{a}"), prefix.tag_of(b"P:3:{a}")), (None, None));
        for other in [&b"Q:{a}"[..], b"PP:{a}", b"P:a", b"P:{a", b"P", b""] {
            assert_eq!(prefix.tag_of(other), None);
        }
    }
}
