//! Requests that are refused: whether they cost others their place at the door.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_testkit::net::{SocketOptions, connect, source_address};

/// Threads that send them: enough to keep one core of a gateway busy.
const THREADS: usize = 4;

/// Connections that one thread has at a time: their answers are awaited together, so that the rate does not depend on
/// how long one takes.
const VOLLEY: usize = 64;

/// 28 bytes, so that 13,200 a second are 3 Mbit/s.
const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost:a\r\n\r\n";

/// How long an attacker waits for an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// What became of a flood of requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub requests: usize,
    pub answers: usize,
}

/// `GET /ws` without an upgrade from one address, a connection each since that is what a refusal leaves, at a rate or as
/// fast as this machine can.
#[track_caller]
pub fn bare_requests(address: SocketAddr, per_second: usize, lasting: Duration) -> Sent {
    let requests = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let attackers: Vec<_> = (0..THREADS)
        .map(|_| {
            let requests = Arc::clone(&requests);
            thread::spawn(move || {
                let mut answers = 0;
                while started.elapsed() < lasting {
                    let due = started.elapsed().as_secs_f64() * per_second as f64;
                    if requests.load(Ordering::Relaxed) as f64 >= due {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    requests.fetch_add(VOLLEY, Ordering::Relaxed);
                    answers += volley(address);
                }
                answers
            })
        })
        .collect();
    let answers = attackers.into_iter().map(|attacker| attacker.join().expect("an attacker's thread ends"));
    Sent { answers: answers.sum(), requests: requests.load(Ordering::Relaxed) }
}

/// Sends requests over as many connections and counts the answers. What the gateway does not take or answer is what the
/// attack is about.
fn volley(address: SocketAddr) -> usize {
    let ask = |_| {
        let options = SocketOptions { reset_on_close: true, ..SocketOptions::default() };
        let mut socket = connect(address, options).ok()?;
        socket.set_read_timeout(Some(ANSWERED_WITHIN)).ok()?;
        socket.write_all(REQUEST).ok()?;
        Some(socket)
    };
    let asked: Vec<TcpStream> = (0..VOLLEY).filter_map(ask).collect();
    let is_answered = |mut socket: TcpStream| matches!(socket.read(&mut [0; 512]), Ok(read) if read > 0);
    asked.into_iter().filter_map(|socket| is_answered(socket).then_some(())).count()
}

/// Clients of other addresses that shake hands all the time, until stopped: how many were refused, of how many.
#[track_caller]
pub fn knock(address: SocketAddr, stop: &AtomicBool) -> (usize, usize) {
    let (mut refused, mut knocked) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let options = SocketOptions {
            source: Some(source_address(knocked)),
            reset_on_close: true,
            ..SocketOptions::default()
        };
        let mut head = [0; 12];
        let answered = connect(address, options).and_then(|mut socket| {
            socket.write_all(
                b"GET /ws?channel=knock HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  Sec-WebSocket-Version: 13\r\n\r\n",
            )?;
            socket.read_exact(&mut head)
        });
        knocked += 1;
        if answered.is_err() || &head != b"HTTP/1.1 101" {
            refused += 1;
        }
        thread::sleep(Duration::from_millis(20));
    }
    (refused, knocked)
}
