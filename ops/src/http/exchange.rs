//! What the parts of one HTTP connection tell each other: its gate, its service, its task; and how long each may wait for
//! the client.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tidegate_wire::request::RequestError;
use tokio::time::Instant;

/// Shared by the parts of one connection, all of which one task polls: the lock is never waited for.
#[derive(Debug)]
pub struct Exchange {
    patience: Patience,
    /// The service wants heads as they came.
    keeps_heads: bool,
    state: Mutex<State>,
}

/// How long a client may keep the server waiting.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Between requests, and for a client that does not take its answer.
    pub quiet: Duration,
}

/// nginx and common load balancers drop a kept-alive connection that was unused for 60 s. If this side dropped it
/// first, their next request would meet a closing socket; with 15 s more it is they who close.
pub const QUIET_MAX: Duration = Duration::from_secs(75);

#[derive(Debug)]
struct State {
    /// Heads that hyper was given and has not called the service with: as many as one read of hyper holds.
    heads: VecDeque<Bytes>,
    /// Requests that hyper was given and whose answers it has not written.
    open: usize,
    /// A part of a head has come, and nothing else is under way.
    in_head: bool,
    /// Everything was sent that hyper had to send.
    is_flushed: bool,
    end: Option<End>,
    /// When the client has kept the server waiting for too long; `None`: it is the server that works.
    deadline: Option<Instant>,
}

/// How a connection ends being hyper's when the answers before have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The next request is a shard's.
    Returning,
    Refused(RequestError),
}

/// What a client is late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// The rest of a head.
    Head,
    /// The next request, or taking the last answer.
    Quiet,
}

/// A request that is being answered, until the last of its answer was given to hyper.
#[derive(Debug)]
pub struct Open(Arc<Exchange>);

/// The body of an answer.
#[derive(Debug)]
pub struct AnswerBody {
    body: axum::body::Body,
    _open: Open,
}

impl Exchange {
    pub fn new(patience: Patience, keeps_heads: bool) -> Self {
        let state = State {
            heads: VecDeque::new(),
            open: 0,
            in_head: false,
            is_flushed: true,
            end: None,
            deadline: Some(Instant::now() + patience.quiet),
        };
        Self { patience, keeps_heads, state: Mutex::new(state) }
    }

    /// Bytes came that are of a head. More of them give it no more time.
    pub(super) fn received(&self) {
        let mut state = self.lock();
        if state.open == 0 && state.is_flushed && !state.in_head {
            state.in_head = true;
            state.deadline = Some(Instant::now() + self.patience.head);
        }
    }

    /// hyper is given a request.
    pub(super) fn begin(&self, head: &[u8]) {
        let head = if self.keeps_heads { Bytes::copy_from_slice(head) } else { Bytes::new() };
        let mut state = self.lock();
        state.heads.push_back(head);
        state.open += 1;
        (state.in_head, state.is_flushed, state.deadline) = (false, false, None);
    }

    /// The service has a request; its head as it came, or nothing where it is not kept.
    pub fn take(self: &Arc<Self>) -> Option<(Bytes, Open)> {
        self.lock().heads.pop_front().map(|head| (head, Open(Arc::clone(self))))
    }

    /// hyper gets nothing more. What it was given before may be answered and sent, or not yet.
    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        state.end = Some(end);
        state.in_head = false;
        self.give_time(&mut state);
    }

    /// The client has taken some bytes.
    pub(super) fn wrote(&self) {
        self.give_time(&mut self.lock());
    }

    /// The client does not take what it is sent.
    pub(super) fn blocked(&self) {
        let mut state = self.lock();
        state.deadline.get_or_insert_with(|| Instant::now() + self.patience.quiet);
    }

    /// hyper has nothing left to send. (It flushes its socket only when its own buffer is empty.)
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        state.is_flushed = state.open == 0;
    }

    /// Nothing is under way in either direction.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.open == 0 && state.is_flushed && !state.in_head
    }

    /// What is to be done with the connection now.
    pub(super) fn take_end(&self) -> Option<End> {
        let mut state = self.lock();
        if state.is_flushed { state.end.take() } else { None }
    }

    pub(super) fn quiet(&self) -> Duration {
        self.patience.quiet
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().deadline
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<Overdue> {
        let state = self.lock();
        state.deadline.filter(|deadline| *deadline <= now)?;
        Some(if state.in_head { Overdue::Head } else { Overdue::Quiet })
    }

    /// A client from which nothing is wanted while its request is answered has no deadline.
    fn give_time(&self, state: &mut State) {
        state.deadline = (state.open == 0).then(|| Instant::now() + self.patience.quiet);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open -= 1;
        self.0.give_time(&mut state);
    }
}

impl AnswerBody {
    pub fn new(body: axum::body::Body, open: Open) -> Self {
        Self { body, _open: open }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(10), quiet: QUIET_MAX };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn exchange() -> Arc<Exchange> {
        Arc::new(Exchange::new(PATIENCE, false))
    }

    /// What is overdue after so many more seconds without a sign.
    #[track_caller]
    fn check(exchange: &Exchange, patience_s: u64, expect: Overdue) {
        let now = Instant::now();
        assert_eq!(exchange.overdue(now + seconds(patience_s) - Duration::from_millis(1)), None);
        assert_eq!(exchange.overdue(now + seconds(patience_s)), Some(expect));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_less_time_than_the_pause_before_it() {
        let exchange = exchange();
        check(&exchange, 75, Overdue::Quiet);
        tokio::time::advance(seconds(70)).await;
        exchange.received();
        check(&exchange, 10, Overdue::Head);
        // More bytes of it give it no more time.
        tokio::time::advance(seconds(4)).await;
        exchange.received();
        check(&exchange, 6, Overdue::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_a_deadline_while_it_is_waited_for() {
        let exchange = exchange();
        exchange.received();
        exchange.begin(b"");
        let (_, open) = exchange.take().unwrap();
        exchange.flushed();
        let far = Instant::now() + seconds(10_000);
        assert_eq!(exchange.overdue(far), None, "it is the server that works");
        exchange.blocked();
        check(&exchange, 75, Overdue::Quiet);
        exchange.wrote();
        assert_eq!(exchange.overdue(far), None, "it has taken what there was");
        drop(open);
        check(&exchange, 75, Overdue::Quiet);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_answer_slowly_has_time_with_every_byte() {
        let exchange = exchange();
        exchange.begin(b"");
        drop(exchange.take().unwrap());
        for _ in 0..10 {
            tokio::time::advance(seconds(60)).await;
            exchange.wrote();
            // The next request, while this answer is under way: no head to wait for.
            exchange.received();
            check(&exchange, 75, Overdue::Quiet);
        }
        exchange.flushed();
        exchange.received();
        check(&exchange, 10, Overdue::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_leaves_after_the_flush() {
        let exchange = exchange();
        exchange.begin(b"");
        exchange.end(End::Returning);
        exchange.flushed();
        assert_eq!(exchange.take_end(), None, "it is not answered");
        drop(exchange.take().unwrap());
        exchange.wrote();
        assert_eq!(exchange.take_end(), None, "the answer is not sent");
        check(&exchange, 75, Overdue::Quiet);
        exchange.flushed();
        assert_eq!(exchange.take_end(), Some(End::Returning));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_leaves_at_once_when_all_is_sent() {
        let exchange = exchange();
        exchange.begin(b"");
        drop(exchange.take().unwrap());
        exchange.flushed();
        exchange.end(End::Returning);
        assert_eq!(exchange.take_end(), Some(End::Returning));
    }
}
