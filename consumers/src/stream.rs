//! A Redis stream, read through a consumer group.
//!
//! The reader has a lease on the group: `STREAM:GROUP:reader` names it. All nodes read as the same consumer of the group, so
//! what a reader had taken and not acknowledged is what the next one begins with. Entries that somebody took under another
//! name are claimed first. What was published is acknowledged and, unless it is to be kept, deleted; what never can be goes to
//! `STREAM:GROUP:aside`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use redis::{AsyncConnectionConfig, Client, Cmd, TlsCertificates, Value, aio::MultiplexedConnection};

use crate::{
    Boxed, CountsOf, Data, Publication, Publish, Round, Source, SourceError, StreamEntry,
    batch::{self, Entry, Settled},
    settings::Address,
};

/// How long a reader that says nothing more keeps its turn.
const LEASE: Duration = Duration::from_secs(5);
/// How long the server waits for an entry. Well inside the lease.
const BLOCK: Duration = Duration::from_secs(1);
/// How often a node looks whether the turn is free, and how often what waits is counted.
const LOOK: Duration = Duration::from_secs(1);
const COUNT: Duration = Duration::from_secs(2);
/// How long channels wait at most while others are read.
const AGAIN: Duration = Duration::from_secs(1);
/// A server that does not answer for so long is away.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The name under which all nodes read.
const CONSUMER: &str = "tidegate";
/// Entries that are kept aside; older ones go.
const ASIDE_MAX: usize = 100_000;
/// Entries that may wait for a channel while others are read: they are in the group's list on the server.
const PENDING_MAX: u64 = 100_000;

/// Takes or renews the turn.
const TAKE: &str = "local holder = redis.call('GET', KEYS[1]) \
    if holder and holder ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return holder and 1 or 2";
/// Lets go of it.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

pub(crate) struct Stream {
    entry: StreamEntry,
    reader: Arc<str>,
    connection: MultiplexedConnection,
    counts: Arc<CountsOf>,
    /// Where it is in what was read before and not acknowledged; `None`: it reads what is new.
    pending: Option<Box<str>>,
    waits: Waits,
    why: String,
    is_reader: bool,
    counted: Option<Instant>,
    /// The group's list of entries that wait is as long as it may be.
    is_full: bool,
}

/// Channels whose entries wait until the stream is read again from the oldest. Meanwhile others are read: a channel that
/// cannot be published to does not keep them.
#[derive(Default)]
struct Waits {
    channels: BTreeSet<Box<str>>,
    /// When the first of them had to.
    since: Option<Instant>,
    /// Something was published since, and something new was read.
    has_worked: bool,
    has_read_new: bool,
}

/// A connection to a server that answers within `answer_max`.
pub(crate) async fn connect(
    address: &Address,
    answer_max: Duration,
) -> Result<MultiplexedConnection, SourceError> {
    let url = address.url().map_err(SourceError::Settings)?;
    let client = match address.authority().map_err(SourceError::Settings)? {
        Some(authority) => {
            let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority) };
            Client::build_with_tls(url, certificates)?
        }
        None => Client::open(url)?,
    };
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(answer_max))
        .set_connection_timeout(Some(CONNECT_MAX));
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// What was read: ids with their fields; none where the entry was deleted meanwhile.
type Rows = Vec<(Box<str>, Option<Vec<(Vec<u8>, Vec<u8>)>>)>;

impl Stream {
    pub(crate) async fn connect(
        entry: StreamEntry,
        reader: Arc<str>,
        counts: Arc<CountsOf>,
    ) -> Result<Self, SourceError> {
        let connection = connect(&entry.address(), ANSWER_MAX).await?;
        let mut stream = Self {
            entry,
            reader,
            connection,
            counts,
            pending: None,
            waits: Waits::default(),
            why: String::new(),
            is_reader: false,
            counted: None,
            is_full: false,
        };
        stream.make_group().await?;
        Ok(stream)
    }

    async fn make_group(&mut self) -> Result<(), SourceError> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(&*self.entry.stream).arg(&*self.entry.group).arg("0").arg("MKSTREAM");
        match self.ask(create).await {
            Err(SourceError::Redis(error)) if error.code() == Some("BUSYGROUP") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn ask(&mut self, command: Cmd) -> Result<Value, SourceError> {
        Ok(command.query_async(&mut self.connection).await?)
    }

    fn key(&self, what: &str) -> String {
        format!("{}:{}:{what}", self.entry.stream, self.entry.group)
    }

    /// Takes the turn, or renews it. True: it is this node's.
    async fn take_turn(&mut self) -> Result<bool, SourceError> {
        let mut take = redis::cmd("EVAL");
        take.arg(TAKE).arg(1).arg(self.key("reader")).arg(&*self.reader).arg(LEASE.as_millis() as u64);
        let taken = self.ask(take).await?;
        let was_reader = std::mem::replace(&mut self.is_reader, taken != Value::Int(0));
        // Between two leases of its own another may have read.
        if self.is_reader && (!was_reader || taken == Value::Int(2)) {
            self.claim().await?;
            (self.pending, self.waits) = (Some("0".into()), Waits::default());
        }
        Ok(self.is_reader)
    }

    /// Takes over what others had taken under names of their own.
    async fn claim(&mut self) -> Result<(), SourceError> {
        let mut from = "0-0".to_owned();
        loop {
            let mut claim = redis::cmd("XAUTOCLAIM");
            claim.arg(&*self.entry.stream).arg(&*self.entry.group).arg(CONSUMER).arg(0).arg(&from);
            claim.arg("COUNT").arg(1000).arg("JUSTID");
            let Value::Array(answer) = self.ask(claim).await? else {
                return Err(SourceError::Answer("XAUTOCLAIM"));
            };
            from = answer.first().and_then(text).ok_or(SourceError::Answer("XAUTOCLAIM"))?;
            if from == "0-0" {
                return Ok(());
            }
        }
    }

    /// The next entries: those that were taken before, in their order, and then new ones.
    async fn read(&mut self) -> Result<Rows, SourceError> {
        if let Some(after) = self.pending.clone() {
            let rows = self.read_group(&after, None).await?;
            self.pending = rows.last().map(|(id, _)| id.clone());
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
        if self.waits.channels.is_empty() {
            return self.read_group(">", Some(BLOCK)).await;
        }
        let is_of_use = self.waits.has_worked || !std::mem::replace(&mut self.waits.has_read_new, true);
        match is_of_use && !self.is_full {
            true => self.read_group(">", None).await,
            false => Ok(Vec::new()),
        }
    }

    async fn read_group(&mut self, after: &str, block: Option<Duration>) -> Result<Rows, SourceError> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(&*self.entry.group).arg(CONSUMER).arg("COUNT").arg(self.entry.batch);
        if let Some(block) = block {
            read.arg("BLOCK").arg(block.as_millis() as u64);
        }
        read.arg("STREAMS").arg(&*self.entry.stream).arg(after);
        rows(self.ask(read).await?)
    }

    fn parsed(&self, rows: Rows) -> Vec<Entry<Box<str>>> {
        let entries = rows.into_iter().map(|(id, fields)| {
            let publication = match fields {
                Some(fields) => publication(&self.entry.name, &id, fields),
                None => Err("it was deleted before it was published".to_owned()),
            };
            Entry { id, publication }
        });
        let waits = |entry: &Entry<_>| {
            entry
                .publication
                .as_ref()
                .is_ok_and(|publication| self.waits.channels.contains(&publication.channel))
        };
        entries.filter(|entry| !waits(entry)).collect()
    }

    /// Forgets what is done, and puts aside what never can be.
    async fn settle(
        &mut self,
        settled: &Settled<Box<str>>,
        mut fields: impl FnMut(&str) -> Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), SourceError> {
        let over: Vec<&str> =
            settled.done.iter().chain(settled.aside.iter().map(|(id, _)| id)).map(|id| &**id).collect();
        if over.is_empty() {
            return Ok(());
        }
        let mut pipe = redis::pipe();
        pipe.atomic();
        for (id, why) in &settled.aside {
            let add = pipe.cmd("XADD").arg(self.key("aside")).arg("MAXLEN").arg("~").arg(ASIDE_MAX);
            add.arg("*").arg("id").arg(&**id).arg("error").arg(why);
            for (name, value) in fields(id) {
                add.arg(name).arg(value);
            }
        }
        pipe.cmd("XACK").arg(&*self.entry.stream).arg(&*self.entry.group).arg(&over);
        if !self.entry.keep {
            pipe.cmd("XDEL").arg(&*self.entry.stream).arg(&over);
        }
        let _answers: Value = pipe.query_async(&mut self.connection).await?;
        Ok(())
    }

    async fn work(&mut self, publisher: &dyn Publish) -> Result<Round, SourceError> {
        if !self.take_turn().await? {
            tokio::time::sleep(LOOK).await;
            return Ok(Round::Waiting);
        }
        self.count_lag().await?;
        let rows = self.read().await?;
        if rows.is_empty() {
            return Ok(self.go_back());
        }
        self.counts.read.add(rows.len() as u64);
        let kept = rows.clone();
        let settled = batch::publish(self.parsed(rows), publisher).await;
        let fields = |id: &str| {
            let found = kept.iter().find(|(own, _)| **own == *id);
            found.and_then(|(_, fields)| fields.clone()).unwrap_or_default()
        };
        self.settle(&settled, fields).await?;
        self.counts.settled(&settled);
        self.waits.has_worked |= !settled.done.is_empty();
        self.waits.channels.extend(settled.stuck);
        if let Some(why) = settled.why {
            self.why = why;
            self.waits.since.get_or_insert_with(Instant::now);
        }
        Ok(match self.waits.since.is_some_and(|since| since.elapsed() >= AGAIN) {
            true => self.go_back(),
            false => Round::Worked,
        })
    }

    /// What waits for its channel is read again from the oldest.
    fn go_back(&mut self) -> Round {
        if std::mem::take(&mut self.waits).channels.is_empty() {
            return Round::Empty;
        }
        self.pending = Some("0".into());
        Round::Later(std::mem::take(&mut self.why))
    }

    /// Counts what waits, now and then.
    async fn count_lag(&mut self) -> Result<(), SourceError> {
        if self.counted.is_some_and(|at| at.elapsed() < COUNT) {
            return Ok(());
        }
        self.counted = Some(Instant::now());
        let mut groups = redis::cmd("XINFO");
        groups.arg("GROUPS").arg(&*self.entry.stream);
        let Value::Array(groups) = self.ask(groups).await? else { return Err(SourceError::Answer("XINFO")) };
        let own = groups
            .iter()
            .find(|group| field(group, "name").and_then(text).as_deref() == Some(&*self.entry.group));
        let own = own.ok_or(SourceError::Answer("XINFO"))?.clone();
        let number = |name: &str| match field(&own, name) {
            Some(Value::Int(number)) => Some(u64::try_from(*number).unwrap_or(0)),
            _ => None,
        };
        let pending = number("pending").unwrap_or(0);
        let mut length = redis::cmd("XLEN");
        length.arg(&*self.entry.stream);
        let length = match self.ask(length).await? {
            Value::Int(length) => u64::try_from(length).unwrap_or(0),
            _ => 0,
        };
        // The server knows no lag once entries in the middle were deleted; then the stream holds what waits.
        let waiting = number("lag").map_or(length, |lag| lag + pending).min(length);
        self.counts.lag.set(waiting as i64);
        let delivered = field(&own, "last-delivered-id").and_then(text).unwrap_or_default();
        let oldest_ms = self.oldest_ms(pending, &delivered).await?;
        self.counts.lag_ms.set(oldest_ms);
        let mut aside = redis::cmd("XLEN");
        aside.arg(self.key("aside"));
        if let Value::Int(aside) = self.ask(aside).await? {
            self.counts.aside_now.set(aside);
        }
        self.is_full = pending > PENDING_MAX;
        Ok(())
    }

    /// The age of the oldest entry that waits, by the time in its id.
    async fn oldest_ms(&mut self, pending: u64, delivered: &str) -> Result<i64, SourceError> {
        let mut oldest = match pending {
            0 => redis::cmd("XRANGE"),
            _ => redis::cmd("XPENDING"),
        };
        oldest.arg(&*self.entry.stream);
        match pending {
            0 => oldest.arg(format!("({delivered}")).arg("+").arg("COUNT").arg(1),
            _ => oldest.arg(&*self.entry.group).arg("-").arg("+").arg(1),
        };
        let Value::Array(found) = self.ask(oldest).await? else { return Ok(0) };
        let id = found.first().and_then(|row| match row {
            Value::Array(row) => row.first().and_then(text),
            _ => None,
        });
        let at = id.and_then(|id| id.split('-').next()?.parse::<u64>().ok());
        let now =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Ok(at.map_or(0, |at| now.saturating_sub(at) as i64))
    }
}

impl Source for Stream {
    fn round<'s>(&'s mut self, publish: &'s dyn Publish) -> Boxed<'s, Result<Round, SourceError>> {
        Box::pin(self.work(publish))
    }

    fn release(&mut self) -> Boxed<'_, ()> {
        Box::pin(async move {
            let mut release = redis::cmd("EVAL");
            release.arg(RELEASE).arg(1).arg(self.key("reader")).arg(&*self.reader);
            if let Err(error) = self.ask(release).await {
                tracing::debug!(%error, "the turn to read a stream ends with its lease");
            }
        })
    }
}

/// What an entry asks for: `channel` and `data`; `event` and `idempotency_key` if it has them.
fn publication(name: &str, id: &str, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Publication, String> {
    let (mut channel, mut data, mut event, mut key) = (None, None, None, None);
    for (name, value) in fields {
        let place = match &*name {
            b"channel" => &mut channel,
            b"data" => &mut data,
            b"event" => &mut event,
            b"idempotency_key" => &mut key,
            _ => continue,
        };
        *place = Some(value);
    }
    let text = |what: &str, bytes: Vec<u8>| {
        String::from_utf8(bytes).map(String::into_boxed_str).map_err(|_| format!("its {what} is not UTF-8"))
    };
    let channel = channel.ok_or("it has no field `channel`")?;
    let data = data.ok_or("it has no field `data`")?;
    let key = key.map(|key| text("idempotency_key", key)).transpose()?;
    Ok(Publication {
        channel: text("channel", channel)?,
        event: event.map(|event| text("event", event)).transpose()?,
        data: String::from_utf8(data).map_or_else(|error| Data::Binary(error.into_bytes()), Data::Text),
        key: key.unwrap_or_else(|| format!("{name}:{id}").into()),
    })
}

/// The entries of one stream in an answer to XREADGROUP.
fn rows(answer: Value) -> Result<Rows, SourceError> {
    const NOT: SourceError = SourceError::Answer("XREADGROUP");
    let streams = match answer {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        _ => return Err(NOT),
    };
    let Some(Value::Array(mut stream)) = streams.into_iter().next() else { return Err(NOT) };
    let Some(Value::Array(entries)) = stream.pop() else { return Err(NOT) };
    let row = |entry| {
        let Value::Array(entry) = entry else { return Err(NOT) };
        let [id, fields] = <[Value; 2]>::try_from(entry).map_err(|_| NOT)?;
        let id = text(&id).ok_or(NOT)?.into();
        let fields = match fields {
            Value::Array(fields) if !fields.is_empty() => Some(pairs(fields).ok_or(NOT)?),
            _ => None,
        };
        Ok((id, fields))
    };
    entries.into_iter().map(row).collect()
}

fn pairs(fields: Vec<Value>) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let bytes = |value| match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    let mut fields = fields.into_iter();
    let mut pairs = Vec::with_capacity(fields.len() / 2);
    while let Some(name) = fields.next() {
        pairs.push((bytes(name)?, bytes(fields.next()?)?));
    }
    Some(pairs)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// A field of a flat list of names and values.
fn field<'v>(list: &'v Value, name: &str) -> Option<&'v Value> {
    let Value::Array(list) = list else { return None };
    list.chunks_exact(2).find(|pair| text(&pair[0]).as_deref() == Some(name)).map(|pair| &pair[1])
}
