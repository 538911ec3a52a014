//! What a Redis backplane is told at its start.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{names::Prefix, scripts, url::RedisUrl};
use crate::PRESENCE_SETTLE;

/// How long a node that is not heard of counts as living.
pub const LEASE: Duration = Duration::from_secs(10);

/// How long a key makes a second publish a duplicate.
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(300);

/// What is read from files, and again when a login was refused.
#[derive(Debug, Clone, Default)]
pub struct RedisFiles {
    /// The password, in place of the URL's. Line ends at its end are cut.
    pub password: Option<PathBuf>,
    /// PEM file with the certificates of a private authority; without it, those that the system trusts.
    pub ca: Option<PathBuf>,
    /// PEM files with the certificate that this node shows, and its key.
    pub certificate: Option<[PathBuf; 2]>,
}

/// Who this node is to the Sentinels.
#[derive(Debug, Clone)]
pub struct SentinelLogin {
    /// `None`: the default user.
    pub user: Option<Box<str>>,
    pub password_file: PathBuf,
}

/// Threads that poll sockets anyway. What arrives of publications is read there, and wakes no other thread for what is theirs.
pub trait Host: Send + Sync + fmt::Debug {
    /// Begins what `work` makes of the socket on one of them; those of the same number are on the same one.
    fn begin(&self, number: usize, socket: OwnedFd, work: HostedWork);
}

pub type HostedWork = Box<dyn FnOnce(Box<dyn HostedSocket>) -> BoxFuture<'static, ()> + Send>;

/// A socket that such a thread polls.
pub trait HostedSocket: AsyncRead + AsyncWrite + AsFd + Send + Sync + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + AsFd + Send + Sync + Unpin + 'static> HostedSocket for S {}

/// How a node takes part in a deployment.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    pub url: RedisUrl,
    pub files: RedisFiles,
    /// For Sentinels that have credentials of their own.
    pub sentinel: Option<SentinelLogin>,
    /// Keeps deployments on one Redis apart.
    pub prefix: Prefix,
    /// Unique among the nodes that live.
    pub node: Box<str>,
    /// This life of it. One that takes another process's place goes on with its life.
    pub life: u64,
    /// Of presence and of node records. It is renewed ten times in its time. At least 1 s.
    pub lease: Duration,
    pub idempotency_window: Duration,
    /// A publication with history or key is accepted when so many replicas have it.
    pub replicas: u8,
    /// How long an end must last until it is told as a transition.
    pub presence_settle: Duration,
    /// Where publications are read, unless that is a task of Tokio.
    pub host: Option<Arc<dyn Host>>,
}

impl RedisOptions {
    /// The usual prefix, lease and window, and a life of its own.
    pub fn new(url: RedisUrl, node: &str) -> Self {
        Self {
            url,
            // Without randomness, nothing after this works either; publishes say so.
            life: scripts::random().unwrap_or_default(),
            files: RedisFiles::default(),
            sentinel: None,
            prefix: Prefix::default(),
            node: node.into(),
            lease: LEASE,
            idempotency_window: IDEMPOTENCY_WINDOW,
            replicas: 0,
            presence_settle: PRESENCE_SETTLE,
            host: None,
        }
    }
}
