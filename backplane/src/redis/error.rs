//! Why Redis cannot be used: at the start, one sentence with what to do; while running, what the logs and health say.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, ServerError};

use crate::fields::Malformed;

use super::url::Server;

/// Why the backplane does not start. Each is one sentence that says what to do, and none shows credentials.
#[derive(Debug, thiserror::Error)]
pub enum RedisStartError {
    #[error("Redis at {server} refused the credentials ({answer}); check user and password of the URL")]
    Credentials { server: Box<str>, answer: Box<str> },
    #[error(
        "Redis at {server} forbids this user a command that is needed ({answer}); grant it the keys and channels of \
         the prefix, and the commands"
    )]
    Permission { server: Box<str>, answer: Box<str> },
    #[error("Redis at {server} has version {version}, {needed} or newer is needed; upgrade it")]
    TooOld { server: Box<str>, version: Box<str>, needed: &'static str },
    #[error("Redis at {server} is not a Cluster; use redis:// or switch cluster mode on")]
    NotCluster { server: Box<str> },
    #[error("Redis at {server} is part of a Cluster; use redis-cluster://")]
    IsCluster { server: Box<str> },
    #[error("Redis at {server} is a Sentinel; use redis-sentinel://HOST/NAME")]
    IsSentinel { server: Box<str> },
    #[error("Redis at {server} is not a Sentinel; name the Sentinels, or use redis://")]
    NotSentinel { server: Box<str> },
    #[error("the Sentinel at {server} knows no master named {name}; check the name in the URL")]
    UnknownMaster { server: Box<str>, name: Box<str> },
    #[error("Redis at {server} has no database {db}; check the end of the URL")]
    NoDatabase { server: Box<str>, db: u32 },
    #[error(
        "the certificate of Redis at {server} is not trusted ({cause}); name the file of its authority, and the host \
         as the certificate does"
    )]
    Certificate { server: Box<str>, cause: Box<str> },
    #[error("cannot read the certificates of the Redis authority in {path}: {cause}")]
    Authority { path: PathBuf, cause: Box<str> },
    #[error("cannot read the Redis password in {path}: {cause}")]
    Password { path: PathBuf, cause: Box<str> },
    #[error("the certificate that this node shows to Redis cannot be used, {path}: {cause}")]
    ClientCertificate { path: PathBuf, cause: Box<str> },
    #[error("the certificates of this system cannot be used: {cause}; name the file of the Redis authority")]
    SystemCertificates { cause: Box<str> },
    #[error("the backplane was started already")]
    Twice,
}

/// Why a server could not be used, or is not used any longer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("its name cannot be resolved: {0}")]
    Resolve(Arc<io::Error>),
    #[error("its name has no address")]
    NoAddress,
    #[error("cannot connect: {0}")]
    Connect(Arc<io::Error>),
    #[error("the TLS handshake failed: {0}")]
    Tls(Arc<io::Error>),
    #[error("it did not {what} within {} ms", .within.as_millis())]
    Late { what: &'static str, within: Duration },
    #[error("the connection broke")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(RedisError),
    #[error("it answered {}", sentence(.0))]
    Refused(ServerError),
    #[error("it answered what Redis does not answer")]
    Protocol,
    #[error("it is a replica")]
    Replica,
    #[error("{reached} of {asked} replicas had the publication within {} ms", .within.as_millis())]
    NotReplicated { reached: i64, asked: u8, within: Duration },
    #[error("its version is {version}, {needed} is needed")]
    TooOld { version: Box<str>, needed: &'static str },
    #[error("it is not a Cluster")]
    NotCluster,
    #[error("it is part of a Cluster")]
    IsCluster,
    #[error("it is a Sentinel")]
    IsSentinel,
    #[error("it is not a Sentinel")]
    NotSentinel,
    #[error("it knows no master named {0}")]
    UnknownMaster(Box<str>),
    #[error("none of the Sentinels answered; {0}")]
    Sentinels(Box<SentinelTrouble>),
    #[error("it has no database {0}")]
    NoDatabase(u32),
    #[error("nothing came from it for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("its user lacks a right: {0}")]
    Rights(Box<str>),
    #[error("{0} names another master")]
    OtherMaster(&'static str),
    #[error("{0}")]
    Asked(Box<str>),
    #[error("not connected yet")]
    NotYet,
    #[error("it is no longer part of the deployment")]
    Dropped,
}

/// What one Sentinel's trouble was, and whose.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{server}: {trouble}")]
pub(crate) struct SentinelTrouble {
    pub(crate) server: Server,
    pub(crate) trouble: Trouble,
}

impl Trouble {
    /// The error to stop with at the start, where trying again cannot help.
    pub(crate) fn fatal(&self, server: &Server) -> Option<RedisStartError> {
        let name: Box<str> = server.to_string().into();
        Some(match self {
            Self::Refused(error) => match error.code() {
                "WRONGPASS" | "NOAUTH" => {
                    RedisStartError::Credentials { server: name, answer: sentence(error).into() }
                }
                "NOPERM" => RedisStartError::Permission { server: name, answer: sentence(error).into() },
                _ => return None,
            },
            Self::Rights(answer) => RedisStartError::Permission { server: name, answer: answer.clone() },
            Self::TooOld { version, needed } => {
                RedisStartError::TooOld { server: name, version: version.clone(), needed }
            }
            Self::NotCluster => RedisStartError::NotCluster { server: name },
            Self::IsCluster => RedisStartError::IsCluster { server: name },
            Self::IsSentinel => RedisStartError::IsSentinel { server: name },
            Self::NotSentinel => RedisStartError::NotSentinel { server: name },
            Self::UnknownMaster(master) => {
                RedisStartError::UnknownMaster { server: name, name: master.clone() }
            }
            Self::NoDatabase(db) => RedisStartError::NoDatabase { server: name, db: *db },
            // What rustls finds wrong with a certificate; a connection cut in the handshake has another kind.
            Self::Tls(error) if error.kind() == io::ErrorKind::InvalidData => {
                RedisStartError::Certificate { server: name, cause: error.to_string().into() }
            }
            Self::Sentinels(trouble) => return trouble.trouble.fatal(&trouble.server),
            _ => return None,
        })
    }
}

/// A server's error as it came: code and text. Callers tell errors apart by the code at its beginning.
pub(crate) fn sentence(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// Answers take a round trip; a server that is slower is waited for by the next upgrade.
pub(super) const HALT_PATIENCE: Duration = Duration::from_secs(1);

/// Why a node cannot go on in another process now.
#[derive(Debug, thiserror::Error)]
pub enum HandOnError {
    #[error("its connections to Redis are over TLS, whose keys cannot be handed on: restart it")]
    Tls,
    #[error("{0}; try again when it is back")]
    Away(Box<str>),
    #[error(
        "Redis did not answer what was asked of it within {HALT_PATIENCE:?}; try again when it is less busy"
    )]
    Busy,
    #[error("a server of Redis, or a connection to one, has changed meanwhile; try again")]
    Changed,
    #[error("a connection to Redis cannot be handed on: {0}")]
    Socket(io::Error),
}

/// Why a process does not go on with what another one wrote.
#[derive(Debug, thiserror::Error)]
pub enum TakeInError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(
        "its configuration names other servers of Redis, another prefix or number of replicas: a change of that needs a restart"
    )]
    Elsewhere,
    #[error("a connection to Redis cannot be gone on with: {0}")]
    Socket(io::Error),
}
