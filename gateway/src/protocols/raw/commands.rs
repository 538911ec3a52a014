//! What a client with `envelope=json` asks for on its open connection. Every command is answered, with its `id`.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use tidegate_backplane::{BackplaneError, Channel, History, HistoryQuery, Position};
use tidegate_reactor::Tick;
use tidegate_wire::{
    fields::{Malformed, Reader, Writer},
    frame::{self, Opcode},
    raw::{
        self, Since,
        command::{self, Command, CommandKind},
    },
};

use super::forms;
use crate::{
    auth::Claims,
    config::{ClientRead, Namespace},
    hub::{ChannelKey, content::Content},
    session::{
        Ctx,
        access::ChannelRefused,
        core::Core,
        moving::Granted,
        protocol::{ProtocolState, Stays},
        publishing::Rates,
        subscribing::SubscribeRefused,
        tokens::{Grants, TokenRefused},
    },
};

/// What few connections have.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Commands that subscribe and were not answered yet.
    subscribing: Vec<(ChannelKey, Option<u64>)>,
    /// Subscriptions that a server has asked for and that do not stand yet.
    pub(super) instructed: Vec<ChannelKey>,
    granted: Grants,
}

/// Why a command is not carried out: a status as in HTTP, and a sentence.
pub(super) struct Refused(pub(super) u16, pub(super) String);

/// Publications that one answer holds at most, and their bytes.
const HISTORY_LIMIT: usize = 100;
const HISTORY_BYTES: usize = 64 * 1024;

const NO_PRESENCE: &str = "the namespace of this channel keeps no presence; turn presence on for it";

impl ProtocolState for Commands {
    fn is_empty(&self) -> bool {
        self.subscribing.is_empty() && self.instructed.is_empty() && self.granted.is_empty()
    }
}

impl Commands {
    /// Appends its grants.
    pub(super) fn hand_on(&self, core: &Core, now: Tick, out: &mut Writer) -> Result<(), Stays> {
        Granted::write_list(&self.granted.moving(core, now), out);
        Stays::unless(self.subscribing.is_empty() && self.instructed.is_empty())
    }

    pub(super) fn parse(own: &[u8]) -> Result<Vec<Granted<'_>>, Malformed> {
        let mut fields = Reader::new(own);
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let granted = Granted::read_list(&mut fields)?;
        fields.end().map(|()| granted)
    }

    pub(super) fn go_on(&mut self, core: &Core, now: Tick, granted: &[Granted<'_>]) {
        self.granted.go_on(core, now, granted);
    }

    /// When the first of the granted subscriptions ends.
    pub(super) fn due(&self) -> Option<Tick> {
        self.granted.due()
    }
}

impl Ctx<'_> {
    pub(super) fn command(&mut self, command: Command<'_>) {
        let id = command.id;
        // A publication takes its own token.
        let is_free = matches!(command.kind, CommandKind::Ping | CommandKind::Publish(_));
        if !is_free && !self.take_command_token() {
            return self.refuse_command(id, 429, "commands come faster than allowed");
        }
        let done = match command.kind {
            CommandKind::Ping => {
                self.ok(id, |_| {});
                Ok(())
            }
            CommandKind::Subscribe { channel, since, token, join_leave } => {
                self.subscribe_command(id, &channel, since.as_ref(), token, join_leave)
            }
            CommandKind::Unsubscribe { channel } => self.unsubscribe_command(id, &channel),
            CommandKind::Publish(publication) => {
                self.publish_command(id, publication);
                Ok(())
            }
            CommandKind::Presence { channel, token } => {
                let then = move |ctx: &mut Ctx<'_>, channel| ctx.presence_command(id, channel);
                self.with_channel(id, &channel, token, |namespace| namespace.client_presence, then)
            }
            CommandKind::History { channel, limit, since, token } => {
                match since.as_ref().map(position).transpose() {
                    Ok(since) => {
                        let limit = limit.unwrap_or(HISTORY_LIMIT).min(HISTORY_LIMIT);
                        let query = HistoryQuery { since, limit, bytes: HISTORY_BYTES };
                        let then = move |ctx: &mut Ctx<'_>, channel| ctx.history_command(id, channel, query);
                        self.with_channel(id, &channel, token, |namespace| namespace.client_history, then)
                    }
                    Err(refused) => Err(refused),
                }
            }
            CommandKind::Message(json) => self.message_command(id, json),
            CommandKind::Token(token) => {
                self.with_token(id, token.into_owned(), move |ctx, claims| ctx.renew_token(id, claims))
            }
        };
        if let Err(Refused(code, message)) = done {
            self.refuse_command(id, code, &message);
        }
    }

    /// Commands share the rate of publications, so that what one connection has others do is bounded.
    fn take_command_token(&mut self) -> bool {
        let rates = Rates::from(&self.core.shared.node.config().limits);
        let now = self.connections.now().duration();
        let Some(open) = self.open_mut() else { return false };
        open.rare_mut().publisher.get_or_insert_default().take(rates, now, 0)
    }

    /// Whether an event of a subscription was that of a command, and its `id`.
    pub(super) fn take_command(&mut self, key: u32) -> Option<Option<u64>> {
        let open = self.open_mut()?;
        let commands = &mut open.state_mut::<Commands>()?.subscribing;
        let at = commands.iter().position(|(own, _)| *own == key)?;
        let id = commands.swap_remove(at).1;
        open.drop_empty_rare();
        Some(id)
    }

    pub(super) fn refuse_command(&mut self, id: Option<u64>, code: u16, message: &str) {
        self.note_told("command", &format_args!("{code} {message}"));
        let mut text = Vec::new();
        command::encode_error(id, code, message, &mut text);
        self.tell_text(&text);
    }

    pub(super) fn ok(&mut self, id: Option<u64>, body: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        command::encode_ok(id, body, &mut text);
        self.tell_text(&text);
    }

    /// As [`ok`](Self::ok), with what a channel has in it.
    pub(super) fn ok_large(&mut self, id: Option<u64>, body: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        command::encode_ok(id, body, &mut text);
        if self.open().is_some() {
            self.answer_large(|out| frame::encode(Opcode::Text, &text, out));
        }
    }

    /// Answers; a client that does not read is not read either.
    fn tell_text(&mut self, text: &[u8]) {
        if self.open().is_some() {
            self.answer(|out| frame::encode(Opcode::Text, text, out));
        }
    }

    fn subscribe_command(
        &mut self,
        id: Option<u64>,
        name: &str,
        since: Option<&Since>,
        token: Option<Cow<'_, str>>,
        join_leave: bool,
    ) -> Result<(), Refused> {
        let since = since.map(position).transpose()?;
        let Some(token) = token else {
            let claims = self.open().and_then(|open| open.claims().cloned());
            if let Some(hook) = self.core.asks_to_subscribe(name, claims.as_deref()) {
                return self.ask_to_subscribe(id, &hook, name, since, join_leave);
            }
            return self.begin_command(id, name, since, claims.as_deref(), join_leave).map(drop);
        };
        let name = Box::<str>::from(name);
        let begin = move |ctx: &mut Ctx<'_>, claims: Claims| {
            if let Some(key) = ctx.key_of_own(&name).filter(|&key| ctx.is_granted(key)) {
                return ctx.renew_grant(id, key, &claims);
            }
            let key = ctx.begin_command(id, &name, since, Some(&claims), join_leave)?;
            if let Some(key) = key {
                ctx.grant(key, &claims);
            }
            Ok(())
        };
        self.with_token(id, token.into_owned(), begin)
    }

    /// A token of its own has opened a subscription, which lasts as long as it does.
    fn grant(&mut self, key: ChannelKey, claims: &Claims) {
        self.grant_until(key, claims.expiry(self.connections.now()), false);
    }

    pub(super) fn grant_until(&mut self, key: ChannelKey, expires: Option<Tick>, is_asked: bool) {
        let Some(open) = self.open_mut() else { return };
        open.state_or_default::<Commands>().granted.set(key, expires, is_asked);
        open.drop_empty_rare();
        self.beat_in_time();
    }

    fn is_granted(&self, key: ChannelKey) -> bool {
        let commands = self.open().and_then(|open| open.state::<Commands>());
        commands.is_some_and(|commands| commands.granted.has(key))
    }

    /// Another token for a subscription that one has opened.
    fn renew_grant(&mut self, id: Option<u64>, key: ChannelKey, claims: &Claims) -> Result<(), Refused> {
        let own = self.core.hub.channel(key).clone();
        if self.command_channel(own.name(), Some(claims))? != own {
            return Err(Refused(403, format!("{}: the token is of another app", own.name())));
        }
        self.grant(key, claims);
        self.ok(id, |out| {
            command::push_channel(own.name(), out);
            out.push(b',');
            put_expires(claims, out);
        });
        Ok(())
    }

    /// Ends the subscriptions whose token has expired, and says so.
    pub(super) fn end_granted(&mut self) {
        let now = self.connections.now();
        let Some(commands) = self.open_mut().and_then(|open| open.state_mut::<Commands>()) else { return };
        for (key, is_asked) in commands.granted.take_ended(now) {
            if is_asked && self.ask_to_go_on(key) {
                continue;
            }
            self.end_granted_one(key);
        }
    }

    pub(super) fn end_granted_one(&mut self, key: ChannelKey) {
        let name = self.core.hub.channel(key).name().to_owned();
        let mut notice = Vec::new();
        raw::encode_unsubscribed(&name, 401, "the token of this subscription has expired", &mut notice);
        self.end_command(key, &format!("{name}: its token has expired meanwhile"), 401);
        self.tell_text(&notice);
    }

    /// Ends a subscription; a command that waits for it is refused.
    pub(super) fn end_command(&mut self, key: ChannelKey, why: &str, code: u16) {
        if let Some(waiting) = self.take_command(key) {
            self.refuse_command(waiting, code, why);
        }
        self.forget_grant(key);
        self.end_subscription(key);
    }

    /// A subscription is no longer one that a token of its own has opened.
    pub(super) fn forget_grant(&mut self, key: ChannelKey) {
        let Some(open) = self.open_mut() else { return };
        if let Some(commands) = open.state_mut::<Commands>() {
            commands.granted.forget(key);
        }
        open.drop_empty_rare();
    }

    /// Goes on with the claims of a token, at once or when its key was fetched.
    fn with_token(
        &mut self,
        id: Option<u64>,
        token: String,
        then: impl FnOnce(&mut Ctx<'_>, Claims) -> Result<(), Refused> + Send + 'static,
    ) -> Result<(), Refused> {
        self.with_claims(token, move |ctx, claims| {
            let done = claims.map_err(Refused::from).and_then(|claims| then(ctx, claims));
            if let Err(Refused(code, message)) = done {
                ctx.refuse_command(id, code, &message);
            }
        });
        Ok(())
    }

    /// Begins a subscription; its channel, unless the connection is gone or the backplane has refused at once.
    fn begin_command(
        &mut self,
        id: Option<u64>,
        name: &str,
        since: Option<Position>,
        claims: Option<&Claims>,
        join_leave: bool,
    ) -> Result<Option<ChannelKey>, Refused> {
        let channel = self.command_channel(name, claims)?;
        self.begin_command_on(id, &channel, since, claims, join_leave)
    }

    /// The same of a channel that it may subscribe to.
    pub(super) fn begin_command_on(
        &mut self,
        id: Option<u64>,
        channel: &Channel,
        since: Option<Position>,
        claims: Option<&Claims>,
        join_leave: bool,
    ) -> Result<Option<ChannelKey>, Refused> {
        let name = channel.name();
        if join_leave && !self.core.shared.node.namespaces().of(channel).tells_presence() {
            return Err(Refused(404, NO_PRESENCE.to_owned()));
        }
        self.may_begin_subscription(channel, claims).map_err(|refused| {
            let code = match refused {
                SubscribeRefused::TooFast(_) | SubscribeRefused::TooMany { .. } => 429,
                SubscribeRefused::NodeFull => 503,
                SubscribeRefused::Already => 409,
            };
            Refused(code, format!("{name}: {refused}"))
        })?;
        let want = self.core.want(channel, since, true);
        let Some((attempt, confirmation)) = self.begin_subscription(channel, want, join_leave) else {
            return Ok(None);
        };
        if let Some(open) = self.open_mut() {
            open.state_or_default::<Commands>().subscribing.push((attempt.key, id));
        }
        let join = self.join_of(channel);
        self.proceed(attempt, confirmation, join);
        Ok(self.key_of_own(name))
    }

    fn unsubscribe_command(&mut self, id: Option<u64>, name: &str) -> Result<(), Refused> {
        let Some(key) = self.key_of_own(name) else {
            return Err(Refused(404, format!("{name}: not subscribed")));
        };
        self.end_command(key, &format!("{name}: unsubscribed meanwhile"), 409);
        self.ok(id, |out| command::push_channel(name, out));
        Ok(())
    }

    /// Goes on with a channel that the client may ask about: by the token that it gives, by its own, or because it is
    /// subscribed to it; as far as the namespace lets it.
    fn with_channel(
        &mut self,
        id: Option<u64>,
        name: &str,
        token: Option<Cow<'_, str>>,
        readers: fn(&Namespace) -> ClientRead,
        then: impl FnOnce(&mut Ctx<'_>, Channel) + Send + 'static,
    ) -> Result<(), Refused> {
        let Some(token) = token else {
            let own = self.key_of_own(name).map(|key| self.core.hub.channel(key).clone());
            let claims = self.open().and_then(|open| open.claims().cloned());
            let channel = own.map_or_else(|| self.command_channel(name, claims.as_deref()), Ok)?;
            self.check_reader(&channel, readers)?;
            then(self, channel);
            return Ok(());
        };
        let name = Box::<str>::from(name);
        self.with_token(id, token.into_owned(), move |ctx, claims| {
            let channel = ctx.command_channel(&name, Some(&claims))?;
            ctx.check_reader(&channel, readers)?;
            then(ctx, channel);
            Ok(())
        })
    }

    fn check_reader(&self, channel: &Channel, readers: fn(&Namespace) -> ClientRead) -> Result<(), Refused> {
        match self.may_read(channel, readers) {
            true => Ok(()),
            false => Err(Refused(403, format!("{}: its namespace does not allow that", channel.name()))),
        }
    }

    fn presence_command(&mut self, id: Option<u64>, channel: Channel) {
        let (node, of) = (Arc::clone(&self.core.shared.node), channel.clone());
        let read = async move { node.presence(&of).await };
        self.run(read, move |ctx, result| match result {
            Ok(Some(list)) => ctx.ok_large(id, |out| {
                command::push_channel(channel.name(), out);
                out.push(b',');
                out.extend_from_slice(forms::members(&list));
            }),
            Ok(None) => ctx.refuse_command(id, 404, NO_PRESENCE),
            Err(error) => ctx.refuse_command(id, 503, &error.to_string()),
        });
    }

    fn history_command(&mut self, id: Option<u64>, channel: Channel, query: HistoryQuery) {
        let (node, of) = (Arc::clone(&self.core.shared.node), channel.clone());
        let read = async move { node.history(&of, query).await };
        self.run(read, move |ctx, result: Result<History, BackplaneError>| match result {
            Ok(history) => ctx.ok_large(id, |out| put_history(&channel, &history, out)),
            Err(error) => ctx.refuse_command(id, 503, &error.to_string()),
        });
    }

    /// The connection's token from now on. It must be of the same user and app: what was granted to one stays theirs.
    fn renew_token(&mut self, id: Option<u64>, claims: Claims) -> Result<(), Refused> {
        let before = self.open().and_then(|open| open.claims().cloned());
        let same = |before: Arc<Claims>| before.user == claims.user && before.app == claims.app;
        if !before.is_none_or(same) {
            return Err(Refused(403, "the token is of another user or app".to_owned()));
        }
        let mut expires = Vec::new();
        put_expires(&claims, &mut expires);
        self.set_claims(claims);
        self.ok(id, |out| out.extend_from_slice(&expires));
        Ok(())
    }

    fn command_channel(&self, name: &str, claims: Option<&Claims>) -> Result<Channel, Refused> {
        self.core.channel_for(name, claims).map_err(|refused| match (refused, claims) {
            (ChannelRefused::Name(error), _) => Refused(400, format!("channel: {error}")),
            (ChannelRefused::Rights, Some(_)) => Refused(403, format!("{name}: the token does not allow it")),
            (ChannelRefused::Rights, None) => Refused(401, format!("{name}: it needs a token")),
        })
    }
}

impl From<TokenRefused> for Refused {
    fn from(refused: TokenRefused) -> Self {
        let code = if matches!(refused, TokenRefused::Busy(_)) { 503 } else { 401 };
        Self(code, refused.to_string())
    }
}

fn position(since: &Since) -> Result<Position, Refused> {
    let epoch = since.epoch.parse().map_err(|error| Refused(400, format!("since: {error}")))?;
    Ok(Position { epoch, offset: since.offset })
}

fn put_expires(claims: &Claims, out: &mut Vec<u8>) {
    let expires = claims.expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    match expires {
        Some(at) => out.extend_from_slice(format!("\"expires\":{}", at.as_secs()).as_bytes()),
        None => out.extend_from_slice(b"\"expires\":null"),
    }
}

fn put_history(channel: &Channel, history: &History, out: &mut Vec<u8>) {
    let epoch = history.top.map(|top| top.epoch.to_string());
    command::push_place(channel.name(), epoch.as_deref().zip(history.top.map(|top| top.offset)), out);
    command::push_flag("continuous", history.continuous, out);
    out.extend_from_slice(b",\"publications\":[");
    for (nth, publication) in history.publications.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        forms::put_json(channel, &Content::Publication(Arc::clone(publication)), out);
    }
    out.push(b']');
}
