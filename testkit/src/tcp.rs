//! A TCP client for exact bytes: broken handshakes, broken frames, readers that stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::net::{SocketOptions, connect};
use crate::wait::DEADLINE;

/// The longest head a test server may send; ours answers a few hundred bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A connection that sends what it is told and reads with a deadline.
#[derive(Debug)]
pub struct RawTcp {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An HTTP response head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpHead {
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
}

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the peer closed the connection")]
    Closed,
    #[error("nothing came within the deadline")]
    Deadline,
    #[error("not HTTP: {0:?}")]
    NotHttp(String),
    #[error(transparent)]
    Io(io::Error),
}

impl RawTcp {
    /// # Panics
    /// When the connection is refused.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        match Self::try_connect(address, SocketOptions::default()) {
            Ok(connection) => connection,
            Err(error) => panic!("connect to {address}: {error}"),
        }
    }

    /// # Errors
    /// Whatever the kernel answers.
    pub fn try_connect(address: SocketAddr, options: SocketOptions) -> io::Result<Self> {
        Ok(Self { stream: connect(address, options)?, received: Vec::new() })
    }

    /// Connects and sends a valid upgrade request for `path`; the answer is not read.
    ///
    /// # Panics
    /// When the connection is refused.
    #[track_caller]
    pub fn upgrade(address: SocketAddr, path: &str) -> Self {
        let mut connection = Self::connect(address);
        connection.send(upgrade_request(path).as_bytes());
        connection
    }

    /// Connects, upgrades and reads the `101`.
    ///
    /// # Panics
    /// When the answer is another.
    #[track_caller]
    pub fn upgraded(address: SocketAddr, path: &str) -> Self {
        let mut connection = Self::upgrade(address, path);
        match connection.read_head(DEADLINE) {
            Ok(head) if head.status == 101 => connection,
            other => panic!("upgrade of {path}: {other:?}"),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Panics
    /// When the peer no longer takes them.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_send(bytes) {
            panic!("send {} bytes: {error}", bytes.len());
        }
    }

    /// # Errors
    /// Reset or broken pipe, when the peer has gone.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a head; once it is answered, 1 MiB of a body in pieces; and only then reads the answer, whole and to the end of
    /// the stream.
    ///
    /// # Panics
    /// When any of that fails: a reset takes away what was not read yet.
    #[track_caller]
    pub fn answer_before_body(address: SocketAddr, head: &str) -> (HttpHead, Vec<u8>) {
        let mut client = Self::connect(address);
        client.send(head.as_bytes());
        client.stream.set_read_timeout(Some(DEADLINE)).expect("a deadline that is not zero");
        assert!(matches!(client.stream.peek(&mut [0]), Ok(1)), "no answer: {head}");
        for _ in 0..64 {
            client.send(&[b'x'; 16 * 1024]);
        }
        let answer = client.read_head(DEADLINE).unwrap_or_else(|error| panic!("{error}: {head}"));
        let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a number"));
        let body = client.read_exact(length, DEADLINE).unwrap_or_else(|error| panic!("{error}: {head}"));
        let rest = client.read_to_end(DEADLINE).unwrap_or_else(|error| panic!("{error}: {head}"));
        assert!(rest.is_empty(), "{rest:?}: {head}");
        (answer, body)
    }

    /// Reads a response head; what follows it stays for the next reads.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_head(&mut self, deadline: Duration) -> Result<HttpHead, ReadError> {
        let give_up = Instant::now() + deadline;
        loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                let head: Vec<u8> = self.received.drain(..end + 4).collect();
                return HttpHead::parse(&String::from_utf8_lossy(&head));
            }
            if self.received.len() > HEAD_BYTES_MAX {
                return Err(ReadError::NotHttp("a head without an end".to_owned()));
            }
            self.fill(give_up)?;
        }
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_exact(&mut self, count: usize, deadline: Duration) -> Result<Vec<u8>, ReadError> {
        let give_up = Instant::now() + deadline;
        while self.received.len() < count {
            self.fill(give_up)?;
        }
        Ok(self.received.drain(..count).collect())
    }

    /// Reads one server frame: first byte (FIN, RSV, opcode) and payload.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_frame(&mut self, deadline: Duration) -> Result<(u8, Vec<u8>), ReadError> {
        let give_up = Instant::now() + deadline;
        loop {
            if let Some((header_len, payload_len)) = frame_lengths(&self.received) {
                let total = header_len + payload_len;
                if self.received.len() >= total {
                    let bytes: Vec<u8> = self.received.drain(..total).collect();
                    let (header, payload) = bytes.split_at(header_len);
                    return Ok((header.first().copied().unwrap_or_default(), payload.to_vec()));
                }
            }
            self.fill(give_up)?;
        }
    }

    /// Reads frames up to a close frame and gives its code (1005 when it carries none, RFC 6455 section 7.1.5).
    ///
    /// # Errors
    /// See [`ReadError`]; a connection that ends without a close frame is `Closed`.
    pub fn read_close_code(&mut self, deadline: Duration) -> Result<u16, ReadError> {
        loop {
            let (first, payload) = self.read_frame(deadline)?;
            if first & 0x0F == 0x8 {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                return Ok(code);
            }
        }
    }

    /// Reads up to the end of the stream. A reset counts as an end.
    ///
    /// # Errors
    /// `Deadline` when the peer keeps the connection open, and kernel errors.
    pub fn read_to_end(&mut self, deadline: Duration) -> Result<Vec<u8>, ReadError> {
        let give_up = Instant::now() + deadline;
        loop {
            match self.fill(give_up) {
                Ok(()) => {}
                Err(ReadError::Closed) => return Ok(std::mem::take(&mut self.received)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what has come and more, at least one byte.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_some(&mut self, deadline: Duration) -> Result<Vec<u8>, ReadError> {
        if self.received.is_empty() {
            self.fill(Instant::now() + deadline)?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    fn fill(&mut self, give_up: Instant) -> Result<(), ReadError> {
        let left = give_up.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        let left = left.ok_or(ReadError::Deadline)?;
        self.stream.set_read_timeout(Some(left)).map_err(ReadError::Io)?;
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ReadError::Closed),
            Ok(count) => {
                self.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(ReadError::Deadline),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Err(ReadError::Closed),
                ErrorKind::Interrupted => Ok(()),
                _ => Err(ReadError::Io(error)),
            },
        }
    }
}

impl HttpHead {
    fn parse(head: &str) -> Result<Self, ReadError> {
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status =
            status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| ReadError::NotHttp(status_line.to_owned()))?;
        let fields = lines.filter_map(|line| line.split_once(':'));
        let headers =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Ok(Self { status, headers })
    }

    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A valid upgrade request (RFC 6455 section 4.1, with the sample key of section 1.3).
pub(crate) fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A client frame with the given first byte and a zero mask: masked as RFC 6455 section 5.3 demands, and readable.
pub fn masked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len(), 0x80);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The same without a mask, which a client must not send.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len(), 0);
    bytes.extend_from_slice(payload);
    bytes
}

/// RFC 6455 section 5.2: 7-bit length, or 126 and 16 bits, or 127 and 64 bits.
fn header(first: u8, payload_len: usize, mask_bit: u8) -> Vec<u8> {
    let mut bytes = vec![first];
    match u16::try_from(payload_len) {
        Ok(short) if short < 126 => bytes.push(mask_bit | short as u8),
        Ok(medium) => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&medium.to_be_bytes());
        }
        Err(_) => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
    bytes
}

/// Header and payload length of the server frame that `bytes` begins with, once its header is complete.
fn frame_lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? & 0x7F {
        126 => Some((4, u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?).into())),
        127 => Some((10, usize::try_from(u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?)).ok()?)),
        short => Some((2, short.into())),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_lengths_of_all_three_forms() {
        for (len, header_len) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let bytes = frame(0x82, &vec![7; len]);
            assert_eq!(frame_lengths(&bytes), Some((header_len, len)));
            assert_eq!(bytes.len(), header_len + len);
            assert_eq!(masked_frame(0x82, &vec![7; len]).len(), header_len + 4 + len);
        }
        assert_eq!(frame_lengths(&[0x82, 126, 1]), None);
    }

    #[test]
    fn a_head_is_taken_apart() {
        let head = HttpHead::parse("HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\n").expect("a head");
        assert_eq!((head.status, head.header("retry-after")), (503, Some("2")));
        assert!(HttpHead::parse("SSH-2.0-x\r\n\r\n").is_err());
    }
}
