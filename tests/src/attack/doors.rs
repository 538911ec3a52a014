//! Requests that are refused: whether they cost others their place at the door.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidegate_testkit::net::{SocketOptions, connect, source_address};

/// Threads that send them: enough to keep one core of a gateway busy.
const THREADS: usize = 4;

/// `GET /ws` without an upgrade from one address, a connection each, as fast as asked for. Returns how many were sent.
#[track_caller]
pub fn bare_requests(address: SocketAddr, per_second: usize, lasting: Duration) -> usize {
    let sent = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let attackers: Vec<_> = (0..THREADS)
        .map(|_| {
            let sent = Arc::clone(&sent);
            thread::spawn(move || {
                while started.elapsed() < lasting {
                    let due = started.elapsed().as_secs_f64() * per_second as f64;
                    if sent.load(Ordering::Relaxed) as f64 >= due {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                    bare_request(address);
                }
            })
        })
        .collect();
    for attacker in attackers {
        attacker.join().expect("an attacker's thread ends");
    }
    sent.load(Ordering::Relaxed)
}

fn bare_request(address: SocketAddr) {
    let options = SocketOptions { reset_on_close: true, ..SocketOptions::default() };
    // What the gateway does not take is what the attack is about.
    let Ok(mut socket) = connect(address, options) else { return };
    if socket.write_all(b"GET /ws HTTP/1.1\r\nHost:a\r\n\r\n").is_ok() {
        let _answer = socket.read(&mut [0; 512]);
    }
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
