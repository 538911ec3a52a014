//! What taking a connection from hyper stands on: things that it does, and that its documentation does not promise. A
//! version of it that does otherwise fails here, and not in a client that loses a part of an answer.
#![allow(clippy::unwrap_used)]

use std::{convert::Infallible, io, sync::Mutex, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

use super::*;
use crate::{http::Patience, tls::Link};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// The service was given a request for this path.
    Request(String),
    /// `flush` was called, when so many bytes had been written.
    Flush { written: usize },
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// Notes what hyper does to its socket.
struct Recording {
    socket: DuplexStream,
    written: usize,
    log: Log,
}

impl AsyncRead for Recording {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Recording {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &polled {
            self.written += count;
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Seen::Flush { written: self.written };
        self.log.lock().unwrap().push(flush);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Two requests come together, over a socket that takes the answers in small pieces.
#[tokio::test]
async fn hyper_flushes_whole_answers() {
    let (mut client, server) = tokio::io::duplex(256);
    let log = Log::default();
    let head = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    client.write_all([head("/1"), head("/2")].concat().as_bytes()).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.unwrap();
        answers.len()
    });

    let service = service_fn(|request: Request<Incoming>| {
        log.lock().unwrap().push(Seen::Request(request.uri().path().to_owned()));
        async { Ok::<_, Infallible>(Response::new(Body::from(vec![b'x'; 10_000]))) }
    });
    let io = TokioIo::new(Recording { socket: server, written: 0, log: Arc::clone(&log) });
    let mut connection = http1::Builder::new().serve_connection(io, service);
    // As the task drives it: until there was a flush after both requests.
    poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        assert!(polled.is_pending(), "the connection stands while the next request may come");
        let log = log.lock().unwrap();
        let last = log.iter().position(|seen| *seen == Seen::Request("/2".into()));
        let flushed = last.is_some_and(|at| log[at..].iter().any(|seen| matches!(seen, Seen::Flush { .. })));
        if flushed { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;

    let parts = connection.into_parts();
    assert!(parts.read_buf.is_empty(), "nothing is read ahead of what it was given");
    drop(parts.io);
    let answered = reading.await.unwrap();
    assert!(answered > 20_000);
    let log = log.lock().unwrap();
    let last = log.iter().position(|seen| *seen == Seen::Request("/2".into())).unwrap();
    for flush in log[last..].iter().filter(|seen| matches!(seen, Seen::Flush { .. })) {
        assert_eq!(*flush, Seen::Flush { written: answered }, "a flush comes when nothing is left to write");
    }
}

/// A request whose body is not wanted is answered before that has come, and so is one that hyper takes for an upgrade.
#[tokio::test]
async fn an_answer_is_sent_to_its_end() {
    for headers in ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n"] {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: 1000\r\n\r\n");
        let quiet = Duration::from_secs(3600);
        let exchange = Arc::new(Exchange::new(Patience { head: quiet, quiet }, false));
        let gate = Gate::new(Link::Plain(socket), head.as_bytes(), 4096, |_, _| false, Arc::clone(&exchange));
        // More than the kernel takes before the client reads.
        let answer = vec![b'x'; 16 * 1024 * 1024];
        let service = service_fn(|_: Request<Incoming>| {
            let (_, open) = exchange.take().unwrap();
            let body = AnswerBody::new(Body::from(answer.clone()), open);
            async { Ok::<_, Infallible>(Response::new(body)) }
        });
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.unwrap();
            read.len()
        });
        let Departure { left, gate, .. } = serve(gate, service, &CancellationToken::new()).await;
        assert!(matches!(left, Left::Served(Ok(()))), "{left:?}");
        drop(gate);
        assert!(reading.await.unwrap() > answer.len(), "{headers}");
    }
}
