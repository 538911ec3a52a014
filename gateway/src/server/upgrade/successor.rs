//! The other side of an upgrade: this process takes the place of the one that started it.

use std::{net::TcpStream, sync::Arc, thread};

use tidegate_backplane::{Backplane, Channel};
use tidegate_ops::succession::{self, Predecessor, STATE_PATIENCE, ShardMailbox, UpgradeError};
use tidegate_wire::{
    fields::{Malformed, Reader},
    succession::Step,
};
use tokio::runtime::Handle;

use super::Handing;
use crate::{
    config::Config,
    protocols::{FORMS, PROTOCOLS},
    server::{Server, StartError, parts::Parts, take_over},
    session::moving::Readable,
};

/// The connections of a process, read and not yet served.
pub(crate) type Taken = succession::Taken<(Readable, TcpStream)>;

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
    if config.tls.is_on() || config.handover.socket.is_some() || !config.hooks.0.is_empty() {
        let why = "its configuration has TLS, hooks, or takes connections over from a router: a change of that needs a restart";
        return Err(UpgradeError::NotHere(why));
    }
    Ok(())
}

impl Parts {
    /// When this returns, all that the other process had is this one's.
    pub(in crate::server) fn take(&self, predecessor: &Predecessor) -> Result<Taken, StartError> {
        let rest = |state: &[u8], sockets: Vec<TcpStream>| {
            let mut fields = Reader::new(state);
            self.shared.node.rosters().take_in(&mut fields)?;
            self.carrier.take_in(&mut fields, sockets)?;
            Ok(fields.end()?)
        };
        let (forms, apps) = (FORMS.by_name(), &*self.shared.apps);
        let parse = |record: &[u8], sockets: Vec<TcpStream>| {
            let readable = Readable::parse(record, PROTOCOLS, &forms, apps)?;
            let [socket] = <[TcpStream; 1]>::try_from(sockets).map_err(|_| Malformed)?;
            Ok((readable, socket))
        };
        predecessor.take(rest, parse).map_err(|error| {
            predecessor.refuse(&error);
            take_over(&error)
        })
    }
}

/// Has the shards go on with the connections. When this returns all of them are there, and nothing was read or delivered.
pub(in crate::server) fn settle(
    taken: Taken,
    mailboxes: &[ShardMailbox<Handing>],
) -> Result<(), UpgradeError> {
    taken.settle::<Handing>(mailboxes, |core, connections, (readable, socket)| {
        core.go_on(connections, readable, socket);
    })
}

/// Says that this process serves, and hears of those who stayed behind.
pub(in crate::server) fn serve(predecessor: Predecessor, backplane: Arc<dyn Backplane>, runtime: Handle) {
    let Some(talk) = predecessor.serve() else { return };
    let hear = move || {
        while let Ok((Step::Left { channel, connection }, _)) = talk.hear(STATE_PATIENCE, |_| 0) {
            let Ok(channel) = Channel::from_inside(&channel) else { continue };
            runtime.spawn(backplane.leave(&channel, connection.as_deref()));
        }
    };
    if let Err(error) = thread::Builder::new().name("succession".to_owned()).spawn(hear) {
        tracing::error!(%error, "connections that stayed behind are listed until this process ends");
    }
}
