//! Giving back: a channel, or everything that a connection had.

use std::sync::Arc;

use tidegate_backplane::{Attend, AttendError, Attended, CENSUS_SETTLE, Channel};
use tidegate_wire::pusher::{Access, ChannelKind, watched_user};

use super::{AppKey, Pusher, users::watch_channel, warn_attending};
use crate::{
    hub::ChannelKey,
    session::{Ctx, Open},
};

impl Ctx<'_> {
    /// Ends a subscription, or one that waits. The client is not answered.
    pub(super) fn pusher_unsubscribe(&mut self, name: &str) {
        let channel = self.app_of().and_then(|app| app.channel(name).ok());
        let Some(key) = channel.and_then(|channel| self.core.hub.key_of(channel.as_str())) else { return };
        let Some(open) = self.open_mut() else { return };
        if open.is_subscribing(key) {
            self.take_entering(key);
            return self.end_subscription(key);
        }
        let mut user = None;
        if let Some(pusher) = open.state_mut::<Pusher>() {
            let at = pusher.members.iter().position(|(own, _)| *own == key);
            user = at.map(|at| pusher.members.swap_remove(at).1);
        }
        self.leave_census(key, user);
        self.end_subscription(key);
    }

    /// Gives back what an open connection had beside its places in the hub.
    pub(crate) fn pusher_left(&mut self, open: &mut Open) {
        let Some(app) = self.core.rooms.pusher().apps.get(AppKey(open.tag)).cloned() else { return };
        app.release();
        let mut pusher = open.state_mut::<Pusher>().map(std::mem::take).unwrap_or_default();
        for &subscription in open.subscriptions.as_slice() {
            let key = self.core.hub.channel_of(subscription);
            let at = pusher.members.iter().position(|(own, _)| *own == key);
            self.leave_census(key, at.map(|at| pusher.members.swap_remove(at).1));
        }
        for entering in pusher.entering {
            self.give_back(entering);
        }
        if let Some(user) = pusher.user
            && let Ok(own) = watch_channel(&app, &user.id)
        {
            self.leave_channel(&own, Some(user.id));
        }
    }

    /// Takes a subscription out of the census, where it is in it.
    fn leave_census(&self, key: ChannelKey, user: Option<Box<str>>) {
        let name = self.core.hub.channel(key).name();
        let watches = watched_user(name).is_some();
        if !watches && ChannelKind::of(name).access != Access::User {
            self.attend_no_more(key, user);
        }
    }

    pub(super) fn attend_no_more(&self, key: ChannelKey, user: Option<Box<str>>) {
        self.leave_channel(self.core.hub.channel(key), user);
    }

    /// Who is sent away by a drain is back on another node within seconds. Until then it stays in the census, so that
    /// nobody is told that it left and came.
    fn leave_channel(&self, channel: &Channel, user: Option<Box<str>>) {
        let node = &self.core.shared.node;
        if !node.is_moving_clients() {
            return self.attend(channel, Attend::Leave { user });
        }
        let (backplane, channel) = (Arc::clone(node.backplane()), channel.clone());
        let leaving = async move {
            tokio::time::sleep(CENSUS_SETTLE).await;
            tell(backplane.attend(&channel, Attend::Leave { user }).await);
        };
        self.core.shared.runtime.spawn(node.moves().track_future(leaving));
    }

    /// Changes the census; nobody waits for the answer.
    pub(super) fn attend(&self, channel: &Channel, attend: Attend) {
        let attended = self.core.shared.node.backplane().attend(channel, attend);
        self.core.detach(async move { tell(attended.await) });
    }
}

/// Nobody waits for what became of it.
fn tell(attended: Result<Attended, AttendError>) {
    match attended {
        Ok(_) | Err(AttendError::Full { .. }) => {}
        Err(AttendError::Backplane(error)) => warn_attending(&error),
    }
}
