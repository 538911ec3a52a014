//! Subscriptions that a token has the server make: they begin with the connection, and the answer to `connect` says where each
//! stands and what its client missed. All of them wait for the last, so that nothing is pushed before that answer.

use std::collections::BTreeMap;

use tidegate_wire::centrifuge::{
    code::{Disconnect, ErrorCode},
    message::{SubscribeRequest, SubscribeResult},
};

use super::{Client, Stage};
use crate::{
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
    /// Subscribes to channels, each with what its client is told with it. `back`: where the client was.
    pub(super) fn enter_subscribed(
        &mut self,
        id: u32,
        channels: BTreeMap<Box<str>, Box<str>>,
        back: &BTreeMap<String, SubscribeRequest>,
        data: Vec<u8>,
    ) {
        self.wait_for_answer();
        let Some(client) = self.client_mut() else { return };
        client.entering = Some(Box::new(Entering { id, count: channels.len(), data, ..Entering::default() }));
        let claims = self.open().and_then(|open| open.claims().cloned());
        let mut begun = Vec::with_capacity(channels.len());
        for (name, data) in channels {
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
            let back = back.get(&*name).filter(|back| back.recover);
            let Some((attempt, confirmation)) =
                self.begin_of_server(&channel, back, data.as_bytes().to_vec())
            else {
                return;
            };
            begun.push((attempt, confirmation, self.join_of(&channel)));
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
