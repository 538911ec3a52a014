//! Whether a backplane may be changed from outside: not while all that it knows is written for another process, and never
//! again once that one goes on with it.

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard,
    atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire},
};

use tokio::sync::watch;

use crate::{BackplaneError, Channel};

/// Told of who leaves a channel after the backplane was given away.
pub type OnLeave = Box<dyn Fn(&Channel, Option<&str>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Gate {
    state: RwLock<State>,
    /// Changes that take a while and have begun.
    under_way: AtomicUsize,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// Who wants to change something waits for what becomes of it.
    Shut(watch::Sender<bool>),
    Given(OnLeave),
}

impl Gate {
    /// To be held while something is changed. An error: what to wait for.
    pub(crate) fn pass(&self) -> Result<Passing<'_>, Waiting> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open => Ok(Passing { _state: state }),
            State::Shut(outcome) => Err(Waiting(Some(outcome.subscribe()))),
            State::Given(_) => Err(Waiting(None)),
        }
    }

    /// A change that takes a while: `work` is begun now, or when it may.
    pub(crate) async fn through<T>(
        &self,
        work: impl Future<Output = Result<T, BackplaneError>>,
    ) -> Result<T, BackplaneError> {
        let _begun = loop {
            let waiting = match self.pass() {
                Ok(_passing) => break UnderWay::begin(&self.under_way),
                Err(waiting) => waiting,
            };
            waiting.over().await?;
        };
        work.await
    }

    /// Does something that takes no while, when it may.
    pub(crate) async fn when_open(&self, act: impl FnOnce()) -> Result<(), BackplaneError> {
        loop {
            let waiting = match self.pass() {
                Ok(_passing) => {
                    act();
                    return Ok(());
                }
                Err(waiting) => waiting,
            };
            waiting.over().await?;
        }
    }

    /// Whether no change that takes a while is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.load(Acquire) == 0
    }

    /// When this returns, nobody is at work, but for changes that take a while.
    pub(crate) fn shut(&self) {
        self.set(State::Shut(watch::Sender::new(false)));
    }

    pub(crate) fn open(&self) {
        self.set(State::Open);
    }

    pub(crate) fn give(&self, on_leave: OnLeave) {
        self.set(State::Given(on_leave));
    }

    /// Tells who goes on of somebody who has left; false: nobody else goes on.
    pub(crate) fn tell_left(&self, channel: &Channel, connection: Option<&str>) -> bool {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Given(on_leave) => {
                on_leave(channel, connection);
                true
            }
            State::Open | State::Shut(_) => false,
        }
    }

    /// Whoever waited is woken by the end of what it waited on.
    fn set(&self, state: State) {
        let before =
            std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state);
        drop(before);
    }
}

/// While there is one, the gate is not shut.
pub(crate) struct Passing<'g> {
    _state: RwLockReadGuard<'g, State>,
}

struct UnderWay<'g>(&'g AtomicUsize);

impl<'g> UnderWay<'g> {
    fn begin(number: &'g AtomicUsize) -> Self {
        number.fetch_add(1, AcqRel);
        Self(number)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

/// What somebody waits for who came when it was shut; `None`: it never opens.
pub(crate) struct Waiting(Option<watch::Receiver<bool>>);

impl Waiting {
    /// It may be open now; who waited looks again.
    pub(crate) async fn over(self) -> Result<(), BackplaneError> {
        let Some(mut outcome) = self.0 else { return Err(given()) };
        // It never says anything: it ends.
        drop(outcome.changed().await);
        Ok(())
    }
}

fn given() -> BackplaneError {
    BackplaneError::Overloaded("another process has taken this one's place; try again".into())
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}
