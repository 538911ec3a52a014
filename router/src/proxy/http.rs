//! Requests that do not stay in a shard: hyper serves the client's connection, and each request of it goes to the
//! node of its own key.
//!
//! Each head is judged as in a shard before hyper has it (`ops::http::Gate`), and hyper writes each request anew for the
//! node. So nothing that is the body of one request can become another one, whatever it looks like. A request for an
//! upgrade or an event stream goes back to a shard, with the socket and all that was read after it: pairs live there
//! and nowhere else.

mod body;
mod nodes;

use std::{
    fmt,
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts,
};
use hyper::{body::Incoming, service::service_fn};
use tidegate_ops::{
    edge::{Edge, Preamble},
    http::{
        AnswerBody, Departure, End, Exchange, Gate, Left, Overdue, Patience, QUIET_MAX,
        serve as serve_through,
    },
    tls::{Link as SocketLink, LinkParts},
};
use tidegate_reactor::TlsSession;
use tidegate_wire::{
    head::{Head, HeadError},
    proxy_v2::Addresses,
    request::RequestError,
};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::{
    body::Lent,
    nodes::{Kept, NodeClient, Nodes},
};
use super::{
    ConnectResult, Options,
    budget::ATTEMPTS_MAX,
    door::Door,
    link::Link,
    refusal::{PROBLEM_MEDIA_TYPE, Refusal},
    request::{self, Origin, ROUTER_HEADER, Route, RouterId},
};
use crate::{
    assign,
    chooser::{Candidates, Chooser, Claim},
    key::KeyRule,
    lack::is_from_own_lack,
};

/// A connection that a shard hands over.
#[derive(Debug)]
pub(super) struct HandOff {
    pub(super) socket: StdTcpStream,
    /// What was read from it.
    pub(super) received: Bytes,
    /// The client, and where it connected to.
    pub(super) ends: Addresses,
    /// Its TLS session, if it has one; `received` is plaintext.
    pub(super) tls: Option<Box<TlsSession>>,
}

/// Serves what shards hand over. Each connection is a task; their number is bounded by the door.
pub(super) struct HttpProxy {
    nodes: Nodes,
    key: KeyRule,
    chooser: Arc<Chooser>,
    edge: Arc<Edge>,
    door: Arc<Door>,
    /// Answers what is asked of the router itself.
    assign: Router,
    head_bytes_max: usize,
    patience: Patience,
    router: RouterId,
    runtime: Handle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A connection's place at the door; given back when it ends, however it ends.
struct Place(Option<Arc<Door>>);

/// One connection of a client.
struct Visit {
    ends: Addresses,
    origin: Origin,
    exchange: Arc<Exchange>,
    kept: Kept,
}

/// A request as the rules of a shard read it.
struct Reading {
    route: Route,
    client: SocketAddr,
    candidates: Candidates,
}

/// hyper took something for a request that it was not given as one. Ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("hyper has read a request that the gate has not")]
struct Misread;

/// A node has so long to begin its answer. Its slowest one is a publication that waits 5 s for room.
const ANSWER_MAX: Duration = Duration::from_secs(30);

impl HttpProxy {
    pub(super) fn new(
        options: &Options,
        chooser: Arc<Chooser>,
        edge: Arc<Edge>,
        door: Arc<Door>,
        assign: Router,
        router: RouterId,
        runtime: Handle,
    ) -> Self {
        Self {
            nodes: Nodes::new(options.connect_timeout, options.proxy_protocol_to_nodes),
            key: options.key.clone(),
            chooser,
            edge,
            door,
            assign,
            head_bytes_max: options.head_bytes_max,
            patience: Patience { head: options.head_timeout, quiet: QUIET_MAX },
            router,
            runtime,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Serves a connection from now on. Does not block.
    pub(super) fn take(self: &Arc<Self>, hand_off: HandOff) {
        let place = Place(Some(Arc::clone(&self.door)));
        let serving = Arc::clone(self).serve(hand_off, place);
        self.tasks.spawn_on(serving, &self.runtime);
    }

    /// Connections finish the request they are in, and end.
    pub(super) fn drain(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    async fn serve(self: Arc<Self>, hand_off: HandOff, place: Place) {
        let HandOff { socket, received, ends, tls } = hand_off;
        let socket = match SocketLink::new(socket, tls) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "a handed-over socket could not be registered"),
        };
        let exchange = Arc::new(Exchange::new(self.patience, true));
        let gate = Gate::new(socket, &received, self.head_bytes_max, is_shards, Arc::clone(&exchange));
        drop(received);
        let origin = Origin {
            peer: ends.source,
            trusted: self.edge.trust.covers(ends.source.ip()),
            secure: self.edge.tls.is_some(),
            router: self.router,
        };
        let visit = Visit { ends, origin, exchange, kept: Kept::default() };
        let service = service_fn(|request| self.answer(request, &visit));
        let Departure { left, gate, read, lingers } = serve_through(gate, service, &self.stop).await;
        match left {
            Left::Ended(End::Returning) if read.is_empty() => self.give_back(gate, ends, place),
            Left::Ended(End::Returning) => tracing::warn!("hyper has kept bytes of a request"),
            Left::Ended(End::Refused(error)) => self.refuse(error.into(), ends, gate.socket).await,
            Left::Overdue(Overdue::Head) => self.refuse(Refusal::HeadTimeout, ends, gate.socket).await,
            Left::Overdue(Overdue::Quiet) => {}
            Left::Served(served) => {
                if let Err(error) = served {
                    tracing::debug!(%error, "an HTTP connection ended early");
                }
                // The body of a request that was refused may still be on its way.
                if lingers {
                    gate.socket.end_with(&[]).await;
                }
            }
        }
    }

    async fn refuse(&self, refusal: Refusal, ends: Addresses, socket: SocketLink) {
        self.door.metrics().refusals.add(refusal.reason(), 1);
        let mut answer = Vec::new();
        refusal.write(u64::from(ends.source.port()), &mut answer);
        socket.end_with(&answer).await;
    }

    /// Deals a connection to a shard, with the request that comes next.
    fn give_back(&self, gate: Gate, ends: Addresses, mut place: Place) {
        let Gate { socket, held, .. } = gate;
        match socket.into_parts() {
            Ok(LinkParts { socket, tls, unread }) => {
                place.0 = None;
                let preamble = tls.map_or(Preamble::None, Preamble::Session);
                let read = [&held[..], &unread].concat();
                self.door.deal(socket, read.into(), Link::client(ends, false, preamble));
            }
            Err(error) => tracing::warn!(%error, "a socket could not leave the runtime"),
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        visit: &Visit,
    ) -> Result<Response<AnswerBody>, Misread> {
        let (head, open) = visit.exchange.take().ok_or(Misread)?;
        let response = match self.forward(request, &head, visit).await {
            Ok(response) => response,
            Err(refusal) => {
                self.door.metrics().refusals.add(refusal.reason(), 1);
                refused(refusal, u64::from(visit.ends.source.port()))
            }
        };
        Ok(response.map(|body| AnswerBody::new(body, open)))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        head: &[u8],
        visit: &Visit,
    ) -> Result<Response<Body>, Refusal> {
        let Reading { route, client, mut candidates } = self.read(head, visit.origin)?;
        if route == Route::Assign {
            request.extensions_mut().insert(assign::Client(client));
            return Ok(self.assign.clone().oneshot(request).await.unwrap_or_else(|never| match never {}));
        }
        let (mut parts, body) = request.into_parts();
        rewrite(&mut parts, visit.origin);
        let body = Lent::new(body);
        let nodes = self.nodes.client(&visit.kept, Addresses { source: client, ..visit.ends });
        let metrics = self.door.metrics();
        self.door.retries.deposit();
        for tried in 0..ATTEMPTS_MAX {
            let node = candidates.next().ok_or(Refusal::NoNode)?;
            if tried > 0 && !self.door.retries.withdraw() {
                return Err(Refusal::RetryBudget);
            }
            metrics.count_fallback(tried, candidates.passed_over());
            let (address, begin) = (node.socket(), Instant::now());
            let claim = node.claim(begin);
            let mut asked = ask(&nodes, &parts, address, &body).await;
            // A kept connection may end just when it is used. What changes nothing (RFC 9110 §9.2.1) is asked again,
            // once, before the node is blamed.
            if matches!(asked, Err(ConnectResult::Closed)) && parts.method.is_safe() && !body.was_read() {
                asked = ask(&nodes, &parts, address, &body).await;
            }
            match asked {
                Ok(response) => {
                    claim.connected();
                    metrics.connects.add(ConnectResult::Answered, 1);
                    return pass_on(response);
                }
                Err(failure) => self.note_failure(claim, begin, failure, &body)?,
            }
        }
        Err(Refusal::NoNode)
    }

    /// A node has not answered. `Ok`: another one may be asked.
    fn note_failure(
        &self,
        claim: Claim,
        asked: Instant,
        failure: ConnectResult,
        body: &Lent,
    ) -> Result<(), Refusal> {
        if body.has_failed() {
            return Err(Refusal::Body);
        }
        self.door.metrics().connects.add(failure, 1);
        // No node is to blame, and no other would be reached.
        if failure == ConnectResult::Lack {
            return Err(Refusal::Descriptors);
        }
        claim.refused(asked, Instant::now());
        match failure {
            ConnectResult::Refused if !body.was_read() => Ok(()),
            // What a node has seen a part of may have had its effect: it is not asked twice.
            ConnectResult::Silent => Err(Refusal::NoAnswer),
            _ => Err(Refusal::BadAnswer),
        }
    }

    fn read(&self, head: &[u8], origin: Origin) -> Result<Reading, Refusal> {
        // The gate has found it whole.
        let head =
            Head::parse(head).transpose().unwrap_or(Err(HeadError::Target)).map_err(RequestError::Head)?;
        if request::is_loop(&head, self.router) {
            return Err(Refusal::Loop);
        }
        let route = request::route(&head, false);
        let client = request::client_address(&head, origin.peer, &self.edge.trust);
        let key = self.key.key_of(&head, client);
        Ok(Reading { route, client, candidates: self.chooser.candidates(&key.bytes, Instant::now()) })
    }
}

/// Whether a request is a pair's.
fn is_shards(head: &Head<'_>, followed: bool) -> bool {
    matches!(request::route(head, followed), Route::Pair(_))
}

/// Sends a request to a node.
async fn ask(
    nodes: &NodeClient,
    parts: &Parts,
    address: SocketAddr,
    body: &Lent,
) -> Result<Response<Incoming>, ConnectResult> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut parts = parts.clone();
    // A target that hyper has parsed is one behind an address too.
    parts.uri = format!("http://{address}{target}").parse().map_err(|_| ConnectResult::Closed)?;
    let answering = nodes.request(Request::from_parts(parts, body.lend()));
    match tokio::time::timeout(ANSWER_MAX, answering).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) if error.is_connect() && is_from_own_lack(&error) => Err(ConnectResult::Lack),
        Ok(Err(error)) if error.is_connect() => Err(ConnectResult::Refused),
        Ok(Err(_)) => Err(ConnectResult::Closed),
        Err(_) => Err(ConnectResult::Silent),
    }
}

/// The node's answer as the client gets it.
fn pass_on(response: Response<Incoming>) -> Result<Response<Body>, Refusal> {
    let (mut parts, body) = response.into_parts();
    // No request asks for that here.
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::BadAnswer);
    }
    let upgrade = parts.headers.get(header::UPGRADE).cloned();
    remove_hop_headers(&mut parts.headers, true);
    // RFC 9110 §15.5.22: it has to say to what.
    if let Some(upgrade) = upgrade.filter(|_| parts.status == StatusCode::UPGRADE_REQUIRED) {
        parts.headers.insert(header::UPGRADE, upgrade);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// What the node is sent instead of what the client has sent.
fn rewrite(parts: &mut Parts, origin: Origin) {
    let headers = &mut parts.headers;
    let of = |name: &str| {
        request::append_all(
            headers.get_all(name).iter().filter(|_| origin.trusted).map(HeaderValue::as_bytes),
        )
    };
    let forwarded_for = request::forwarded_for_value(of("x-forwarded-for"), origin);
    let forwarded = request::forwarded_value(of("forwarded"), origin);
    let routers = headers.get(ROUTER_HEADER).and_then(|value| value.to_str().ok());
    let routers = request::routers_value(routers, origin).into_bytes();
    remove_hop_headers(headers, origin.trusted);
    headers.remove(header::EXPECT);
    // Values are made of what was a value before, addresses and words: always valid.
    for (name, value) in
        [("x-forwarded-for", forwarded_for), ("forwarded", forwarded), (ROUTER_HEADER, routers)]
    {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let scheme = HeaderValue::from_static(origin.scheme());
    headers.entry("x-forwarded-proto").or_insert(scheme);
    parts.version = Version::HTTP_11;
}

/// By the rule that a shard has for the heads it writes.
fn remove_hop_headers(headers: &mut HeaderMap, trusted: bool) {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let connection = connection.collect::<Vec<_>>().join(",");
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| request::is_dropped(name.as_str(), &connection, trusted))
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

fn refused(refusal: Refusal, spread: u64) -> Response<Body> {
    let mut response = Response::new(Body::from(refusal.problem()));
    *response.status_mut() =
        StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
    // What follows a request that was not understood, or not read to its end, is not a request.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Some(seconds) = refusal.retry_after_s(spread) {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(door) = &self.0 {
            door.release();
        }
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").finish_non_exhaustive()
    }
}
