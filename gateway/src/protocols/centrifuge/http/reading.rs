//! `presence`, `presence_stats`, `history`, `history_remove`, `channels` and `info`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::Serialize;
use tidegate_backplane::NodeRecord;
use tidegate_wire::centrifuge::{
    code::ErrorCode,
    message::{ClientInfo, HistoryRequest, Publication},
};

use super::{
    super::reading::{Wanted, clients, counts, publications, read_history},
    Answer, Call,
    answer::{Refused, parameters, result},
    nothing,
    request::{Channels, OfChannel},
};
use crate::{
    app::apps::AppId,
    auth::Scope,
    node::{channels::ChannelsError, roster::List},
};

/// Publications in one answer, as over `/v1`.
const HISTORY_MAX: usize = 1000;

/// Channels of one answer. More are paged through with `GET /v1/channels`, of one node after the other.
const CHANNELS_MAX: usize = 10_000;

/// Of a pattern, which each name of a node is held against.
const PATTERN_BYTES_MAX: usize = 256;

#[derive(Serialize)]
struct Presence {
    presence: BTreeMap<String, Client>,
}

/// Its user is said also where it is empty, since SDKs want one.
#[derive(Serialize)]
struct Client {
    user: String,
    #[serde(flatten)]
    others: ClientInfo,
}

#[derive(Serialize)]
struct History {
    publications: Vec<Publication>,
    epoch: String,
    offset: u64,
}

#[derive(Serialize)]
struct ChannelList {
    channels: BTreeMap<String, ChannelInfo>,
}

#[derive(Serialize)]
struct ChannelInfo {
    num_clients: u64,
}

#[derive(Serialize)]
struct Info {
    nodes: Vec<Node>,
}

#[derive(Serialize)]
struct Node {
    uid: Box<str>,
    name: Box<str>,
    version: Box<str>,
    num_clients: u64,
}

impl Call<'_> {
    pub(super) async fn presence(&self, params: &Bytes) -> Answer {
        let list = self.list(params).await?;
        let clients = clients(list.members.iter()).into_iter();
        result(&Presence { presence: clients.map(|(name, client)| (name, Client::from(client))).collect() })
    }

    pub(super) async fn presence_stats(&self, params: &Bytes) -> Answer {
        result(&counts(&self.list(params).await?.members))
    }

    async fn list(&self, params: &Bytes) -> Result<Arc<List>, Refused> {
        let OfChannel { channel } = parameters(params)?;
        let channel = self.channel(Scope::Read, &channel)?;
        let list = self.state.node.presence(&channel).await?;
        list.ok_or_else(|| Refused::because(ErrorCode::NotAvailable, "its namespace keeps no presence"))
    }

    /// Without a limit only where the channel stands.
    pub(super) async fn history(&self, params: &Bytes) -> Answer {
        let request: HistoryRequest = parameters(params)?;
        let channel = self.channel(Scope::Read, &request.channel)?;
        if self.state.node.namespaces().of(&channel).history().is_none() {
            return Err(Refused::because(ErrorCode::NotAvailable, "its namespace keeps no history"));
        }
        let unrecoverable =
            || Refused::because(ErrorCode::UnrecoverablePosition, "what followed is not kept any more");
        let wanted = Wanted::of(&request, HISTORY_MAX).map_err(|_| unrecoverable())?;
        let history = read_history(&self.state.node, &channel, wanted).await?;
        if !history.continuous {
            return Err(unrecoverable());
        }
        let (epoch, offset) = match history.top {
            Some(top) => (top.epoch.to_string(), top.offset),
            None => (String::new(), 0),
        };
        result(&History { publications: publications(&history), epoch, offset })
    }

    /// Nothing is kept of what was published so far.
    pub(super) async fn history_remove(&self, params: &Bytes) -> Answer {
        let OfChannel { channel } = parameters(params)?;
        let channel = self.channel(Scope::Admin, &channel)?;
        if self.state.node.namespaces().of(&channel).history().is_none() {
            return Err(Refused::because(ErrorCode::NotAvailable, "its namespace keeps no history"));
        }
        self.state.node.remove_history(&channel).await?;
        nothing()
    }

    /// Channels with subscribers on any node.
    pub(super) async fn channels(&self, params: &Bytes) -> Answer {
        let Channels { pattern } = parameters(params)?;
        self.check(Scope::Read, None)?;
        if pattern.contains(['[', ']', '{', '}', '\\', '!']) {
            return Err(Refused::bad("of patterns only * and ? are known"));
        }
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(Refused::bad(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes")));
        }
        let pattern = if pattern.is_empty() { "*" } else { &pattern };
        let found = self.state.node.channels_of_all(self.app(), pattern, CHANNELS_MAX).await;
        let found = found.map_err(|error| {
            let code = match error {
                ChannelsError::TooMany { .. } => ErrorCode::LimitExceeded,
                ChannelsError::Silent(_) | ChannelsError::Backplane(_) => ErrorCode::Internal,
            };
            Refused::because(code, error.to_string())
        })?;
        let covers =
            |name: &str| AppId::channel(self.app(), name).is_ok_and(|channel| self.key.covers(&channel));
        let fitting = found.into_iter().filter(|(name, _)| covers(name));
        let channels = fitting.map(|(name, num_clients)| (name.into(), ChannelInfo { num_clients }));
        result(&ChannelList { channels: channels.collect() })
    }

    pub(super) async fn info(&self) -> Answer {
        self.check(Scope::Read, None)?;
        let nodes = self.state.node.nodes().await?;
        result(&Info { nodes: nodes.into_iter().map(Node::from).collect() })
    }
}

impl From<ClientInfo> for Client {
    fn from(mut client: ClientInfo) -> Self {
        Self { user: std::mem::take(&mut client.user), others: client }
    }
}

impl From<NodeRecord> for Node {
    fn from(node: NodeRecord) -> Self {
        Self { uid: node.name.clone(), name: node.name, version: node.version, num_clients: node.connections }
    }
}
