//! Connections that are plain HTTP: they come from a shard as a socket and the bytes already read, and are hyper's
//! until they end, or until a request comes that is a shard's.
//!
//! Such a request goes back the way the connection came. hyper alone decides where a request begins: the head is
//! taken from a request that hyper has parsed, has found to have no body, and has given to the service. So nothing
//! that is the body of an earlier request can be taken for a head, whatever it looks like. The service leaves that
//! request unanswered; when hyper has flushed the answers to the requests before it, the connection is taken apart
//! and its parts (the head, what hyper read after it, the socket) are dealt to a shard.

mod head;
mod progress;
mod socket;

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::response::Response;
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tidegate_ops::{
    edge::Preamble,
    tls::{Link, LinkParts},
};
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    progress::{Overdue, Progress},
    socket::WatchedSocket,
};
use super::PublicService;
use crate::{
    admission::{AddressKey, Front},
    edge::door::Dealer,
    metrics::Metrics,
    session::{
        hand_off::{HandOff, TakesHandOffs},
        refusal::Refusal,
    },
};

/// How long a connection may keep the server waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the first byte of a head to its last.
    pub(crate) head: Duration,
    /// Between requests, and for a client that does not take its answer.
    pub(crate) quiet: Duration,
}

/// nginx and common load balancers drop a kept-alive connection that was unused for 60 s. If this side dropped it
/// first, their next request would meet a closing socket; with 15 s more it is they who close.
pub(crate) const QUIET_MAX: Duration = Duration::from_secs(75);

/// Serves what shards hand over.
///
/// Each connection is a task of the runtime, spawned by the shard. There is no queue before them: their number is
/// bounded by the limits of the front, where each has a place.
pub(crate) struct HttpServer {
    pub(crate) service: PublicService,
    pub(crate) front: Arc<Front>,
    pub(crate) dealer: Arc<Dealer>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) patience: Patience,
    pub(crate) head_bytes_max: usize,
    pub(crate) runtime: Handle,
    /// Connections finish the request they are in, and end. Those that come later get one answer.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// A connection's place in the limits; given back when it ends, however it ends.
struct Place {
    front: Arc<Front>,
    /// `None`: a shard has it.
    address: Option<AddressKey>,
}

/// How a connection stops being hyper's.
enum End {
    Served(hyper::Result<()>),
    /// The head of a request that is a shard's.
    Returning(Vec<u8>),
    Overdue(Overdue),
}

impl TakesHandOffs for HttpServer {
    fn take(self: Arc<Self>, hand_off: HandOff) {
        let place = Place { front: Arc::clone(&self.front), address: Some(hand_off.address) };
        let serving = Arc::clone(&self).serve(hand_off, place);
        self.tasks.spawn_on(serving, &self.runtime);
    }
}

impl HttpServer {
    async fn serve(self: Arc<Self>, hand_off: HandOff, place: Place) {
        let HandOff { socket, received: unread, tls, .. } = hand_off;
        let socket = match Link::new(socket, tls) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "a handed-over socket could not be registered"),
        };
        let progress = Arc::new(Progress::new(self.patience));
        let io = TokioIo::new(WatchedSocket { unread, socket, progress: Arc::clone(&progress) });
        // No header_read_timeout: it is one limit for the time between requests and for a head, and a new timer
        // for every request.
        let mut connection = http1::Builder::new()
            .keep_alive(!self.stop.is_cancelled())
            .max_header_size(self.head_bytes_max)
            .serve_connection(io, service_fn(|request| self.answer(request, &progress)));
        let mut stopped = pin!(self.stop.cancelled());
        let (mut stopping, mut lingers) = (false, true);
        let mut timer = pin!(sleep_until(Instant::now() + self.patience.quiet));
        let end = loop {
            // The connection first: the request that it was handed over with is read before anything stops it.
            tokio::select! {
                biased;
                end = poll_fn(|cx| poll_end(&mut connection, &progress, timer.as_mut(), cx)) => break end,
                () = &mut stopped, if !stopping => {
                    stopping = true;
                    lingers = !progress.is_quiet();
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        let Parts { io, read_buf, .. } = connection.into_parts();
        let io = io.into_inner();
        match end {
            End::Returning(head) => self.give_back(head, &read_buf, io, place),
            End::Overdue(Overdue::Head) => self.give_up(io.socket).await,
            End::Overdue(Overdue::Quiet) => {}
            End::Served(served) => {
                if let Err(error) = served {
                    tracing::debug!(%error, "an HTTP connection ended early");
                }
                // The body of a request that was refused for its size may still be on its way.
                if lingers {
                    io.socket.end_with(&[]).await;
                }
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, progress: &Progress) -> Result<Response, Infallible> {
        if let Some(head) = head::of_shard(&request, self.service.is_shards()) {
            progress.return_at_flush(head);
            // Dropped when the connection is taken apart.
            return pending().await;
        }
        progress.requested();
        let response = self.service.call(request).await;
        progress.answered();
        Ok(response)
    }

    /// Deals a connection to a shard, with all that was read from it and not answered.
    fn give_back(&self, head: Vec<u8>, read_buf: &[u8], socket: WatchedSocket, mut place: Place) {
        let WatchedSocket { unread, socket, .. } = socket;
        match (socket.into_parts(), place.address) {
            (Ok(LinkParts { socket, tls, unread: decrypted }), Some(address)) => {
                let read = [&head, read_buf, &unread[..], &decrypted].concat();
                place.address = None;
                let preamble = tls.map_or(Preamble::None, Preamble::Session);
                self.dealer.deal(socket, read.into(), address, preamble);
            }
            (Err(error), _) => tracing::warn!(%error, "a socket could not leave the runtime"),
            (Ok(_), None) => {}
        }
    }

    async fn give_up(&self, socket: Link) {
        let refusal = Refusal::HeadTimeout;
        self.metrics.node.handshakes.add(refusal.result(), 1);
        let mut answer = Vec::new();
        refusal.write(0, None, &mut answer);
        socket.end_with(&answer).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.front.release(address);
        }
    }
}

/// Drives a connection and looks where it stands.
fn poll_end<C>(
    connection: &mut C,
    progress: &Progress,
    mut timer: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<End>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    if let Poll::Ready(served) = Pin::new(connection).poll(cx) {
        return Poll::Ready(End::Served(served));
    }
    if let Some(head) = progress.take_flushed() {
        return Poll::Ready(End::Returning(head));
    }
    // Moved only when it would ring too late. When it rings early, the deadline is looked at again: at most once
    // in each span of patience, so a request costs no timer.
    if let Some(deadline) = progress.deadline().filter(|deadline| *deadline < timer.deadline()) {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(cx).is_ready() {
        let now = Instant::now();
        if let Some(overdue) = progress.overdue(now) {
            return Poll::Ready(End::Overdue(overdue));
        }
        timer.as_mut().reset(progress.deadline().unwrap_or(now + progress.patience.quiet));
    }
    Poll::Pending
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("patience", &self.patience).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
