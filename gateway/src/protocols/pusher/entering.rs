//! Subscribing: what may be subscribed to, what a presence channel needs beside its place in the hub, and the answers.
//!
//! The subscription itself is the session's, with the list of who is there.

use std::collections::BTreeMap;

use tidegate_backplane::{Channel, ChannelError, Join, JoinError, Member};
use tidegate_wire::pusher::{
    Access, ChannelKind, Code, MemberError, NameError, PresenceMember, Subscribe, auth, check_name,
    server::{self, ErrorKind, SubscriptionError},
    server_to_user,
    session::{Action, Refusal},
    watched_user,
};

use super::{frame_of, leave_with, messages::shown};
use crate::{
    app::apps::App,
    app::webhooks::Event,
    hooks::No,
    hub::ChannelKey,
    node::{
        member_info,
        roster::{List, ListForm},
    },
    session::{Ctx, Open, Session, presence::Present},
    subscription::Want,
};

/// What is entered.
#[derive(Debug)]
pub(super) enum Kind {
    Plain,
    /// As a user, with info.
    Presence(Box<str>, Option<Box<str>>),
    /// The presence of a user on the watchlist.
    Watch,
}

/// Why a subscription is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntranceError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("this connection has {max} subscriptions, more are not allowed")]
    TooMany { max: usize },
    #[error("a connection without a user or a signed channel has at most {max} subscriptions")]
    TooManyAnonymous { max: usize },
    #[error("subscribing faster than allowed: {per_second} a second")]
    TooFast { per_second: u32 },
    #[error("this node has subscribers in as many channels as it is configured for")]
    NodeFull,
    #[error("the signature of the subscription is missing or wrong")]
    Signature,
    #[error(transparent)]
    User(Refusal),
    #[error("a presence channel needs channel_data, or a user who is signed in")]
    NoMember,
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Application(#[from] No),
}

impl EntranceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Channel(_) | Self::NoMember | Self::Member(_) => ErrorKind::Request,
            Self::TooMany { .. }
            | Self::TooManyAnonymous { .. }
            | Self::TooFast { .. }
            | Self::NodeFull
            | Self::Join(JoinError::Full { .. }) => ErrorKind::Limit,
            Self::Join(JoinError::Backplane(_)) | Self::Application(No::Away) => ErrorKind::Unavailable,
            Self::Signature | Self::User(_) | Self::Application(_) => ErrorKind::Auth,
        }
    }
}

impl Ctx<'_> {
    pub(super) fn pusher_subscribe(&mut self, subscribe: &Subscribe<'_>, action: Action) {
        let Some(app) = self.app_of() else { return };
        let checked = self.spend_subscribe().and_then(|()| self.check_subscribe(&app, subscribe, action));
        match checked {
            Ok((channel, kind)) => match self.whom_to_ask(&app, &channel) {
                Some(hook) => self.ask_to_enter(&hook, channel),
                None => self.enter(&app, &channel, kind),
            },
            Err(error) => self.deny(&subscribe.channel, error.kind(), &error.to_string()),
        }
    }

    /// Refused subscriptions count, too: what they cost is the check.
    fn spend_subscribe(&mut self) -> Result<(), EntranceError> {
        self.take_subscribe().map_err(|rate| EntranceError::TooFast { per_second: rate.per_second })
    }

    /// Subscribes to the presence of a user on the watchlist.
    pub(super) fn watch(&mut self, app: &App, channel: &Channel) {
        self.enter(app, channel, Kind::Watch);
    }

    fn check_subscribe(
        &self,
        app: &App,
        subscribe: &Subscribe<'_>,
        action: Action,
    ) -> Result<(Channel, Kind), EntranceError> {
        let name = &*subscribe.channel;
        let kind = check_name(name, app.limits.channel_name_bytes as usize)?;
        let limits = &self.core.shared.node.config().limits;
        let max = limits.subscriptions as usize;
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else {
            return Err(EntranceError::TooMany { max });
        };
        let watched = open.pusher().and_then(|it| it.user.as_deref()).map_or(0, |user| user.watchlist.len());
        // The watchlist has a limit of its own.
        if open.subscription_count().saturating_sub(watched) >= max {
            return Err(EntranceError::TooMany { max });
        }
        let anonymous_max = limits.anonymous_subscriptions as usize;
        if open.subscription_count() >= anonymous_max && !matches!(action, Action::VerifyThenEnter) {
            self.check_vouched(open, anonymous_max)?;
        }
        let channel_data = subscribe.channel_data.as_deref();
        match action {
            Action::VerifyThenEnter => {
                let signed = auth::subscription(&self.core.socket_ids.name(self.id), name, channel_data);
                if !is_signed(app, &subscribe.auth, &signed) {
                    return Err(EntranceError::Signature);
                }
            }
            Action::EnterAsUser => {
                let user = open.pusher().and_then(|pusher| pusher.user.as_deref());
                if user.map(|user| &*user.id) != server_to_user(name) {
                    return Err(EntranceError::User(Refusal::NotSignedIn));
                }
            }
            _ => {}
        }
        let kind = match kind.access {
            Access::Presence => {
                let max = app.limits.presence_user_bytes.bytes();
                let signed_in = open.pusher().and_then(|pusher| pusher.user.as_deref());
                match (channel_data, signed_in) {
                    (Some(data), _) => {
                        let member = PresenceMember::parse(data, max)?;
                        Kind::Presence(member.user_id, member.user_info)
                    }
                    // Who is signed in needs to say no more.
                    (None, Some(user)) => {
                        let bytes = user.info.as_deref().map_or(0, str::len);
                        if bytes > max {
                            return Err(MemberError::TooLarge { bytes, max }.into());
                        }
                        Kind::Presence(user.id.clone(), user.info.clone())
                    }
                    (None, None) => return Err(EntranceError::NoMember),
                }
            }
            _ => Kind::Plain,
        };
        let channel = app.channel(name)?;
        match self.core.has_room_for(std::slice::from_ref(&channel)) {
            true => Ok((channel, kind)),
            false => Err(EntranceError::NodeFull),
        }
    }

    /// A client is anonymous as long as its app's server has signed nothing for it, no user and no channel, and the
    /// application was not asked who it is.
    fn check_vouched(&self, open: &Open, max: usize) -> Result<(), EntranceError> {
        let hub = &self.core.hub;
        let is_known = open.claims().is_some() || open.pusher().is_some_and(|pusher| pusher.user.is_some());
        let keys = open.subscriptions.as_slice().iter().map(|&own| hub.channel_of(own));
        let mut kinds = keys.chain(open.under_way_keys()).map(|key| ChannelKind::of(hub.channel(key).name()));
        match is_known || kinds.any(|kind| kind.access != Access::Public) {
            true => Ok(()),
            false => Err(EntranceError::TooManyAnonymous { max }),
        }
    }

    pub(super) fn enter(&mut self, app: &App, channel: &Channel, kind: Kind) {
        let want = if ChannelKind::of(channel.name()).is_cache { Want::Newest } else { Want::Live };
        let lists = !matches!(kind, Kind::Plain);
        let Some((attempt, confirmation)) = self.begin_subscription(channel, want, lists) else { return };
        let join = match kind {
            Kind::Presence(user, info) => {
                let connection = self.core.connection_name(self.id).into();
                let users_max = Some(app.limits.presence_members);
                Some(Join { users_max, ..Join::listed(Member { connection, user, info }) })
            }
            Kind::Plain | Kind::Watch => None,
        };
        self.proceed(attempt, confirmation, join);
    }

    /// Clients do not ask again for a channel that they were refused, so one that only cannot be had now has the
    /// connection closed with a code after which they come back.
    pub(super) fn fail_entrance(&mut self, name: &str, error: &EntranceError) {
        let kind = error.kind();
        self.deny(name, kind, &error.to_string());
        if kind == ErrorKind::Unavailable {
            self.leave(leave_with(Code::OVER_CAPACITY));
        }
    }

    /// Refuses a subscription, as a `pusher:subscription_error`, which channels of pusher-js are told, and as the
    /// `pusher:error` that hosted Pusher sends.
    pub(super) fn deny(&mut self, name: &str, kind: ErrorKind, text: &str) {
        let name = shown(name);
        self.core.metrics.subscriptions_refused.add(kind.into(), 1);
        self.note_told(name, &text);
        self.tell(|out| {
            server::subscription_error(name, SubscriptionError { kind, message: text }, out);
        });
        self.tell(|out| server::error(None, &format!("{name}: {text}"), None, out));
    }

    /// A subscription stands: answers, in the turn in which it joins its lane. `is_new`: no last event follows.
    pub(super) fn granted(&mut self, key: ChannelKey, is_new: bool, list: Option<&List>) {
        let channel = self.core.hub.channel(key).clone();
        let name = channel.name();
        if watched_user(name).is_some() {
            return self.watches(key);
        }
        match list {
            Some(list) => self.answer_large(|out| out.extend_from_slice(said(name, list))),
            None => self.answer(|out| frame_of(|text| server::subscription_succeeded(name, text), out)),
        }
        let channel_kind = ChannelKind::of(name);
        if channel_kind.is_cache && is_new {
            self.tell(|text| server::cache_miss(name, text));
            if let Some(app) = self.app_of() {
                self.core.shared.webhooks.notify(&app.webhooks, Event::CacheMiss { channel: name });
            }
        }
        if present_in(name) == Present::Counted {
            // It joins its lane in this turn: before its own count is told.
            let tells_counts = self.app_of().is_some_and(|app| app.subscription_count);
            self.join_channel(&channel, Join { tells_counts: Some(tells_counts), ..Join::counted() });
        }
    }
}

/// What a subscription to a presence channel is answered with: each user once, however many connections it has.
fn said<'a>(name: &str, list: &'a List) -> &'a [u8] {
    list.said(PRESENCE_LIST, |roll, out| {
        let mut users = BTreeMap::new();
        for member in &roll.members {
            users.entry(&*member.user).or_insert(member_info::of_connection(member));
        }
        let users = users.iter().map(|(user, info)| (*user, *info));
        frame_of(|text| server::presence_succeeded(name, users, text), out);
    })
}

/// How a subscription to a channel is present there.
pub(super) fn present_in(name: &str) -> Present {
    match ChannelKind::of(name).access {
        _ if watched_user(name).is_some() => Present::No,
        Access::User => Present::No,
        Access::Presence => Present::Listed,
        _ => Present::Counted,
    }
}

/// Whether who subscribes to a channel is told who is there, and who comes and goes.
pub(super) fn is_given_list(name: &str) -> bool {
    watched_user(name).is_some() || ChannelKind::of(name).access == Access::Presence
}

/// How a list is said here: the frame that a subscription to a presence channel is answered with.
const PRESENCE_LIST: ListForm = ListForm::new(0);

/// Whether an `auth` value is this app's signature of a text.
pub(super) fn is_signed(app: &App, auth: &str, signed: &str) -> bool {
    auth::Signature::parse(auth)
        .is_some_and(|signature| signature.key == &*app.key && app.verify(signed, signature.digest))
}
