//! `subscribe`, `unsubscribe`, `sub_refresh`, and what becomes of subscriptions.

use std::sync::Arc;

use tidegate_backplane::{Channel, Join, Position};
use tidegate_reactor::Tick;
use tidegate_wire::centrifuge::{
    Style,
    code::{Disconnect, ErrorCode, Unsubscribed},
    message::{
        Empty, FLAG_REJECT_UNRECOVERED, Publication, Reply, SubRefreshRequest, SubRefreshResult,
        SubscribeRequest, SubscribeResult,
    },
    push::{self, Data},
};

use super::{
    Client,
    forms::{self, Carrier},
    place,
};
use crate::{
    auth::Claims,
    config::{JoinLeave, RecoveryMode},
    hooks::{Overrides, ServerSubscription},
    hub::ChannelKey,
    metrics::Instructed,
    node::{interest::Confirmation, member_info::MemberInfo},
    problem::log_refusal,
    session::{
        Ctx,
        access::ChannelRefused,
        release_empty,
        subscribing::{Attempt, SubscribeRefused},
    },
    subscription::{Item, Want},
};

/// The only kind of differences that there is.
const DELTA_KIND: &str = "fossil";

/// A subscription that was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    key: ChannelKey,
    by: By,
    /// What it wants of the past.
    back: Back,
    /// It wants an error where that cannot be had.
    rejects: bool,
    /// It is told by differences.
    by_delta: bool,
    /// It may come back to where it was.
    recovers: bool,
    /// It is told where it is.
    positions: bool,
}

/// What a token or the application says of a subscription that it grants.
#[derive(Debug, Default)]
pub(super) struct Granted {
    pub(super) expires: Option<Tick>,
    /// Of the application, which is asked again when it expires: what the client is told.
    pub(super) data: Option<Vec<u8>>,
    pub(super) info: Option<Box<str>>,
    pub(super) overrides: Overrides,
}

/// What a client that comes back wants.
#[derive(Debug)]
enum Back {
    Nothing,
    /// All that it missed.
    Missed,
    /// The newest publication, unless it is where it was.
    Newest {
        epoch: String,
        offset: u64,
    },
}

/// Who has asked for a subscription, and so how its client is told that it stands.
#[derive(Debug)]
enum By {
    /// The client: by the answer to its command, with what the application says to it.
    Command(u32, Vec<u8>),
    /// An application's server: by a push, with what it wants its client to be told.
    Server(Vec<u8>),
    /// Its token: by the answer to `connect`, with the same.
    Token(Vec<u8>),
}

impl Ctx<'_> {
    pub(super) fn subscribe(&mut self, id: u32, mut request: SubscribeRequest) {
        if request.channel.is_empty() {
            return self.cut(Disconnect::BadRequest, &"subscribe without a channel");
        }
        if request.r#type != 0 {
            return self.deny_command(id, ErrorCode::NotAvailable, &"only streams can be subscribed to");
        }
        let token = std::mem::take(&mut request.token);
        if token.is_empty() {
            let claims = self.open().and_then(|open| open.claims().cloned());
            if let Some(hook) = self.core.asks_to_subscribe(&request.channel, claims.as_deref()) {
                return self.ask_subscription(id, &hook, request, claims);
            }
            return self.begin_asked(id, &request, claims.as_deref(), Granted::default());
        }
        self.with_new_token(token, move |ctx, claims| match claims {
            Ok(claims) if !ctx.is_of_same_user(&claims) => {
                ctx.cut(Disconnect::InvalidToken, &"the token is of another user or app");
            }
            Ok(claims) => {
                let expires = claims.expiry(ctx.connections.now());
                let (info, overrides) = (claims.info.clone(), claims.overrides);
                let granted = Granted { expires, info, overrides, ..Granted::default() };
                ctx.begin_asked(id, &request, Some(&claims), granted);
            }
            Err(refused) => ctx.refuse_token(id, refused),
        });
    }

    fn begin_asked(
        &mut self,
        id: u32,
        request: &SubscribeRequest,
        claims: Option<&Claims>,
        granted: Granted,
    ) {
        match self.core.channel_for(&request.channel, claims) {
            Ok(channel) => self.begin_asked_on(id, request, &channel, claims, granted),
            Err(refused) => self.refuse_channel(id, &request.channel, refused),
        }
    }

    /// Begins a subscription to a channel that may be subscribed to.
    pub(super) fn begin_asked_on(
        &mut self,
        id: u32,
        request: &SubscribeRequest,
        channel: &Channel,
        claims: Option<&Claims>,
        granted: Granted,
    ) {
        let Granted { expires, data, info, overrides } = granted;
        let name = channel.name();
        if let Err(refused) = self.may_begin_subscription(channel, claims) {
            let code = match refused {
                SubscribeRefused::TooFast(_) => ErrorCode::TooManyRequests,
                SubscribeRefused::TooMany { .. } => ErrorCode::LimitExceeded,
                SubscribeRefused::Already => ErrorCode::AlreadySubscribed,
                // Another node may have room.
                SubscribeRefused::NodeFull => ErrorCode::Internal,
            };
            return self.deny_command(id, code, &format_args!("{name}: {refused}"));
        }
        let (want, back) = self.wanted(channel, Some(request).filter(|request| request.recover));
        let tells_presence = self.tells_presence(channel, request.join_leave, overrides);
        let Some((attempt, confirmation)) = self.begin_subscription(channel, want, tells_presence) else {
            return;
        };
        let by_delta = self.tell_by_delta(attempt, channel, &request.delta);
        let Some(open) = self.open_mut() else { return };
        let client = open.state_or_default::<Client>();
        let rejects = request.flag & FLAG_REJECT_UNRECOVERED != 0;
        let is_asked = data.is_some();
        let by = By::Command(id, data.unwrap_or_default());
        let recovers = overrides.recovery != Some(false) || request.recoverable || request.recover;
        let positions = overrides.positioning != Some(false) || request.positioned;
        client.subscribing.push(Asked { key: attempt.key, by, back, rejects, by_delta, recovers, positions });
        client.grants.set(attempt.key, expires, is_asked);
        if expires.is_some() {
            self.beat_in_time();
        }
        let join = self.join_with(channel, info.as_deref(), overrides);
        self.proceed(attempt, confirmation, join);
    }

    /// What it joins a channel as, with the info of the subscription; nothing where it is not to be listed.
    pub(super) fn join_with(
        &self,
        channel: &Channel,
        info: Option<&str>,
        overrides: Overrides,
    ) -> Option<Join> {
        let mut join = self.join_of(channel).filter(|_| overrides.presence != Some(false))?;
        if let Some(member) = &mut join.member {
            let is_quiet = overrides.join_leave == Some(false);
            member.info = MemberInfo { of_subscription: info, is_quiet, ..MemberInfo::of(member) }.to_text();
        }
        Some(join)
    }

    /// Has its client told by differences, where it asks for them in a way that there is.
    fn tell_by_delta(&mut self, attempt: Attempt, channel: &Channel, kind: &str) -> bool {
        let may = kind == DELTA_KIND && self.core.shared.node.namespaces().of(channel).may_tell_deltas();
        let carrier = self.carrier().filter(|_| may);
        carrier.map(|carrier| self.tell_in(attempt, carrier.form_of_deltas())).is_some()
    }

    /// Subscribes because an application's server says so, whatever the client may by itself.
    pub(super) fn subscribe_by_order(
        &mut self,
        request: &SubscribeRequest,
        said: ServerSubscription,
    ) -> Result<(), Instructed> {
        let channel = self.instructed_channel(&request.channel)?;
        let (want, back) = self.wanted(&channel, Some(request).filter(|request| request.recover));
        let ServerSubscription { data, info, overrides } = said;
        let tells_presence = self.tells_presence(&channel, false, overrides);
        let (attempt, confirmation) = self.begin_instructed(&channel, want, tells_presence)?;
        self.note_of_server(attempt, By::Server(data), back, false, overrides);
        let join = self.join_with(&channel, info.as_deref(), overrides);
        self.proceed(attempt, confirmation, join);
        Ok(())
    }

    /// Begins one that the token says. `named`: what the client says of it: where it was, and whether it reads differences.
    pub(super) fn begin_of_server(
        &mut self,
        channel: &Channel,
        named: Option<&SubscribeRequest>,
        data: Vec<u8>,
        overrides: Overrides,
    ) -> Option<(Attempt, Confirmation)> {
        let (want, back) = self.wanted(channel, named.filter(|named| named.recover));
        let tells_presence = self.tells_presence(channel, false, overrides);
        let begun = self.begin_together(channel, want, tells_presence)?;
        let by_delta = self.tell_by_delta(begun.0, channel, named.map_or("", |named| &named.delta));
        self.note_of_server(begun.0, By::Token(data), back, by_delta, overrides);
        Some(begun)
    }

    fn note_of_server(&mut self, attempt: Attempt, by: By, back: Back, by_delta: bool, overrides: Overrides) {
        let Some(open) = self.open_mut() else { return };
        let client = open.state_or_default::<Client>();
        let recovers = overrides.recovery != Some(false) || !matches!(back, Back::Nothing);
        let positions = overrides.positioning != Some(false);
        let (key, rejects) = (attempt.key, false);
        client.subscribing.push(Asked { key, by, back, rejects, by_delta, recovers, positions });
        client.of_server.push(attempt.key);
    }

    /// What of a channel's past is wanted by a client that was there, or by one that was not.
    fn wanted(&self, channel: &Channel, back: Option<&SubscribeRequest>) -> (Want, Back) {
        let namespace = self.core.shared.node.namespaces().of(channel);
        match back {
            Some(back) if namespace.recovery == RecoveryMode::Cache && namespace.history().is_some() => {
                (Want::Newest, Back::Newest { epoch: back.epoch.clone(), offset: back.offset })
            }
            Some(back) => (place::want(self.core, channel, &back.epoch, back.offset), Back::Missed),
            None => (self.core.want(channel, None, true), Back::Nothing),
        }
    }

    /// Whether its client is told who joins and leaves. `asked`: it wants to be.
    fn tells_presence(&self, channel: &Channel, asked: bool, overrides: Overrides) -> bool {
        let namespace = self.core.shared.node.namespaces().of(channel);
        let tells = || asked || namespace.join_leave == JoinLeave::All;
        namespace.tells_presence() && overrides.push_join_leave.unwrap_or_else(tells)
    }

    pub(super) fn refuse_channel(&mut self, id: u32, name: &str, refused: ChannelRefused) {
        let code = match refused {
            ChannelRefused::Name(_) => ErrorCode::BadRequest,
            ChannelRefused::Rights => ErrorCode::PermissionDenied,
        };
        self.deny_command(id, code, &format_args!("{name}: {refused}"));
    }

    /// A subscription stands. Its answer holds the first of what the client missed; the rest is pushed.
    pub(super) fn subscribed(
        &mut self,
        key: ChannelKey,
        position: Option<Position>,
        recovered: bool,
        told: &mut Vec<Item>,
    ) {
        let newest = told.iter().rev().find_map(|item| match item {
            Item::Publication(publication) => publication.position,
            Item::Gap(_) => None,
        });
        // What the application has allowed, it is asked about again; its client need do nothing.
        let expires = self.open().and_then(|open| open.state::<Client>()?.grants.due_to_client(key));
        let (expires, ttl) = self.ttl(expires);
        let is_had = self.answer_asked(key, |ctx, asked| {
            let tell = |position| ctx.core.place(key, position).map(|place| place::tell(ctx.core, place));
            let (place, recovered) = match &asked.back {
                Back::Nothing => (tell(position), false),
                Back::Missed => {
                    let place = tell(position);
                    let is_had = recovered && place.is_some();
                    (place, is_had)
                }
                Back::Newest { epoch, offset } => {
                    let place = tell(newest.or(position));
                    let is_had = place.as_ref().is_some_and(|(own, at)| own == epoch && at == offset);
                    told.drain(..if is_had { told.len() } else { told.len().saturating_sub(1) });
                    (place, newest.is_some())
                }
            };
            let was_recovering = !matches!(asked.back, Back::Nothing);
            if was_recovering && asked.rejects && !recovered {
                return Err(ErrorCode::UnrecoverablePosition);
            }
            if !recovered {
                // The answer says so.
                told.retain(|item| !matches!(item, Item::Gap(_)));
            }
            // A push has no place for them: they follow it.
            let is_answer = !matches!(asked.by, By::Server(_));
            let publications = if recovered && is_answer { take_publications(told) } else { Vec::new() };
            let publications = match asked.by_delta && ctx.carrier().is_some_and(Carrier::is_json) {
                true => publications.into_iter().map(as_string).collect(),
                false => publications,
            };
            let recoverable = asked.recovers && place.is_some();
            let positioned = recoverable || asked.positions && place.is_some();
            let (epoch, offset) = place.filter(|_| positioned).unwrap_or_default();
            let data = Vec::new();
            Ok(SubscribeResult {
                expires,
                ttl,
                recoverable,
                epoch,
                publications,
                recovered,
                offset,
                positioned,
                data,
                was_recovering,
                delta: asked.by_delta,
            })
        });
        if !is_had {
            told.clear();
        }
    }

    /// Answers the command that asked for a subscription. An error ends the subscription.
    pub(super) fn answer_asked(
        &mut self,
        key: ChannelKey,
        answer: impl FnOnce(&mut Ctx<'_>, &Asked) -> Result<SubscribeResult, ErrorCode>,
    ) -> bool {
        let Some(client) = self.client_mut() else { return false };
        let Some(at) = client.subscribing.iter().position(|asked| asked.key == key) else { return false };
        let asked = client.subscribing.remove(at);
        release_empty(&mut client.subscribing);
        let is_last = client.subscribing.is_empty();
        let result = answer(self, &asked);
        let is_had = result.is_ok();
        let name = self.core.hub.channel(key).name().to_owned();
        match (result, asked.by) {
            (Ok(result), By::Command(id, data)) => {
                let subscribe = Some(Box::new(SubscribeResult { data, ..result }));
                self.send_reply(Reply { id, subscribe, ..Reply::default() });
            }
            (Ok(result), By::Token(data)) => self.entered_one(key, SubscribeResult { data, ..result }),
            (Err(_), By::Token(_)) => {
                self.fail_to_enter();
                return false;
            }
            (Ok(result), By::Server(data)) => {
                self.push_to_client(|style, out| push::subscribe(&name, result, data, style, out));
            }
            (Err(code), by) => {
                match by {
                    By::Command(id, _) => self.deny_command(id, code, &name),
                    By::Server(_) | By::Token(_) => {
                        log_refusal("subscribe by a server", &format_args!("{name}: {code:?}"))
                    }
                }
                self.end_asked(key);
            }
        }
        self.drop_idle();
        if is_last {
            self.go_on_later();
        }
        is_had
    }

    pub(super) fn unsubscribe_from(&mut self, id: u32, name: &str) {
        if name.is_empty() {
            return self.cut(Disconnect::BadRequest, &"unsubscribe without a channel");
        }
        if let Some(key) = self.key_of_own(name) {
            self.end_asked(key);
        }
        self.send_reply(Reply { id, unsubscribe: Some(Empty {}), ..Reply::default() });
    }

    /// Another token for a subscription.
    pub(super) fn refresh_subscription(&mut self, id: u32, request: SubRefreshRequest) {
        let SubRefreshRequest { channel, token, r#type } = request;
        if channel.is_empty() || token.is_empty() {
            return self.cut(Disconnect::BadRequest, &"sub_refresh without a channel or token");
        }
        if r#type != 0 {
            return self.deny_command(id, ErrorCode::NotAvailable, &"only tokens are refreshed");
        }
        let Some(key) = self.key_of_own(&channel) else {
            return self.deny_command(
                id,
                ErrorCode::PermissionDenied,
                &format_args!("{channel}: not subscribed"),
            );
        };
        self.with_new_token(token, move |ctx, claims| {
            let claims = match claims {
                Ok(claims) => claims,
                Err(refused) => return ctx.refuse_token(id, refused),
            };
            let own = ctx.core.hub.channel(key).clone();
            let is_for_it =
                ctx.core.channel_for(own.name(), Some(&claims)).is_ok_and(|channel| channel == own);
            if !ctx.is_of_same_user(&claims) || !is_for_it {
                return ctx.cut(Disconnect::InvalidToken, &"the token is of another user, app or channel");
            }
            if ctx.key_of_own(own.name()) != Some(key) {
                return ctx.deny_command(id, ErrorCode::PermissionDenied, &"unsubscribed meanwhile");
            }
            let expires = claims.expiry(ctx.connections.now());
            let Some(open) = ctx.open_mut() else { return };
            open.state_or_default::<Client>().grants.set(key, expires, false);
            ctx.beat_in_time();
            let (expires, ttl) = ctx.ttl(expires);
            let sub_refresh = Some(SubRefreshResult { expires, ttl });
            ctx.send_reply(Reply { id, sub_refresh, ..Reply::default() });
        });
    }

    /// Ends the subscriptions whose token has expired; their clients come back with another.
    pub(super) fn end_expired(&mut self) {
        let now = self.connections.now();
        let Some(client) = self.client_mut() else { return };
        for (key, is_asked) in client.grants.take_ended(now) {
            if !is_asked || !self.ask_to_go_on(key) {
                self.take_away(key, Unsubscribed::Expired);
            }
        }
        self.drop_idle();
    }

    /// The application was asked whether a subscription goes on.
    pub(super) fn grant_refreshed(&mut self, key: ChannelKey, until: Option<Option<Tick>>) {
        match (until, self.open_mut()) {
            (Some(until), Some(open)) => {
                open.state_or_default::<Client>().grants.set(key, until, true);
                self.beat_in_time();
                self.drop_idle();
            }
            _ => self.take_away(key, Unsubscribed::Expired),
        }
    }

    /// The client has missed something, and is to subscribe again from where it is. What the server subscribed it to, it
    /// does not subscribe to by itself: it connects again.
    pub(super) fn subscribe_again(&mut self, key: ChannelKey) {
        let client = self.open().and_then(|open| open.state::<Client>());
        match client.is_some_and(|client| client.of_server.contains(&key)) {
            true => self.cut(Disconnect::InsufficientState, &"a gap in what the server subscribed it to"),
            false => self.take_away(key, Unsubscribed::InsufficientState),
        }
    }

    /// Ends a subscription that its client did not end, and says why.
    pub(super) fn take_away(&mut self, key: ChannelKey, why: Unsubscribed) {
        let name = self.core.hub.channel(key).name().to_owned();
        if self.key_of_own(&name) != Some(key) {
            return;
        }
        // It is told once that it has it, and then that it has it no more.
        if self.open().and_then(|open| open.state::<Client>()).is_some_and(|it| it.is_asking(key)) {
            self.answer_asked(key, |_, _| Err(ErrorCode::Expired));
            return;
        }
        self.end_asked(key);
        self.push_to_client(|style, out| push::unsubscribe(&name, why.into(), style, out));
    }

    /// Tells the client something that it has not asked for.
    pub(super) fn push_to_client(&mut self, encode: impl FnOnce(Style, &mut Vec<u8>)) {
        let Some(carrier) = self.carrier() else { return };
        self.write(|out| carrier.put_one(out, encode));
    }

    /// Ends a subscription with all that the connection has of it.
    pub(super) fn end_asked(&mut self, key: ChannelKey) {
        if let Some(client) = self.client_mut() {
            client.grants.forget(key);
            client.of_server.retain(|&own| own != key);
            release_empty(&mut client.of_server);
        }
        self.end_subscription(key);
        self.drop_idle();
    }
}

impl Client {
    fn is_asking(&self, key: ChannelKey) -> bool {
        self.subscribing.iter().any(|asked| asked.key == key)
    }
}

/// A publication whose payload is a string in JSON, of which the next may be told by how it differs.
fn as_string(publication: Publication) -> Publication {
    let data = match std::str::from_utf8(&publication.data) {
        Ok(text) => Data::Text(text),
        Err(_) => Data::Binary(&publication.data),
    };
    let json = data.to_json();
    // A string of a string is text.
    let data = serde_json::to_vec(&json).unwrap_or_default();
    Publication { data, ..publication }
}

/// The publications at the front of what a client is told.
fn take_publications(told: &mut Vec<Item>) -> Vec<Publication> {
    let end = told.iter().position(|item| matches!(item, Item::Gap(_))).unwrap_or(told.len());
    let publications = told.drain(..end).filter_map(|item| match item {
        Item::Publication(publication) => Some(publication),
        Item::Gap(_) => None,
    });
    publications.map(|publication: Arc<_>| forms::with_published(&publication, |it| it.into())).collect()
}
