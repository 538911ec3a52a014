//! Floods of frames: compressed ones, pings, text that is no message.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use tidegate_testkit::masked_frame;

/// A burst that one read of the kernel holds.
const BURST_BYTES: usize = 64 * 1024;

/// What a frame of the compressed floods inflates to: the most that `limits.message_bytes` admits by default.
const INFLATED_BYTES: usize = 64 * 1024;

/// An attacker whose connection is not read any more gives up after this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that each send one burst of compressed frames which may not be published. Returns how many were cut.
#[track_caller]
pub fn compressed_burst(address: SocketAddr, connections: usize) -> usize {
    let path = "/ws?channel=attack&envelope=json";
    flood(address, path, connections, &burst(&compressed_frame()))
}

/// One connection that sends compressed frames which may not be published, at a rate in bits. It reads what it is
/// answered. Returns the bytes that the gateway took.
#[track_caller]
pub fn compressed_stream(address: SocketAddr, bits_per_second: f64, lasting: Duration) -> usize {
    let mut socket = upgraded(address, "/ws?channel=attack&envelope=json");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");
    let chunk = compressed_frame().repeat(50);
    let started = Instant::now();
    let (mut sent, mut rest) = (0, &chunk[..]);
    let mut answers = vec![0; BURST_BYTES];
    while started.elapsed() < lasting {
        while matches!(socket.read(&mut answers), Ok(read) if read > 0) {}
        if (sent as f64) * 8.0 < started.elapsed().as_secs_f64() * bits_per_second {
            match socket.write(rest) {
                Ok(written) => {
                    sent += written;
                    rest = if written == rest.len() { &chunk } else { &rest[written..] };
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // It was cut, which is a fair answer to this.
                Err(_) => break,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Connections that each send a burst of empty pings.
#[track_caller]
pub fn pings(address: SocketAddr, connections: usize) -> usize {
    flood(address, "/ws?channel=attack", connections, &burst(&masked_frame(0x89, b"")))
}

/// Clients of Pusher Channels that each send a burst of messages which are no JSON.
#[track_caller]
pub fn braces(address: SocketAddr, connections: usize) -> usize {
    flood(address, "/app/dev-key?protocol=7", connections, &burst(&masked_frame(0x81, b"{")))
}

/// Connects all, then sends from each. How many did not take all of it.
fn flood(address: SocketAddr, path: &str, connections: usize, bytes: &[u8]) -> usize {
    let mut sockets: Vec<TcpStream> = (0..connections).map(|_| upgraded(address, path)).collect();
    let cut = sockets.iter_mut().filter_map(|socket| socket.write_all(bytes).err()).count();
    // They stay until the gateway has got to the last of them, let them go, or has had long enough.
    let give_up = Instant::now() + WRITE_TIMEOUT;
    for socket in sockets.iter_mut().take_while(|_| Instant::now() < give_up) {
        linger(socket, give_up);
    }
    cut
}

/// Waits for the answer to a last ping, or for the end of the connection.
fn linger(socket: &mut TcpStream, give_up: Instant) {
    let asked = socket.write_all(&masked_frame(0x89, b"last"));
    let mut answers = vec![0; BURST_BYTES];
    let mut tail = Vec::new();
    while asked.is_ok() && Instant::now() < give_up && !tail.ends_with(b"last") {
        let left = give_up.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).expect("a positive time-out");
        match socket.read(&mut answers) {
            Ok(read) if read > 0 => {
                tail.extend_from_slice(&answers[..read]);
                tail.drain(..tail.len().saturating_sub(8));
            }
            _ => return,
        }
    }
}

pub(super) fn upgraded(address: SocketAddr, path: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("the gateway accepts");
    socket.set_nodelay(true).expect("a socket has this option");
    socket.set_write_timeout(Some(WRITE_TIMEOUT)).expect("a positive time-out");
    socket.set_read_timeout(Some(WRITE_TIMEOUT)).expect("a positive time-out");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("the gateway reads a request");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("the gateway answers a request");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{path}: {}", String::from_utf8_lossy(&head));
    socket
}

/// A text frame of zeros with RSV1 set, as small as it gets.
fn compressed_frame() -> Vec<u8> {
    let mut deflated = Vec::with_capacity(1024);
    let text = vec![b'0'; INFLATED_BYTES];
    Compress::new(Compression::best(), false)
        .compress_vec(&text, &mut deflated, FlushCompress::Sync)
        .expect("zeros can be deflated");
    // The tail of a sync flush is left out (RFC 7692 section 7.2.1).
    deflated.truncate(deflated.len() - 4);
    masked_frame(0x80 | 0x40 | 0x1, &deflated)
}

fn burst(frame: &[u8]) -> Vec<u8> {
    frame.repeat(BURST_BYTES / frame.len())
}
