//! The driver of the subscription machines: tells each what has happened to its connection and channel, and does what
//! it answers. Every way of subscribing comes through here, whatever the protocol.
//!
//! While a connection is open, its subscriptions that are not in a lane yet are in
//! [`Rare::unsettled`](super::Rare); before that, in its opening. History is written a page at a time: the next is read
//! when the socket has taken everything, so a client that reads nothing costs one page, however many channels it
//! recovers.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tidegate_backplane::{BackplaneError, Channel, Join, JoinError, Position};
use tidegate_ops::budget::Rate;

use super::{Ctx, Open, Phase, Session, core::Core, fresh::Fresh, opening::terms, protocol::Event};
use crate::{
    auth::Claims,
    hub::{ChannelKey, content::Content, form::FormId},
    node::{histories::Page, interest::Confirmation, roster::List},
    subscription::{Item, Machine, Output, Outputs, Read, Seen, Want},
};

/// One attempt of a connection to subscribe to a channel. An answer that comes late names an attempt that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) key: ChannelKey,
    serial: u32,
}

/// Why a client may not subscribe now.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum SubscribeRefused {
    #[error("subscribing faster than allowed: {} a second", .0.per_second)]
    TooFast(Rate),
    #[error("this node has subscribers in as many channels as it may")]
    NodeFull,
    #[error("this connection has {max} subscriptions, more are not allowed")]
    TooMany { max: usize },
    #[error("already subscribed, or about to be")]
    Already,
}

/// A subscription that is not in a lane yet. It holds its channel.
#[derive(Debug)]
pub(crate) struct Unsettled {
    pub(crate) attempt: Attempt,
    pub(super) machine: Machine,
    /// The hub tells the machine what is delivered.
    watches: bool,
    /// The number of its own entry in presence, which a list has to have; `None`: the backplane has not answered yet.
    joined: Option<u64>,
    /// The list is read as soon as that is known.
    wants_list: bool,
    list: Option<Arc<List>>,
    /// The form in which its client is told, where that is not the connection's.
    pub(super) form: Option<FormId>,
    /// Its client is told who joins and leaves.
    tells_presence: bool,
    /// Its client is told of it together with others; its machine waits as for a list.
    together: bool,
}

impl Core {
    /// What of its past a subscription wants. `tells_place`: the client is told where the channel stands.
    pub(crate) fn want(&self, channel: &Channel, since: Option<Position>, tells_place: bool) -> Want {
        let namespace = self.shared.node.namespaces().of(channel);
        match since {
            Some(position) => match Fresh::of(position, self.shared.life) {
                Some(fresh) => Want::SinceEmpty {
                    offset: 0,
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
    pub(crate) fn form(&self, open: &Open, channel: &Channel) -> FormId {
        match self.shared.node.namespaces().of(channel).compression {
            true => open.form,
            false => open.form.plain(),
        }
    }
}

impl Ctx<'_> {
    /// Holds a channel for the connection. `lists`: it is answered with the list of who is there.
    pub(super) fn hold(&mut self, channel: &Channel, want: Want, lists: bool) -> (Unsettled, Confirmation) {
        let terms = terms(self.core.shared.node.namespaces().of(channel));
        let (key, confirmation) = self.core.hub.hold(channel, terms);
        self.core.attempts = self.core.attempts.wrapping_add(1);
        let attempt = Attempt { key, serial: self.core.attempts };
        let machine = Machine::new(want, lists);
        let (watches, joined, wants_list, list) = (false, Some(0), false, None);
        let (tells_presence, together) = (lists, false);
        let form = None;
        let held =
            Unsettled { attempt, machine, watches, joined, wants_list, list, form, tells_presence, together };
        (held, confirmation)
    }

    /// Whether a client may subscribe to a channel now: its budgets, and those of the node. `claims`: of whom it asks for it.
    pub(crate) fn may_begin_subscription(
        &mut self,
        channel: &Channel,
        claims: Option<&Claims>,
    ) -> Result<(), SubscribeRefused> {
        self.take_subscribe().map_err(SubscribeRefused::TooFast)?;
        self.has_room_for_subscription(channel, claims)
    }

    /// The same for a subscription that the client has not asked for.
    pub(crate) fn has_room_for_subscription(
        &mut self,
        channel: &Channel,
        claims: Option<&Claims>,
    ) -> Result<(), SubscribeRefused> {
        if !self.core.has_room_for(std::slice::from_ref(channel)) {
            return Err(SubscribeRefused::NodeFull);
        }
        let limits = &self.core.shared.node.config().limits;
        let max = match claims {
            Some(_) => limits.subscriptions,
            None => limits.subscriptions.min(limits.anonymous_subscriptions),
        } as usize;
        if self.open().is_some_and(|open| open.subscription_count() >= max) {
            return Err(SubscribeRefused::TooMany { max });
        }
        match self.key_of_own(channel.name()) {
            Some(_) => Err(SubscribeRefused::Already),
            None => Ok(()),
        }
    }

    /// The channel of this name that it is subscribed to, or about to be. By name, since a channel may have been opened
    /// by a token of its own, whose app is another; a client could not tell two of one name apart.
    pub(crate) fn key_of_own(&self, name: &str) -> Option<ChannelKey> {
        let (open, hub) = (self.open()?, &self.core.hub);
        let own = open.subscriptions.as_slice().iter().map(|&own| hub.channel_of(own));
        own.chain(open.under_way_keys()).find(|&key| hub.channel(key).name() == name)
    }

    /// Begins a subscription of an open connection, which [`proceed`](Self::proceed) goes on with.
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

    /// Begins one of several subscriptions of which the client is told at once. Each goes on as any other until it could be
    /// told ([`Event::Ready`]), keeps what is delivered meanwhile, and waits for [`answer_together`](Self::answer_together).
    ///
    /// `tells_presence`: from its answer on, the client is told who joins and leaves. It is not told the list, so what
    /// changed before that is in the one that it asks for.
    pub(crate) fn begin_together(
        &mut self,
        channel: &Channel,
        want: Want,
        tells_presence: bool,
    ) -> Option<(Attempt, Confirmation)> {
        let begun = self.begin_subscription(channel, want, true)?;
        let unsettled = self.attempted(begun.0)?;
        (unsettled.together, unsettled.tells_presence) = (true, tells_presence);
        Some(begun)
    }

    /// Has the client told in a form that is not the connection's.
    pub(crate) fn tell_in(&mut self, attempt: Attempt, form: FormId) {
        if let Some(unsettled) = self.attempted(attempt) {
            unsettled.form = Some(form);
        }
    }

    /// All that it waits for is there.
    pub(crate) fn answer_together(&mut self, attempt: Attempt) {
        let list = self.attempted(attempt).and_then(|it| it.list.as_ref());
        let sequence = list.map_or(0, |list| list.sequence);
        self.step(attempt, |machine| machine.listed(sequence));
    }

    /// Goes on when the backplane has confirmed, which may be at once. `join`: what it is in presence from then on.
    pub(crate) fn proceed(&mut self, attempt: Attempt, confirmation: Confirmation, join: Option<Join>) {
        match confirmation.clone().now_or_never() {
            Some(result) => self.confirmed(attempt, join, result),
            None => self.run(confirmation, move |ctx, result| ctx.confirmed(attempt, join, result)),
        }
    }

    fn confirmed(&mut self, attempt: Attempt, join: Option<Join>, result: Result<(), BackplaneError>) {
        if self.attempted(attempt).is_none() {
            return;
        }
        if let Err(error) = result {
            return self.refused(attempt, error.into());
        }
        if let Some(join) = join {
            self.join_presence(attempt, join);
        }
        self.step(attempt, Machine::confirmed);
    }

    pub(super) fn refused(&mut self, attempt: Attempt, error: JoinError) {
        self.step(attempt, |machine| machine.refused(error));
    }

    /// Whether the subscription waits for its own entry in presence, because it is answered with the list.
    pub(super) fn begin_joining(&mut self, attempt: Attempt) -> bool {
        let unsettled = self.attempted(attempt).filter(|it| it.machine.lists());
        unsettled.map(|it| it.joined = None).is_some()
    }

    /// It has joined. True: its list is to be read now.
    pub(super) fn end_joining(&mut self, attempt: Attempt, sequence: u64) -> bool {
        let Some(unsettled) = self.attempted(attempt) else { return false };
        unsettled.joined = Some(sequence);
        std::mem::take(&mut unsettled.wants_list)
    }

    /// What the list of a subscription has to have; `None`: that is not known yet.
    pub(super) fn list_wanted(&mut self, attempt: Attempt) -> Option<u64> {
        let unsettled = self.attempted(attempt)?;
        unsettled.wants_list = unsettled.joined.is_none();
        unsettled.joined
    }

    /// The list of who is in the channel is there.
    pub(super) fn listed(&mut self, attempt: Attempt, list: Arc<List>) {
        let Some(unsettled) = self.attempted(attempt) else { return };
        let (sequence, together) = (list.sequence, unsettled.together);
        unsettled.list = Some(list);
        match together {
            true => self.tell_protocol(Event::Ready { attempt }),
            false => self.step(attempt, |machine| machine.listed(sequence)),
        }
    }

    /// An attempt that is still under way.
    fn attempted(&mut self, attempt: Attempt) -> Option<&mut Unsettled> {
        let rare = self.open_mut()?.rare.as_mut()?;
        rare.unsettled.iter_mut().find(|it| it.attempt == attempt)
    }

    /// Ends a subscription, or one that is under way; what the protocol has beside it is its own.
    pub(crate) fn end_subscription(&mut self, key: ChannelKey) {
        let Some(open) = self.open() else { return };
        let is_under_way = open.is_subscribing(key);
        let mut own = open.subscriptions.as_slice().iter();
        if is_under_way || own.any(|&own| self.core.hub.channel_of(own) == key) {
            self.leave_of(open, key, !is_under_way);
        }
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        if let Some(attempt) = open.unsettled(key).map(|it| it.attempt) {
            return self.step(attempt, Machine::end);
        }
        let hub = &self.core.hub;
        let Some(subscription) = open.subscriptions.take(|own| hub.channel_of(own) == key) else { return };
        if open.subscriptions.as_slice().len() <= 1 {
            self.connections.set_merging(self.id, false);
        }
        self.part(subscription);
    }

    /// Gives back what a subscription holds that its connection takes with it.
    pub(super) fn abandon(&mut self, mut unsettled: Unsettled) {
        if !unsettled.machine.end().is_empty() {
            self.release(unsettled.attempt.key, unsettled.watches);
        }
    }

    /// Something was delivered of a channel whose history the connection reads.
    pub(super) fn delivered(&mut self, key: ChannelKey, content: &Content) {
        let Some(unsettled) = self.unsettled(key) else { return };
        let (attempt, machine) = (unsettled.attempt, &mut unsettled.machine);
        let item = match content {
            Content::Publication(publication) => Item::Publication(Arc::clone(publication)),
            Content::Gap(gap) => Item::Gap(*gap),
            Content::Presence(event) => {
                if !unsettled.together && machine.tells_presence(event.sequence) {
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
        let Some(rare) = self.open().and_then(|open| open.rare.as_ref()) else { return };
        if rare.unsettled.iter().any(|it| it.machine.reads_page()) {
            return;
        }
        let Some(next) = rare.unsettled.iter().find(|it| it.machine.is_due()) else { return };
        let attempt = next.attempt;
        match self.connections.queued_bytes(self.id) {
            0 => self.step(attempt, Machine::room),
            _ => self.connections.tell_flushed(self.id),
        }
    }

    /// History was read.
    pub(super) fn history_read(&mut self, attempt: Attempt, result: Result<Arc<Page>, BackplaneError>) {
        if let Some(Phase::Opening(_)) = self.session().map(|session| &session.phase) {
            return self.opening_read(attempt, result);
        }
        self.step(attempt, |machine| machine.page(result.map(|page| page.history.clone())));
        // Another one may have waited for this page.
        let rare = self.open().and_then(|open| open.rare.as_ref());
        if rare.is_some_and(|rare| rare.unsettled.iter().any(|it| it.machine.is_due())) {
            self.connections.tell_flushed(self.id);
        }
    }

    /// Asks for history. What is delivered from now on is told to the machine.
    pub(super) fn read_history(&mut self, attempt: Attempt, read: Read) {
        let begins = self.unsettled(attempt.key).is_some_and(|it| !std::mem::replace(&mut it.watches, true));
        if begins {
            self.core.hub.watch(attempt.key, self.id);
        }
        let reading = self.core.shared.node.histories().read(self.core.hub.channel(attempt.key), read);
        self.run(reading, move |ctx, result| ctx.history_read(attempt, result));
    }

    /// Tells a machine of an open connection something, and does what it answers.
    pub(super) fn step(&mut self, attempt: Attempt, input: impl FnOnce(&mut Machine) -> Outputs) {
        let Some(open) = self.open_mut() else { return };
        let Some(rare) = &mut open.rare else { return };
        let Some(unsettled) = rare.unsettled.iter_mut().find(|it| it.attempt == attempt) else { return };
        let outputs = input(&mut unsettled.machine);
        self.perform(attempt, outputs);
    }

    fn perform(&mut self, attempt: Attempt, outputs: Outputs) {
        let key = attempt.key;
        let mut outputs = outputs.into_iter().peekable();
        while let Some(output) = outputs.next() {
            match output {
                Output::AwaitRoom => self.connections.tell_flushed(self.id),
                Output::Read(read) => self.read_history(attempt, read),
                Output::List if self.attempted(attempt).is_some_and(|it| !it.tells_presence) => {
                    self.tell_protocol(Event::Ready { attempt });
                }
                Output::List => self.read_list(attempt),
                Output::Subscribed { position, recovered } => {
                    let mut told = match outputs.next_if(|next| matches!(next, Output::Tell(_))) {
                        Some(Output::Tell(items)) => items,
                        _ => Vec::new(),
                    };
                    let list = self.attempted(attempt).and_then(|it| it.list.take());
                    let (list, to_take) = (list.as_deref(), &mut told);
                    self.tell_protocol(Event::Subscribed { key, position, recovered, told: to_take, list });
                    self.tell_items(key, told);
                }
                Output::Tell(items) => self.tell_items(key, items),
                Output::Join(seen) => self.join(attempt, seen),
                Output::Release => self.release_attempt(attempt),
                Output::Refuse(error) => {
                    if let Some(open) = self.open() {
                        self.leave_of(open, key, false);
                    }
                    self.tell_protocol(Event::Refused { key, error: &error });
                }
            }
        }
    }

    /// Turns the hold into a place in a lane.
    fn join(&mut self, attempt: Attempt, seen: Seen) {
        let (key, now) = (attempt.key, self.connections.now());
        // One that left, or has ended the subscription, has given its hold back.
        if self.attempted(attempt).is_none() {
            return;
        }
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        let own = open.unsettled(key).and_then(|it| it.form);
        let mut form = own.unwrap_or_else(|| self.core.form(open, self.core.hub.channel(key)));
        if open.unsettled(key).is_some_and(|it| it.tells_presence) {
            form = self.core.hub.forms().with_presence(form);
        }
        let subscription = self.core.hub.join(key, form, seen, self.id.slot, now);
        open.subscriptions.push(subscription);
        let has_many = open.subscriptions.as_slice().len() > 1;
        let watches = open.take_unsettled(attempt).is_some_and(|it| it.watches);
        if has_many {
            self.connections.set_merging(self.id, true);
        }
        if watches {
            self.core.hub.unwatch(key, self.id);
        }
        self.stands(key);
    }

    fn release_attempt(&mut self, attempt: Attempt) {
        if let Some(unsettled) = self.open_mut().and_then(|open| open.take_unsettled(attempt)) {
            self.release(attempt.key, unsettled.watches);
        }
    }

    fn release(&mut self, key: ChannelKey, watches: bool) {
        if watches {
            self.core.hub.unwatch(key, self.id);
        }
        self.core.hub.release(key, self.connections.now());
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
