//! Why a step failed, and what to do about it.

use std::{error::Error as _, io, net::SocketAddr};

use rustls::{CertificateError, Error as TlsError};

use super::{
    STEP_TIMEOUT,
    answer::{Answer, Problem},
};

/// A failed step. The sentence says what happened, [`Trouble::advice`] what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{host} has no address{}", because(.source.as_ref()))]
    Name { host: String, source: Option<io::Error> },
    #[error("no name server told an address of {host} within {} s", STEP_TIMEOUT.as_secs())]
    NameTimeout { host: String },
    #[error("{address} does not take connections: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{address} did not answer a connection within {} s", STEP_TIMEOUT.as_secs())]
    ConnectTimeout { address: SocketAddr },
    #[error("{host} is no name that a certificate can be for")]
    TlsName { host: String },
    #[error("no TLS session within {} s", STEP_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error("what answers does not speak TLS")]
    NotTls,
    #[error("the certificate of {host} is not accepted: {fault}")]
    Certificate { host: String, fault: CertificateError },
    #[error("this system has no certificates that it trusts")]
    NoRoots,
    #[error("no TLS session: {source}")]
    Tls { source: io::Error },
    #[error("the request cannot be written: {0}")]
    Request(#[source] http::Error),
    #[error("no random numbers: {0}")]
    Random(#[source] getrandom::Error),
    #[error("no HTTP/1.1 answer: {}", chain(.source))]
    Http { source: hyper::Error },
    #[error("the connection is open, and no answer came within {} s", STEP_TIMEOUT.as_secs())]
    Silent,
    #[error("GET {path} was answered {status}{}", by(.server.as_deref(), .problem.as_ref()))]
    Refused {
        path: &'static str,
        status: u16,
        server: Option<String>,
        location: Option<String>,
        problem: Option<Problem>,
    },
    #[error("the answer 101 has a wrong Sec-WebSocket-Accept")]
    Accept,
}

impl Trouble {
    pub(super) fn tls(host: &str, source: io::Error) -> Self {
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match inner {
            Some(TlsError::InvalidCertificate(error)) => {
                Self::Certificate { host: host.to_owned(), fault: error.clone() }
            }
            Some(TlsError::InvalidMessage(_)) => Self::NotTls,
            _ => Self::Tls { source },
        }
    }

    pub(super) fn refused(path: &'static str, answer: Answer) -> Self {
        let Answer { status, server, location, problem, .. } = answer;
        Self::Refused { path, status, server, location, problem }
    }

    /// What to do.
    pub(super) fn advice(&self) -> String {
        match self {
            Self::Name { .. } | Self::NameTimeout { .. } => "check the name, and the name servers of this machine",
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                "nothing listens there: check the port, whether the process runs, and that `listen` is not a loopback address"
            }
            Self::Connect { .. } | Self::ConnectTimeout { .. } => {
                "check routes, firewalls and security groups between this machine and that address"
            }
            Self::TlsName { .. } => "use a name or an address that the certificate is for",
            Self::NotTls => "use http or ws, or turn TLS on at this port",
            Self::TlsTimeout | Self::Tls { .. } => "check with `openssl s_client -connect HOST:PORT`",
            Self::Certificate { fault, .. } => certificate_advice(fault),
            Self::NoRoots => "install ca-certificates, or name a file with SSL_CERT_FILE",
            Self::Request(_) => "the channel or the token has characters that a request cannot hold",
            Self::Random(_) => "this system must have a source of randomness",
            Self::Http { .. } => "this may be a port of another protocol: try https instead of http, or the other way",
            Self::Silent => "the process may hang, or a proxy in front waits for a gateway that does not answer",
            Self::Accept => "what answers only passes for a WebSocket server: ask the gateway directly",
            Self::Refused { status, location, problem, .. } => {
                return refused_advice(*status, location.as_deref(), problem.as_ref());
            }
        }
        .to_owned()
    }
}

fn certificate_advice(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew it; `tls.reload_interval` reads it again"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "check this machine's clock"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "use a name that the certificate is for, or have it issued for this one"
        }
        _ => "send the whole chain (`tls.certificate_file`), or name a private authority with SSL_CERT_FILE",
    }
}

fn refused_advice(status: u16, location: Option<&str>, problem: Option<&Problem>) -> String {
    let advice = match (status, problem.map(Problem::name)) {
        (_, Some("invalid-upgrade")) => {
            "something in front does not pass the upgrade on. nginx: proxy_http_version 1.1; proxy_set_header Upgrade \
             $http_upgrade; proxy_set_header Connection \"upgrade\"; others: turn WebSockets on for this path"
        }
        (401, Some(_)) => {
            "the upgrade passes, and the channel needs a token: give one with --token, or another --channel"
        }
        (403, Some(_)) => {
            "the upgrade passes, and the token is not for this channel: give another --token or --channel"
        }
        (_, Some("draining")) => "this node is being stopped; a balancer in front should have left it out",
        (_, Some("no-gateway" | "no-node")) => {
            "the router knows no gateway that takes clients: check its `members` and its logs"
        }
        (_, Some("no-capacity" | "too-many-connections" | "too-many-handshakes")) => {
            "a limit of the gateway is reached: see `limits` in docs/configuration.md"
        }
        (_, Some("bad-answer" | "no-answer")) => {
            "the router reached a gateway that did not answer as one: look at its logs, and whether its port speaks TLS"
        }
        (_, Some("backplane-unavailable")) => {
            "the gateway has lost its Redis: /readyz on its internal port says why"
        }
        (_, Some(_)) => "docs/errors.md has what to do for each type of answer",
        (300..=399, None) => {
            let to = location.unwrap_or("another address");
            return format!("WebSocket clients do not follow redirects: use {to} itself");
        }
        (401 | 403, None) => "something in front asks for credentials of its own, or keeps this client out",
        (502..=504, None) => {
            "what is in front cannot reach a gateway: check that it runs and is ready, and the address"
        }
        (500.., None) => "look at the logs of what is in front",
        (_, None) => "this is not Tidegate, or what is in front does not pass this path on",
    };
    advice.to_owned()
}

/// Who said so, and in which words.
fn by(server: Option<&str>, problem: Option<&Problem>) -> String {
    match (problem, server) {
        (Some(problem), _) => format!(" by Tidegate: {}", problem.detail),
        (None, Some(server)) => format!(" by {server}"),
        (None, None) => ", and not by Tidegate".to_owned(),
    }
}

fn because(source: Option<&io::Error>) -> String {
    source.map_or_else(String::new, |source| format!(": {source}"))
}

/// hyper's own words are short; what happened is in its sources.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
