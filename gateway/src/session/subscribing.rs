//! The driver of the subscription machines: tells each what has happened to its connection and channel, and does what
//! it answers. Every way of subscribing comes through here, whatever the protocol.
//!
//! While a connection is open, its subscriptions that are not an ordinary place in a lane yet are in
//! [`Rare::unsettled`](super::Rare); before that, in its opening. History is written a page at a time: the next is read
//! when the socket has taken everything, so a client that reads nothing costs one page, however many channels it
//! recovers.

use std::sync::Arc;

use tidegate_backplane::{BackplaneError, Channel, Position};
use tidegate_reactor::{Overflow, Shared as SharedBytes};

use super::{Ctx, Open, Phase, core::Core, ids::Fresh, leaving::Leave, protocol::Event};
use crate::{
    config::SlowReader,
    hub::{
        ChannelKey,
        outgoing::{Content, Encoding},
    },
    node::{histories::Page, interest::Confirmation},
    subscription::{Arrival, Item, Machine, Output, Outputs, Read, Seen, Want},
};

/// One attempt of a connection to subscribe to a channel. An answer that comes late names an attempt that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) key: ChannelKey,
    serial: u32,
}

/// A subscription that is not an ordinary place in a lane.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) attempt: Attempt,
    stage: Stage,
    /// The hub tells the machine what is delivered.
    reads: bool,
}

#[derive(Debug)]
enum Stage {
    /// It holds its channel.
    Before(Machine),
    /// It is in the lane of those who may be handed what they have.
    Follows(Seen),
}

impl Unsettled {
    pub(crate) fn machine(&mut self) -> Option<&mut Machine> {
        match &mut self.stage {
            Stage::Before(machine) => Some(machine),
            Stage::Follows(_) => None,
        }
    }

    /// What the client has, once it is in a lane.
    pub(super) fn seen(&mut self) -> Option<&mut Seen> {
        match &mut self.stage {
            Stage::Before(_) => None,
            Stage::Follows(seen) => Some(seen),
        }
    }

    pub(crate) fn is_before(&self) -> bool {
        matches!(self.stage, Stage::Before(_))
    }
}

impl Core {
    /// What of its past a subscription wants. `tells_place`: the client is told where the channel stands.
    pub(crate) fn want(&self, channel: &Channel, since: Option<Position>, tells_place: bool) -> Want {
        let namespace = self.shared.node.namespaces().of(channel);
        match since {
            Some(position) => match Fresh::of(position, self.shared.life) {
                Some(fresh) => Want::SinceEmpty {
                    away: fresh.away(self.shared.started.elapsed()),
                    history_age: namespace.history_age,
                },
                None => Want::After(position),
            },
            None if tells_place && namespace.history().is_some() => Want::Place,
            None => Want::Live,
        }
    }

    /// Where a client is in a channel, in a form that it can come back with: also before the channel's first
    /// publication. `None`: the channel keeps no history.
    pub(crate) fn place(&self, key: ChannelKey, position: Option<Position>) -> Option<Position> {
        let keeps_history = || self.shared.node.namespaces().of(self.hub.channel(key)).history().is_some();
        let fresh = || Fresh::place(self.shared.life, self.shared.started.elapsed());
        position.or_else(|| keeps_history().then(fresh))
    }

    /// The form in which a connection gets a channel.
    pub(crate) fn form(&self, open: &Open, channel: &Channel) -> Encoding {
        match self.shared.node.namespaces().of(channel).compression {
            true => open.encoding,
            false => open.encoding.plain(),
        }
    }
}

impl Ctx<'_> {
    /// Holds a channel for the connection. `lists`: it is answered with the list of who is there.
    pub(super) fn hold(&mut self, channel: &Channel, want: Want, lists: bool) -> (Unsettled, Confirmation) {
        let policy = overflow(self.core.shared.node.namespaces().of(channel).slow_reader);
        let (key, confirmation) = self.core.hub.enter(channel, policy);
        self.core.attempts = self.core.attempts.wrapping_add(1);
        let attempt = Attempt { key, serial: self.core.attempts };
        let stage = Stage::Before(Machine::new(want, lists));
        (Unsettled { attempt, stage, reads: false }, confirmation)
    }

    /// Begins a subscription of an open connection. Whoever asks waits for the confirmation, and for what its protocol
    /// does beside, and then calls [`confirmed`](Self::confirmed) or [`refused`](Self::refused).
    pub(crate) fn begin_subscription(
        &mut self,
        channel: &Channel,
        want: Want,
        lists: bool,
    ) -> Option<(Attempt, Confirmation)> {
        self.open()?;
        let (unsettled, confirmation) = self.hold(channel, want, lists);
        let attempt = unsettled.attempt;
        self.open_mut()?.rare_mut().unsettled.push(unsettled);
        Some((attempt, confirmation))
    }

    /// The backplane, and the protocol, have what the subscription needs.
    pub(crate) fn confirmed(&mut self, attempt: Attempt) {
        self.step(attempt, Machine::confirmed);
    }

    pub(crate) fn refused(&mut self, attempt: Attempt, error: BackplaneError) {
        self.step(attempt, |machine| machine.refused(error));
    }

    /// The list of who is in the channel is there, with the changes up to this number.
    pub(crate) fn listed(&mut self, attempt: Attempt, sequence: u64) {
        self.step(attempt, |machine| machine.listed(sequence));
    }

    /// Whether an attempt is still under way.
    pub(crate) fn is_under_way(&self, attempt: Attempt) -> bool {
        let rare = self.open().and_then(|open| open.rare.as_ref());
        rare.is_some_and(|rare| rare.unsettled.iter().any(|it| it.attempt == attempt && it.is_before()))
    }

    /// Ends a subscription, or one that is under way; what the protocol has beside it is its own.
    pub(crate) fn end_subscription(&mut self, key: ChannelKey) {
        let Some(open) = self.open_mut() else { return };
        let rare = open.rare.as_ref();
        let under_way =
            rare.and_then(|it| it.unsettled.iter().find(|it| it.attempt.key == key && it.is_before()));
        if let Some(attempt) = under_way.map(|it| it.attempt) {
            return self.step(attempt, Machine::end);
        }
        let Some(open) = self.connections.get_mut(self.id).and_then(super::Session::open_mut) else { return };
        let hub = &self.core.hub;
        let Some(subscription) = open.subscriptions.take(|own| hub.channel_of(own) == key) else { return };
        if let Some(rare) = &mut open.rare {
            rare.unsettled.retain(|it| it.attempt.key != key);
        }
        open.drop_empty_rare();
        if open.subscriptions.as_slice().len() <= 1 {
            self.connections.set_merging(self.id, false);
        }
        self.core.hub.part(subscription, self.connections);
    }

    /// Gives back what a subscription holds that its connection takes with it.
    pub(super) fn abandon(&mut self, mut unsettled: Unsettled) {
        let key = unsettled.attempt.key;
        // A place in a lane is given back as such.
        let Some(machine) = unsettled.machine() else { return };
        if !machine.end().is_empty() {
            self.release(key, unsettled.reads);
        }
    }

    /// Something was delivered of a channel whose history the connection reads.
    pub(super) fn delivered(&mut self, key: ChannelKey, content: &Content) {
        let Some(unsettled) = self.unsettled(key) else { return };
        let attempt = unsettled.attempt;
        let Some(machine) = unsettled.machine() else { return };
        let item = match content {
            Content::Publication(publication) => Item::Publication(Arc::clone(publication)),
            Content::Gap(gap) => Item::Gap(*gap),
            Content::Census(event) => {
                if machine.tells_census(event.sequence) {
                    self.tell_live(key, content);
                }
                return;
            }
        };
        match &*machine.delivered(&item) {
            [] => {}
            [Output::Tell(_)] => self.tell_live(key, content),
            outputs => debug_assert!(false, "{attempt:?}: {outputs:?}"),
        }
    }

    /// The socket has taken everything: one of the subscriptions that wait for that reads its next page.
    pub(crate) fn on_room(&mut self) {
        let Some(open) = self.connections.get_mut(self.id).and_then(super::Session::open_mut) else { return };
        let Some(rare) = &mut open.rare else { return };
        let reads_page = |it: &Unsettled| matches!(&it.stage, Stage::Before(machine) if machine.reads_page());
        if rare.unsettled.iter().any(reads_page) {
            return;
        }
        let next =
            rare.unsettled.iter().find(|it| matches!(&it.stage, Stage::Before(machine) if machine.is_due()));
        let Some(next) = next.map(|it| it.attempt) else { return };
        if self.connections.queued_bytes(self.id) > 0 {
            return self.connections.tell_flushed(self.id);
        }
        self.step(next, Machine::room);
    }

    /// History was read.
    pub(super) fn history_read(&mut self, attempt: Attempt, result: Result<Arc<Page>, BackplaneError>) {
        match self.session().map(|session| &session.phase) {
            Some(Phase::Opening(_)) => self.opening_read(attempt, result),
            _ => self.step(attempt, |machine| machine.page(result.map(|page| page.history.clone()))),
        }
    }

    /// Asks for history. What is delivered from now on is told to the machine.
    pub(super) fn read_history(&mut self, attempt: Attempt, read: Read) {
        let begins = self.unsettled(attempt.key).is_some_and(|it| !std::mem::replace(&mut it.reads, true));
        if begins {
            self.core.hub.begin_reading(attempt.key, self.id);
        }
        let reading = self.core.shared.node.histories().read(self.core.hub.channel(attempt.key), read);
        self.run(reading, move |ctx, result| ctx.history_read(attempt, result));
    }

    /// Tells a machine of an open connection something, and does what it answers.
    pub(super) fn step(&mut self, attempt: Attempt, input: impl FnOnce(&mut Machine) -> Outputs) {
        let Some(open) = self.open_mut() else { return };
        let Some(rare) = &mut open.rare else { return };
        let Some(unsettled) = rare.unsettled.iter_mut().find(|it| it.attempt == attempt) else { return };
        let Some(machine) = unsettled.machine() else { return };
        let outputs = input(machine);
        self.perform(attempt, outputs);
    }

    fn perform(&mut self, attempt: Attempt, outputs: Outputs) {
        let key = attempt.key;
        let mut outputs = outputs.into_iter().peekable();
        while let Some(output) = outputs.next() {
            match output {
                Output::AwaitRoom => self.connections.tell_flushed(self.id),
                Output::Read(read) => self.read_history(attempt, read),
                Output::List => self.tell_protocol(Event::ListWanted { attempt }),
                Output::Subscribed { position, recovered } => {
                    let is_new = !matches!(outputs.peek(), Some(Output::Tell(_)));
                    self.tell_protocol(Event::Subscribed { key, position, recovered, is_new });
                }
                Output::Tell(items) => self.tell_items(key, items),
                Output::Join(seen) => self.join(attempt, seen),
                Output::Release => self.release_attempt(attempt),
                Output::Refuse(error) => self.tell_protocol(Event::Refused { key, error: &error }),
            }
        }
    }

    /// Writes what the client missed, or that it cannot be had; a protocol that cannot say so ends the connection.
    ///
    /// It counts against the bound of the queue, which is empty, unless it alone is more: then it is one page.
    fn tell_items(&mut self, key: ChannelKey, items: Vec<Item>) {
        let channel = self.core.hub.channel(key).clone();
        let Some(open) = self.connections.get_mut(self.id).and_then(super::Session::open_mut) else { return };
        let encoding = self.core.form(open, &channel).plain();
        let mut out = std::mem::take(&mut self.core.scratch);
        out.clear();
        let mut untold = None;
        for item in items {
            let content = Content::from(item);
            let before = out.len();
            match encoding.is_individual() {
                true => {
                    let id = open.rare.as_mut().and_then(|rare| rare.advance(key, content.position()));
                    self.core.encoder.encode_sse(&channel, &content, encoding, id.as_deref(), &mut out);
                }
                false => out.extend_from_slice(&self.core.encoder.encode(&channel, &content, encoding)),
            }
            if out.len() == before {
                untold = Some(content);
                break;
            }
            self.core.metrics.messages_sent.add(1);
        }
        let bound = self.core.shared.node.config().limits.send_queue_bytes.bytes();
        match out.len() <= bound {
            true => self.connections.write(self.id, &out),
            false => self.connections.write_beyond_bound(self.id, &out),
        };
        self.core.keep_scratch(out);
        if let Some(Content::Gap(gap)) = untold {
            self.leave(Leave::Gap(gap.reason));
        }
    }

    /// Writes something live to a client that is not in a lane yet, by the policy of the channel's namespace.
    fn tell_live(&mut self, key: ChannelKey, content: &Content) {
        let channel = self.core.hub.channel(key).clone();
        let Some(open) = self.open() else { return };
        let encoding = self.core.form(open, &channel).plain();
        let mut out = Vec::new();
        match encoding.is_individual() {
            true => {
                let id = self.open_mut().and_then(|open| open.rare.as_mut()?.advance(key, None));
                self.core.encoder.encode_sse(&channel, content, encoding, id.as_deref(), &mut out);
            }
            false => out.extend_from_slice(&self.core.encoder.encode(&channel, content, encoding)),
        }
        if out.is_empty() {
            return;
        }
        let overflow = overflow(self.core.shared.node.namespaces().of(&channel).slow_reader);
        let shared = SharedBytes { bytes: &out.into(), messages: 1, last_at: 0, key, overflow };
        self.connections.write_shared(self.id.slot, &shared);
        self.core.metrics.messages_sent.add(1);
    }

    /// Turns the hold into a place in a lane.
    fn join(&mut self, attempt: Attempt, mut seen: Seen) {
        let key = attempt.key;
        let channel = self.core.hub.channel(key);
        // One that left meanwhile has given its hold back.
        let Some(open) = self.connections.get(self.id).and_then(super::Session::open) else { return };
        let encoding = self.core.form(open, channel);
        let (subscription, follows) = self.core.hub.resume(key, encoding, &mut seen, self.id.slot);
        let Some(open) = self.connections.get_mut(self.id).and_then(super::Session::open_mut) else { return };
        open.subscriptions.push(subscription);
        let has_many = open.subscriptions.as_slice().len() > 1;
        let all = &mut open.rare_mut().unsettled;
        let at = all.iter().position(|it| it.attempt == attempt);
        let reads = at.is_some_and(|at| all[at].reads);
        match (at, follows) {
            (Some(at), true) => all[at].stage = Stage::Follows(seen),
            (Some(at), false) => drop(all.remove(at)),
            (None, _) => debug_assert!(false, "a machine that nobody has"),
        }
        open.drop_empty_rare();
        if has_many {
            self.connections.set_merging(self.id, true);
        }
        if reads {
            self.core.hub.end_reading(key, self.id);
        }
    }

    fn release_attempt(&mut self, attempt: Attempt) {
        let Some(open) = self.connections.get_mut(self.id).and_then(super::Session::open_mut) else { return };
        let Some(rare) = &mut open.rare else { return };
        let Some(at) = rare.unsettled.iter().position(|it| it.attempt == attempt) else { return };
        let reads = rare.unsettled.remove(at).reads;
        open.drop_empty_rare();
        self.release(attempt.key, reads);
    }

    fn release(&mut self, key: ChannelKey, reads: bool) {
        if reads {
            self.core.hub.end_reading(key, self.id);
        }
        self.core.hub.leave(key, self.connections.now());
    }

    /// The subscription to a channel, wherever its connection is.
    fn unsettled(&mut self, key: ChannelKey) -> Option<&mut Unsettled> {
        match &mut self.connections.get_mut(self.id)?.phase {
            Phase::Opening(opening) => opening.unsettled(key),
            Phase::Open(open) => open.unsettled(key),
            Phase::Head(_) | Phase::Leaving(_) => None,
        }
    }
}

impl From<Item> for Content {
    fn from(item: Item) -> Self {
        match item {
            Item::Publication(publication) => Self::Publication(publication),
            Item::Gap(gap) => Self::Gap(gap),
        }
    }
}

impl From<&Content> for Arrival {
    fn from(content: &Content) -> Self {
        match content {
            Content::Publication(publication) => Self::Publication(publication.position),
            Content::Gap(gap) => Self::Gap(gap.top),
            Content::Census(event) => Self::Census(event.sequence),
        }
    }
}

fn overflow(policy: SlowReader) -> Overflow {
    match policy {
        SlowReader::Disconnect => Overflow::Disconnect,
        SlowReader::Drop => Overflow::Drop,
        SlowReader::Latest => Overflow::Latest,
    }
}
