//! Clients of Pusher Channels: carries out what `tidegate_wire::pusher::session` decides.
//!
//! `opening` says hello, or why not; `messages` takes what clients say; `entering` subscribes, with what has to wait for
//! the backplane; `users` signs in; `events` publishes; `delivering` is what of a fan-out is
//! for them alone; `leaving` gives back. What a connection has that few have is
//! [`Pusher`], a box in `Rare`: a public channel needs nothing of it.

mod delivering;
mod entering;
mod events;
mod leaving;
mod messages;
mod opening;
mod socket_id;
mod users;

use std::sync::Arc;

use tidegate_backplane::BackplaneError;
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::{
    frame::{self, Opcode},
    pusher::{
        Identity,
        session::{Place, Stage},
    },
};

pub(crate) use entering::{Entered, Entrance, EntranceToken};
pub(crate) use events::EventRefused;
pub(crate) use opening::Wanted;
pub(crate) use socket_id::SocketIds;

use crate::session::{Open, Session, recovery::Recovering};
use crate::{app::apps::App, hub::ChannelKey, shard::Core};

/// Seconds that a client is silent before it pings, as hosted Pusher tells them. The gateway pings sooner itself.
const ACTIVITY_TIMEOUT_S: u64 = 120;

/// An app, as the sessions of a shard name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AppKey(u32);

/// The apps that connections of this shard belong to or did: as many as were ever configured.
#[derive(Debug, Default)]
pub(crate) struct AppTable(Vec<Arc<App>>);

/// What few connections have.
#[derive(Debug, Default)]
pub(crate) struct Pusher {
    /// Who it is, when it is signed in.
    pub(crate) user: Option<Identity>,
    /// Who it is in its presence channels.
    members: Vec<(ChannelKey, Box<str>)>,
    /// Subscriptions that wait for an answer.
    entering: Vec<Entering>,
}

/// A subscription that waits for an answer.
#[derive(Debug)]
struct Entering {
    token: EntranceToken,
    key: ChannelKey,
    /// What the client knows the channel by; whether it has unsubscribed meanwhile.
    place: Place,
    /// Of a cache channel: its last event is being read.
    recovering: Option<Recovering>,
}

impl AppTable {
    /// Names an app, and keeps its newest form.
    fn intern(&mut self, app: Arc<App>) -> AppKey {
        let known = self.0.iter().position(|known| known.id == app.id);
        let at = known.unwrap_or_else(|| {
            self.0.push(Arc::clone(&app));
            self.0.len() - 1
        });
        self.0[at] = app;
        AppKey(at as u32 + 1)
    }

    /// `None`: of a connection that belongs to no app.
    pub(crate) fn get(&self, key: AppKey) -> Option<&Arc<App>> {
        self.0.get((key.0 as usize).checked_sub(1)?)
    }
}

impl Pusher {
    pub(crate) fn is_empty(&self) -> bool {
        self.user.is_none() && self.members.is_empty() && self.entering.is_empty()
    }

    /// Where a cache channel's last event is being read.
    pub(crate) fn recovering(&mut self, key: ChannelKey) -> Option<&mut Recovering> {
        self.entering.iter_mut().find(|entering| entering.key == key)?.recovering.as_mut()
    }

    fn member_of(&self, key: ChannelKey) -> Option<&str> {
        self.members.iter().find(|(own, _)| *own == key).map(|(_, user)| &**user)
    }
}

impl Open {
    pub(crate) fn pusher(&self) -> Option<&Pusher> {
        self.rare.as_ref()?.pusher.as_deref()
    }

    pub(crate) fn pusher_mut(&mut self) -> &mut Pusher {
        self.rare_mut().pusher.get_or_insert_default()
    }

    fn stage(&self) -> Stage {
        match self.pusher().and_then(|pusher| pusher.user.as_ref()) {
            Some(_) => Stage::SignedIn,
            None => Stage::Established,
        }
    }
}

impl Core {
    /// The app of an open connection.
    fn app_of(&self, connections: &Connections<Session>, id: ConnectionId) -> Option<Arc<App>> {
        let open = connections.get(id).and_then(Session::open)?;
        self.apps.get(open.app).cloned()
    }

    /// A connection's place in a channel.
    fn place_in(&self, open: &Open, key: Option<ChannelKey>) -> Place {
        let Some(key) = key else { return Place::Outside };
        let entering = open.pusher().and_then(|it| it.entering.iter().find(|entering| entering.key == key));
        match entering {
            Some(entering) => entering.place,
            None if open.subscriptions.as_slice().iter().any(|&own| self.hub.channel_of(own) == key) => {
                Place::Inside
            }
            None => Place::Outside,
        }
    }

    /// Writes one message to one client. An answer to what it sent does not count against the bound of its queue; a
    /// client that does not read is not read either.
    fn tell(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        frame_of(write, &mut out);
        connections.write_beyond_bound(id, &out);
        self.keep_scratch(out);
        connections.pause_until_flushed(id);
    }
}

/// Appends a text frame.
fn frame_of(write: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    let mut text = Vec::new();
    write(&mut text);
    frame::encode(Opcode::Text, &text, out);
}

/// Logs what nobody waits for and could not be done.
fn warn_attending(error: &BackplaneError) {
    tracing::warn!(%error, "a change of who is in a channel is not known to other nodes yet");
}
