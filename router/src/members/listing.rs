//! The nodes of a list or of DNS: what they are called, where they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    lookups::Lookups,
    names::{NameError, Names, Service},
    setting::{DnsName, HostPort},
};

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
    sockets: Sockets,
    services: Lookups<Vec<Service>>,
    nodes: Vec<Listed>,
    unresolved: usize,
}

/// Where hosts are. An address that was used before is kept as long as the name has it.
#[derive(Debug)]
pub(super) struct Sockets {
    addresses: Lookups<Vec<IpAddr>>,
    chosen: BTreeMap<HostPort, SocketAddr>,
}

#[derive(Debug)]
enum From {
    List(Vec<HostPort>),
    Dns(DnsName),
}

impl Listing {
    pub(super) fn of_list(list: Vec<HostPort>, names: Names) -> Self {
        Self::new(From::List(list), names)
    }

    pub(super) fn of_dns(name: DnsName, names: Names) -> Self {
        Self::new(From::Dns(name), names)
    }

    fn new(from: From, names: Names) -> Self {
        let services =
            Lookups::new(names.clone(), |names, name| Box::pin(async move { names.services(&name).await }));
        Self { from, sockets: Sockets::new(names), services, nodes: Vec::new(), unresolved: 0 }
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
                let (outcome, addresses) = self.sockets.all(&name.host).await;
                if let Some(addresses) = addresses {
                    let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, name.port));
                    self.nodes = sockets.map(of_socket).collect();
                }
                outcome
            }
            From::Dns(DnsName::Services(name)) => {
                let outcome = self.services.refresh([name.clone()].into()).await;
                let Some(services) = self.services.get(name) else { return outcome };
                // RFC 2782: targets of a higher number are for when no other can be reached.
                let first = services.iter().map(|service| service.priority).min();
                let services = services.iter().filter(|service| Some(service.priority) == first);
                let wanted = services.map(|service| {
                    (HostPort { host: service.target.clone(), port: service.port }, service.weight.max(1))
                });
                let wanted = wanted.collect();
                self.resolve(wanted).await.and(outcome)
            }
        }
    }

    /// Nodes with their `HOST:PORT` as name, which stays when the address changes.
    async fn resolve(&mut self, wanted: Vec<(HostPort, u16)>) -> Result<(), NameError> {
        let outcome = self.sockets.refresh(wanted.iter().map(|(place, _)| place)).await;
        let (mut nodes, mut unresolved) = (Vec::new(), 0);
        let mut seen = BTreeSet::new();
        for (place, weight) in wanted {
            let name: Box<str> = place.to_string().into();
            if !seen.insert(name.clone()) {
                continue;
            }
            match self.sockets.of(&place) {
                Some(socket) => nodes.push(Listed { address: name.clone(), name, socket, weight }),
                None => unresolved += 1,
            }
        }
        (self.nodes, self.unresolved) = (nodes, unresolved);
        outcome
    }
}

impl Sockets {
    pub(super) fn new(names: Names) -> Self {
        let addresses =
            Lookups::new(names, |names, host| Box::pin(async move { names.addresses(&host).await }));
        Self { addresses, chosen: BTreeMap::new() }
    }

    /// Looks up where these are, and forgets all others.
    pub(super) async fn refresh<'p>(
        &mut self,
        places: impl Iterator<Item = &'p HostPort> + Clone,
    ) -> Result<(), NameError> {
        let outcome = self.addresses.refresh(places.clone().map(|place| place.host.clone()).collect()).await;
        let before = std::mem::take(&mut self.chosen);
        for place in places {
            let known = before.get(place).copied();
            let Some(addresses) = self.addresses.get(&place.host) else { continue };
            let still = known.filter(|known| addresses.contains(&known.ip()));
            let first = || addresses.first().map(|address| SocketAddr::new(*address, place.port));
            if let Some(socket) = still.or_else(first) {
                self.chosen.insert(place.clone(), socket);
            }
        }
        outcome
    }

    pub(super) fn of(&self, place: &HostPort) -> Option<SocketAddr> {
        self.chosen.get(place).copied()
    }

    /// All addresses of one host.
    async fn all(&mut self, host: &str) -> (Result<(), NameError>, Option<Vec<IpAddr>>) {
        let outcome = self.addresses.refresh([host.into()].into()).await;
        (outcome, self.addresses.get(host).cloned())
    }
}

fn of_socket(socket: SocketAddr) -> Listed {
    let name: Box<str> = socket.to_string().into();
    Listed { address: name.clone(), name, socket, weight: 1 }
}
