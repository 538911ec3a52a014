//! TLS on a listening port: the section, certificates that are read again when they change, and sessions on Tokio.
//!
//! The sessions themselves live in the reactor; what they are made from is [`TlsServer::config`].

mod certificates;
mod expiry;
mod link;
mod stream;

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};

pub use certificates::{Certificates, TlsCollector, TlsProblem};
pub use link::{Link, LinkParts};
pub use stream::TlsStream;

use crate::{choice, config::ConfigError, label, section};

section! {
    /// TLS on the public port. Off without a certificate: then somebody else ends TLS, or nobody does.
    Tls {
        /// Directory with `tls.crt` and `tls.key`, the names under which Kubernetes mounts a TLS secret.
        directory: Option<PathBuf> = None;
        /// PEM file with the certificate, followed by those of its chain. Instead of `directory`.
        certificate_file: Option<PathBuf> = None;
        /// PEM file with the private key of the certificate, not encrypted.
        key_file: Option<PathBuf> = None;
        /// The oldest version of TLS that clients may speak.
        min_version: TlsVersion = TlsVersion::Tls12;
        /// How often the files are looked at. When they have changed they are read; new connections have the new
        /// certificate, and open ones stay. Files that cannot be used leave the certificate as it is.
        reload_interval: Duration = Duration::from_secs(10);
    }
}

choice! {
    /// A version of TLS.
    TlsVersion, r#""1.2" or "1.3""#, "a list of versions", {
        Tls12 = "1.2",
        Tls13 = "1.3",
    }
}

label!(
    /// How a TLS session began, or that it broke off.
    TlsHandshake, "result", {
        Full = "full",
        /// With a ticket of an earlier session.
        Resumed = "resumed",
        Failed = "failed",
    }
);

/// What a port needs that speaks TLS.
#[derive(Debug, Clone)]
pub struct TlsServer {
    /// What sessions are made from.
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Certificates>,
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// What names each of them in the configuration.
    keys: (&'static str, &'static str),
}

impl Tls {
    /// Whether the port speaks TLS.
    pub fn is_on(&self) -> bool {
        self.directory.is_some() || self.certificate_file.is_some() || self.key_file.is_some()
    }

    /// Reads the files. `None`: TLS is off.
    ///
    /// # Errors
    /// One line that names the key and the file.
    pub fn server(&self) -> Result<Option<TlsServer>, ConfigError> {
        let Some(files) = self.files()? else { return Ok(None) };
        let certificates = Arc::new(Certificates::load(files, self.reload_interval)?);
        let versions: &[&'static SupportedProtocolVersion] = match self.min_version {
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
            TlsVersion::Tls13 => &[&TLS13],
        };
        let unusable = |error: rustls::Error| ConfigError::Unusable {
            key: "tls".into(),
            path: None,
            problem: error.into(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        // A client that comes back saves the signature. Tickets are kept by clients, so they cost nothing here.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // WebSockets begin as HTTP/1.1, and a client that offers HTTP/2 as well must not take it.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(TlsServer { config: Arc::new(config), certificates }))
    }

    fn files(&self) -> Result<Option<Files>, ConfigError> {
        const BOTH: (&str, &str) = ("tls.certificate_file", "tls.key_file");
        let contradiction = |other: &str, rule| ConfigError::Contradiction {
            key: "tls.directory".into(),
            other: other.into(),
            rule,
        };
        match (&self.directory, &self.certificate_file, &self.key_file) {
            (None, None, None) => Ok(None),
            (Some(directory), None, None) => Ok(Some(Files {
                certificate: directory.join("tls.crt"),
                key: directory.join("tls.key"),
                keys: ("tls.directory", "tls.directory"),
            })),
            (None, Some(certificate), Some(key)) => {
                Ok(Some(Files { certificate: certificate.clone(), key: key.clone(), keys: BOTH }))
            }
            (Some(_), Some(_), _) => Err(contradiction(BOTH.0, "the files are named once")),
            (Some(_), None, Some(_)) => Err(contradiction(BOTH.1, "the files are named once")),
            (None, ..) => Err(ConfigError::Contradiction {
                key: BOTH.0.into(),
                other: BOTH.1.into(),
                rule: "a certificate and its key come together",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
