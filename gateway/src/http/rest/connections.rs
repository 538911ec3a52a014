//! Connections on whichever node they are: which there are, what they are subscribed to by the application, what it sends them,
//! and how long they last.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use bytes::Bytes;
use http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};
use tidegate_backplane::{Position, Target};
use tidegate_wire::json::JsonValue;
use utoipa::ToSchema;

use super::form::{ChannelName, EventName, TargetName, Whole, object, present};
use crate::{
    app::apps::AppId,
    auth::{ApiKey, ApiKeyError, Scope},
    http::{
        HttpState, access, body,
        error::ApiError,
        query::{self, Query},
    },
    node::{
        connection_state::ConnectionState,
        instruction::{Answers, Asked, Message, Owner, Since, What},
    },
};

/// Names and a position, each character escaped as `\uXXXX`, are below 8 KiB.
const ORDER_BYTES_MAX: usize = 8 * 1024;
/// Beside the payload of a message: the same.
const SEND_BYTES_BESIDE: usize = ORDER_BYTES_MAX;
/// Connections of one page: a node answers in at most 16 KiB, which is about so many.
const LIMIT_DEFAULT: usize = 50;
const LIMIT_MAX: usize = 100;

/// Subscribe a `user` or a `connection` to a channel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Subscribe)]
pub(in crate::http) struct SubscribeFields {
    /// All connections of this user.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256, example = "ada")]
    user: Option<TargetName>,
    /// One connection, as presence names it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256)]
    connection: Option<TargetName>,
    #[schema(inline)]
    channel: ChannelName,
    /// Where the client was in the channel: what followed is sent first.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, pattern = "^([0-9a-z]{1,12}|[0-2][0-9a-z]{12}|3[0-9a-v][0-9a-z]{11}):[0-9]{1,19}$", example = "k3:7")]
    since: Option<PositionText>,
}

/// Unsubscribe a `user` or a `connection` from a channel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Unsubscribe)]
pub(in crate::http) struct UnsubscribeFields {
    /// All connections of this user.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256, example = "ada")]
    user: Option<TargetName>,
    /// One connection, as presence names it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256)]
    connection: Option<TargetName>,
    #[schema(inline)]
    channel: ChannelName,
}

/// Have the connections of a `user`, or a `connection`, last until `expires_at`, or end now because they have `expired`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Refresh)]
pub(in crate::http) struct RefreshFields {
    /// All connections of this user.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256, example = "ada")]
    user: Option<TargetName>,
    /// One connection, as presence names it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256)]
    connection: Option<TargetName>,
    /// Seconds since 1970, in place of what the token says.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u64>, nullable = false, minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    expires_at: Option<Whole>,
    /// In place of `expires_at`.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    expired: Option<bool>,
}

/// Send something to the connections of a `user`, or to a `connection`, that is no publication of a channel.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Send)]
pub(in crate::http) struct SendFields<'a> {
    /// All connections of this user.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256, example = "ada")]
    user: Option<TargetName>,
    /// One connection, as presence names it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false, min_length = 1, max_length = 256)]
    connection: Option<TargetName>,
    /// The payload: the text of a string, or the JSON text of anything else.
    #[serde(borrow)]
    #[schema(value_type = serde_json::Value)]
    data: JsonValue<'a>,
    /// Its name, where the client's protocol has a place for one.
    #[schema(value_type = Option<String>, pattern = r"^[^\u0000-\u001F\u007F-\u009F]{1,200}$", min_length = 1, max_length = 200)]
    event: Option<EventName>,
}

#[derive(Debug)]
struct PositionText(Position);

/// What came of it. The nodes are asked and have 2 s to answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Instructed {
    /// Connections that were reached and do it.
    #[schema(minimum = 0, example = 2)]
    connections: u64,
    /// Connections that were reached and cannot: they are subscribed already, or not; they have as many subscriptions as they
    /// may; their protocol has no words for it. Their nodes count the reasons in `tidegate_instructions_total`.
    #[schema(minimum = 0, example = 0)]
    refused: u64,
    /// Nodes that have answered.
    #[schema(minimum = 0, example = 3)]
    nodes: usize,
    /// Nodes that have not answered in time, and may have done it all the same.
    silent: Vec<Box<str>>,
}

/// A page of the connections that are open on all nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ConnectionList {
    connections: Vec<Connection>,
    /// Pass it as `after` for the next page; null at the end.
    #[schema(required = true)]
    next: Option<String>,
    /// Nodes that have answered.
    #[schema(minimum = 0, example = 3)]
    nodes: usize,
    /// Nodes that have not answered within 2 s: their connections are not in the list.
    silent: Vec<Box<str>>,
}

/// An open connection.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Connection {
    /// As presence names it.
    #[schema(example = "gateway-0.k3-1-20-7")]
    connection: String,
    #[schema(example = "gateway-0")]
    node: String,
    /// What it speaks: raw, sse, pusher or centrifuge.
    #[schema(example = "raw")]
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "ada")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    app: Option<String>,
    /// Seconds since it was accepted.
    #[schema(minimum = 0)]
    connected_s: u64,
    /// The first 20 of the channels that it is subscribed to.
    channels: Vec<String>,
    /// How many those are.
    #[schema(minimum = 0)]
    subscriptions: u64,
}

/// Subscribe connections to a channel
///
/// Whatever their clients may by themselves. A client that is not connected now is not subscribed when it comes.
#[utoipa::path(
    post, path = "/v1/subscribe", operation_id = "subscribe", tag = "admin",
    request_body(content = SubscribeFields, example = json!({"user": "ada", "channel": "news"})),
    responses((status = 200, description = "What came of it.", body = Instructed)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn subscribe(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Json<Instructed>, ApiError> {
    let order = Order::read(&state, request, ORDER_BYTES_MAX).await?;
    let (target, channel, since) = body::parse::<SubscribeOrder>(&order.body)?.0;
    let since = since.map(|at| Since { epoch: at.epoch.to_string().into(), offset: at.offset });
    let channel = order.channel(&state, channel)?;
    order.give(&state, target, What::Subscribe { channel, since, data: "".into(), info: None }).await
}

/// Unsubscribe connections from a channel
#[utoipa::path(
    post, path = "/v1/unsubscribe", operation_id = "unsubscribe", tag = "admin",
    request_body(content = UnsubscribeFields, example = json!({"user": "ada", "channel": "news"})),
    responses((status = 200, description = "What came of it.", body = Instructed)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn unsubscribe(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Json<Instructed>, ApiError> {
    let order = Order::read(&state, request, ORDER_BYTES_MAX).await?;
    let (target, channel) = body::parse::<UnsubscribeOrder>(&order.body)?.0;
    let channel = order.channel(&state, channel)?;
    order.give(&state, target, What::Unsubscribe { channel }).await
}

/// Set when connections end
///
/// In place of when their tokens expire; or end them now, as if those had.
#[utoipa::path(
    post, path = "/v1/refresh", operation_id = "refresh", tag = "admin",
    request_body(content = RefreshFields, example = json!({"user": "ada", "expires_at": 1_893_456_000})),
    responses((status = 200, description = "What came of it.", body = Instructed)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn refresh(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Json<Instructed>, ApiError> {
    let order = Order::read(&state, request, ORDER_BYTES_MAX).await?;
    let (target, what) = body::parse::<RefreshOrder>(&order.body)?.0;
    order.give(&state, target, what).await
}

/// Send something to connections
///
/// In the words of each client's protocol; docs/protocols.md has them. It is no publication: it has no channel, is in no
/// history and is not sent again.
#[utoipa::path(
    post, path = "/v1/send", operation_id = "send", tag = "admin",
    request_body(content = SendFields, example = json!({"user": "ada", "event": "invoice", "data": {"id": 7}})),
    responses((status = 200, description = "What came of it.", body = Instructed)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn send(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Json<Instructed>, ApiError> {
    let max = state.node.limits().payload_bytes_max;
    // Each byte of a payload may come as `\u00XX`.
    let order = Order::read(&state, request, SEND_BYTES_BESIDE + 6 * max).await?;
    let (target, message) = body::parse::<SendOrder>(&order.body)?.0;
    let bytes = message.data.len();
    if bytes > max {
        return Err(ApiError::PayloadTooLarge { bytes, max });
    }
    order.give(&state, target, What::Send(message)).await
}

/// List connections
///
/// Those that are open on all nodes, in the order of their names; of a user, and those that are subscribed to a channel, where
/// these are named. A page ends early where a node's part of it is larger than 16 KiB.
#[utoipa::path(
    get, path = "/v1/connections", operation_id = "listConnections", tag = "admin",
    params(
        ("user" = Option<String>, Query, description = "Only those of this user.", min_length = 1, max_length = 256),
        ("channel" = Option<String>, Query, description = "Only those that are subscribed to this channel.", max_length = 200, pattern = "^[A-Za-z0-9_=@,.;:#/$-]{1,200}$"),
        ("after" = Option<String>, Query, description = "Only connections after this one.", min_length = 1, max_length = 256),
        ("limit" = Option<usize>, Query, description = "At most so many; 50 unless given.", minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "A page of connections.", body = ConnectionList)),
    security(("api_key" = ["admin"])),
)]
pub(in crate::http) async fn list_connections(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<ConnectionList>, ApiError> {
    let key = access::authorize(&state, &headers, Scope::Admin, None)?;
    let query = Query::parse(&uri, &["user", "channel", "after", "limit"])?;
    let app = key.app().map(AppId::as_str);
    let user = query::name(&query, "user")?;
    let target = match (user, query.get("channel")) {
        (_, Some(name)) => {
            let channel = query::channel(name)?;
            key.check(Scope::Admin, Some(&channel)).map_err(|error| access::refuse(&state, error))?;
            Target::Channel(AppId::channel(app, channel.name())?)
        }
        (Some(user), None) => Target::User { app: app.map(Box::from), user: user.into() },
        (None, None) => Target::Everyone { app: app.map(Box::from) },
    };
    let owner = user.map(|user| Owner { app: app.map(Box::from), user: user.into() });
    let limit = query.limit("limit", LIMIT_DEFAULT, LIMIT_MAX)?;
    let what = What::List { after: query::name(&query, "after")?.map(Box::from), limit };
    let Answers { answer, nodes, silent } = state.node.ask(Asked { target, owner, what }).await?;
    let next = answer.connections.last().filter(|_| answer.more).map(|last| last.name.clone());
    let connections = answer.connections.into_iter().map(Connection::from).collect();
    Ok(Json(ConnectionList { connections, next, nodes, silent }))
}

/// A request that was let in.
pub(super) struct Order {
    pub(super) key: Arc<ApiKey>,
    pub(super) body: Bytes,
}

impl Order {
    pub(super) async fn read(state: &HttpState, request: Request, max: usize) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let key = access::authorize(state, &parts.headers, Scope::Admin, None)?;
        Query::parse(&parts.uri, &[])?;
        body::require_json(&parts.headers)?;
        Ok(Self { key, body: body::read(body, max).await? })
    }

    /// The name of a channel that the key holds for. Each connection has it in its own app.
    fn channel(&self, state: &HttpState, channel: ChannelName) -> Result<Box<str>, ApiError> {
        match self.key.covers(&channel.0) {
            true => Ok(channel.0.name().into()),
            false => Err(access::refuse(state, ApiKeyError::Channel)),
        }
    }

    async fn give(
        &self,
        state: &HttpState,
        target: Target,
        what: What,
    ) -> Result<Json<Instructed>, ApiError> {
        let target = of_key(state, &self.key, target)?;
        let Answers { answer, nodes, silent } = state.node.ask(Asked { target, owner: None, what }).await?;
        Ok(Json(Instructed { connections: answer.done, refused: answer.not_done, nodes, silent }))
    }
}

/// A user is one of the key's app. A connection's app is known on its node only, so a key of an app names none.
pub(super) fn of_key(state: &HttpState, key: &ApiKey, mut target: Target) -> Result<Target, ApiError> {
    match (&mut target, key.app()) {
        (Target::User { app, .. }, of_key) => *app = of_key.map(|app| app.as_str().into()),
        (_, None) => {}
        (_, Some(_)) => return Err(access::refuse(state, ApiKeyError::Connection)),
    }
    Ok(target)
}

/// The one that is named.
pub(super) fn target(
    user: Option<TargetName>,
    connection: Option<TargetName>,
) -> Result<Target, &'static str> {
    match (user, connection) {
        (Some(user), None) => Ok(Target::User { app: None, user: user.0 }),
        (None, Some(connection)) => Ok(Target::Connection(connection.0)),
        _ => Err("name either `user` or `connection`"),
    }
}

/// Makes a type that is read as the members of another, which have to fit together.
macro_rules! order {
    ($name:ident($($of:ty),+) from $fields:ty, $finish:expr) => {
        struct $name(($($of),+));

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                object(deserializer, |fields: $fields| $finish(fields).map(Self))
            }
        }
    };
}

order!(SubscribeOrder(Target, ChannelName, Option<Position>) from SubscribeFields, |fields: SubscribeFields| {
    let SubscribeFields { user, connection, channel, since } = fields;
    Ok((target(user, connection)?, channel, since.map(|since| since.0)))
});
order!(UnsubscribeOrder(Target, ChannelName) from UnsubscribeFields, |fields: UnsubscribeFields| {
    Ok((target(fields.user, fields.connection)?, fields.channel))
});
order!(RefreshOrder(Target, What) from RefreshFields, |fields: RefreshFields| {
    let what = match (fields.expires_at, fields.expired) {
        (Some(at), None) => What::Refresh { expires_at: Some(at.0) },
        (None, Some(true)) => What::Expire,
        _ => return Err("say either `expires_at` or `expired: true`"),
    };
    Ok((target(fields.user, fields.connection)?, what))
});
order!(SendOrder(Target, Message) from SendFields<'de>, |fields: SendFields<'_>| {
    let event = fields.event.map(|event| event.0);
    let data = fields.data.into_text().into();
    Ok((target(fields.user, fields.connection)?, Message { event, data }))
});

impl<'de> Deserialize<'de> for PositionText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| serde::de::Error::custom("a position has the form EPOCH:OFFSET"))
    }
}

impl From<ConnectionState> for Connection {
    fn from(state: ConnectionState) -> Self {
        let ConnectionState { name, node, protocol, user, app, connected_s, channels, subscriptions, .. } =
            state;
        let protocol = protocol.unwrap_or_default();
        Self { connection: name, node, protocol, user, app, connected_s, channels, subscriptions }
    }
}
