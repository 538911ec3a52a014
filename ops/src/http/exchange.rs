//! What the parts of one HTTP connection tell each other: its gate, its service, its task.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tidegate_wire::request::RequestError;

/// Shared by the parts of one connection, all of which one task polls: the lock is never waited for.
#[derive(Debug, Default)]
pub struct Exchange(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Heads that hyper was given and has not called the service with: as many as one read of hyper holds.
    heads: VecDeque<Bytes>,
    /// Requests that hyper was given and whose answers it has not written.
    open: usize,
    /// Everything was sent that hyper had to send.
    is_flushed: bool,
    end: Option<End>,
}

/// How a connection ends being hyper's when the answers before have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The next request is a shard's.
    Returning,
    Refused(RequestError),
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
    /// hyper is given a request.
    pub fn begin(&self, head: Bytes) {
        let mut state = self.lock();
        state.heads.push_back(head);
        state.open += 1;
        state.is_flushed = false;
    }

    /// The service has a request; its head as it came.
    pub fn take(self: &Arc<Self>) -> Option<(Bytes, Open)> {
        self.lock().heads.pop_front().map(|head| (head, Open(Arc::clone(self))))
    }

    /// hyper gets nothing more.
    pub fn end(&self, end: End) {
        let mut state = self.lock();
        state.end = Some(end);
        state.is_flushed = false;
    }

    /// hyper has nothing left to send. (It flushes its socket only when its own buffer is empty.)
    pub fn flushed(&self) {
        let mut state = self.lock();
        state.is_flushed = state.open == 0;
    }

    /// No request is under way.
    pub fn is_idle(&self) -> bool {
        self.lock().open == 0
    }

    /// What is to be done with the connection now.
    pub fn take_end(&self) -> Option<End> {
        let mut state = self.lock();
        if state.is_flushed { state.end.take() } else { None }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
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
