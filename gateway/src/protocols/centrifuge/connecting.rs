//! Who a client is: `connect` and `refresh`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::HeaderValue;
use tidegate_reactor::Tick;
use tidegate_wire::centrifuge::{
    code::{Disconnect, ErrorCode},
    message::{
        ConnectRequest, ConnectResult, RefreshResult, Reply, SubscribeEntry, SubscribeRequest,
        SubscribeResult,
    },
};

use super::{Client, Stage, forms::Carrier};
use crate::{
    auth::{Claims, TokenError},
    hooks::HandedOn,
    session::{Ctx, tokens::TokenRefused},
};

const VERSION: &str = concat!("tidegate ", env!("CARGO_PKG_VERSION"));

/// A client asks for its next token when what it was told is over, and its connection ends when its token does: it is told
/// this much less, or half where that is less.
const REFRESH_AHEAD: Duration = Duration::from_secs(25);

/// Longest name and version of a client that an application is told.
const NAME_BYTES_MAX: usize = 255;

impl Ctx<'_> {
    /// It is open, and has a time to say who it is.
    pub(super) fn await_connect(&mut self, request: Option<Arc<HandedOn>>) {
        let timeout = self.core.shared.node.config().limits.handshake_timeout;
        let stale = self.connections.now().after(timeout);
        if let Some(open) = self.open_mut() {
            let client = open.state_or_default::<Client>();
            (client.stale, client.request) = (Some(stale), request);
        }
        self.beat_in_time();
    }

    pub(super) fn connect(&mut self, id: u32, request: ConnectRequest) {
        let ConnectRequest { token, subs, data, name, version, headers } = request;
        let mut said = None;
        if let Some(client) = self.client_mut() {
            client.stale = None;
            said = client.request.take();
        }
        if let Some(said) = &mut said
            && let Err(why) = self.add_said(Arc::make_mut(said), (name, version), headers)
        {
            return self.cut(Disconnect::BadRequest, &why);
        }
        if token.is_empty() {
            return match self.core.asks_to_connect().map(Arc::clone) {
                Some(hook) => self.ask_to_connect(id, &hook, subs, data, said.unwrap_or_default()),
                None => self.connect_with(id, BTreeMap::new(), &subs, Vec::new()),
            };
        }
        self.set_stage(Stage::Connecting);
        self.with_new_token(token, move |ctx, claims| match claims {
            Ok(claims) if claims.is_of_subscription => {
                ctx.cut(Disconnect::InvalidToken, &"the token is for a subscription");
            }
            Ok(mut claims) => {
                if let Some(said) = said.filter(|_| ctx.core.shared.hooks.keeps_requests()) {
                    claims.keep_request(said);
                }
                ctx.connect_as(id, claims, &subs, Vec::new());
            }
            Err(refused) => {
                ctx.set_stage(Stage::Refused);
                ctx.refuse_token(id, refused);
                // Clients close after that.
                ctx.await_connect(None);
            }
        });
    }

    /// Adds what a client says of itself to what its request said, as far as it is handed on.
    fn add_said(
        &self,
        said: &mut HandedOn,
        (name, version): (String, String),
        headers: BTreeMap<String, String>,
    ) -> Result<(), &'static str> {
        if name.len().max(version.len()) > NAME_BYTES_MAX {
            return Err("its name or version is longer than 255 bytes");
        }
        said.client = (name.into(), version.into());
        let mut room = self.core.shared.node.config().limits.head_bytes.bytes();
        for (name, value) in headers {
            let emulated = || self.core.shared.hooks.emulated_headers();
            let Some(header) = emulated().find(|it| it.0.as_str().eq_ignore_ascii_case(&name)) else {
                continue;
            };
            let value =
                HeaderValue::try_from(value).map_err(|_| "the value of a header has control characters")?;
            room = room
                .checked_sub(name.len() + value.len())
                .ok_or("its headers are larger than limits.head_bytes")?;
            said.headers.push((header.0.clone(), value));
        }
        Ok(())
    }

    /// It is known who it is. `subs`: where it was in channels that the server subscribes it to; `data`: what the application
    /// says to it.
    pub(super) fn connect_as(
        &mut self,
        id: u32,
        mut claims: Claims,
        subs: &BTreeMap<String, SubscribeRequest>,
        data: Vec<u8>,
    ) {
        let of_server = std::mem::take(&mut claims.subscriptions);
        self.set_claims(claims);
        self.connect_with(id, of_server, subs, data);
    }

    /// Answers; `subs`: what the server has subscribed it to.
    pub(super) fn connected(&mut self, id: u32, subs: BTreeMap<String, SubscribeResult>, data: Vec<u8>) {
        self.set_stage(Stage::Connected);
        self.tell_connected();
        self.drop_idle();
        // What the application has allowed, it is asked about again; its client need do nothing.
        let is_asked = self.open().and_then(|open| open.claims()).is_some_and(|claims| claims.is_asked());
        let own = self.open().and_then(|open| open.rare.as_ref()?.expires).filter(|_| !is_asked);
        let (expires, ttl) = self.ttl(own);
        let Some(carrier) = self.carrier() else { return };
        let interval = self.core.shared.node.config().heartbeat.interval;
        let result = ConnectResult {
            client: self.core.connection_name(self.id),
            version: VERSION.to_owned(),
            expires,
            ttl,
            ping: u32::try_from(interval.as_secs()).unwrap_or(u32::MAX).max(1),
            pong: carrier.is_framed() && !carrier.is_uni(),
            subs: subs.into_iter().map(|(key, result)| SubscribeEntry { key, value: Some(result) }).collect(),
            data,
            ..self.session_result(carrier)
        };
        self.send_reply(Reply { id, connect: Some(Box::new(result)), ..Reply::default() });
        self.begin_pings();
    }

    /// By what its client names it when it sends commands by requests of their own.
    fn session_result(&self, carrier: Carrier) -> ConnectResult {
        if !carrier.is_emulated() {
            return ConnectResult::default();
        }
        let node = self.core.shared.node.name().to_owned();
        ConnectResult { session: self.core.session_of(self.id), node, ..ConnectResult::default() }
    }

    /// Another token, of the same user and app: what was granted to one stays theirs.
    pub(super) fn refresh(&mut self, id: u32, token: String) {
        if token.is_empty() {
            return self.cut(Disconnect::BadRequest, &"refresh without a token");
        }
        self.with_new_token(token, move |ctx, claims| {
            let claims = match claims {
                Ok(claims) => claims,
                Err(TokenRefused::Token(TokenError::Expired)) => {
                    return ctx.cut(Disconnect::Expired, &"the token has expired");
                }
                Err(refused) => return ctx.refuse_token(id, refused),
            };
            let is_anonymous = ctx.open().is_some_and(|open| open.claims().is_none());
            if claims.is_of_subscription || is_anonymous || !ctx.is_of_same_user(&claims) {
                return ctx.cut(
                    Disconnect::InvalidToken,
                    &"the token is of another user or app, or of a subscription",
                );
            }
            ctx.set_claims(claims);
            let (expires, ttl) = ctx.ttl(ctx.open().and_then(|open| open.rare.as_ref()?.expires));
            let refresh =
                Some(RefreshResult { expires, ttl, version: VERSION.to_owned(), ..RefreshResult::default() });
            ctx.send_reply(Reply { id, refresh, ..Reply::default() });
        });
    }

    /// Whether a token is of the user and app that the connection is of already, if it is of one.
    pub(super) fn is_of_same_user(&self, claims: &Claims) -> bool {
        let own = self.open().and_then(|open| open.claims());
        own.is_none_or(|own| own.user == claims.user && own.app == claims.app)
    }

    /// Goes on with a token; commands wait for that.
    pub(super) fn with_new_token(
        &mut self,
        token: String,
        then: impl FnOnce(&mut Ctx<'_>, Result<Claims, TokenRefused>) + Send + 'static,
    ) {
        self.wait_for_answer();
        self.with_claims(token, move |ctx, claims| {
            then(ctx, claims);
            ctx.go_on();
        });
    }

    /// A client whose token has expired brings another one; what is wrong with any other, no second try mends.
    pub(super) fn refuse_token(&mut self, id: u32, refused: TokenRefused) {
        match refused {
            TokenRefused::Token(TokenError::Expired) => {
                self.deny_command(id, ErrorCode::TokenExpired, &refused);
            }
            TokenRefused::Busy(_) | TokenRefused::Token(TokenError::UnknownKey) => {
                self.deny_command(id, ErrorCode::Internal, &refused);
            }
            TokenRefused::Token(_) => self.cut(Disconnect::InvalidToken, &refused),
        }
    }

    /// Whether something expires, and in how many seconds its client should bring another token.
    pub(super) fn ttl(&self, expires: Option<Tick>) -> (bool, u32) {
        let Some(expires) = expires else { return (false, 0) };
        let left = expires.since(self.connections.now());
        let told = left.saturating_sub(REFRESH_AHEAD.min(left / 2));
        (true, u32::try_from(told.as_secs()).unwrap_or(u32::MAX).max(1))
    }
}
