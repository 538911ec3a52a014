//! Subscribing and unsubscribing all day, and long names.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tidegate_testkit::{RawTcp, masked_frame};

use super::frames::upgraded;

/// The length of a long name.
const NAME_BYTES: usize = 200;

/// Subscriptions that a client has before it leaves the first: a subscription that is left at once may never begin.
const HELD: usize = 20;

/// One client of Pusher Channels that subscribes to channels of its own and leaves them again, so many a second. `prefix`
/// begins the names. Returns how many channels it asked for.
#[track_caller]
pub fn churn(address: SocketAddr, prefix: &str, per_second: f64, lasting: Duration) -> usize {
    let mut asked = 0;
    say_until(address, lasting, |elapsed, out| {
        while (asked as f64) < elapsed * per_second && out.len() < 64 * 1024 {
            say_channel("subscribe", &format!("{prefix}{asked}"), out);
            if asked >= HELD {
                say_channel("unsubscribe", &format!("{prefix}{}", asked - HELD), out);
            }
            asked += 1;
        }
    });
    asked
}

/// One client that joins channels which others are in, and leaves them again, at a rate in bits.
#[track_caller]
pub fn churn_counted(
    address: SocketAddr,
    channels: &[String],
    bits_per_second: f64,
    lasting: Duration,
) -> usize {
    let (mut sent, mut commands) = (0, ["subscribe", "unsubscribe"].into_iter().cycle());
    say_until(address, lasting, |elapsed, out| {
        if ((sent * 8) as f64) < elapsed * bits_per_second && out.len() < 64 * 1024 {
            let (before, command) = (out.len(), commands.next().unwrap_or_default());
            channels.iter().for_each(|channel| say_channel(command, channel, out));
            sent += out.len() - before;
        }
    });
    sent
}

/// Anonymous clients of Pusher Channels that each ask for so many channels with names as long as they may be, and stay.
#[track_caller]
pub fn hold_names(address: SocketAddr, clients: usize, names: usize) -> Vec<TcpStream> {
    let join = |number: usize| {
        let mut socket = upgraded(address, "/app/dev-key?protocol=7");
        let mut out = Vec::new();
        for at in 0..names {
            say_channel("subscribe", &format!("{:x<NAME_BYTES$}", format!("{number}-{at}-")), &mut out);
        }
        socket.write_all(&out).expect("the gateway reads 30 KB");
        // The answer to a ping comes behind the others.
        socket.write_all(&masked_frame(0x89, b"asked")).expect("the gateway reads a ping");
        let (mut tail, mut bytes) = (Vec::new(), vec![0; 64 * 1024]);
        while !tail.ends_with(b"asked") {
            match socket.read(&mut bytes) {
                Ok(read) if read > 0 => tail.extend_from_slice(&bytes[..read]),
                other => panic!("a client that asks for channels is answered: {other:?}"),
            }
        }
        socket
    };
    (0..clients).map(join).collect()
}

/// Anonymous connections of so many channels each, with names as long as they may be. Those that were let in.
#[track_caller]
pub fn join_names(address: SocketAddr, connections: usize, names: usize) -> Vec<RawTcp> {
    let connect = |number: usize| {
        let names =
            (0..names).map(|at| format!("channel={:x<NAME_BYTES$}", format!("{number}-{at}-of-{names}-")));
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

/// `command`: `subscribe` or `unsubscribe`.
pub(super) fn say_channel(command: &str, channel: &str, out: &mut Vec<u8>) {
    let text = format!(r#"{{"event":"pusher:{command}","data":{{"channel":"{channel}"}}}}"#);
    out.extend_from_slice(&masked_frame(0x81, text.as_bytes()));
}
