//! Clients that ask for much history and read none of it, and very many that ask for the same.

use std::net::SocketAddr;
use std::thread;

use tidegate_testkit::net::SocketOptions;
use tidegate_testkit::{DEADLINE, RawTcp};

use super::Scene;

/// Fills channels `{prefix}0` and on; the position of the first publication of each.
#[track_caller]
pub(super) fn fill(
    scene: &Scene,
    prefix: &str,
    channels: usize,
    publications: usize,
    bytes: usize,
) -> Vec<String> {
    let rest = scene.rest();
    let payload = "x".repeat(bytes);
    let positions = (0..channels).map(|at| {
        let channel = format!("{prefix}{at}");
        let first = rest.publish(&channel, &payload).expect("the namespace has history");
        for _ in 1..publications {
            rest.publish(&channel, &payload);
        }
        format!("{}:{}", first.epoch, first.offset)
    });
    positions.collect()
}

/// Event streams that recover all of these channels and read nothing.
#[track_caller]
pub(super) fn recover_unread(
    address: SocketAddr,
    prefix: &str,
    positions: &[String],
    streams: usize,
) -> Vec<RawTcp> {
    let channels: Vec<String> = (0..positions.len()).map(|at| format!("channel={prefix}{at}")).collect();
    let request = format!(
        "GET /sse?{} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {}\r\n\r\n",
        channels.join("&"),
        positions.join(","),
    );
    let options = SocketOptions { receive_buffer_bytes: Some(4096), ..SocketOptions::default() };
    let connect = |_| {
        let mut stream = RawTcp::try_connect(address, options).expect("the gateway accepts");
        stream.send(request.as_bytes());
        stream
    };
    (0..streams).map(connect).collect()
}

/// How many of the streams were answered with a 200: the others recovered nothing.
#[track_caller]
pub(super) fn let_in(streams: Vec<RawTcp>) -> usize {
    let head = |mut stream: RawTcp| stream.read_head(DEADLINE);
    streams.into_iter().filter_map(|stream| head(stream).ok()).filter(|head| head.status == 200).count()
}

/// Clients of one thread that have asked before the first of them reads its answer.
const ASKING_TOGETHER: usize = 250;

/// Clients that come back together and recover the same channel from the same position.
#[track_caller]
pub(super) fn return_together(address: SocketAddr, channel: &str, position: &str, clients: usize) {
    let path = format!("/ws?envelope=json&channel={channel}&since={position}");
    let come_back = move |count: usize| {
        let path = path.clone();
        thread::spawn(move || {
            for asked in (0..count).step_by(ASKING_TOGETHER) {
                let together = ASKING_TOGETHER.min(count - asked);
                let clients: Vec<RawTcp> = (0..together).map(|_| RawTcp::upgrade(address, &path)).collect();
                for mut client in clients {
                    let head = client.read_head(DEADLINE).expect("who comes back is answered");
                    assert_eq!(head.status, 101);
                    client.read_frame(DEADLINE).expect("who comes back is sent what it missed");
                }
            }
        })
    };
    let threads: Vec<_> = (0..8).map(|_| come_back(clients / 8)).collect();
    for thread in threads {
        thread.join().expect("clients that come back are served");
    }
}
