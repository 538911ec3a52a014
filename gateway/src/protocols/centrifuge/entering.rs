//! Subscriptions that a token has the server make: they begin with the connection, and the answer to `connect` says where each
//! stands and what its client missed. All of them wait for the last, so that nothing is pushed before that answer.

use std::collections::BTreeMap;

use tidegate_wire::centrifuge::{
    code::{Disconnect, ErrorCode},
    message::{SubscribeRequest, SubscribeResult},
};

use super::{Client, Stage, forms::Carrier};
use crate::{
    hooks::ServerSubscription,
    hub::ChannelKey,
    session::{
        Ctx,
        subscribing::{Attempt, SubscribeRefused},
    },
};

/// A `connect` that is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Entering {
    id: u32,
    /// How many there are.
    count: usize,
    /// Those that wait for the others.
    ready: Vec<Attempt>,
    subs: BTreeMap<String, SubscribeResult>,
    /// What the application says to its client.
    data: Vec<u8>,
}

impl Ctx<'_> {
    /// Connects, with the subscriptions that the server makes. Who sends no commands is subscribed to what it names and may
    /// subscribe to.
    pub(super) fn connect_with(
        &mut self,
        id: u32,
        mut channels: BTreeMap<Box<str>, ServerSubscription>,
        named: &BTreeMap<String, SubscribeRequest>,
        data: Vec<u8>,
    ) {
        if self.carrier().is_some_and(Carrier::is_uni) {
            let claims = self.open().and_then(|open| open.claims().cloned());
            let own = named.keys().filter(|name| self.core.channel_for(name, claims.as_deref()).is_ok());
            for name in own {
                channels.entry(name.as_str().into()).or_default();
            }
        }
        match channels.is_empty() {
            true => self.connected(id, BTreeMap::new(), data),
            false => self.enter_subscribed(id, channels, named, data),
        }
    }

    /// Subscribes to channels. `named`: what the client says of them.
    fn enter_subscribed(
        &mut self,
        id: u32,
        channels: BTreeMap<Box<str>, ServerSubscription>,
        named: &BTreeMap<String, SubscribeRequest>,
        data: Vec<u8>,
    ) {
        self.wait_for_answer();
        let Some(client) = self.client_mut() else { return };
        client.entering = Some(Box::new(Entering { id, count: channels.len(), data, ..Entering::default() }));
        let claims = self.open().and_then(|open| open.claims().cloned());
        let mut begun = Vec::with_capacity(channels.len());
        for (name, ServerSubscription { data, info, overrides }) in channels {
            let channel = match self.core.channel_of_claims(&name, claims.as_deref()) {
                Ok(channel) => channel,
                Err(error) => return self.cut(Disconnect::InvalidToken, &error),
            };
            match self.has_room_for_subscription(&channel, claims.as_deref()) {
                Ok(()) => {}
                // Another node may have room.
                Err(SubscribeRefused::NodeFull) => return self.fail_to_enter(),
                Err(refused) => return self.cut(Disconnect::ChannelLimit, &refused),
            }
            let Some((attempt, confirmation)) =
                self.begin_of_server(&channel, named.get(&*name), data, overrides)
            else {
                return;
            };
            begun.push((attempt, confirmation, self.join_with(&channel, info.as_deref(), overrides)));
        }
        for (attempt, confirmation, join) in begun {
            self.proceed(attempt, confirmation, join);
        }
    }

    /// One of them could be told.
    pub(super) fn ready_to_enter(&mut self, attempt: Attempt) {
        let Some(entering) = self.entering() else { return };
        entering.ready.push(attempt);
        if entering.ready.len() < entering.count {
            return;
        }
        for attempt in std::mem::take(&mut entering.ready) {
            self.answer_together(attempt);
        }
        let Some(entering) = self.client_mut().and_then(|client| client.entering.take()) else { return };
        // So much came meanwhile that one has to be read again. The others are in their lanes by now, and would be pushed what
        // the client does not know yet.
        if entering.subs.len() < entering.count {
            return self.cut(Disconnect::InsufficientState, &"more came than is kept until it is connected");
        }
        self.connected(entering.id, entering.subs, entering.data);
        self.go_on();
    }

    pub(super) fn entered_one(&mut self, key: ChannelKey, result: SubscribeResult) {
        let name = self.core.hub.channel(key).name().to_owned();
        if let Some(entering) = self.entering() {
            entering.subs.insert(name, result);
        }
    }

    /// One of them cannot be had: the client connects again.
    pub(super) fn fail_to_enter(&mut self) {
        let Some(client) = self.client_mut() else { return };
        let Some(entering) = client.entering.take() else { return };
        for key in std::mem::take(&mut client.of_server) {
            self.end_asked(key);
        }
        self.deny_command(entering.id, ErrorCode::Internal, &"what the server subscribes it to");
        self.set_stage(Stage::Refused);
        self.await_connect(None);
        self.go_on();
    }

    fn entering(&mut self) -> Option<&mut Entering> {
        self.open_mut()?.state_mut::<Client>()?.entering.as_deref_mut()
    }
}
