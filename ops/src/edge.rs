//! What lies between a client and its first request: TLS, the header of a balancer, proxies that are believed.

use std::{net::IpAddr, sync::Arc};

use rustls::ServerConfig;
use tidegate_reactor::TlsSession;

use crate::{
    tls::TlsServer,
    trust::{Networks, Trust},
};

/// The public port's edge; the same for all connections.
#[derive(Debug, Clone)]
pub struct Edge {
    /// `None`: plain TCP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Every connection begins with a PROXY protocol header, and comes from one of these balancers.
    pub proxy_protocol: Option<Networks>,
    pub trust: Trust,
}

/// How a connection begins.
#[derive(Debug, Default)]
pub enum Preamble {
    /// With its request.
    #[default]
    None,
    /// With a PROXY protocol header; the TLS handshake follows it, if there is one.
    Proxy,
    /// With a TLS handshake.
    Tls,
    /// Within a session that HTTP had before.
    Session(Box<TlsSession>),
}

impl Edge {
    pub fn new(tls: Option<&TlsServer>, proxy_protocol: Option<Networks>, trust: Trust) -> Self {
        Self { tls: tls.map(|server| Arc::clone(&server.config)), proxy_protocol, trust }
    }

    /// Whether a connection from this address has its client named later: by the balancer's header, or by a trusted
    /// proxy within the request.
    pub fn names_later(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.is_some() || self.trust.covers(peer)
    }

    /// Whether a connection from this address may say who its client is in a PROXY protocol header. Where none is
    /// expected, every address may connect.
    pub fn admits(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.as_ref().is_none_or(|balancers| balancers.cover(peer))
    }

    /// Of a new connection.
    pub fn preamble(&self) -> Preamble {
        match (self.proxy_protocol.is_some(), &self.tls) {
            (true, _) => Preamble::Proxy,
            (false, Some(_)) => Preamble::Tls,
            (false, None) => Preamble::None,
        }
    }

    /// Whether a client reads HTTP before it has said anything: then it can be told that there is no room.
    pub fn is_bare(&self) -> bool {
        self.proxy_protocol.is_none() && self.tls.is_none()
    }
}
