//! What can be read of channels: the list, one channel, its history, who is present.

use axum::{Json, extract::State};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Uri};
use serde::Serialize;
use serde_json::value::RawValue;
use tidegate_backplane::{HistoryQuery, Member, Payload, Publication};
use utoipa::ToSchema;

use super::{admitted_channel, form::ChannelName, publish::EpochText};
use crate::{
    app::apps::AppId,
    auth::Scope,
    http::{HttpState, access, error::ApiError, query::Query},
    node::member_info,
};

/// Channels or publications in one answer, unless the request says otherwise, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// A page of the channels that have subscribers on this node.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChannelList {
    /// The node that answers. What has subscribers on other nodes only is not in the list.
    #[schema(example = "gateway-0")]
    node: String,
    channels: Vec<ListedChannel>,
    /// Pass it as `after` for the next page; null at the end.
    #[schema(required = true, example = "news")]
    next: Option<String>,
}

/// One channel of the list.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ListedChannel {
    #[schema(example = "news")]
    channel: String,
    /// Subscriptions on this node.
    #[schema(minimum = 0, example = 3)]
    subscribers: u64,
}

/// One channel on the node that answers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChannelState {
    /// The node that answers.
    #[schema(example = "gateway-0")]
    node: String,
    #[schema(example = "news")]
    channel: String,
    /// Subscriptions on this node; those on other nodes are not counted.
    #[schema(minimum = 0, example = 3)]
    subscribers: u64,
}

/// A part of a channel's history, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HistoryAnswer {
    publications: Vec<HistoryEntry>,
    /// Epoch of the newest publication; null when there is none.
    #[schema(value_type = Option<String>, required = true, pattern = "^[0-9a-z]{1,13}$", example = "k3")]
    epoch: Option<EpochText>,
    /// Offset of the newest publication; null when there is none.
    #[schema(required = true, minimum = 0, example = 7)]
    offset: Option<u64>,
    /// With `since`: whether what followed it is here without a hole, up to `limit`.
    continuous: bool,
}

/// One publication of the past. It has `data` when it is text, and `data_base64` when it is binary.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HistoryEntry {
    #[schema(value_type = Option<String>, required = true, pattern = "^[0-9a-z]{1,13}$", example = "k3")]
    epoch: Option<EpochText>,
    #[schema(required = true, minimum = 1, example = 7)]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    event: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "hello")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    data_base64: Option<String>,
}

/// Who is in a channel, on all nodes.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PresenceAnswer {
    members: Vec<PresenceMember>,
}

/// A connection of a user in a channel.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PresenceMember {
    #[schema(example = "node-1.7")]
    connection: String,
    #[schema(example = "ada")]
    user: String,
    /// What the user's token says of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>, nullable = false)]
    info: Option<Box<RawValue>>,
}

/// List channels
///
/// Channels with a subscriber on the node that answers, which it names, in order of their names. Channels that the API key does not hold
/// for are left out.
#[utoipa::path(
    get, path = "/v1/channels", operation_id = "listChannels", tag = "channels",
    params(
        ("prefix" = Option<String>, Query, description = "Only channels whose names begin so.", max_length = 200, pattern = "^[A-Za-z0-9_=@,.;:#/$-]{0,200}$"),
        ("after" = Option<String>, Query, description = "Only channels after this one.", max_length = 200, pattern = "^[A-Za-z0-9_=@,.;:#/$-]{0,200}$"),
        ("limit" = Option<usize>, Query, description = "At most so many; 100 unless given.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "A page of channels.", body = ChannelList)),
    security(("api_key" = ["read"])),
)]
pub(in crate::http) async fn list_channels(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<ChannelList>, ApiError> {
    let key = access::authorize(&state, &headers, Scope::Read, None)?;
    let query = Query::parse(&uri, &["prefix", "after", "limit"])?;
    let prefix = query.channel_part("prefix")?.unwrap_or_default();
    let after = query.channel_part("after")?;
    let limit = query.limit("limit", LIMIT_DEFAULT, LIMIT_MAX)?;
    let found = state.node.channels(key.app().map(AppId::as_str), prefix, after, limit);
    // A full page may have a next one, whatever the key hides of this one.
    let next = found.last().filter(|_| found.len() == limit).map(|last| last.name.name().to_owned());
    let channels = found
        .into_iter()
        .filter(|channel| key.covers(&channel.name))
        .map(|channel| ListedChannel {
            channel: channel.name.name().to_owned(),
            subscribers: channel.subscribers,
        })
        .collect();
    Ok(Json(ChannelList { node: state.node.name().to_owned(), channels, next }))
}

/// Read one channel
///
/// Its subscribers on the node that answers, which it names: ask every node of `GET /v1/nodes` for the sum. A
/// channel without subscribers is no error: any valid name is a channel.
#[utoipa::path(
    get, path = "/v1/channels/{channel}", operation_id = "getChannel", tag = "channels",
    params(("channel" = inline(ChannelName), Path, description = "Channel name, percent-encoded.", example = "news")),
    responses((status = 200, description = "The channel.", body = ChannelState)),
    security(("api_key" = ["read"])),
)]
pub(in crate::http) async fn get_channel(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<ChannelState>, ApiError> {
    let channel = admitted_channel(&state, &headers, Scope::Read, &uri)?;
    Query::parse(&uri, &[])?;
    let subscribers = state.node.subscribers(&channel);
    let (node, channel) = (state.node.name().to_owned(), channel.name().to_owned());
    Ok(Json(ChannelState { node, channel, subscribers }))
}

/// Read a channel's history
///
/// Without `since` the newest publications; with it the oldest of those that followed.
#[utoipa::path(
    get, path = "/v1/channels/{channel}/history", operation_id = "getHistory", tag = "channels",
    params(
        ("channel" = inline(ChannelName), Path, description = "Channel name, percent-encoded.", example = "news"),
        ("since" = Option<String>, Query, description = "Only what came after this position, EPOCH:OFFSET.", pattern = "^([0-9a-z]{1,12}|[0-2][0-9a-z]{12}|3[0-9a-v][0-9a-z]{11}):[0-9]{1,19}$", example = "k3:7"),
        ("limit" = Option<usize>, Query, description = "At most so many; 100 unless given.", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "A part of the history.", body = HistoryAnswer)),
    security(("api_key" = ["read"])),
)]
pub(in crate::http) async fn get_history(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<HistoryAnswer>, ApiError> {
    let channel = admitted_channel(&state, &headers, Scope::Read, &uri)?;
    let query = Query::parse(&uri, &["since", "limit"])?;
    let since = query.position("since")?;
    let limit = query.limit("limit", LIMIT_DEFAULT, LIMIT_MAX)?;
    let history = state.node.history(&channel, HistoryQuery { since, limit, bytes: usize::MAX }).await?;
    Ok(Json(HistoryAnswer {
        publications: history
            .publications
            .iter()
            .map(|publication| HistoryEntry::from(&**publication))
            .collect(),
        epoch: history.top.map(|top| EpochText(top.epoch)),
        offset: history.top.map(|top| top.offset),
        continuous: history.continuous,
    }))
}

/// Read who is in a channel
///
/// 404 where the channel's namespace keeps no presence.
#[utoipa::path(
    get, path = "/v1/channels/{channel}/presence", operation_id = "getPresence", tag = "channels",
    params(("channel" = inline(ChannelName), Path, description = "Channel name, percent-encoded.", example = "room:1")),
    responses((status = 200, description = "The members, in order of their connections.", body = PresenceAnswer)),
    security(("api_key" = ["read"])),
)]
pub(in crate::http) async fn get_presence(
    State(state): State<HttpState>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<PresenceAnswer>, ApiError> {
    let channel = admitted_channel(&state, &headers, Scope::Read, &uri)?;
    Query::parse(&uri, &[])?;
    let list = state.node.presence(&channel).await?.ok_or(ApiError::PresenceOff)?;
    Ok(Json(PresenceAnswer { members: list.members.iter().map(|member| (&**member).into()).collect() }))
}

impl From<&Publication> for HistoryEntry {
    fn from(publication: &Publication) -> Self {
        let text = match &publication.payload {
            Payload::Text(text) => Some(&**text),
            Payload::Binary(_) => None,
        };
        Self {
            epoch: publication.position.map(|position| EpochText(position.epoch)),
            offset: publication.position.map(|position| position.offset),
            event: publication.event.as_deref().map(str::to_owned),
            data: text.map(str::to_owned),
            data_base64: text.is_none().then(|| STANDARD.encode(publication.payload.bytes())),
        }
    }
}

impl From<&Member> for PresenceMember {
    fn from(member: &Member) -> Self {
        Self {
            connection: member.connection.to_string(),
            user: member.user.to_string(),
            // The token's reader checked it; should it be no JSON after all, the member is shown without.
            info: member_info::of_connection(member)
                .and_then(|info| RawValue::from_string(info.to_owned()).ok()),
        }
    }
}
