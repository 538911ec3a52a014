//! The request head: complete or not, ours or HTTP's, let in or refused.

use std::time::SystemTime;

use tidegate_backplane::{Channel, Position};
use tidegate_ops::edge::Preamble;
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::{head::Head as RequestHead, pusher, raw::Query, upgrade::Upgrade};

use crate::session::{self, Head, Phase, Protocol, Session, opening::Request, refusal::Refusal};
use crate::{
    app::apps::AppId,
    auth::{Claims, Scope, Verdict, bearer},
    edge::admission::Over,
    http::serve::HandOff,
    metrics::{Budgeted, HandshakeResult},
    node::Stage,
    shard::{Command, Core},
};

/// What a request is for.
enum Route {
    Shard(Protocol),
    Http,
}

/// How a head came to be read.
#[derive(Clone, Copy)]
enum Arrival {
    New,
    /// Let in only to be told so.
    TurnedAway(Over),
    /// Read again, with the keys its token needed; its handshake has been admitted.
    Resumed,
}

/// Credentials that were checked.
enum Credentials {
    Anonymous,
    Token(Claims),
    /// An API key with the scope `read`: it may subscribe to the channels that it covers.
    ApiKey(String),
}

/// Why an opening goes no further now.
enum Stop {
    Refused(Refusal),
    NeedsKeys(crate::auth::KeyFetch),
}

impl Core {
    /// Takes bytes of a head. `Some`: the connection is open, and these bytes came after its head.
    pub(crate) fn read_head(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let Some(Phase::Head(head)) = connections.get_mut(id).map(|session| &mut session.phase) else {
            return None;
        };
        if matches!(head.preamble, Preamble::Proxy) {
            let rest = self.read_proxy_header(connections, id, bytes).filter(|rest| !rest.is_empty())?;
            return self.read_head(connections, id, &rest);
        }
        let arrival = head.over.map_or(Arrival::New, Arrival::TurnedAway);
        match head.received.take() {
            None => self.take_head(connections, id, bytes, arrival, bytes),
            Some(mut received) => {
                received.extend_from_slice(bytes);
                self.take_head(connections, id, &received, arrival, bytes)
            }
        }
    }

    /// `fresh` are the last bytes of `received`.
    fn take_head(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        received: &[u8],
        arrival: Arrival,
        fresh: &[u8],
    ) -> Option<Vec<u8>> {
        let max = self.shared.node.config().limits.head_bytes.bytes();
        // A head ends with a line end: without a fresh one there is nothing new to parse, so that a head that
        // trickles in byte by byte is not parsed at every byte.
        let parsed = match fresh.contains(&b'\n') || received.len() > max {
            true => RequestHead::parse(received),
            false => Ok(None),
        };
        // Heads that are refused count, too; those of HTTP have budgets of their own.
        let dev = self.shared.node.config().dev;
        let is_handshake = match &parsed {
            Ok(Some(head)) => matches!(route(head, dev), Route::Shard(_)),
            Ok(None) => received.len() > max,
            Err(_) => true,
        };
        if is_handshake && matches!(arrival, Arrival::New) {
            let named = match &parsed {
                Ok(Some(head)) => self.name_client(connections, id, head),
                _ => Ok(()),
            };
            let taken = named.and_then(|()| self.take_address_handshake(connections, id));
            if let Err(over) = taken {
                self.refuse(connections, id, &Refusal::Over(over));
                return None;
            }
        }
        match parsed {
            Ok(None) if received.len() > max => self.refuse(connections, id, &Refusal::HeadTooLarge { max }),
            Ok(None) => {
                // Its limit stays where it was, in the head that is being read.
                if let Some(Phase::Head(head)) = connections.get_mut(id).map(|session| &mut session.phase) {
                    head.received = Some(Box::new(received.to_vec()));
                }
            }
            Err(error) => self.refuse(connections, id, &error.into()),
            Ok(Some(head)) if head.len > max => self.refuse(connections, id, &Refusal::HeadTooLarge { max }),
            Ok(Some(head)) => match (arrival, route(&head, self.shared.node.config().dev)) {
                (Arrival::TurnedAway(over), _) => self.refuse(connections, id, &Refusal::Over(over)),
                (_, Route::Http) => self.hand_to_http(connections, id, received),
                (_, Route::Shard(protocol)) => {
                    return self.open(connections, id, arrival, protocol, &head, received);
                }
            },
        }
        None
    }

    /// Keys were fetched: reads the same head again.
    pub(crate) fn resume_head(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
    ) -> Option<Vec<u8>> {
        let session = connections.get_mut(id)?;
        let Phase::Opening(opening) = &mut session.phase else { return None };
        let received = opening.take_unread_head()?;
        session.phase = Phase::Head(Head::default());
        self.take_head(connections, id, &received, Arrival::Resumed, &received)
    }

    pub(crate) fn time_out_handshake(&mut self, connections: &mut Connections<Session>, id: ConnectionId) {
        let silent = connections
            .get(id)
            .is_some_and(|session| matches!(&session.phase, Phase::Head(head) if head.received.is_none()));
        if let Some(Phase::Opening(opening)) = connections.get(id).map(|session| &session.phase) {
            let refusal = opening.timed_out();
            self.refuse(connections, id, &refusal);
        } else if silent || self.is_before_request(connections, id) {
            self.metrics.handshakes.add(HandshakeResult::Timeout, 1);
            connections.close(id);
        } else {
            self.refuse(connections, id, &Refusal::HeadTimeout);
        }
    }

    /// Answers and ends a handshake.
    pub(crate) fn refuse(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        refusal: &Refusal,
    ) {
        self.metrics.handshakes.add(refusal.result(), 1);
        if let Some(failure) = refusal.auth_failure() {
            self.shared.metrics.node.auth_failures.add(failure, 1);
        }
        tracing::debug!(%refusal, "handshake refused");
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        refusal.write(u64::from(id.generation), &mut out);
        connections.write(id, &out);
        self.scratch = out;
        if let Some(session) = connections.get_mut(id)
            && let Phase::Opening(opening) = std::mem::replace(&mut session.phase, Phase::Leaving(None))
        {
            self.abandon_opening(connections, id, *opening);
        }
        connections.shut_when_flushed(id);
        self.set_leave_timer(connections, id);
    }

    fn hand_to_http(&mut self, connections: &mut Connections<Session>, id: ConnectionId, received: &[u8]) {
        let Some(address) = connections.get(id).map(|session| session.address) else { return };
        match connections.release(id) {
            Ok(Some(released)) => {
                self.metrics.connections.set(connections.len() as i64);
                self.connections_dealt.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
                let hand_off = HandOff {
                    socket: released.socket,
                    received: received.to_vec().into(),
                    tls: released.tls,
                    address,
                };
                self.shared.http.take(hand_off);
            }
            // On its way out already: its end is still to be reported.
            Ok(None) => {}
            Err(error) => {
                self.count_out(connections, address);
                tracing::warn!(%error, "a socket could not leave the reactor");
            }
        }
    }

    fn open(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        arrival: Arrival,
        protocol: Protocol,
        head: &RequestHead<'_>,
        received: &[u8],
    ) -> Option<Vec<u8>> {
        match self.check(arrival, protocol, head) {
            Ok(request) => self.begin_opening(connections, id, request, &received[head.len..]),
            Err(Stop::Refused(refusal)) => {
                self.refuse(connections, id, &refusal);
                None
            }
            Err(Stop::NeedsKeys(fetch)) => {
                self.wait_for_keys(connections, id, fetch, received);
                None
            }
        }
    }

    fn wait_for_keys(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        fetch: crate::auth::KeyFetch,
        received: &[u8],
    ) {
        if let Some(session) = connections.get_mut(id) {
            session.phase =
                Phase::Opening(Box::new(session::opening::Opening::before_keys(received.to_vec())));
        }
        let (authenticator, mailbox) = (self.shared.authenticator.clone(), self.mailbox.clone());
        self.shared.runtime.spawn(async move {
            authenticator.fetch(fetch).await;
            mailbox.send(tidegate_reactor::Mail::Command(Command::KeysFetched(id)));
        });
    }

    /// Everything that can be said about a request without waiting for anyone but the keys.
    fn check(&self, arrival: Arrival, protocol: Protocol, head: &RequestHead<'_>) -> Result<Request, Stop> {
        if self.shared.node.stage() == Stage::Closing {
            return Err(Refusal::Draining.into());
        }
        head.check_host().map_err(Refusal::from)?;
        if protocol == Protocol::Pusher {
            let request = self.check_pusher(head)?;
            self.take_node_handshake(arrival)?;
            return Ok(request);
        }
        let origin = head.header("origin");
        if !self.shared.origins.allows(origin, head.header("host").unwrap_or_default()) {
            return Err(Refusal::Origin.into());
        }
        let upgrade = match protocol {
            Protocol::Sse => None,
            Protocol::Raw | Protocol::Echo | Protocol::Pusher => {
                Some(upgrade(head, self.shared.node.config().limits.compression)?)
            }
        };
        let query = Query::parse(head.query).map_err(Refusal::from)?;
        if protocol == Protocol::Echo {
            self.take_node_handshake(arrival)?;
            return Ok(Request::echo(upgrade));
        }
        let is_anonymous = query.token.is_none() && head.header("authorization").and_then(bearer).is_none();
        let channels = self.channels(&query, is_anonymous)?;
        self.take_node_handshake(arrival)?;
        let (claims, app) = self.authorise(head, &query, &channels)?;
        let channels = channels
            .into_iter()
            .map(|channel| AppId::channel(app.as_ref(), channel).map_err(Refusal::from))
            .collect::<Result<Vec<_>, _>>()?;
        let since = since(protocol, head, &query, channels.len())?;
        let cross_origin = origin.filter(|_| protocol == Protocol::Sse).map(Box::from);
        let envelope = query.envelope;
        Ok(Request { protocol, upgrade, envelope, channels, since, claims, cross_origin, app: None })
    }

    /// The node's handshakes are for those that could be accepted: whoever sends what is not is out of its own.
    fn take_node_handshake(&self, arrival: Arrival) -> Result<(), Refusal> {
        match arrival {
            Arrival::Resumed => Ok(()),
            _ => self.shared.front.take_handshake().map_err(Refusal::Over),
        }
    }

    /// Where this node ends TLS it was taken when the connection was accepted. A trusted proxy's client is known now.
    fn take_address_handshake(
        &self,
        connections: &Connections<Session>,
        id: ConnectionId,
    ) -> Result<(), Over> {
        match connections.get(id) {
            Some(session) if self.shared.edge.tls.is_none() => {
                self.shared.front.take_handshake_of(session.address)
            }
            _ => Ok(()),
        }
    }

    /// Pages of any origin may connect: nothing is granted for what a browser sends along, but for signatures that a
    /// page has to ask its own server for.
    fn check_pusher(&self, head: &RequestHead<'_>) -> Result<Request, Stop> {
        let upgrade = Some(upgrade(head, self.shared.node.config().limits.compression)?);
        let app = Some(self.wanted_app(head));
        Ok(Request { protocol: Protocol::Pusher, app, ..Request::echo(upgrade) })
    }

    fn channels(&self, query: &Query, is_anonymous: bool) -> Result<Vec<Channel>, Refusal> {
        let limits = &self.shared.node.config().limits;
        let max = match is_anonymous {
            true => limits.subscriptions.min(limits.anonymous_subscriptions),
            false => limits.subscriptions,
        };
        let (given, max) = (query.channels.len(), max as usize);
        if given == 0 {
            return Err(Refusal::NoChannel);
        }
        if given > max {
            return Err(Refusal::TooManyChannels { given, max });
        }
        if !self.has_room_for_channels() {
            self.metrics.budgets_spent.add(Budgeted::Channels, 1);
            return Err(Refusal::NoChannels);
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
        head: &RequestHead<'_>,
        query: &Query,
        channels: &[Channel],
    ) -> Result<(Option<Claims>, Option<AppId>), Stop> {
        let credentials = self.credentials(head, query)?;
        let mut key_app = None;
        for channel in channels {
            let config = self.shared.node.config();
            // What Pusher's clients need a signature for nobody has without credentials.
            let is_restricted = !config.dev && pusher::ChannelKind::of(channel.name()).is_restricted();
            let open = config.namespaces.of(channel).anonymous_subscribe && !is_restricted;
            match &credentials {
                Credentials::Token(claims) if open || claims.may_subscribe(channel) => {}
                Credentials::Token(_) => return Err(Refusal::Rights { channel: channel.clone() }.into()),
                Credentials::ApiKey(key) => {
                    let key = self.shared.api_keys.authorize(Some(key), Scope::Read, Some(channel));
                    key_app = key.map_err(Refusal::from)?.app().cloned();
                }
                Credentials::Anonymous if open => {}
                Credentials::Anonymous => {
                    return Err(Refusal::TokenMissing { channel: channel.clone() }.into());
                }
            }
        }
        Ok(match credentials {
            Credentials::Token(claims) => {
                let app = claims.app.as_deref().cloned();
                (Some(claims), app)
            }
            Credentials::Anonymous | Credentials::ApiKey(_) => (None, key_app),
        })
    }

    fn credentials(&self, head: &RequestHead<'_>, query: &Query) -> Result<Credentials, Stop> {
        let header = head.header("authorization").and_then(bearer);
        let Some(text) = query.token.as_deref().or(header) else { return Ok(Credentials::Anonymous) };
        // Two dots make a token (RFC 7515 section 7.1); API keys come in the header only, not in URLs.
        let is_token = text.bytes().filter(|&byte| byte == b'.').count() == 2;
        if !is_token && query.token.is_none() {
            return Ok(Credentials::ApiKey(text.to_owned()));
        }
        match self.shared.authenticator.verify(text, SystemTime::now()) {
            Verdict::Valid(claims) => Ok(Credentials::Token(claims)),
            Verdict::Invalid(error) => Err(Refusal::Token(error).into()),
            Verdict::NeedsKeys(fetch) => Err(Stop::NeedsKeys(fetch)),
        }
    }
}

fn route(head: &RequestHead<'_>, dev: bool) -> Route {
    match protocol_of(head.method, head.path, dev) {
        Some(protocol) if !head.has_body() => Route::Shard(protocol),
        _ => Route::Http,
    }
}

/// What a shard speaks to a request without a body; `None`: the request is for HTTP.
pub(crate) fn protocol_of(method: &str, path: &str, dev: bool) -> Option<Protocol> {
    match (method, path) {
        ("GET", "/ws") => Some(Protocol::Raw),
        ("GET", "/sse") => Some(Protocol::Sse),
        ("GET", "/echo") if dev => Some(Protocol::Echo),
        ("GET", path) if pusher::is_pusher_path(path) => Some(Protocol::Pusher),
        _ => None,
    }
}

/// `compression`: whether what clients send may be deflated; what they are sent follows the namespace then.
fn upgrade(head: &RequestHead<'_>, compression: bool) -> Result<Upgrade, Refusal> {
    Ok(Upgrade::negotiate(head.method, head.minor_version, |name| head.header_joined(name), compression)?)
}

/// Positions to recover from, one place for each channel. An event stream sends its last id as a header when it
/// reconnects, or as a parameter when a client sets it by hand.
fn since(
    protocol: Protocol,
    head: &RequestHead<'_>,
    query: &Query,
    channels: usize,
) -> Result<Vec<Option<Position>>, Refusal> {
    let last_id = head.header("last-event-id").filter(|id| protocol == Protocol::Sse && !id.is_empty());
    let mut positions = match (last_id, &query.since) {
        (Some(id), _) => crate::protocols::sse::ids::parse_event_id(id),
        (None, Some(since)) => vec![Some(Position { epoch: since.epoch.parse()?, offset: since.offset })],
        (None, None) => Vec::new(),
    };
    positions.resize(channels, None);
    Ok(positions)
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
