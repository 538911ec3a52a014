//! The other side of an upgrade: this process takes the place of the one that started it.

use std::{net::TcpStream, os::fd::OwnedFd, sync::Arc, thread};

use tidegate_backplane::{Backplane, Channel};
use tidegate_ops::{
    handover::{Doorway, Line},
    succession::{Predecessor, STATE_PATIENCE, ShardMailbox, Taken, UpgradeError},
};
use tidegate_wire::{
    fields::{Malformed, Reader},
    succession::Step,
};
use tokio::runtime::Handle;

use super::Handing;
use crate::{
    app::webhooks::{HookEvents, Telling},
    config::Config,
    edge::handover::Handovers,
    protocols::{FORMS, PROTOCOLS},
    server::{Server, StartError, parts::Parts, take_over},
    session::moving::Readable,
};

impl Server {
    /// Takes the place of the process that started this one for that: its ports, its name, and then its connections.
    pub fn take_over(mut config: Config) -> Result<Self, StartError> {
        let predecessor = Predecessor::receive().map_err(|error| take_over(&error))?;
        let ports = predecessor.ports(config.listen, config.internal, config.shards.get());
        let checked = ports.and_then(|ports| check(&config).map(|()| ports));
        let (public, internal) = checked.map_err(|error| {
            predecessor.refuse(&error);
            take_over(&error)
        })?;
        // Unless it is set, it is another one in each process.
        config.node.clone_from(&predecessor.node);
        let server = Self::bound(config, public, internal, None)?;
        Ok(Self { predecessor: Some(predecessor), ..server })
    }
}

/// Whether a configuration is for a process that may go on in the other one's place.
fn check(config: &Config) -> Result<(), UpgradeError> {
    if config.tls.is_on() {
        let why = "its configuration has TLS: a change of that needs a restart";
        return Err(UpgradeError::NotHere(why));
    }
    Ok(())
}

impl Parts {
    pub(in crate::server) fn telling(&self) -> Telling {
        let (webhooks, hooks) = (Arc::clone(&self.shared.webhooks), Arc::clone(&self.shared.hook_events));
        Telling { webhooks, hooks }
    }

    /// When this returns, all that the other process had is this one's.
    pub(in crate::server) fn take(
        &self,
        predecessor: &Predecessor,
    ) -> Result<(Taken, Option<Handovers>), StartError> {
        let mut handovers = None;
        let rest = |state: &[u8], mut sockets: Vec<TcpStream>| {
            let mut fields = Reader::new(state);
            self.shared.node.rosters().take_in(&mut fields)?;
            self.telling().take_in(&mut fields)?;
            handovers = take_handovers(&mut fields, &mut sockets, self.shared.node.config())?;
            self.carrier.take_in(&mut fields, sockets)?;
            Ok(fields.end()?)
        };
        let (forms, apps) = (FORMS.by_name(), &*self.shared.apps);
        let understand = |record: &[u8], sockets: usize| match sockets {
            1 => Readable::parse(record, PROTOCOLS, &forms, apps).map(drop),
            _ => Err(Malformed),
        };
        let taken = predecessor.take(rest, understand).map_err(|error| {
            predecessor.refuse(&error);
            take_over(&error)
        })?;
        Ok((taken, handovers))
    }
}

/// Where routers hand connections over, as before.
fn take_handovers(
    fields: &mut Reader<'_>,
    sockets: &mut Vec<TcpStream>,
    config: &Config,
) -> Result<Option<Handovers>, UpgradeError> {
    let written = fields.option(|fields| Ok((fields.text()?, fields.u32()? as usize)))?;
    let (place, lines, path) = match (written, config.handover.socket.as_deref()) {
        (Some((place, lines)), Some(path)) => (place, lines, path),
        (None, None) => return Ok(None),
        _ => return Err(UpgradeError::NotHere(OTHER_DOORWAY)),
    };
    if sockets.len() <= lines {
        return Err(Malformed.into());
    }
    let mut own = sockets.drain(..=lines).map(OwnedFd::from);
    let listener = own.next().ok_or(Malformed)?;
    let lines = own.map(|line| Line::of(line.into())).collect::<Result<_, _>>()?;
    let doorway = Doorway::go_on(listener.into(), place, path);
    let doorway = doorway.ok_or(UpgradeError::NotHere(OTHER_DOORWAY))?;
    Ok(Some(Handovers::new(doorway, lines)?))
}

const OTHER_DOORWAY: &str = "its configuration names another `handover.socket`, or the file is not there: a change of that needs a restart";

/// Has the shards go on with the connections. When this returns all of them are there, and nothing was read or delivered.
pub(in crate::server) fn settle(
    taken: Taken,
    mailboxes: &[ShardMailbox<Handing>],
) -> Result<(), UpgradeError> {
    let forms = Arc::new(FORMS.by_name());
    taken.settle::<Handing>(mailboxes, move |core, connections, record, sockets| {
        let readable = Readable::parse(record, PROTOCOLS, &forms, &core.shared.apps)?;
        let [socket] = <[TcpStream; 1]>::try_from(sockets).map_err(|_| Malformed)?;
        core.go_on(connections, readable, socket);
        Ok(())
    })
}

/// Says that this process serves, and hears of those who stayed behind.
pub(in crate::server) fn serve(
    predecessor: Predecessor,
    backplane: Arc<dyn Backplane>,
    hooks: Arc<HookEvents>,
    runtime: Handle,
) {
    let Some(talk) = predecessor.serve() else { return };
    let hear = move || {
        while let Ok((step, _)) = talk.hear(STATE_PATIENCE, |_| 0) {
            match step {
                Step::Left { channel, connection } => {
                    let Ok(channel) = Channel::from_inside(&channel) else { continue };
                    runtime.spawn(backplane.leave(&channel, connection.as_deref()));
                }
                Step::Told { event, is_end } => hooks.tell_of_before(&event, is_end),
                _ => return,
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("succession".to_owned()).spawn(hear) {
        tracing::error!(%error, "connections that stayed behind are listed until this process ends");
    }
}
