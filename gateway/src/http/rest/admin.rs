//! For administrators: ending connections, and the nodes of the cluster.

use axum::{
    Json,
    extract::{Request, State},
};
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use tidegate_backplane::{NodeRecord, Target};
use utoipa::ToSchema;

use super::{
    connections::{Order, of_key, target},
    form::{TargetName, object, present},
};
use crate::{
    auth::Scope,
    http::{HttpState, access, body, error::ApiError, query::Query},
};

/// A reason of a close frame: 125 bytes of a control frame less the code (RFC 6455 section 5.5).
const REASON_BYTES_MAX: usize = 123;
/// Two names and a reason, each character escaped as `\uXXXX`, are below 4 KiB.
const DISCONNECT_BYTES_MAX: usize = 8 * 1024;
const REASON_DEFAULT: &str = "disconnected by the application";

/// Whom to disconnect: a `user` or a `connection`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Disconnect)]
pub(in crate::http) struct DisconnectFields {
    /// All connections of this user.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256, example = "ada")]
    user: Option<TargetName>,
    /// One connection, as presence names it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256)]
    connection: Option<TargetName>,
    /// Told to the client in the close frame.
    #[schema(value_type = Option<String>, max_length = 123, pattern = "^[ -~]{0,123}$")]
    reason: Option<Reason>,
}

/// [`DisconnectFields`] with exactly one target.
#[derive(Debug)]
struct Disconnect {
    target: Target,
    reason: Box<str>,
}

#[derive(Debug)]
struct Reason(Box<str>);

/// An order that was taken; the nodes carry it out.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Accepted {}

/// The nodes of the cluster, in order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NodeList {
    nodes: Vec<NodeState>,
}

/// What a node says of itself.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NodeState {
    #[schema(example = "gateway-0")]
    name: String,
    /// Where clients reach it.
    #[schema(example = "10.0.0.7:8000")]
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    zone: Option<String>,
    #[schema(example = "0.1.0")]
    version: String,
    #[schema(minimum = 0)]
    connections: u64,
    /// Connections it takes at most.
    #[schema(minimum = 0)]
    capacity: u64,
    draining: bool,
}

/// End the connections of a user, or one connection
///
/// The order goes to every node. A target that is not connected is no error.
#[utoipa::path(
    post, path = "/v1/disconnect", operation_id = "disconnect", tag = "admin",
    request_body(content = DisconnectFields, example = json!({"user": "ada", "reason": "signed out"})),
    responses((status = 202, description = "The order is on its way.", body = Accepted)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn disconnect(
    State(state): State<HttpState>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let order = Order::read(&state, request, DISCONNECT_BYTES_MAX).await?;
    let Disconnect { target, reason } = body::parse(&order.body)?;
    let target = of_key(&state, &order.key, target)?;
    state.node.disconnect(target, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted {})))
}

/// List the nodes of the cluster
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "listNodes", tag = "admin",
    responses((status = 200, description = "The nodes, in order of their names.", body = NodeList)),
    security(("api_key" = ["read"])),
)]
pub(in crate::http) async fn list_nodes(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<NodeList>, ApiError> {
    access::authorize(&state, &headers, Scope::Read, None)?;
    Query::parse(&uri, &[])?;
    let nodes = state.node.nodes().await?;
    Ok(Json(NodeList { nodes: nodes.into_iter().map(NodeState::from).collect() }))
}

impl<'de> Deserialize<'de> for Disconnect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer, |fields: DisconnectFields| {
            let DisconnectFields { user, connection, reason } = fields;
            let target = target(user, connection)?;
            Ok(Self { target, reason: reason.map_or_else(|| REASON_DEFAULT.into(), |reason| reason.0) })
        })
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reason = Box::<str>::deserialize(deserializer)?;
        let printable = reason.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if printable && reason.len() <= REASON_BYTES_MAX {
            return Ok(Self(reason));
        }
        Err(D::Error::custom(format_args!(
            "a reason has at most {REASON_BYTES_MAX} printable ASCII characters"
        )))
    }
}

impl From<NodeRecord> for NodeState {
    fn from(node: NodeRecord) -> Self {
        Self {
            name: node.name.into(),
            address: node.address.into(),
            zone: node.zone.map(Into::into),
            version: node.version.into(),
            connections: node.connections,
            capacity: node.capacity,
            draining: node.draining,
        }
    }
}
