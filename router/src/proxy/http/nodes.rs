//! Connections to nodes that carry one request after the other.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Uri;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tidegate_wire::proxy_v2::Addresses;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tower::Service;

use super::body::Lent;

/// Sends requests over its own kept connections.
pub(super) type NodeClient = Client<NodeConnector, Lent>;

/// Whose connections a request uses.
#[derive(Debug)]
pub(super) struct Nodes {
    connector: HttpConnector,
    /// For all clients. `None`: connections begin with the client's name, so that each carries requests of one client.
    shared: Option<NodeClient>,
}

/// The connections for one client's connection; empty where they are shared.
///
/// They end with it: a gateway counts them as connections of that client, which has no more of them on a gateway than
/// it has connections here.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<(SocketAddr, NodeClient)>>);

/// Makes connections that begin with `header`.
#[derive(Debug, Clone)]
pub(super) struct NodeConnector {
    http: HttpConnector,
    header: Bytes,
}

/// Connections to one node that are kept for the next request. A gateway keeps an unused one for 75 s.
const IDLE_PER_NODE: usize = 32;
const IDLE_MAX: Duration = Duration::from_secs(30);

impl Nodes {
    pub(super) fn new(connect_timeout: Duration, proxy_protocol: bool) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect_timeout));
        let shared = (!proxy_protocol).then(|| client(connector.clone(), Bytes::new()));
        Self { connector, shared }
    }

    /// For a request of a client that came to `addresses.destination`. A proxy may send requests of several clients over
    /// one connection; then what is kept is of the last of them.
    pub(super) fn client(&self, kept: &Kept, addresses: Addresses) -> NodeClient {
        if let Some(shared) = &self.shared {
            return shared.clone();
        }
        let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((source, client)) if *source == addresses.source => client.clone(),
            _ => {
                let mut header = Vec::new();
                addresses.write(&mut header);
                let client = client(self.connector.clone(), header.into());
                *kept = Some((addresses.source, client.clone()));
                client
            }
        }
    }
}

fn client(http: HttpConnector, header: Bytes) -> NodeClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(IDLE_PER_NODE)
        .build(NodeConnector { http, header })
}

impl Service<Uri> for NodeConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.http.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, node: Uri) -> Self::Future {
        let (connecting, header) = (self.http.call(node), self.header.clone());
        Box::pin(async move {
            let mut socket = connecting.await.map_err(io::Error::other)?;
            socket.inner_mut().write_all(&header).await?;
            Ok(socket)
        })
    }
}
