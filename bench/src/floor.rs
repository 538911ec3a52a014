//! The floor: the least a server does for a broadcast. One epoll loop, one `send` per subscriber and
//! publication, no validation, no heartbeats, no limits. What it costs is what the kernel costs.
//!
//! It has the surface that every server of the comparison has: `GET /ws?channel=C`, `GET /echo`,
//! `POST /v1/channels/C/publish` on keep-alive connections.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use base64::Engine;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use sha1::{Digest, Sha1};

use crate::http::find;

const LISTENER: Token = Token(usize::MAX);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

/// RFC 6455 §1.3: appended to the key before hashing.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Serves until the process ends.
pub fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1_024);
    let mut floor = Floor { connections: Vec::new(), free: Vec::new(), channels: HashMap::new() };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                floor.accept(&listener, &poll)?;
            } else {
                floor.ready(event.token().0, &mut buffer);
            }
        }
    }
}

/// Serves from a thread of this process; for tests.
pub fn spawn() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("floor".to_owned()).spawn(move || serve(listener))?;
    Ok(address)
}

struct Floor {
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    channels: HashMap<String, Vec<usize>>,
}

struct Connection {
    stream: TcpStream,
    role: Role,
    /// A request or frame cut by a read.
    partial: Vec<u8>,
    /// What the socket did not take.
    backlog: Vec<u8>,
}

enum Role {
    Http,
    Subscriber(String),
    Echo,
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) -> io::Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let key = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            poll.registry().register(&mut stream, Token(key), Interest::READABLE | Interest::WRITABLE)?;
            self.connections[key] =
                Some(Connection { stream, role: Role::Http, partial: Vec::new(), backlog: Vec::new() });
        }
    }

    fn ready(&mut self, key: usize, buffer: &mut [u8]) {
        if let Some(connection) = &mut self.connections[key] {
            connection.flush();
        }
        while let Some(connection) = &mut self.connections[key] {
            match connection.stream.read(buffer) {
                Ok(0) => self.remove(key),
                Ok(read) => self.take(key, &buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.remove(key),
            }
        }
    }

    fn remove(&mut self, key: usize) {
        if let Some(Connection { role: Role::Subscriber(channel), .. }) = self.connections[key].take()
            && let Some(subscribers) = self.channels.get_mut(&channel)
        {
            subscribers.retain(|&subscriber| subscriber != key);
        }
        self.free.push(key);
    }

    fn take(&mut self, key: usize, bytes: &[u8]) {
        let Some(connection) = &mut self.connections[key] else {
            return;
        };
        let mut input = std::mem::take(&mut connection.partial);
        input.extend_from_slice(bytes);
        let mut rest = input.as_slice();
        while let Some(connection) = &mut self.connections[key] {
            let used = match connection.role {
                Role::Http => self.request(key, rest),
                Role::Subscriber(_) | Role::Echo => connection.frame(rest),
            };
            match used {
                Some(used) if used > 0 => rest = &rest[used..],
                _ => break,
            }
        }
        if let Some(connection) = &mut self.connections[key] {
            // A `Vec` of nothing owns nothing: an idle connection keeps no buffer.
            connection.partial = rest.to_vec();
        }
    }

    /// Serves one request if it is all there; returns its length.
    fn request(&mut self, key: usize, bytes: &[u8]) -> Option<usize> {
        let end = find(bytes, b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..end]).unwrap_or("");
        let length = header(head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let body = bytes.get(end..end + length)?;
        let target = head.split(' ').nth(1).unwrap_or("");
        let channel = target.strip_prefix("/v1/channels/").and_then(|rest| rest.strip_suffix("/publish"));
        if let Some(channel) = channel {
            self.broadcast(channel, body);
            self.send(key, ANSWER);
        } else if let Some(accept) = header(head, "sec-websocket-key").map(accept) {
            let role = match target.strip_prefix("/ws?channel=") {
                Some(channel) => {
                    self.channels.entry(channel.to_owned()).or_default().push(key);
                    Role::Subscriber(channel.to_owned())
                }
                None => Role::Echo,
            };
            if let Some(connection) = &mut self.connections[key] {
                connection.role = role;
            }
            self.send(key, accept.as_bytes());
        } else {
            self.send(key, NOT_FOUND);
        }
        Some(end + length)
    }

    fn broadcast(&mut self, channel: &str, payload: &[u8]) {
        let frame = server_frame(0x1, payload);
        let Some(subscribers) = self.channels.get(channel) else {
            return;
        };
        for &key in subscribers {
            if let Some(connection) = &mut self.connections[key] {
                connection.send(&frame);
            }
        }
    }

    fn send(&mut self, key: usize, bytes: &[u8]) {
        if let Some(connection) = &mut self.connections[key] {
            connection.send(bytes);
        }
    }
}

impl Connection {
    /// A socket error is left to the next read, which meets it too.
    fn send(&mut self, bytes: &[u8]) {
        if !self.backlog.is_empty() {
            self.backlog.extend_from_slice(bytes);
            return;
        }
        let written = self.stream.write(bytes).unwrap_or(0);
        self.backlog.extend_from_slice(&bytes[written..]);
    }

    fn flush(&mut self) {
        if !self.backlog.is_empty() {
            let written = self.stream.write(&self.backlog).unwrap_or(0);
            self.backlog.drain(..written);
        }
    }

    /// Serves one client frame of up to 64 KiB if it is all there; returns its length.
    fn frame(&mut self, bytes: &[u8]) -> Option<usize> {
        let (body, length) = match bytes.get(1)? & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
            short => (2, usize::from(short)),
        };
        let frame = bytes.get(..body + 4 + length)?;
        let (mask, payload) = frame[body..].split_at(4);
        let unmasked: Vec<u8> =
            payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        match (frame[0] & 0x0f, &self.role) {
            (0x9, _) => self.send(&server_frame(0xa, &unmasked)),
            (opcode @ (0x1 | 0x2), Role::Echo) => self.send(&server_frame(opcode, &unmasked)),
            _ => {}
        }
        Some(frame.len())
    }
}

fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => frame.push(length as u8),
        Ok(length) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn accept(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize();
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    )
}
