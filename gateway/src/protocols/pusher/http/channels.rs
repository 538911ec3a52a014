//! What is in an app's channels, on all nodes: from presence.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tidegate_backplane::{Channel, HistoryQuery, Payload, Sums};
use tidegate_wire::pusher::{Access, ChannelKind};

use super::{Call, PusherError};

/// The attributes of a channel that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Info {
    pub(super) user_count: bool,
    pub(super) subscription_count: bool,
    pub(super) cache: bool,
}

/// What begins with it is not for clients: `#server-to-user-`, `#watch-`.
const INTERNAL: char = '#';

impl Info {
    /// From `user_count,subscription_count`.
    pub(super) fn parse(text: &str) -> Result<Self, PusherError> {
        let mut info = Self::default();
        for attribute in text.split(',').map(str::trim).filter(|attribute| !attribute.is_empty()) {
            match attribute {
                "user_count" => info.user_count = true,
                "subscription_count" => info.subscription_count = true,
                "cache" => info.cache = true,
                unknown => return Err(PusherError::UnknownInfo(unknown.chars().take(64).collect())),
            }
        }
        Ok(info)
    }

    /// Whether anybody has to be counted.
    pub(super) fn counts(self) -> bool {
        self.user_count || self.subscription_count
    }

    /// The counts that were asked for and that the channel has.
    pub(super) fn of(self, kind: ChannelKind, sums: Sums) -> Map<String, Value> {
        let mut attributes = Map::new();
        if self.user_count && kind.access == Access::Presence {
            attributes.insert("user_count".to_owned(), sums.users.into());
        }
        if self.subscription_count {
            attributes.insert("subscription_count".to_owned(), sums.subscriptions.into());
        }
        attributes
    }
}

#[derive(Debug, Serialize)]
struct UserId<'u> {
    id: &'u str,
}

impl Call<'_> {
    /// `GET /channels`
    pub(super) async fn channels(&self) -> Result<Bytes, PusherError> {
        self.take_read()?;
        let prefix = self.parameters.get("filter_by_prefix").unwrap_or_default();
        let info = self.info()?;
        if info.user_count && !prefix.starts_with("presence-") {
            return Err(PusherError::UserCountOfPrefix);
        }
        if info.cache {
            return Err(PusherError::UnknownInfo("cache".into()));
        }
        let found = self.state.node.backplane().presence_channels(self.app.prefix(), prefix);
        let found = found.await.map_err(PusherError::Backplane)?;
        let channels: Map<_, _> = found
            .into_iter()
            .map(|found| (found.channel.name().to_owned(), found))
            .filter(|(name, _)| !name.starts_with(INTERNAL))
            .map(|(name, found)| {
                let attributes = info.of(ChannelKind::of(&name), found.sums);
                (name, attributes.into())
            })
            .collect();
        Ok(json!({ "channels": channels }).to_string().into())
    }

    /// `GET /channels/{channel}`
    pub(super) async fn channel(&self, segment: &str) -> Result<Bytes, PusherError> {
        self.take_read()?;
        let (channel, kind) = self.in_path(segment)?;
        let info = self.info()?;
        if info.user_count && kind.access != Access::Presence {
            return Err(PusherError::UserCountOfOthers);
        }
        if info.cache && !kind.is_cache {
            return Err(PusherError::CacheOfOthers);
        }
        let sums = self.sums(&channel).await?;
        let mut attributes = info.of(kind, sums);
        attributes.insert("occupied".to_owned(), (sums.subscriptions > 0).into());
        if info.cache {
            attributes.insert("cache".to_owned(), self.cached(&channel).await?);
        }
        Ok(Value::from(attributes).to_string().into())
    }

    /// `GET /channels/{channel}/users`
    pub(super) async fn users(&self, segment: &str) -> Result<Bytes, PusherError> {
        self.take_read()?;
        let (channel, kind) = self.in_path(segment)?;
        if kind.access != Access::Presence {
            return Err(PusherError::UsersOfOthers);
        }
        let roll = self.state.node.backplane().roll(&channel).await.map_err(PusherError::Backplane)?;
        // Each once, however many connections it has.
        let users: BTreeSet<&str> = roll.members.iter().map(|member| &*member.user).collect();
        let users: Vec<_> = users.into_iter().map(|id| UserId { id }).collect();
        Ok(json!({ "users": users }).to_string().into())
    }

    pub(super) async fn sums(&self, channel: &Channel) -> Result<Sums, PusherError> {
        let attendance = self.state.node.backplane().attendance(channel).await;
        attendance.map(|attendance| attendance.sums).map_err(PusherError::Backplane)
    }

    /// The event that a new subscriber would be sent first; null without one.
    async fn cached(&self, channel: &Channel) -> Result<Value, PusherError> {
        let last = HistoryQuery::newest(1);
        let history = self.state.node.history(channel, last).await.map_err(PusherError::Backplane)?;
        Ok(history.publications.last().map_or(Value::Null, |publication| match &publication.payload {
            // How many seconds it is still kept, rounded up: none is left when nothing is.
            Payload::Text(text) => json!({
                "data": &**text,
                "ttl": history.left.unwrap_or_default().as_millis().div_ceil(1000) as u64,
            }),
            Payload::Binary(_) => Value::Null,
        }))
    }

    fn info(&self) -> Result<Info, PusherError> {
        Info::parse(self.parameters.get("info").unwrap_or_default())
    }

    fn take_read(&self) -> Result<(), PusherError> {
        if self.app.takes_read() { Ok(()) } else { Err(PusherError::RateLimited) }
    }
}
