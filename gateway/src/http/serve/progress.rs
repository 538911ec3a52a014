//! How far a connection's exchange is, and how long that may last. Told by its socket and its service, asked by its
//! task.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::Patience;

/// Shared by the parts of one connection, all of which one task polls: the lock is never waited for.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) patience: Patience,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// `None`: it is the server that works.
    deadline: Option<Instant>,
}

/// ```text
/// Quiet ──► Head ──► Working ──► Writing ──► Quiet
///             └────► Returning { flushed: false } ──► { flushed: true }
/// ```
///
/// Pipelined requests were read together: after the first, there is no `Head`.
#[derive(Debug)]
enum Phase {
    /// Nothing has come since the last answer was flushed.
    Quiet,
    /// A part of a head has come.
    Head,
    /// The service has a request.
    Working,
    /// The service has answered, hyper writes. All our answers are whole when they are given to hyper; a streamed
    /// one would be taken for flushed after its first part.
    Writing,
    /// The service has left a request unanswered that is a shard's; this is its head.
    Returning { head: Vec<u8>, flushed: bool },
}

/// What a connection is late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The rest of a head.
    Head,
    /// The next request, or taking the last answer.
    Quiet,
}

impl Progress {
    pub(super) fn new(patience: Patience) -> Self {
        let deadline = Some(Instant::now() + patience.quiet);
        Self { patience, state: Mutex::new(State { phase: Phase::Quiet, deadline }) }
    }

    /// Bytes were read.
    pub(super) fn read(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Quiet) {
            *state = State { phase: Phase::Head, deadline: Some(Instant::now() + self.patience.head) };
        }
    }

    /// Bytes were written.
    pub(super) fn wrote(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Writing | Phase::Returning { .. }) {
            state.deadline = Some(Instant::now() + self.patience.quiet);
        }
    }

    /// Everything was written that hyper had to write.
    pub(super) fn flushed(&self) {
        let mut state = self.lock();
        match &mut state.phase {
            Phase::Writing => state.phase = Phase::Quiet,
            Phase::Returning { flushed, .. } => *flushed = true,
            Phase::Quiet | Phase::Head | Phase::Working => {}
        }
    }

    /// Nothing is under way in either direction.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.lock().phase, Phase::Quiet)
    }

    pub(super) fn requested(&self) {
        *self.lock() = State { phase: Phase::Working, deadline: None };
    }

    pub(super) fn answered(&self) {
        let deadline = Some(Instant::now() + self.patience.quiet);
        *self.lock() = State { phase: Phase::Writing, deadline };
    }

    /// The connection is to go back with this head, once the answers before it have left.
    pub(super) fn return_at_flush(&self, head: Vec<u8>) {
        let deadline = Some(Instant::now() + self.patience.quiet);
        // hyper calls `flush` only with an empty write buffer, and from now on nothing is added to that.
        *self.lock() = State { phase: Phase::Returning { head, flushed: false }, deadline };
    }

    /// The head with which the connection goes back now.
    pub(super) fn take_flushed(&self) -> Option<Vec<u8>> {
        match &mut self.lock().phase {
            Phase::Returning { head, flushed: true } => Some(std::mem::take(head)),
            _ => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().deadline
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<Overdue> {
        let state = self.lock();
        state.deadline.filter(|deadline| *deadline <= now)?;
        Some(if matches!(state.phase, Phase::Head) { Overdue::Head } else { Overdue::Quiet })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(10), quiet: Duration::from_secs(75) };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What is overdue after so many more seconds without a sign.
    #[track_caller]
    fn check(progress: &Progress, patience_s: u64, expect: Overdue) {
        let now = Instant::now();
        assert_eq!(progress.overdue(now + seconds(patience_s) - Duration::from_millis(1)), None);
        assert_eq!(progress.overdue(now + seconds(patience_s)), Some(expect));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_less_time_than_the_pause_before_it() {
        let progress = Progress::new(PATIENCE);
        check(&progress, 75, Overdue::Quiet);
        tokio::time::advance(seconds(70)).await;
        progress.read();
        check(&progress, 10, Overdue::Head);
        // More bytes of it give it no more time.
        tokio::time::advance(seconds(4)).await;
        progress.read();
        check(&progress, 6, Overdue::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_worked_on_has_no_deadline() {
        let progress = Progress::new(PATIENCE);
        progress.read();
        progress.requested();
        // A part of its body.
        progress.read();
        progress.flushed();
        assert_eq!(progress.overdue(Instant::now() + seconds(10_000)), None);
        progress.answered();
        check(&progress, 75, Overdue::Quiet);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_answer_slowly_has_time_with_every_byte() {
        let progress = Progress::new(PATIENCE);
        progress.requested();
        progress.answered();
        for _ in 0..10 {
            tokio::time::advance(seconds(60)).await;
            progress.wrote();
            // The next request, while this answer is under way: no head to wait for.
            progress.read();
            check(&progress, 75, Overdue::Quiet);
        }
        progress.flushed();
        progress.read();
        check(&progress, 10, Overdue::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_goes_back_after_the_flush() {
        let progress = Progress::new(PATIENCE);
        progress.flushed();
        progress.return_at_flush(b"head".to_vec());
        assert_eq!(progress.take_flushed(), None);
        progress.wrote();
        assert_eq!(progress.take_flushed(), None);
        check(&progress, 75, Overdue::Quiet);
        progress.flushed();
        assert_eq!(progress.take_flushed().unwrap(), b"head");
    }
}
