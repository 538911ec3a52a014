//! The connection for commands: those that wait leave in one write, and answers are matched to them in their order.
//!
//! Nothing waits for others to come: a command that finds the socket idle is written at once. While one write, or the
//! task, is under way, commands pile up and leave with the next.

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use redis::{Cmd, RedisError, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::dial::Raw;
use super::feed::{split, write};
use super::link::{Live, Room};
use crate::redis::error::Trouble;

/// A command that is not answered for so long makes its link away: 1,900 ms and then 100 ms more, which begin when this
/// process runs again if it was stopped. An answer that came meanwhile is read in these.
const ANSWER_DEADLINE: [Duration; 2] = [Duration::from_millis(1_900), Duration::from_millis(100)];

/// What is kept of a buffer that was written: a few hundred commands of usual size.
const BUFFER_KEPT: usize = 64 * 1024;

/// Tells a Cluster node that the next command was sent to it by another one.
const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Commands on their way. Its task is [`carry`].
#[derive(Debug, Default)]
pub(super) struct Pipe {
    state: Mutex<State>,
    filled: Notify,
}

/// An answer, and what its command held of the link's bound.
pub(super) type Answer = (Value, Option<Room>);

#[derive(Debug, Default)]
struct State {
    /// Not written yet.
    outgoing: Vec<u8>,
    waiting: VecDeque<Waiting>,
    is_closed: bool,
}

/// A command without an answer.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    room: Option<Room>,
    /// `None`: nobody wants it.
    answer: Option<oneshot::Sender<Answer>>,
}

impl Pipe {
    /// Sends a command after those before it. `None`: the connection is over. When it ends before the answer has come, so
    /// does the receiver.
    pub(super) fn push(
        &self,
        command: &Cmd,
        asking: bool,
        room: Option<Room>,
    ) -> Option<oneshot::Receiver<Answer>> {
        let (answer, answered) = oneshot::channel();
        let since = Instant::now();
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        let is_first = state.outgoing.is_empty();
        if asking {
            state.outgoing.extend_from_slice(ASKING);
            state.waiting.push_back(Waiting { since, room: None, answer: None });
        }
        command.write_packed_command(&mut state.outgoing);
        state.waiting.push_back(Waiting { since, room, answer: Some(answer) });
        drop(state);
        if is_first {
            self.filled.notify_one();
        }
        Some(answered)
    }

    /// Commands without an answer.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Takes what is to be written next; `spent` is used again.
    fn take(&self, spent: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.state().outgoing, spent)
    }

    fn answered(&self, value: Value) {
        let waiting = self.state().waiting.pop_front();
        if let Some(Waiting { room, answer: Some(answer), .. }) = waiting {
            // Who asked may have given up.
            answer.send((value, room)).ok();
        }
    }

    /// Since when the oldest command has waited.
    fn waiting_since(&self) -> Option<Instant> {
        self.state().waiting.front().map(|waiting| waiting.since)
    }

    /// Whoever waits hears that nothing will come.
    fn close(&self) {
        let mut state = self.state();
        let ended = std::mem::replace(&mut *state, State { is_closed: true, ..State::default() });
        drop(state);
        drop(ended);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes and reads until the connection is over, and gives the session up. However it ends, nobody waits afterwards.
pub(super) fn carry(raw: Raw, pipe: Arc<Pipe>, live: Arc<Live>) -> impl Future<Output = ()> + Send + 'static {
    let open = Open(pipe);
    async move {
        let trouble = exchange(raw, &open.0).await;
        live.give_up(trouble);
    }
}

/// A pipe that closes when its task ends, or is aborted before it began.
struct Open(Arc<Pipe>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn exchange(raw: Raw, pipe: &Pipe) -> Trouble {
    let (mut reader, mut writer) = split(raw);
    let mut outgoing = Cursor::new(Vec::new());
    let mut is_flushed = true;
    let mut is_late = false;
    let judgement = sleep_until(Instant::now() + ANSWER_DEADLINE[0]);
    tokio::pin!(judgement);
    loop {
        tokio::select! {
            value = reader.next() => {
                let mut next = Some(value);
                // Bounded: what is answered was written here.
                while let Some(value) = next {
                    if let Err(trouble) = take(value, pipe) {
                        return trouble;
                    }
                    next = reader.next().now_or_never();
                }
            }
            written = write(&mut writer, &mut outgoing), if !is_flushed => match written {
                Ok(()) => is_flushed = true,
                Err(error) => return Trouble::Broken(error.into()),
            },
            () = pipe.filled.notified(), if is_flushed => {
                let mut spent = outgoing.into_inner();
                spent.clear();
                spent.shrink_to(BUFFER_KEPT);
                outgoing = Cursor::new(pipe.take(spent));
                is_flushed = false;
            }
            () = &mut judgement => {
                let now = Instant::now();
                let age = pipe.waiting_since().map_or(Duration::ZERO, |since| now - since);
                let within = ANSWER_DEADLINE.iter().sum();
                if is_late && age >= within {
                    return Trouble::Late { what: "answer", within };
                }
                is_late = age >= ANSWER_DEADLINE[0];
                let rest = if is_late { ANSWER_DEADLINE[1] } else { ANSWER_DEADLINE[0] - age };
                judgement.as_mut().reset(now + rest);
            }
        }
    }
}

fn take(value: Option<Result<Value, RedisError>>, pipe: &Pipe) -> Result<(), Trouble> {
    match value {
        // Nothing that was asked here is answered so.
        Some(Ok(Value::Push { .. })) => {}
        Some(Ok(value)) => pipe.answered(value),
        Some(Err(error)) => return Err(Trouble::Broken(error)),
        None => return Err(Trouble::Closed),
    }
    Ok(())
}
