//! The nodes that announce themselves on the backplane.

use std::{fmt, sync::Arc, time::Duration};

use tidegate_backplane::{NodeRecord, ReadNodes};
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

/// The weight is the capacity: a node that takes twice the connections gets twice the keys.
fn of_record(record: NodeRecord, socket: std::net::SocketAddr) -> membership::Listed<Place> {
    let data = Place {
        address: record.address,
        socket,
        weight: record.capacity,
        connections: Some(record.connections),
        capacity: Some(record.capacity),
    };
    membership::Listed { name: record.name, data, draining: record.draining, renewed: true }
}
