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

use super::{ACTIVITY_TIMEOUT_S, AppKey, is_pusher, leave_with};
use crate::{
    app::apps::App,
    hooks::HandedOn,
    session::{Ctx, Session, core::Core},
};

/// What a request for this protocol asks for, or what it is closed with.
pub(super) type Wanted = Result<Arc<App>, Code>;

impl Ctx<'_> {
    /// The first thing that an open connection is told: at once, or when the application has said that it may be there.
    pub(super) fn greet(&mut self, wanted: Wanted, request: Arc<HandedOn>) {
        let hook = self.core.asks_to_connect().map(Arc::clone);
        match (wanted, hook) {
            (Ok(app), Some(hook)) if app.is_asked_about() => self.ask_who_connects(&app, &hook, request),
            (wanted, _) => self.establish(wanted),
        }
    }

    pub(super) fn establish(&mut self, wanted: Wanted) {
        match wanted.and_then(|app| if app.admit() { Ok(app) } else { Err(Code::OVER_QUOTA) }) {
            Ok(app) => {
                let key = self.core.rooms.pusher_mut().apps.intern(app);
                if let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) {
                    open.tag = key.0;
                }
                let socket_id = self.core.socket_ids.name(self.id);
                self.tell(|out| server::established(&socket_id, ACTIVITY_TIMEOUT_S, out));
                self.tell_connected();
            }
            Err(code) => self.leave(leave_with(code)),
        }
    }
}

pub(super) fn wanted_app(core: &Core, head: &RequestHead<'_>) -> Wanted {
    let opening = Opening::parse(head.path, head.query)?;
    enabled(core.shared.apps.by_key(&opening.key))
}

pub(super) fn enabled(app: Option<Arc<App>>) -> Wanted {
    let app = app.ok_or(Code::NO_APP)?;
    if app.enabled { Ok(app) } else { Err(Code::APP_DISABLED) }
}

/// The list of apps is another one: whose app is gone or disabled must go.
pub(super) fn apps_changed(core: &mut Core, connections: &mut Connections<Session>) {
    let mut ended: Vec<(AppKey, Code)> = Vec::new();
    let configured = Arc::clone(&core.shared.apps);
    for (at, app) in core.rooms.pusher_mut().apps.0.iter_mut().enumerate() {
        let key = AppKey(at as u32 + 1);
        match configured.by_id(app.id.as_str()) {
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
            let open = connections.get(id).and_then(Session::open)?;
            let app = is_pusher(core, open).then_some(AppKey(open.tag))?;
            ended.iter().find(|(key, _)| *key == app).map(|&(_, code)| (id, code))
        })
        .collect();
    for (id, code) in leaving {
        core.ctx(connections, id).leave(leave_with(code));
    }
}
