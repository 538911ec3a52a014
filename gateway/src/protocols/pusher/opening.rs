//! Hello: the app of a request, the first message, or a close that says why not.
//!
//! As hosted Pusher does, a request that is wrong is answered by the WebSocket, where clients look: an error event and a
//! close code tell them whether to come back.

use std::sync::Arc;

use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::{
    head::Head as RequestHead,
    pusher::{Code, Opening, server},
};

use super::{ACTIVITY_TIMEOUT_S, AppKey};
use crate::{
    app::apps::App,
    session::{Session, leaving::Leave},
    shard::Core,
};

/// What a request for this protocol asks for, or what it is closed with.
pub(crate) type Wanted = Result<Arc<App>, Code>;

impl Core {
    pub(crate) fn wanted_app(&self, head: &RequestHead<'_>) -> Wanted {
        let opening = Opening::parse(head.path, head.query)?;
        let app = self.shared.apps.by_key(&opening.key).ok_or(Code::NO_APP)?;
        if app.enabled { Ok(app) } else { Err(Code::APP_DISABLED) }
    }

    /// The first thing that an open connection is told.
    pub(crate) fn establish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        wanted: Wanted,
    ) {
        match wanted.and_then(|app| if app.admit() { Ok(app) } else { Err(Code::OVER_QUOTA) }) {
            Ok(app) => {
                let key = self.apps.intern(app);
                if let Some(open) = connections.get_mut(id).and_then(Session::open_mut) {
                    open.app = key;
                }
                let socket_id = self.socket_ids.name(id);
                self.tell(connections, id, |out| server::established(&socket_id, ACTIVITY_TIMEOUT_S, out));
            }
            Err(code) => self.leave(connections, id, Leave::Pusher(code)),
        }
    }

    /// The list of apps is another one: whose app is gone or disabled must go.
    pub(crate) fn apps_changed(&mut self, connections: &mut Connections<Session>) {
        let mut ended: Vec<(AppKey, Code)> = Vec::new();
        for (at, app) in self.apps.0.iter_mut().enumerate() {
            let key = AppKey(at as u32 + 1);
            match self.shared.apps.by_id(app.id.as_str()) {
                Some(now) => {
                    ended.extend((!now.enabled).then_some((key, Code::APP_DISABLED)));
                    *app = now;
                }
                None => ended.push((key, Code::NO_APP)),
            }
        }
        if ended.is_empty() {
            return;
        }
        let slots = (0..connections.slots()).filter_map(|slot| connections.in_slot(slot));
        let leaving: Vec<(ConnectionId, Code)> = slots
            .filter_map(|id| {
                let app = connections.get(id).and_then(Session::open)?.app;
                ended.iter().find(|(key, _)| *key == app).map(|&(_, code)| (id, code))
            })
            .collect();
        for (id, code) in leaving {
            self.leave(connections, id, Leave::Pusher(code));
        }
    }
}
