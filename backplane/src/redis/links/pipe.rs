//! Commands on one connection: those that wait leave in one write, and answers are matched to them in their order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::dial::Connection;
use super::driver::{Side, Signals, drive};
use super::halt::{Halt, Part};
use super::room::Room;
use super::silence::Silence;
use super::wire::{Frame, Inbound};
use crate::redis::error::Trouble;

/// A connection that brings nothing for so long, while a command waits for its answer, makes its link away.
const DEADLINE: Duration = Duration::from_secs(2);

/// Tells a Cluster node that the next command was sent to it by another one.
const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Commands on their way. Its task is [`carry`].
#[derive(Debug, Default)]
pub(super) struct Pipe {
    state: Mutex<State>,
    filled: Notify,
}

/// What became of commands that left together, in their order. It ends early where the connection did.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) values: Vec<Value>,
    /// The others were not written whole: the server cannot have run them.
    pub(super) are_rest_unsent: bool,
    /// Held until now, whether or not the caller still waits.
    _room: Option<Room>,
}

#[derive(Debug, Default)]
struct State {
    /// Not written yet.
    outgoing: Vec<u8>,
    waiting: VecDeque<Waiting>,
    /// Bytes of all commands since the beginning, and of those that were written.
    pushed: u64,
    written: u64,
    is_closed: bool,
}

/// Commands that left together and are not all answered.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// [`State::pushed`] after the first of them.
    first_end: u64,
    ends: Vec<u64>,
    /// An answer that nobody wants comes first.
    asking: bool,
    count: usize,
    values: Vec<Value>,
    room: Option<Room>,
    answer: oneshot::Sender<Answers>,
}

impl Pipe {
    /// Sends commands one after the other, with nothing between them. `None`: the connection is over, and nothing was
    /// sent.
    pub(super) fn push(
        &self,
        commands: &[&Cmd],
        asking: bool,
        room: Option<Room>,
    ) -> Option<oneshot::Receiver<Answers>> {
        let (answer, answered) = oneshot::channel();
        let since = Instant::now();
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        let was_empty = state.outgoing.is_empty();
        let before = state.outgoing.len();
        if asking {
            state.outgoing.extend_from_slice(ASKING);
        }
        let mut first_end = 0;
        let mut ends = Vec::with_capacity(commands.len().saturating_sub(1));
        for (nth, command) in commands.iter().enumerate() {
            command.write_packed_command(&mut state.outgoing);
            let end = state.pushed + (state.outgoing.len() - before) as u64;
            // One command, the usual case, needs no list.
            if nth == 0 { first_end = end } else { ends.push(end) }
        }
        state.pushed += (state.outgoing.len() - before) as u64;
        let (count, values) = (commands.len(), Vec::with_capacity(commands.len()));
        state.waiting.push_back(Waiting { since, first_end, ends, asking, count, values, room, answer });
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        Some(answered)
    }

    /// Has its task look whether it is to stand still.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Commands without an answer.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.iter().map(|waiting| waiting.count - waiting.values.len()).sum()
    }

    /// Whoever waits hears what came, and that nothing more will.
    fn close(&self) {
        let mut state = self.state();
        let ended = std::mem::replace(&mut *state, State { is_closed: true, ..State::default() });
        drop(state);
        ended.waiting.into_iter().for_each(|waiting| waiting.end(ended.written));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answered(&mut self, value: Value) {
        let Some(first) = self.waiting.front_mut() else { return };
        if std::mem::take(&mut first.asking) {
            return;
        }
        first.values.push(value);
        if first.values.len() == first.count
            && let Some(done) = self.waiting.pop_front()
        {
            done.end(self.written);
        }
    }
}

impl Waiting {
    fn end(self, written: u64) {
        let next = match self.values.len() {
            0 => Some(self.first_end),
            answered => self.ends.get(answered - 1).copied(),
        };
        let are_rest_unsent = next.is_some_and(|end| end > written);
        let answers = Answers { values: self.values, are_rest_unsent, _room: self.room };
        // Who asked may have given up.
        self.answer.send(answers).unwrap_or_default();
    }
}

/// Writes and reads until the connection is over, and says why to `end`. However it ends, nobody waits afterwards.
pub(super) fn carry(
    connection: Connection,
    pipe: Arc<Pipe>,
    part: Part,
    halt: Arc<Halt>,
    end: impl FnOnce(Trouble) + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let open = Open(pipe);
    async move {
        let now = Instant::now();
        let mut commands = Commands { pipe: &open.0, heard: now, silence: Silence::begin(DEADLINE, now) };
        let signals = Signals { filled: &open.0.filled, halt: &halt, part };
        let trouble = drive(connection, signals, &mut commands).await;
        end(trouble);
    }
}

/// A pipe that closes when its task ends, or is aborted before it began.
struct Open(Arc<Pipe>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Commands<'a> {
    pipe: &'a Pipe,
    /// When something last arrived.
    heard: Instant,
    silence: Silence,
}

impl Commands<'_> {
    /// Since when an answer is missing and nothing came.
    fn silent_since(&self) -> Option<Instant> {
        self.pipe.state().waiting.front().map(|waiting| waiting.since.max(self.heard))
    }
}

impl Side for Commands<'_> {
    fn outgoing(&mut self, spent: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.pipe.state().outgoing, spent)
    }

    fn written(&mut self, bytes: usize) {
        self.pipe.state().written += bytes as u64;
    }

    fn arrived(&mut self, inbound: &mut Inbound) -> Result<(), Trouble> {
        self.heard = Instant::now();
        let mut state = self.pipe.state();
        // What was asked here is never answered with a message or another push.
        let mut read = |frame: Frame<'_>| match frame {
            Frame::Message { .. } | Frame::Value(Ok(Value::Push { .. })) => Ok(()),
            Frame::Value(Ok(value)) => {
                state.answered(value);
                Ok(())
            }
            Frame::Value(Err(error)) => Err(Trouble::Broken(error)),
        };
        while let Some(taken) = inbound.take(&mut read)? {
            taken?;
        }
        Ok(())
    }

    fn is_at_rest(&self) -> bool {
        self.pipe.state().waiting.is_empty()
    }

    fn due_at(&self) -> Instant {
        self.silence.judged_at()
    }

    fn due(&mut self, now: Instant) -> Result<(), Trouble> {
        let late = now.saturating_duration_since(self.due_at());
        match self.silence.judge(now, self.silent_since().unwrap_or(now), late) {
            true => Err(Trouble::Late { what: "answer", within: self.silence.deadline() }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was never written did not happen, and is no question for the caller.
    #[test]
    fn what_was_not_written_whole_is_known_not_to_have_run() {
        let check = |written_short_of_all: u64, answered: usize, expect: bool| {
            let pipe = Pipe::default();
            let command = redis::cmd("PING");
            let mut answers = pipe.push(&[&command, &command, &command], false, None).expect("it is open");
            let mut state = pipe.state();
            state.written = state.pushed - written_short_of_all;
            (0..answered).for_each(|_| state.answered(Value::Okay));
            drop(state);
            pipe.close();
            let answers = answers.try_recv().expect("whoever waits hears of the end");
            assert_eq!(answers.values.len(), answered);
            assert_eq!(
                answers.are_rest_unsent, expect,
                "{written_short_of_all} B short, {answered} answered"
            );
        };
        let one = redis::cmd("PING").get_packed_command().len() as u64;
        check(0, 0, false);
        check(1, 0, false);
        check(1, 2, true);
        check(one, 1, false);
        check(one, 2, true);
        check(3 * one, 0, true);
        check(2 * one + 1, 0, true);
    }
}
