//! Drives one connection of hyper until it ends, its gate ends it, its client is late, or the process stops.

use std::{
    error::Error,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::HttpService,
};
use hyper_util::rt::TokioIo;
use tidegate_wire::head::FORWARDING_BYTES_MAX;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    exchange::{AnswerBody, End, Exchange, Overdue},
    gate::Gate,
};

/// How a connection stops being hyper's.
#[derive(Debug)]
pub enum Left {
    Served(hyper::Result<()>),
    Ended(End),
    Overdue(Overdue),
}

/// A connection that is not hyper's any more.
#[derive(Debug)]
pub struct Departure {
    pub left: Left,
    pub gate: Gate,
    /// What hyper read and did not use: nothing, where it left with a request of a shard.
    pub read: Bytes,
    /// Something may still be on its way from the client: the body of a request that was refused for its size.
    pub lingers: bool,
}

/// Serves what comes through the gate. `stop`: the request that is under way is the last.
pub async fn serve<S>(gate: Gate, service: S, stop: &CancellationToken) -> Departure
where
    S: HttpService<Incoming, ResBody = AnswerBody>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let exchange = Arc::clone(gate.exchange());
    // No header_read_timeout: it is one limit for the time between requests and for a head, and a new timer for every
    // request.
    let mut connection = http1::Builder::new()
        .keep_alive(!stop.is_cancelled())
        // Who has sent its request and closes its side is still answered (RFC 9112 section 9.6).
        .half_close(true)
        .max_header_size(gate.head_bytes_max() + FORWARDING_BYTES_MAX)
        .serve_connection(TokioIo::new(gate), service);
    let mut stopped = pin!(stop.cancelled());
    let (mut stopping, mut lingers) = (false, true);
    let mut timer = pin!(sleep_until(Instant::now() + exchange.quiet()));
    let left = loop {
        // The connection first: the request that it was handed over with is read before anything stops it.
        tokio::select! {
            biased;
            left = poll_fn(|cx| poll_left(&mut connection, &exchange, timer.as_mut(), cx)) => break left,
            () = &mut stopped, if !stopping => {
                stopping = true;
                lingers = !exchange.is_idle();
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let Parts { io, read_buf, .. } = connection.into_parts();
    Departure { left, gate: io.into_inner(), read: read_buf, lingers }
}

/// Drives a connection and looks where it stands.
fn poll_left<C>(
    connection: &mut C,
    exchange: &Exchange,
    mut timer: Pin<&mut Sleep>,
    cx: &mut Context<'_>,
) -> Poll<Left>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    if let Poll::Ready(served) = poll_served(connection, cx) {
        return Poll::Ready(Left::Served(served));
    }
    if let Some(end) = exchange.take_end() {
        return Poll::Ready(Left::Ended(end));
    }
    // Moved only when it would ring too late. When it rings early, the deadline is looked at again: at most once
    // in each span of patience, so a request costs no timer.
    if let Some(deadline) = exchange.deadline().filter(|deadline| *deadline < timer.deadline()) {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(cx).is_ready() {
        let now = Instant::now();
        if let Some(overdue) = exchange.overdue(now) {
            return Poll::Ready(Left::Overdue(overdue));
        }
        timer.as_mut().reset(exchange.deadline().unwrap_or(now + exchange.quiet()));
    }
    Poll::Pending
}

/// Drives a connection of hyper until it has ended and everything was sent. For hyper, a request with `Upgrade` may end with
/// the connection being given away, and then it ends before its answer is sent. Polled again, it ends like any other.
pub(crate) fn poll_served<C>(connection: &mut C, cx: &mut Context<'_>) -> Poll<hyper::Result<()>>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(Ok(())) => Pin::new(connection).poll(cx),
        served => served,
    }
}

#[cfg(test)]
mod contract;
