//! The upgrade from HTTP to WebSocket (RFC 6455 §4.2) and the negotiation of permessage-deflate (RFC 7692 §7.1).

use std::borrow::Cow;

use base64::Engine as _;
use sha1::{Digest as _, Sha1};

use crate::http_answer::{push_header, push_status};

/// A request that may become a WebSocket, and what was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade {
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: [u8; 28],
    /// Set when messages may be compressed, in both directions, each on its own.
    pub deflate: Option<DeflateParams>,
}

/// What was agreed about permessage-deflate. Both sides always drop their context after a message: a broadcast is
/// then deflated once for everyone, and no connection owns a window (RFC 7692 §7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateParams {
    /// The client's bound on the server's window, 9 to 15 bits, when it asked for one (RFC 7692 §7.1.2.1).
    server_max_window_bits: Option<u8>,
}

/// Why a request does not become a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    #[error("a WebSocket opens with GET")]
    Method,
    #[error("a WebSocket opens with HTTP/1.1")]
    HttpVersion,
    #[error("the Host header is missing or repeated")]
    Host,
    #[error("this address speaks WebSocket: the Upgrade header does not name websocket")]
    UpgradeHeader,
    #[error("the Connection header does not name upgrade")]
    ConnectionHeader,
    #[error("the Sec-WebSocket-Version is not 13")]
    Version,
    #[error("the Sec-WebSocket-Key is not 16 bytes in base64")]
    Key,
    #[error(
        "offer a subprotocol beside the token, such as tidegate.v1: a browser closes where none is chosen"
    )]
    Protocol,
}

/// Headers of the answer, whoever writes it.
pub type ResponseHeader<'a> = (&'static str, Cow<'a, str>);

/// RFC 6455 §1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The largest window of DEFLATE, 32 KiB, and what holds when nobody asked for less (RFC 7692 §7.1.2).
const WINDOW_BITS_MAX: u8 = 15;

/// zlib's deflate cannot work with a window of 8 bits on a raw stream; such an offer is passed over.
const SERVER_WINDOW_BITS_MIN: u8 = 9;

impl Upgrade {
    /// Checks a request (RFC 6455 §4.2.1) and agrees on extensions.
    ///
    /// `header` answers the value of a header, repeated ones joined with `", "` (RFC 9110 §5.3).
    ///
    /// # Errors
    /// [`UpgradeError`], which knows its HTTP status and headers.
    pub fn negotiate<'a>(
        method: &str,
        minor_version: u8,
        header: impl Fn(&str) -> Option<Cow<'a, str>>,
        allow_deflate: bool,
    ) -> Result<Self, UpgradeError> {
        if method != "GET" {
            return Err(UpgradeError::Method);
        }
        if !has_token(header("upgrade").as_deref(), "websocket") {
            return Err(UpgradeError::UpgradeHeader);
        }
        if minor_version < 1 {
            return Err(UpgradeError::HttpVersion);
        }
        // Two Host headers arrive joined by a comma, which no host name holds (RFC 9112 §3.2).
        if header("host").is_none_or(|host| host.contains(',')) {
            return Err(UpgradeError::Host);
        }
        if !has_token(header("connection").as_deref(), "upgrade") {
            return Err(UpgradeError::ConnectionHeader);
        }
        if header("sec-websocket-version").as_deref().map(str::trim) != Some("13") {
            return Err(UpgradeError::Version);
        }
        let key = header("sec-websocket-key").ok_or(UpgradeError::Key)?;
        let key = key.trim();
        if !is_key(key) {
            return Err(UpgradeError::Key);
        }
        let offers = if allow_deflate { header("sec-websocket-extensions") } else { None };
        Ok(Self { accept: accept_key(key), deflate: offers.as_deref().and_then(choose_deflate) })
    }

    /// Appends the `101` answer. `protocol` is the subprotocol chosen among those the client offered; one that is
    /// not a token cannot have been offered and is left out.
    pub fn write_response(&self, out: &mut Vec<u8>, protocol: Option<&str>) {
        push_status(101, "Switching Protocols", out);
        for (name, value) in self.response_headers() {
            push_header(name, &value, out);
        }
        if let Some(protocol) = protocol.filter(|protocol| is_token(protocol)) {
            push_header("Sec-WebSocket-Protocol", protocol, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The headers of the `101` answer, for a server that writes it by other means. The subprotocol is the
    /// caller's to add.
    pub fn response_headers(&self) -> impl Iterator<Item = ResponseHeader<'_>> {
        let accept = Cow::from(std::str::from_utf8(&self.accept).unwrap_or_default());
        [
            Some(("Upgrade", Cow::Borrowed("websocket"))),
            Some(("Connection", Cow::Borrowed("Upgrade"))),
            Some(("Sec-WebSocket-Accept", accept)),
            self.deflate.map(|deflate| ("Sec-WebSocket-Extensions", deflate.to_header())),
        ]
        .into_iter()
        .flatten()
    }
}

impl DeflateParams {
    /// Bits of the largest window that the client can inflate.
    #[must_use]
    pub fn server_window_bits(self) -> u8 {
        self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)
    }

    /// Whether this client can inflate a message that was deflated with the full window. It can when its window
    /// holds the whole message: no reference reaches further back than the message's start, because contexts are
    /// dropped. For a longer message, deflate with [`Self::server_window_bits`] or send it plain, which is always
    /// allowed (RFC 7692 §6).
    #[must_use]
    pub fn can_share(self, message_bytes: usize) -> bool {
        let bits = self.server_window_bits();
        bits == WINDOW_BITS_MAX || message_bytes <= 1 << bits
    }

    fn to_header(self) -> Cow<'static, str> {
        const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        match self.server_max_window_bits {
            None => Cow::Borrowed(ANSWER),
            Some(bits) => Cow::Owned(format!("{ANSWER}; server_max_window_bits={bits}")),
        }
    }
}

impl UpgradeError {
    /// The HTTP status that answers it.
    #[must_use]
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Method => (405, "Method Not Allowed"),
            Self::UpgradeHeader | Self::Version => (426, "Upgrade Required"),
            Self::HttpVersion | Self::Host | Self::ConnectionHeader | Self::Key | Self::Protocol => {
                (400, "Bad Request")
            }
        }
    }

    /// Headers that the answer must carry: what would have been right (RFC 9110 §15.5.6, §15.5.22; RFC 6455 §4.4).
    #[must_use]
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Method => &[("Allow", "GET")],
            Self::UpgradeHeader | Self::Version => {
                &[("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
            }
            _ => &[],
        }
    }
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2, step 5.4).
#[must_use]
pub fn accept_key(key: &str) -> [u8; 28] {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; 28];
    // 20 bytes are 28 characters of base64: the slice is exactly large enough.
    let written = base64::engine::general_purpose::STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(accept.len()));
    accept
}

/// The subprotocols of a `Sec-WebSocket-Protocol` header, in the client's order of preference.
pub fn protocols(header: &str) -> impl Iterator<Item = &str> {
    list(header).filter(|protocol| is_token(protocol))
}

/// The first offer that can be accepted; an offer that breaks a rule is passed over (RFC 7692 §5.1, §7.1).
fn choose_deflate(offers: &str) -> Option<DeflateParams> {
    split_outside_quotes(offers, b',').find_map(accept_offer)
}

fn accept_offer(offer: &str) -> Option<DeflateParams> {
    let mut parts = split_outside_quotes(offer, b';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen = OfferParams::default();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquote(value.trim_start())?)),
            None => (part, None),
        };
        seen.take(name, value)?;
    }
    if seen.server_max_window_bits.is_some_and(|bits| bits < SERVER_WINDOW_BITS_MIN) {
        return None;
    }
    Some(DeflateParams { server_max_window_bits: seen.server_max_window_bits })
}

/// The parameters of one offer; none may come twice (RFC 7692 §7.1).
#[derive(Default)]
struct OfferParams {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    client_max_window_bits: bool,
}

impl OfferParams {
    /// Notes a parameter; `None` when it is unknown, repeated, or has a value it must not have.
    fn take(&mut self, name: &str, value: Option<&str>) -> Option<()> {
        let once = |seen: &mut bool| !std::mem::replace(seen, true);
        let good = match (name.to_ascii_lowercase().as_str(), value) {
            ("server_no_context_takeover", None) => once(&mut self.server_no_context_takeover),
            ("client_no_context_takeover", None) => once(&mut self.client_no_context_takeover),
            ("server_max_window_bits", Some(bits)) => {
                self.server_max_window_bits.replace(window_bits(bits)?).is_none()
            }
            ("client_max_window_bits", None) => once(&mut self.client_max_window_bits),
            // Any window a client may use fits into ours of 32 KiB; there is nothing to answer.
            ("client_max_window_bits", Some(bits)) => {
                window_bits(bits).is_some() && once(&mut self.client_max_window_bits)
            }
            _ => false,
        };
        good.then_some(())
    }
}

/// 8 to 15, in decimal, without a leading zero (RFC 7692 §7.1.2.1).
fn window_bits(value: &str) -> Option<u8> {
    match value {
        "8" => Some(8),
        "9" => Some(9),
        "10" => Some(10),
        "11" => Some(11),
        "12" => Some(12),
        "13" => Some(13),
        "14" => Some(14),
        "15" => Some(15),
        _ => None,
    }
}

/// A parameter's value: a token, or a quoted string that is a token once unquoted (RFC 6455 §9.1).
fn unquote(value: &str) -> Option<&str> {
    let bare = match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => value,
    };
    is_token(bare).then_some(bare)
}

/// Parts of `text` between separators that do not stand inside a quoted string.
fn split_outside_quotes(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted && character == char::from(separator),
        }
        false
    })
}

/// 16 bytes in base64: 22 characters of the alphabet and two of padding (RFC 6455 §4.1, step 7). The four bits
/// that the last character has to spare are not looked at.
fn is_key(key: &str) -> bool {
    key.len() == 24
        && key.strip_suffix("==").is_some_and(|digits| {
            digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
        })
}

fn has_token(header: Option<&str>, token: &str) -> bool {
    header.is_some_and(|header| list(header).any(|item| item.eq_ignore_ascii_case(token)))
}

fn list(header: &str) -> impl Iterator<Item = &str> {
    header.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A good request, with `changes` to its headers; an empty value removes one.
    fn negotiate(changes: &[(&str, &'static str)]) -> Result<Upgrade, UpgradeError> {
        let mut headers = vec![
            ("host", "example.com"),
            ("upgrade", "websocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        headers.retain(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        headers.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        let header =
            |name: &str| headers.iter().find(|(own, _)| *own == name).map(|(_, value)| Cow::from(*value));
        Upgrade::negotiate("GET", 1, header, true)
    }

    fn deflate(offer: &'static str) -> Option<DeflateParams> {
        negotiate(&[("sec-websocket-extensions", offer)]).expect("a good request").deflate
    }

    #[test]
    fn rfc_6455_section_1_3_example() {
        let upgrade = negotiate(&[]).expect("a good request");
        assert_eq!(&upgrade.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut out = Vec::new();
        upgrade.write_response(&mut out, Some("chat"));
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
        assert_eq!(String::from_utf8(out).expect("ASCII"), expected);
    }

    #[test]
    fn refusals_know_their_status() {
        use UpgradeError as E;
        let cases: &[(&str, &'static str, UpgradeError, u16)] = &[
            ("upgrade", "", E::UpgradeHeader, 426),
            ("upgrade", "h2c", E::UpgradeHeader, 426),
            ("connection", "", E::ConnectionHeader, 400),
            ("connection", "close", E::ConnectionHeader, 400),
            ("host", "", E::Host, 400),
            ("host", "a, b", E::Host, 400),
            ("sec-websocket-version", "", E::Version, 426),
            ("sec-websocket-version", "8", E::Version, 426),
            ("sec-websocket-version", "13, 8", E::Version, 426),
            ("sec-websocket-key", "", E::Key, 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZQ==", E::Key, 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=a", E::Key, 400),
            ("sec-websocket-key", "dGhl IHNhbXBsZSBub25jZQ==", E::Key, 400),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25j-Q==", E::Key, 400),
        ];
        for (name, value, error, status) in cases {
            assert_eq!(negotiate(&[(name, value)]), Err(*error), "{name}: {value}");
            assert_eq!(error.status().0, *status);
        }
        assert_eq!(Upgrade::negotiate("POST", 1, |_| None, true), Err(E::Method));
        assert_eq!(E::Method.status().0, 405);
        let old = Upgrade::negotiate("GET", 0, |name| (name == "upgrade").then(|| "websocket".into()), true);
        assert_eq!(old, Err(E::HttpVersion));
        assert!(E::Version.headers().contains(&("Sec-WebSocket-Version", "13")));
        assert!(E::Method.headers().contains(&("Allow", "GET")));
    }

    #[test]
    fn tokens_ignore_case_and_space() {
        let changes = [("upgrade", "foo , WebSocket"), ("connection", " UPGRADE,,x")];
        assert!(negotiate(&changes).is_ok());
    }

    #[test]
    fn deflate_offers_that_are_accepted() {
        const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let cases: &[(&str, &str)] = &[
            ("permessage-deflate", ""),
            ("Permessage-Deflate ; client_max_window_bits", ""),
            ("permessage-deflate; client_max_window_bits=8", ""),
            ("permessage-deflate; client_max_window_bits=\"10\"", ""),
            ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ""),
            ("permessage-deflate; server_max_window_bits=9", "; server_max_window_bits=9"),
            ("permessage-deflate; server_max_window_bits = 15", "; server_max_window_bits=15"),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", ""),
            ("permessage-deflate; unknown, permessage-deflate; client_max_window_bits", ""),
            ("x-webkit-deflate-frame, permessage-deflate", ""),
            ("x; a=\"q, permessage-deflate; nonsense\", permessage-deflate", ""),
        ];
        for (offer, suffix) in cases {
            let upgrade = negotiate(&[("sec-websocket-extensions", offer)]).expect("a good request");
            let answer = upgrade.response_headers().find(|(name, _)| *name == "Sec-WebSocket-Extensions");
            assert_eq!(
                answer.map(|(_, value)| value.into_owned()),
                Some(format!("{ANSWER}{suffix}")),
                "{offer}"
            );
        }
    }

    #[test]
    fn deflate_offers_that_are_passed_over() {
        let cases = [
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=99999999999999999999",
            "permessage-deflate; client_max_window_bits=\"10",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate;",
            "permessage-deflate; mux",
            "permessage-bzip2",
            "\"permessage-deflate",
            ",;=\"\\",
        ];
        for offer in cases {
            assert_eq!(deflate(offer), None, "{offer}");
        }
    }

    #[test]
    fn deflate_only_when_allowed() {
        let header = |name: &str| {
            Some(Cow::from(match name {
                "upgrade" => "websocket",
                "connection" => "upgrade",
                "sec-websocket-version" => "13",
                "sec-websocket-key" => "AAAAAAAAAAAAAAAAAAAAAA==",
                "sec-websocket-extensions" => "permessage-deflate",
                _ => "x",
            }))
        };
        let allowed = |allow_deflate| {
            Upgrade::negotiate("GET", 1, header, allow_deflate).map(|upgrade| upgrade.deflate)
        };
        assert_eq!(allowed(false), Ok(None));
        assert_eq!(allowed(true).map(|deflate| deflate.is_some()), Ok(true));
    }

    #[test]
    fn small_windows_share_small_messages() {
        let small = deflate("permessage-deflate; server_max_window_bits=9").expect("accepted");
        assert_eq!(small.server_window_bits(), 9);
        assert!(small.can_share(512));
        assert!(!small.can_share(513));
        assert!(deflate("permessage-deflate").expect("accepted").can_share(usize::MAX));
    }

    #[test]
    fn subprotocols() {
        assert_eq!(protocols("a, b ,, c d,\"e\",f").collect::<Vec<_>>(), ["a", "b", "f"]);
        let mut out = Vec::new();
        negotiate(&[]).expect("a good request").write_response(&mut out, Some("a\r\nX: y"));
        assert!(!String::from_utf8_lossy(&out).contains("Protocol: "));
    }
}
