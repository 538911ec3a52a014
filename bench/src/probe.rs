//! The bystander: one connection that pings all the time and keeps the longest wait for an answer.
//!
//! It blocks in its own thread at the highest priority the process may take, and the fleet that shares its
//! core is not read meanwhile, so what it sees is the server's pause and not this program's.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::frame::{FrameEvent, FrameScanner, write_client_frame};
use crate::http::{WEBSOCKET_KEY, parse_head};
use crate::stats::latency_histogram;
use crate::sys::now_ns;
use crate::target::Target;

/// Between an answer and the next ping: short against any pause worth measuring, long enough to cost nothing.
const PING_GAP: Duration = Duration::from_micros(200);

/// An answer that takes longer than this ends the probe with an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the bystander has no result.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the bystander's connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the bystander's handshake at {path} was answered with status {status}")]
    Status { path: String, status: u16 },
    #[error("the bystander's stream is no WebSocket stream")]
    Protocol,
    #[error("the bystander's thread panicked")]
    Panicked,
}

/// A running bystander.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Histogram<u64>, ProbeError>>,
}

impl Probe {
    /// Connects, waits for the upgrade, then pings from a thread until stopped.
    pub fn start(target: &Target, path: &str) -> Result<Self, ProbeError> {
        let stream = open(target, path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("bystander".to_owned()).spawn(move || {
            // Best effort: without the right to it the probe still measures, with more noise. On Linux the
            // value belongs to the calling thread alone.
            let _priority = rustix::process::setpriority_process(None, -20);
            ping(stream, &seen)
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops and returns the waits in microseconds.
    pub fn finish(self) -> Result<Histogram<u64>, ProbeError> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| ProbeError::Panicked)?
    }
}

fn open(target: &Target, path: &str) -> Result<TcpStream, ProbeError> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    write!(
        stream,
        "GET {}{path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n",
        target.prefix, target.authority
    )?;
    let mut response = Vec::new();
    let mut buffer = [0; 1_024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        response.extend_from_slice(&buffer[..read]);
        match parse_head(&response).map_err(|_| ProbeError::Protocol)? {
            Some((head, _)) if head.status == 101 => return Ok(stream),
            Some((head, _)) => {
                return Err(ProbeError::Status { path: path.to_owned(), status: head.status });
            }
            None => {}
        }
    }
}

fn ping(mut stream: TcpStream, stop: &AtomicBool) -> Result<Histogram<u64>, ProbeError> {
    let mut waits_us = latency_histogram();
    let mut scanner = FrameScanner::default();
    let mut buffer = [0; 4_096];
    let mut out = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let sent_ns = now_ns();
        out.clear();
        write_client_frame(&mut out, 0x9, &sent_ns.to_be_bytes());
        stream.write_all(&out)?;
        let mut answered = false;
        while !answered {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            scanner
                .feed(&buffer[..read], |event| {
                    answered |=
                        matches!(event, FrameEvent::Pong(payload) if payload == sent_ns.to_be_bytes());
                })
                .map_err(|_| ProbeError::Protocol)?;
        }
        waits_us.saturating_record((now_ns() - sent_ns) / 1_000);
        std::thread::sleep(PING_GAP);
    }
    Ok(waits_us)
}
