//! From an accepted request to an open connection: subscribe, read history, answer.
//!
//! The answer (`101` or the head of the event stream) is written when the subscription stands and what was missed
//! is known, so whoever publishes after seeing it reaches this client, and nothing is written before it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::join_all};
use tidegate_backplane::{BackplaneError, Channel, GapReason, History, Member, Position};
use tidegate_reactor::{ConnectionId, Connections, Mail, Overflow, Tick};
use tidegate_wire::{decoder::Decoder, sse, upgrade::Upgrade};

use super::{
    Open, Phase, Protocol, Rare, Recovery, Session, Subscriptions,
    budget::Budgets,
    leaving::Leave,
    recovery::{Kept, Recovering, Want},
    refusal::Refusal,
};
use crate::protocols::{
    pusher::{AppKey, Wanted},
    sse::ids::Fresh,
};
use crate::{
    auth::{Claims, TokenError},
    config::SlowReader,
    hub::ChannelKey,
    hub::outgoing::{Content, Encoding},
    metrics::{DropReason, HandshakeResult},
    shard::{Command, Core},
};

/// What a client asked for and may have.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) protocol: Protocol,
    /// `None` for an event stream.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) envelope: bool,
    pub(crate) channels: Vec<Channel>,
    /// For each channel, where to recover from.
    pub(crate) since: Vec<Option<Position>>,
    pub(crate) claims: Option<Claims>,
    /// Origin of the page that reads an event stream.
    pub(crate) cross_origin: Option<Box<str>>,
    /// Of Pusher Channels: the app, or why there is none.
    pub(crate) app: Option<Wanted>,
}

/// A connection between its request and its answer.
#[derive(Debug)]
pub(crate) struct Opening {
    state: State,
    /// What the client sent after its head.
    received: Vec<u8>,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the opening around it is boxed, and nearly always the large one"
)]
enum State {
    /// Keys are fetched; the head will be read again, with what followed it.
    Keys {
        head: Vec<u8>,
        bytes_max: usize,
    },
    Subscribing(Subscribing),
}

#[derive(Debug)]
struct Subscribing {
    request: Request,
    /// For each channel.
    entered: Vec<Entered>,
    /// Answers to wait for.
    waiting: usize,
}

/// A channel held for the connection.
#[derive(Debug)]
struct Entered {
    key: ChannelKey,
    recovering: Option<Recovering>,
}

/// The buffer that is kept between answers; a history is often larger.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// A client that goes on sending before it is answered may send so much: a few small messages.
const EARLY_BYTES_MAX: usize = 16 * 1024;

impl Request {
    pub(crate) fn echo(upgrade: Option<Upgrade>) -> Self {
        Self {
            protocol: Protocol::Echo,
            upgrade,
            envelope: false,
            channels: Vec::new(),
            since: Vec::new(),
            claims: None,
            cross_origin: None,
            app: None,
        }
    }

    fn encoding(&self, compression: bool) -> Encoding {
        // A client with a window of its own could not read what is deflated once for everyone.
        let shared_deflate = self
            .upgrade
            .and_then(|upgrade| upgrade.deflate)
            .is_some_and(|deflate| deflate.can_share(usize::MAX));
        // Echo has no channel, and Pusher's come later, each with its namespace.
        let chooses = matches!(self.protocol, Protocol::Echo | Protocol::Pusher);
        let deflated = shared_deflate && (compression || chooses);
        match (self.protocol, self.envelope, self.channels.len() > 1) {
            (Protocol::Sse, false, false) => Encoding::Sse,
            (Protocol::Sse, true, false) => Encoding::SseEnvelope,
            (Protocol::Sse, false, true) => Encoding::SseMany,
            (Protocol::Sse, true, true) => Encoding::SseManyEnvelope,
            (Protocol::Pusher, ..) if deflated => Encoding::PusherDeflated,
            (Protocol::Pusher, ..) => Encoding::Pusher,
            (_, false, _) if deflated => Encoding::RawDeflated,
            (_, false, _) => Encoding::Raw,
            (_, true, _) if deflated => Encoding::EnvelopeDeflated,
            (_, true, _) => Encoding::Envelope,
        }
    }
}

impl Opening {
    pub(crate) fn before_keys(head: Vec<u8>) -> Self {
        let bytes_max = head.len() + EARLY_BYTES_MAX;
        Self { state: State::Keys { head, bytes_max }, received: Vec::new() }
    }

    /// Keeps what the client sends early. An error: it sends too much.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let (buffer, bytes_max) = match &mut self.state {
            State::Keys { head, bytes_max } => (head, *bytes_max),
            State::Subscribing(_) => (&mut self.received, EARLY_BYTES_MAX),
        };
        if buffer.len() + bytes.len() > bytes_max {
            return Err(Refusal::TooEarly { max: EARLY_BYTES_MAX });
        }
        buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// What it is told when its time is over.
    pub(crate) fn timed_out(&self) -> Refusal {
        match self.state {
            State::Keys { .. } => Refusal::Token(TokenError::UnknownKey),
            State::Subscribing(_) => {
                Refusal::Backplane(BackplaneError::Unavailable("no answer in time".into()))
            }
        }
    }

    /// Whose connection it will be.
    pub(crate) fn claims(&self) -> Option<&Claims> {
        match &self.state {
            State::Keys { .. } => None,
            State::Subscribing(subscribing) => subscribing.request.claims.as_ref(),
        }
    }

    pub(crate) fn take_unread_head(&mut self) -> Option<Vec<u8>> {
        match &mut self.state {
            State::Keys { head, .. } => Some(std::mem::take(head)),
            State::Subscribing(_) => None,
        }
    }

    /// Keeps a live publication while history is read.
    pub(crate) fn keep(&mut self, key: ChannelKey, content: &Content) {
        if let State::Subscribing(subscribing) = &mut self.state
            && let Some(recovering) = subscribing.recovering(key)
        {
            recovering.kept.keep(content);
        }
    }
}

impl Subscribing {
    fn recovering(&mut self, key: ChannelKey) -> Option<&mut Recovering> {
        self.entered.iter_mut().find(|entered| entered.key == key)?.recovering.as_mut()
    }
}

impl Core {
    /// Subscribes to what was asked for. `Some`: open already, and these bytes came after the head.
    pub(crate) fn begin_opening(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        request: Request,
        rest: &[u8],
    ) -> Option<Vec<u8>> {
        let mut subscribing = Subscribing { request, entered: Vec::new(), waiting: 0 };
        let mut refused = None;
        for channel in &subscribing.request.channels {
            let overflow = overflow(self.shared.node.namespaces().of(channel).slow_reader);
            let (key, confirmation) = self.hub.enter(channel, overflow);
            subscribing.entered.push(Entered { key, recovering: None });
            match confirmation.clone().now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => refused = Some(Refusal::Backplane(error)),
                None => {
                    subscribing.waiting += 1;
                    self.then(confirmation, move |result| Command::Confirmed { id, result });
                }
            }
        }
        let opening = Opening { state: State::Subscribing(subscribing), received: rest.to_vec() };
        match refused {
            Some(refusal) => {
                self.set_opening(connections, id, opening);
                self.refuse(connections, id, &refusal);
                None
            }
            None => self.advance(connections, id, opening),
        }
    }

    pub(crate) fn confirmed(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        result: Result<(), BackplaneError>,
    ) -> Option<Vec<u8>> {
        if let Err(error) = result {
            if self.is_opening(connections, id) {
                self.refuse(connections, id, &Refusal::Backplane(error));
            }
            return None;
        }
        self.answered(connections, id)
    }

    pub(crate) fn history_read(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        key: ChannelKey,
        result: Result<History, BackplaneError>,
    ) -> Option<Vec<u8>> {
        let Some(Phase::Opening(opening)) = connections.get_mut(id).map(|session| &mut session.phase) else {
            return None;
        };
        let State::Subscribing(subscribing) = &mut opening.state else { return None };
        let recovering = subscribing.recovering(key)?;
        match result {
            Err(error) => {
                self.refuse(connections, id, &Refusal::Backplane(error));
                return None;
            }
            Ok(history) => match recovering.kept.overflow {
                None => {
                    let channel = self.hub.channel(key);
                    let age = self.shared.node.namespaces().of(channel).history_age;
                    recovering.history = Some(match recovering.want {
                        Want::Fresh(fresh) => fresh.missed(history, self.shared.started.elapsed(), age),
                        Want::After(_) | Want::Now => history,
                    });
                }
                Some(_) if recovering.reads_left > 0 => {
                    recovering.reads_left -= 1;
                    recovering.kept = Kept::default();
                    let want = recovering.want;
                    self.read_history(id, key, want);
                    return None;
                }
                // It cannot be had without a hole: say so.
                Some(lost) => {
                    self.metrics.messages_dropped.add(DropReason::RecoveryOverflow, lost.messages);
                    recovering.kept = Kept::default();
                    let top = lost.through.or(history.top);
                    recovering.history = Some(History { publications: Vec::new(), top, continuous: false });
                }
            },
        }
        self.answered(connections, id)
    }

    /// Lets go of what a connection that was never answered had asked for.
    pub(crate) fn abandon_opening(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        opening: Opening,
    ) {
        let State::Subscribing(subscribing) = opening.state else { return };
        for entered in subscribing.entered {
            if entered.recovering.is_some() {
                self.hub.end_reading(entered.key, id);
            }
            self.hub.leave(entered.key, connections.now());
        }
    }

    fn is_opening(&self, connections: &Connections<Session>, id: ConnectionId) -> bool {
        connections.get(id).is_some_and(|session| matches!(session.phase, Phase::Opening(_)))
    }

    fn set_opening(&self, connections: &mut Connections<Session>, id: ConnectionId, opening: Opening) {
        if let Some(session) = connections.get_mut(id) {
            session.phase = Phase::Opening(Box::new(opening));
        }
    }

    /// One of the answers it waits for has come.
    fn answered(&mut self, connections: &mut Connections<Session>, id: ConnectionId) -> Option<Vec<u8>> {
        let session = connections.get_mut(id)?;
        let Phase::Opening(opening) = &mut session.phase else { return None };
        let State::Subscribing(subscribing) = &mut opening.state else { return None };
        subscribing.waiting -= 1;
        if subscribing.waiting > 0 {
            return None;
        }
        let phase = std::mem::replace(&mut session.phase, Phase::Leaving(None));
        let Phase::Opening(opening) = phase else { return None };
        self.advance(connections, id, *opening)
    }

    /// Nothing is waited for: reads history if that is still to be done, else answers.
    fn advance(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        mut opening: Opening,
    ) -> Option<Vec<u8>> {
        let State::Subscribing(subscribing) = &mut opening.state else { return None };
        if subscribing.waiting == 0 {
            self.begin_recoveries(id, subscribing);
        }
        if subscribing.waiting > 0 {
            self.set_opening(connections, id, opening);
            return None;
        }
        Some(self.answer(connections, id, opening))
    }

    /// Starts a read of history for each channel that has a position, or needs one, and was not read yet.
    fn begin_recoveries(&mut self, id: ConnectionId, subscribing: &mut Subscribing) {
        let is_stream = subscribing.request.protocol == Protocol::Sse;
        for (entered, since) in subscribing.entered.iter_mut().zip(&mut subscribing.request.since) {
            if entered.recovering.is_some() {
                continue;
            }
            let keeps_history =
                || self.shared.node.namespaces().of(self.hub.channel(entered.key)).history().is_some();
            let want = match since.take() {
                Some(position) => match Fresh::of(position, self.shared.life) {
                    Some(fresh) => Want::Fresh(fresh),
                    None => Want::After(position),
                },
                None if is_stream && keeps_history() => Want::Now,
                None => continue,
            };
            entered.recovering = Some(Recovering::new(want));
            self.hub.begin_reading(entered.key, id);
            subscribing.waiting += 1;
            self.read_history(id, entered.key, want);
        }
    }

    /// Runs a future and posts its outcome to this shard. One that is ready at once, as the memory backplane's
    /// are, never leaves the thread; its outcome still queues up behind what was delivered before it.
    pub(crate) fn then<F>(&self, future: F, outcome: impl FnOnce(F::Output) -> Command + Send + 'static)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let mailbox = self.mailbox.clone();
        let posted = async move { mailbox.send(Mail::Command(outcome(future.await))) };
        if let Err(waits) = self.begin(posted) {
            self.shared.runtime.spawn(waits);
        }
    }

    /// Polls a future once, as the runtime would: a shard's thread is in it. An error is the future, which has to
    /// wait.
    pub(crate) fn begin<F>(&self, future: F) -> Result<F::Output, Pin<Box<F>>>
    where
        F: Future + Send + 'static,
    {
        let mut future = Box::pin(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Ok(output),
            Poll::Pending => Err(future),
        }
    }

    /// Everything is there: answers and serves.
    fn answer(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        opening: Opening,
    ) -> Vec<u8> {
        let Opening { state: State::Subscribing(subscribing), received } = opening else { return Vec::new() };
        let Subscribing { mut request, entered, .. } = subscribing;
        let compression =
            request.channels.iter().all(|channel| self.shared.node.namespaces().of(channel).compression);
        let encoding = request.encoding(compression);
        let mut rare = Rare::default();
        if encoding.is_individual() {
            // Every id names every channel from the first on: whoever is cut off in between comes back to all.
            rare.positions = entered
                .iter()
                .map(|entered| (entered.key, entered.recovering.as_ref().and_then(|it| self.place(it))))
                .collect();
        }
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        write_head(&request, &mut out);
        connections.write(id, &out);
        out.clear();
        let mut open = Open {
            budgets: Budgets::default(),
            protocol: request.protocol,
            encoding,
            pinged: false,
            app: AppKey::default(),
            decoder: Decoder::new(request.upgrade.is_some_and(|upgrade| upgrade.deflate.is_some())),
            subscriptions: Subscriptions::None,
            rare: None,
        };
        let mut told_all = true;
        let mut last_id = None;
        for entered in entered {
            match entered.recovering {
                None => open.subscriptions.push(self.hub.join(entered.key, encoding, id.slot)),
                Some(recovering) => {
                    self.hub.end_reading(entered.key, id);
                    let has_nothing = recovering.has_nothing();
                    let recovery = Recovery::new(entered.key);
                    let (recovery, told) =
                        self.write_recovered(recovery, recovering, encoding, &mut rare, &mut out);
                    told_all &= told;
                    last_id = self.standing_id(&recovery, &mut rare).or(last_id);
                    let (subscription, follows) = match has_nothing {
                        true => (self.hub.join(entered.key, encoding, id.slot), false),
                        false => self.hub.resume(encoding, &recovery, id.slot),
                    };
                    open.subscriptions.push(subscription);
                    rare.recoveries.extend(follows.then_some(recovery));
                }
            }
        }
        if let Some(last_id) = last_id.filter(|_| encoding.is_sse()) {
            sse::encode_id(&last_id, &mut out);
        }
        if !out.is_empty() {
            connections.write_beyond_bound(id, &out);
        }
        self.keep_scratch(out);
        self.take_claims(connections.now(), request.claims.take(), &mut rare);
        open.rare = Some(Box::new(rare));
        open.drop_empty_rare();
        connections.set_merging(id, request.channels.len() > 1);
        self.opened(connections, id, open, &request.channels);
        if let Some(wanted) = request.app.take() {
            self.establish(connections, id, wanted);
        }
        if !told_all {
            self.leave(connections, id, Leave::Gap(GapReason::Unrecoverable));
        }
        received
    }

    fn opened(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        open: Open,
        channels: &[Channel],
    ) {
        let Some(session) = connections.get_mut(id) else { return };
        session.phase = Phase::Open(open);
        let took = self.shared.started.elapsed().as_millis() as u32;
        let took = Duration::from_millis(u64::from(took.wrapping_sub(session.accepted_ms)));
        self.metrics.handshakes.add(HandshakeResult::Accepted, 1);
        self.metrics.handshake_seconds.observe(took);
        self.metrics.connections_opened.add(1);
        self.begin_beating(connections, id);
        self.join_presence(connections, id, channels);
    }

    fn take_claims(&self, now: Tick, claims: Option<Claims>, rare: &mut Rare) {
        let Some(claims) = claims else { return };
        rare.expires = claims.expires.map(|expires| {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            now.after(left)
        });
        rare.claims = Some(Arc::new(claims));
    }

    fn join_presence(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        channels: &[Channel],
    ) {
        let node = &self.shared.node;
        let with_presence: Vec<&Channel> =
            channels.iter().filter(|channel| node.namespaces().of(channel).presence).collect();
        if with_presence.is_empty() {
            return;
        }
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else { return };
        let Some(claims) = open.claims().cloned() else { return };
        let Some(user) = claims.user.clone() else { return };
        let name = self.connection_name(id);
        let joining: Vec<_> = with_presence
            .into_iter()
            .map(|channel| {
                let (connection, info) = (name.as_str().into(), claims.info.clone());
                node.backplane().join(channel, Member { connection, user: user.clone(), info })
            })
            .collect();
        let joined = async move {
            for result in join_all(joining).await {
                if let Err(error) = result {
                    tracing::warn!(%error, "a presence entry could not be written");
                }
            }
        };
        let present = joined.boxed().shared();
        open.rare_mut().present = Some(present.clone());
        self.detach(present);
    }

    /// Keeps a buffer for the next answer, unless this one made it large.
    pub(crate) fn keep_scratch(&mut self, scratch: Vec<u8>) {
        if scratch.capacity() <= SCRATCH_BYTES_KEPT {
            self.scratch = scratch;
        }
    }

    /// Runs a future that nobody waits for.
    pub(crate) fn detach<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Err(waits) = self.begin(future) {
            self.shared.runtime.spawn(waits);
        }
    }
}

fn write_head(request: &Request, out: &mut Vec<u8>) {
    if let Some(upgrade) = &request.upgrade {
        return upgrade.write_response(out, None);
    }
    match &request.cross_origin {
        Some(origin) => {
            sse::write_response_head(out, &[("Access-Control-Allow-Origin", &**origin), ("Vary", "Origin")]);
        }
        None => sse::write_response_head(out, &[]),
    }
}

pub(crate) fn overflow(policy: SlowReader) -> Overflow {
    match policy {
        SlowReader::Disconnect => Overflow::Disconnect,
        SlowReader::Drop => Overflow::Drop,
        SlowReader::Latest => Overflow::Latest,
    }
}
