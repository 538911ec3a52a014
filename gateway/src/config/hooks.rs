//! The section about applications that are asked and told over HTTP: `[hooks.NAME]`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderName,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TE, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use tidegate_ops::{choice, section, trust::Networks};

use super::{
    ByteSize, ConfigError, Entry, Load, Network, Node, Pattern, Secret, Setting, WebhookUrl, read_secret,
};

section! {
    /// An application that is asked, and told, over HTTP. See `docs/hooks.md`.
    HookEntry {
        /// Where it is asked. Redirects are not followed. Required, unless it is only told events, in a `stream`.
        url: Option<WebhookUrl> = None;
        /// In which words: `tidegate` (CloudEvents 1.0 in HTTP's binary mode, answers in status codes), or `centrifugo` (the
        /// JSON of Centrifugo's proxies, for a backend that has it).
        dialect: HookDialect = HookDialect::Tidegate;
        /// What it is asked: `connect` (of a connection without token and key), `subscribe` and `publish` (in `channels`),
        /// `message` (what a client sends to the application), `refresh` (when what `connect` allowed is over).
        questions: Vec<HookQuestion> = Vec::new();
        /// What it is told, without anybody waiting: `connected` and `disconnected` of each connection, `subscribed` and
        /// `unsubscribed` of each of its subscriptions, `channel.occupied` and
        /// `channel.vacated`, `presence.joined` and `presence.left` of users. Of channels only those of `channels`. Sent as
        /// `webhooks.*` says, in order for each connection and channel, until it is answered 2xx.
        events: Vec<HookEvent> = Vec::new();
        /// Whether a request may have several events (up to 100, or 64 KiB), as CloudEvents' JSON batch. Off: one request for
        /// each, in binary mode.
        batch: bool = false;
        /// The key of a Redis stream that events are appended to in place of `url`, so that nothing is lost while the application
        /// is away: it reads the stream in its own time. Needs `stream_url` or `stream_url_file`.
        stream: Box<str> = Box::default();
        /// The server of the stream: `redis://user:password@host:port/database`, or `rediss://` over TLS. Prefer
        /// `stream_url_file`.
        stream_url: Option<Secret> = None;
        /// File with the URL; it is read again for each new connection.
        stream_url_file: Option<PathBuf> = None;
        /// PEM file with the certificates of a private authority, for `rediss://`.
        stream_ca_file: Option<PathBuf> = None;
        /// About so many of the newest events are kept in the stream.
        stream_length: u32 = 1_000_000;
        /// The channels for whose subscriptions and publications it is asked. Of several hooks that are asked the same, the
        /// first by name whose patterns fit is.
        channels: Vec<Pattern> = vec![Pattern::any()];
        /// What requests are signed with (Standard Webhooks): `whsec_` and 24 to 64 bytes in base64. Without it they are
        /// not signed. Prefer `secret_file`.
        secret: Option<Secret> = None;
        /// File with the secret; line ends at its end are cut.
        secret_file: Option<PathBuf> = None;
        /// A second secret that requests are signed with too, while the application moves to `secret`.
        previous_secret: Option<Secret> = None;
        /// File with the second secret.
        previous_secret_file: Option<PathBuf> = None;
        /// How long an answer may take, the wait for `concurrency` included.
        timeout: Duration = Duration::from_secs(3);
        /// Questions that may be under way to it at once, from this node. More wait, 16 times as many at most.
        concurrency: u32 = 256;
        /// What becomes of a question when no answer comes: no connection, no answer in time, a status of 300 to 399 or 500
        /// and above, an answer that cannot be read, or an open circuit. `refuse`, or `allow` as if it had said yes.
        away: HookAway = HookAway::Refuse;
        /// The largest answer that is read; a larger one counts as none.
        answer_bytes: ByteSize = ByteSize::kib(64);
        /// The largest private state that `connect` and `refresh` may give a connection; it is kept in memory with it.
        state_bytes: ByteSize = ByteSize::kib(2);
        /// Headers of a client's request that are handed on with `connect`, and in the dialect `centrifugo` with what is
        /// asked later of the connection. `cookie` is all cookies; see `cookies`.
        headers: Vec<HeaderSetting> = Vec::new();
        /// Headers that Centrifugo's clients may say in `connect`, since browsers cannot send them; handed on as those of
        /// `headers` are. A client writes there what it likes: none of them may be in `headers` of any hook.
        emulated_headers: Vec<HeaderSetting> = Vec::new();
        /// The same for single cookies.
        cookies: Vec<Box<str>> = Vec::new();
        /// The same for parameters of the query, handed on with `connect` in the dialect `tidegate`.
        query: Vec<Box<str>> = Vec::new();
        /// PEM file with the certificates of a private authority: then `https` servers of it are trusted, and no others.
        ca_file: Option<PathBuf> = None;
        /// PEM file with the certificate that is shown to an `https` server that asks for one.
        cert_file: Option<PathBuf> = None;
        /// PEM file with the key of `cert_file`.
        key_file: Option<PathBuf> = None;
        /// Networks to which no request goes, whatever a name resolves to, for example `["169.254.0.0/16"]`.
        denied_addresses: Vec<Network> = Vec::new();
    }
}

choice! {
    /// The words in which an application is asked.
    HookDialect, r#""tidegate" or "centrifugo""#, "a list of dialects", {
        Tidegate = "tidegate",
        Centrifugo = "centrifugo",
    }
}

choice! {
    /// What an application is asked.
    HookQuestion,
    r#""connect", "subscribe", "publish", "message" or "refresh""#,
    "a list of connect, subscribe, publish, message, refresh", {
        Connect = "connect",
        Subscribe = "subscribe",
        Publish = "publish",
        Message = "message",
        Refresh = "refresh",
    }
}

choice! {
    /// What an application is told.
    HookEvent,
    r#""connected", "disconnected", "subscribed", "unsubscribed", "channel.occupied", "channel.vacated", "presence.joined" or "presence.left""#,
    "a list of connected, disconnected, subscribed, unsubscribed, channel.occupied, channel.vacated, presence.joined, presence.left", {
        Connected = "connected",
        Disconnected = "disconnected",
        Subscribed = "subscribed",
        Unsubscribed = "unsubscribed",
        Occupied = "channel.occupied",
        Vacated = "channel.vacated",
        Joined = "presence.joined",
        Left = "presence.left",
    }
}

choice! {
    /// What becomes of a question when no answer comes.
    HookAway, r#""refuse" or "allow""#, "a list of these words", {
        Refuse = "refuse",
        Allow = "allow",
    }
}

/// The name of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderSetting(pub HeaderName);

/// Of the request to the application itself.
const OWN_HEADERS: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

impl HeaderSetting {
    /// Whether a request to the application has it with a meaning of its own.
    fn is_ours(&self) -> bool {
        let name = self.0.as_str();
        OWN_HEADERS.contains(&self.0) || name.starts_with("webhook-") || name.starts_with("ce-")
    }
}

impl Setting for HeaderSetting {
    const EXPECTED: &'static str = r#"the name of a header such as "user-agent""#;
    const EXPECTED_LIST: &'static str = r#"a list of headers such as ["cookie", "user-agent"]"#;

    fn from_text(text: &str) -> Option<Self> {
        HeaderName::try_from(text).ok().map(Self)
    }

    fn show(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// The tables `[hooks.NAME]`.
#[derive(Debug, Clone, Default)]
pub struct Hooks(pub BTreeMap<Box<str>, HookEntry>);

/// What is wrong with a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HookProblem {
    #[error("it is no secret of Standard Webhooks: whsec_ and 24 to 64 bytes in base64")]
    Secret,
    #[error("its address is one of `denied_addresses`")]
    Denied,
}

/// Standard Webhooks, "Signature scheme": between 24 and 64 bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const SECRET_PREFIX: &[u8] = b"whsec_";

/// Names stand in labels of metrics.
const NAME_BYTES_MAX: usize = 40;

/// The bytes of a secret as it is written.
pub(crate) fn secret_bytes(secret: &Secret) -> Option<Vec<u8>> {
    let text = secret.expose().strip_prefix(SECRET_PREFIX)?;
    STANDARD.decode(text).ok().filter(|bytes| SECRET_BYTES.contains(&bytes.len()))
}

impl Hooks {
    /// Checks what a single value cannot tell and reads the files.
    pub(crate) fn finish(&mut self) -> Result<(), ConfigError> {
        self.0.iter_mut().try_for_each(|(name, hook)| hook.finish(name))?;
        // What a client says could be taken for what a proxy in front of the gateway has set.
        let sent = |name: &HeaderSetting| self.0.iter().find(|(_, hook)| hook.headers.contains(name));
        for (name, hook) in &self.0 {
            if let Some((other, _)) = hook.emulated_headers.iter().find_map(sent) {
                return Err(ConfigError::Contradiction {
                    key: format!("hooks.{name}.emulated_headers").into(),
                    other: format!("hooks.{other}.headers").into(),
                    rule: "a header is either sent or said by the client in `connect`",
                });
            }
        }
        // Nothing tells these apart but the hook: the second would never be asked.
        for question in [HookQuestion::Connect, HookQuestion::Message, HookQuestion::Refresh] {
            let mut asked = self.0.iter().filter(|(_, hook)| hook.questions.contains(&question));
            if let (Some((first, _)), Some((second, _))) = (asked.next(), asked.next()) {
                return Err(ConfigError::Contradiction {
                    key: format!("hooks.{second}.questions").into(),
                    other: format!("hooks.{first}.questions").into(),
                    rule: "connect, message and refresh are asked of one hook only",
                });
            }
        }
        Ok(())
    }
}

impl Load for Hooks {
    fn load(&mut self, node: &Node<'_>) -> Result<(), ConfigError> {
        for (name, value) in node.table()? {
            let child = node.child(name, value);
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
                return Err(child.unknown(name, &[]));
            }
            self.0.entry(name.into()).or_default().load(&child)?;
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
        HookEntry::default().describe(&format!("{key}.NAME"), doc, shown, entries);
    }
}

impl HookEntry {
    fn finish(&mut self, name: &str) -> Result<(), ConfigError> {
        let at = |key: &str| format!("hooks.{name}.{key}");
        let contradiction = |key: &str, other: String, rule| {
            Err(ConfigError::Contradiction { key: at(key).into(), other: other.into(), rule })
        };
        let has_stream_url = self.stream_url.is_some() || self.stream_url_file.is_some();
        if self.stream.is_empty() == has_stream_url {
            let other = at("stream_url");
            return contradiction(
                "stream",
                other,
                "a stream has a key and a server, stream_url or stream_url_file",
            );
        }
        if self.stream_url.is_some() && self.stream_url_file.is_some() {
            return contradiction("stream_url", at("stream_url_file"), "only one of them may be given");
        }
        if self.url.is_none() && (self.stream.is_empty() || !self.questions.is_empty()) {
            return Err(ConfigError::Missing { key: at("url").into(), origin: super::Origin::Default });
        }
        // A name is looked at when it is resolved.
        let url = self.url.as_ref();
        let address = url.and_then(|url| url.url().host_str().map(|host| host.trim_matches(['[', ']'])));
        let address = address.and_then(|host| host.parse::<IpAddr>().ok());
        if address.is_some_and(|address| Networks::new(&self.denied_addresses).cover(address)) {
            return Err(unusable(at("url"), HookProblem::Denied));
        }
        for (key, file, secret) in [
            ("secret", &self.secret_file, &mut self.secret),
            ("previous_secret", &self.previous_secret_file, &mut self.previous_secret),
        ] {
            if let Some(path) = file {
                if secret.is_some() {
                    return contradiction(key, at(&format!("{key}_file")), "only one of them may be given");
                }
                *secret = Some(read_secret(&at(&format!("{key}_file")), path)?);
            }
            if secret.as_ref().is_some_and(|secret| secret_bytes(secret).is_none()) {
                return Err(unusable(at(key), HookProblem::Secret));
            }
        }
        if self.secret.is_none() && self.previous_secret.is_some() {
            return contradiction("previous_secret", at("secret"), "the first secret comes first");
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return contradiction("cert_file", at("key_file"), "a certificate and its key belong together");
        }
        if let Some(HeaderSetting(header)) = self.emulated_headers.iter().find(|it| it.is_ours()) {
            return Err(ConfigError::Forbidden {
                key: at("emulated_headers").into(),
                value: format!("{header:?}").into(),
                rule: "that one is of the request to the application itself",
            });
        }
        if self.timeout.is_zero() {
            return contradiction("timeout", "0s".into(), "nobody answers in no time");
        }
        if self.concurrency == 0 {
            return contradiction("concurrency", "0".into(), "nobody is asked then");
        }
        Ok(())
    }
}

fn unusable(key: String, problem: HookProblem) -> ConfigError {
    ConfigError::Unusable { key: key.into(), path: None, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::config::{Config, Sources};

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    #[track_caller]
    fn check(text: &str, expect: Result<(), &str>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
        let loaded = Config::load(&sources).map(drop).map_err(|error| error.to_string());
        assert_eq!(loaded, expect.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn hooks_are_checked() {
        let hook = |text: &str| format!("[hooks.app]\nurl = 'http://127.0.0.1:1/'\n{text}");
        check(&hook(""), Ok(()));
        check(&hook(&format!("secret = '{SECRET}'\nquestions = ['connect', 'message']")), Ok(()));
        check("[hooks.app]", Err("`hooks.app.url` is missing in the defaults"));
        let secret = "`hooks.app.secret` cannot be used: it is no secret of Standard Webhooks: whsec_ and 24 to 64 bytes \
                      in base64";
        check(&hook("secret = 'abc'"), Err(secret));
        check(&hook("secret = 'whsec_YWJj'"), Err(secret));
        check("[hooks.app]\nstream = 'events'\nstream_url = 'redis://h'\nevents = ['connected']", Ok(()));
        let half = "`hooks.app.stream` and `hooks.app.stream_url` do not fit together: a stream has a key and a server, \
                    stream_url or stream_url_file";
        check(&hook("stream = 'events'"), Err(half));
        let asked = "stream = 'events'\nstream_url = 'redis://h'\nquestions = ['connect']";
        check(&format!("[hooks.app]\n{asked}"), Err("`hooks.app.url` is missing in the defaults"));
        check(&hook("headers = ['x-a']\nemulated_headers = ['x-b']"), Ok(()));
        let both = "`hooks.app.emulated_headers` and `hooks.app.headers` do not fit together: a header is either sent or \
                    said by the client in `connect`";
        check(&hook("headers = ['x-a']\nemulated_headers = ['x-b', 'X-A']"), Err(both));
        let ours = "`hooks.app.emulated_headers` is \"content-length\", but that one is of the request to the application \
                    itself";
        check(&hook("emulated_headers = ['Content-Length']"), Err(ours));
        let denied = "`hooks.app.url` cannot be used: its address is one of `denied_addresses`";
        check(&hook("denied_addresses = ['127.0.0.0/8']"), Err(denied));
        let twice = "`hooks.b.questions` and `hooks.app.questions` do not fit together: connect, message and refresh are \
                     asked of one hook only";
        let both = "questions = ['message']\n[hooks.b]\nurl = 'http://b/'\nquestions = ['message']";
        check(&hook(both), Err(twice));
    }
}
