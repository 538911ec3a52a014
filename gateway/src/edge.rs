//! What lies between a client and its first request: TLS, the header of a balancer, proxies that are believed.

use std::{net::IpAddr, sync::Arc};

use rustls::ServerConfig;
use tidegate_ops::{tls::TlsServer, trust::Trust};

use crate::{config::Config, session::preamble::Preamble};

/// The public port's edge; the same for all connections.
#[derive(Debug)]
pub(crate) struct Edge {
    /// `None`: plain TCP.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Every connection begins with a PROXY protocol header.
    pub(crate) proxy_protocol: bool,
    pub(crate) trust: Trust,
}

impl Edge {
    pub(crate) fn new(config: &Config, tls: Option<&TlsServer>) -> Self {
        Self {
            tls: tls.map(|server| Arc::clone(&server.config)),
            proxy_protocol: config.proxy_protocol,
            trust: Trust::new(&config.trusted_proxies, config.forwarded_header),
        }
    }

    /// Whether a connection from this address has its client named later: by the balancer's header, or by a trusted
    /// proxy within the request.
    pub(crate) fn names_later(&self, peer: IpAddr) -> bool {
        self.proxy_protocol || self.trust.covers(peer)
    }

    /// How a new connection begins.
    pub(crate) fn preamble(&self) -> Preamble {
        match (self.proxy_protocol, &self.tls) {
            (true, _) => Preamble::Proxy,
            (false, Some(_)) => Preamble::Tls,
            (false, None) => Preamble::None,
        }
    }

    /// Whether a client reads HTTP before it has said anything: then it can be told that there is no room.
    pub(crate) fn is_bare(&self) -> bool {
        self.tls.is_none() && !self.proxy_protocol
    }
}
