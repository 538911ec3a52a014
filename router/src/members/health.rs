//! Whether a node answers: a GET.

use std::{io, net::SocketAddr, time::Duration};

use tidegate_wire::proxy_v2;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::membership::Found;
use crate::lack::is_own_lack;

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
    /// Failed checks in a row until a node gets no new clients.
    pub failures: u32,
    /// Checks that fail for so long cut the clients that a node has.
    pub cut_after: Duration,
}

/// What one check found.
#[derive(Debug)]
pub(super) enum Outcome {
    Healthy,
    /// 503.
    Refusing,
    Failed(CheckError),
    /// This process could not ask.
    NotMade(io::Error),
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

impl Health {
    /// Asks a node once. `address` is how it is called. Its public port is asked by that; its internal port, which is not
    /// to be reached by just any name, by its address.
    pub(super) async fn check(&self, address: &str, socket: SocketAddr) -> Outcome {
        let socket = SocketAddr::new(socket.ip(), self.port.unwrap_or(socket.port()));
        let request = match self.port {
            Some(_) => self.request(&socket.to_string()),
            None => self.request(address),
        };
        let status = match timeout(self.timeout, status_of(socket, &request)).await {
            Ok(Ok(status)) => status,
            Ok(Err(CheckError::Io(error))) if is_own_lack(&error) => return Outcome::NotMade(error),
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

impl Outcome {
    pub(super) fn found(&self) -> Found {
        match self {
            Self::Healthy => Found::Healthy,
            Self::Refusing => Found::Refusing,
            Self::Failed(_) => Found::Failed,
            Self::NotMade(_) => Found::Nothing,
        }
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
