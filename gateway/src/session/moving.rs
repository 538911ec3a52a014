//! A connection that goes on in another process: its state as a record (`tidegate_wire::moving`), and made again from one.
//!
//! What is under way does not go along: a subscription that does not stand yet, a publish without its answer, a key that is
//! fetched, a question to the application. Who has such a thing is looked at again a moment later; if it is still so then,
//! the connection stays, and is told to come back.

use std::{net::TcpStream, sync::Arc, sync::atomic::Ordering};

use tidegate_backplane::{Channel, Epoch, Position};
use tidegate_ops::{budget::Budget, edge::Preamble};
use tidegate_reactor::{ConnectionId, Connections, Kept, Tick};
use tidegate_wire::{
    fields::{Malformed, Reader, Writer},
    moving::{self, Connection, Debts, Place},
};

use super::{
    Ctx, Earlier, Head, LastPosition, Open, Phase, Rare, Session, Subscriptions,
    budget::Budgets,
    core::Core,
    heartbeat::Ping,
    opening::terms,
    protocol::{ProtocolId, Protocols, Stays},
    publishing::Publisher,
    tokens::Grants,
};
use crate::{
    admission::AddressKey,
    app::apps::Apps,
    auth::Claims,
    hub::form::{FormId, FormsByName},
    subscription::Seen,
};

/// A record that was understood: all that is named in it is known here.
#[derive(Debug)]
pub(crate) struct Readable {
    connection: Connection,
    served: Option<Served>,
}

/// A subscription that a token of its own, or the application, has opened for so many ticks more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted<'a> {
    pub(crate) channel: &'a str,
    pub(crate) ticks: u32,
    pub(crate) is_asked: bool,
}

#[derive(Debug)]
struct Served {
    protocol: ProtocolId,
    form: FormId,
    subscriptions: Vec<(Channel, FormId, Seen)>,
    places: Vec<(Channel, Option<Position>)>,
    claims: Option<Claims>,
}

impl Ctx<'_> {
    /// What another process needs to go on with it.
    pub(crate) fn moving(&mut self) -> Result<Connection, Stays> {
        if matches!(self.session(), Some(Session { phase: Phase::Leaving(_), .. })) {
            return Err(Stays::Ever);
        }
        if self.core.asked.contains_key(&self.id) {
            return Err(Stays::NotNow);
        }
        let Kept { heard_ago, timer_in, unsent, dropped, unused, awaits_flush, is_half_open } =
            self.connections.kept(self.id).ok_or(Stays::NotNow)?;
        let kept = moving::Kept { heard_ago, timer_in, unsent, dropped, unused, awaits_flush, is_half_open };
        let session = self.session().ok_or(Stays::Ever)?;
        let phase = match &session.phase {
            Phase::Head(head) => moving_head(head).ok_or(Stays::NotNow)?,
            Phase::Open(open) => moving::Phase::Open(Box::new(self.moving_open(open)?)),
            Phase::Opening(_) => return Err(Stays::NotNow),
            Phase::Leaving(_) => return Err(Stays::Ever),
        };
        let address = self.core.shared.front.moving(session.address).ok_or(Stays::Ever)?;
        let age_ms = self.core.now_ms().wrapping_sub(session.accepted_ms);
        let ConnectionId { slot, generation } = self.id;
        Ok(Connection { slot, generation, address, age_ms, kept, phase })
    }

    fn moving_open(&self, open: &Open) -> Result<moving::Open, Stays> {
        let (core, now) = (&*self.core, self.connections.now());
        let (hub, forms) = (&core.hub, core.hub.forms());
        let protocol = open.protocol.of_list(core.shared.protocols);
        let mut own = Writer::default();
        protocol.hand_on(core, open, now, &mut own)?;
        let subscription = |&own| {
            let (channel, form, seen) = hub.moving(own, self.id.slot).ok_or(Stays::NotNow)?;
            let (channel, form) = (channel.as_str().into(), forms.name(form));
            Ok(moving::Subscription { channel, form, seen: seen.into() })
        };
        let mut moved = moving::Open {
            protocol: open.protocol.to_text(core.shared.protocols),
            form: forms.name(open.form),
            pinged_ago: open.ping.ticks_since(self.connections.attended()),
            tag: open.tag,
            debts: Debts {
                messages: open.budgets.messages.owed(now.duration()),
                subscribes: open.budgets.subscribes.owed(now.duration()),
                ..Debts::default()
            },
            decoder: open.decoder.clone(),
            subscriptions: open
                .subscriptions
                .as_slice()
                .iter()
                .map(subscription)
                .collect::<Result<_, _>>()?,
            places: Vec::new(),
            claims: None,
            expires_in: None,
            own: own.into_bytes(),
        };
        if let Some(rare) = &open.rare {
            self.moving_rare(rare, now, &mut moved)?;
        }
        Ok(moved)
    }

    fn moving_rare(&self, rare: &Rare, now: Tick, moved: &mut moving::Open) -> Result<(), Stays> {
        if !rare.unsettled.is_empty() || rare.awaiting_keys > 0 || rare.reason.is_some() {
            return Err(Stays::NotNow);
        }
        moved.claims = rare.claims.as_deref().map(Claims::moving);
        moved.expires_in = rare.expires.map(|expires| expires.0.saturating_sub(now.0));
        moved.debts.inflated_bytes = rare.inflated_bytes.owed(now.duration());
        moved.debts.published = match &rare.publisher {
            Some(publisher) => Some(publisher.moving(now.duration()).ok_or(Stays::NotNow)?),
            None => None,
        };
        let place = |place: &LastPosition| {
            (self.core.hub.channel(place.key).as_str().into(), place.position().map(place_of))
        };
        moved.places = rare.places.iter().map(place).collect();
        Ok(())
    }
}

fn moving_head(head: &Head) -> Option<moving::Phase> {
    let awaits_header = match head.preamble {
        Preamble::None => false,
        Preamble::Proxy => true,
        Preamble::Tls | Preamble::Session(_) => return None,
    };
    let is_answered = match head.earlier {
        Earlier::None => false,
        Earlier::Answered => true,
        Earlier::UnderWay => return None,
    };
    let received = head.received.as_ref().map(|received| received.to_vec()).unwrap_or_default();
    head.over.is_none().then_some(moving::Phase::Head { received, awaits_header, is_answered })
}

impl Readable {
    /// # Errors
    /// [`Malformed`]: it is of another form, or names something that this version does not know.
    pub(crate) fn parse(
        record: &[u8],
        protocols: Protocols,
        forms: &FormsByName,
        apps: &Apps,
    ) -> Result<Self, Malformed> {
        let mut connection = Connection::parse(record)?;
        let served = match &mut connection.phase {
            moving::Phase::Head { .. } => None,
            moving::Phase::Open(open) => Some(Served::of(open, protocols, forms, apps)?),
        };
        Ok(Self { connection, served })
    }
}

impl Served {
    fn of(
        open: &mut moving::Open,
        protocols: Protocols,
        forms: &FormsByName,
        apps: &Apps,
    ) -> Result<Self, Malformed> {
        let channel = |name: &str| Channel::from_inside(name).map_err(|_| Malformed);
        let form = |name: &str| forms.get(name).copied().ok_or(Malformed);
        let protocol = ProtocolId::of_text(protocols, &open.protocol).ok_or(Malformed)?;
        if !protocol.of_list(protocols).understands(&open.own, apps) {
            return Err(Malformed);
        }
        let subscription =
            |own: &moving::Subscription| Ok((channel(&own.channel)?, form(&own.form)?, Seen::from(own.seen)));
        Ok(Self {
            protocol,
            form: form(&open.form)?,
            subscriptions: open.subscriptions.iter().map(subscription).collect::<Result<_, _>>()?,
            places: open
                .places
                .iter()
                .map(|(name, place)| Ok((channel(name)?, place.map(position_of))))
                .collect::<Result<_, _>>()?,
            claims: open.claims.take().map(Claims::of_moving).transpose()?,
        })
    }
}

impl Core {
    /// Goes on with a connection of another process. Nothing is read or delivered before all of them are here.
    pub(crate) fn go_on(
        &mut self,
        connections: &mut Connections<Session>,
        readable: Readable,
        socket: TcpStream,
    ) {
        let Readable { connection, served } = readable;
        let Connection { slot, generation, address, age_ms, kept, phase } = connection;
        let id = ConnectionId { slot, generation };
        let phase = match (phase, served) {
            (moving::Phase::Open(open), Some(served)) => {
                let merges = served.subscriptions.len() > 1;
                let open = self.go_on_open(connections, id, *open, served);
                self.enter(connections, id, socket, kept, address, age_ms, Phase::Open(open));
                connections.set_merging(id, merges);
                return;
            }
            (moving::Phase::Head { received, awaits_header, is_answered }, _) => {
                self.publishers += usize::from(is_answered);
                let preamble = if awaits_header { Preamble::Proxy } else { Preamble::None };
                let received = (!received.is_empty()).then(|| Box::new(received));
                let earlier = if is_answered { Earlier::Answered } else { Earlier::None };
                Phase::Head(Head { received, preamble, earlier, ..Head::default() })
            }
            // An open one has been read with what it needs.
            (moving::Phase::Open(_), None) => return,
        };
        self.enter(connections, id, socket, kept, address, age_ms, phase);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    fn enter(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        socket: TcpStream,
        kept: moving::Kept,
        address: Option<std::net::IpAddr>,
        age_ms: u32,
        phase: Phase,
    ) {
        let moving::Kept { heard_ago, timer_in, unsent, dropped, unused, awaits_flush, is_half_open } = kept;
        let kept = Kept { heard_ago, timer_in, unsent, dropped, unused, awaits_flush, is_half_open };
        let address: AddressKey = self.shared.front.go_on(address);
        let session = Session { address, accepted_ms: self.now_ms().wrapping_sub(age_ms), phase };
        self.connections_dealt.fetch_add(1, Ordering::AcqRel);
        connections.go_on(id, socket, kept, session);
        self.tell_connections(connections);
    }

    fn go_on_open(
        &mut self,
        connections: &Connections<Session>,
        id: ConnectionId,
        moved: moving::Open,
        served: Served,
    ) -> Open {
        let now = connections.now();
        let protocol = served.protocol.of_list(self.shared.protocols);
        let mut subscriptions = Subscriptions::None;
        for (channel, form, seen) in served.subscriptions {
            let terms = terms(self.shared.node.namespaces().of(&channel));
            let (key, _confirmed) = self.hub.hold(&channel, terms);
            subscriptions.push(self.hub.join(key, form, seen, id.slot, now));
            if self.hub.forms().get(form).says_presence() && protocol.is_given_list(&channel) {
                self.shared.node.rosters().go_on(&channel);
            }
        }
        let owing = |units| Budget::owing(now.duration(), units);
        let mut rare = Rare {
            claims: served.claims.map(Arc::new),
            expires: moved.expires_in.map(|ticks| Tick(now.0.saturating_add(ticks))),
            inflated_bytes: owing(moved.debts.inflated_bytes),
            ..Rare::default()
        };
        let place = |(channel, position): (Channel, Option<Position>)| {
            let key = self.hub.key_of(channel.as_str())?;
            Some(LastPosition::new(key, position))
        };
        rare.places = served.places.into_iter().filter_map(place).collect();
        rare.publisher = moved
            .debts
            .published
            .map(|(messages, bytes)| Box::new(Publisher::owing(owing(messages), owing(bytes))));
        let mut open = Open {
            protocol: served.protocol,
            form: served.form,
            ping: moved.pinged_ago.map_or(Ping::NONE, |ticks| Ping::ago(connections.attended(), ticks)),
            tag: moved.tag,
            budgets: Budgets {
                messages: owing(moved.debts.messages),
                subscribes: owing(moved.debts.subscribes),
            },
            decoder: moved.decoder,
            subscriptions,
            rare: Some(Box::new(rare)),
        };
        protocol.go_on(self, &mut open, now, &moved.own);
        open.drop_empty_rare();
        open
    }
}

impl Grants {
    pub(crate) fn moving<'c>(&self, core: &'c Core, now: Tick) -> Vec<Granted<'c>> {
        let granted = |(key, expires, is_asked): (_, Tick, _)| Granted {
            channel: core.hub.channel(key).as_str(),
            ticks: expires.0.saturating_sub(now.0),
            is_asked,
        };
        self.iter().map(granted).collect()
    }

    pub(crate) fn go_on(&mut self, core: &Core, now: Tick, granted: &[Granted<'_>]) {
        for &Granted { channel, ticks, is_asked } in granted {
            if let Some(key) = core.hub.key_of(channel) {
                self.set(key, Some(Tick(now.0.saturating_add(ticks))), is_asked);
            }
        }
    }
}

impl<'a> Granted<'a> {
    pub(crate) fn write_list(granted: &[Self], out: &mut Writer) {
        out.list(granted.iter(), |out, &Self { channel, ticks, is_asked }| {
            out.text(channel);
            out.u32(ticks);
            out.bool(is_asked);
        });
    }

    /// # Errors
    /// [`Malformed`]: it is of another form.
    pub(crate) fn read_list(fields: &mut Reader<'a>) -> Result<Vec<Self>, Malformed> {
        fields.list(|fields| {
            Ok(Self { channel: fields.text()?, ticks: fields.u32()?, is_asked: fields.bool()? })
        })
    }
}

fn place_of(Position { epoch, offset }: Position) -> Place {
    Place { epoch: epoch.0, offset }
}

fn position_of(Place { epoch, offset }: Place) -> Position {
    Position { epoch: Epoch(epoch), offset }
}

impl From<Seen> for moving::Seen {
    fn from(seen: Seen) -> Self {
        let (through, met, is_new, presence) = seen.parts();
        Self { through: through.map(place_of), met, is_new, presence }
    }
}

impl From<moving::Seen> for Seen {
    fn from(moving::Seen { through, met, is_new, presence }: moving::Seen) -> Self {
        Self::from_parts(through.map(position_of), met, is_new, presence)
    }
}
