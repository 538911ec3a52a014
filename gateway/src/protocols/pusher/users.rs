//! Users: signing in, and who is told that they are online.

use tidegate_backplane::{Attend, Channel, ChannelError, User};
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::pusher::{Code, Identity, WATCH, auth, server};

use super::entering::is_signed;
use crate::{
    app::apps::App,
    session::{Session, leaving::Leave},
    shard::Core,
};

impl Core {
    pub(super) fn pusher_sign_in(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        auth: &str,
        user_data: &str,
    ) {
        let Some(app) = self.app_of(connections, id) else { return };
        let signed = auth::signin(&self.socket_ids.name(id), user_data);
        if !is_signed(&app, auth, &signed) {
            return self.leave(connections, id, Leave::Pusher(Code::UNAUTHORIZED));
        }
        let (identity, too_long) = match Identity::parse(user_data) {
            Ok(identity) => identity,
            Err(error) => {
                return self.tell_error(connections, id, None, &format!("signing in failed: {error}"));
            }
        };
        let before = self.user(connections, id);
        match before.map(|before| before.id == identity.id) {
            Some(false) => {
                let text = "signing in failed: this connection is signed in as another user";
                self.tell_error(connections, id, None, text);
            }
            // Once more: what it watches stays.
            Some(true) => self.tell(connections, id, |out| server::signin_success(user_data, out)),
            None => {
                self.tell(connections, id, |out| server::signin_success(user_data, out));
                if too_long {
                    let code = Code::WATCHLIST;
                    self.tell(connections, id, |out| server::error(Some(code), code.message(), None, out));
                }
                self.signed_in(connections, id, &app, identity);
            }
        }
    }

    /// Who an open connection is.
    pub(crate) fn user<'c>(
        &self,
        connections: &'c Connections<Session>,
        id: ConnectionId,
    ) -> Option<&'c Identity> {
        connections.get(id).and_then(Session::open)?.pusher()?.user.as_ref()
    }

    fn signed_in(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        app: &App,
        identity: Identity,
    ) {
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else { return };
        let watchlist = identity.watchlist.clone();
        let user = User { id: identity.id.clone(), info: None };
        open.pusher_mut().user = Some(identity);
        if let Ok(own) = watch_channel(app, &user.id) {
            self.attend(&own, Attend::Enter { user: Some(user), users_max: None, tells_counts: false });
        }
        for watched in watchlist {
            if let Ok(channel) = watch_channel(app, &watched) {
                self.watch(connections, id, app, &channel);
            }
        }
    }
}

/// What a user attends while signed in.
pub(super) fn watch_channel(app: &App, user: &str) -> Result<Channel, ChannelError> {
    app.channel(&format!("{WATCH}{user}"))
}
