//! Presence: a connection is listed in its channels while it is subscribed to them, where their namespace tracks who is
//! there. What is listed is in the backplane, whatever the protocol.

use std::sync::Arc;

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, join_all},
};
use tidegate_backplane::{Channel, Member};

use super::{Ctx, Session};
use crate::hub::{ChannelKey, Subscription};

/// Whether a connection's presence entries were written, or failed to be. To leave a channel has to wait for that: a
/// backplane far away may otherwise carry out the two in the wrong order, and the entry would stay.
pub(crate) type Present = Shared<BoxFuture<'static, ()>>;

impl Ctx<'_> {
    /// Lists an open connection in those of the channels that track who is there; who has no user is not listed.
    pub(crate) fn join_presence(&mut self, channels: &[Channel]) {
        let node = &self.core.shared.node;
        let with_presence: Vec<&Channel> =
            channels.iter().filter(|channel| node.namespaces().of(channel).presence).collect();
        if with_presence.is_empty() {
            return;
        }
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        let Some(claims) = open.claims().cloned() else { return };
        let Some(user) = claims.user.clone() else { return };
        let name = self.core.connection_name(self.id);
        let joining: Vec<_> = with_presence
            .into_iter()
            .map(|channel| {
                let (connection, info) = (name.as_str().into(), claims.info.clone());
                node.backplane().join(channel, Member { connection, user: user.clone(), info })
            })
            .collect();
        let before = open.rare.as_ref().and_then(|rare| rare.present.as_deref().cloned());
        let joined = async move {
            if let Some(before) = before {
                before.await;
            }
            for result in join_all(joining).await {
                if let Err(error) = result {
                    tracing::warn!(%error, "a presence entry could not be written");
                }
            }
        };
        let present = joined.boxed().shared();
        open.rare_mut().present = Some(Box::new(present.clone()));
        self.core.detach(present);
    }

    /// It is not present in a channel any more that it goes out of.
    pub(crate) fn leave_presence_of(&self, key: ChannelKey) {
        let present = self.open().and_then(|open| open.rare.as_ref()?.present.as_deref().cloned());
        if let Some(present) = present {
            self.leave_presence(key, present);
        }
    }

    /// The same for a connection that is going.
    pub(super) fn leave_all_presence(&self, subscriptions: &[Subscription], present: &Present) {
        for &subscription in subscriptions {
            self.leave_presence(self.core.hub.channel_of(subscription), present.clone());
        }
    }

    fn leave_presence(&self, key: ChannelKey, present: Present) {
        let channel = self.core.hub.channel(key).clone();
        if !self.core.shared.node.namespaces().of(&channel).presence {
            return;
        }
        let (backplane, name) =
            (Arc::clone(self.core.shared.node.backplane()), self.core.connection_name(self.id));
        self.core.detach(async move {
            present.await;
            if let Err(error) = backplane.leave(&channel, &name).await {
                tracing::warn!(%error, "a presence entry could not be removed");
            }
        });
    }
}
