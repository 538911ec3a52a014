//! HTTP/1.1 over a stream of our own: one request per connection.

use http::{Request, Response, header};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{STEP_TIMEOUT, answer::Answer, connect::Route, trouble::Trouble};

/// A path that no gateway has: it is answered 404 with a problem document that only Tidegate writes, in any
/// configuration, and costs nothing.
pub(super) const PLAIN_PATH: &str = "/v1/doctor";

pub(super) async fn plain(route: &Route) -> Result<Answer, Trouble> {
    let request = Request::get(route.target().path(PLAIN_PATH));
    let request = request.header(header::HOST, route.target().authority()).body(Empty::new());
    Ok(Answer::read(send(route, request.map_err(Trouble::Request)?).await?).await)
}

/// Sends a request over a new connection.
pub(super) async fn send(
    route: &Route,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Trouble> {
    let stream = TokioIo::new(route.open().await?.stream);
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the connection: when the response and what it was upgraded to are dropped.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await
    };
    match timeout(STEP_TIMEOUT, exchange).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(source)) => Err(Trouble::Http { source }),
        Err(_) => Err(Trouble::Silent),
    }
}
