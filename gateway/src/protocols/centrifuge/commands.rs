//! Commands, one after the other: a frame holds many, and what one of them does is there for the next.
//!
//! A command that waits for the backplane or for a key has those behind it wait, but for subscriptions, which wait together.
//! What is behind is kept as it came, in `parked`, and the socket is not read meanwhile. A frame has no more of a turn than
//! so many frames would have, and each command counts as a message.

use std::ops::ControlFlow;

use tidegate_wire::centrifuge::{
    Encoding,
    code::Disconnect,
    message::{Command, Empty, Reply},
    next_command,
};

use super::{Client, Stage, forms};
use crate::{
    metrics::{Budgeted, DropReason},
    session::{Ctx, budget::Share},
};

/// What the next command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Waits {
    #[default]
    Nothing,
    /// The answer to the one before.
    Answer,
    /// The shard's next turn, or the connection's budget.
    Turn,
}

/// What may be parked: the longest frame, and what was read with it. A client that sends more although it is not answered
/// is closed, and comes back.
const PARKED_BYTES_MAX: usize = 256 * 1024;

impl Ctx<'_> {
    /// A message of the client.
    pub(super) fn frame(&mut self, encoding: Encoding, frame: &[u8]) {
        let Some(open) = self.open() else { return };
        if forms::encoding(open.form) != encoding {
            return self.cut(Disconnect::BadRequest, &"a frame of the other encoding");
        }
        let waits = open
            .state::<Client>()
            .is_some_and(|client| client.waits != Waits::Nothing || !client.parked.is_empty());
        match waits {
            true => self.park(frame),
            false => self.carry_out(frame),
        }
    }

    /// Carries out the commands of a frame, until one has to wait.
    fn carry_out(&mut self, frame: &[u8]) {
        let Some(encoding) = self.open().map(|open| forms::encoding(open.form)) else { return };
        let (mut rest, mut share, mut is_first) = (frame, Share::begin(self.connections.is_crowded()), true);
        while self.open().is_some() {
            let (command, used) = match next_command(rest, encoding) {
                Ok(Some(next)) => next,
                Ok(None) => return,
                Err(error) => {
                    self.core.metrics.messages_dropped.add(DropReason::Forbidden, 1);
                    return self.cut(Disconnect::BadRequest, &error);
                }
            };
            if self.must_wait(&command) {
                return self.park(rest);
            }
            // The core has counted the frame as one.
            if !std::mem::take(&mut is_first) && self.take_part(&mut share).is_break() {
                return self.park_for_a_turn(rest);
            }
            rest = &rest[used..];
            self.run_command(command);
            // What came with a refused `connect` is of no use, and is nothing to close it for.
            if self.stage() == Some(Stage::Refused) {
                return;
            }
        }
    }

    fn take_part(&mut self, share: &mut Share) -> ControlFlow<()> {
        share.count()?;
        self.spend_message()
    }

    /// Whether a command has to wait for those before it.
    fn must_wait(&self, command: &Command) -> bool {
        let Some(client) = self.open().and_then(|open| open.state::<Client>()) else { return false };
        client.waits != Waits::Nothing || (command.subscribe.is_none() && !client.subscribing.is_empty())
    }

    /// Keeps what came until it can be looked at.
    fn park(&mut self, frame: &[u8]) {
        let Some(open) = self.open_mut() else { return };
        let client = open.state_or_default::<Client>();
        if client.parked.len() + frame.len() > PARKED_BYTES_MAX {
            return self.cut(Disconnect::TooManyRequests, &"more is sent than is answered");
        }
        client.parked.extend_from_slice(frame);
        // Between two lines; a Protobuf message says how long it is.
        if forms::encoding(open.form) == Encoding::Json {
            open.state_or_default::<Client>().parked.push(b'\n');
        }
        self.connections.set_paused(self.id, true);
    }

    /// The same, until the shard's next turn, or, when the connection has spent its budget, a tick later.
    fn park_for_a_turn(&mut self, frame: &[u8]) {
        self.park(frame);
        let rates = self.core.rates;
        let now = self.connections.now().duration();
        let Some(open) = self.open_mut() else { return };
        open.state_or_default::<Client>().waits = Waits::Turn;
        let budget = open.spent(&rates, now);
        self.core.metrics.budgets_spent.add(budget.unwrap_or(Budgeted::Turn), 1);
        match budget {
            None => self.run(std::future::ready(()), |ctx, ()| ctx.next_turn()),
            Some(_) => {
                let runtime = self.core.shared.runtime.clone();
                let tick = async move {
                    // Ended by nobody; the runtime itself may end.
                    drop(runtime.spawn(tokio::time::sleep(tidegate_reactor::TICK)).await);
                };
                self.run(tick, |ctx, ()| ctx.next_turn());
            }
        }
    }

    fn next_turn(&mut self) {
        let (rates, now) = (self.core.rates, self.connections.now().duration());
        match self.open().and_then(|open| open.spent(&rates, now)) {
            Some(_) => self.park_for_a_turn(&[]),
            None => self.go_on(),
        }
    }

    /// From now on commands wait until [`go_on`](Self::go_on).
    pub(super) fn wait_for_answer(&mut self) {
        if let Some(open) = self.open_mut() {
            open.state_or_default::<Client>().waits = Waits::Answer;
        }
    }

    /// What commands waited for is there.
    pub(super) fn go_on(&mut self) {
        let Some(client) = self.client_mut().filter(|client| client.entering.is_none()) else { return };
        client.waits = Waits::Nothing;
        let parked = std::mem::take(&mut client.parked);
        self.drop_idle();
        if parked.is_empty() || self.stage() == Some(Stage::Refused) {
            return;
        }
        if !self.is_publishing_paused() {
            self.connections.set_paused(self.id, false);
        }
        self.carry_out(&parked);
    }

    /// The same, when what is done now is done: what a subscription was asked for waits for its place in the lane.
    pub(super) fn go_on_later(&mut self) {
        let is_due = |client: &&mut Client| !client.parked.is_empty() && client.entering.is_none();
        let Some(client) = self.client_mut().filter(is_due) else { return };
        client.waits = Waits::Turn;
        self.run(std::future::ready(()), |ctx, ()| ctx.next_turn());
    }

    fn run_command(&mut self, command: Command) {
        let id = command.id;
        match self.stage() {
            None => return,
            Some(Stage::New) if command.connect.is_some() && id > 0 => {}
            Some(Stage::Connected) if command == Command::default() => return self.pong(),
            Some(Stage::Connected) if command.connect.is_none() => {}
            Some(stage) => {
                return self.cut(Disconnect::BadRequest, &format_args!("a command while it is {stage:?}"));
            }
        }
        if id == 0 && command.send.is_none() {
            return self.cut(Disconnect::BadRequest, &"a command without an id");
        }
        let Command {
            connect,
            subscribe,
            unsubscribe,
            publish,
            presence,
            presence_stats,
            history,
            ping,
            send,
            rpc,
            refresh,
            sub_refresh,
            ..
        } = command;
        if let Some(request) = connect {
            self.connect(id, *request);
        } else if let Some(request) = subscribe {
            self.subscribe(id, *request);
        } else if let Some(request) = unsubscribe {
            self.unsubscribe_from(id, &request.channel);
        } else if let Some(request) = publish {
            self.publish_to(id, *request);
        } else if let Some(request) = presence {
            self.read_presence(id, &request.channel, false);
        } else if let Some(request) = presence_stats {
            self.read_presence(id, &request.channel, true);
        } else if let Some(request) = history {
            self.read_history_of(id, &request);
        } else if ping.is_some() {
            self.send_reply(&Reply { id, ping: Some(Empty {}), ..Reply::default() });
        } else if let Some(message) = send {
            self.send_to_application(message.data);
        } else if let Some(request) = rpc {
            self.call_application(id, request.method, request.data);
        } else if let Some(request) = refresh {
            self.refresh(id, request.token);
        } else if let Some(request) = sub_refresh {
            self.refresh_subscription(id, *request);
        } else {
            self.cut(Disconnect::BadRequest, &"an unknown command");
        }
    }
}
