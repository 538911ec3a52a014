//! Subscribing and unsubscribing all day, and long names.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tidegate_testkit::{RawTcp, masked_frame};

use super::frames::upgraded;

/// Channels that one connection of the long names asks for, and the length of a name.
const NAMES: usize = 100;
const NAME_BYTES: usize = 200;

/// One client of Pusher Channels that subscribes to a channel of its own and leaves it again, so often a second.
/// `prefix` begins the names. Returns how many channels it asked for.
#[track_caller]
pub fn churn(address: SocketAddr, prefix: &str, per_second: f64, lasting: Duration) -> usize {
    let mut asked = 0;
    say_until(address, lasting, |elapsed, out| {
        while (asked as f64) < elapsed * per_second && out.len() < 64 * 1024 {
            let name = format!("{prefix}{asked}");
            say(&format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{name}"}}}}"#), out);
            say(&format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{name}"}}}}"#), out);
            asked += 1;
        }
    });
    asked
}

/// The same in one channel that others are in, at a rate in bits.
#[track_caller]
pub fn churn_counted(address: SocketAddr, channel: &str, bits_per_second: f64, lasting: Duration) -> usize {
    let mut pair = Vec::new();
    say(&format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#), &mut pair);
    say(&format!(r#"{{"event":"pusher:unsubscribe","data":{{"channel":"{channel}"}}}}"#), &mut pair);
    let mut sent = 0;
    say_until(address, lasting, |elapsed, out| {
        while (sent * 8) as f64 <= elapsed * bits_per_second && out.len() < 64 * 1024 {
            out.extend_from_slice(&pair);
            sent += pair.len();
        }
    });
    sent
}

/// Anonymous connections of as many channels with names as long as they may be. Those that were let in.
#[track_caller]
pub fn join_names(address: SocketAddr, connections: usize) -> Vec<RawTcp> {
    let connect = |number: usize| {
        let names = (0..NAMES).map(|at| format!("channel={:x<NAME_BYTES$}", format!("{number}-{at}-")));
        let path = format!("/ws?envelope=json&{}", names.collect::<Vec<_>>().join("&"));
        let mut connection = RawTcp::upgrade(address, &path);
        let head = connection.read_head(tidegate_testkit::DEADLINE);
        head.is_ok_and(|head| head.status == 101).then_some(connection)
    };
    (0..connections).filter_map(connect).collect()
}

/// A client that says what `next` gives it to say, reads what it is answered, and stops when it is cut.
fn say_until(address: SocketAddr, lasting: Duration, mut next: impl FnMut(f64, &mut Vec<u8>)) {
    let mut socket: TcpStream = upgraded(address, "/app/dev-key?protocol=7");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");
    let started = Instant::now();
    let (mut out, mut answers) = (Vec::new(), vec![0; 64 * 1024]);
    while started.elapsed() < lasting {
        while matches!(socket.read(&mut answers), Ok(read) if read > 0) {}
        next(started.elapsed().as_secs_f64(), &mut out);
        match socket.write(&out) {
            Ok(written) => drop(out.drain(..written)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn say(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&masked_frame(0x81, text.as_bytes()));
}
