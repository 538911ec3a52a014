//! The REST API under `/v1`: its routes, and what its handlers share.

mod admin;
mod channels;
mod connections;
mod form;
mod many;
pub(super) mod publish;

use axum::{
    Router,
    routing::{get, post},
};
use http::{HeaderMap, Uri};
use tidegate_backplane::Channel;

pub(crate) use self::many::publish_all;
pub(super) use self::{admin::*, channels::*, connections::*, many::*};
use super::{HttpState, access, error::ApiError, query};
use crate::{app::apps::AppId, auth::Scope};

/// Where the path of one channel begins.
const CHANNELS: &str = "/v1/channels/";

pub(super) fn routes() -> Router<HttpState> {
    Router::new()
        .route("/v1/channels/{channel}/publish", post(publish::publish))
        .route("/v1/publish", post(publish_many))
        .route("/v1/batch", post(publish_batch))
        .route("/v1/channels", get(list_channels))
        .route("/v1/channels/{channel}", get(get_channel))
        .route("/v1/channels/{channel}/history", get(get_history))
        .route("/v1/channels/{channel}/presence", get(get_presence))
        .route("/v1/disconnect", post(disconnect))
        .route("/v1/subscribe", post(subscribe))
        .route("/v1/unsubscribe", post(unsubscribe))
        .route("/v1/refresh", post(refresh))
        .route("/v1/send", post(send))
        .route("/v1/connections", get(list_connections))
        .route("/v1/nodes", get(list_nodes))
}

/// The channel of a path under [`CHANNELS`], after its key was checked. Without a valid key nobody is told
/// whether a name is valid.
fn admitted_channel(
    state: &HttpState,
    headers: &HeaderMap,
    scope: Scope,
    uri: &Uri,
) -> Result<Channel, ApiError> {
    let segment =
        uri.path().strip_prefix(CHANNELS).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match query::channel(segment) {
        Ok(channel) => {
            let key = access::authorize(state, headers, scope, Some(&channel))?;
            Ok(AppId::channel(key.app().map(AppId::as_str), channel.name())?)
        }
        Err(error) => access::authorize(state, headers, scope, None).and(Err(error)),
    }
}
