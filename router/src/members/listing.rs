//! The nodes of a list or of DNS: what they are called, where they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    health::Standing,
    member,
    names::{NameError, Names},
    setting::{DnsName, HostPort},
};
use crate::chooser::Observed;

/// A node that somebody else named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: Box<str>,
    /// `HOST:PORT`.
    pub(super) address: Box<str>,
    pub(super) socket: SocketAddr,
    pub(super) weight: u16,
}

/// The nodes as they were when they could last be read.
#[derive(Debug)]
pub(super) struct Listing {
    from: From,
    names: Names,
    nodes: Vec<Listed>,
    unresolved: usize,
}

#[derive(Debug)]
enum From {
    List(Vec<HostPort>),
    Dns(DnsName),
}

impl Listing {
    pub(super) fn of_list(list: Vec<HostPort>, names: Names) -> Self {
        Self { from: From::List(list), names, nodes: Vec::new(), unresolved: 0 }
    }

    pub(super) fn of_dns(name: DnsName, names: Names) -> Self {
        Self { from: From::Dns(name), names, nodes: Vec::new(), unresolved: 0 }
    }

    pub(super) fn nodes(&self) -> &[Listed] {
        &self.nodes
    }

    /// Nodes whose host was never resolved.
    pub(super) fn unresolved(&self) -> usize {
        self.unresolved
    }

    /// Reads again. What cannot be resolved stays as it was; an error says that something was not.
    pub(super) async fn refresh(&mut self) -> Result<(), NameError> {
        match &self.from {
            From::List(list) => {
                let wanted = list.iter().map(|one| (one.clone(), 1)).collect();
                self.resolve(wanted).await
            }
            From::Dns(DnsName::Addresses(name)) => {
                let addresses = self.names.addresses(&name.host).await?;
                let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, name.port));
                self.nodes = sockets.map(of_socket).collect();
                Ok(())
            }
            From::Dns(DnsName::Services(name)) => {
                let services = self.names.services(name).await?;
                // RFC 2782: targets of a higher number are for when no other can be reached.
                let first = services.iter().map(|service| service.priority).min();
                let services = services.into_iter().filter(|service| Some(service.priority) == first);
                let wanted = services.map(|service| {
                    (HostPort { host: service.target, port: service.port }, service.weight.max(1))
                });
                self.resolve(wanted.collect()).await
            }
        }
    }

    /// Nodes with their `HOST:PORT` as name, which stays when the address changes.
    async fn resolve(&mut self, wanted: Vec<(HostPort, u16)>) -> Result<(), NameError> {
        let known: BTreeMap<&str, SocketAddr> =
            self.nodes.iter().map(|node| (&*node.name, node.socket)).collect();
        let mut outcome = Ok(());
        let (mut nodes, mut unresolved) = (Vec::new(), 0);
        let mut seen = BTreeSet::new();
        for (place, weight) in wanted {
            let name: Box<str> = place.to_string().into();
            if !seen.insert(name.clone()) {
                continue;
            }
            let known = known.get(&*name).copied();
            let resolved = resolve(&self.names, &place, known).await;
            let socket = resolved.unwrap_or_else(|error| {
                outcome = Err(error);
                known
            });
            match socket {
                Some(socket) => nodes.push(Listed { address: name.clone(), name, socket, weight }),
                None => unresolved += 1,
            }
        }
        (self.nodes, self.unresolved) = (nodes, unresolved);
        outcome
    }
}

impl Listed {
    pub(super) fn observed(&self, standing: Standing) -> Observed {
        let is_live = standing == Standing::Live;
        Observed {
            member: member(&self.name, &self.address, u64::from(self.weight), !is_live),
            is_down: standing == Standing::Down,
            socket: self.socket,
            connections: None,
        }
    }
}

/// The address that was used before, as long as the name has it; else its first.
pub(super) async fn resolve(
    names: &Names,
    place: &HostPort,
    before: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, NameError> {
    let addresses = names.addresses(&place.host).await?;
    let before = before.filter(|before| before.port() == place.port && addresses.contains(&before.ip()));
    Ok(before.or_else(|| addresses.first().map(|address| SocketAddr::new(*address, place.port))))
}

fn of_socket(socket: SocketAddr) -> Listed {
    let name: Box<str> = socket.to_string().into();
    Listed { address: name.clone(), name, socket, weight: 1 }
}
