//! Subscribing: what can be granted at once is; what has to wait for the backplane becomes an [`Entrance`].
//!
//! ```text
//! subscribe ─► check ─► hub.enter ─┬─► (public or private, channel confirmed) ─────────────► grant
//!                                  └─► Entrance: confirmed, attended, last event read ─┬───► grant
//!                                                        (presence, watchlist) the list ┘
//! ```
//!
//! An entrance outlives its connection: whatever it holds is given back when its answer has come.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tidegate_backplane::{
    Attend, AttendError, BackplaneError, Channel, ChannelError, History, HistoryQuery, User,
};
use tidegate_wire::pusher::{
    Access, ChannelKind, Code, MemberError, NameError, PresenceMember, Subscribe, auth, check_name,
    server::{self, ErrorKind, SubscriptionError},
    server_to_user,
    session::{Action, Answer, Place, Refusal},
};

use super::{AppKey, Entering, Pusher, frame_of, leave_with, messages::shown};
use crate::{
    app::apps::App,
    app::webhooks::Event,
    hub::{ChannelKey, Subscription, form::FormId},
    metrics::DropReason,
    node::roster::{List, ListForm},
    session::{
        Ctx, Open, Session,
        opening::terms,
        recovery::{Kept, Recovering, Want},
    },
    subscription::Seen,
};

/// Names an entrance within its shard while it lasts.
pub(super) type EntranceToken = u32;

/// A subscription that waits, and what it holds meanwhile: a place in the hub and, from when the answer came, one in the
/// census.
#[derive(Debug)]
pub(super) struct Entrance {
    key: ChannelKey,
    kind: Kind,
    attended: bool,
    /// Its own entry in the census: the list has to be as new as this.
    sequence: u64,
    /// The last event of a cache channel.
    last: Option<History>,
}

/// What is entered.
#[derive(Debug, Clone)]
enum Kind {
    Plain,
    Presence(User),
    /// The presence of a user on the watchlist.
    Watch,
}

/// What the backplane has answered.
#[derive(Debug)]
struct Entered {
    /// There is something to leave again.
    attended: bool,
    result: Result<Admission, EntranceError>,
}

#[derive(Debug)]
struct Admission {
    /// Of its own entry in the census, where it has made one.
    sequence: u64,
    last: Option<History>,
}

/// Why a subscription is refused.
#[derive(Debug, thiserror::Error)]
enum EntranceError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("this connection has {max} subscriptions, more are not allowed")]
    TooMany { max: usize },
    #[error("the signature of the subscription is missing or wrong")]
    Signature,
    #[error(transparent)]
    User(Refusal),
    #[error("a presence channel needs channel_data")]
    NoMember,
    #[error(transparent)]
    Member(#[from] MemberError),
    #[error("it is another user than the one that was about to subscribe")]
    OtherMember,
    #[error(transparent)]
    Census(#[from] AttendError),
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
    #[error("more is published to the channel than can be kept while its last event is read")]
    Busy,
}

impl EntranceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Channel(_) | Self::NoMember | Self::Member(_) | Self::OtherMember => {
                ErrorKind::Request
            }
            Self::TooMany { .. } | Self::Census(AttendError::Full { .. }) => ErrorKind::Limit,
            Self::Signature | Self::User(_) => ErrorKind::Auth,
            Self::Census(AttendError::Backplane(_)) | Self::Backplane(_) | Self::Busy => {
                ErrorKind::Unavailable
            }
        }
    }
}

impl Ctx<'_> {
    pub(super) fn pusher_subscribe(&mut self, subscribe: &Subscribe<'_>, action: Action) {
        let Some(app) = self.app_of() else { return };
        match self.check_subscribe(&app, subscribe, action) {
            Ok((channel, kind)) => self.enter(&app, &channel, kind),
            Err(error) => self.deny(&subscribe.channel, error.kind(), &error.to_string()),
        }
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
        let max = self.core.shared.node.config().limits.subscriptions as usize;
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else {
            return Err(EntranceError::TooMany { max });
        };
        let entering = open.pusher().map_or(0, |pusher| pusher.entering.len());
        let watched = open.pusher().and_then(|it| it.user.as_ref()).map_or(0, |user| user.watchlist.len());
        // The watchlist has a limit of its own.
        if (open.subscriptions.as_slice().len() + entering).saturating_sub(watched) >= max {
            return Err(EntranceError::TooMany { max });
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
                let user = open.pusher().and_then(|pusher| pusher.user.as_ref());
                if user.map(|user| &*user.id) != server_to_user(name) {
                    return Err(EntranceError::User(Refusal::NotSignedIn));
                }
            }
            _ => {}
        }
        let kind = match kind.access {
            Access::Presence => {
                let data = channel_data.ok_or(EntranceError::NoMember)?;
                let member = PresenceMember::parse(data, app.limits.presence_user_bytes.bytes())?;
                Kind::Presence(User { id: member.user_id, info: member.user_info })
            }
            _ => Kind::Plain,
        };
        Ok((app.channel(name)?, kind))
    }

    fn enter(&mut self, app: &App, channel: &Channel, kind: Kind) {
        if let Some(result) = self.enter_again(channel, &kind) {
            if let Err(error) = result {
                self.deny(channel.name(), error.kind(), &error.to_string());
            }
            return;
        }
        let terms = terms(self.core.shared.node.namespaces().of(channel));
        let (key, confirmation) = self.core.hub.hold(channel, terms);
        let is_cache = ChannelKind::of(channel.name()).is_cache;
        if let (Kind::Plain, false, Some(Ok(()))) = (&kind, is_cache, confirmation.clone().now_or_never()) {
            let entrance = Entrance { key, kind, attended: false, sequence: 0, last: None };
            return self.grant(entrance, None);
        }
        let attend = match &kind {
            Kind::Presence(user) => Some(Attend::Enter {
                user: Some(user.clone()),
                users_max: Some(app.limits.presence_members),
                tells_counts: false,
            }),
            Kind::Plain | Kind::Watch => None,
        };
        let entrance = Entrance { key, kind, attended: false, sequence: 0, last: None };
        let token = self.core.rooms.pusher_mut().entrances.insert(entrance) as EntranceToken;
        if is_cache {
            self.core.hub.watch(key, self.id);
        }
        if let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) {
            let recovering = is_cache.then(|| Recovering::new(Want::Now));
            let entering = Entering { token, key, place: Place::Entering, recovering };
            open.pusher_mut().entering.push(entering);
        }
        let (backplane, channel) = (Arc::clone(self.core.shared.node.backplane()), channel.clone());
        let entered = async move {
            let mut attended = false;
            let admission = async {
                confirmation.await?;
                let mut sequence = 0;
                if let Some(attend) = attend {
                    let answer = backplane.attend(&channel, attend).await;
                    attended = !matches!(answer, Err(AttendError::Full { .. }));
                    sequence = answer?.sequence;
                }
                let last = match is_cache {
                    true => Some(backplane.history(&channel, LAST).await?),
                    false => None,
                };
                Ok(Admission { sequence, last })
            };
            let result = admission.await;
            Entered { attended, result }
        };
        self.run(entered, move |ctx, entered| ctx.entered(token, entered));
    }

    /// Who had unsubscribed while its subscription waited, and subscribes again, goes on waiting.
    fn enter_again(&mut self, channel: &Channel, kind: &Kind) -> Option<Result<(), EntranceError>> {
        let key = self.core.hub.key_of(channel.as_str())?;
        let open = self.connections.get_mut(self.id).and_then(Session::open_mut)?;
        let pusher = open.state_mut::<Pusher>()?;
        let entering = pusher.entering.iter_mut().find(|entering| entering.key == key)?;
        let same = match (&self.core.rooms.pusher().entrances.get(entering.token as usize)?.kind, kind) {
            (Kind::Presence(before), Kind::Presence(now)) => before == now,
            _ => true,
        };
        if !same {
            return Some(Err(EntranceError::OtherMember));
        }
        entering.place = Place::Entering;
        Some(Ok(()))
    }

    /// The backplane has answered.
    fn entered(&mut self, token: EntranceToken, entered: Entered) {
        let Some(entrance) = self.core.rooms.pusher_mut().entrances.get_mut(token as usize) else { return };
        entrance.attended |= entered.attended;
        // Of a second read it is 0.
        let attended_at = entered.result.as_ref().map_or(0, |admission| admission.sequence);
        entrance.sequence = entrance.sequence.max(attended_at);
        let needs_list = !matches!(entrance.kind, Kind::Plain);
        match entered.result {
            Ok(admission) if self.is_wanted(token) => {
                let overflowed = self.overflowed(token);
                match overflowed {
                    Some(true) => self.read_last_again(token),
                    Some(false) => self.end_entrance(token, Err(EntranceError::Busy)),
                    None => {
                        if let Some(entrance) = self.core.rooms.pusher_mut().entrances.get_mut(token as usize)
                        {
                            entrance.last = admission.last;
                        }
                        match needs_list {
                            true => self.read_list(token),
                            false => self.end_entrance(token, Ok(None)),
                        }
                    }
                }
            }
            Ok(_) => self.end_entrance(token, Ok(None)),
            Err(error) => self.end_entrance(token, Err(error)),
        }
    }

    /// The list of a presence channel was read.
    fn list_read(&mut self, token: EntranceToken, list: Result<Arc<List>, BackplaneError>) {
        self.end_entrance(token, list.map(Some).map_err(EntranceError::from));
    }

    fn is_wanted(&self, token: EntranceToken) -> bool {
        if !self.core.rooms.pusher().entrances.contains(token as usize) {
            return false;
        }
        let open = self.open();
        let entering = open.and_then(Open::pusher).map_or(&[][..], |pusher| &pusher.entering);
        entering.iter().any(|entering| entering.token == token && entering.place == Place::Entering)
    }

    /// Whether more was published than could be kept while the last event was read; `true`: it may be read again.
    fn overflowed(&mut self, token: EntranceToken) -> Option<bool> {
        let key = self.core.rooms.pusher().entrances.get(token as usize)?.key;
        let recovering = self.open_mut()?.pusher_mut().recovering(key)?;
        let lost = recovering.kept.overflow?;
        if recovering.reads_left == 0 {
            self.core.metrics.messages_dropped.add(DropReason::RecoveryOverflow, lost.messages);
            return Some(false);
        }
        recovering.reads_left -= 1;
        recovering.kept = Kept::default();
        Some(true)
    }

    fn read_last_again(&mut self, token: EntranceToken) {
        debug_assert!(self.is_wanted(token));
        let Some(entrance) = self.core.rooms.pusher().entrances.get(token as usize) else { return };
        let (backplane, channel) =
            (Arc::clone(self.core.shared.node.backplane()), self.core.hub.channel(entrance.key).clone());
        let read = async move {
            let last = backplane.history(&channel, LAST).await;
            let result = last.map(|last| Admission { sequence: 0, last: Some(last) });
            Entered { attended: false, result: result.map_err(EntranceError::from) }
        };
        self.run(read, move |ctx, entered| ctx.entered(token, entered));
    }

    fn read_list(&mut self, token: EntranceToken) {
        let Some(entrance) = self.core.rooms.pusher().entrances.get(token as usize) else { return };
        let channel = self.core.hub.channel(entrance.key);
        let reply = self.reply(move |ctx, list| ctx.list_read(token, list));
        self.core.shared.node.rosters().read(channel, entrance.sequence, reply);
    }

    /// Everything has been answered: lets the client in, or tells it why not, or gives back what nobody wants now.
    fn end_entrance(&mut self, token: EntranceToken, result: Result<Option<Arc<List>>, EntranceError>) {
        let Some(entrance) = self.core.rooms.pusher_mut().entrances.try_remove(token as usize) else {
            return;
        };
        let entering = self.take_entering(token);
        let answer = if result.is_ok() { Answer::Granted } else { Answer::Denied };
        let next = entering.as_ref().map_or(Place::Outside, |entering| entering.place.next(answer));
        let was_wanted = entering.as_ref().is_some_and(|entering| entering.place == Place::Entering);
        match (next, result) {
            (Place::Inside, Ok(list)) => {
                let recovering = entering.and_then(|entering| entering.recovering);
                self.grant(entrance, Some((list, recovering)));
            }
            (_, result) => {
                let name = self.core.hub.channel(entrance.key).name().to_owned();
                self.give_back(entrance);
                if let (true, Err(error)) = (was_wanted, result) {
                    self.fail_entrance(&name, &error);
                }
            }
        }
    }

    /// Takes a waiting subscription from its connection, which reads no history any more.
    fn take_entering(&mut self, token: EntranceToken) -> Option<Entering> {
        let open = self.connections.get_mut(self.id).and_then(Session::open_mut)?;
        let pusher = open.state_mut::<Pusher>()?;
        let at = pusher.entering.iter().position(|entering| entering.token == token)?;
        let entering = pusher.entering.swap_remove(at);
        if entering.recovering.is_some() {
            self.core.hub.unwatch(entering.key, self.id);
        }
        open.drop_empty_rare();
        Some(entering)
    }

    fn give_back(&mut self, entrance: Entrance) {
        if let (true, Kind::Presence(user)) = (entrance.attended, entrance.kind) {
            self.attend_no_more(entrance.key, Some(user.id));
        }
        self.core.hub.release(entrance.key, self.connections.now());
    }

    /// Clients do not ask again for a channel that they were refused, so one that only cannot be had now has the
    /// connection closed with a code after which they come back.
    fn fail_entrance(&mut self, name: &str, error: &EntranceError) {
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
        self.tell(|out| {
            server::subscription_error(name, SubscriptionError { kind, message: text }, out);
        });
        self.tell(|out| server::error(None, &format!("{name}: {text}"), None, out));
    }

    /// Writes the answer and joins the lane, in one turn. `waited`: the list of a presence channel, and what came while
    /// the last event was read.
    fn grant(&mut self, entrance: Entrance, waited: Option<(Option<Arc<List>>, Option<Recovering>)>) {
        let Entrance { key, kind, last, .. } = entrance;
        let (list, recovering) = waited.unwrap_or_default();
        let channel = self.core.hub.channel(key).clone();
        let name = channel.name();
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else { return };
        let form = match self.core.shared.node.namespaces().of(&channel).compression {
            true => open.form,
            false => open.form.plain(),
        };
        let mut out = std::mem::take(&mut self.core.scratch);
        out.clear();
        match (&kind, &list) {
            (Kind::Watch, list) => {
                let user = tidegate_wire::pusher::watched_user(name).into_iter();
                let is_online = list.as_ref().is_some_and(|list| !list.users.is_empty());
                frame_of(
                    |text| match is_online {
                        true => server::watchlist(user, [].into_iter(), text),
                        false => server::watchlist([].into_iter(), user, text),
                    },
                    &mut out,
                );
            }
            (_, Some(list)) => out.extend_from_slice(list.said(PRESENCE_LIST, |roll, said| {
                let members = roll.users.iter().map(|user| (&*user.id, user.info.as_deref()));
                frame_of(|text| server::presence_succeeded(name, members, text), said);
            })),
            (_, None) => frame_of(|text| server::subscription_succeeded(name, text), &mut out),
        }
        let mut seen = Seen::default();
        if let Some(list) = &list {
            seen.set_census(list.sequence);
        }
        if let Some(recovering) = recovering {
            self.write_last(form, key, &mut seen, recovering, last, &mut out);
        }
        self.connections.write_beyond_bound(self.id, &out);
        self.core.keep_scratch(out);
        // As in `tell`: who subscribes again and again and reads nothing is not read either.
        self.connections.pause_until_flushed(self.id);
        let now = self.connections.now();
        let subscription = self.core.hub.join(key, form, seen, self.id.slot, now);
        self.granted(subscription, &kind, &channel);
    }

    /// Notes a subscription that stands now.
    fn granted(&mut self, subscription: Subscription, kind: &Kind, channel: &Channel) {
        let key = self.core.hub.channel_of(subscription);
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        open.subscriptions.push(subscription);
        if let Kind::Presence(user) = kind {
            open.pusher_mut().members.push((key, user.id.clone()));
        }
        let (app, has_many) = (AppKey(open.tag), open.subscriptions.as_slice().len() > 1);
        if has_many {
            self.connections.set_merging(self.id, true);
        }
        let counts = ChannelKind::of(channel.name()).access != Access::User;
        if let (Kind::Plain, true, Some(app)) = (kind, counts, self.core.rooms.pusher().apps.get(app)) {
            // Who is told of counts must be subscribed before its own is counted.
            let tells_counts = app.subscription_count;
            self.attend(channel, Attend::Enter { user: None, users_max: None, tells_counts });
        }
    }

    /// Appends the last event of a cache channel, or that there is none.
    fn write_last(
        &mut self,
        form: FormId,
        key: ChannelKey,
        seen: &mut Seen,
        recovering: Recovering,
        last: Option<History>,
        out: &mut Vec<u8>,
    ) {
        let before = out.len();
        let recovering = Recovering { history: last, ..recovering };
        self.write_recovered(key, seen, recovering, form, &mut Default::default(), out);
        if out.len() == before {
            let channel = self.core.hub.channel(key).clone();
            frame_of(|text| server::cache_miss(channel.name(), text), out);
            if let Some(app) = self.app_of() {
                self.core.shared.webhooks.notify(&app, Event::CacheMiss { channel: channel.name() });
            }
        }
    }
}

/// How a list is said here: the frame that a subscription to a presence channel is answered with.
const PRESENCE_LIST: ListForm = ListForm::new(0);

/// The newest publication.
pub(super) const LAST: HistoryQuery = HistoryQuery { since: None, limit: 1 };

/// Whether an `auth` value is this app's signature of a text.
pub(super) fn is_signed(app: &App, auth: &str, signed: &str) -> bool {
    auth::Signature::parse(auth)
        .is_some_and(|signature| signature.key == &*app.key && app.verify(signed, signature.digest))
}
