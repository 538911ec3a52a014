//! What handing a connection back stands on: things that hyper does, and that its documentation does not promise. A
//! version of it that does otherwise fails here, and not in a client that loses a part of an answer.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    io,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

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

/// Two requests and one that is left unanswered come together, over a socket that takes the answers in small pieces.
#[tokio::test]
async fn hyper_flushes_whole_answers_and_gives_back_what_it_read() {
    let (mut client, server) = tokio::io::duplex(256);
    let log = Log::default();
    let head = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let sent = [head("/1"), head("/2"), head("/ws"), "rest".into()].concat();
    client.write_all(sent.as_bytes()).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.unwrap();
        answers.len()
    });

    let service = service_fn(|request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        log.lock().unwrap().push(Seen::Request(path.clone()));
        async move {
            if path == "/ws" {
                return pending().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![b'x'; 10_000]))))
        }
    });
    let io = TokioIo::new(Recording { socket: server, written: 0, log: Arc::clone(&log) });
    let mut connection = http1::Builder::new().serve_connection(io, service);
    // As the server drives it: until there was a flush after the request that is left unanswered.
    poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        assert!(polled.is_pending(), "the connection stands while a request is unanswered");
        let log = log.lock().unwrap();
        let left = log.iter().position(|seen| *seen == Seen::Request("/ws".into()));
        let flushed = left.is_some_and(|at| log[at..].iter().any(|seen| matches!(seen, Seen::Flush { .. })));
        if flushed { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;

    let parts = connection.into_parts();
    assert_eq!(&parts.read_buf[..], b"rest", "what came after the last head is given back");
    drop(parts.io);
    let answered = reading.await.unwrap();
    let log = log.lock().unwrap();
    let requests: Vec<&Seen> = log.iter().filter(|seen| matches!(seen, Seen::Request(_))).collect();
    assert_eq!(
        requests,
        ["/1", "/2", "/ws"].map(|path| Seen::Request(path.into())).iter().collect::<Vec<_>>()
    );
    let left = log.iter().position(|seen| *seen == Seen::Request("/ws".into())).unwrap();
    let flushes = log[left..].iter().filter(|seen| matches!(seen, Seen::Flush { .. }));
    for flush in flushes {
        assert_eq!(*flush, Seen::Flush { written: answered }, "a flush comes when nothing is left to write");
    }
}
