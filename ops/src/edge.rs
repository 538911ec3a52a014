//! What lies between a client and its first request: TLS, the header of a balancer, proxies that are believed.

use std::{net::IpAddr, sync::Arc};

use rustls::ServerConfig;

use crate::{tls::TlsServer, trust::Trust};

/// The public port's edge; the same for all connections.
#[derive(Debug, Clone)]
pub struct Edge {
    /// `None`: plain TCP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Every connection begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    pub trust: Trust,
}

/// How a new connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    Request,
    /// With a PROXY protocol header; the TLS handshake follows it, if there is one.
    ProxyHeader,
    TlsHandshake,
}

impl Edge {
    pub fn new(tls: Option<&TlsServer>, proxy_protocol: bool, trust: Trust) -> Self {
        Self { tls: tls.map(|server| Arc::clone(&server.config)), proxy_protocol, trust }
    }

    /// Whether a connection from this address has its client named later: by the balancer's header, or by a trusted
    /// proxy within the request.
    pub fn names_later(&self, peer: IpAddr) -> bool {
        self.proxy_protocol || self.trust.covers(peer)
    }

    pub fn begin(&self) -> Begin {
        match (self.proxy_protocol, &self.tls) {
            (true, _) => Begin::ProxyHeader,
            (false, Some(_)) => Begin::TlsHandshake,
            (false, None) => Begin::Request,
        }
    }

    /// Whether a client reads HTTP before it has said anything: then it can be told that there is no room.
    pub fn is_bare(&self) -> bool {
        self.begin() == Begin::Request
    }
}
