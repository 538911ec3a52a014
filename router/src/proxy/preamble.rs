//! What comes before a client's request: the header of a balancer, a TLS handshake.

use std::{net::SocketAddr, sync::Arc};

use tidegate_ops::edge::Preamble;
use tidegate_reactor::{ConnectionId, TlsSession};
use tidegate_wire::proxy_v2::{Addresses, Header};

use super::{
    driver::{Links, ProxyDriver},
    link::Phase,
    metrics::RefusalReason,
};

impl ProxyDriver {
    /// A connection was adopted: the session it speaks in begins, or goes on.
    pub(super) fn begin_preamble(&mut self, links: &mut Links, id: ConnectionId) {
        let Some(Phase::Head(head)) = links.get_mut(id).map(|link| &mut link.phase) else { return };
        match std::mem::take(&mut head.preamble) {
            Preamble::None => {}
            Preamble::Proxy => head.preamble = Preamble::Proxy,
            Preamble::Tls => self.start_tls(links, id, &[]),
            Preamble::Session(session) => links.start_tls(id, session),
        }
    }

    /// Takes bytes of a balancer's header, and of what follows it.
    pub(super) fn read_proxy_header(&mut self, links: &mut Links, id: ConnectionId, bytes: &[u8]) {
        let Some(Phase::Head(head)) = links.get_mut(id).map(|link| &mut link.phase) else { return };
        let mut received = std::mem::take(&mut head.received);
        received.extend_from_slice(bytes);
        let header = match Header::parse(&received) {
            Ok(Some(header)) => header,
            Ok(None) => {
                head.received = received;
                return;
            }
            Err(error) => {
                let peer = head.ends.source;
                if let Some(left_out) = self.without_header.ask() {
                    tracing::warn!(%peer, %error, left_out, "closed a connection without the balancer's header");
                }
                self.metrics.refusals.add(RefusalReason::ProxyHeader, 1);
                return links.close(id);
            }
        };
        head.preamble = Preamble::None;
        if let Some(Addresses { source, destination }) = header.addresses {
            let source = SocketAddr::new(source.ip().to_canonical(), source.port());
            head.ends = Addresses { source, destination };
        }
        let rest = &received[header.len..];
        match self.shared.edge.tls.is_some() {
            true => self.start_tls(links, id, rest),
            false if rest.is_empty() => {}
            false => self.read_head(links, id, rest),
        }
    }

    /// Begins the session that the port speaks, if it speaks any; `read` is the begin of its handshake.
    fn start_tls(&mut self, links: &mut Links, id: ConnectionId, read: &[u8]) {
        let Some(config) = &self.shared.edge.tls else { return };
        match TlsSession::new(Arc::clone(config), read) {
            Ok(session) => links.start_tls(id, Box::new(session)),
            Err(error) => {
                tracing::warn!(%error, "a TLS session could not begin");
                links.close(id);
            }
        }
    }

    /// Whether a client has not come as far as a request, so that no answer would be read as one.
    pub(super) fn is_before_request(&self, links: &Links, id: ConnectionId) -> bool {
        let awaits_header =
            matches!(links.get(id).map(|link| &link.phase), Some(Phase::Head(head)) if head.awaits_header());
        awaits_header || links.tls(id).is_some_and(|session| !session.is_open())
    }
}
