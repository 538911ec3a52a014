//! One kept-alive HTTP connection: publishing 50,000 times must not cost more than the gateways under test.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tidegate_testkit::net::{SocketOptions, connect};

/// Longer than a gateway may think about a publish while Redis hangs (2 s), and far less than a test's deadline.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// A connection with the key of `--dev`.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = connect(address, SocketOptions::default())?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Status and body. After an error the connection is of no more use.
    pub fn request(&mut self, head: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let mut request = format!(
            "{head} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n{kind}\
             Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request)?;
        self.answer()
    }

    /// Publishes `payload` to the channel, under an idempotency key if there is one, and gives status and body.
    pub fn publish(&mut self, channel: &str, key: Option<&str>, payload: &str) -> io::Result<(u16, Vec<u8>)> {
        let body = payload.len();
        let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
        let request = format!(
            "POST /v1/channels/{channel}/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer dev-key\r\n\
             Content-Type: text/plain\r\n{key}Content-Length: {body}\r\n\r\n{payload}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_http)?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(|_| no_http())?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

fn no_http() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
