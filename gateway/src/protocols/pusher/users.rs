//! Users: signing in, and who is told that they are online.

use tidegate_backplane::{Channel, ChannelError, Join, Member};
use tidegate_wire::{
    frame::Opcode,
    pusher::{Code, Identity, SERVER_TO_USER, WATCH, auth, server, watched_user},
};

use super::{entering::is_signed, leave_with};
use crate::{
    app::apps::App,
    hub::ChannelKey,
    node::instruction::Message,
    session::{Ctx, Session},
};

/// The name of an event that is given none.
const EVENT_DEFAULT: &str = "message";

impl Ctx<'_> {
    pub(super) fn pusher_sign_in(&mut self, auth: &str, user_data: &str) {
        let Some(app) = self.app_of() else { return };
        let signed = auth::signin(&self.core.socket_ids.name(self.id), user_data);
        if !is_signed(&app, auth, &signed) {
            return self.leave(leave_with(Code::UNAUTHORIZED));
        }
        let (identity, too_long) = match Identity::parse(user_data) {
            Ok(identity) => identity,
            Err(error) => {
                return self.tell_error(None, &format!("signing in failed: {error}"));
            }
        };
        let before = self.user();
        match before.map(|before| before.id == identity.id) {
            Some(false) => {
                let text = "signing in failed: this connection is signed in as another user";
                self.tell_error(None, text);
            }
            // Once more: what it watches stays.
            Some(true) => self.tell(|out| server::signin_success(user_data, out)),
            None => {
                self.tell(|out| server::signin_success(user_data, out));
                if too_long {
                    let code = Code::WATCHLIST;
                    self.tell(|out| server::error(Some(code), code.message(), None, out));
                }
                self.signed_in(&app, identity);
            }
        }
    }

    /// Who an open connection is.
    fn user(&self) -> Option<&Identity> {
        self.connections.get(self.id).and_then(Session::open)?.pusher()?.user.as_deref()
    }

    fn signed_in(&mut self, app: &App, identity: Identity) {
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        let watchlist = identity.watchlist.clone();
        let user = identity.id.clone();
        open.pusher_mut().user = Some(Box::new(identity));
        if let Ok(own) = watch_channel(app, &user) {
            let connection = self.core.connection_name(self.id).into();
            self.join_channel(&own, Join::listed(Member { connection, user, info: None }));
        }
        for watched in watchlist {
            if let Ok(channel) = watch_channel(app, &watched) {
                self.watch(app, &channel);
            }
        }
    }
}

impl Ctx<'_> {
    /// Tells an event as those of the user's own channel are told, which clients hand to `pusher.user`; without a channel
    /// while nobody is signed in, which they hand to who binds to it on the connection as a whole.
    pub(super) fn send_to_user(&mut self, message: &Message) {
        let channel = self.user().map(|user| format!("{SERVER_TO_USER}{}", user.id));
        let name = message.event.as_deref().unwrap_or(EVENT_DEFAULT);
        let mut text = Vec::new();
        server::message_of(name, channel.as_deref(), &message.data, &mut text);
        self.write_frame(Opcode::Text, &text);
    }

    /// A user of the watchlist is subscribed to. When all are, it is told at once who of them is online. A change that the
    /// client was told of meanwhile is in that: the lists of the node are never older than what its shards were told.
    pub(super) fn watches(&mut self, key: ChannelKey) {
        let hub = &self.core.hub;
        let is_watch = |other: ChannelKey| watched_user(hub.channel(other).name()).is_some();
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        open.pusher_mut().watched.push(key);
        if open.under_way_keys().any(|other| other != key && is_watch(other)) {
            return;
        }
        let channels: Vec<_> = std::mem::take(&mut open.pusher_mut().watched)
            .into_iter()
            .map(|key| self.core.hub.channel(key).clone())
            .collect();
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for channel in &channels {
            let is_online = self.core.shared.node.rosters().is_empty(channel) == Some(false);
            let status = if is_online { &mut online } else { &mut offline };
            status.extend(watched_user(channel.name()));
        }
        self.tell(|out| server::watchlist(online.iter().copied(), offline.iter().copied(), out));
    }
}

/// What a user attends while signed in.
pub(super) fn watch_channel(app: &App, user: &str) -> Result<Channel, ChannelError> {
    app.channel(&format!("{WATCH}{user}"))
}
