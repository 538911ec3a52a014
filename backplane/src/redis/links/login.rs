//! With what this node logs in: credentials and certificates, read from their files when a login was refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::redis::error::RedisStartError;
use crate::redis::options::{RedisFiles, SentinelLogin};
use crate::redis::url::Credentials;

/// Where credentials and certificates come from.
pub(crate) struct Login {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) is_tls: bool,
    pub(crate) files: RedisFiles,
    pub(crate) sentinel: Option<SentinelLogin>,
}

/// What was read last.
pub(crate) struct Loaded {
    pub(super) tls: Option<TlsConnector>,
    pub(super) credentials: Option<Credentials>,
    pub(super) sentinel: Option<Credentials>,
}

impl Login {
    pub(super) fn load(&self) -> Result<Loaded, RedisStartError> {
        let mut credentials = self.credentials.clone();
        if let Some(path) = &self.files.password {
            let user = credentials.and_then(|credentials| credentials.user);
            credentials = Some(Credentials { user, password: password(path)? });
        }
        let sentinel = self.sentinel.as_ref().map(|login| {
            let password = password(&login.password_file)?;
            Ok(Credentials { user: login.user.clone(), password })
        });
        let tls = if self.is_tls { Some(connector(&self.files)?) } else { None };
        Ok(Loaded { tls, credentials, sentinel: sentinel.transpose()? })
    }
}

/// Line ends at its end are cut.
fn password(path: &Path) -> Result<Box<str>, RedisStartError> {
    let text = fs::read_to_string(path).map_err(|error| RedisStartError::Password {
        path: path.to_owned(),
        cause: error.to_string().into(),
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).into())
}

/// The provider is named, so that it does not matter which one the process has installed.
fn connector(files: &RedisFiles) -> Result<TlsConnector, RedisStartError> {
    let roots = match &files.ca {
        Some(path) => authority(path)?,
        None => system_roots(),
    };
    if roots.is_empty() {
        return Err(RedisStartError::SystemCertificates { cause: "there are none".into() });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RedisStartError::SystemCertificates { cause: error.to_string().into() })?
        .with_root_certificates(roots);
    let config = match &files.certificate {
        None => config.with_no_client_auth(),
        Some([certificate, key]) => {
            let refused = |path: &PathBuf, cause: String| RedisStartError::ClientCertificate {
                path: path.clone(),
                cause: cause.into(),
            };
            let chain = certificates(certificate).map_err(|cause| refused(certificate, cause))?;
            let private =
                PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, error.to_string()))?;
            config
                .with_client_auth_cert(chain, private)
                .map_err(|error| refused(certificate, error.to_string()))?
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn authority(path: &Path) -> Result<RootCertStore, RedisStartError> {
    let refused = |cause: String| RedisStartError::Authority { path: path.to_owned(), cause: cause.into() };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path).map_err(refused)? {
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("there are none in it".to_owned()) } else { Ok(certificates) }
}

/// Certificates that cannot be read are left out, as other clients do; none at all is an error of the caller's.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
