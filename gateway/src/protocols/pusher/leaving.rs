//! Giving back: a channel, or everything that a connection had.

use super::{AppKey, Pusher, users::watch_channel};
use crate::session::{Ctx, Open, presence::Present};

impl Ctx<'_> {
    /// Ends a subscription, or one that waits. The client is not answered.
    pub(super) fn pusher_unsubscribe(&mut self, name: &str) {
        let channel = self.app_of().and_then(|app| app.channel(name).ok());
        let Some(key) = channel.and_then(|channel| self.core.hub.key_of(channel.as_str())) else { return };
        self.end_subscription(key);
    }

    /// Gives back what an open connection had beside its subscriptions.
    pub(crate) fn pusher_left(&mut self, open: &mut Open) {
        let Some(app) = self.core.rooms.pusher().apps.get(AppKey(open.tag)).cloned() else { return };
        app.release();
        let pusher = open.state_mut::<Pusher>().map(std::mem::take).unwrap_or_default();
        if let Some(user) = pusher.user
            && let Ok(own) = watch_channel(&app, &user.id)
        {
            self.leave_channel(&own, Present::Listed);
        }
    }
}
