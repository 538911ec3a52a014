//! The nodes that announce themselves on the backplane.

use std::{fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tidegate_backplane::{NodeRecord, ReadNodes};
use tidegate_ops::handover;
use tokio::time::timeout;

use super::{MembersError, Place, listing::Sockets, membership, names::Names, setting::HostPort};
use crate::metrics::Metrics;

/// Reads the registry of a backplane.
pub(super) struct Registry {
    nodes: Arc<dyn ReadNodes>,
    sockets: Sockets,
}

/// The backplane answers within 2 s, or says that it is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

impl Registry {
    pub(super) fn new(nodes: Arc<dyn ReadNodes>, names: Names) -> Self {
        Self { nodes, sockets: Sockets::new(names) }
    }

    /// Who is in the registry; an error beside them says that the host of one of them was not resolved.
    pub(super) async fn read(
        &mut self,
        metrics: &Metrics,
    ) -> Result<(Vec<membership::Listed<Place>>, Option<MembersError>), MembersError> {
        let records = timeout(ANSWER_TIMEOUT, self.nodes.nodes())
            .await
            .map_err(|_| MembersError::Timeout(ANSWER_TIMEOUT))??;
        let records: Vec<NodeRecord> = records.into_iter().filter(is_for_us).collect();
        let places: Vec<Option<HostPort>> =
            records.iter().map(|record| HostPort::parse(&record.address)).collect();
        let outcome = self.sockets.refresh(places.iter().flatten()).await;
        let (mut listed, mut unresolved) = (Vec::new(), 0);
        for (record, place) in records.into_iter().zip(&places) {
            match place.as_ref().and_then(|place| self.sockets.of(place)) {
                Some(socket) => listed.push(of_record(record, socket)),
                None => unresolved += 1,
            }
        }
        metrics.unresolved.set(unresolved);
        Ok((listed, outcome.err().map(MembersError::Name)))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// The path at which a node takes sockets over, if this process reaches it.
fn path_here(announced: &str) -> Option<Box<Path>> {
    let place: handover::Place = announced.parse().ok()?;
    place.is_here().then(|| place.path().into())
}

/// A gateway on a loopback address that takes sockets over is for the routers that see its socket: elsewhere that address
/// is somebody else.
fn is_for_us(record: &NodeRecord) -> bool {
    let is_loopback = record.address.parse::<SocketAddr>().is_ok_and(|socket| socket.ip().is_loopback());
    match &record.handover {
        Some(announced) if is_loopback => path_here(announced).is_some(),
        _ => true,
    }
}

/// The weight is the capacity: a node that takes twice the connections gets twice the keys.
fn of_record(record: NodeRecord, socket: SocketAddr) -> membership::Listed<Place> {
    let data = Place {
        address: record.address,
        socket,
        weight: record.capacity,
        connections: Some(record.connections),
        capacity: Some(record.capacity),
        handover: record.handover.as_deref().and_then(path_here),
    };
    membership::Listed { name: record.name, data, draining: record.draining, renewed: true }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_ops::handover::Doorway;

    use super::*;

    #[test]
    fn a_loopback_address_is_of_who_sees_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let doorway = Doorway::bind(&directory.path().join("a")).unwrap();
        let here = doorway.place().to_string();
        let elsewhere = format!("another-{here}");
        let check = |address: &str, handover: Option<&str>, expect: bool| {
            let record = NodeRecord {
                name: "a".into(),
                address: address.into(),
                zone: None,
                version: "1".into(),
                connections: 0,
                capacity: 1,
                draining: false,
                handover: handover.map(Into::into),
            };
            assert_eq!(is_for_us(&record), expect, "{address} {handover:?}");
        };
        check("127.0.0.1:8000", Some(&here), true);
        check("127.0.0.1:8000", Some(&elsewhere), false);
        check("[::1]:8000", Some("nonsense"), false);
        check("127.0.0.1:8000", None, true);
        check("192.0.2.1:8000", Some(&elsewhere), true);
        check("gateway-0.gateways:8000", Some(&elsewhere), true);
    }
}
