//! One process full of clients: raw WebSockets of one channel, which answer pings and count what they get.
//!
//! It says on standard output, in a line each: `open N`, when all of its clients are; `all K MICROS`, when all of them have
//! publication K, and when the last one got it (since the Unix epoch); and when its standard input ends, its account.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use tidegate_testkit::{
    masked_frame,
    net::{SocketOptions, connect, source_address},
};

#[derive(Debug, Clone, Copy)]
pub struct CrowdOptions {
    pub target: SocketAddr,
    pub clients: usize,
    /// Which of the crowds it is: each has addresses of its own.
    pub number: usize,
}

/// Clients whose handshake is under way at once: as many as a listening socket lets wait is 4,096, and all crowds share it.
const WINDOW: usize = 64;

/// Addresses that a crowd connects from in turn. Of the local ports of one Linux tries half before the others: past 14,116
/// each further connection begins with a search through all of them, 4 ms in place of 12 µs.
pub(super) const SOURCES: usize = 2;

/// Payloads are `publication K`, with K from 0 to 7.
pub(super) const PAYLOAD: &str = "publication ";
const PUBLICATIONS: usize = 8;

const INPUT: u64 = u64::MAX;

struct Client {
    socket: Option<TcpStream>,
    is_open: bool,
    /// The publications that it has, one bit for each.
    seen: u8,
    /// Bytes of an answer or a frame that has not come whole.
    rest: Vec<u8>,
}

struct Crowd {
    options: CrowdOptions,
    poll: OwnedFd,
    clients: Vec<Client>,
    open: usize,
    /// How many have each publication.
    reached: [usize; PUBLICATIONS],
    doubled: u64,
    closed: u64,
    refused: u64,
}

/// Runs until its standard input ends.
pub fn run(options: CrowdOptions) -> Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, io::stdin(), epoll::EventData::new_u64(INPUT), epoll::EventFlags::IN)?;
    let (clients, reached) = (Vec::with_capacity(options.clients), [0; PUBLICATIONS]);
    let mut crowd = Crowd { options, poll, clients, open: 0, reached, doubled: 0, closed: 0, refused: 0 };
    let mut buffer = vec![0; 64 * 1024];
    while crowd.clients.len() < options.clients {
        crowd.connect()?;
        while crowd.clients.len() - crowd.open - crowd.lost() >= WINDOW {
            ensure!(crowd.serve(&mut buffer)?, "the input has ended before all clients were open");
        }
    }
    while crowd.open + crowd.lost() < options.clients {
        ensure!(crowd.serve(&mut buffer)?, "the input has ended before all clients were open");
    }
    say(&format!("open {}", crowd.open));
    while crowd.serve(&mut buffer)? {}
    let Crowd { open, reached, doubled, closed, refused, .. } = crowd;
    let reached = reached.map(|count| count.to_string()).join(",");
    say(&format!("end open={open} reached={reached} doubled={doubled} closed={closed} refused={refused}"));
    Ok(())
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Who started it may be gone; then the input ends next.
    drop(out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()));
}

impl Crowd {
    fn lost(&self) -> usize {
        (self.refused + self.closed) as usize
    }

    fn connect(&mut self) -> Result<()> {
        let at = self.clients.len();
        let source = Some(source_address(self.options.number * SOURCES + at % SOURCES));
        let options = SocketOptions { source, reset_on_close: true, ..SocketOptions::default() };
        let mut socket = connect(self.options.target, options).context("a client cannot connect")?;
        let request = format!(
            "GET /ws?channel=million&key={}-{at} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.options.number
        );
        socket.write_all(request.as_bytes())?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.poll, &socket, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
        self.clients.push(Client { socket: Some(socket), is_open: false, seen: 0, rest: Vec::new() });
        Ok(())
    }

    /// Reads whoever has something. `false`: the input has ended.
    fn serve(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut events = Vec::with_capacity(512);
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match epoll::wait(&self.poll, spare_capacity(&mut events), Some(&second)) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            other => other?,
        };
        for event in events {
            let at = event.data.u64();
            if at == INPUT {
                if io::stdin().read(buffer)? == 0 {
                    return Ok(false);
                }
                continue;
            }
            self.read(at as usize, buffer)?;
        }
        Ok(true)
    }

    fn read(&mut self, at: usize, buffer: &mut [u8]) -> Result<()> {
        let Some(client) = self.clients.get_mut(at) else { return Ok(()) };
        let Some(socket) = client.socket.as_mut() else { return Ok(()) };
        let read = match socket.read(buffer) {
            Ok(read) if read > 0 => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Ok(_) | Err(_) => {
                self.end(at);
                return Ok(());
            }
        };
        let mut bytes = std::mem::take(&mut client.rest);
        bytes.extend_from_slice(&buffer[..read]);
        self.take(at, &bytes)
    }

    fn end(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at) else { return };
        client.socket = None;
        match client.is_open {
            true => {
                self.closed += 1;
                self.open -= 1;
            }
            false => self.refused += 1,
        }
    }

    fn take(&mut self, at: usize, mut bytes: &[u8]) -> Result<()> {
        let Some(client) = self.clients.get_mut(at) else { return Ok(()) };
        if !client.is_open {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
                client.rest = bytes.to_vec();
                return Ok(());
            };
            if !bytes.starts_with(b"HTTP/1.1 101 ") {
                self.end(at);
                return Ok(());
            }
            client.is_open = true;
            self.open += 1;
            bytes = &bytes[end + 4..];
        }
        while let [first, length, rest @ ..] = bytes {
            let length = usize::from(*length);
            ensure!(length <= 125, "a frame is longer than any that was published");
            let Some((payload, behind)) = rest.split_at_checked(length) else { break };
            match first & 0x0F {
                1 => self.publication(at, payload)?,
                8 => {
                    self.end(at);
                    return Ok(());
                }
                9 => self.pong(at, payload),
                other => bail!("a frame of the kind {other} came"),
            }
            bytes = behind;
        }
        if let Some(client) = self.clients.get_mut(at) {
            client.rest = bytes.to_vec();
        }
        Ok(())
    }

    fn publication(&mut self, at: usize, payload: &[u8]) -> Result<()> {
        let number = payload.strip_prefix(PAYLOAD.as_bytes()).and_then(<[u8]>::first);
        let number =
            number.map(|digit| usize::from(digit.wrapping_sub(b'0'))).filter(|at| *at < PUBLICATIONS);
        let number = number.context("a publication came that nobody has sent")?;
        let Some(client) = self.clients.get_mut(at) else { return Ok(()) };
        if client.seen & (1 << number) != 0 {
            self.doubled += 1;
            return Ok(());
        }
        client.seen |= 1 << number;
        self.reached[number] += 1;
        if self.reached[number] == self.open {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            say(&format!("all {number} {}", now.as_micros()));
        }
        Ok(())
    }

    fn pong(&mut self, at: usize, payload: &[u8]) {
        let socket = self.clients.get_mut(at).and_then(|client| client.socket.as_mut());
        if let Some(Err(_)) = socket.map(|socket| socket.write_all(&masked_frame(0x8A, payload))) {
            self.end(at);
        }
    }
}
