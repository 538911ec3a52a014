//! Presence: a connection is listed, or counted, in its channels while it is subscribed to them. Its protocol says how
//! ([`Protocol::presence`](super::protocol::Protocol::presence)); joining, leaving and the list are the same for all.

use std::sync::Arc;

use tidegate_backplane::{Attendance, BackplaneError, Channel, Join, JoinError, Member, PRESENCE_SETTLE};

use super::{Ctx, Open, core::Core, subscribing::Attempt};
use crate::{config::HookEvent, hub::ChannelKey, node::roster::List};

/// How a subscription of a connection is present in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    No,
    /// It is one more from when the client is told that it stands, and nobody is listed.
    Counted,
    Listed,
}

impl Core {
    /// Who an open connection is listed as by its token, in channels whose namespace tracks who is there.
    fn join_by_token(&self, open: &Open, channel: &Channel, connection: String) -> Option<Join> {
        if self.present_by_token(open, channel) != Present::Listed {
            return None;
        }
        let claims = open.claims();
        let user = claims.and_then(|claims| claims.user.clone()).unwrap_or_default();
        let info = claims.and_then(|claims| claims.info.clone());
        Some(Join::listed(Member { connection: connection.into(), user, info }))
    }

    /// Who has no user is not listed, or with an empty one where its protocol has that.
    pub(super) fn present_by_token(&self, open: &Open, channel: &Channel) -> Present {
        let is_user = open.claims().is_some_and(|claims| claims.user.is_some())
            || open.protocol.of_list(self.shared.protocols).lists_anonymous();
        if is_user && self.shared.node.namespaces().of(channel).presence {
            return Present::Listed;
        }
        // Whether a channel is occupied is known from who is counted in it.
        let hooks = &self.shared.hook_events;
        let takes = |event| hooks.takes(event, Some(channel.name()));
        let is_told = takes(HookEvent::Occupied) || takes(HookEvent::Vacated);
        if is_told && channel.app().is_none() { Present::Counted } else { Present::No }
    }
}

impl Ctx<'_> {
    /// What a connection that is listed by its token joins a channel as.
    pub(crate) fn join_of(&self, channel: &Channel) -> Option<Join> {
        self.core.join_by_token(self.open()?, channel, self.core.connection_name(self.id))
    }

    /// A subscription is in its lane: that is told, and who is counted only is so from now on.
    pub(super) fn stands(&self, key: ChannelKey) {
        let (Some(open), Some(protocol)) = (self.open(), self.protocol()) else { return };
        self.tell_subscription(HookEvent::Subscribed, open, key);
        let channel = self.core.hub.channel(key);
        let is_own = !self.core.shared.hook_events.is_empty() && !protocol.counts_itself();
        if is_own && protocol.presence(self.core, open, channel) == Present::Counted {
            self.join_channel(channel, Join::counted());
        }
    }

    /// How its subscriptions that stand are present.
    pub(super) fn presents(&self) -> Vec<(ChannelKey, Present)> {
        let (Some(open), Some(protocol)) = (self.open(), self.protocol()) else { return Vec::new() };
        let keys = open.subscriptions.as_slice().iter().map(|&own| self.core.hub.channel_of(own));
        keys.map(|key| (key, protocol.presence(self.core, open, self.core.hub.channel(key)))).collect()
    }

    /// Other claims say otherwise who the connection is: it comes as what it is now, and then goes as what it was, so that
    /// nobody is told that a channel was left.
    pub(super) fn present_as_now(&self, before: Vec<(ChannelKey, Present)>) {
        for ((key, was), (_, is)) in before.into_iter().zip(self.presents()).filter(|(was, is)| was.1 != is.1)
        {
            let channel = self.core.hub.channel(key);
            let join = match is {
                Present::Listed => self.join_of(channel),
                Present::Counted => Some(Join::counted()),
                Present::No => None,
            };
            if let Some(join) = join {
                self.join_channel(channel, join);
            }
            if was != Present::No {
                self.leave_channel(channel, was);
            }
        }
    }

    /// A subscription that is under way joins its channel. One that is answered with the list waits for its own entry.
    pub(super) fn join_presence(&mut self, attempt: Attempt, join: Join) {
        let joined = self.core.shared.node.backplane().join(self.core.hub.channel(attempt.key), join);
        match self.begin_joining(attempt) {
            true => self.run(joined, move |ctx, result| ctx.joined(attempt, result)),
            false => self.core.detach(async move { warn(joined.await.err().as_ref()) }),
        }
    }

    /// Joins a channel; nobody waits for the answer.
    pub(crate) fn join_channel(&self, channel: &Channel, join: Join) {
        let joined = self.core.shared.node.backplane().join(channel, join);
        self.core.detach(async move { warn(joined.await.err().as_ref()) });
    }

    fn joined(&mut self, attempt: Attempt, result: Result<Attendance, JoinError>) {
        match result {
            Ok(attendance) if self.end_joining(attempt, attendance.sequence) => self.read_list(attempt),
            Ok(_) => {}
            Err(error) => self.refused(attempt, error),
        }
    }

    /// Reads the list for a subscription, with its own entry.
    pub(super) fn read_list(&mut self, attempt: Attempt) {
        let Some(at_least) = self.list_wanted(attempt) else { return };
        let reply = self.reply(move |ctx, list| ctx.list_read(attempt, list));
        self.core.shared.node.rosters().read(self.core.hub.channel(attempt.key), at_least, reply);
    }

    fn list_read(&mut self, attempt: Attempt, list: Result<Arc<List>, BackplaneError>) {
        match list {
            Ok(list) => self.listed(attempt, list),
            Err(error) => self.refused(attempt, error.into()),
        }
    }

    /// Goes out of a channel whose subscription ends. `stands`: the client was told that it does.
    pub(super) fn leave_of(&self, open: &Open, key: ChannelKey, stands: bool) {
        let channel = self.core.hub.channel(key);
        // Of those that end with their connection it is told before that.
        if stands && self.open().is_some() {
            self.tell_subscription(HookEvent::Unsubscribed, open, key);
        }
        let protocol = open.protocol.of_list(self.core.shared.protocols);
        match protocol.presence(self.core, open, channel) {
            Present::Listed => self.leave_channel(channel, Present::Listed),
            Present::Counted if stands => self.leave_channel(channel, Present::Counted),
            Present::Counted | Present::No => {}
        }
    }

    /// Who is sent away by a drain is back on another node within seconds. Until then it stays, so that nobody is told
    /// that it left and came.
    pub(crate) fn leave_channel(&self, channel: &Channel, present: Present) {
        let name = (present == Present::Listed).then(|| self.core.connection_name(self.id));
        let node = &self.core.shared.node;
        if !node.is_moving_clients() {
            let left = node.backplane().leave(channel, name.as_deref());
            return self.core.detach(async move { warn(left.await.err().as_ref()) });
        }
        let (backplane, channel) = (Arc::clone(node.backplane()), channel.clone());
        let leaving = async move {
            tokio::time::sleep(PRESENCE_SETTLE).await;
            warn(backplane.leave(&channel, name.as_deref()).await.err().as_ref());
        };
        self.core.shared.runtime.spawn(node.moves().track_future(leaving));
    }
}

/// Logs what nobody waits for and could not be done.
fn warn(error: Option<&impl std::fmt::Display>) {
    if let Some(error) = error {
        tracing::warn!(%error, "a change of who is in a channel is not known to other nodes yet");
    }
}
