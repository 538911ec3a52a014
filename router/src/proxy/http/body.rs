//! A request's body that can be given to a second node as long as the first one has read nothing of it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Shared by the attempts of one request, of which one at a time is polled.
#[derive(Debug)]
pub(super) struct Lent(Arc<Mutex<Original>>);

#[derive(Debug)]
struct Original {
    body: Incoming,
    read: bool,
    failed: bool,
}

impl Lent {
    pub(super) fn new(body: Incoming) -> Self {
        Self(Arc::new(Mutex::new(Original { body, read: false, failed: false })))
    }

    pub(super) fn lend(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    pub(super) fn was_read(&self) -> bool {
        self.lock().read
    }

    /// The client did not send it as it said.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    fn lock(&self) -> MutexGuard<'_, Original> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut original = self.lock();
        original.read = true;
        let polled = Pin::new(&mut original.body).poll_frame(cx);
        original.failed |= matches!(polled, Poll::Ready(Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
