//! Connections that keep the server waiting, with real sockets and short patience.
#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::http::tests::Fixture;

/// Far more than any healthy run needs.
const DEADLINE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);
/// Never over in a test.
const LONG: Duration = Duration::from_secs(3600);

const REQUEST: &[u8] = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A client whose first request was read by a shard and handed over.
async fn client(server: &Arc<HttpServer>) -> TcpStream {
    client_with(server, REQUEST).await
}

async fn client_with(server: &Arc<HttpServer>, request: &'static [u8]) -> TcpStream {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let address = place(server, peer);
    let received = Bytes::from_static(request);
    Arc::clone(server).take(HandOff { socket: socket.into_std().unwrap(), received, tls: None, address });
    client
}

fn place(server: &HttpServer, peer: SocketAddr) -> AddressKey {
    server.front.admit(peer.ip()).unwrap()
}

fn server(patience: Patience) -> Arc<HttpServer> {
    let state = Fixture::new(false).state;
    let limits = crate::config::Config::dev().limits;
    Arc::new(HttpServer {
        metrics: Arc::clone(&state.metrics),
        service: PublicService::new(state),
        dealer: Arc::new(Dealer::new(Vec::new(), std::time::Instant::now())),
        is_shards: crate::protocols::is_shards(false),
        patience,
        head_bytes_max: limits.head_bytes.bytes(),
        front: Arc::new(Front::new(limits)),
        runtime: Handle::current(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    })
}

/// What the client is sent up to the end of the connection; the task is gone then, with its place.
async fn read_to_end(server: &HttpServer, mut client: TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(DEADLINE, client.read_to_string(&mut text)).await.expect("an end").unwrap();
    server.tasks.close();
    tokio::time::timeout(DEADLINE, server.tasks.wait()).await.expect("the task ends");
    assert_eq!(server.front.connections(), 0);
    text
}

fn answers(text: &str) -> Vec<&str> {
    text.match_indices("HTTP/1.1 ").filter_map(|(at, _)| text.get(at + 9..at + 12)).collect()
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let server = server(Patience { head: LONG, quiet: SHORT });
    let client = client(&server).await;
    assert_eq!(answers(&read_to_end(&server, client).await), ["200"]);
}

#[tokio::test]
async fn a_later_head_has_as_much_time_as_the_first() {
    let server = server(Patience { head: SHORT, quiet: LONG });
    let mut client = client(&server).await;
    let mut first = [0; 12];
    client.read_exact(&mut first).await.unwrap();
    client.write_all(&REQUEST[..20]).await.unwrap();
    let text = read_to_end(&server, client).await;
    assert_eq!((&first[..], answers(&text)), (&b"HTTP/1.1 200"[..], vec!["408"]));
    assert!(text.contains("urn:tidegate:problem:head-timeout"), "{text}");
    let metrics = server.metrics.openmetrics(crate::metrics::Reader::Scrape);
    assert!(metrics.contains(r#"tidegate_handshakes_total{result="timeout"} 1"#), "{metrics}");
}

/// The answer comes while the body is under way; a socket closed with unread bytes would take it back (RFC 9112 §9.6).
#[tokio::test]
async fn who_is_refused_may_finish_sending() {
    let server = server(Patience { head: LONG, quiet: LONG });
    let request =
        b"POST /v1/channels/a/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n";
    let mut client = client_with(&server, request).await;
    client.write_all(&vec![b'x'; 8_000_000]).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(answers(&read_to_end(&server, client).await), ["401"]);
}

#[tokio::test]
async fn a_stopped_server_answers_what_it_is_handed_and_closes() {
    let server = server(Patience { head: LONG, quiet: LONG });
    let idle = client(&server).await;
    idle.readable().await.unwrap();
    server.stop.cancel();
    let mut late = client(&server).await;
    let mut first = [0; 12];
    late.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    assert_eq!(answers(&read_to_end(&server, idle).await), ["200"]);
    let text = read_to_end(&server, late).await;
    assert!(text.contains("connection: close\r\n"), "{text}");
}
