//! One application that is asked: within its time, so many at once, and not while it fails.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use tidegate_ops::seldom::Seldom;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    breaker::{Breaker, Leave},
    centrifugo,
    client::{self, BodyError, read_body},
    cloud_events,
    metrics::{HookMetrics, HookResult},
    question::{No, Question, Reply, Unreadable},
    signature::{Ids, Signer},
};
use crate::config::{ConfigError, HookAway, HookDialect, HookEntry, HookQuestion};

/// An application as the configuration names it.
#[derive(Debug)]
pub(crate) struct Hook {
    name: Box<str>,
    pub(super) entry: HookEntry,
    url: reqwest::Url,
    client: reqwest::Client,
    signer: Signer,
    permits: Semaphore,
    breaker: Mutex<Breaker>,
    began: Instant,
    pub(super) metrics: HookMetrics,
    failures: Seldom,
}

/// What names this node in requests.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) node: String,
    pub(crate) ids: Ids,
}

/// Questions that may wait for one of the places of `concurrency`, for each of those places.
const WAITING_PER_PLACE: i64 = 16;

/// What `away = "allow"` lets a connection stay for before it is asked about again.
const ALLOWED_FOR: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Lack {
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Unreachable(reqwest::Error),
    #[error(transparent)]
    Unusable(#[from] Unreadable),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("as many questions wait as may")]
    Busy,
    #[error("its circuit is open")]
    CircuitOpen,
}

/// A question under way: gives back its leave, also when whoever waited for the answer is gone.
struct Asking<'h> {
    hook: &'h Hook,
    leave: Leave,
    is_answered: Option<bool>,
}

impl Hook {
    pub(super) fn new(name: &str, entry: &HookEntry) -> Result<Option<Self>, ConfigError> {
        // One without an address was refused when the configuration was loaded.
        let Some(url) = &entry.url else { return Ok(None) };
        Ok(Some(Self {
            name: name.into(),
            url: url.url().clone(),
            client: client::client_of(name, entry, entry.timeout)?,
            signer: Signer::new(entry),
            permits: Semaphore::new(entry.concurrency as usize),
            breaker: Mutex::default(),
            began: Instant::now(),
            metrics: HookMetrics::default(),
            failures: Seldom::default(),
            entry: entry.clone(),
        }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is asked this of a channel.
    pub(super) fn takes(&self, kind: HookQuestion, channel: Option<&str>) -> bool {
        self.entry.questions.contains(&kind)
            && channel
                .is_none_or(|channel| self.entry.channels.iter().any(|pattern| pattern.matches(channel)))
    }

    pub(super) fn is_open(&self) -> bool {
        self.breaker().is_open()
    }

    pub(super) fn times_opened(&self) -> u64 {
        self.breaker().times_opened()
    }

    /// How much of its places is taken: 1 where questions wait for one.
    pub(super) fn fullness(&self) -> f64 {
        self.metrics.under_way.get() as f64 / f64::from(self.entry.concurrency)
    }

    /// Asks, and says what its answer or the lack of one means.
    pub(crate) async fn ask(&self, question: &Question, source: &Source) -> Result<Reply, No> {
        let began = Instant::now();
        self.metrics.under_way.add(1);
        let answer = self.answer(question, source).await;
        self.metrics.under_way.add(-1);
        let result = match &answer {
            Ok(Ok(_)) => HookResult::Yes,
            Ok(Err(_)) => HookResult::No,
            Err(lack) => lack.result(),
        };
        self.metrics.results.add(result, 1);
        if !matches!(result, HookResult::CircuitOpen | HookResult::Busy) {
            self.metrics.latency_seconds.observe(began.elapsed());
        }
        answer.unwrap_or_else(|lack| self.without_answer(question.kind, &lack))
    }

    fn without_answer(&self, kind: HookQuestion, lack: &Lack) -> Result<Reply, No> {
        if let Some(left_out) = self.failures.ask() {
            tracing::warn!(hook = %self.name, question = kind.word(), left_out, "an application gives no answer: {lack}");
        }
        match (self.entry.away, kind) {
            // There is nothing to say in its place.
            (HookAway::Refuse, _) | (_, HookQuestion::Message) => Err(No::Away),
            (HookAway::Allow, HookQuestion::Refresh) => {
                Ok(Reply { expires: Some(SystemTime::now() + ALLOWED_FOR), ..Reply::default() })
            }
            (HookAway::Allow, _) => Ok(Reply::default()),
        }
    }

    async fn answer(&self, question: &Question, source: &Source) -> Result<Result<Reply, No>, Lack> {
        let leave = self.breaker().ask(self.began.elapsed()).ok_or(Lack::CircuitOpen)?;
        let mut asking = Asking { hook: self, leave, is_answered: None };
        let began = Instant::now();
        let _place = self.place().await?;
        let left = self.entry.timeout.saturating_sub(began.elapsed());
        let answer = timeout(left, self.post(question, source)).await.unwrap_or(Err(Lack::Timeout));
        asking.is_answered = Some(answer.is_ok());
        answer
    }

    /// Asks, for a person who wants to know what comes of it.
    pub(super) async fn ask_once(
        &self,
        question: &Question,
        source: &Source,
    ) -> Result<Result<Reply, No>, String> {
        self.answer(question, source).await.map_err(|lack| lack.to_string())
    }

    /// The same of an event: its status.
    pub(super) async fn post_event(
        &self,
        id: &str,
        at: Duration,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<StatusCode, String> {
        self.signer.sign(id, at.as_secs(), &body, &mut headers);
        let sent = self.client.post(self.url.clone()).headers(headers).body(body).send().await;
        sent.map(|response| response.status()).map_err(|error| error.without_url().to_string())
    }

    /// Waits for one of the places.
    async fn place(&self) -> Result<SemaphorePermit<'_>, Lack> {
        let most = i64::from(self.entry.concurrency).saturating_mul(1 + WAITING_PER_PLACE);
        if self.metrics.under_way.get() > most {
            return Err(Lack::Busy);
        }
        let place = timeout(self.entry.timeout, self.permits.acquire()).await;
        // It is never closed.
        place.map_err(|_| Lack::Timeout)?.map_err(|_| Lack::Busy)
    }

    async fn post(&self, question: &Question, source: &Source) -> Result<Result<Reply, No>, Lack> {
        let now = SystemTime::now();
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut headers, body) = match self.entry.dialect {
            HookDialect::Tidegate => cloud_events::request(question, &source.node, at),
            HookDialect::Centrifugo => centrifugo::request(question),
        };
        self.sign(&source.ids.next(), at, &body, &mut headers);
        let request = self.client.post(self.url.clone()).headers(headers).body(body);
        let response = request.send().await.map_err(|error| match error.is_timeout() {
            true => Lack::Timeout,
            // Without the address, which may have credentials.
            false => Lack::Unreachable(error.without_url()),
        })?;
        let status = response.status();
        let media = response.headers().get(CONTENT_TYPE).cloned();
        let body = read_body(response, self.entry.answer_bytes.bytes()).await?;
        let read = match self.entry.dialect {
            HookDialect::Tidegate => cloud_events::read(question.kind, status, media.as_ref(), body),
            HookDialect::Centrifugo => centrifugo::read(question.kind, status, &body, now),
        }?;
        let max = self.entry.state_bytes.bytes();
        match &read {
            Ok(Reply { state: Some(state), .. }) if state.len() > max => {
                Err(Unreadable("its state has more than state_bytes").into())
            }
            _ => Ok(read),
        }
    }

    fn sign(&self, id: &str, at: Duration, body: &[u8], headers: &mut HeaderMap) {
        if self.entry.dialect == HookDialect::Tidegate
            && let Ok(id) = id.try_into()
        {
            headers.insert("ce-id", id);
        }
        self.signer.sign(id, at.as_secs(), body, headers);
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.hook.breaker().ended(self.leave, self.hook.began.elapsed(), self.is_answered);
    }
}

impl Lack {
    fn result(&self) -> HookResult {
        match self {
            Self::Timeout => HookResult::Timeout,
            Self::Unreachable(_) | Self::Body(BodyError::Broken) => HookResult::Unreachable,
            Self::Unusable(_) => HookResult::Unusable,
            Self::Body(BodyError::TooLarge(_)) => HookResult::TooLarge,
            Self::Busy => HookResult::Busy,
            Self::CircuitOpen => HookResult::CircuitOpen,
        }
    }
}
