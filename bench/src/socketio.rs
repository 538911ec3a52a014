//! The little of Socket.IO's protocol (revision 5, over Engine.IO 4 in WebSocket text frames) that a subscriber needs.

/// Sent after the upgrade: connect to the main namespace.
pub(crate) const CONNECT: &[u8] = b"40";
/// The answer to a [`Packet::Ping`].
pub(crate) const PONG: &[u8] = b"3";

/// What a server's frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Ping,
    /// The namespace let us in.
    Connected,
    /// What follows the opening quote of an event `message`'s first argument.
    Message(&'a [u8]),
    Other,
}

/// Reads the head of a frame. Engine.IO: `2` ping, `4` message; inside of it Socket.IO: `0` connect, `2` event.
pub(crate) fn packet(head: &[u8]) -> Packet<'_> {
    match head {
        b"2" => Packet::Ping,
        [b'4', b'0', ..] => Packet::Connected,
        _ => head.strip_prefix(br#"42["message",""#).map_or(Packet::Other, Packet::Message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart() {
        for (head, expected) in [
            (&br#"0{"sid":"x","upgrades":[],"pingInterval":25000}"#[..], Packet::Other),
            (b"2", Packet::Ping),
            (br#"40{"sid":"y"}"#, Packet::Connected),
            (br#"42["message","T71de"]"#, Packet::Message(br#"T71de"]"#)),
            (br#"42["other","T71de"]"#, Packet::Other),
            (b"", Packet::Other),
        ] {
            assert_eq!(packet(head), expected);
        }
    }
}
