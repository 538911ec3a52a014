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
    super::reading::{Wanted, counts, info, publications, read_history},
    Answer, Call,
    answer::{Refused, parameters, result},
    nothing,
    request::{Channels, OfChannel},
};
use crate::{auth::Scope, node::roster::List};

/// Publications in one answer, as over `/v1`.
const HISTORY_MAX: usize = 1000;

/// Channels that one answer is chosen from: those that begin as the pattern does. More are paged through with
/// `GET /v1/channels`; each page is a look at all channels of the node, so here it is one.
const CHANNELS_MAX: usize = 10_000;

#[derive(Serialize)]
struct Presence {
    presence: BTreeMap<String, ClientInfo>,
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
        result(&Presence { presence: list.members.iter().map(|member| info(member)).collect() })
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
        self.state.node.backplane().remove_history(&channel).await?;
        nothing()
    }

    /// Channels with subscribers on this node.
    pub(super) fn channels(&self, params: &Bytes) -> Answer {
        let Channels { pattern } = parameters(params)?;
        self.check(Scope::Read, None)?;
        if pattern.contains(['[', ']', '{', '}', '\\', '!']) {
            return Err(Refused::bad("of patterns only * and ? are known"));
        }
        let prefix = pattern.split(['*', '?']).next().unwrap_or_default();
        let found = self.state.node.channels(self.app(), prefix, None, CHANNELS_MAX + 1);
        if found.len() > CHANNELS_MAX {
            let why = format!(
                "more than {CHANNELS_MAX} channels begin with {prefix:?}: give more of their beginning"
            );
            return Err(Refused::because(ErrorCode::LimitExceeded, why));
        }
        let fitting = found.iter().filter(|it| self.key.covers(&it.name));
        let fitting = fitting.filter(|it| pattern.is_empty() || fits(&pattern, it.name.name()));
        let info = |subscribers| ChannelInfo { num_clients: subscribers };
        let channels = fitting.map(|it| (it.name.name().to_owned(), info(it.subscribers))).collect();
        result(&ChannelList { channels })
    }

    pub(super) async fn info(&self) -> Answer {
        self.check(Scope::Read, None)?;
        let nodes = self.state.node.nodes().await?;
        result(&Info { nodes: nodes.into_iter().map(Node::from).collect() })
    }
}

impl From<NodeRecord> for Node {
    fn from(node: NodeRecord) -> Self {
        Self { uid: node.name.clone(), name: node.name, version: node.version, num_clients: node.connections }
    }
}

/// Whether a name is of a pattern in which `*` stands for any characters and `?` for one. A name has at most 200, so going
/// back to the last star is cheap.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star_at, from)) = star else { return false };
                star = Some((star_at, from + 1));
                at = star_at + 1;
                read = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns() {
        for (pattern, name, expect) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("*c", "abcc", true),
            ("a*c*", "abd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*", "abc", true),
            ("**", "", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expect, "{pattern} {name}");
        }
    }
}
