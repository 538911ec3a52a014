//! The URL that names the Redis servers of a deployment: which topology, where, with which credentials.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

const PORT: u16 = 6379;
const PORT_SENTINEL: u16 = 26379;

/// Which servers, and how they belong together.
///
/// | form | topology |
/// | --- | --- |
/// | `redis://h:6379/db` | one server |
/// | `redis://a,b,c/db` | independent servers, channels spread over them |
/// | `redis-sentinel://s1,s2/NAME/db` | the master that the Sentinels name |
/// | `redis-cluster://a,b` | a Cluster, found through any of the servers |
///
/// With `rediss`, `rediss-sentinel`, `rediss-cluster` over TLS. Before the hosts: `user:password@` or `:password@`,
/// percent-encoded. There are no query parameters. Neither `Display` nor `Debug` shows the credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub(crate) topology: TopologyKind,
    pub(crate) tls: bool,
    pub(crate) servers: Vec<Server>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) db: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TopologyKind {
    Standalone,
    List,
    Sentinel { name: Box<str> },
    Cluster,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Server {
    /// Name or address, IPv6 without brackets.
    pub(crate) host: Box<str>,
    pub(crate) port: u16,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// `None`: the default user.
    pub(crate) user: Option<Box<str>>,
    pub(crate) password: Box<str>,
}

/// Why a URL is refused. No variant carries text that may be part of a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    #[error(
        "the Redis URL begins with none of redis://, rediss://, redis-sentinel://, rediss-sentinel://, \
         redis-cluster:// and rediss-cluster://"
    )]
    Scheme,
    #[error(
        "the Redis URL has an @ after its hosts; in user and password write / as %2F, ? as %3F and # as %23"
    )]
    Encoding,
    #[error("the user or password of the Redis URL is not percent-encoded UTF-8")]
    Credentials,
    #[error("the Redis URL has a user but no password; write user:password@")]
    NoPassword,
    #[error("the Redis URL names no host, or an empty one")]
    NoHost,
    #[error("the Redis URL has a host with characters that no host has; write an IPv6 address in brackets")]
    Host,
    #[error("the Redis URL has a port that is not a number from 1 to 65535")]
    Port,
    #[error("the Redis URL names the server {0} twice")]
    Twice(Box<str>),
    #[error("the Redis URL has a database that is not a number")]
    Database,
    #[error("a Redis Cluster has no databases; leave out what follows the hosts of the URL")]
    ClusterDatabase,
    #[error("the Sentinel URL names no master; write redis-sentinel://HOST/NAME")]
    NoName,
    #[error("the Redis URL has query parameters or a fragment; there are none")]
    Query,
}

impl RedisUrl {
    /// Name of the file with certificates matters only for these.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    fn scheme(&self) -> &'static str {
        match (&self.topology, self.tls) {
            (TopologyKind::Standalone | TopologyKind::List, false) => "redis",
            (TopologyKind::Standalone | TopologyKind::List, true) => "rediss",
            (TopologyKind::Sentinel { .. }, false) => "redis-sentinel",
            (TopologyKind::Sentinel { .. }, true) => "rediss-sentinel",
            (TopologyKind::Cluster, false) => "redis-cluster",
            (TopologyKind::Cluster, true) => "rediss-cluster",
        }
    }
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(text: &str) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(RedisUrlError::Scheme)?;
        let (kind, tls) = scheme_of(scheme)?;
        let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(authority_end);
        if after.contains('@') {
            return Err(RedisUrlError::Encoding);
        }
        if after.contains(['?', '#']) {
            return Err(RedisUrlError::Query);
        }
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (credentials_of(credentials)?, hosts),
            None => (None, authority),
        };
        let default_port = if kind == Kind::Sentinel { PORT_SENTINEL } else { PORT };
        let servers = servers_of(hosts, default_port)?;
        let (topology, db) = topology_of(kind, servers.len(), after.strip_prefix('/').unwrap_or(after))?;
        Ok(Self { topology, tls, servers, credentials, db })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme())?;
        for (index, server) in self.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{server}")?;
        }
        if let TopologyKind::Sentinel { name } = &self.topology {
            write!(f, "/{name}")?;
        }
        if self.db == 0 { Ok(()) } else { write!(f, "/{}", self.db) }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Sentinel,
    Cluster,
}

fn scheme_of(scheme: &str) -> Result<(Kind, bool), RedisUrlError> {
    Ok(match scheme {
        "redis" => (Kind::Plain, false),
        "rediss" => (Kind::Plain, true),
        "redis-sentinel" => (Kind::Sentinel, false),
        "rediss-sentinel" => (Kind::Sentinel, true),
        "redis-cluster" => (Kind::Cluster, false),
        "rediss-cluster" => (Kind::Cluster, true),
        _ => return Err(RedisUrlError::Scheme),
    })
}

fn credentials_of(text: &str) -> Result<Option<Credentials>, RedisUrlError> {
    let decode = |part: &str| -> Result<Box<str>, RedisUrlError> {
        let decoded = percent_decode_str(part).decode_utf8().map_err(|_| RedisUrlError::Credentials)?;
        Ok(decoded.into())
    };
    match text.split_once(':') {
        None | Some(("", "")) if text.is_empty() || text == ":" => Ok(None),
        None | Some((_, "")) => Err(RedisUrlError::NoPassword),
        Some((user, password)) => {
            let user = if user.is_empty() { None } else { Some(decode(user)?) };
            Ok(Some(Credentials { user, password: decode(password)? }))
        }
    }
}

fn servers_of(hosts: &str, default_port: u16) -> Result<Vec<Server>, RedisUrlError> {
    let mut servers: Vec<Server> = Vec::new();
    for text in hosts.split(',') {
        let server = server_of(text, default_port)?;
        if servers.contains(&server) {
            return Err(RedisUrlError::Twice(server.to_string().into()));
        }
        servers.push(server);
    }
    Ok(servers)
}

fn server_of(text: &str, default_port: u16) -> Result<Server, RedisUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(RedisUrlError::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| RedisUrlError::Host)?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(RedisUrlError::Host),
            }
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if !host.bytes().all(is_host) || port.is_some_and(|port| port.contains(':')) {
                return Err(RedisUrlError::Host);
            }
            (host, port)
        }
    };
    if host.is_empty() {
        return Err(RedisUrlError::NoHost);
    }
    let port = port.map_or(Ok(default_port), |port| port.parse().map_err(|_| RedisUrlError::Port))?;
    if port == 0 {
        return Err(RedisUrlError::Port);
    }
    Ok(Server { host: host.into(), port })
}

fn topology_of(kind: Kind, servers: usize, path: &str) -> Result<(TopologyKind, u32), RedisUrlError> {
    let db = |text: &str| match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| RedisUrlError::Database),
    };
    match kind {
        Kind::Plain if servers == 1 => Ok((TopologyKind::Standalone, db(path)?)),
        Kind::Plain => Ok((TopologyKind::List, db(path)?)),
        Kind::Cluster if path.is_empty() => Ok((TopologyKind::Cluster, 0)),
        Kind::Cluster => Err(RedisUrlError::ClusterDatabase),
        Kind::Sentinel => {
            let (name, rest) = path.split_once('/').unwrap_or((path, ""));
            let name = percent_decode_str(name).decode_utf8().map_err(|_| RedisUrlError::NoName)?;
            if name.is_empty() {
                return Err(RedisUrlError::NoName);
            }
            Ok((TopologyKind::Sentinel { name: name.into() }, db(rest)?))
        }
    }
}
