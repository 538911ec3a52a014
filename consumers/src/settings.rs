//! The sections `consumers.streams` and `consumers.outboxes`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tidegate_ops::{
    config::{ConfigError, List, Origin, Secret},
    section,
};

section! {
    /// Publications that an application leaves in its own stores. Each node has the same consumers; one of them reads a store
    /// at a time.
    ConsumersConfig {
        /// Redis streams.
        streams: List<StreamEntry> = List::default();
        /// Tables of PostgreSQL.
        outboxes: List<OutboxEntry> = List::default();
    }
}

section! {
    /// One Redis stream.
    StreamEntry {
        /// Names it in metrics, the log and the keys of its entries: 1 to 32 letters, digits, `_` and `-`. Required.
        name: Box<str> = Box::default();
        /// `redis://user:password@host:port/database`, or `rediss://` over TLS. Prefer `url_file`.
        url: Option<Secret> = None;
        /// File with the URL; it is read again for each new connection.
        url_file: Option<PathBuf> = None;
        /// PEM file with the certificates of a private authority, for `rediss://`. Without it, those that the system trusts.
        ca_file: Option<PathBuf> = None;
        /// The key of the stream. Required.
        stream: Box<str> = Box::default();
        /// The consumer group. It is made where there is none, from the beginning of the stream.
        group: Box<str> = "tidegate".into();
        /// The app whose channels the entries name. Without it, the default app's.
        app: Option<Box<str>> = None;
        /// Entries that are read at once.
        batch: u32 = 500;
        /// Whether entries stay in the stream when they are published. Off: they are deleted, and the stream holds what waits.
        keep: bool = false;
    }
}

section! {
    /// One table of PostgreSQL.
    OutboxEntry {
        /// Names it in metrics, the log and the keys of its rows: 1 to 32 letters, digits, `_` and `-`. Required.
        name: Box<str> = Box::default();
        /// `postgres://user:password@host:port/database`; with `?sslmode=require` over TLS or not at all, by default over TLS
        /// where the server has it. Prefer `url_file`.
        url: Option<Secret> = None;
        /// File with the URL; it is read again for each new connection.
        url_file: Option<PathBuf> = None;
        /// PEM file with the certificates of a private authority. Without it, those that the system trusts.
        ca_file: Option<PathBuf> = None;
        /// The table, with its schema where that is not in the search path.
        table: Box<str> = "tidegate_outbox".into();
        /// What the trigger of the table notifies.
        notify: Box<str> = "tidegate_outbox".into();
        /// How often the table is looked at when nothing is notified.
        poll: Duration = Duration::from_secs(1);
        /// The app whose channels the rows name. Without it, the default app's.
        app: Option<Box<str>> = None;
        /// Rows that are read at once, in one transaction.
        batch: u32 = 500;
        /// Whether rows stay in the table when they are published, with the time in `published_at`. Off: they are deleted.
        keep: bool = false;
    }
}

/// Entries that a batch may have: they are in memory, and in one transaction.
const BATCH_MAX: u32 = 10_000;
const POLL_MIN: Duration = Duration::from_millis(10);
const NAME_BYTES_MAX: usize = 32;

/// Where a store is.
#[derive(Debug, Clone)]
pub struct Address {
    pub url: Option<Secret>,
    /// File with the URL; it is read again for each new connection.
    pub file: Option<PathBuf>,
    /// File with the certificates of a private authority.
    pub ca: Option<PathBuf>,
}

impl ConsumersConfig {
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.outboxes.is_empty()
    }

    /// Apps that consumers publish to.
    pub fn apps(&self) -> impl Iterator<Item = (String, &str)> {
        let streams = self.streams.iter().map(|entry| entry.app.as_deref()).enumerate();
        let outboxes = self.outboxes.iter().map(|entry| entry.app.as_deref()).enumerate();
        let named = |kind: &'static str| {
            move |(at, app): (usize, Option<_>)| app.map(|app| (format!("consumers.{kind}[{at}].app"), app))
        };
        streams.filter_map(named("streams")).chain(outboxes.filter_map(named("outboxes")))
    }

    /// What must fit together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self, origin: &Origin) -> Result<(), ConfigError> {
        for (at, entry) in self.streams.iter().enumerate() {
            let key = |name: &str| format!("consumers.streams[{at}].{name}");
            check_name(&key("name"), &entry.name, origin)?;
            check_url(&key("url"), entry.url.is_some(), entry.url_file.is_some(), origin)?;
            check_batch(&key("batch"), entry.batch)?;
            if entry.stream.is_empty() {
                return Err(ConfigError::Missing { key: key("stream").into(), origin: origin.clone() });
            }
        }
        for (at, entry) in self.outboxes.iter().enumerate() {
            let key = |name: &str| format!("consumers.outboxes[{at}].{name}");
            check_name(&key("name"), &entry.name, origin)?;
            check_url(&key("url"), entry.url.is_some(), entry.url_file.is_some(), origin)?;
            check_batch(&key("batch"), entry.batch)?;
            for (name, value) in [("table", &entry.table), ("notify", &entry.notify)] {
                if !is_identifier(value) {
                    return Err(forbidden(
                        &key(name),
                        value,
                        "a name of PostgreSQL has letters, digits and _",
                    ));
                }
            }
            if entry.poll < POLL_MIN {
                return Err(forbidden(&key("poll"), &format!("{:?}", entry.poll), "the least is \"10ms\""));
            }
        }
        let names = self.streams.iter().map(|it| &it.name).chain(self.outboxes.iter().map(|it| &it.name));
        let mut names: Vec<_> = names.collect();
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::Duplicate { key: "consumers", name: pair[0].clone() }),
            None => Ok(()),
        }
    }
}

impl StreamEntry {
    pub(crate) fn address(&self) -> Address {
        Address { url: self.url.clone(), file: self.url_file.clone(), ca: self.ca_file.clone() }
    }
}

impl OutboxEntry {
    pub(crate) fn address(&self) -> Address {
        Address { url: self.url.clone(), file: self.url_file.clone(), ca: self.ca_file.clone() }
    }
}

impl Address {
    /// The URL as it is now.
    pub(crate) fn url(&self) -> Result<String, String> {
        let bytes = match (&self.url, &self.file) {
            (Some(url), _) => url.expose().to_vec(),
            (None, Some(path)) => read(path)?,
            (None, None) => Vec::new(),
        };
        let text = String::from_utf8(bytes).map_err(|_| "its URL is not UTF-8".to_owned())?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The authority's certificates, if it is a private one.
    pub(crate) fn authority(&self) -> Result<Option<Vec<u8>>, String> {
        self.ca.as_deref().map(read).transpose()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error: io::Error| format!("cannot read {}: {error}", path.display()))
}

fn check_name(key: &str, name: &str, origin: &Origin) -> Result<(), ConfigError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match name {
        "" => Err(ConfigError::Missing { key: key.into(), origin: origin.clone() }),
        name if name.len() <= NAME_BYTES_MAX && name.bytes().all(is_word) => Ok(()),
        name => Err(forbidden(key, name, "a name has 1 to 32 letters, digits, _ and -")),
    }
}

fn check_url(key: &str, has_url: bool, has_file: bool, origin: &Origin) -> Result<(), ConfigError> {
    match (has_url, has_file) {
        (true, false) | (false, true) => Ok(()),
        _ => Err(ConfigError::OneOf {
            key: key.trim_end_matches(".url").into(),
            origin: origin.clone(),
            one_of: "url, url_file",
            given: usize::from(has_url) + usize::from(has_file),
        }),
    }
}

fn check_batch(key: &str, batch: u32) -> Result<(), ConfigError> {
    match (1..=BATCH_MAX).contains(&batch) {
        true => Ok(()),
        false => Err(forbidden(key, &batch.to_string(), "a batch has 1 to 10000 entries")),
    }
}

fn forbidden(key: &str, value: &str, rule: &'static str) -> ConfigError {
    ConfigError::Forbidden { key: key.into(), value: value.into(), rule }
}

/// `name` or `schema.name`.
fn is_identifier(text: &str) -> bool {
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with(|first: char| first.is_ascii_digit())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text.split('.').count() <= 2 && text.split('.').all(is_name)
}
