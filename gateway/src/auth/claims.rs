//! What a token says: who, until when, and which channels.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_backplane::Channel;
use tidegate_reactor::Tick;
use tidegate_wire::{fields::Malformed, moving};

use super::{Pattern, token::TokenError};
use crate::{
    config::{AppId, JwtKey},
    hooks::{HandedOn, Known, Overrides, RawSubscription, Reply, ServerSubscription, info},
};

/// The claims of a valid token.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    /// `sub`: the user. Presence and disconnecting by user need it.
    pub user: Option<Box<str>>,
    /// Until when what the token opens lasts: `expire_at`, else `exp` and the leeway. `None`: for ever.
    pub expires: Option<SystemTime>,
    /// `info`: JSON that other members see in presence. Of a token for a subscription it is that one's.
    pub info: Option<Box<str>>,
    /// The app that the token's key is for, if it is not the default one. Boxed, because it is rare and claims are
    /// kept with connections.
    pub app: Option<Box<AppId>>,
    /// It has the claim `channel`: it is for one subscription, and says nothing of the connection.
    pub is_of_subscription: bool,
    /// Channels that the server subscribes the connection to: `subs`, and where the key says so `channels`. Whoever connects
    /// takes them out.
    pub subscriptions: BTreeMap<Box<str>, ServerSubscription>,
    /// What is kept of its connection for the application; of a token its `meta`.
    pub known: Option<Arc<Known>>,
    /// Of the subscription that it is for.
    pub overrides: Overrides,
    channels: Vec<Pattern>,
    publish: Publish,
}

/// The `publish` claim.
#[derive(Debug, Clone)]
enum Publish {
    /// `true`: the channels that may be subscribed to.
    Subscribed,
    /// `false` or absent: none. A list: these.
    Only(Vec<Pattern>),
}

/// What is demanded of the claims: the part of a [`JwtKey`] that is not the key.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    issuer: Option<Box<str>>,
    audience: Option<Box<str>>,
    require_exp: bool,
    leeway: Duration,
    app: Option<AppId>,
    subscribes_channels: bool,
}

/// RFC 7519 section 4.1, and the claims of ours. Unknown claims are ignored, as section 4 demands.
#[derive(Deserialize)]
struct RawClaims<'a> {
    sub: Option<Box<str>>,
    iss: Option<Box<str>>,
    aud: Option<OneOrMany<Box<str>>>,
    exp: Option<f64>,
    nbf: Option<f64>,
    channels: Option<OneOrMany<Pattern>>,
    channel: Option<Box<str>>,
    #[serde(borrow)]
    subs: Option<BTreeMap<Box<str>, Option<RawSubscription<'a>>>>,
    publish: Option<RawPublish>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    /// In place of `info`.
    b64info: Option<Box<str>>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
    /// Until when what it opens lasts, where that is not `exp`; 0: for ever.
    expire_at: Option<f64>,
    #[serde(rename = "override")]
    overrides: Option<Overrides>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPublish {
    All(bool),
    Only(OneOrMany<Pattern>),
}

impl Claims {
    /// What another process has to know of them, beside what the subscriptions were made with that they asked for.
    pub(crate) fn moving(&self) -> moving::Claims {
        let texts = |patterns: &[Pattern]| patterns.iter().map(|pattern| pattern.as_str().into()).collect();
        let since = |expires: SystemTime| expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        moving::Claims {
            user: self.user.clone(),
            expires_ms: self.expires.map(|expires| since(expires).as_millis() as u64),
            info: self.info.clone(),
            app: self.app.as_ref().map(|app| app.as_str().into()),
            channels: texts(&self.channels),
            publish: match &self.publish {
                Publish::Subscribed => None,
                Publish::Only(patterns) => Some(texts(patterns)),
            },
            known: self.known.as_ref().map(|known| known.to_bytes()),
        }
    }

    pub(crate) fn of_moving(moved: moving::Claims) -> Result<Self, Malformed> {
        let patterns = |texts: Vec<Box<str>>| {
            texts.iter().map(|text| Pattern::new(text).map_err(|_| Malformed)).collect::<Result<Vec<_>, _>>()
        };
        let expires =
            moved.expires_ms.map(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)).ok_or(Malformed));
        Ok(Self {
            user: moved.user,
            expires: expires.transpose()?,
            info: moved.info,
            app: moved.app.map(|app| AppId::new(&app).map(Box::new).ok_or(Malformed)).transpose()?,
            is_of_subscription: false,
            subscriptions: BTreeMap::new(),
            known: moved.known.map(|known| Known::parse(&known).map(Arc::new)).transpose()?,
            overrides: Overrides::default(),
            channels: patterns(moved.channels)?,
            publish: match moved.publish {
                None => Publish::Subscribed,
                Some(texts) => Publish::Only(patterns(texts)?),
            },
        })
    }

    /// When it expires, on a clock of ticks.
    pub(crate) fn expiry(&self, now: Tick) -> Option<Tick> {
        let left = self.expires?.duration_since(SystemTime::now()).unwrap_or_default();
        Some(now.after(left))
    }

    pub(crate) fn may_subscribe(&self, channel: &Channel) -> bool {
        any(&self.channels, channel)
    }

    pub(crate) fn may_publish(&self, channel: &Channel) -> bool {
        match &self.publish {
            Publish::Subscribed => any(&self.channels, channel),
            Publish::Only(patterns) => any(patterns, channel),
        }
    }

    /// What an application has said of a connection, which says as much as a token does.
    pub(crate) fn of_reply(reply: &Reply) -> Self {
        Self {
            user: reply.user.clone(),
            expires: reply.expires,
            info: reply.info.clone(),
            app: None,
            is_of_subscription: false,
            subscriptions: reply.subscribe.iter().cloned().collect(),
            known: Some(Arc::new(Known { state: reply.state.clone(), is_asked: true, ..Known::default() })),
            overrides: Overrides::default(),
            channels: reply.channels.clone(),
            publish: Publish::Only(reply.publish.clone()),
        }
    }

    /// The same user, with what the application says of it now.
    pub(crate) fn refreshed(&self, reply: &Reply) -> Self {
        let known = self.known.as_deref().cloned().unwrap_or_default();
        let state = reply.state.clone().or(known.state);
        Self {
            expires: reply.expires,
            info: reply.info.clone().or_else(|| self.info.clone()),
            known: Some(Arc::new(Known { state, ..known })),
            ..self.clone()
        }
    }

    /// Keeps what its connection's request said, for what the application is asked later.
    pub(crate) fn keep_request(&mut self, request: Arc<HandedOn>) {
        let known = self.known.as_deref().cloned().unwrap_or_default();
        self.known = Some(Arc::new(Known { request, ..known }));
    }

    /// Whether it was the application that let the connection in.
    pub(crate) fn is_asked(&self) -> bool {
        self.known.as_ref().is_some_and(|known| known.is_asked)
    }

    /// Reads and checks the claims of a token whose signature is right.
    pub(super) fn check(payload: &[u8], rules: &Rules, now: SystemTime) -> Result<Self, TokenError> {
        let raw: RawClaims<'_> =
            serde_json::from_slice(payload).map_err(|_| TokenError::Malformed("its claims"))?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires =
            raw.exp.map(|exp| numeric_date(exp).map(|exp| exp.saturating_add(rules.leeway))).transpose()?;
        let lasts = match raw.expire_at {
            None => expires,
            Some(0.0) => None,
            Some(date) => Some(numeric_date(date)?),
        };
        let begins = raw.nbf.map(numeric_date).transpose()?;
        match expires {
            None if rules.require_exp => return Err(TokenError::NoExpiry),
            Some(expires) if now >= expires => return Err(TokenError::Expired),
            _ => {}
        }
        if lasts.is_some_and(|lasts| now >= lasts) {
            return Err(TokenError::Expired);
        }
        if begins.is_some_and(|begins| now.saturating_add(rules.leeway) < begins) {
            return Err(TokenError::NotYetValid);
        }
        if rules.issuer.is_some() && rules.issuer != raw.iss {
            return Err(TokenError::Issuer);
        }
        let audiences = raw.aud.map(OneOrMany::into_vec).unwrap_or_default();
        if rules.audience.as_ref().is_some_and(|wanted| !audiences.contains(wanted)) {
            return Err(TokenError::Audience);
        }
        let mut channels = raw.channels.map(OneOrMany::into_vec).unwrap_or_default();
        let subs = raw.subs.unwrap_or_default().into_iter();
        let subs = subs
            .map(|(name, said)| Ok((name, said.map(RawSubscription::read).transpose()?.unwrap_or_default())));
        let subs: Result<BTreeMap<_, _>, base64::DecodeError> = subs.collect();
        let mut subscriptions = subs.map_err(|_| TokenError::Malformed("base64 of subs in its claims"))?;
        if rules.subscribes_channels {
            let names = channels.iter().map(Pattern::as_str).filter(|name| !name.contains('*'));
            for name in names {
                subscriptions.entry(name.into()).or_default();
            }
        }
        // A name, of which none has a star: whoever signed one meant that channel.
        let named = raw.channel.as_deref().filter(|name| !name.contains('*'));
        channels.extend(named.and_then(|name| Pattern::new(name).ok()));
        Ok(Self {
            user: raw.sub,
            expires: lasts.and_then(|lasts| UNIX_EPOCH.checked_add(lasts)),
            info: info(raw.info.map(RawValue::get), raw.b64info.as_deref())
                .map_err(|_| TokenError::Malformed("b64info in its claims"))?,
            app: rules.app.clone().map(Box::new),
            is_of_subscription: raw.channel.is_some(),
            subscriptions,
            known: raw
                .meta
                .map(|meta| Arc::new(Known { state: Some(meta.get().into()), ..Known::default() })),
            overrides: raw.overrides.unwrap_or_default(),
            channels,
            publish: match raw.publish {
                Some(RawPublish::All(true)) => Publish::Subscribed,
                Some(RawPublish::All(false)) | None => Publish::Only(Vec::new()),
                Some(RawPublish::Only(patterns)) => Publish::Only(patterns.into_vec()),
            },
        })
    }
}

impl Rules {
    pub(super) fn new(key: &JwtKey) -> Self {
        Self {
            issuer: key.issuer.clone(),
            audience: key.audience.clone(),
            require_exp: key.require_exp,
            leeway: key.leeway,
            app: key.app.clone(),
            subscribes_channels: key.subscribe_channels,
        }
    }
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

fn any(patterns: &[Pattern], channel: &Channel) -> bool {
    patterns.iter().any(|pattern| pattern.matches(channel.name()))
}

/// RFC 7519 section 2: seconds since 1970, fractions allowed. Before 1970 counts as 1970.
fn numeric_date(seconds: f64) -> Result<Duration, TokenError> {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_err(|_| TokenError::Malformed("a date in its claims"))
}
