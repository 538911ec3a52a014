//! What comes before a request (the header of a balancer, a TLS handshake) and whose connection it is.

use std::{net::IpAddr, sync::Arc};

use tidegate_ops::edge::Preamble;
use tidegate_reactor::TlsSession;
use tidegate_wire::{head::Head as RequestHead, proxy_v2::Header};

use crate::{
    admission::{AddressKey, Over},
    metrics::HandshakeResult,
    session::{Ctx, Phase},
};

impl Ctx<'_> {
    /// A connection was adopted: the session it speaks in begins, or goes on.
    pub(crate) fn begin_preamble(&mut self) {
        let Some(Phase::Head(head)) = self.connections.get_mut(self.id).map(|session| &mut session.phase)
        else {
            return;
        };
        match std::mem::take(&mut head.preamble) {
            Preamble::None => {}
            Preamble::Proxy => head.preamble = Preamble::Proxy,
            Preamble::Tls => self.start_tls(&[]),
            Preamble::Session(session) => self.connections.start_tls(self.id, session),
        }
    }

    /// Takes bytes of a balancer's header, and goes on with what follows it.
    pub(super) fn read_proxy_header(&mut self, bytes: &[u8]) {
        let Some(Phase::Head(head)) = self.connections.get_mut(self.id).map(|session| &mut session.phase)
        else {
            return;
        };
        let mut received = head.received.take().unwrap_or_default();
        received.extend_from_slice(bytes);
        let header = match Header::parse(&received) {
            Ok(Some(header)) => header,
            Ok(None) => {
                head.received = Some(received);
                return;
            }
            Err(error) => {
                if let Some(left_out) = self.core.without_header.ask() {
                    let peer = self.connections.peer_address(self.id);
                    tracing::warn!(
                        peer = ?peer, %error, left_out, "closed a connection without the balancer's header"
                    );
                }
                self.core.metrics.handshakes.add(HandshakeResult::ProxyHeader, 1);
                self.connections.close(self.id);
                return;
            }
        };
        head.preamble = Preamble::None;
        let named = header.addresses.map(|addresses| addresses.source.ip());
        if let Some(ip) = named.or_else(|| self.connections.peer_address(self.id).map(|peer| peer.ip())) {
            self.arrived_from(ip.to_canonical());
        }
        let rest = received.split_off(header.len);
        if self.core.shared.edge.tls.is_some() {
            self.start_tls(&rest);
        } else if !rest.is_empty() {
            self.read_head(&rest);
        }
    }

    /// A trusted proxy names the client of a request that a shard serves. (Requests over HTTP of many clients may
    /// share one connection, so it is counted as nobody's.)
    pub(super) fn name_client(&mut self, head: &RequestHead<'_>) -> Result<(), Over> {
        let trust = &self.core.shared.edge.trust;
        if self.session().is_none_or(|session| session.address != AddressKey::UNNAMED) {
            return Ok(());
        }
        let values: Vec<&[u8]> = head.octets_named(trust.header()).collect();
        let says_something = values.iter().any(|value| !value.trim_ascii().is_empty());
        let client = trust.client(values.into_iter()).or_else(|| {
            // Whoever is named in words that cannot be read counts as who wrote them: as the proxy, not as nobody.
            says_something.then(|| self.connections.peer_address(self.id)).flatten().map(|peer| peer.ip())
        });
        if let (Some(client), Some(session)) = (client, self.connections.get_mut(self.id)) {
            session.address = self.core.shared.front.name(client)?;
            if self.core.shared.edge.tls.is_some() {
                self.core.shared.front.take_handshake_of(session.address)?;
            }
        }
        Ok(())
    }

    /// Whether a connection has not come as far as a request, so that no answer would be read as one.
    pub(super) fn is_before_request(&self) -> bool {
        let awaits_header = self.connections.get(self.id).is_some_and(
            |session| matches!(&session.phase, Phase::Head(head) if matches!(head.preamble, Preamble::Proxy)),
        );
        awaits_header || self.connections.tls(self.id).is_some_and(|session| !session.is_open())
    }

    /// The balancer has said who the client is. One over a limit is told so when it has asked for something.
    fn arrived_from(&mut self, ip: IpAddr) {
        let Some(session) =
            self.connections.get_mut(self.id).filter(|session| session.address == AddressKey::UNNAMED)
        else {
            return;
        };
        if self.core.shared.edge.trust.covers(ip) {
            return;
        }
        let front = &self.core.shared.front;
        let counted = front.name(ip).and_then(|key| {
            session.address = key;
            if self.core.shared.edge.tls.is_some() { front.take_handshake_of(key) } else { Ok(()) }
        });
        if let (Err(over), Phase::Head(head)) = (counted, &mut session.phase) {
            head.over = Some(over);
        }
    }

    fn start_tls(&mut self, read: &[u8]) {
        let Some(config) = &self.core.shared.edge.tls else { return };
        match TlsSession::new(Arc::clone(config), read) {
            Ok(session) => self.connections.start_tls(self.id, Box::new(session)),
            Err(error) => {
                tracing::warn!(%error, "a TLS session could not begin");
                self.connections.close(self.id);
            }
        }
    }
}
