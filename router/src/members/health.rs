//! Whether a node answers: a GET.

use std::{io, net::SocketAddr, time::Duration};

use tidegate_ops::probes::ALONE;
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
    Healthy {
        /// What is published there reaches nobody elsewhere.
        alone: bool,
    },
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
        let (status, alone) = match timeout(self.timeout, answer_of(socket, &request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(CheckError::Io(error))) if is_own_lack(&error) => return Outcome::NotMade(error),
            Ok(Err(error)) => return Outcome::Failed(error),
            Err(_) => return Outcome::Failed(CheckError::Timeout),
        };
        let healthy = if self.port.is_some() { 200..=299 } else { 100..=499 };
        match status {
            503 => Outcome::Refusing,
            status if healthy.contains(&status) => Outcome::Healthy { alone },
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
            Self::Healthy { .. } => Found::Healthy,
            Self::Refusing => Found::Refusing,
            Self::Failed(_) => Found::Failed,
            Self::NotMade(_) => Found::Nothing,
        }
    }
}

/// Of an answer so much is looked at: its head, mostly.
const ANSWER_BYTES: usize = 1024;

/// The status of the answer to a GET, and whether its head says that the gateway stands alone.
async fn answer_of(socket: SocketAddr, request: &[u8]) -> Result<(u16, bool), CheckError> {
    let mut stream = TcpStream::connect(socket).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    let mut begin = (&mut stream).take(ANSWER_BYTES as u64);
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") && begin.read_buf(&mut answer).await? > 0 {}
    understood(&answer)
}

fn understood(answer: &[u8]) -> Result<(u16, bool), CheckError> {
    // RFC 9112 §4: `HTTP/1.1 200 `.
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    let status = status.and_then(|digits| digits.parse().ok()).ok_or(CheckError::NotHttp)?;
    let says = |line: &[u8]| {
        line.strip_suffix(b": true\r").is_some_and(|name| name.eq_ignore_ascii_case(ALONE.as_bytes()))
    };
    Ok((status, answer.split(|byte| *byte == b'\n').any(says)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_gateway_that_stands_alone_says_so_in_its_head() {
        let check =
            |answer: &str, expect| assert_eq!(understood(answer.as_bytes()).unwrap(), expect, "{answer}");
        check("HTTP/1.1 200 OK\r\nTidegate-Alone: true\r\ncontent-length: 3\r\n\r\nok\n", (200, true));
        check("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n", (200, false));
        check("HTTP/1.0 503 Busy\r\n", (503, false));
        assert!(understood(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert!(understood(b"HTTP/1.1").is_err());
    }
}
