//! What a request may have: the origin of its page, its credentials, the channels that its URL names.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use tidegate_backplane::{Channel, ChannelError};
use tidegate_wire::{
    head::{Head, UNREADABLE},
    raw::Query,
    upgrade::Upgrade,
};

use super::{
    Ctx,
    asking::{Ask, Said},
    core::Core,
    opening::Stop,
    refusal::Refusal,
};
use crate::{
    app::{self, apps::AppId},
    auth::{Claims, Scope, TokenError, Verdict, bearer},
    config::{ClientRead, HookQuestion, Namespace},
};

/// Why a client has no channel of a name that it gives.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum ChannelRefused {
    #[error(transparent)]
    Name(#[from] ChannelError),
    #[error("the credentials do not allow it")]
    Rights,
}

/// Credentials that were checked.
enum Credentials {
    Anonymous,
    Token(Claims),
    /// An API key with the scope `read`: it may subscribe to the channels that it covers.
    ApiKey(String),
}

impl Core {
    /// Refuses pages that may not connect.
    pub(crate) fn check_origin(&self, head: &Head<'_>) -> Result<(), Refusal> {
        let origin = head.header("origin");
        match self.shared.origins.allows(origin, head.header("host").unwrap_or_default()) {
            true => Ok(()),
            false => Err(Refusal::Origin),
        }
    }

    /// The origin of the page that may read the answer to this request.
    pub(crate) fn readable_origin<'h>(&self, head: &Head<'h>) -> Option<&'h str> {
        head.header("origin").filter(|_| self.check_origin(head).is_ok())
    }

    /// The channels of a URL, in the app of its credentials, and the claims of its token, if it has one. Every channel may
    /// be subscribed to.
    pub(crate) fn authorised_channels(
        &self,
        head: &Head<'_>,
        query: &Query,
        said: &Said,
    ) -> Result<(Vec<Channel>, Option<Claims>), Stop> {
        let has_none = credential(head, query).map_err(Refusal::Token)?.is_none();
        let asks = self.asks_to_connect().filter(|_| has_none);
        let channels = self.url_channels(query, has_none && asks.is_none(), asks.is_some())?;
        if let (Some(hook), None) = (asks, &said.connect) {
            let hook = Arc::clone(hook);
            let kind = HookQuestion::Connect;
            return Err(Stop::Asks(vec![Ask { hook, kind, channel: None, user: None, known: None }]));
        }
        let (mut claims, app) = self.authorise(head, query, &channels, said)?;
        let app = app.as_ref().map(AppId::as_str);
        let mut names: Vec<&str> = channels.iter().map(Channel::name).collect();
        let more = claims.as_mut().filter(|claims| claims.is_asked());
        let more = more.map(|claims| std::mem::take(&mut claims.subscriptions)).unwrap_or_default();
        names.extend(
            more.keys().map(|name| &**name).filter(|name| !query.channels.iter().any(|own| own == name)),
        );
        let max = self.shared.node.config().limits.subscriptions as usize;
        if names.len() > max {
            return Err(Refusal::TooManyChannels { given: names.len(), max }.into());
        }
        if names.is_empty() && !query.envelope {
            return Err(Refusal::NoChannel.into());
        }
        let channels: Result<Vec<Channel>, _> =
            names.into_iter().map(|name| AppId::channel(app, name)).collect();
        let channels = channels.map_err(Refusal::from)?;
        match self.has_room_for(&channels) {
            true => Ok((channels, claims)),
            false => Err(Refusal::NoChannels.into()),
        }
    }

    /// Whether a request is told who joins and leaves; one whose channels do not track it cannot be.
    pub(crate) fn joins_of_url(&self, query: &Query, channels: &[Channel]) -> Result<bool, Refusal> {
        let tracks = |channel: &Channel| self.shared.node.namespaces().of(channel).tells_presence();
        match query.join_leave && !channels.iter().any(tracks) {
            true => Err(Refusal::NoPresence),
            false => Ok(query.join_leave),
        }
    }

    /// Whether a channel may be subscribed to on an open connection, with these claims.
    fn may_subscribe(&self, channel: &Channel, claims: Option<&Claims>) -> bool {
        self.is_open(channel, claims) || claims.is_some_and(|claims| claims.may_subscribe(channel))
    }

    /// The channel of a name, in the app of the claims, if they may subscribe to it.
    pub(crate) fn channel_for(&self, name: &str, claims: Option<&Claims>) -> Result<Channel, ChannelRefused> {
        match self.may_subscribe(&Channel::new(name)?, claims) {
            true => Ok(self.channel_of_claims(name, claims)?),
            false => Err(ChannelRefused::Rights),
        }
    }

    /// The channel of a name, in the app of the claims.
    pub(crate) fn channel_of_claims(
        &self,
        name: &str,
        claims: Option<&Claims>,
    ) -> Result<Channel, ChannelError> {
        let app = claims.and_then(|claims| claims.app.as_deref());
        AppId::channel(app.map(AppId::as_str), name)
    }

    /// Whether a client may subscribe without a right to this channel of its own. What Pusher's clients need a signature
    /// for nobody has without credentials.
    fn is_open(&self, channel: &Channel, claims: Option<&Claims>) -> bool {
        let config = self.shared.node.config();
        let is_signed = || app::kind_of(config, channel).is_some_and(|kind| kind.is_restricted());
        if !config.dev && (channel.is_private() || is_signed()) {
            return false;
        }
        let namespace = config.namespaces.of(channel);
        let user = claims.and_then(|claims| claims.user.as_deref());
        match channel.users().filter(|_| namespace.user_channels) {
            Some(mut users) => user.is_some_and(|user| users.any(|own| own == user)),
            None => namespace.anonymous_subscribe || (namespace.user_subscribe && user.is_some()),
        }
    }

    /// `may_lack`: the application may name some.
    fn url_channels(
        &self,
        query: &Query,
        is_anonymous: bool,
        may_lack: bool,
    ) -> Result<Vec<Channel>, Refusal> {
        let limits = &self.shared.node.config().limits;
        let max = match is_anonymous {
            true => limits.subscriptions.min(limits.anonymous_subscriptions),
            false => limits.subscriptions,
        };
        let (given, max) = (query.channels.len(), max as usize);
        // An enveloped client may subscribe later.
        if given == 0 && !query.envelope && !may_lack {
            return Err(Refusal::NoChannel);
        }
        if given > max {
            return Err(Refusal::TooManyChannels { given, max });
        }
        let channels = query.channels.iter().map(|name| Channel::new(name)).collect::<Result<Vec<_>, _>>()?;
        for (at, channel) in channels.iter().enumerate() {
            if channels[..at].contains(channel) {
                return Err(Refusal::RepeatedChannel(channel.clone()));
            }
        }
        Ok(channels)
    }

    /// The claims of the token, if there is one, and the app of the token or key, if it is not the default one; checks
    /// that every channel may be subscribed to.
    fn authorise(
        &self,
        head: &Head<'_>,
        query: &Query,
        channels: &[Channel],
        said: &Said,
    ) -> Result<(Option<Claims>, Option<AppId>), Stop> {
        let credentials = match (self.credentials(head, query)?, &said.connect) {
            (Credentials::Anonymous, Some(reply)) => Credentials::Token(Claims::of_reply(reply)),
            (credentials, _) => credentials,
        };
        let own = match &credentials {
            Credentials::Token(claims) => Some(claims),
            Credentials::Anonymous | Credentials::ApiKey(_) => None,
        };
        let mut asks = Vec::new();
        // Also where no channel asks for it: credentials that are wrong are not none.
        let key = match &credentials {
            Credentials::ApiKey(key) => Some(self.shared.api_keys.authorize(Some(key), Scope::Read, None)),
            Credentials::Token(_) | Credentials::Anonymous => None,
        };
        let key = key.transpose().map_err(Refusal::from)?;
        for channel in channels {
            let asked = self.asks_to_subscribe(channel.name(), own).filter(|_| key.is_none());
            if said.allowed.iter().any(|name| **name == *channel.name()) {
                continue;
            }
            if let Some(hook) = asked {
                asks.push(Ask {
                    hook,
                    kind: HookQuestion::Subscribe,
                    channel: Some(channel.name().into()),
                    user: own.and_then(|claims| claims.user.clone()),
                    known: own.and_then(|claims| claims.known.clone()),
                });
                continue;
            }
            match &credentials {
                Credentials::Token(claims) if self.may_subscribe(channel, Some(claims)) => {}
                Credentials::Token(_) => return Err(Refusal::Rights { channel: channel.clone() }.into()),
                Credentials::ApiKey(_) => {
                    key.iter()
                        .try_for_each(|key| key.check(Scope::Read, Some(channel)))
                        .map_err(Refusal::from)?;
                }
                Credentials::Anonymous if self.is_open(channel, None) => {}
                Credentials::Anonymous => {
                    return Err(Refusal::TokenMissing { channel: channel.clone() }.into());
                }
            }
        }
        if !asks.is_empty() {
            return Err(Stop::Asks(asks));
        }
        Ok(match credentials {
            Credentials::Token(claims) => {
                let app = claims.app.as_deref().cloned();
                (Some(claims), app)
            }
            Credentials::Anonymous | Credentials::ApiKey(_) => (None, key.and_then(|key| key.app().cloned())),
        })
    }

    fn credentials(&self, head: &Head<'_>, query: &Query) -> Result<Credentials, Stop> {
        let Some(text) = credential(head, query).map_err(Refusal::Token)? else {
            return Ok(Credentials::Anonymous);
        };
        // Two dots make a token (RFC 7515 section 7.1); API keys come in the header only, not in URLs.
        let is_token = text.bytes().filter(|&byte| byte == b'.').count() == 2;
        if !is_token && query.token.is_none() {
            return Ok(Credentials::ApiKey(text.into_owned()));
        }
        match self.shared.authenticator.verify(&text, SystemTime::now()) {
            Verdict::Valid(claims) => Ok(Credentials::Token(claims)),
            Verdict::Invalid(error) => Err(Refusal::Token(error).into()),
            Verdict::NeedsKeys(fetch) => Err(Stop::NeedsKeys(fetch)),
        }
    }
}

/// The token or key of a request: a parameter, else a header, else an entry of the one header that browsers can set, which
/// stands in no log of URLs. What is there and cannot be read is not taken for absent.
fn credential<'a>(head: &'a Head<'_>, query: &'a Query) -> Result<Option<Cow<'a, str>>, TokenError> {
    let authorization = head.header("authorization");
    if authorization == Some(UNREADABLE) {
        return Err(TokenError::Malformed("the Authorization header is not UTF-8, or is given twice"));
    }
    let offered = head.header_joined("sec-websocket-protocol").unwrap_or_default();
    let mut entries = offered.split(',').filter_map(|name| name.trim().strip_prefix("bearer."));
    let entry = entries.next();
    if offered.contains(UNREADABLE) || entries.any(|other| Some(other) != entry) {
        return Err(TokenError::Malformed(
            "the Sec-WebSocket-Protocol header is not UTF-8, or has several tokens",
        ));
    }
    let given = query.token.as_deref().or_else(|| authorization.and_then(bearer)).map(Cow::Borrowed);
    Ok(given.or_else(|| entry.map(|entry| Cow::Owned(entry.to_owned()))))
}

impl Ctx<'_> {
    /// Whether the namespace of a channel that the client may subscribe to lets it read something of it.
    pub(crate) fn may_read(&self, channel: &Channel, readers: fn(&Namespace) -> ClientRead) -> bool {
        let is_in = self.key_of_own(channel.name()).is_some();
        readers(self.core.shared.node.namespaces().of(channel)).allows(is_in)
    }
}

impl Core {
    /// What clients send may be deflated unless that is switched off; what they are sent follows the namespace.
    pub(crate) fn upgrade(&self, head: &Head<'_>) -> Result<Upgrade, Refusal> {
        let compression = self.shared.node.config().limits.compression;
        Ok(Upgrade::negotiate(head.method, head.minor_version, |name| head.header_joined(name), compression)?)
    }
}
