//! Names of channels: which are allowed, and what a prefix means.

/// Pusher's own limit is 164; its server SDKs let 200 pass, and so do the channels inside.
pub const CHANNEL_BYTES_MAX: usize = 200;

/// Before a user's id: the channel of what the server sends to that user.
pub const SERVER_TO_USER: &str = "#server-to-user-";

/// Before a user's id: the channel that this user attends while signed in. Clients cannot name it; who has the user on
/// the watchlist is subscribed to it.
pub const WATCH: &str = "#watch-";

/// What a channel is by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChannelKind {
    pub access: Access,
    /// Its last event is kept and sent to new subscribers first.
    pub is_cache: bool,
}

/// Who may subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    Public,
    /// Who has a signature.
    Private,
    /// The same; who is there is told to all of them.
    Presence,
    /// As private, and the payloads are encrypted end to end: clients cannot publish.
    Encrypted,
    /// `#server-to-user-ID`: who is signed in as that user.
    User,
}

/// A name that is no channel for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the channel name is empty")]
    Empty,
    #[error("the channel name has {bytes} bytes, {max} are allowed")]
    TooLong { bytes: usize, max: usize },
    #[error("the channel name has a character that is not allowed; letters, digits and _-=@,.; are")]
    Character,
}

impl ChannelKind {
    /// The kind of any name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let (access, rest) = match name {
            _ if name.starts_with(SERVER_TO_USER) => (Access::User, ""),
            // `#watch-` is nobody's to subscribe to, and any other `#` is reserved.
            _ if name.starts_with('#') => (Access::User, ""),
            _ => name
                .strip_prefix("private-encrypted-")
                .map(|rest| (Access::Encrypted, rest))
                .or_else(|| name.strip_prefix("private-").map(|rest| (Access::Private, rest)))
                .or_else(|| name.strip_prefix("presence-").map(|rest| (Access::Presence, rest)))
                .unwrap_or((Access::Public, name)),
        };
        Self { access, is_cache: rest.starts_with("cache-") }
    }

    /// Whether a subscription needs a signature or a user, and so must not be had without.
    #[must_use]
    pub fn is_restricted(self) -> bool {
        self.access != Access::Public
    }

    /// Whether clients may send events to it.
    #[must_use]
    pub fn takes_client_events(self) -> bool {
        matches!(self.access, Access::Private | Access::Presence)
    }
}

/// Checks a name that a client subscribes to.
///
/// # Errors
/// [`NameError`]; a `#` is allowed only as the beginning of [`SERVER_TO_USER`].
pub fn check_name(name: &str, bytes_max: usize) -> Result<ChannelKind, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong { bytes: name.len(), max: bytes_max });
    }
    let plain = server_to_user(name).unwrap_or(name);
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-=@,.;".contains(&byte);
    match !plain.is_empty() && plain.bytes().all(is_allowed) {
        true => Ok(ChannelKind::of(name)),
        false => Err(NameError::Character),
    }
}

/// The user of a channel `#server-to-user-ID`.
#[must_use]
pub fn server_to_user(name: &str) -> Option<&str> {
    name.strip_prefix(SERVER_TO_USER)
}

/// The user of a channel `#watch-ID`.
#[must_use]
pub fn watched_user(name: &str) -> Option<&str> {
    name.strip_prefix(WATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_say_the_kind() {
        let check = |name: &str, access, is_cache| {
            assert_eq!(check_name(name, 164), Ok(ChannelKind { access, is_cache }), "{name}");
        };
        check("news", Access::Public, false);
        check("cache-news", Access::Public, true);
        check("private-a", Access::Private, false);
        check("private-cache-a", Access::Private, true);
        check("private-encrypted-a", Access::Encrypted, false);
        check("private-encrypted-cache-a", Access::Encrypted, true);
        check("presence-a", Access::Presence, false);
        check("presence-cache-a", Access::Presence, true);
        check("#server-to-user-7", Access::User, false);
        check("privately", Access::Public, false);
        check("cached", Access::Public, false);
        check("private-", Access::Private, false);
    }

    #[test]
    fn names_of_clients() {
        let check = |name: &str, expect| assert_eq!(check_name(name, 10).map(|_| ()), expect, "{name}");
        check("aZ9_-=@,.;", Ok(()));
        check("", Err(NameError::Empty));
        check("elevenbytes", Err(NameError::TooLong { bytes: 11, max: 10 }));
        for name in ["a b", "a:b", "a/b", "a!b", "#a", "a#", "é", "a\n", "\"", "#watch-u"] {
            check(name, Err(NameError::Character));
        }
        assert_eq!(check_name(SERVER_TO_USER, 164), Err(NameError::Character));
        assert_eq!(check_name("#server-to-user-#", 164), Err(NameError::Character));
    }

    #[test]
    fn what_is_not_public_is_restricted() {
        for name in ["private-a", "presence-a", "private-encrypted-a", "#server-to-user-1", "#watch-1", "#x"]
        {
            assert!(ChannelKind::of(name).is_restricted(), "{name}");
        }
        assert!(!ChannelKind::of("cache-a").is_restricted());
    }
}
