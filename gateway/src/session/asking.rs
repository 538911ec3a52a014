//! What the application is asked of a connection: before its request is answered, and while it is open.
//!
//! A request that waits for an answer is kept as it came, and read again with what the application has said ([`Said`]). An open
//! connection that waits is held: nothing more of it is read, so its commands keep their order.

use std::{collections::hash_map::Entry, sync::Arc, time::Duration};

use tidegate_backplane::{Channel, Payload};
use tidegate_ops::metrics::Label as _;
use tidegate_wire::head::Head;

use super::{
    Ctx, Open, Phase,
    core::Core,
    leaving::Leave,
    protocol::{Event, Protocol},
};
use crate::{
    app::webhooks::INTERNAL,
    auth::Claims,
    config::{HookEvent, HookQuestion},
    hooks::{Caller, HandedOn, Hook, Known, No, Question, Reply, events::Happened},
    hub::ChannelKey,
    metrics::DisconnectReason,
};

/// What the application has said of a request so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// To `connect`.
    pub(crate) connect: Option<Reply>,
    /// Channels of the URL that the connection may subscribe to.
    pub(crate) allowed: Vec<Box<str>>,
    /// It has said no, and nothing else counts.
    pub(crate) no: Option<No>,
}

/// Something that has to be asked before a request can be judged.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) hook: Arc<Hook>,
    pub(crate) kind: HookQuestion,
    pub(crate) channel: Option<Box<str>>,
    pub(crate) user: Option<Box<str>>,
    pub(crate) known: Option<Arc<Known>>,
}

impl Core {
    /// Whom to ask whether a channel may be subscribed to, in place of rights that the claims do not have.
    pub(crate) fn asks_to_subscribe(&self, name: &str, claims: Option<&Claims>) -> Option<Arc<Hook>> {
        let hook = self.shared.hooks.of(HookQuestion::Subscribe, Some(name))?;
        let is_granted = |channel: Channel| claims.is_some_and(|claims| claims.may_subscribe(&channel));
        (!Channel::new(name).is_ok_and(is_granted)).then(|| Arc::clone(hook))
    }

    /// Whom to ask about what is published to a channel.
    pub(crate) fn asks_to_publish(&self, channel: &Channel) -> Option<Arc<Hook>> {
        self.shared.hooks.of(HookQuestion::Publish, Some(channel.name())).map(Arc::clone)
    }

    /// Whom to ask who a connection is that brings no credentials.
    pub(crate) fn asks_to_connect(&self) -> Option<&Arc<Hook>> {
        self.shared.hooks.of(HookQuestion::Connect, None)
    }
}

impl Ctx<'_> {
    /// What is handed on of a request. `None`: nobody is asked anything.
    pub(crate) fn handed_on(&self, head: &Head<'_>) -> Option<Arc<HandedOn>> {
        let (hooks, trust) = (&self.core.shared.hooks, &self.core.shared.edge.trust);
        if hooks.is_empty() {
            return None;
        }
        let peer = self.connections.peer_address(self.id).map(|peer| peer.ip());
        let named = || trust.client(head.octets_named(trust.header()).collect::<Vec<_>>().into_iter());
        let address = peer.and_then(|peer| if trust.covers(peer) { named() } else { Some(peer) });
        let mut handed_on = HandedOn { address, ..HandedOn::default() };
        for name in hooks.headers() {
            let values = head.octets_named(name.0.as_str());
            let values = values.filter_map(|value| http::HeaderValue::from_bytes(value).ok());
            handed_on.headers.extend(values.map(|value| (name.0.clone(), value)));
        }
        let cookies = head.header_joined("cookie").unwrap_or_default();
        let pairs = || cookies.split([';', ',']).filter_map(|pair| pair.trim().split_once('='));
        for name in hooks.cookies() {
            let values = pairs().filter(|(own, _)| *own == name);
            handed_on.cookies.extend(values.map(|(own, value)| (own.into(), value.into())));
        }
        for (name, value) in form_urlencoded::parse(head.query.unwrap_or_default().as_bytes()) {
            match &*name {
                "channel" => handed_on.channels.push((&*value).into()),
                name if hooks.query().any(|own| own == name) => {
                    handed_on.query.push((name.into(), (&*value).into()));
                }
                _ => {}
            }
        }
        Some(Arc::new(handed_on))
    }

    /// Asks what a request depends on; it is read again when all of it is answered.
    pub(crate) fn ask_before_opening(&mut self, asks: Vec<Ask>, head: &Head<'_>, protocol: &dyn Protocol) {
        let request = self.handed_on(head).unwrap_or_default();
        for Ask { hook, kind, channel, user, known } in asks {
            let known = known.as_deref().cloned().unwrap_or_default();
            let caller = Caller {
                connection: self.core.connection_name(self.id).into(),
                protocol: protocol.name(),
                way: protocol.way(),
                is_binary: false,
                user,
                known: Arc::new(Known { request: Arc::clone(&request), ..known }),
            };
            let question = Question { kind, caller, channel: channel.clone(), payload: None, name: None };
            let reply = self.reply(move |ctx, answer| ctx.answered_before_opening(channel, answer));
            self.core.shared.hooks.ask(&hook, question, reply);
        }
    }

    fn answered_before_opening(&mut self, channel: Option<Box<str>>, answer: Result<Reply, No>) {
        let Some(Phase::Opening(opening)) = self.session_mut().map(|session| &mut session.phase) else {
            return;
        };
        let Some((said, waiting)) = opening.asking() else { return };
        match (answer, channel) {
            (Ok(_), Some(channel)) => said.allowed.push(channel),
            (Ok(reply), None) => said.connect = Some(reply),
            (Err(no), _) => said.no = Some(no),
        }
        *waiting -= 1;
        if *waiting == 0 || said.no.is_some() {
            self.resume_head();
        }
    }

    /// Tells the application that the connection is open.
    pub(crate) fn tell_connected(&self) {
        let events = &self.core.shared.hook_events;
        let takes = events.takes(HookEvent::Connected, None) || events.takes(HookEvent::Disconnected, None);
        if let (true, Some(open), Some(protocol)) = (takes, self.open(), self.protocol())
            && protocol.is_connected(open)
        {
            self.with_happened(open, |happened| events.tell_connected(&happened));
        }
    }

    /// Tells the application that it is not any more.
    pub(crate) fn tell_disconnected(&self, open: &Open, reason: DisconnectReason, lasted: Duration) {
        let protocol = open.protocol.of_list(self.core.shared.protocols);
        let events = &self.core.shared.hook_events;
        for &own in open.subscriptions.as_slice() {
            self.tell_subscription(HookEvent::Unsubscribed, open, self.core.hub.channel_of(own));
        }
        if events.takes(HookEvent::Disconnected, None) && protocol.is_connected(open) {
            let (reason, duration_ms) = (Some(reason.value()), u64::try_from(lasted.as_millis()).ok());
            self.with_happened(open, |happened| {
                events.tell_disconnected(&Happened { reason, duration_ms, ..happened });
            });
        }
    }

    /// Tells that a subscription stands, or does not any more. Channels of apps other than the default one are not told of.
    pub(super) fn tell_subscription(&self, event: HookEvent, open: &Open, key: ChannelKey) {
        let events = &self.core.shared.hook_events;
        if events.is_empty() {
            return;
        }
        let channel = self.core.hub.channel(key);
        let name = channel.name();
        if channel.app().is_none() && !name.starts_with(INTERNAL) && events.takes(event, Some(name)) {
            self.with_happened(open, |happened| {
                events.tell(event, &Happened { channel: Some(name), ..happened });
            });
        }
    }

    fn with_happened(&self, open: &Open, then: impl FnOnce(Happened<'_>)) {
        let (claims, protocol) = (open.claims(), open.protocol.of_list(self.core.shared.protocols));
        then(Happened {
            connection: Some(&self.core.connection_name(self.id)),
            protocol: Some(protocol.name()),
            user: protocol.identity(self.core, open).user,
            state: claims.and_then(|claims| claims.known.as_ref()?.state.as_deref()),
            ..Happened::default()
        });
    }

    /// Who asks, of an open connection.
    pub(crate) fn caller(&self) -> Option<Caller> {
        let (open, protocol) = (self.open()?, self.protocol()?);
        let claims = open.claims();
        Some(Caller {
            connection: self.core.connection_name(self.id).into(),
            protocol: protocol.name(),
            way: protocol.way(),
            is_binary: protocol.is_binary(open),
            user: protocol.identity(self.core, open).user.map(Box::from),
            known: claims.and_then(|claims| claims.known.clone()).unwrap_or_default(),
        })
    }

    /// A question of an open connection.
    pub(crate) fn question(
        &self,
        kind: HookQuestion,
        channel: Option<&str>,
        payload: Option<Payload>,
        name: Option<Box<str>>,
    ) -> Option<Question> {
        Some(Question { kind, caller: self.caller()?, channel: channel.map(Box::from), payload, name })
    }

    /// Asks, and goes on with the answer, also when the connection is gone by then.
    pub(crate) fn ask(
        &mut self,
        hook: &Arc<Hook>,
        question: Question,
        then: impl FnOnce(&mut Ctx<'_>, Result<Reply, No>) + Send + 'static,
    ) {
        *self.core.asked.entry(self.id).or_default() += 1;
        let reply = self.reply(move |ctx, answer| {
            if let Entry::Occupied(mut asked) = ctx.core.asked.entry(ctx.id) {
                *asked.get_mut() -= 1;
                if *asked.get() == 0 {
                    asked.remove();
                }
            }
            then(ctx, answer);
        });
        self.core.shared.hooks.ask(hook, question, reply);
    }

    /// The same, and nothing more of the connection is read before the answer.
    pub(crate) fn ask_holding(
        &mut self,
        hook: &Arc<Hook>,
        (kind, channel): (HookQuestion, Option<Box<str>>),
        (payload, name): (Option<Payload>, Option<Box<str>>),
        then: impl FnOnce(&mut Ctx<'_>, Result<Reply, No>) + Send + 'static,
    ) {
        let Some(question) = self.question(kind, channel.as_deref(), payload, name) else { return };
        self.connections.set_held(self.id, true);
        self.ask(hook, question, move |ctx, answer| {
            then(ctx, answer);
            ctx.connections.set_held(ctx.id, false);
        });
    }

    /// What the application has allowed is over: it says how long it goes on. False: nobody is asked, and the connection
    /// ends. Meanwhile it goes on; an answer comes in the hook's time.
    pub(super) fn ask_to_refresh(&mut self) -> bool {
        let Some(claims) = self.open().and_then(|open| open.claims()).filter(|claims| claims.is_asked())
        else {
            return false;
        };
        let claims = Arc::clone(claims);
        let Some(hook) = self.core.shared.hooks.of(HookQuestion::Refresh, None).map(Arc::clone) else {
            return false;
        };
        let Some(question) = self.question(HookQuestion::Refresh, None, None, None) else { return false };
        if let Some(open) = self.open_mut() {
            open.rare_mut().expires = None;
        }
        self.ask(&hook, question, move |ctx, answer| match answer {
            Ok(reply) => ctx.set_claims(claims.refreshed(&reply)),
            Err(_) => ctx.leave(Leave::TokenExpired),
        });
        true
    }

    /// The same of one subscription, which goes on or ends ([`Event::GrantRefreshed`]).
    pub(crate) fn ask_to_go_on(&mut self, key: ChannelKey) -> bool {
        let channel = self.core.hub.channel(key).name().to_owned();
        let hook = self.core.shared.hooks.of(HookQuestion::Refresh, Some(&channel)).map(Arc::clone);
        let Some(hook) = hook else { return false };
        let Some(question) = self.question(HookQuestion::Refresh, Some(&channel), None, None) else {
            return false;
        };
        self.ask(&hook, question, move |ctx, answer| {
            if ctx.key_of_own(&channel) == Some(key) {
                let until = answer.ok().map(|reply| Claims::of_reply(&reply).expiry(ctx.connections.now()));
                ctx.tell_protocol(Event::GrantRefreshed { key, until });
            }
        });
        true
    }
}
