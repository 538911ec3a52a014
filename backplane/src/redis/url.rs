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
/// | `redis+unix:///run/redis.sock` | one server, through a socket of this machine |
///
/// With `rediss`, `rediss-sentinel`, `rediss-cluster` over TLS. Before the hosts: `user:password@` or `:password@`,
/// percent-encoded. There are no query parameters, but for `?db=N` after the path of a socket. Neither `Display` nor `Debug` shows the credentials.
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
    /// Name or address, IPv6 without brackets; or the path of a socket, which begins with a slash as no host does.
    pub(crate) host: Box<str>,
    pub(crate) port: u16,
}

impl Server {
    /// A socket of this machine.
    pub(crate) fn socket_path(&self) -> Option<&str> {
        self.host.starts_with('/').then_some(&*self.host)
    }
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
         redis-cluster://, rediss-cluster:// and redis+unix://"
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
        if scheme == "redis+unix" {
            return socket_url(rest);
        }
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
        if let [server] = &self.servers[..]
            && server.socket_path().is_some()
        {
            write!(f, "redis+unix://{server}")?;
            return if self.db == 0 { Ok(()) } else { write!(f, "?db={}", self.db) };
        }
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
        if self.socket_path().is_some() {
            f.write_str(&self.host)
        } else if self.host.contains(':') {
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

/// `[USER:PASSWORD@]/PATH[?db=N]`.
fn socket_url(rest: &str) -> Result<RedisUrl, RedisUrlError> {
    let (credentials, path) = match rest.find('/') {
        None => return Err(RedisUrlError::NoHost),
        Some(0) => (None, rest),
        Some(at) => {
            let credentials = rest[..at].strip_suffix('@').ok_or(RedisUrlError::Host)?;
            (credentials_of(credentials)?, &rest[at..])
        }
    };
    let (path, db) = match path.split_once('?') {
        None => (path, 0),
        Some((path, query)) => {
            let db = query.strip_prefix("db=").ok_or(RedisUrlError::Query)?;
            (path, db.parse().map_err(|_| RedisUrlError::Database)?)
        }
    };
    let path = percent_decode_str(path).decode_utf8().map_err(|_| RedisUrlError::Host)?;
    let servers = vec![Server { host: path.into(), port: 0 }];
    Ok(RedisUrl { topology: TopologyKind::Standalone, tls: false, servers, credentials, db })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What a URL says: topology, servers and database as text, then user and password.
    fn check(url: &str, expect: &str, credentials: Option<(Option<&str>, &str)>) {
        let url: RedisUrl = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(url.to_string(), expect);
        assert_eq!(format!("{url:?}"), expect);
        let told = url.credentials.as_ref().map(|c| (c.user.as_deref(), &*c.password));
        assert_eq!(told, credentials);
    }

    #[test]
    fn forms_of_the_table() {
        check("redis://h", "redis://h:6379", None);
        check("redis://h:7000/3", "redis://h:7000/3", None);
        check("redis://h/", "redis://h:6379", None);
        check("rediss://a,b:1,c", "rediss://a:6379,b:1,c:6379", None);
        check("redis-sentinel://s1,s2/main", "redis-sentinel://s1:26379,s2:26379/main", None);
        check("rediss-sentinel://s1/main/2", "rediss-sentinel://s1:26379/main/2", None);
        check("redis-cluster://a,b", "redis-cluster://a:6379,b:6379", None);
        check("rediss-cluster://a/", "rediss-cluster://a:6379", None);
        check("redis+unix:///run/a%20b.sock", "redis+unix:///run/a b.sock", None);
        check("redis+unix://:p@/s?db=3", "redis+unix:///s?db=3", Some((None, "p")));
        check("redis://[::1]:7000,[fe80::1]", "redis://[::1]:7000,[fe80::1]:6379", None);
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        check("redis://:pa%2Fss@h", "redis://h:6379", Some((None, "pa/ss")));
        check("redis://me:p%40:w,x@a,b", "redis://a:6379,b:6379", Some((Some("me"), "p@:w,x")));
        check("redis://m%C3%A9:p@h", "redis://h:6379", Some((Some("mé"), "p")));
        check("redis://@h", "redis://h:6379", None);
        let url: RedisUrl = "redis://me:s3cret@h".parse().unwrap();
        assert_eq!(format!("{:?}", url.credentials), "Some(Credentials { .. })");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for (url, error) in [
            ("localhost:6379", RedisUrlError::Scheme),
            ("http://h", RedisUrlError::Scheme),
            ("redis+unix://s", RedisUrlError::NoHost),
            ("redis+unix://h/s", RedisUrlError::Host),
            ("redis+unix:///s?x=1", RedisUrlError::Query),
            ("redis://", RedisUrlError::NoHost),
            ("redis://a,,b", RedisUrlError::NoHost),
            ("redis://:s3/cret@h", RedisUrlError::Encoding),
            ("redis://:s3?cret@h", RedisUrlError::Encoding),
            ("redis://:s3#cret@h", RedisUrlError::Encoding),
            ("redis://:%ff@h", RedisUrlError::Credentials),
            ("redis://me@h", RedisUrlError::NoPassword),
            ("redis://me:@h", RedisUrlError::NoPassword),
            ("redis://h h", RedisUrlError::Host),
            ("redis://::1", RedisUrlError::Host),
            ("redis://[::1", RedisUrlError::Host),
            ("redis://[h]", RedisUrlError::Host),
            ("redis://h:99999", RedisUrlError::Port),
            ("redis://h:0", RedisUrlError::Port),
            ("redis://a,b,a:6379", RedisUrlError::Twice("a:6379".into())),
            ("redis://h/main", RedisUrlError::Database),
            ("redis-cluster://h/1", RedisUrlError::ClusterDatabase),
            ("redis-sentinel://h", RedisUrlError::NoName),
            ("redis-sentinel://h/main/x", RedisUrlError::Database),
            ("redis://h?ca=x", RedisUrlError::Query),
            ("redis://h/1#x", RedisUrlError::Query),
        ] {
            assert_eq!(url.parse::<RedisUrl>(), Err(error.clone()), "{url}");
            assert!(!error.to_string().contains("s3"), "{error}");
        }
    }
}
