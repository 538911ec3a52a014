//! The certificate that is shown to clients, and the files it comes from.
//!
//! The files are looked at every few seconds instead of being watched. A mounted secret is a chain of symbolic links
//! of which one is swapped; a watch on the files does not see that, and on some file systems sees nothing at all.
//! Looking costs four system calls.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    Error, InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Files, expiry};
use crate::{
    config::ConfigError,
    metrics::{Collector, Counter, DescriptorEncoder, Page},
};

/// A certificate and its key, as good as the files were when they were last read well.
#[derive(Debug)]
pub struct Certificates {
    files: Files,
    interval: Duration,
    current: Mutex<Current>,
    reloads: Counter,
    failures: Counter,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    /// When the certificate ends, in seconds since 1970.
    expires_s: Option<i64>,
    /// The files that were read last, well or not.
    stamp: Stamp,
    /// The files that are there now cannot be used.
    is_stale: bool,
}

/// What tells one state of the files from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([FileStamp; 2]);

/// Device, inode, length, seconds and nanoseconds of the last change. `None`: there is no such file.
type FileStamp = Option<(u64, u64, u64, i64, i64)>;

/// What is wrong with the contents of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    #[error("it holds no PEM certificate")]
    NoCertificate,
    #[error("it holds no PEM private key that is not encrypted")]
    NoKey,
    #[error("a certificate in it is damaged")]
    Certificate,
    #[error("the key is of a kind that is not supported, or damaged")]
    Key,
    #[error("the key is not the one of the certificate")]
    Mismatch,
}

/// The families of a port's certificate.
#[derive(Debug)]
pub struct TlsCollector(pub Arc<Certificates>);

impl Certificates {
    pub(super) fn load(files: Files, interval: Duration) -> Result<Self, ConfigError> {
        let stamp = Stamp::of(&files);
        let (key, expires_s) = read(&files)?;
        let current = Current { key: Arc::new(key), expires_s, stamp, is_stale: false };
        warn_if_expired(expires_s);
        Ok(Self {
            files,
            interval,
            current: Mutex::new(current),
            reloads: Counter::default(),
            failures: Counter::default(),
        })
    }

    /// Looks at the files every interval. Never ends.
    pub async fn keep_fresh(self: Arc<Self>) {
        // Zero would spin.
        let mut every = tokio::time::interval(self.interval.max(Duration::from_millis(100)));
        loop {
            every.tick().await;
            let this = Arc::clone(&self);
            // Files may be on a network.
            if let Err(error) = tokio::task::spawn_blocking(move || this.reload_if_changed()).await {
                tracing::error!(%error, "the certificate could not be looked at");
            }
        }
    }

    /// Reads the files if they are not those that were read last. Files that cannot be used are told once.
    pub fn reload_if_changed(&self) {
        // Before they are read: what changes meanwhile is seen next time.
        let stamp = Stamp::of(&self.files);
        if self.lock().stamp == stamp {
            return;
        }
        let read = read(&self.files);
        let mut current = self.lock();
        current.stamp = stamp;
        current.is_stale = read.is_err();
        match read {
            Ok((key, expires_s)) => {
                (current.key, current.expires_s) = (Arc::new(key), expires_s);
                drop(current);
                self.reloads.add(1);
                tracing::info!(file = %self.files.certificate.display(), "new connections have the new certificate");
                warn_if_expired(expires_s);
            }
            Err(error) => {
                drop(current);
                self.failures.add(1);
                tracing::warn!(%error, "the new certificate is not taken, the old one stays");
            }
        }
    }

    /// When the certificate ends, in seconds since 1970; `None` when it does not say so in a way that is known.
    pub fn expires_s(&self) -> Option<i64> {
        self.lock().expires_s
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock is held for as long as it takes to count a reference.
impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.lock().key))
    }
}

impl Collector for TlsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let certificates = &*self.0;
        let mut page = Page::new(encoder);
        if let Some(expires_s) = certificates.expires_s() {
            let help = "When the certificate in use ends, in seconds since 1970.";
            page.gauge("tls_certificate_expiry_seconds", help, expires_s as f64)?;
        }
        let is_stale = certificates.lock().is_stale;
        let help = "1 while the files of the certificate cannot be used and the old one stays.";
        page.gauge("tls_certificate_stale", help, f64::from(u8::from(is_stale)))?;
        page.counter("tls_certificate_reloads", "New certificates taken.", certificates.reloads.get())?;
        let help = "New certificates that could not be used.";
        page.counter("tls_certificate_reload_failures", help, certificates.failures.get())
    }
}

impl Stamp {
    fn of(files: &Files) -> Self {
        let stamp = |path: &Path| {
            // Through symbolic links: it is the file behind them that counts.
            let file = fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
        };
        Self([stamp(&files.certificate), stamp(&files.key)])
    }
}

fn read(files: &Files) -> Result<(CertifiedKey, Option<i64>), ConfigError> {
    let (certificate_key, key_key) = files.keys;
    let pem = read_file(certificate_key, &files.certificate)?;
    let unusable = |key: &str, path: &Path, problem: TlsProblem| ConfigError::Unusable {
        key: key.into(),
        path: Some(path.to_owned()),
        problem: problem.into(),
    };
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| unusable(certificate_key, &files.certificate, TlsProblem::Certificate))?;
    let Some(first) = chain.first() else {
        return Err(unusable(certificate_key, &files.certificate, TlsProblem::NoCertificate));
    };
    let expires_s = expiry::not_after_s(first);
    let pem = read_file(key_key, &files.key)?;
    let key =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable(key_key, &files.key, TlsProblem::NoKey))?;
    match CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()) {
        Ok(certified) => Ok((certified, expires_s)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(unusable(key_key, &files.key, TlsProblem::Mismatch))
        }
        Err(Error::InvalidCertificate(_)) => {
            Err(unusable(certificate_key, &files.certificate, TlsProblem::Certificate))
        }
        Err(_) => Err(unusable(key_key, &files.key, TlsProblem::Key)),
    }
}

fn read_file(key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|source: io::Error| ConfigError::KeyFile {
        key: key.into(),
        path: PathBuf::from(path),
        source,
    })
}

/// An expired certificate is shown all the same: clients may be told to accept it, and a clock may be wrong.
fn warn_if_expired(expires_s: Option<i64>) {
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if expires_s.is_some_and(|expires_s| expires_s < now_s as i64) {
        tracing::warn!("the certificate has expired");
    }
}
