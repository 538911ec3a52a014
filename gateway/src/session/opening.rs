//! From an accepted request to an open connection: subscribe, read history, answer.
//!
//! The answer (`101` or the head of the event stream) is written when the subscription stands and what was missed
//! is known, so whoever publishes after seeing it reaches this client, and nothing is written before it.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future::join_all};
use tidegate_backplane::{BackplaneError, Channel, GapReason, History, Member, Position};
use tidegate_reactor::{Overflow, Tick};
use tidegate_wire::{decoder::Decoder, sse, upgrade::Upgrade};

use super::{
    Ctx, Open, Phase, Rare, Session, Subscriptions,
    ids::Fresh,
    leaving::Leave,
    protocol::{Event, ProtocolId},
    recovery::{Kept, Recovering, Want},
    refusal::Refusal,
};
use crate::{
    auth::{Claims, KeyFetch, TokenError},
    config::{Namespace, SlowReader, UntoldGap},
    hub::{ChannelKey, Terms, outgoing::Content},
    metrics::{DropReason, HandshakeResult},
    subscription::Seen,
};

/// What a client asked for and may have.
#[derive(Debug)]
pub(crate) struct Request {
    /// Set by whoever asked the protocol.
    pub(crate) protocol: ProtocolId,
    /// `None` for an event stream.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) envelope: bool,
    pub(crate) channels: Vec<Channel>,
    /// For each channel, where to recover from.
    pub(crate) since: Vec<Option<Position>>,
    pub(crate) claims: Option<Claims>,
    /// Origin of the page that reads an event stream.
    pub(crate) cross_origin: Option<Box<str>>,
    /// What the protocol wants to know again when the connection is open.
    pub(crate) state: Option<Box<dyn Any + Send>>,
}

/// Why an opening goes no further now.
pub(crate) enum Stop {
    Refused(Refusal),
    NeedsKeys(KeyFetch),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
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

/// A client that goes on sending before it is answered may send so much: a few small messages.
const EARLY_BYTES_MAX: usize = 16 * 1024;

impl Request {
    /// One that asks for no channel.
    pub(crate) fn bare(upgrade: Option<Upgrade>) -> Self {
        Self {
            protocol: ProtocolId::default(),
            upgrade,
            envelope: false,
            channels: Vec::new(),
            since: Vec::new(),
            claims: None,
            cross_origin: None,
            state: None,
        }
    }

    /// Whether the client reads what is deflated once for everyone: not with a window of its own.
    pub(crate) fn shares_deflate(&self) -> bool {
        let deflate = self.upgrade.and_then(|upgrade| upgrade.deflate);
        deflate.is_some_and(|deflate| deflate.can_share(usize::MAX))
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

impl Ctx<'_> {
    /// Subscribes to what was asked for; `rest` came after the head.
    pub(crate) fn begin_opening(&mut self, request: Request, rest: &[u8]) {
        let mut subscribing = Subscribing { request, entered: Vec::new(), waiting: 0 };
        let mut refused = None;
        for channel in &subscribing.request.channels {
            let terms = terms(self.core.shared.node.namespaces().of(channel));
            let (key, confirmation) = self.core.hub.hold(channel, terms);
            subscribing.entered.push(Entered { key, recovering: None });
            match confirmation.clone().now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => refused = Some(Refusal::Backplane(error)),
                None => {
                    subscribing.waiting += 1;
                    self.run(confirmation, |ctx, result| ctx.confirmed(result));
                }
            }
        }
        let opening = Opening { state: State::Subscribing(subscribing), received: rest.to_vec() };
        match refused {
            Some(refusal) => {
                self.set_opening(opening);
                self.refuse(&refusal);
            }
            None => self.advance(opening),
        }
    }

    pub(crate) fn confirmed(&mut self, result: Result<(), BackplaneError>) {
        if let Err(error) = result {
            if self.is_opening() {
                self.refuse(&Refusal::Backplane(error));
            }
            return;
        }
        self.answered();
    }

    pub(crate) fn history_read(&mut self, key: ChannelKey, result: Result<History, BackplaneError>) {
        let Some(Phase::Opening(opening)) =
            self.connections.get_mut(self.id).map(|session| &mut session.phase)
        else {
            return;
        };
        let State::Subscribing(subscribing) = &mut opening.state else { return };
        let Some(recovering) = subscribing.recovering(key) else { return };
        match result {
            Err(error) => {
                self.refuse(&Refusal::Backplane(error));
                return;
            }
            Ok(history) => match recovering.kept.overflow {
                None => {
                    let channel = self.core.hub.channel(key);
                    let age = self.core.shared.node.namespaces().of(channel).history_age;
                    recovering.history = Some(match recovering.want {
                        Want::Fresh(fresh) => fresh.missed(history, self.core.shared.started.elapsed(), age),
                        Want::After(_) | Want::Now => history,
                    });
                }
                Some(_) if recovering.reads_left > 0 => {
                    recovering.reads_left -= 1;
                    recovering.kept = Kept::default();
                    let want = recovering.want;
                    self.read_history(key, want);
                    return;
                }
                // It cannot be had without a hole: say so.
                Some(lost) => {
                    self.core.metrics.messages_dropped.add(DropReason::RecoveryOverflow, lost.messages);
                    recovering.kept = Kept::default();
                    let top = lost.through.or(history.top);
                    recovering.history = Some(History { publications: Vec::new(), top, continuous: false });
                }
            },
        }
        self.answered();
    }

    /// Lets go of what a connection that was never answered had asked for.
    pub(crate) fn abandon_opening(&mut self, opening: Opening) {
        let State::Subscribing(subscribing) = opening.state else { return };
        for entered in subscribing.entered {
            if entered.recovering.is_some() {
                self.core.hub.unwatch(entered.key, self.id);
            }
            self.core.hub.release(entered.key, self.connections.now());
        }
    }

    fn is_opening(&self) -> bool {
        self.connections.get(self.id).is_some_and(|session| matches!(session.phase, Phase::Opening(_)))
    }

    fn set_opening(&mut self, opening: Opening) {
        if let Some(session) = self.connections.get_mut(self.id) {
            session.phase = Phase::Opening(Box::new(opening));
        }
    }

    /// One of the answers it waits for has come.
    fn answered(&mut self) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        let Phase::Opening(opening) = &mut session.phase else { return };
        let State::Subscribing(subscribing) = &mut opening.state else { return };
        subscribing.waiting -= 1;
        if subscribing.waiting > 0 {
            return;
        }
        let phase = std::mem::replace(&mut session.phase, Phase::Leaving(None));
        let Phase::Opening(opening) = phase else { return };
        self.advance(*opening);
    }

    /// Nothing is waited for: reads history if that is still to be done, else answers.
    fn advance(&mut self, mut opening: Opening) {
        let State::Subscribing(subscribing) = &mut opening.state else { return };
        if subscribing.waiting == 0 {
            self.begin_recoveries(subscribing);
        }
        if subscribing.waiting > 0 {
            self.set_opening(opening);
            return;
        }
        self.finish(opening);
    }

    /// Starts a read of history for each channel that has a position, or needs one, and was not read yet.
    fn begin_recoveries(&mut self, subscribing: &mut Subscribing) {
        let protocols = self.core.shared.protocols;
        let tells_positions = subscribing.request.protocol.of_list(protocols).tells_positions();
        for (entered, since) in subscribing.entered.iter_mut().zip(&mut subscribing.request.since) {
            if entered.recovering.is_some() {
                continue;
            }
            let keeps_history = || {
                self.core.shared.node.namespaces().of(self.core.hub.channel(entered.key)).history().is_some()
            };
            let want = match since.take() {
                Some(position) => match Fresh::of(position, self.core.shared.life) {
                    Some(fresh) => Want::Fresh(fresh),
                    None => Want::After(position),
                },
                None if tells_positions && keeps_history() => Want::Now,
                None => continue,
            };
            entered.recovering = Some(Recovering::new(want));
            self.core.hub.watch(entered.key, self.id);
            subscribing.waiting += 1;
            self.read_history(entered.key, want);
        }
    }

    /// Everything is there: answers and serves.
    fn finish(&mut self, opening: Opening) {
        let Opening { state: State::Subscribing(subscribing), received } = opening else { return };
        let Subscribing { mut request, entered, .. } = subscribing;
        let compression =
            request.channels.iter().all(|channel| self.core.shared.node.namespaces().of(channel).compression);
        let protocol = request.protocol.of_list(self.core.shared.protocols);
        let form = protocol.form(&request, compression);
        let mut rare = Rare::default();
        if self.core.hub.forms().get(form).has_heads() {
            // Every id names every channel from the first on: whoever is cut off in between comes back to all.
            rare.positions = entered
                .iter()
                .map(|entered| (entered.key, entered.recovering.as_ref().and_then(|it| self.place(it))))
                .collect();
        }
        let mut out = std::mem::take(&mut self.core.scratch);
        out.clear();
        protocol.write_answer(&request, &mut out);
        self.connections.write(self.id, &out);
        out.clear();
        let mut open = Open {
            protocol: request.protocol,
            form,
            pinged: false,
            tag: 0,
            decoder: Decoder::new(request.upgrade.is_some_and(|upgrade| upgrade.deflate.is_some())),
            subscriptions: Subscriptions::None,
            rare: None,
        };
        let mut told_all = true;
        let mut last_id = None;
        for entered in entered {
            let mut seen = Seen::default();
            if let Some(recovering) = entered.recovering {
                self.core.hub.unwatch(entered.key, self.id);
                let has_nothing = recovering.has_nothing();
                told_all &=
                    self.write_recovered(entered.key, &mut seen, recovering, form, &mut rare, &mut out);
                last_id = self.standing_id(entered.key, seen, &mut rare).or(last_id);
                if has_nothing {
                    seen.set_new();
                }
            }
            let now = self.connections.now();
            open.subscriptions.push(self.core.hub.join(entered.key, form, seen, self.id.slot, now));
        }
        if let Some(last_id) = last_id.filter(|_| protocol.tells_positions()) {
            sse::encode_id(&last_id, &mut out);
        }
        if !out.is_empty() {
            self.connections.write_beyond_bound(self.id, &out);
        }
        self.core.keep_scratch(out);
        self.take_claims(self.connections.now(), request.claims.take(), &mut rare);
        open.rare = Some(Box::new(rare));
        open.drop_empty_rare();
        self.connections.set_merging(self.id, request.channels.len() > 1);
        self.opened(open, &request.channels);
        protocol.on_event(self, Event::Opened { state: request.state.take() });
        if !told_all {
            self.leave(Leave::Gap(GapReason::Unrecoverable));
        }
        self.resume(received);
    }

    fn opened(&mut self, open: Open, channels: &[Channel]) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        session.phase = Phase::Open(open);
        let took = self.core.shared.started.elapsed().as_millis() as u32;
        let took = Duration::from_millis(u64::from(took.wrapping_sub(session.accepted_ms)));
        self.core.metrics.handshakes.add(HandshakeResult::Accepted, 1);
        self.core.metrics.handshake_seconds.observe(took);
        self.core.metrics.connections_opened.add(1);
        self.begin_beating();
        self.join_presence(channels);
    }

    fn take_claims(&self, now: Tick, claims: Option<Claims>, rare: &mut Rare) {
        let Some(claims) = claims else { return };
        rare.expires = claims.expires.map(|expires| {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            now.after(left)
        });
        rare.claims = Some(Arc::new(claims));
    }

    fn join_presence(&mut self, channels: &[Channel]) {
        let node = &self.core.shared.node;
        let with_presence: Vec<&Channel> =
            channels.iter().filter(|channel| node.namespaces().of(channel).presence).collect();
        if with_presence.is_empty() {
            return;
        }
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return };
        let Some(claims) = open.claims().cloned() else { return };
        let Some(user) = claims.user.clone() else { return };
        let name = self.core.connection_name(self.id);
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
        self.core.detach(present);
    }
}

/// What a namespace says of the subscribers of its channels.
pub(crate) fn terms(namespace: &Namespace) -> Terms {
    let overflow = match namespace.slow_reader {
        SlowReader::Disconnect => Overflow::Disconnect,
        SlowReader::Drop => Overflow::Drop,
        SlowReader::Latest => Overflow::Latest,
    };
    Terms { overflow, stays_at_gaps: namespace.untold_gap == UntoldGap::Stay }
}
