//! A table of PostgreSQL that an application writes publications into, in its own transactions.
//!
//! A round is one transaction: take the turn (an advisory lock that ends with the transaction, so a reader that dies gives it
//! back, also behind a connection pool), read the oldest rows, publish them, delete what was accepted, mark what never can be.
//! A row that a transaction of the application still holds is passed over. New rows are notified by a trigger; the table is
//! looked at all the same now and then, because a notification may be lost with its connection.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::sync::Notify;
use tokio_postgres::{AsyncMessage, Client, Config, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{
    Boxed, CountsOf, Data, OutboxEntry, Publication, Publish, Round, Source, SourceError,
    batch::{self, Entry, Settled},
};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often what waits is counted.
const COUNT: Duration = Duration::from_secs(2);
/// How long channels that cannot be published to are passed over.
const AGAIN: Duration = Duration::from_secs(1);
/// So many of them are the whole backplane.
const STUCK_MAX: usize = 1000;
/// A statement that takes longer is given up, and a transaction in which nothing happens, by the server: so a reader whose
/// machine is gone does not keep its turn.
const SESSION: &str = "SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'";

pub(crate) struct Outbox {
    entry: OutboxEntry,
    client: Client,
    /// Something was notified, or the connection has ended.
    notified: Arc<Notify>,
    statements: Statements,
    counts: Arc<CountsOf>,
    stuck: BTreeSet<Box<str>>,
    stuck_since: Option<Instant>,
    why: String,
    counted: Option<Instant>,
}

struct Statements {
    turn: Statement,
    read: Statement,
    done: Statement,
    aside: Statement,
    lag: Statement,
}

impl Outbox {
    pub(crate) async fn connect(entry: OutboxEntry, counts: Arc<CountsOf>) -> Result<Self, SourceError> {
        let address = entry.address();
        let url = address.url().map_err(SourceError::Settings)?;
        let mut config: Config = url.parse()?;
        config.connect_timeout(CONNECT_MAX).keepalives_idle(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name(format!("tidegate {}", entry.name));
        }
        let authority = address.authority().map_err(SourceError::Settings)?;
        let (client, mut connection) = config.connect(tls(authority)?).await?;
        let notified = Arc::new(Notify::new());
        let notify = Arc::clone(&notified);
        // Ends with the client.
        tokio::spawn(async move {
            loop {
                let message = std::future::poll_fn(|context| connection.poll_message(context)).await;
                match message {
                    Some(Ok(AsyncMessage::Notification(_))) => notify.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return notify.notify_one(),
                }
            }
        });
        client.batch_execute(SESSION).await?;
        client.batch_execute(&format!("LISTEN {}", quoted(&entry.notify))).await?;
        let statements = Statements::prepare(&client, &entry).await?;
        let (stuck, why) = (BTreeSet::new(), String::new());
        Ok(Self { entry, client, notified, statements, counts, stuck, stuck_since: None, why, counted: None })
    }

    async fn work(&mut self, publisher: &dyn Publish) -> Result<Round, SourceError> {
        let round = self.transaction(publisher).await?;
        if !matches!(round, Round::Waiting) {
            self.count_lag().await?;
        }
        if matches!(round, Round::Waiting | Round::Empty) {
            // A notification that came since the table was looked at is not lost: it is kept for who waits next.
            let _either = tokio::time::timeout(self.entry.poll, self.notified.notified()).await;
        }
        Ok(round)
    }

    async fn transaction(&mut self, publisher: &dyn Publish) -> Result<Round, SourceError> {
        let (statements, counts) = (&self.statements, &self.counts);
        let transaction = self.client.transaction().await?;
        let has_turn: bool = transaction.query_one(&statements.turn, &[]).await?.try_get(0)?;
        if !has_turn {
            transaction.rollback().await?;
            return Ok(Round::Waiting);
        }
        let stuck: Vec<&str> = self.stuck.iter().map(|channel| &**channel).collect();
        let rows = transaction.query(&statements.read, &[&stuck, &i64::from(self.entry.batch)]).await?;
        if rows.is_empty() {
            transaction.rollback().await?;
            return Ok(self.go_back());
        }
        counts.read.add(rows.len() as u64);
        let entries = rows.iter().map(|row| entry(&self.entry.name, row)).collect::<Result<_, _>>()?;
        let settled = batch::publish(entries, publisher).await;
        if !settled.done.is_empty() {
            transaction.execute(&statements.done, &[&settled.done]).await?;
        }
        if !settled.aside.is_empty() {
            let (ids, whys): (Vec<i64>, Vec<&str>) =
                settled.aside.iter().map(|(id, why)| (*id, why.as_str())).unzip();
            transaction.execute(&statements.aside, &[&ids, &whys]).await?;
        }
        transaction.commit().await?;
        self.counts.settled(&settled);
        Ok(self.pass_over(settled))
    }

    /// Channels that cannot be published to keep no others: they are passed over for a while.
    fn pass_over(&mut self, settled: Settled<i64>) -> Round {
        self.stuck.extend(settled.stuck);
        if let Some(why) = settled.why {
            self.why = why;
            self.stuck_since.get_or_insert_with(Instant::now);
        }
        let is_over = self.stuck_since.is_some_and(|since| since.elapsed() >= AGAIN);
        if is_over || self.stuck.len() > STUCK_MAX { self.go_back() } else { Round::Worked }
    }

    fn go_back(&mut self) -> Round {
        self.stuck_since = None;
        match std::mem::take(&mut self.stuck).is_empty() {
            true => Round::Empty,
            false => Round::Later(std::mem::take(&mut self.why)),
        }
    }

    /// Counts what waits, now and then.
    async fn count_lag(&mut self) -> Result<(), SourceError> {
        if self.counted.is_some_and(|at| at.elapsed() < COUNT) {
            return Ok(());
        }
        self.counted = Some(Instant::now());
        let row = self.client.query_one(&self.statements.lag, &[]).await?;
        self.counts.lag.set(row.try_get(0)?);
        self.counts.lag_ms.set(row.try_get(1)?);
        self.counts.aside_now.set(row.try_get(2)?);
        Ok(())
    }
}

impl Source for Outbox {
    fn round<'s>(&'s mut self, publish: &'s dyn Publish) -> Boxed<'s, Result<Round, SourceError>> {
        Box::pin(self.work(publish))
    }
}

impl Statements {
    /// The columns are those of `docs/consumers.md`; one that is missing is what the error names.
    async fn prepare(client: &Client, entry: &OutboxEntry) -> Result<Self, SourceError> {
        let table = entry.table.split('.').map(quoted).collect::<Vec<_>>().join(".");
        let waits = match entry.keep {
            false => "failed_at IS NULL",
            true => "failed_at IS NULL AND published_at IS NULL",
        };
        let done = match entry.keep {
            false => format!("DELETE FROM {table} WHERE id = ANY($1)"),
            true => format!("UPDATE {table} SET published_at = now() WHERE id = ANY($1)"),
        };
        let turn =
            format!("SELECT pg_try_advisory_xact_lock(hashtextextended('tidegate:{}', 0))", entry.table);
        let read = format!(
            "SELECT id, channel, data::text, event, (extract(epoch FROM created_at) * 1000000)::bigint FROM {table} \
             WHERE {waits} AND (channel = ANY($1)) IS NOT TRUE ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED"
        );
        let aside = format!(
            "UPDATE {table} AS own SET failed_at = now(), error = bad.error \
             FROM unnest($1::bigint[], $2::text[]) AS bad(id, error) WHERE own.id = bad.id"
        );
        let lag = format!(
            "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)) * 1000, 0)::bigint, \
             (SELECT count(*) FROM (SELECT 1 FROM {table} WHERE failed_at IS NOT NULL LIMIT 100000) AS aside) \
             FROM (SELECT created_at FROM {table} WHERE {waits} ORDER BY id LIMIT 100000) AS waiting"
        );
        Ok(Self {
            turn: client.prepare(&turn).await?,
            read: client.prepare(&read).await?,
            done: client.prepare(&done).await?,
            aside: client.prepare(&aside).await?,
            lag: client.prepare(&lag).await?,
        })
    }
}

/// What a row asks for.
fn entry(name: &str, row: &Row) -> Result<Entry<i64>, SourceError> {
    let id: i64 = row.try_get(0)?;
    let created_us: Option<i64> = row.try_get(4)?;
    let (channel, data, event): (Option<String>, Option<String>, Option<String>) =
        (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let publication = match (channel, data) {
        (Some(channel), Some(data)) => Ok(Publication {
            channel: channel.into(),
            event: event.map(Into::into),
            data: Data::Text(data),
            // With the time, so that ids that begin anew are no repetitions.
            key: format!("{name}:{id}:{}", created_us.unwrap_or(0)).into(),
        }),
        (None, _) => Err("its channel is null".to_owned()),
        (_, None) => Err("its data is null".to_owned()),
    };
    Ok(Entry { id, publication })
}

fn quoted(name: impl AsRef<str>) -> String {
    format!("\"{}\"", name.as_ref().replace('"', "\"\""))
}

fn tls(authority: Option<Vec<u8>>) -> Result<MakeRustlsConnect, SourceError> {
    let settings = |what: &dyn std::fmt::Display| SourceError::Settings(what.to_string());
    let mut roots = RootCertStore::empty();
    match authority {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| settings(&error))?;
                roots.add(certificate).map_err(|error| settings(&error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| settings(&error))?;
    Ok(MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth()))
}
