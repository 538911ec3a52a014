//! Subscribers that speak Socket.IO, against a server that speaks as much of it as they need.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_bench::client::{Fleet, FleetConfig, Role};
use tidegate_bench::driver::Driver;
use tidegate_bench::frame::write_client_frame;
use tidegate_bench::stamp::Stamp;
use tidegate_bench::target::Target;

const RUN: u16 = 3;
const TURN: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(30);

/// An unmasked text frame of less than 126 bytes.
fn frame(text: &str) -> Vec<u8> {
    [&[0x81, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

fn client_frame(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_client_frame(&mut out, 0x1, text);
    out
}

fn expect(stream: &mut TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(read, expected);
}

/// One connection: open, connect, a ping, one event; ends when the client has gone.
fn serve(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let path = b"GET /socket.io/?EIO=4&transport=websocket&channel=c HTTP/1.1\r\n";
    assert!(request.starts_with(path), "{}", String::from_utf8_lossy(&request));
    // The answer to the example key of RFC 6455 §1.3, which these clients use.
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(answer.as_bytes()).unwrap();
    stream.write_all(&frame(r#"0{"sid":"a","pingInterval":25000}"#)).unwrap();
    expect(&mut stream, &client_frame(b"40"));
    let mut payload = [b'.'; 60];
    Stamp { run: RUN, stream: 0, sequence: 1, sent_ns: 0 }.write(&mut payload);
    let event = format!(r#"42["message","{}"]"#, std::str::from_utf8(&payload).unwrap());
    stream.write_all(&[frame(r#"40{"sid":"b"}"#), frame("2"), frame(&event)].concat()).unwrap();
    expect(&mut stream, &client_frame(b"3"));
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

fn fleet(server: SocketAddr) -> Fleet {
    let config = FleetConfig {
        target: Target::of(server),
        role: Role::SubscribeSocketIo,
        connections: 1,
        channels: ["c".to_owned()].into(),
        channel_of: Arc::new(|_| 0),
        handshakes_in_flight: 1,
        connects_per_second: None,
        sources: 0,
        run: RUN,
        reset_on_close: false,
        token: None,
        comes_back: false,
    };
    Fleet::new(0, config)
}

fn drive(fleet: &mut Fleet, driver: &mut Driver, until: impl Fn(&Fleet) -> bool) {
    let began = Instant::now();
    while !until(fleet) {
        driver.turn(&mut [&mut *fleet], TURN).unwrap();
        assert!(began.elapsed() < DEADLINE, "{:?}", fleet.stats());
    }
}

#[test]
fn a_subscriber_joins_answers_pings_and_counts_events() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    let (mut fleet, mut driver) = (fleet(server), Driver::new().unwrap());
    drive(&mut fleet, &mut driver, |fleet| fleet.stats().messages == 1 && fleet.stats().pings_answered == 1);
    assert_eq!((fleet.open(), fleet.stats().foreign, fleet.stats().order.lost), (1, 0, 0));
    drop(fleet);
    served.join().unwrap();
}

#[test]
fn a_server_that_leaves_before_the_join_is_a_failure() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let server = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let read = stream.read(&mut [0; 4_096]).unwrap();
        assert!(read > 0);
        let answer = "HTTP/1.1 101 X\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let (mut fleet, mut driver) = (fleet(server), Driver::new().unwrap());
    drive(&mut fleet, &mut driver, Fleet::settled);
    assert_eq!((fleet.open(), fleet.stats().failed(), fleet.stats().ended()), (0, 1, 0));
    served.join().unwrap();
}
