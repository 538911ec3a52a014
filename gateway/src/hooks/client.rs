//! The HTTP client of everything that is sent to applications: no redirects, no proxy from the environment, and no
//! addresses that are denied.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tidegate_ops::trust::Networks;

use crate::config::{ConfigError, HookEntry, read_secret};

/// Connections to one application that are kept open without a request.
const IDLE_MAX: usize = 64;

/// How often an HTTP/2 connection is tried while requests wait on it, and how long an answer may take: one connection has
/// them all, so a dead one must be found.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// A client for the section `key` of the configuration. Who is told of anything is said there, so redirects are answers like
/// any other; the environment is read in `config` only.
pub(crate) fn client(key: &str, timeout: Duration) -> Result<reqwest::Client, ConfigError> {
    finish(key, builder(timeout))
}

/// The same for a hook: what it may resolve to, whom it trusts, and who it is.
pub(crate) fn client_of(
    name: &str,
    entry: &HookEntry,
    timeout: Duration,
) -> Result<reqwest::Client, ConfigError> {
    let mut builder = builder(timeout);
    if !entry.denied_addresses.is_empty() {
        builder = builder.dns_resolver(Arc::new(Guard(Networks::new(&entry.denied_addresses))));
    }
    let read = |key: &str, path: &Path| read_secret(&format!("hooks.{name}.{key}"), path);
    let unusable = |key: &str, path: &Path, error: reqwest::Error| ConfigError::Unusable {
        key: format!("hooks.{name}.{key}").into(),
        path: Some(path.to_owned()),
        problem: error.into(),
    };
    if let Some(path) = &entry.ca_file {
        let authority = reqwest::Certificate::from_pem_bundle(read("ca_file", path)?.expose());
        builder = builder.tls_certs_only(authority.map_err(|error| unusable("ca_file", path, error))?);
    }
    if let (Some(path), Some(key)) = (&entry.cert_file, &entry.key_file) {
        let both = [read("cert_file", path)?.expose(), b"\n", read("key_file", key)?.expose()].concat();
        let identity = reqwest::Identity::from_pem(&both);
        builder = builder.identity(identity.map_err(|error| unusable("cert_file", path, error))?);
    }
    finish(&format!("hooks.{name}"), builder)
}

fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(IDLE_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1)
        .no_proxy()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
}

fn finish(key: &str, builder: reqwest::ClientBuilder) -> Result<reqwest::Client, ConfigError> {
    builder.build().map_err(|error| ConfigError::Unusable {
        key: key.into(),
        path: None,
        problem: error.into(),
    })
}

/// An answer is larger than it may be, or broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("it has more than {0} bytes")]
    TooLarge(usize),
    #[error("it broke off")]
    Broken,
}

/// The body of an answer. One that was read to its end leaves the connection usable.
pub(crate) async fn read_body(mut response: reqwest::Response, max: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| BodyError::Broken)? {
        if body.len() + chunk.len() > max {
            return Err(BodyError::TooLarge(max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Resolves names to the addresses that are not denied.
#[derive(Debug)]
struct Guard(Networks);

#[derive(Debug, thiserror::Error)]
#[error("every address of this name is one of denied_addresses")]
struct Denied;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let denied = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !denied.cover(address.ip())).collect();
            match allowed.is_empty() {
                true => Err(Denied.into()),
                false => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}
