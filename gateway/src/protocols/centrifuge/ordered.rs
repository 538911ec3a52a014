//! What the server API asks of connections, on whichever node they are: subscribe, unsubscribe, disconnect, refresh.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tidegate_wire::{
    centrifuge::{
        code::{Disconnect, Unsubscribed},
        message::SubscribeRequest,
    },
    frame::CloseCode,
};

use super::Stage;
use crate::{
    app::apps::AppId,
    metrics::DisconnectReason,
    problem::log_refusal,
    session::{Ctx, leaving::Leave},
};

/// An order to the connections of a user, or to one of them; the client's own to one, without its user.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Instruction {
    pub(super) app: Option<Box<str>>,
    /// Also where one connection is named: it is to be this user's.
    pub(super) user: Box<str>,
    pub(super) order: Order,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    Subscribe {
        channel: String,
        /// What the client is told with it, in base64.
        data: String,
        since: Option<Position>,
    },
    Unsubscribe {
        channel: String,
    },
    Disconnect {
        code: u16,
        reason: String,
        /// Clients that stay.
        whitelist: Vec<String>,
    },
    /// A frame of the client itself, in base64, from a node that has no connection of it.
    Emulate {
        proof: String,
        frame: String,
    },
    Refresh {
        expired: bool,
        /// Seconds since 1970; 0: it does not expire.
        expire_at: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) offset: u64,
    pub(super) epoch: String,
}

impl Ctx<'_> {
    pub(super) fn instructed(&mut self, text: &str) {
        let Instruction { app, user, order } = match serde_json::from_str(text) {
            Ok(instruction) => instruction,
            // Of a node of another version.
            Err(error) => return log_refusal("order", &error),
        };
        if let Order::Emulate { proof, frame } = order {
            return self.take_emulated(&proof, &STANDARD.decode(frame).unwrap_or_default());
        }
        let is_theirs = self.open().and_then(|open| open.claims()).is_some_and(|claims| {
            claims.user.as_deref() == Some(&*user)
                && claims.app.as_deref().map(AppId::as_str) == app.as_deref()
        });
        if !is_theirs || self.stage() != Some(Stage::Connected) {
            return;
        }
        match order {
            Order::Subscribe { channel, data, since } => {
                let recover = since.is_some();
                let Position { offset, epoch } =
                    since.unwrap_or_else(|| Position { offset: 0, epoch: String::new() });
                let request =
                    SubscribeRequest { channel, recover, offset, epoch, ..SubscribeRequest::default() };
                self.subscribe_by_order(&request, STANDARD.decode(data).unwrap_or_default());
            }
            Order::Unsubscribe { channel } => {
                if let Some(key) = self.key_of_own(&channel) {
                    self.take_away(key, Unsubscribed::Server);
                }
            }
            Order::Disconnect { code, reason, whitelist } => {
                let name = self.core.connection_name(self.id);
                if !whitelist.contains(&name) {
                    let (code, text) = (CloseCode(code), reason.into());
                    self.leave(Leave::Own { code, text, reason: DisconnectReason::Ordered });
                }
            }
            Order::Refresh { expired: true, .. } => self.cut(Disconnect::Expired, &"by the server API"),
            Order::Refresh { expire_at, .. } => self.expire_at(expire_at),
            // Taken above.
            Order::Emulate { .. } => {}
        }
    }

    /// The connection lasts until then, whatever its token says.
    fn expire_at(&mut self, seconds: u64) {
        let now = self.connections.now();
        let expires = (seconds > 0).then(|| {
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            let left = at.and_then(|at| at.duration_since(SystemTime::now()).ok());
            now.after(left.unwrap_or_default())
        });
        if let Some(open) = self.open_mut() {
            open.rare_mut().expires = expires;
        }
        self.beat_in_time();
    }
}
