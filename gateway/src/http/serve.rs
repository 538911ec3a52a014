//! Connections that are plain HTTP: they come from a shard as a socket and the bytes already read, and are hyper's
//! until they end.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc::UnboundedReceiver,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::PublicService;
use crate::front::{AddressKey, Front};

/// A connection that a shard hands over.
#[derive(Debug)]
pub(crate) struct HandOff {
    pub(crate) socket: StdTcpStream,
    /// What was read from it.
    pub(crate) received: Bytes,
    pub(crate) address: AddressKey,
}

/// Serves what shards hand over until `stop`; connections then finish the request they are in.
///
/// The queue has no bound of its own: what is in it counts as a connection, and those are limited.
pub(crate) async fn serve(
    mut handed: UnboundedReceiver<HandOff>,
    service: PublicService,
    front: Arc<Front>,
    head_timeout: Duration,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let hand_off = tokio::select! {
            () = stop.cancelled() => return,
            hand_off = handed.recv() => match hand_off {
                Some(hand_off) => hand_off,
                None => return,
            },
        };
        let place = Place { front: Arc::clone(&front), address: hand_off.address };
        tasks.spawn(serve_one(hand_off, service.clone(), place, head_timeout, stop.clone()));
    }
}

/// A connection's place in the limits; given back when it ends, however it ends.
struct Place {
    front: Arc<Front>,
    address: AddressKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.front.release(self.address);
    }
}

async fn serve_one(
    hand_off: HandOff,
    service: PublicService,
    _place: Place,
    head_timeout: Duration,
    stop: CancellationToken,
) {
    let socket = match TcpStream::from_std(hand_off.socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "a handed-over socket could not be registered"),
    };
    let io = TokioIo::new(Rewound { unread: hand_off.received, socket });
    let answer = service_fn(|request: Request<Incoming>| async {
        Ok::<_, std::convert::Infallible>(service.call(request).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .serve_connection(io, answer);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// A socket whose first bytes were read by somebody else.
struct Rewound {
    unread: Bytes,
    socket: TcpStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buffer);
        }
        let n = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..n]);
        self.unread.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
