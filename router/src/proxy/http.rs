//! Requests that do not stay in a shard: hyper serves the client's connection, and each request of it goes to the
//! node of its own key.
//!
//! hyper decides where a request begins and ends, and writes each one anew for the node. So nothing that is the body
//! of one request can become another one, whatever it looks like.

mod body;

use std::{
    convert::Infallible,
    fmt,
    net::{SocketAddr, TcpStream as StdTcpStream},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tidegate_ops::{edge::Edge, tls::Link};
use tidegate_reactor::TlsSession;
use tidegate_wire::head::{Head, HeadError};
use tokio::{io::AsyncReadExt, runtime::Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::body::Lent;
use super::{
    ConnectResult, Options,
    door::Door,
    handshake::ATTEMPTS_MAX,
    link::Kind,
    refusal::{PROBLEM_MEDIA_TYPE, Refusal},
    request::{self, FORWARDING_HEADERS, HOP_HEADERS, Origin, Route},
};
use crate::{
    assign,
    chooser::{Candidates, Chooser, Claim},
    key::KeyRule,
};

/// A connection that a shard hands over.
#[derive(Debug)]
pub(super) struct HandOff {
    pub(super) socket: StdTcpStream,
    /// What was read from it.
    pub(super) received: Bytes,
    pub(super) peer: SocketAddr,
    /// Its TLS session, if it has one; `received` is plaintext.
    pub(super) tls: Option<Box<TlsSession>>,
}

/// Serves what shards hand over. Each connection is a task; their number is bounded by the door.
pub(super) struct HttpProxy {
    client: Client<HttpConnector, Lent>,
    key: KeyRule,
    chooser: Arc<Chooser>,
    edge: Arc<Edge>,
    door: Arc<Door>,
    /// Answers what is asked of the router itself.
    assign: Router,
    head_bytes_max: usize,
    runtime: Handle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A connection's place at the door; given back when it ends, however it ends.
struct Place(Arc<Door>);

/// What an upgraded exchange holds as long as it lasts: its places on the node and at the door.
type Held = (Claim, Arc<Place>);

type AnswerBody = axum::body::Body;

/// Between requests, and for a head: as in the gateway, 15 s more than nginx and common load balancers keep an unused
/// connection, so that it is not this side that closes first.
const QUIET_MAX: Duration = Duration::from_secs(75);

/// A node has so long to begin its answer. Its slowest one is a publication that waits 5 s for room.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Connections to one node that are kept for the next request. A gateway keeps an unused one for 75 s.
const IDLE_PER_NODE: usize = 32;
const IDLE_MAX: Duration = Duration::from_secs(30);

impl HttpProxy {
    pub(super) fn new(
        options: &Options,
        chooser: Arc<Chooser>,
        edge: Arc<Edge>,
        door: Arc<Door>,
        assign: Router,
        runtime: Handle,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.connect_timeout));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_PER_NODE)
            .build(connector);
        Self {
            client,
            key: options.key.clone(),
            chooser,
            edge,
            door,
            assign,
            head_bytes_max: options.head_bytes_max,
            runtime,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Serves a connection from now on. Does not block.
    pub(super) fn take(self: &Arc<Self>, hand_off: HandOff) {
        let place = Place(Arc::clone(&self.door));
        let serving = Arc::clone(self).serve(hand_off, place);
        self.tasks.spawn_on(serving, &self.runtime);
    }

    /// Connections finish the request they are in, and end.
    pub(super) fn drain(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    async fn serve(self: Arc<Self>, hand_off: HandOff, place: Place) {
        let socket = match Link::new(hand_off.socket, hand_off.tls) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "a handed-over socket could not be registered"),
        };
        let place = Arc::new(place);
        let (reading, writing) = tokio::io::split(socket);
        let io = tokio::io::join(std::io::Cursor::new(hand_off.received).chain(reading), writing);
        let origin = Origin {
            peer: hand_off.peer,
            trusted: self.edge.trust.covers(hand_off.peer.ip()),
            secure: self.edge.tls.is_some(),
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(QUIET_MAX)
            .max_header_size(self.head_bytes_max)
            .keep_alive(!self.stop.is_cancelled())
            .serve_connection(TokioIo::new(io), service_fn(|request| self.answer(request, origin, &place)))
            .with_upgrades();
        let mut connection = pin!(connection);
        // The connection first: the request that it was handed over with is read before anything stops it.
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection ended early");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        origin: Origin,
        place: &Arc<Place>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        Ok(match self.forward(request, origin, place).await {
            Ok(response) => response,
            Err(refusal) => {
                self.door.metrics().refusals.add(refusal.reason(), 1);
                refused(refusal, u64::from(origin.peer.port()))
            }
        })
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        origin: Origin,
        place: &Arc<Place>,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let (mut candidates, route, client) = self.read(&request, origin)?;
        if route == Route::Assign {
            request.extensions_mut().insert(assign::Client(client));
            return Ok(self.assign.clone().oneshot(request).await.unwrap_or_else(|never| match never {}));
        }
        let upgrades = (route == Route::Pair(Kind::Upgrade)).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        rewrite(&mut parts, origin, upgrades.is_some());
        let body = Lent::new(body);
        let metrics = self.door.metrics();
        for tried in 0..ATTEMPTS_MAX {
            let node = candidates.next().ok_or(Refusal::NoNode)?;
            metrics.count_fallback(tried, candidates.passed_over());
            let address = node.socket();
            let claim = node.claim(Instant::now());
            let mut asked = self.ask(&parts, address, &body).await;
            // A kept connection may end just when it is used. What changes nothing (RFC 9110 §9.2.1) is asked again,
            // once, before the node is blamed.
            if matches!(asked, Err(ConnectResult::Closed)) && parts.method.is_safe() && !body.was_read() {
                asked = self.ask(&parts, address, &body).await;
            }
            let failure = match asked {
                Ok(response) => {
                    claim.connected();
                    metrics.connects.add(ConnectResult::Answered, 1);
                    return Ok(self.pass_on(response, upgrades, (claim, Arc::clone(place))));
                }
                Err(failure) => failure,
            };
            metrics.connects.add(failure, 1);
            claim.refused(Instant::now());
            // What a node has seen a part of may have had its effect: it is not asked twice.
            if failure != ConnectResult::Refused || body.was_read() {
                let silent = failure == ConnectResult::Silent;
                return Err(if silent { Refusal::NoAnswer } else { Refusal::BadAnswer });
            }
        }
        Err(Refusal::NoNode)
    }

    /// Sends a request to a node.
    async fn ask(
        &self,
        parts: &Parts,
        address: SocketAddr,
        body: &Lent,
    ) -> Result<Response<Incoming>, ConnectResult> {
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut parts = parts.clone();
        // A target that hyper has parsed is one behind an address too.
        parts.uri = format!("http://{address}{target}").parse().map_err(|_| ConnectResult::Closed)?;
        let answering = self.client.request(Request::from_parts(parts, body.lend()));
        match tokio::time::timeout(ANSWER_MAX, answering).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(ConnectResult::Refused),
            Ok(Err(_)) => Err(ConnectResult::Closed),
            Err(_) => Err(ConnectResult::Silent),
        }
    }

    /// Reads the request by the rules of a shard, which are stricter than hyper's, and finds its nodes.
    fn read(
        &self,
        request: &Request<Incoming>,
        origin: Origin,
    ) -> Result<(Candidates, Route, SocketAddr), Refusal> {
        let head = head_of(request);
        // hyper has found the same bytes to be a whole head.
        let head = Head::parse(&head)?.ok_or(Refusal::Head(HeadError::Target))?;
        let route = request::route(&head, false)?;
        let client = request::client_address(&head, origin.peer, &self.edge.trust);
        let key = self.key.key_of(&head, client);
        Ok((self.chooser.candidates(&key.bytes, Instant::now()), route, client))
    }

    /// The node's answer as the client gets it. An upgrade on a connection that had other requests before is rare:
    /// browsers open a new one for each WebSocket. Its bytes move in a task.
    fn pass_on(
        &self,
        mut response: Response<Incoming>,
        upgrades: Option<OnUpgrade>,
        held: Held,
    ) -> Response<AnswerBody> {
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let from_node = switches.then(|| hyper::upgrade::on(&mut response));
        if let (Some(client), Some(node)) = (upgrades, from_node) {
            self.tasks.spawn_on(join(client, node, held, self.stop.clone()), &self.runtime);
        }
        let (mut parts, body) = response.into_parts();
        remove_hop_headers(&mut parts.headers);
        if switches {
            add_upgrade(&mut parts.headers);
        }
        parts.version = Version::HTTP_11;
        Response::from_parts(parts, AnswerBody::new(body))
    }
}

/// Moves the bytes of an upgraded exchange until it ends, or a drain does.
async fn join(client: OnUpgrade, node: OnUpgrade, _held: Held, stop: CancellationToken) {
    let (client, node) = match tokio::try_join!(client, node) {
        Ok(ends) => ends,
        Err(error) => return tracing::debug!(%error, "an upgrade was not completed"),
    };
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    tokio::select! {
        moved = tokio::io::copy_bidirectional(&mut client, &mut node) => {
            if let Err(error) = moved {
                tracing::debug!(%error, "an upgraded connection ended early");
            }
        }
        () = stop.cancelled() => {}
    }
}

/// The head of a request that hyper has parsed, as bytes again.
fn head_of(request: &Request<Incoming>) -> Vec<u8> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let version = if request.version() == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut head = format!("{} {target} {version}\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        // No line end is in a value: hyper's parser ends it there, and takes no folded lines (RFC 9112 §5.2).
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// What the node is sent instead of what the client has sent.
fn rewrite(parts: &mut Parts, origin: Origin, upgrades: bool) {
    let headers = &mut parts.headers;
    remove_hop_headers(headers);
    headers.remove(header::EXPECT);
    let joined = |headers: &HeaderMap, name: &str| {
        let values: Vec<&str> =
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        (origin.trusted && !values.is_empty()).then(|| values.join(", ").into())
    };
    let forwarded_for = request::forwarded_for_value(joined(headers, "x-forwarded-for"), origin);
    let forwarded = request::forwarded_value(joined(headers, "forwarded"), origin);
    if !origin.trusted {
        for name in FORWARDING_HEADERS {
            headers.remove(name);
        }
    }
    // Values are made of what was a value before, addresses and words: always valid.
    for (name, value) in [("x-forwarded-for", forwarded_for), ("forwarded", forwarded)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let scheme = HeaderValue::from_static(origin.scheme());
    headers.entry("x-forwarded-proto").or_insert(scheme);
    if upgrades {
        add_upgrade(headers);
    }
    parts.version = Version::HTTP_11;
}

fn remove_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_HEADERS {
        headers.remove(name);
    }
}

fn add_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

fn refused(refusal: Refusal, spread: u64) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::from(refusal.problem()));
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
        self.0.release();
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").finish_non_exhaustive()
    }
}
