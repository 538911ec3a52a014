//! A client's request: what it is for, and the head that a node is sent. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use tidegate_ops::trust::Trust;
use tidegate_wire::head::{FORWARDING_HEADERS, Head};

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
    /// The id of this router.
    pub(super) router: RouterId,
}

/// What a router writes into the requests that it passes on, so that it knows them when they come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RouterId(pub(super) u64);

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

/// Which routers a request has come through: their ids.
pub(super) const ROUTER_HEADER: &str = "tidegate-router";

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

/// The page that a request is of.
pub(super) fn page_of(head: &Head<'_>) -> Option<Box<str>> {
    head.header("origin").map(Box::from)
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
    let before = |name: &str| if origin.trusted { joined(head, name) } else { Vec::new() };
    push_header("X-Forwarded-For", &forwarded_for_value(before("x-forwarded-for"), origin), out);
    push_header("Forwarded", &forwarded_value(before("forwarded"), origin), out);
    if !origin.trusted || head.header("x-forwarded-proto").is_none() {
        push_header("X-Forwarded-Proto", origin.scheme().as_bytes(), out);
    }
    push_header("Tidegate-Router", routers_value(head.header(ROUTER_HEADER), origin).as_bytes(), out);
    out.extend_from_slice(b"\r\n");
}

/// The values of all headers of a name as one list. They are octets (RFC 9110 §5.5): one that is no text stays what it
/// is, so that what is right of it is still right of it.
fn joined(head: &Head<'_>, name: &str) -> Vec<u8> {
    let values = head.headers().filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    append_all(values)
}

pub(super) fn append_all<'v>(values: impl Iterator<Item = &'v [u8]>) -> Vec<u8> {
    values.collect::<Vec<_>>().join(&b", "[..])
}

/// `X-Forwarded-For` as the node gets it, after what a trusted proxy has said.
pub(super) fn forwarded_for_value(before: Vec<u8>, origin: Origin) -> Vec<u8> {
    appended(before, &origin.peer.ip().to_canonical().to_string())
}

/// `Forwarded` (RFC 7239) as the node gets it.
pub(super) fn forwarded_value(before: Vec<u8>, origin: Origin) -> Vec<u8> {
    let scheme = origin.scheme();
    let this = match origin.peer.ip().to_canonical() {
        IpAddr::V4(ip) => format!("for={ip};proto={scheme}"),
        // RFC 7239 §6: an IPv6 address is in brackets, and therefore quoted.
        IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={scheme}"),
    };
    appended(before, &this)
}

fn appended(mut list: Vec<u8>, element: &str) -> Vec<u8> {
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(element.as_bytes());
    list
}

/// The routers that a request has come through, this one last. What is no list of a few of them was not written by one.
pub(super) fn routers_value(before: Option<&str>, origin: Origin) -> String {
    let is_id = |id: &str| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    match before.filter(|list| list.len() <= 8 * 18 && list.split(',').all(|id| is_id(id.trim()))) {
        Some(list) => format!("{list}, {}", origin.router),
        None => origin.router.to_string(),
    }
}

/// Whether a request has come through this router before.
pub(super) fn is_loop(head: &Head<'_>, router: RouterId) -> bool {
    head.headers_named(ROUTER_HEADER).any(|list| names_token(list, &router.to_string()))
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Origin {
    pub(super) fn scheme(self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Whether a header is no part of what the node is sent; the rule of both ways there. `connection` names more that are of one hop.
pub(super) fn is_dropped(name: &str, connection: &str, trusted: bool) -> bool {
    let is = |other: &&str| name.eq_ignore_ascii_case(other);
    if FORWARDING_HEADERS.iter().any(is) {
        // What we add to is written again by ourselves.
        return !trusted || [ROUTER_HEADER, "x-forwarded-for", "forwarded"].iter().any(is);
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
