//! Whether a memory backplane may be changed from outside: not while all that it knows is written for another process, and
//! never again once that one goes on with it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use crate::{BackplaneError, Channel};

/// Told of who leaves a channel after the backplane was given away.
pub type OnLeave = Box<dyn Fn(&Channel, Option<&str>) + Send + Sync>;

#[derive(Default)]
pub(super) struct Gate(RwLock<State>);

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
    pub(super) fn pass(&self) -> Result<Passing<'_>, Waiting> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open => Ok(Passing { _state: state }),
            State::Shut(outcome) => Err(Waiting(Some(outcome.subscribe()))),
            State::Given(_) => Err(Waiting(None)),
        }
    }

    /// When this returns, nobody is at work.
    pub(super) fn shut(&self) {
        self.set(State::Shut(watch::Sender::new(false)));
    }

    pub(super) fn open(&self) {
        self.set(State::Open);
    }

    pub(super) fn give(&self, on_leave: OnLeave) {
        self.set(State::Given(on_leave));
    }

    /// Tells who goes on of somebody who has left; false: nobody else goes on.
    pub(super) fn tell_left(&self, channel: &Channel, connection: Option<&str>) -> bool {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            State::Given(on_leave) => {
                on_leave(channel, connection);
                true
            }
            State::Open | State::Shut(_) => false,
        }
    }

    /// Whoever waited is woken by the end of what it waited on.
    fn set(&self, state: State) {
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), state);
        drop(before);
    }
}

/// While there is one, the gate is not shut.
pub(super) struct Passing<'g> {
    _state: RwLockReadGuard<'g, State>,
}

/// What somebody waits for who came when it was shut; `None`: it never opens.
pub(super) struct Waiting(Option<watch::Receiver<bool>>);

impl Waiting {
    /// It may be open now; who waited looks again.
    pub(super) async fn over(self) -> Result<(), BackplaneError> {
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
