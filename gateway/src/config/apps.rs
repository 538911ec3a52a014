//! The sections about apps: `[apps.ID]`, their limits and webhooks, `[webhooks]`, and the file of apps that is reloaded.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_backplane::CHANNEL_BYTES_MAX;
use tidegate_ops::{choice, section};

use super::{AppId, ByteSize, ConfigError, Entry, Limits, List, Load, Node, Secret, Setting, read_secret};

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
        /// off until asked for; the app of `--dev` has it on.
        client_events: bool = false;
        /// Whether subscribers, and webhooks, are told how many there are (`pusher_internal:subscription_count`). A change
        /// is a message to every subscriber of the channel, at most one each second, above 100 subscriptions one in
        /// 5 s; so it is off until asked for; the app of `--dev`
        /// has it on.
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
        /// Whether a request may have several events, up to 100. Off, as with Pusher: a handler that reads only the first
        /// event of a request would lose the others. Switch it on where many events come: one request for each is as
        /// many as an address answers one after the other.
        batch: bool = false;
    }
}

section! {
    /// How webhooks are sent. Every address has a queue and a sender of its own, so one that hangs delays nobody else.
    WebhookSending {
        /// Events that wait for one address, in bytes: so much for occupied, vacated and members, and as much again for
        /// the others, which clients can make many of. At the bound the oldest are dropped and counted. An event is some
        /// 100 bytes, a client event up to 11 KiB.
        queue_bytes: ByteSize = ByteSize::mib(4);
        /// How long the first event of a request waits for others, where an address takes several (`batch`).
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

/// Where the list of apps comes from; read again at every reload.
#[derive(Debug, Clone)]
pub(crate) struct AppSource {
    /// Those of the configuration itself.
    pub(crate) tables: AppTables,
    /// `apps_file`
    pub(crate) file: Option<PathBuf>,
    /// `default_app`
    pub(crate) default: Option<AppId>,
    /// Apps that tokens or API keys are for: they may have raw clients and event streams.
    pub(crate) raw: BTreeSet<AppId>,
    /// What the node takes at all.
    pub(crate) limits: Limits,
    /// `webhooks.queue_bytes`
    pub(crate) webhook_queue_bytes: ByteSize,
}

impl AppSource {
    /// The whole list, checked.
    pub(crate) fn read(&self) -> Result<AppTables, ConfigError> {
        let file = self.file.as_deref().map(AppTables::read).transpose()?;
        let all = self.tables.clone().with(file.unwrap_or_default())?;
        match &self.default {
            Some(id) if !all.0.contains_key(id.as_str()) => {
                Err(unusable(format!("default_app = {id:?}"), AppProblem::Unknown))
            }
            _ => {
                all.0.iter().try_for_each(|(id, app)| self.check_limits(id, &app.limits))?;
                Ok(all)
            }
        }
    }

    /// What an app is said to be allowed must fit into what the node takes at all: it would be refused in words of the
    /// other limit. A default that nobody wrote gives way instead: who lowers a limit of the node means the apps too.
    fn check_limits(&self, id: &AppId, app: &AppLimits) -> Result<(), ConfigError> {
        let (limits, defaults) = (&self.limits, AppLimits::default());
        let said =
            |value: ByteSize, default: ByteSize| if value == default { ByteSize::new(0) } else { value };
        let event_bytes = said(app.event_bytes, defaults.event_bytes);
        let presence_user_bytes = said(app.presence_user_bytes, defaults.presence_user_bytes);
        let (key, other, rule) = match () {
            () if event_bytes > limits.publish_bytes => {
                ("event_bytes", "limits.publish_bytes", "an event is a publication")
            }
            // Its name and its channel stand beside it.
            () if event_bytes >= limits.body_bytes => {
                ("event_bytes", "limits.body_bytes", "an event must fit in a request body")
            }
            () if event_bytes > limits.message_bytes => {
                ("event_bytes", "limits.message_bytes", "an event of a client must fit in a message")
            }
            () if presence_user_bytes > limits.message_bytes => {
                ("presence_user_bytes", "limits.message_bytes", "a user's object comes in a message")
            }
            () if app.event_bytes > self.webhook_queue_bytes => {
                ("event_bytes", "webhooks.queue_bytes", "an event must fit in the queue of a webhook")
            }
            () if app.client_events_per_second != defaults.client_events_per_second
                && limits.messages_per_second > 0
                && app.client_events_per_second > limits.messages_per_second =>
            {
                (
                    "client_events_per_second",
                    "limits.messages_per_second",
                    "each event of a client is a message",
                )
            }
            // The default is what this machine has descriptors for.
            () if limits.connections != Limits::default().connections
                && app.connections > limits.connections =>
            {
                ("connections", "limits.connections", "an app has no more connections than its node")
            }
            () if app.channel_name_bytes as usize > CHANNEL_BYTES_MAX => {
                ("channel_name_bytes", "200", "no channel has a longer name")
            }
            () => return Ok(()),
        };
        let key = format!("apps.{id}.limits.{key}").into();
        Err(ConfigError::Contradiction { key, other: other.into(), rule })
    }
}

impl AppTables {
    /// The apps of a file that holds nothing else.
    fn read(path: &Path) -> Result<Self, ConfigError> {
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
    fn with(mut self, others: Self) -> Result<Self, ConfigError> {
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

fn unusable(key: String, problem: AppProblem) -> ConfigError {
    ConfigError::Unusable { key: key.into(), path: None, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::config::{Config, Sources};

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = file(text);
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Config::load(&Sources { file: Some(file.path().to_owned()), environment, overrides: Vec::new() })
    }

    #[test]
    fn an_app_with_everything() {
        let secret = file("from-a-file\n");
        let text = format!(
            "default_app = 'chat'\n[apps.chat]\nkey = 'k'\nsecret_file = '{}'\nprevious_secret = 'before'\n\
             client_events = true\n[apps.chat.limits]\nevent_bytes = '20KiB'\n[[apps.chat.webhooks]]\n\
             url = 'https://a.example/h'\nevents = ['member_added']\n[apps.77]\nkey = 'k7'\nsecret = 's'",
            secret.path().display()
        );
        let config = load(&text, &[("TIDEGATE__APPS__CHAT__LIMITS__PRESENCE_MEMBERS", "7")]).unwrap();
        let chat = &config.apps.0["chat"];
        assert_eq!(chat.secret, Some(Secret::new(b"from-a-file")));
        assert_eq!(chat.previous_secret, Some(Secret::new(b"before")));
        assert!(chat.client_events && chat.enabled && !chat.subscription_count);
        assert_eq!((chat.limits.event_bytes, chat.limits.presence_members), (ByteSize::kib(20), 7));
        assert_eq!(chat.webhooks[0].events, [WebhookEvent::MemberAdded]);
        assert_eq!(config.apps.0.len(), 2);
        assert_eq!(config.default_app, AppId::new("chat"));
        let shown = format!("{config:?}");
        assert!(!shown.contains("from-a-file") && !shown.contains("before"), "{shown}");
    }

    #[test]
    fn what_is_refused() {
        let check = |text: &str, expect: &str| {
            assert_eq!(load(text, &[]).unwrap_err().to_string(), expect, "{text}");
        };
        let app = |keys: &str| format!("[apps.a]\n{keys}");
        check(&app("secret = 's'"), "`apps.a.key` is missing in the defaults");
        check(&app("key = 'k'"), "`apps.a` cannot be used: it has no `secret` and no `secret_file`");
        check(
            &app("key = 'k'\nsecret = 's'\nsecret_file = '/x'"),
            "`apps.a.secret` and `apps.a.secret_file` do not fit together: only one of them may be given",
        );
        check(
            &app("key = 'k'\nsecret_file = '/nonexistent/x'"),
            "cannot read /nonexistent/x for `apps.a.secret_file`: No such file or directory (os error 2)",
        );
        check(
            &app("key = 'k'\nsecret = 's'\n[[apps.a.webhooks]]\nevents = ['cache_miss']"),
            "`apps.a.webhooks[0]` cannot be used: it has no `url`",
        );
        check("default_app = 'b'", "`default_app = \"b\"` cannot be used: it names no app");
        check(
            "[apps.a]\nkey = 'k'\nsecret = 's'\n[apps.b]\nkey = 'k'\nsecret = 's'",
            "two entries of `apps.ID.key` are named \"k\"",
        );
        let url =
            load(&app("key = 'k'\nsecret = 's'\n[[apps.a.webhooks]]\nurl = 'ftp://x'"), &[]).unwrap_err();
        assert!(
            url.to_string().starts_with("bad value \"ftp://x\" for `apps.a.webhooks[0].url` in "),
            "{url}"
        );
        for id in ["'a b'", "'a!b'", "''", "'a.b'"] {
            let error = load(&format!("[apps.{id}]\nkey = 'k'"), &[]).unwrap_err().to_string();
            assert!(error.starts_with("unknown key `apps."), "{error}");
        }
    }

    #[test]
    fn a_file_of_apps() {
        let more = file("[apps.b]\nkey = 'kb'\nsecret = 's'");
        let with = |text: &str| format!("apps_file = '{}'\n{text}", more.path().display());
        let config = load(&with("default_app = 'b'\n[apps.a]\nkey = 'ka'\nsecret = 's'"), &[]).unwrap();
        let all = config.app_source().read().unwrap();
        assert_eq!(all.0.keys().map(AppId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        let check = |text: &str, expect: &str| {
            assert_eq!(load(text, &[]).unwrap_err().to_string(), expect, "{text}");
        };
        check(&with("[apps.b]\nkey = 'k'\nsecret = 's'"), "two entries of `apps` are named \"b\"");
        check(&with("[apps.a]\nkey = 'kb'\nsecret = 's'"), "two entries of `apps.ID.key` are named \"kb\"");
        check(
            "apps_file = '/nonexistent/apps'",
            "cannot read the configuration file /nonexistent/apps: No such file or directory (os error 2)",
        );
        let other = file("listen = '127.0.0.1:1'");
        let error = load(&format!("apps_file = '{}'", other.path().display()), &[]).unwrap_err().to_string();
        assert!(error.starts_with("unknown key `listen` in "), "{error}");
    }

    #[test]
    fn keys_of_an_app() {
        let apps =
            "default_app = 'a'\n[apps.a]\nkey = 'ka'\nsecret = 's'\n[apps.b]\nkey = 'kb'\nsecret = 's'\n";
        let key = |app: &str| {
            format!("[[auth.api_keys]]\nname = 'n{app}'\nkey = '0123456789-{app}-abc'\napp = '{app}'\n")
        };
        let config = load(&format!("{apps}{}{}", key("a"), key("b")), &[]).unwrap();
        // Keys of the default app are those that name none.
        assert_eq!(config.auth.api_keys[0].app, None);
        assert_eq!(config.auth.api_keys[1].app, AppId::new("b"));
        let error = load(&format!("{apps}{}", key("c")), &[]).unwrap_err().to_string();
        assert_eq!(error, "`auth.api_keys[0].app` cannot be used: it names no app");
        let jwt =
            "[[auth.jwt]]\nalgorithm = 'HS256'\nsecret = 'jwt-secret-jwt-secret-jwt-secret-'\napp = 'c'";
        let error = load(&format!("{apps}{}{jwt}", key("b")), &[]).unwrap_err().to_string();
        assert_eq!(error, "`auth.jwt[0].app` cannot be used: it names no app");
    }

    #[test]
    fn dev_has_an_app_and_production_has_none() {
        let dev = load("dev = true", &[]).unwrap();
        assert_eq!(dev.default_app, AppId::new("1"));
        let app = &dev.apps.0["1"];
        assert_eq!((app.key.as_deref(), &app.secret), (Some("dev-key"), &Some(Secret::new(b"dev-secret"))));
        let production = load("", &[]).unwrap();
        assert!(production.apps.0.is_empty() && production.default_app.is_none());
    }
}
