//! Whether a node that somebody else named answers: a GET, and what follows from several of them.

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use tidegate_wire::proxy_v2;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// What is asked, where, and how often.
#[derive(Debug, Clone)]
pub struct Health {
    pub path: Box<str>,
    /// The internal port; `None`: the public one is asked.
    pub port: Option<u16>,
    /// The public port expects a PROXY protocol header.
    pub proxy_protocol: bool,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failed checks in a row until a node is down.
    pub failures: u32,
}

/// Where a node stands by its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Live,
    /// It answers, and asks for no more clients.
    Draining,
    Down,
}

/// What one check found.
#[derive(Debug)]
pub(super) enum Outcome {
    Healthy,
    /// 503.
    Refusing,
    Failed(CheckError),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("the answer is not HTTP")]
    NotHttp,
    #[error("the answer is {0}")]
    Status(u16),
}

/// The standings of all nodes, by name.
#[derive(Debug, Default)]
pub(super) struct Standings(HashMap<Box<str>, Record>);

#[derive(Debug)]
struct Record {
    standing: Standing,
    /// Failed checks in a row.
    failures: u32,
}

impl Health {
    /// Asks a node once. `address` is how it is called; its host goes into the request.
    pub(super) async fn check(&self, address: &str, socket: SocketAddr) -> Outcome {
        let socket = SocketAddr::new(socket.ip(), self.port.unwrap_or(socket.port()));
        let request = self.request(address);
        let status = match timeout(self.timeout, status_of(socket, &request)).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Outcome::Failed(error),
            Err(_) => return Outcome::Failed(CheckError::Timeout),
        };
        let healthy = if self.port.is_some() { 200..=299 } else { 100..=499 };
        match status {
            503 => Outcome::Refusing,
            status if healthy.contains(&status) => Outcome::Healthy,
            status => Outcome::Failed(CheckError::Status(status)),
        }
    }

    fn request(&self, host: &str) -> Vec<u8> {
        let mut request = Vec::new();
        if self.proxy_protocol && self.port.is_none() {
            proxy_v2::write_local(&mut request);
        }
        let head = format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-router\r\nConnection: close\r\n\r\n",
            self.path
        );
        request.extend_from_slice(head.as_bytes());
        request
    }
}

impl Standing {
    /// Of a node that gets no new clients in any case.
    pub(super) fn without_new(self) -> Self {
        if self == Self::Live { Self::Draining } else { self }
    }
}

impl Standings {
    /// Takes what a check of a node found. The first check decides at once; later, `failures` in a row are needed to take
    /// a node away, and one success brings it back.
    pub(super) fn note(&mut self, name: &str, outcome: &Outcome, failures: u32) -> Standing {
        let is_new = !self.0.contains_key(name);
        let record = self.0.entry(name.into()).or_insert(Record { standing: Standing::Down, failures: 0 });
        let before = record.standing;
        (record.standing, record.failures) = match outcome {
            Outcome::Healthy => (Standing::Live, 0),
            Outcome::Refusing => (Standing::Draining, 0),
            Outcome::Failed(_) if record.failures + 1 >= failures => (Standing::Down, record.failures),
            Outcome::Failed(_) => (before, record.failures + 1),
        };
        if record.standing != before || is_new {
            match (record.standing, outcome) {
                (Standing::Live, _) => tracing::info!(node = name, "answers"),
                (Standing::Draining, _) => tracing::info!(node = name, "takes no more clients"),
                (Standing::Down, Outcome::Failed(error)) => {
                    tracing::warn!(node = name, %error, "does not answer")
                }
                (Standing::Down, _) => {}
            }
        }
        record.standing
    }

    /// Forgets nodes that are no longer listed.
    pub(super) fn keep(&mut self, is_listed: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_listed(name));
    }
}

/// The status of the answer to a GET. Only the begin of the answer is read.
async fn status_of(socket: SocketAddr, request: &[u8]) -> Result<u16, CheckError> {
    let mut stream = TcpStream::connect(socket).await?;
    stream.write_all(request).await?;
    // RFC 9112 §4: `HTTP/1.1 200 `.
    let mut line = [0; 13];
    stream.read_exact(&mut line).await?;
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    status.and_then(|digits| digits.parse().ok()).ok_or(CheckError::NotHttp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standings() {
        use Standing::{Down, Draining, Live};
        let failed = || Outcome::Failed(CheckError::Timeout);
        let check = |failures, outcomes: Vec<Outcome>, expect: &[Standing]| {
            let mut standings = Standings::default();
            let found: Vec<_> = outcomes.iter().map(|one| standings.note("a", one, failures)).collect();
            assert_eq!(found, expect, "{failures} {outcomes:?}");
        };
        check(2, vec![Outcome::Healthy, failed(), failed(), Outcome::Healthy], &[Live, Live, Down, Live]);
        check(2, vec![failed(), failed(), Outcome::Healthy, failed()], &[Down, Down, Live, Live]);
        check(2, vec![Outcome::Healthy, failed(), Outcome::Healthy, failed()], &[Live; 4]);
        check(1, vec![Outcome::Healthy, failed()], &[Live, Down]);
        check(
            2,
            vec![Outcome::Healthy, Outcome::Refusing, failed(), failed()],
            &[Live, Draining, Draining, Down],
        );
        check(
            3,
            vec![Outcome::Healthy, failed(), failed(), failed(), failed()],
            &[Live, Live, Live, Down, Down],
        );
    }
}
