//! The sections about apps: `[apps.ID]`, their limits and webhooks, `[webhooks]`, and the file of apps that is reloaded.

use std::{
    collections::{BTreeMap, btree_map},
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_ops::{choice, section};

use super::{ByteSize, ConfigError, Entry, List, Load, Node, Secret, Setting, read_secret};
use crate::apps::AppId;

section! {
    /// One app: what its clients and servers sign with, what it may do, who is told of its events. Exactly one of
    /// `secret` and `secret_file` is given.
    AppEntry {
        /// What clients connect with, at `/app/KEY`. It is public. Required.
        key: Option<Box<str>> = None;
        /// What servers sign with. Prefer `secret_file`.
        secret: Option<Secret> = None;
        /// File with the secret; line ends at its end are cut.
        secret_file: Option<PathBuf> = None;
        /// A second secret whose signatures are taken, while servers move to `secret`. Webhooks are signed with `secret`.
        previous_secret: Option<Secret> = None;
        /// File with the second secret.
        previous_secret_file: Option<PathBuf> = None;
        /// Whether the app serves. When it is switched off its connections are closed.
        enabled: bool = true;
        /// Whether clients may send `client-` events to each other, in private and presence channels. As with Pusher,
        /// off until asked for.
        client_events: bool = false;
        /// Whether subscribers are told how many there are (`pusher_internal:subscription_count`). Every change is a
        /// message to every subscriber of the channel, so it is off until asked for.
        subscription_count: bool = false;
        /// See `apps.ID.limits.*`.
        limits: AppLimits = AppLimits::default();
        /// Who is told of what happens in the app's channels.
        webhooks: List<WebhookEntry> = List::default();
    }
}

section! {
    /// What one app may use. In rates, and in `connections`, 0 means 'no limit'.
    AppLimits {
        /// Connections of the app on one node; more are closed with 4004.
        connections: u32 = 0;
        /// The data of one event, from a server or a client; Pusher's limit. More is answered 413.
        event_bytes: ByteSize = ByteSize::kib(10);
        /// Length of a channel's name. Pusher's is 164, that of its libraries 200.
        channel_name_bytes: u32 = 200;
        /// Events that one connection may send to others, per second, with one second's worth at once; more are
        /// answered with error 4301.
        client_events_per_second: u32 = 10;
        /// Distinct users in one presence channel.
        presence_members: u32 = 100;
        /// The `user_info` of one presence member, as JSON.
        presence_user_bytes: ByteSize = ByteSize::kib(1);
        /// Channels that one request to `/events` may name.
        channels_per_event: u32 = 100;
        /// Events in one request to `/batch_events`.
        events_per_batch: u32 = 10;
        /// Events per second over the HTTP API of one node, each counted once for each of its channels, with one
        /// second's worth at once; more are answered 429. 0: no limit.
        events_per_second: u32 = 0;
        /// Requests per second that only read, with one second's worth at once; more are answered 429. 0: no limit.
        reads_per_second: u32 = 0;
    }
}

section! {
    /// An address that is told of an app's events.
    WebhookEntry {
        /// Where the events are posted. Redirects are not followed. Required.
        url: Option<WebhookUrl> = None;
        /// Which events.
        events: Vec<WebhookEvent> = WebhookEvent::ALL.to_vec();
        /// Only channels whose names begin with one of these. Empty: all.
        channel_prefixes: Vec<Box<str>> = Vec::new();
    }
}

section! {
    /// How webhooks are sent. Every address has a queue and a sender of its own, so one that hangs delays nobody else.
    WebhookSending {
        /// Events that wait for one address, in bytes. At the bound the oldest are dropped and counted. An event is
        /// some 100 bytes, a client event up to 11 KiB.
        queue_bytes: ByteSize = ByteSize::mib(4);
        /// How long the first event of a request waits for others. A request has up to 100 events.
        batch_wait: Duration = Duration::from_millis(50);
        /// How long an address may take to answer.
        timeout: Duration = Duration::from_secs(10);
        /// The wait before the first repetition; it doubles each time, up to a minute, less a random part of up to
        /// a half.
        retry_wait: Duration = Duration::from_secs(1);
        /// A request that was not answered with 2xx for so long is dropped and counted.
        retry_for: Duration = Duration::from_secs(300);
    }
}

choice! {
    /// Which events a webhook is told.
    WebhookEvent,
    r#""channel_occupied", "channel_vacated", "member_added", "member_removed", "client_event", "cache_miss" or "subscription_count""#,
    "a list of channel_occupied, channel_vacated, member_added, member_removed, client_event, cache_miss, subscription_count",
    {
        ChannelOccupied = "channel_occupied",
        ChannelVacated = "channel_vacated",
        MemberAdded = "member_added",
        MemberRemoved = "member_removed",
        ClientEvent = "client_event",
        CacheMiss = "cache_miss",
        SubscriptionCount = "subscription_count",
    }
}

impl WebhookEvent {
    pub const ALL: [Self; 7] = [
        Self::ChannelOccupied,
        Self::ChannelVacated,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::ClientEvent,
        Self::CacheMiss,
        Self::SubscriptionCount,
    ];
}

/// An `http` or `https` address that events are posted to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebhookUrl(reqwest::Url);

impl WebhookUrl {
    pub fn url(&self) -> &reqwest::Url {
        &self.0
    }
}

impl Setting for WebhookUrl {
    const EXPECTED: &'static str = r#"an address such as "https://app.example.org/hooks""#;

    fn from_text(text: &str) -> Option<Self> {
        let url = reqwest::Url::parse(text).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(Self(url))
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl Setting for AppId {
    const EXPECTED: &'static str = "the id of an app: 1 to 32 letters, digits, _ and -";

    fn from_text(text: &str) -> Option<Self> {
        Self::new(text)
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

/// The tables `[apps.ID]`.
#[derive(Debug, Clone, Default)]
pub struct AppTables(pub BTreeMap<AppId, AppEntry>);

/// What is wrong with a list of apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppProblem {
    #[error("it has no `secret` and no `secret_file`")]
    NoSecret,
    #[error("it has no `url`")]
    NoUrl,
    #[error("it names no app")]
    Unknown,
}

impl AppTables {
    /// The apps of a file that holds nothing else.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let sources = super::Sources { file: Some(path.to_owned()), ..super::Sources::default() };
        let merged = sources.merge()?;
        let mut file = AppsFile::default();
        file.load(&merged.root())?;
        file.apps.finish()?;
        Ok(file.apps)
    }

    /// Reads the files with secrets and checks what a single value cannot tell.
    pub(crate) fn finish(&mut self) -> Result<(), ConfigError> {
        self.0.iter_mut().try_for_each(|(id, entry)| entry.finish(id))
    }

    /// These and others; no two may have the same id or key.
    pub(crate) fn with(mut self, others: Self) -> Result<Self, ConfigError> {
        for (id, entry) in others.0 {
            match self.0.entry(id) {
                btree_map::Entry::Occupied(there) => {
                    return Err(ConfigError::Duplicate { key: "apps", name: there.key().as_str().into() });
                }
                btree_map::Entry::Vacant(free) => drop(free.insert(entry)),
            }
        }
        self.check_keys().map(|()| self)
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        let mut keys: Vec<_> = self.0.values().filter_map(|entry| entry.key.clone()).collect();
        keys.sort();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::Duplicate { key: "apps.ID.key", name: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

section! {
    /// The file that `apps_file` names.
    AppsFile {
        /// The apps.
        apps: AppTables = AppTables::default();
    }
}

impl Load for AppTables {
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError> {
        for (name, value) in node.table()? {
            let child = node.child(name, value);
            let id = AppId::new(name).ok_or_else(|| child.unknown(name, &[]))?;
            self.0.entry(id).or_default().load(&child)?;
        }
        Ok(())
    }

    fn describe(
        &self,
        key: &str,
        doc: &[&'static str],
        shown: Option<&'static str>,
        entries: &mut Vec<Entry>,
    ) {
        AppEntry::default().describe(&format!("{key}.ID"), doc, shown, entries);
    }
}

impl AppEntry {
    /// App id `1`, key `dev-key`, secret `dev-secret`.
    pub(crate) fn dev() -> Self {
        Self {
            key: Some("dev-key".into()),
            secret: Some(Secret::new(b"dev-secret")),
            client_events: true,
            subscription_count: true,
            ..Self::default()
        }
    }

    fn finish(&mut self, id: &AppId) -> Result<(), ConfigError> {
        let at = |name: &str| format!("apps.{id}.{name}");
        if self.key.is_none() {
            return Err(ConfigError::Missing { key: at("key").into(), origin: super::Origin::Default });
        }
        let twice = [
            ("secret", self.secret.is_some() && self.secret_file.is_some()),
            ("previous_secret", self.previous_secret.is_some() && self.previous_secret_file.is_some()),
        ];
        if let Some((name, _)) = twice.iter().find(|(_, twice)| *twice) {
            return Err(ConfigError::Contradiction {
                key: at(name).into(),
                other: at(&format!("{name}_file")).into(),
                rule: "only one of them may be given",
            });
        }
        for (name, file, secret) in [
            ("secret_file", &self.secret_file, &mut self.secret),
            ("previous_secret_file", &self.previous_secret_file, &mut self.previous_secret),
        ] {
            if let Some(path) = file {
                *secret = Some(read_secret(&at(name), path)?);
            }
        }
        if self.secret.is_none() {
            return Err(unusable(format!("apps.{id}"), AppProblem::NoSecret));
        }
        match self.webhooks.iter().position(|webhook| webhook.url.is_none()) {
            Some(index) => Err(unusable(at(&format!("webhooks[{index}]")), AppProblem::NoUrl)),
            None => Ok(()),
        }
    }
}

pub(crate) fn unusable(key: String, problem: AppProblem) -> ConfigError {
    ConfigError::Unusable { key: key.into(), path: None, problem: problem.into() }
}
