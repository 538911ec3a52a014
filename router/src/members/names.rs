//! Resolving host names and SRV records.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};

/// Asks the system's name servers, or given ones. Addresses need no name server.
#[derive(Clone)]
pub struct Names(Option<TokioResolver>);

/// Why a name was not resolved.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("the system has no usable list of name servers")]
    NoServers,
    #[error("{name} was not resolved: {source}")]
    Lookup { name: Box<str>, source: Box<NetError> },
    #[error("name servers are slow: {0} names are still looked up")]
    Slow(usize),
}

/// An SRV record (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) target: Box<str>,
    pub(super) port: u16,
    pub(super) weight: u16,
    pub(super) priority: u16,
}

/// Answers are used at most so long, whatever they say: the name server of Docker gives the addresses of a service for
/// ten minutes, however often it is scaled meanwhile.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(5);

/// The same for 'no such name'.
const NEGATIVE_AGE_MAX: Duration = Duration::from_secs(1);

/// A server that answers at all does so by then; two attempts stay within a round's time.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

impl Names {
    /// With the name servers of the system if `servers` is empty.
    pub fn new(servers: &[SocketAddr]) -> Self {
        let builder = if servers.is_empty() {
            TokioResolver::builder_tokio()
        } else {
            let servers = servers.iter().map(name_server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
        };
        let resolver = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            // A node that has both kinds of addresses is one node.
            options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
            options.positive_max_ttl = Some(ANSWER_AGE_MAX);
            options.negative_max_ttl = Some(NEGATIVE_AGE_MAX);
            options.timeout = ATTEMPT_TIMEOUT;
            options.attempts = 2;
            builder.build()
        });
        match resolver {
            Ok(resolver) => Self(Some(resolver)),
            Err(error) => {
                tracing::warn!(%error, "no name server is known; names of gateways will not be resolved");
                Self(None)
            }
        }
    }

    /// The addresses of a name, sorted; an address is its own.
    pub(super) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let resolver = self.0.as_ref().ok_or(NameError::NoServers)?;
        let found = resolver.lookup_ip(host).await.map_err(|source| lookup(host, source))?;
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// The SRV records of a name.
    pub(super) async fn services(&self, name: &str) -> Result<Vec<Service>, NameError> {
        let resolver = self.0.as_ref().ok_or(NameError::NoServers)?;
        let found = resolver.srv_lookup(name).await.map_err(|source| lookup(name, source))?;
        let services = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(service) => Some(Service {
                target: service.target.to_ascii().trim_end_matches('.').into(),
                port: service.port,
                weight: service.weight,
                priority: service.priority,
            }),
            _ => None,
        });
        Ok(services.collect())
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Names").field(&self.0.is_some()).finish()
    }
}

fn lookup(name: &str, source: NetError) -> NameError {
    NameError::Lookup { name: name.into(), source: Box::new(source) }
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}
