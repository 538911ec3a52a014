//! The internal port: metrics, probes and drain. It is not for the public network and asks for no key.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{AppendHeaders, IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::AbortHandle};
use tower::ServiceExt as _;

use crate::{hosts::InternalAccess, http::poll_served, metrics::to_prometheus, tls::Link};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A process that the internal port is about.
pub trait Operated: Send + Sync + 'static {
    /// All families in the OpenMetrics text format.
    fn openmetrics(&self) -> String;

    /// Why no new work should come here, one sentence each; empty when it should.
    fn not_ready(&self) -> Vec<String>;

    /// What does not work though the rest does, one sentence each.
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether what is published here reaches nobody elsewhere, so that a second such process beside it is a mistake.
    fn stands_alone(&self) -> bool {
        false
    }

    /// Begins to drain; more calls change nothing.
    fn drain(&self);

    /// Has another process take this one's place, with its connections, or says why not, in a sentence.
    fn upgrade(&self) -> Upgrading {
        Box::pin(async { Err("this process cannot hand its connections on; restart it".to_owned()) })
    }

    /// Who may use the internal port.
    fn internal_access(&self) -> &InternalAccess;

    /// The answer to a web page that asks for a drain: 403 in the form that the process has for errors.
    fn refuse_page(&self) -> Response;
}

/// What becomes of that.
pub type Upgrading = Pin<Box<dyn Future<Output = Result<Upgraded, String>> + Send>>;

/// What `/upgrade` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// That serves from now on.
    pub process: u32,
    /// Milliseconds in which nobody was served.
    pub paused_ms: u64,
}

/// How a process is upgraded, which is known when all of it stands.
#[derive(Default)]
pub struct Upgrade(OnceLock<Box<dyn Fn() -> Upgrading + Send + Sync>>);

impl Upgrade {
    pub fn offer(&self, upgrade: impl Fn() -> Upgrading + Send + Sync + 'static) {
        self.0.get_or_init(|| Box::new(upgrade));
    }

    pub fn begin(&self) -> Upgrading {
        match self.0.get() {
            Some(upgrade) => upgrade(),
            None => Box::pin(async { Err("this process has just begun; try again".to_owned()) }),
        }
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    /// What does not work, though the process is ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
}

type Process = State<Arc<dyn Operated>>;

/// Who a request came from. One that came over no socket has none.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// Connections at once: probes, a few scrapers, a person. Each costs a descriptor that a client could have.
const CONNECTIONS_MAX: usize = 64;

/// How long a head may take, and the pause between two requests. Scrapers that come less often connect anew.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long after an accept that failed, for want of descriptors above all, the next one is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the internal port, and never returns. Of more connections than a few the oldest is closed: whoever opens many
/// takes no descriptors from clients, and no probe its answer.
pub async fn serve(listener: TcpListener, router: Router) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the internal port could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() == CONNECTIONS_MAX {
            tracing::warn!(%peer, max = CONNECTIONS_MAX, "the internal port closes its oldest connection for a new one");
            open.pop_front().inspect(AbortHandle::abort);
        }
        let router = router.clone();
        let connection = tokio::spawn(async move {
            if let Err(error) = serve_connection(socket, peer, router).await {
                tracing::debug!(%error, %peer, "a connection to the internal port ended early");
            }
        });
        open.push_back(connection.abort_handle());
    }
}

async fn serve_connection(
    socket: tokio::net::TcpStream,
    peer: SocketAddr,
    router: Router,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        router.clone().oneshot(request)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service);
    let served = poll_fn(|cx| poll_served(&mut connection, cx)).await;
    // The body of a request that was refused may still be on its way.
    Link::Plain(connection.into_parts().io.into_inner()).end_with(&[]).await;
    served
}

/// In the answers to probes of a process that stands alone: `true`.
pub const ALONE: &str = "tidegate-alone";

/// The header of a process that stands alone.
fn alone(process: &dyn Operated) -> AppendHeaders<Option<(&'static str, &'static str)>> {
    AppendHeaders(process.stands_alone().then_some((ALONE, "true")))
}

/// The routes of the internal port, without a fallback.
pub fn routes(process: Arc<dyn Operated>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/drain", post(drain))
        .route("/upgrade", post(upgrade))
        .layer(middleware::from_fn_with_state(Arc::clone(&process), check_host))
        .with_state(process)
}

/// The probes without details, for a public port: `/livez` and `/readyz`.
pub fn public_routes<S: Clone + Send + Sync + 'static>(process: Arc<dyn Operated>) -> Router<S> {
    Router::new().route("/livez", get(livez)).route("/readyz", get(public_readyz)).with_state(process)
}

/// OpenMetrics for who asks for it, as Prometheus does; else the older text format, which everybody reads.
async fn metrics(State(process): Process, headers: HeaderMap) -> Response {
    let openmetrics = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    let text = process.openmetrics();
    let (kind, text) = if openmetrics { (OPENMETRICS, text) } else { (PROMETHEUS, to_prometheus(&text)) };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The process answers, so it lives; draining or without a backplane it must not be restarted.
async fn livez(State(process): Process) -> impl IntoResponse {
    (alone(&*process), "ok\n")
}

async fn readyz(State(process): Process) -> impl IntoResponse {
    let reasons = process.not_ready();
    let ready = reasons.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = alone(&*process);
    (status, headers, Json(Readiness { ready, reasons, missing: process.missing() }))
}

async fn public_readyz(State(process): Process) -> impl IntoResponse {
    public_readiness(&*process)
}

/// Whether new connections should come here, and not why not.
pub fn public_readiness(process: &dyn Operated) -> Response {
    let (status, text) = match process.not_ready().is_empty() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    (status, alone(process), text).into_response()
}

/// Begins the drain; a second call changes nothing.
///
/// For who is on this machine, or in this container, or knows the token: from anywhere else a process is told to stop by
/// what runs it. A web page can make a browser on this machine post here. Browsers say so with `Origin`; whoever drains a
/// process does not use a page.
async fn drain(State(process): Process, request: Request) -> Response {
    if let Err(refused) = may_end(&*process, &request) {
        return *refused;
    }
    process.drain();
    StatusCode::ACCEPTED.into_response()
}

/// For the same. Answered when another process serves, with its id, or with the reason why none does: 409.
async fn upgrade(State(process): Process, request: Request) -> Response {
    if let Err(refused) = may_end(&*process, &request) {
        return *refused;
    }
    match process.upgrade().await {
        Ok(upgraded) => Json(upgraded).into_response(),
        Err(why) => (StatusCode::CONFLICT, why + "\n").into_response(),
    }
}

fn may_end(process: &dyn Operated, request: &Request) -> Result<(), Box<Response>> {
    if request.headers().contains_key(header::ORIGIN) {
        return Err(Box::new(process.refuse_page()));
    }
    let is_local = |Peer(address): &Peer| address.ip().to_canonical().is_loopback();
    let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if !request.extensions().get::<Peer>().is_none_or(is_local)
        && !process.internal_access().may_drain(authorization.unwrap_or_default())
    {
        let text = "a drain is begun from this machine, with the token of drain.token_file, or by SIGTERM\n";
        return Err(Box::new((StatusCode::FORBIDDEN, text).into_response()));
    }
    Ok(())
}

/// Keeps out pages whose name was rebound to this address: they are of the port's own origin, and name their own host.
async fn check_host(State(process): Process, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    if process.internal_access().allows_host(&String::from_utf8_lossy(host)) {
        return next.run(request).await;
    }
    let text =
        "this port is reached by an address, by a name inside the network, or by one of internal_hosts\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    #[derive(Default)]
    struct Process(AtomicBool, InternalAccess);

    impl Operated for Process {
        fn openmetrics(&self) -> String {
            "# EOF\n".to_owned()
        }
        fn not_ready(&self) -> Vec<String> {
            Vec::new()
        }
        fn drain(&self) {
            self.0.store(true, Ordering::Release);
        }
        fn internal_access(&self) -> &InternalAccess {
            &self.1
        }
        fn refuse_page(&self) -> Response {
            StatusCode::FORBIDDEN.into_response()
        }
    }

    async fn ask(router: &Router, peer: &str) -> StatusCode {
        ask_with(router, peer, &[]).await
    }

    async fn ask_with(router: &Router, peer: &str, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = Request::post("/drain");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer(peer.parse().unwrap()));
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_drain_is_begun_on_this_machine_only() {
        let process = Arc::new(Process::default());
        let router = routes(Arc::clone(&process) as Arc<dyn Operated>);
        for peer in ["10.0.0.7:1", "[2001:db8::1]:1"] {
            assert_eq!(ask(&router, peer).await, StatusCode::FORBIDDEN, "{peer}");
        }
        assert!(!process.0.load(Ordering::Acquire));
        for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(ask(&router, peer).await, StatusCode::ACCEPTED, "{peer}");
        }
    }

    #[tokio::test]
    async fn who_knows_the_token_drains_from_elsewhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "drain-me-please\n").unwrap();
        let access = InternalAccess::new(&[], Some(file.path())).unwrap();
        let process = Arc::new(Process(AtomicBool::new(false), access));
        let router = routes(Arc::clone(&process) as Arc<dyn Operated>);
        for wrong in ["", "Bearer ", "Bearer drain-me", "drain-me-please", "Basic drain-me-please"] {
            let status = ask_with(&router, "10.0.0.7:1", &[("authorization", wrong)]).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{wrong}");
        }
        let right = ("authorization", "Bearer drain-me-please");
        let page = [right, ("origin", "https://evil.example")];
        assert_eq!(ask_with(&router, "10.0.0.7:1", &page).await, StatusCode::FORBIDDEN);
        assert!(!process.0.load(Ordering::Acquire));
        assert_eq!(ask_with(&router, "10.0.0.7:1", &[right]).await, StatusCode::ACCEPTED);
    }

    #[tokio::test]
    async fn a_name_from_outside_reaches_nothing() {
        let process = Arc::new(Process::default());
        let router = routes(Arc::clone(&process) as Arc<dyn Operated>);
        let rebound = [("host", "rebound.example:9000")];
        assert_eq!(ask_with(&router, "127.0.0.1:1", &rebound).await, StatusCode::MISDIRECTED_REQUEST);
        for path in ["/metrics", "/readyz", "/livez"] {
            let request = Request::get(path).header("host", "rebound.example").body(Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        }
        assert!(!process.0.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn who_opens_many_connections_takes_neither_descriptors_nor_the_answers_of_probes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, routes(Arc::new(Process::default()))));
        let probe = async || {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\nGET /li").await.unwrap();
            let mut answer = [0; 15];
            socket.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            socket
        };
        // Each has half a head more under way.
        let mut held = Vec::new();
        for _ in 0..=CONNECTIONS_MAX {
            held.push(probe().await);
        }
        // The first was closed for the last, without a word, whichever way the kernel says so.
        let mut rest = Vec::new();
        let read = held[0].read_to_end(&mut rest).await;
        assert!(read.is_err() || rest.ends_with(b"ok\n"), "{read:?} {}", rest.escape_ascii());
        serving.abort();
    }
}
