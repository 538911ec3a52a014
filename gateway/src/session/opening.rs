//! From an accepted request to an open connection: subscribe, read history, answer.
//!
//! The answer (`101` or the head of the event stream) is written when the subscription stands and what was missed
//! is known, so whoever publishes after seeing it reaches this client, and nothing is written before it.

use std::{any::Any, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tidegate_backplane::{BackplaneError, Channel, Payload, Position};
use tidegate_reactor::{Overflow, Tick};
use tidegate_wire::{decoder::Decoder, upgrade::Upgrade};

use super::{
    Ctx, LastPosition, Open, Phase, Rare, Session, Subscriptions,
    asking::{Ask, Said},
    budget::Budgets,
    heartbeat::Ping,
    protocol::{Event, ProtocolId, Transport},
    refusal::Refusal,
    subscribing::{Attempt, Unsettled},
};
use crate::{
    auth::{Claims, KeyFetch, TokenError},
    config::{Namespace, SlowReader, UntoldGap},
    hooks::{HandedOn, No},
    hub::{ChannelKey, Terms},
    metrics::HandshakeResult,
    node::histories::Page,
    subscription::{Output, Read},
};

/// What a client asked for and may have.
#[derive(Debug)]
pub(crate) struct Request {
    /// Set by whoever asked the protocol.
    pub(crate) protocol: ProtocolId,
    /// `None` for an event stream.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) envelope: bool,
    /// It is told who is in those of its channels that track it, and who joins and leaves.
    pub(crate) join_leave: bool,
    pub(crate) channels: Vec<Channel>,
    /// For each channel, where to recover from.
    pub(crate) since: Vec<Option<Position>>,
    pub(crate) claims: Option<Claims>,
    /// Origin of the page that reads an event stream.
    pub(crate) cross_origin: Option<Box<str>>,
    /// What is handed on of it to an application, later.
    pub(crate) handed_on: Option<Arc<HandedOn>>,
    /// What the application says to its client: JSON.
    pub(crate) welcome: Option<Payload>,
    /// What the protocol wants to know again when the connection is open.
    pub(crate) state: Option<Box<dyn Any + Send>>,
}

/// Why an opening goes no further now.
pub(crate) enum Stop {
    Refused(Refusal),
    NeedsKeys(KeyFetch),
    /// The application decides.
    Asks(Vec<Ask>),
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
enum State {
    /// Keys are fetched, or the application is asked; the head will be read again, with what followed it.
    Before {
        protocol: ProtocolId,
        head: Vec<u8>,
        bytes_max: usize,
        said: Said,
        /// Answers of the application that are still to come.
        asked: usize,
    },
    Subscribing(Subscribing),
}

#[derive(Debug)]
struct Subscribing {
    request: Request,
    /// For each channel of the request. Their machines are told nothing but confirmations before the answer is
    /// written, so that each goes on keeping what is delivered until it can tell it.
    unsettled: Vec<Unsettled>,
    /// Answers to wait for.
    waiting: usize,
    /// All are confirmed, and what has to be read was asked for.
    is_reading: bool,
    /// What was read.
    pages: Vec<(Attempt, Arc<Page>)>,
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
            join_leave: false,
            channels: Vec::new(),
            since: Vec::new(),
            claims: None,
            cross_origin: None,
            handed_on: None,
            welcome: None,
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
    /// Origin of the page that reads the answer.
    pub(crate) fn cross_origin(&self) -> Option<&str> {
        match &self.state {
            State::Subscribing(subscribing) => subscribing.request.cross_origin.as_deref(),
            State::Before { .. } => None,
        }
    }

    /// What was asked for.
    pub(crate) fn protocol(&self) -> ProtocolId {
        match &self.state {
            State::Before { protocol, .. } => *protocol,
            State::Subscribing(subscribing) => subscribing.request.protocol,
        }
    }

    /// One whose head is kept. `said`: what is known from the application; `asked`: of how many answers it waits for.
    pub(crate) fn before(protocol: ProtocolId, head: Vec<u8>, said: Said, asked: usize) -> Self {
        let bytes_max = head.len() + EARLY_BYTES_MAX;
        Self { state: State::Before { protocol, head, bytes_max, said, asked }, received: Vec::new() }
    }

    /// What the application has said, and how many answers are still to come.
    pub(super) fn asking(&mut self) -> Option<(&mut Said, &mut usize)> {
        match &mut self.state {
            State::Before { said, asked, .. } if *asked > 0 => Some((said, asked)),
            _ => None,
        }
    }

    /// Keeps what the client sends early. An error: it sends too much.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let (buffer, bytes_max) = match &mut self.state {
            State::Before { head, bytes_max, .. } => (head, *bytes_max),
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
            State::Before { asked: 1.., .. } => Refusal::Application(No::Away),
            State::Before { .. } => Refusal::Token(TokenError::UnknownKey),
            State::Subscribing(_) => {
                Refusal::Backplane(BackplaneError::Unavailable("no answer in time".into()))
            }
        }
    }

    /// Whose connection it will be.
    pub(crate) fn claims(&self) -> Option<&Claims> {
        match &self.state {
            State::Before { .. } => None,
            State::Subscribing(subscribing) => subscribing.request.claims.as_ref(),
        }
    }

    /// The head, to be read again with what the application has said.
    pub(crate) fn take_unread_head(&mut self) -> Option<(Vec<u8>, Said)> {
        match &mut self.state {
            State::Before { head, said, .. } => Some((std::mem::take(head), std::mem::take(said))),
            State::Subscribing(_) => None,
        }
    }

    /// The subscription to a channel.
    pub(super) fn unsettled(&mut self, key: ChannelKey) -> Option<&mut Unsettled> {
        self.subscribing()?.unsettled.iter_mut().find(|it| it.attempt.key == key)
    }

    fn subscribing(&mut self) -> Option<&mut Subscribing> {
        match &mut self.state {
            State::Before { .. } => None,
            State::Subscribing(subscribing) => Some(subscribing),
        }
    }
}

impl Subscribing {
    /// What is read before the answer: where channels stand, and the first page of one of those that recover. The
    /// answer and that page leave together, so a client of one channel never sees a connection without its past.
    fn first_reads(&mut self) -> Vec<(Attempt, Read)> {
        let mut reads = Vec::new();
        let mut has_page = false;
        for unsettled in &mut self.unsettled {
            let attempt = unsettled.attempt;
            let machine = &mut unsettled.machine;
            if machine.has_no_past() {
                continue;
            }
            let mut outputs = machine.confirmed();
            if machine.is_due() && !std::mem::replace(&mut has_page, true) {
                outputs = machine.room();
            }
            reads.extend(outputs.into_iter().filter_map(|output| match output {
                Output::Read(read) => Some((attempt, read)),
                _ => None,
            }));
        }
        reads
    }
}

impl Ctx<'_> {
    /// Subscribes to what was asked for; `rest` came after the head.
    pub(crate) fn begin_opening(&mut self, request: Request, rest: &[u8]) {
        let protocol = request.protocol.of_list(self.core.shared.protocols);
        if protocol.transport() == Transport::Stream {
            self.connections.set_half_open(self.id);
        }
        let tells_place = protocol.tells_positions(&request);
        let (mut unsettled, mut waiting, mut refused) = (Vec::new(), 0, None);
        for (channel, since) in request.channels.iter().zip(&request.since) {
            let want = self.core.want(channel, *since, tells_place);
            let lists = request.join_leave && self.core.shared.node.namespaces().of(channel).tells_presence();
            let (held, confirmation) = self.hold(channel, want, lists);
            unsettled.push(held);
            match confirmation.clone().now_or_never() {
                Some(Ok(())) => {}
                Some(Err(error)) => refused = Some(Refusal::Backplane(error)),
                None => {
                    waiting += 1;
                    self.run(confirmation, |ctx, result| ctx.opening_confirmed(result));
                }
            }
        }
        let subscribing = Subscribing { request, unsettled, waiting, is_reading: false, pages: Vec::new() };
        self.set_opening(Opening { state: State::Subscribing(subscribing), received: rest.to_vec() });
        match refused {
            Some(refusal) => self.refuse(&refusal),
            None => self.advance_opening(),
        }
    }

    fn opening_confirmed(&mut self, result: Result<(), BackplaneError>) {
        let Some(subscribing) = self.subscribing() else { return };
        match result {
            Ok(()) => {
                subscribing.waiting -= 1;
                self.advance_opening();
            }
            Err(error) => self.refuse(&Refusal::Backplane(error)),
        }
    }

    /// What was read of history waits until everything is there.
    pub(super) fn opening_read(&mut self, attempt: Attempt, result: Result<Arc<Page>, BackplaneError>) {
        let Some(subscribing) = self.subscribing() else { return };
        match result {
            Ok(page) => {
                subscribing.pages.push((attempt, page));
                subscribing.waiting -= 1;
                self.advance_opening();
            }
            Err(error) => self.refuse(&Refusal::Backplane(error)),
        }
    }

    /// Lets go of what a connection that was never answered had asked for.
    pub(crate) fn abandon_opening(&mut self, opening: Opening) {
        let State::Subscribing(subscribing) = opening.state else { return };
        for unsettled in subscribing.unsettled {
            self.abandon(unsettled);
        }
    }

    fn subscribing(&mut self) -> Option<&mut Subscribing> {
        match &mut self.connections.get_mut(self.id)?.phase {
            Phase::Opening(opening) => opening.subscribing(),
            _ => None,
        }
    }

    fn set_opening(&mut self, opening: Opening) {
        if let Some(session) = self.connections.get_mut(self.id) {
            session.phase = Phase::Opening(Box::new(opening));
        }
    }

    /// Nothing is waited for: reads what has to be known before the answer, or answers.
    fn advance_opening(&mut self) {
        let Some(subscribing) = self.subscribing() else { return };
        if subscribing.waiting > 0 {
            return;
        }
        if !std::mem::replace(&mut subscribing.is_reading, true) {
            let reads = subscribing.first_reads();
            subscribing.waiting = reads.len();
            for &(attempt, read) in &reads {
                self.read_history(attempt, read);
            }
            if !reads.is_empty() {
                return;
            }
        }
        self.finish_opening();
    }

    /// Everything is there: answers and serves.
    fn finish_opening(&mut self) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        let Phase::Opening(opening) = std::mem::replace(&mut session.phase, Phase::Leaving(None)) else {
            return;
        };
        let Opening { state: State::Subscribing(subscribing), received } = *opening else { return };
        let Subscribing { mut request, unsettled, pages, .. } = subscribing;
        let compression =
            request.channels.iter().all(|channel| self.core.shared.node.namespaces().of(channel).compression);
        let protocol = request.protocol.of_list(self.core.shared.protocols);
        let form = protocol.form(&request, compression);
        let attempts: Vec<Attempt> = unsettled.iter().map(|it| it.attempt).collect();
        let mut rare = Rare { unsettled, ..Rare::default() };
        if self.core.hub.forms().get(form).has_heads() {
            // Every id names every channel from the first on: whoever is cut off in between comes back to all.
            let places = attempts.iter().zip(&request.since);
            rare.places = places.map(|(attempt, since)| LastPosition::new(attempt.key, *since)).collect();
        }
        self.write(|out| protocol.write_answer(&request, out));
        self.take_claims(self.connections.now(), request.claims.take(), &mut rare);
        let mut open = Open {
            protocol: request.protocol,
            form,
            ping: Ping::NONE,
            tag: 0,
            budgets: Budgets::default(),
            decoder: Decoder::new(request.upgrade.is_some_and(|upgrade| upgrade.deflate.is_some())),
            subscriptions: Subscriptions::None,
            rare: Some(Box::new(rare)),
        };
        open.drop_empty_rare();
        self.opened(open);
        for (channel, &attempt) in request.channels.iter().zip(&attempts) {
            if let Some(join) = self.join_of(channel) {
                self.join_presence(attempt, join);
            }
        }
        let handed_on = request.handed_on.take();
        protocol.on_event(self, Event::Opened { state: request.state.take(), request: handed_on });
        if let Some(Payload::Text(welcome)) = &request.welcome {
            self.tell_protocol(Event::Welcome(welcome));
        }
        self.begin_subscriptions(&attempts, pages);
        self.tell_protocol(Event::Begun);
        self.resume(&received);
    }

    /// Has the machines tell what was read before the answer; where their channels stand first.
    fn begin_subscriptions(&mut self, attempts: &[Attempt], pages: Vec<(Attempt, Arc<Page>)>) {
        let (places, pages): (Vec<_>, Vec<_>) =
            pages.into_iter().partition(|(_, page)| page.history.publications.is_empty());
        for &attempt in attempts {
            match places.iter().find(|(read, _)| *read == attempt) {
                Some((_, page)) => self.history_read(attempt, Ok(Arc::clone(page))),
                None => self.step(attempt, |machine| match machine.has_no_past() {
                    true => machine.confirmed(),
                    false => Vec::new(),
                }),
            }
        }
        for (attempt, page) in pages {
            self.history_read(attempt, Ok(page));
        }
        // The others read their first page when the socket has taken this.
        if self.open().is_some_and(|open| open.rare.is_some()) {
            self.connections.tell_flushed(self.id);
        }
    }

    fn opened(&mut self, open: Open) {
        let Some(session) = self.connections.get_mut(self.id) else { return };
        session.phase = Phase::Open(open);
        let took = self.core.shared.started.elapsed().as_millis() as u32;
        let took = Duration::from_millis(u64::from(took.wrapping_sub(session.accepted_ms)));
        self.core.metrics.handshakes.add(HandshakeResult::Accepted, 1);
        self.core.metrics.handshake_seconds.observe(took);
        self.core.metrics.connections_opened.add(1);
        self.tell_connected();
        self.begin_beating();
    }

    /// Another token of the same user. What the application knows of the connection stays.
    pub(crate) fn set_claims(&mut self, mut claims: Claims) {
        let presents = self.presents();
        let before = self.open().and_then(|open| open.claims()?.known.clone());
        claims.known = claims.known.take().or(before);
        let now = self.connections.now();
        let mut renewed = Rare::default();
        self.take_claims(now, Some(claims), &mut renewed);
        if let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) {
            let rare = open.rare_mut();
            (rare.claims, rare.expires) = (renewed.claims, renewed.expires);
            self.beat_in_time();
        }
        self.present_as_now(presents);
    }

    fn take_claims(&self, now: Tick, claims: Option<Claims>, rare: &mut Rare) {
        let Some(claims) = claims else { return };
        rare.expires = claims.expiry(now);
        rare.claims = Some(Arc::new(claims));
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
