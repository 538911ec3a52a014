//! What comes before a request (the header of a balancer, a TLS handshake) and whose connection it is.

use std::{net::IpAddr, sync::Arc};

use tidegate_ops::edge::Preamble;
use tidegate_reactor::{ConnectionId, Connections, TlsSession};
use tidegate_wire::{head::Head as RequestHead, proxy_v2::Header};

use crate::session::{Phase, Session};
use crate::{
    edge::admission::{AddressKey, Over},
    metrics::HandshakeResult,
    shard::Core,
};

impl Core {
    /// A connection was adopted: the session it speaks in begins, or goes on.
    pub(crate) fn begin_preamble(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        let Some(Phase::Head(head)) = connections.get_mut(id).map(|session| &mut session.phase) else {
            return;
        };
        match std::mem::take(&mut head.preamble) {
            Preamble::None => {}
            Preamble::Proxy => head.preamble = Preamble::Proxy,
            Preamble::Tls => self.start_tls(connections, id, &[]),
            Preamble::Session(session) => connections.start_tls(id, session),
        }
    }

    /// Takes bytes of a balancer's header. `Some`: it is complete, and these bytes are the client's.
    pub(super) fn read_proxy_header(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let Some(Phase::Head(head)) = connections.get_mut(id).map(|session| &mut session.phase) else {
            return None;
        };
        let mut received = head.received.take().unwrap_or_default();
        received.extend_from_slice(bytes);
        let header = match Header::parse(&received) {
            Ok(Some(header)) => header,
            Ok(None) => {
                head.received = Some(received);
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "a connection without the balancer's header");
                self.metrics.handshakes.add(HandshakeResult::ProxyHeader, 1);
                connections.close(id);
                return None;
            }
        };
        head.preamble = Preamble::None;
        let named = header.addresses.map(|addresses| addresses.source.ip());
        if let Some(ip) = named.or_else(|| connections.peer_address(id).map(|peer| peer.ip())) {
            self.arrived_from(connections, id, ip.to_canonical());
        }
        let rest = received.split_off(header.len);
        if self.shared.edge.tls.is_some() {
            self.start_tls(connections, id, &rest);
            return None;
        }
        Some(rest)
    }

    /// A trusted proxy names the client of a request that a shard serves. (Requests over HTTP of many clients may
    /// share one connection, so it is counted as nobody's.)
    pub(super) fn name_client(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        head: &RequestHead<'_>,
    ) -> Result<(), Over> {
        let trust = &self.shared.edge.trust;
        let Some(session) = connections.get_mut(id).filter(|session| session.address == AddressKey::UNNAMED)
        else {
            return Ok(());
        };
        let values: Vec<&str> = head.headers_named(trust.header()).collect();
        if let Some(client) = trust.client(values.into_iter()) {
            session.address = self.shared.front.name(client)?;
            if self.shared.edge.tls.is_some() {
                self.shared.front.take_handshake_of(session.address)?;
            }
        }
        Ok(())
    }

    /// Whether a connection has not come as far as a request, so that no answer would be read as one.
    pub(super) fn is_before_request(&self, connections: &Connections<Session>, id: ConnectionId) -> bool {
        let awaits_header = connections.get(id).is_some_and(
            |session| matches!(&session.phase, Phase::Head(head) if matches!(head.preamble, Preamble::Proxy)),
        );
        awaits_header || connections.tls(id).is_some_and(|session| !session.is_open())
    }

    /// The balancer has said who the client is. One over a limit is told so when it has asked for something.
    fn arrived_from(&mut self, connections: &mut Connections<Session>, id: ConnectionId, ip: IpAddr) {
        let Some(session) = connections.get_mut(id).filter(|session| session.address == AddressKey::UNNAMED)
        else {
            return;
        };
        if self.shared.edge.trust.covers(ip) {
            return;
        }
        let front = &self.shared.front;
        let counted = front.name(ip).and_then(|key| {
            session.address = key;
            if self.shared.edge.tls.is_some() { front.take_handshake_of(key) } else { Ok(()) }
        });
        if let (Err(over), Phase::Head(head)) = (counted, &mut session.phase) {
            head.over = Some(over);
        }
    }

    fn start_tls(&mut self, connections: &mut Connections<Session>, id: ConnectionId, read: &[u8]) {
        let Some(config) = &self.shared.edge.tls else { return };
        match TlsSession::new(Arc::clone(config), read) {
            Ok(session) => connections.start_tls(id, Box::new(session)),
            Err(error) => {
                tracing::warn!(%error, "a TLS session could not begin");
                connections.close(id);
            }
        }
    }
}
