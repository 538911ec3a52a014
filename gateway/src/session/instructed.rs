//! What servers ask of connections, or about them: which are meant, and what all protocols do alike.

use std::time::{Duration, SystemTime};

use tidegate_backplane::{Channel, Target};
use tidegate_ops::metrics::Label as _;
use tidegate_reactor::{ConnectionId, Connections};
use tidegate_wire::frame::CloseCode;

use super::{
    Ctx, Phase, Session,
    core::Core,
    leaving::Leave,
    protocol::Identity,
    subscribing::{Attempt, SubscribeRefused},
};
use crate::{
    metrics::{DisconnectReason, Instructed},
    node::{
        instruction::{Answer, Instruction, Owner, Place, Round, What},
        interest::Confirmation,
    },
    problem::log_refusal,
    subscription::Want,
};

impl Core {
    /// Closes the connections that an operator named.
    pub(crate) fn disconnect(
        &mut self,
        connections: &mut Connections<Session>,
        target: &Target,
        reason: &str,
    ) {
        for id in self.targets(connections, target) {
            self.ctx(connections, id).leave(Leave::Ordered(reason.into()));
        }
    }

    /// Carries out an instruction.
    pub(crate) fn instruct(
        &mut self,
        connections: &mut Connections<Session>,
        target: &Target,
        instruction: &Instruction,
        round: Option<&Round>,
    ) {
        let answer = match &instruction.what {
            What::List { after, limit } => {
                self.list(connections, target, instruction.owner.as_ref(), after.as_deref(), *limit)
            }
            what => self.carry_out(connections, target, instruction.owner.as_ref(), what),
        };
        if let Some(round) = round {
            round.add(self.shard, answer);
        }
    }

    fn carry_out(
        &mut self,
        connections: &mut Connections<Session>,
        target: &Target,
        owner: Option<&Owner>,
        what: &What,
    ) -> Answer {
        let mut answer = Answer::default();
        for id in self.targets(connections, target) {
            let is_theirs = |owner: &Owner| {
                let session = connections.get(id);
                session.is_some_and(|it| self.is_of_user(it, owner.app.as_deref(), &owner.user))
            };
            if !owner.is_none_or(is_theirs) {
                continue;
            }
            if let What::Close { except, .. } = what
                && except.contains(&self.connection_name(id).into())
            {
                continue;
            }
            let mut ctx = self.ctx(connections, id);
            let result = match ctx.protocol() {
                Some(protocol) => protocol.instructed(&mut ctx, what),
                None => Instructed::NotReady,
            };
            ctx.count_instructed(result);
            let count = if result == Instructed::Done { &mut answer.done } else { &mut answer.not_done };
            *count += 1;
        }
        answer
    }

    /// Says which open connections are meant, in the order of their slots.
    fn list(
        &self,
        connections: &Connections<Session>,
        target: &Target,
        owner: Option<&Owner>,
        after: Option<&str>,
        limit: usize,
    ) -> Answer {
        let mut answer = Answer::default();
        let own = Place { life: &self.life_name(), shard: self.shard, slot: 0 };
        let first = match after.and_then(Place::of) {
            Some(after) if (after.life, after.shard) > (own.life, own.shard) => return answer,
            Some(after) if (after.life, after.shard) == (own.life, own.shard) => after.slot + 1,
            _ => 0,
        };
        let meant = (first..connections.slots()).filter_map(|slot| connections.in_slot(slot)).filter(|&id| {
            let session = connections.get(id);
            session.is_some_and(|session| {
                session.open().is_some()
                    && self.is_target(id, session, target)
                    && owner.is_none_or(|owner| self.is_of_user(session, owner.app.as_deref(), &owner.user))
            })
        });
        for id in meant {
            if answer.connections.len() == limit {
                answer.more = true;
                break;
            }
            let state = self.state_of(connections, id, &self.connection_name(id));
            answer.connections.extend(state);
        }
        answer
    }

    fn targets(&self, connections: &Connections<Session>, target: &Target) -> Vec<ConnectionId> {
        match target {
            Target::Connection(name) => self.find(connections, name).into_iter().collect(),
            // A walk over all connections: 20,000 take about a millisecond, and orders are rare.
            _ => (0..connections.slots())
                .filter_map(|slot| connections.in_slot(slot))
                .filter(|&id| connections.get(id).is_some_and(|session| self.is_target(id, session, target)))
                .collect(),
        }
    }

    fn is_target(&self, id: ConnectionId, session: &Session, target: &Target) -> bool {
        match target {
            Target::Connection(name) => *self.connection_name(id) == **name,
            Target::User { app, user } => self.is_of_user(session, app.as_deref(), user),
            Target::Channel(channel) => {
                let subscriptions = session.open().map_or(&[][..], |open| open.subscriptions.as_slice());
                subscriptions.iter().any(|&own| self.hub.channel(self.hub.channel_of(own)) == channel)
            }
            Target::Everyone { app: None } => true,
            Target::Everyone { app } => self.identity(session).app == app.as_deref(),
        }
    }

    /// Whether it is a user's: signed in in the protocol's way, or by a token.
    fn is_of_user(&self, session: &Session, app: Option<&str>, user: &str) -> bool {
        self.identity(session) == Identity { app, user: Some(user) }
    }

    /// Whose connection it is.
    pub(crate) fn identity<'s>(&'s self, session: &'s Session) -> Identity<'s> {
        match &session.phase {
            Phase::Open(open) => open.protocol.of_list(self.shared.protocols).identity(self, open),
            _ => Identity::of(session.claims()),
        }
    }
}

impl Ctx<'_> {
    /// What all protocols do alike; the rest they have words for or not.
    pub(crate) fn instructed(&mut self, what: &What) -> Instructed {
        match what {
            What::Refresh { expires_at } => self.expire_at(*expires_at),
            What::Expire => self.leave(Leave::TokenExpired),
            What::Close { code, reason, .. } => {
                let (code, text) = (CloseCode(*code), reason.to_string().into());
                self.leave(Leave::Own { code, text, reason: DisconnectReason::Ordered });
            }
            What::Subscribe { .. }
            | What::Unsubscribe { .. }
            | What::Send(_)
            | What::Own { .. }
            | What::List { .. }
            | What::Channels(_) => {
                return Instructed::Unsupported;
            }
        }
        Instructed::Done
    }

    pub(crate) fn count_instructed(&self, result: Instructed) {
        self.core.shared.metrics.node.instructions.add(result, 1);
        if result != Instructed::Done {
            let name = self.core.connection_name(self.id);
            log_refusal("instruction", &format_args!("{name}: {}", result.value()));
        }
    }

    /// Begins a subscription because a server says so, whatever the client may by itself. It is to be noted by the protocol
    /// before it goes on ([`proceed`](Self::proceed)).
    pub(crate) fn begin_instructed(
        &mut self,
        channel: &Channel,
        want: Want,
        lists: bool,
    ) -> Result<(Attempt, Confirmation), Instructed> {
        let claims = self.open().and_then(|open| open.claims().cloned());
        self.has_room_for_subscription(channel, claims.as_deref()).map_err(|refused| match refused {
            SubscribeRefused::NodeFull => Instructed::NodeFull,
            SubscribeRefused::TooMany { .. } | SubscribeRefused::TooFast(_) => Instructed::TooMany,
            SubscribeRefused::Already => Instructed::Already,
        })?;
        self.begin_subscription(channel, want, lists).ok_or(Instructed::NotReady)
    }

    /// The channel that a server names for this connection.
    pub(crate) fn instructed_channel(&self, name: &str) -> Result<Channel, Instructed> {
        let claims = self.open().and_then(|open| open.claims().cloned());
        self.core.channel_of_claims(name, claims.as_deref()).map_err(|_| Instructed::Invalid)
    }

    /// The connection lasts until then, in seconds since 1970, whatever its token says.
    fn expire_at(&mut self, seconds: Option<u64>) {
        let now = self.connections.now();
        let expires = seconds.map(|seconds| {
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            let left = at.and_then(|at| at.duration_since(SystemTime::now()).ok());
            now.after(left.unwrap_or_default())
        });
        if let Some(open) = self.open_mut() {
            open.rare_mut().expires = expires;
            open.drop_empty_rare();
        }
        self.beat_in_time();
    }
}
