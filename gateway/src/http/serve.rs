//! Connections that are plain HTTP: they come from a shard as a socket and the bytes already read, and are hyper's
//! until they end, or until a request comes that is a shard's.
//!
//! Each head is judged as in a shard before hyper has it (`ops::http::Gate`), so nothing that is the body of one request
//! can be taken for another, whatever it looks like. A request that is a shard's goes back the way the connection came,
//! when the answers to those before it have been flushed: the socket and all that was read are dealt to a shard.

use std::{fmt, sync::Arc};

use axum::response::Response;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use tidegate_ops::{
    edge::Preamble,
    http::{
        AnswerBody, Departure, End, Exchange, Gate, IsShards, Left, Overdue, Patience, serve as serve_through,
    },
    tls::{Link, LinkParts},
};
use tidegate_wire::head::Head;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{PublicService, whole};
use crate::{
    admission::{AddressKey, Front},
    edge::door::Dealer,
    metrics::Metrics,
    session::{
        plain_http::{Answering, HandOff, PlainHttp},
        refusal::Refusal,
    },
};

/// Serves what shards hand over.
///
/// Each connection is a task of the runtime, spawned by the shard. There is no queue before them: their number is
/// bounded by the limits of the front, where each has a place.
pub(crate) struct HttpServer {
    pub(crate) service: PublicService,
    pub(crate) front: Arc<Front>,
    pub(crate) dealer: Arc<Dealer>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) is_shards: IsShards,
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

/// hyper took something for a request that it was not given as one. Ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("hyper has read a request that the gate has not")]
struct Misread;

impl PlainHttp for HttpServer {
    fn take(self: Arc<Self>, hand_off: HandOff) {
        let place = Place { front: Arc::clone(&self.front), address: Some(hand_off.address) };
        let serving = Arc::clone(&self).serve(hand_off, place);
        self.tasks.spawn_on(serving, &self.runtime);
    }

    fn answer_whole(&self, head: &Head<'_>, body: &[u8]) -> Option<Answering> {
        match self.stop.is_cancelled() {
            true => None,
            false => whole::answer(&self.service, head, body),
        }
    }
}

impl HttpServer {
    async fn serve(self: Arc<Self>, hand_off: HandOff, place: Place) {
        let HandOff { socket, received, tls, .. } = hand_off;
        let socket = match Link::new(socket, tls) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "a handed-over socket could not be registered"),
        };
        let exchange = Arc::new(Exchange::new(self.patience, false));
        let gate = Gate::new(socket, &received, self.head_bytes_max, self.is_shards, Arc::clone(&exchange));
        drop(received);
        let service = service_fn(|request| self.answer(request, &exchange));
        let Departure { left, gate, read, lingers } = serve_through(gate, service, &self.stop).await;
        match left {
            Left::Ended(End::Returning) if read.is_empty() => self.give_back(gate, place),
            Left::Ended(End::Returning) => tracing::warn!("hyper has kept bytes of a request"),
            Left::Ended(End::Refused(error)) => self.refuse(error.into(), gate.socket).await,
            Left::Overdue(Overdue::Head) => self.refuse(Refusal::HeadTimeout, gate.socket).await,
            Left::Overdue(Overdue::Quiet) => {}
            Left::Served(served) => {
                if let Err(error) = served {
                    tracing::debug!(%error, "an HTTP connection ended early");
                }
                // The body of a request that was refused for its size may still be on its way.
                if lingers {
                    gate.socket.end_with(&[]).await;
                }
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        exchange: &Arc<Exchange>,
    ) -> Result<http::Response<AnswerBody>, Misread> {
        let (_, open) = exchange.take().ok_or(Misread)?;
        let response: Response = self.service.call(request).await;
        Ok(response.map(|body| AnswerBody::new(body, open)))
    }

    /// Deals a connection to a shard, with the request that comes next.
    fn give_back(&self, gate: Gate, mut place: Place) {
        let Gate { socket, held, .. } = gate;
        match (socket.into_parts(), place.address) {
            (Ok(LinkParts { socket, tls, unread }), Some(address)) => {
                let read = [&held[..], &unread].concat();
                place.address = None;
                let preamble = tls.map_or(Preamble::None, Preamble::Session);
                self.dealer.deal(socket, read.into(), address, preamble);
            }
            (Err(error), _) => tracing::warn!(%error, "a socket could not leave the runtime"),
            (Ok(_), None) => {}
        }
    }

    async fn refuse(&self, refusal: Refusal, socket: Link) {
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

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("patience", &self.patience).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
