//! The other side of an upgrade: this process takes the place of the one that started it.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::Duration,
};

use tidegate_backplane::{Backplane, Channel, Epoch};
use tidegate_ops::succession::{Talk, TalkError, read_memory_file};
use tidegate_wire::{
    fields::{Malformed, Reader},
    succession::{REFUSED_MAX, Step},
};
use tokio::runtime::Handle;

use super::{FORM, UpgradeError, ask};
use crate::{
    app::apps::Apps,
    config::Config,
    node::roster::Rosters,
    protocols::{FORMS, PROTOCOLS},
    server::{Server, StartError, carrier::Carrier, parts::Parts, take_over},
    session::{core::ShardMailbox, moving::Readable},
};

/// What was given first: where to listen, and who to be.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) node: Box<str>,
    pub(crate) life: Epoch,
    shards: u32,
    pub(crate) public: TcpListener,
    pub(crate) internal: TcpListener,
    pub(crate) talk: Talk,
}

/// The connections of a process, read and not yet served.
pub(crate) struct Taken {
    shards: Vec<Shard>,
}

struct Shard {
    newest_generation: u32,
    connections: Vec<(Readable, TcpStream)>,
}

/// The other process says what it has to say at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// It may be a while until it gives everything away, but not for ever.
const STATE_PATIENCE: Duration = Duration::from_secs(60);

impl Predecessor {
    /// Hears who to be, from the process that started this one.
    pub(crate) fn receive() -> Result<Self, UpgradeError> {
        let talk = Talk::inherited()?;
        let listeners = |step: &Step| if matches!(step, Step::Listeners { .. }) { 2 } else { 0 };
        let (step, sockets) = talk.hear(PATIENCE, listeners)?;
        let (Step::Listeners { node, life, shards }, Ok([public, internal])) =
            (step, <[OwnedFd; 2]>::try_from(sockets))
        else {
            return Err(UpgradeError::Unexpected);
        };
        Ok(Self { node, life: Epoch(life), shards, public: public.into(), internal: internal.into(), talk })
    }

    /// Whether a configuration is for a process that may go on in the other one's place.
    fn check(&self, config: &Config) -> Result<(), UpgradeError> {
        let listens = |listener: &TcpListener, wanted: std::net::SocketAddr, key| {
            let has = listener.local_addr()?;
            match wanted == has || (wanted.port() == 0 && wanted.ip() == has.ip()) {
                true => Ok(()),
                false => Err(UpgradeError::Address { key, has, wanted }),
            }
        };
        listens(&self.public, config.listen, "listen")?;
        listens(&self.internal, config.internal, "internal")?;
        let has = config.shards.get() as u32;
        if has != self.shards {
            return Err(UpgradeError::Shards { had: self.shards, has });
        }
        if config.tls.is_on() || config.handover.socket.is_some() || !config.hooks.0.is_empty() {
            let why = "its configuration has TLS, hooks, or takes connections over from a router: a change of that needs a restart";
            return Err(UpgradeError::NotHere(why));
        }
        Ok(())
    }

    /// Says why it is not to be, so that the other process goes on.
    pub(crate) fn refuse(&self, why: &dyn std::fmt::Display) {
        if let Err(error) = self.talk.say(&Step::Refused { why: why.to_string().into() }, &[]) {
            tracing::warn!(%error, "the process before was not told why this one does not take over");
        }
    }

    /// Says that it is ready, and takes what it is given: when this returns, everything is this process's.
    pub(crate) fn take(
        &self,
        carrier: &Carrier,
        rosters: &Rosters,
        apps: &Apps,
    ) -> Result<Taken, UpgradeError> {
        self.talk.say(&Step::Ready, &[])?;
        let state = |step: &Step| usize::from(matches!(step, Step::State { .. }));
        let (Step::State { sockets }, file) = self.talk.hear(STATE_PATIENCE, state)? else {
            return Err(UpgradeError::Unexpected);
        };
        let file = file.into_iter().next().ok_or(UpgradeError::Unexpected)?;
        let state = read_memory_file(file)?;
        let sockets = self.take_sockets(sockets as usize)?;
        let (taken, refused) = Taken::read(&state, sockets, carrier, rosters, apps)?;
        if refused.len() > REFUSED_MAX {
            let why = "the connections are written in a form that this version does not read";
            return Err(UpgradeError::Refused(why.into()));
        }
        self.talk.say(&Step::Taken { refused }, &[])?;
        match self.talk.hear(STATE_PATIENCE, |_| 0) {
            Ok((Step::Go, _)) => Ok(taken),
            // A process that goes on itself ends this one first: this one has died.
            Err(TalkError::Ended) => {
                tracing::error!("the process before has died: this one goes on in its place");
                Ok(taken)
            }
            Ok(_) => Err(UpgradeError::Unexpected),
            Err(error) => Err(error.into()),
        }
    }

    fn take_sockets(&self, number: usize) -> Result<Vec<OwnedFd>, UpgradeError> {
        let of = |step: &Step| if let Step::Sockets { number } = step { *number as usize } else { 0 };
        let mut sockets = Vec::new();
        while sockets.len() < number {
            match self.talk.hear(PATIENCE, of)? {
                (Step::Sockets { .. }, more) => sockets.extend(more),
                _ => return Err(UpgradeError::Unexpected),
            }
        }
        Ok(sockets)
    }

    /// Says that it serves, and hears of those who stayed behind.
    pub(crate) fn serve(self, backplane: Arc<dyn Backplane>, runtime: Handle) {
        if let Err(error) = self.talk.say(&Step::Serving, &[]) {
            return tracing::warn!(%error, "the process before does not know that this one serves");
        }
        let hear = move || {
            while let Ok((Step::Left { channel, connection }, _)) = self.talk.hear(STATE_PATIENCE, |_| 0) {
                let Ok(channel) = Channel::from_inside(&channel) else { continue };
                runtime.spawn(backplane.leave(&channel, connection.as_deref()));
            }
        };
        if let Err(error) = thread::Builder::new().name("succession".to_owned()).spawn(hear) {
            tracing::error!(%error, "connections that stayed behind are listed until this process ends");
        }
    }
}

impl Server {
    /// Takes the place of the process that started this one for that: its ports, its name, and then its connections.
    pub fn take_over(mut config: Config) -> Result<Self, StartError> {
        let predecessor = Predecessor::receive().map_err(|error| take_over(&error))?;
        let inherited = || {
            predecessor.check(&config)?;
            let clone = |listener: &TcpListener| listener.try_clone().map_err(UpgradeError::State);
            Ok((clone(&predecessor.public)?, clone(&predecessor.internal)?))
        };
        let (public, internal) = inherited().map_err(|error: UpgradeError| {
            predecessor.refuse(&error);
            take_over(&error)
        })?;
        // Unless it is set, it is another one in each process.
        config.node.clone_from(&predecessor.node);
        let server = Self::bound(config, public, internal, None)?;
        Ok(Self { predecessor: Some(predecessor), ..server })
    }
}

impl Parts {
    /// When this returns, all that the other process had is this one's.
    pub(in crate::server) fn take(&self, predecessor: &Predecessor) -> Result<Taken, StartError> {
        let taken = predecessor.take(&self.carrier, self.shared.node.rosters(), &self.shared.apps);
        taken.map_err(|error| {
            predecessor.refuse(&error);
            take_over(&error)
        })
    }
}

impl Taken {
    /// Reads what was written, and the places of connections that are not understood.
    fn read(
        state: &[u8],
        mut sockets: Vec<OwnedFd>,
        carrier: &Carrier,
        rosters: &Rosters,
        apps: &Apps,
    ) -> Result<(Self, Vec<u32>), UpgradeError> {
        let mut fields = Reader::new(state);
        if fields.u8()? != FORM {
            return Err(Malformed.into());
        }
        let written = fields.list(|fields| Ok((fields.u32()?, fields.list(Reader::bytes)?)))?;
        rosters.take_in(&mut fields)?;
        carrier.take_in(&mut fields, &mut sockets)?;
        fields.end()?;
        // Clients wait for this: what each shard wrote is read beside what the others did.
        let forms = FORMS.by_name();
        let parse = |record: &&[u8]| Readable::parse(record, PROTOCOLS, &forms, apps);
        let read = thread::scope(|scope| {
            let begun: Vec<_> = written
                .iter()
                .map(|(_, records)| scope.spawn(move || records.iter().map(parse).collect::<Vec<_>>()))
                .collect();
            begun
                .into_iter()
                .map(|reading| reading.join().map_err(|_| Malformed))
                .collect::<Result<Vec<_>, _>>()
        })?;
        let (mut shards, mut refused, mut at) = (Vec::new(), Vec::new(), 0);
        let mut sockets = sockets.into_iter().map(TcpStream::from);
        for ((newest_generation, _), read) in written.into_iter().zip(read) {
            let mut connections = Vec::with_capacity(read.len());
            for readable in read {
                let socket = sockets.next().ok_or(Malformed)?;
                match readable {
                    Ok(readable) => connections.push((readable, socket)),
                    Err(Malformed) => refused.push(at),
                }
                at += 1;
            }
            shards.push(Shard { newest_generation, connections });
        }
        if sockets.next().is_some() {
            return Err(Malformed.into());
        }
        Ok((Self { shards }, refused))
    }

    /// Has the shards go on with the connections. When this returns all of them are there, and nothing was read or delivered.
    pub(crate) fn settle(self, mailboxes: &[ShardMailbox]) -> Result<(), UpgradeError> {
        let mut begun = Vec::new();
        for (shard, mailbox) in self.shards.into_iter().zip(mailboxes) {
            let Shard { newest_generation, connections: taken } = shard;
            begun.push(ask(mailbox, move |core, connections| {
                connections.hold_reads(true);
                connections.number_after(newest_generation);
                for (readable, socket) in taken {
                    core.go_on(connections, readable, socket);
                }
            }));
        }
        for done in begun {
            done.recv_timeout(PATIENCE).map_err(|_| UpgradeError::Shard)?;
        }
        Ok(())
    }
}
