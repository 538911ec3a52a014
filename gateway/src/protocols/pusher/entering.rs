//! Subscribing: what may be subscribed to, what a presence channel needs beside its place in the hub, and the answers.
//!
//! The subscription itself is the session's; it asks for the list of members when everything else is there. Who is in a
//! presence channel is counted by the backplane before that, and given back when the subscription does not come about.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tidegate_backplane::{Attend, AttendError, BackplaneError, Channel, ChannelError, User};
use tidegate_wire::pusher::{
    Access, ChannelKind, Code, MemberError, NameError, PresenceMember, Subscribe, auth, check_name,
    server::{self, ErrorKind, SubscriptionError},
    server_to_user,
    session::{Action, Refusal},
};

use super::{Pusher, frame_of, leave_with, messages::shown};
use crate::{
    app::apps::App,
    app::webhooks::Event,
    hub::ChannelKey,
    node::roster::{List, ListForm},
    problem::log_refusal,
    session::{Ctx, Open, Session, release_empty, subscribing::Attempt},
    subscription::Want,
};

/// A subscription under way that is answered with a list.
#[derive(Debug)]
pub(super) struct Entering {
    attempt: Attempt,
    kind: Kind,
    /// It counts as a member, under this number of the census: the list has to be as new as that.
    attended: Option<u64>,
    list: Option<Arc<List>>,
}

/// What is entered.
#[derive(Debug, Clone)]
enum Kind {
    Plain,
    Presence(User),
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
    Census(#[from] AttendError),
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

impl EntranceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Channel(_) | Self::NoMember | Self::Member(_) => ErrorKind::Request,
            Self::TooMany { .. }
            | Self::TooManyAnonymous { .. }
            | Self::TooFast { .. }
            | Self::NodeFull
            | Self::Census(AttendError::Full { .. }) => ErrorKind::Limit,
            Self::Signature | Self::User(_) => ErrorKind::Auth,
            Self::Census(AttendError::Backplane(_)) | Self::Backplane(_) => ErrorKind::Unavailable,
        }
    }
}

impl Entering {
    pub(super) fn is_watch(&self) -> bool {
        matches!(self.kind, Kind::Watch)
    }
}

impl Ctx<'_> {
    pub(super) fn pusher_subscribe(&mut self, subscribe: &Subscribe<'_>, action: Action) {
        let Some(app) = self.app_of() else { return };
        let checked = self.spend_subscribe().and_then(|()| self.check_subscribe(&app, subscribe, action));
        match checked {
            Ok((channel, kind)) => self.enter(&app, &channel, kind),
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
                Kind::Presence(match (channel_data, signed_in) {
                    (Some(data), _) => {
                        let member = PresenceMember::parse(data, max)?;
                        User { id: member.user_id, info: member.user_info }
                    }
                    // Who is signed in needs to say no more.
                    (None, Some(user)) => {
                        let bytes = user.info.as_deref().map_or(0, str::len);
                        if bytes > max {
                            return Err(MemberError::TooLarge { bytes, max }.into());
                        }
                        User { id: user.id.clone(), info: user.info.clone() }
                    }
                    (None, None) => return Err(EntranceError::NoMember),
                })
            }
            _ => Kind::Plain,
        };
        let channel = app.channel(name)?;
        match self.core.has_room_for(std::slice::from_ref(&channel)) {
            true => Ok((channel, kind)),
            false => Err(EntranceError::NodeFull),
        }
    }

    /// A client is anonymous as long as its app's server has signed nothing for it: no user, no channel.
    fn check_vouched(&self, open: &Open, max: usize) -> Result<(), EntranceError> {
        let hub = &self.core.hub;
        let is_signed_in = open.pusher().is_some_and(|pusher| pusher.user.is_some());
        let keys = open.subscriptions.as_slice().iter().map(|&own| hub.channel_of(own));
        let mut kinds = keys.chain(open.under_way_keys()).map(|key| ChannelKind::of(hub.channel(key).name()));
        match is_signed_in || kinds.any(|kind| kind.access != Access::Public) {
            true => Ok(()),
            false => Err(EntranceError::TooManyAnonymous { max }),
        }
    }

    fn enter(&mut self, app: &App, channel: &Channel, kind: Kind) {
        let want = if ChannelKind::of(channel.name()).is_cache { Want::Newest } else { Want::Live };
        let attend = match &kind {
            Kind::Presence(user) => Some(Attend::Enter {
                user: Some(user.clone()),
                users_max: Some(app.limits.presence_members),
                tells_counts: false,
            }),
            Kind::Plain | Kind::Watch => None,
        };
        let lists = !matches!(kind, Kind::Plain);
        let Some((attempt, confirmation)) = self.begin_subscription(channel, want, lists) else { return };
        let user = match &kind {
            Kind::Presence(user) => Some(user.id.clone()),
            Kind::Plain | Kind::Watch => None,
        };
        if let Some(open) = self.open_mut().filter(|_| lists) {
            open.pusher_mut().entering.push(Entering { attempt, kind, attended: None, list: None });
        }
        if let (None, Some(Ok(()))) = (&attend, confirmation.clone().now_or_never()) {
            return self.confirmed(attempt);
        }
        let (backplane, channel) = (Arc::clone(self.core.shared.node.backplane()), channel.clone());
        let attended = async move {
            if let Err(error) = confirmation.await {
                return (channel, None, Err(error.into()));
            }
            let Some(attend) = attend else { return (channel, None, Ok(0)) };
            match backplane.attend(&channel, attend).await {
                Ok(attended) => (channel, user, Ok(attended.sequence)),
                Err(error @ AttendError::Full { .. }) => (channel, None, Err(error.into())),
                // It may count as a member all the same.
                Err(error) => (channel, user, Err(error.into())),
            }
        };
        self.run(attended, move |ctx, (channel, user, result)| ctx.attended(attempt, &channel, user, result));
    }

    /// The backplane has answered. `user`: who has entered with it, and has to leave again.
    fn attended(
        &mut self,
        attempt: Attempt,
        channel: &Channel,
        user: Option<Box<str>>,
        result: Result<u64, EntranceError>,
    ) {
        match result {
            Ok(sequence) if self.is_under_way(attempt) => {
                if let Some(entering) = self.entering(attempt.key) {
                    entering.attended = user.map(|_| sequence);
                }
                self.confirmed(attempt);
            }
            result => {
                if user.is_some() {
                    self.attend(channel, Attend::Leave { user });
                }
                if let Err(error) = result
                    && self.is_under_way(attempt)
                {
                    self.end_subscription(attempt.key);
                    self.fail_entrance(attempt.key, &error);
                }
            }
        }
    }

    /// Everything but the list is there.
    pub(super) fn read_list(&mut self, attempt: Attempt) {
        let at_least = self.entering(attempt.key).and_then(|entering| entering.attended).unwrap_or(0);
        let reply = self.reply(move |ctx, list| ctx.list_read(attempt, list));
        self.core.shared.node.rosters().read(self.core.hub.channel(attempt.key), at_least, reply);
    }

    /// The list of a presence channel was read.
    fn list_read(&mut self, attempt: Attempt, list: Result<Arc<List>, BackplaneError>) {
        match list {
            Ok(list) if self.is_under_way(attempt) => {
                let sequence = list.sequence;
                if let Some(entering) = self.entering(attempt.key) {
                    entering.list = Some(list);
                }
                self.listed(attempt, sequence);
            }
            Ok(_) => {}
            Err(error) => self.refused(attempt, error),
        }
    }

    fn entering(&mut self, key: ChannelKey) -> Option<&mut Entering> {
        let pusher = self.open_mut()?.state_mut::<Pusher>()?;
        pusher.entering.iter_mut().find(|entering| entering.attempt.key == key)
    }

    /// Takes a subscription that does not come about; it is no member any more.
    pub(super) fn take_entering(&mut self, key: ChannelKey) {
        let Some(open) = self.open_mut() else { return };
        let Some(pusher) = open.state_mut::<Pusher>() else { return };
        let at = pusher.entering.iter().position(|entering| entering.attempt.key == key);
        let Some(entering) = at.map(|at| pusher.entering.swap_remove(at)) else { return };
        release_empty(&mut pusher.entering);
        open.drop_empty_rare();
        self.give_back(entering);
    }

    pub(super) fn give_back(&mut self, entering: Entering) {
        if let (Some(_), Kind::Presence(user)) = (entering.attended, entering.kind) {
            self.attend_no_more(entering.attempt.key, Some(user.id));
        }
    }

    /// Clients do not ask again for a channel that they were refused, so one that only cannot be had now has the
    /// connection closed with a code after which they come back.
    pub(super) fn fail_entrance(&mut self, key: ChannelKey, error: &EntranceError) {
        self.take_entering(key);
        let name = self.core.hub.channel(key).name().to_owned();
        let kind = error.kind();
        self.deny(&name, kind, &error.to_string());
        if kind == ErrorKind::Unavailable {
            self.leave(leave_with(Code::OVER_CAPACITY));
        }
    }

    /// Refuses a subscription, as a `pusher:subscription_error`, which channels of pusher-js are told, and as the
    /// `pusher:error` that hosted Pusher sends.
    pub(super) fn deny(&mut self, name: &str, kind: ErrorKind, text: &str) {
        let name = shown(name);
        self.core.metrics.subscriptions_refused.add(kind.into(), 1);
        log_refusal(name, &text);
        self.tell(|out| {
            server::subscription_error(name, SubscriptionError { kind, message: text }, out);
        });
        self.tell(|out| server::error(None, &format!("{name}: {text}"), None, out));
    }

    /// A subscription stands: answers, in the turn in which it joins its lane. `is_new`: no last event follows.
    pub(super) fn granted(&mut self, key: ChannelKey, is_new: bool) {
        let channel = self.core.hub.channel(key).clone();
        let name = channel.name();
        let Some(open) = self.open_mut() else { return };
        let entering = open.state_mut::<Pusher>().and_then(|pusher| {
            let at = pusher.entering.iter().position(|entering| entering.attempt.key == key)?;
            let entering = pusher.entering.swap_remove(at);
            release_empty(&mut pusher.entering);
            Some(entering)
        });
        let (kind, list) = entering.map_or((Kind::Plain, None), |entering| (entering.kind, entering.list));
        if matches!(kind, Kind::Watch) {
            return self.watches(key);
        }
        self.answer(|out| match &list {
            Some(list) => out.extend_from_slice(list.said(PRESENCE_LIST, |roll, said| {
                let members = roll.users.iter().map(|user| (&*user.id, user.info.as_deref()));
                frame_of(|text| server::presence_succeeded(name, members, text), said);
            })),
            None => frame_of(|text| server::subscription_succeeded(name, text), out),
        });
        let channel_kind = ChannelKind::of(name);
        if channel_kind.is_cache && is_new {
            self.tell(|text| server::cache_miss(name, text));
            if let Some(app) = self.app_of() {
                self.core.shared.webhooks.notify(&app.webhooks, Event::CacheMiss { channel: name });
            }
        }
        match kind {
            Kind::Presence(user) => {
                if let Some(open) = self.open_mut() {
                    let members = &mut open.pusher_mut().members;
                    members.reserve_exact(1);
                    members.push((key, user.id));
                }
            }
            Kind::Plain if channel_kind.access != Access::User => {
                // It joins its lane in this turn: before its own count is told.
                let tells_counts = self.app_of().is_some_and(|app| app.subscription_count);
                self.attend(&channel, Attend::Enter { user: None, users_max: None, tells_counts });
            }
            Kind::Plain | Kind::Watch => {}
        }
    }
}

/// How a list is said here: the frame that a subscription to a presence channel is answered with.
const PRESENCE_LIST: ListForm = ListForm::new(0);

/// Whether an `auth` value is this app's signature of a text.
pub(super) fn is_signed(app: &App, auth: &str, signed: &str) -> bool {
    auth::Signature::parse(auth)
        .is_some_and(|signature| signature.key == &*app.key && app.verify(signed, signature.digest))
}
