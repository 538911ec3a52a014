//! Names of events: the rule that holds wherever a publication is given one, and the names that are the gateway's.

/// Longest name in characters; Pusher's limit.
pub(crate) const NAME_CHARACTERS_MAX: usize = 200;

/// Event streams: continuity was lost.
pub(crate) const GAP: &str = "gap";
/// Event streams: a slow reader missed messages.
pub(crate) const DROPPED: &str = "dropped";
/// Event streams: the gateway ends the stream.
pub(crate) const DISCONNECT: &str = "disconnect";
/// Event streams: the payload is base64.
pub(crate) const BINARY: &str = "binary";

/// Event streams that ask for it: who is in the channel, who joined, who left. Publications may have these names, too: a
/// stream that asks knows them by what its publishers use, or by the envelope.
pub(crate) const MEMBERS: &str = "members";
pub(crate) const JOIN: &str = "join";
pub(crate) const LEAVE: &str = "leave";

/// Event streams: what the application says to a client that it lets in.
pub(crate) const CONNECTED: &str = "connected";

/// A publication under one of these names could not be told from what the gateway itself says on an event stream.
pub(crate) const RESERVED: [&str; 4] = [GAP, DROPPED, DISCONNECT, BINARY];

/// What the gateway itself says to clients of Pusher Channels begins so; a publication could pass for it.
pub(crate) const RESERVED_PREFIXES: [&str; 2] = ["pusher:", "pusher_internal:"];

/// Why a name is refused; the publisher's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventNameError {
    #[error("an event name has 1 to {NAME_CHARACTERS_MAX} characters and no control characters")]
    Form,
    #[error("the event names {} are the gateway's own", RESERVED.join(", "))]
    Reserved,
    #[error("event names that begin with {} are the gateway's own", RESERVED_PREFIXES.join(" or "))]
    ReservedPrefix,
}

/// Checks the name of a publication's event. It goes into the lines of event streams and into JSON, so it has no
/// control characters.
pub(crate) fn check_name(name: &str) -> Result<(), EventNameError> {
    if name.is_empty() || name.chars().count() > NAME_CHARACTERS_MAX || name.chars().any(char::is_control) {
        return Err(EventNameError::Form);
    }
    if RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(EventNameError::ReservedPrefix);
    }
    if RESERVED.contains(&name) { Err(EventNameError::Reserved) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_publications() {
        for name in [
            "goal",
            "tick é",
            "Gap",
            "gaps",
            "message",
            "pusher",
            "client-pusher:a",
            &"é".repeat(NAME_CHARACTERS_MAX),
        ] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "a\nb", "a\rb", "a\u{85}b", &"e".repeat(NAME_CHARACTERS_MAX + 1)] {
            assert_eq!(check_name(name), Err(EventNameError::Form), "{name:?}");
        }
        for name in ["gap", "dropped", "disconnect", "binary"] {
            assert_eq!(check_name(name), Err(EventNameError::Reserved), "{name}");
        }
        for name in ["pusher:error", "pusher_internal:member_added"] {
            assert_eq!(check_name(name), Err(EventNameError::ReservedPrefix), "{name}");
        }
    }
}
