//! A client's request: what it is for, and the head that a node is sent. Pure.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use tidegate_ops::trust::Trust;
use tidegate_wire::head::Head;

use super::link::Kind;
use crate::assign;

/// What is known of a client beside its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) peer: SocketAddr,
    /// The peer is a proxy whose word about the client counts.
    pub(super) trusted: bool,
    /// It came over TLS.
    pub(super) secure: bool,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Pair(Kind),
    Http,
    /// Answered by the router itself.
    Assign,
}

/// Headers of one hop (RFC 9110 §7.6.1), and the older ones that are treated like them.
pub(super) const HOP_HEADERS: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authorization",
];

/// What only a proxy may say; from anyone else it is removed.
pub(super) const FORWARDING_HEADERS: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
];

/// `followed`: bytes came after the head. For a request that is an upgrade they wait until the node has switched. For
/// any other they are the next request, and only HTTP knows what to do with that.
pub(super) fn route(head: &Head<'_>, followed: bool) -> Route {
    if head.path == assign::PATH {
        return Route::Assign;
    }
    if head.method != "GET" || head.has_body() {
        return Route::Http;
    }
    if head.minor_version == 1
        && has_token(head, "upgrade", "websocket")
        && has_token(head, "connection", "upgrade")
    {
        return Route::Pair(Kind::Upgrade);
    }
    let streams = head.path == "/sse" || has_token(head, "accept", "text/event-stream");
    if streams && !followed { Route::Pair(Kind::Stream) } else { Route::Http }
}

/// The address that counts as the client's. One that a proxy has named comes without a port.
pub(super) fn client_address(head: &Head<'_>, peer: SocketAddr, trust: &Trust) -> SocketAddr {
    if !trust.covers(peer.ip()) {
        return peer;
    }
    let values: Vec<&[u8]> = head.octets_named(trust.header()).collect();
    trust.client(values.into_iter()).map_or(peer, |client| SocketAddr::new(client, 0))
}

/// Appends the head that the node is sent. Nothing of it depends on what the client may say about the hop: the
/// headers of the client's connection stay behind, and those of the connection to the node are ours.
pub(super) fn write_forwarded(head: &Head<'_>, kind: Kind, origin: Origin, out: &mut Vec<u8>) {
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path.as_bytes());
    if let Some(query) = head.query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(if head.minor_version == 0 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    let connection = head.header_joined("connection").unwrap_or_default();
    for (name, value) in head.headers() {
        if !is_dropped(name, &connection, origin.trusted) {
            push_header(name, value, out);
        }
    }
    match kind {
        Kind::Upgrade => out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        // The node ends the connection after this one answer.
        Kind::Stream => out.extend_from_slice(b"Connection: close\r\n"),
    }
    let forwarded_for = if origin.trusted { head.header_joined("x-forwarded-for") } else { None };
    let forwarded = if origin.trusted { head.header_joined("forwarded") } else { None };
    push_header("X-Forwarded-For", forwarded_for_value(forwarded_for, origin).as_bytes(), out);
    push_header("Forwarded", forwarded_value(forwarded, origin).as_bytes(), out);
    if !origin.trusted || head.header("x-forwarded-proto").is_none() {
        push_header("X-Forwarded-Proto", origin.scheme().as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// `X-Forwarded-For` as the node gets it.
pub(super) fn forwarded_for_value(before: Option<Cow<'_, str>>, origin: Origin) -> String {
    let peer = origin.peer.ip().to_canonical();
    match before {
        Some(before) => format!("{before}, {peer}"),
        None => peer.to_string(),
    }
}

/// `Forwarded` (RFC 7239) as the node gets it.
pub(super) fn forwarded_value(before: Option<Cow<'_, str>>, origin: Origin) -> String {
    let scheme = origin.scheme();
    let this = match origin.peer.ip().to_canonical() {
        IpAddr::V4(ip) => format!("for={ip};proto={scheme}"),
        // RFC 7239 §6: an IPv6 address is in brackets, and therefore quoted.
        IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={scheme}"),
    };
    match before {
        Some(before) => format!("{before}, {this}"),
        None => this,
    }
}

impl Origin {
    pub(super) fn scheme(self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Whether a header is no part of what the node is sent. `connection` names more that are of one hop.
fn is_dropped(name: &str, connection: &str, trusted: bool) -> bool {
    let is = |other: &&str| name.eq_ignore_ascii_case(other);
    if FORWARDING_HEADERS.iter().any(is) {
        // What we add to is written again by ourselves.
        return !trusted || is(&"x-forwarded-for") || is(&"forwarded");
    }
    // A host that is of one hop would leave the node without one.
    HOP_HEADERS.iter().any(is) || (names_token(connection, name) && !is(&"host"))
}

fn has_token(head: &Head<'_>, name: &str, token: &str) -> bool {
    head.headers_named(name).any(|value| names_token(value, token))
}

/// Whether a list (RFC 9110 §5.6.1) has an element; parameters of an element do not matter.
fn names_token(list: &str, token: &str) -> bool {
    list.split(',')
        .any(|element| element.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(token))
}

fn push_header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
