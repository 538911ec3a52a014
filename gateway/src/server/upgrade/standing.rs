//! What a shard that stands still writes down of its connections, and how it lets go of them.

use tidegate_ops::succession::{Record, Written};
use tidegate_reactor::{ConnectionId, Connections};

use crate::session::{
    Earlier, Head, Phase, Session,
    core::Core,
    leaving::{ComeBack, Leave},
    protocol::Stays,
};

pub(super) fn write(core: &mut Core, connections: &mut Connections<Session>) -> Written {
    let ids: Vec<ConnectionId> =
        (0..connections.slots()).filter_map(|slot| connections.in_slot(slot)).collect();
    let mut has_under_way = false;
    let record = |id| match core.ctx(connections, id).moving() {
        Ok(connection) => Some(Record { connections: vec![id], bytes: connection.to_bytes() }),
        Err(stays) => {
            has_under_way |= stays == Stays::NotNow;
            None
        }
    };
    let records = ids.into_iter().filter_map(record).collect();
    Written { newest_generation: connections.newest_generation(), records, has_under_way }
}

/// Those that stay are told to come back.
pub(super) fn let_go(
    core: &mut Core,
    connections: &mut Connections<Session>,
    written: &Written,
    is_taken: &dyn Fn(usize) -> bool,
) -> usize {
    let taken = written.records.iter().enumerate().filter(|(at, _)| is_taken(*at));
    for &id in taken.flat_map(|(_, record)| &record.connections) {
        match connections.let_go(id) {
            Ok(Some(session)) => {
                if matches!(&session.phase, Phase::Head(Head { earlier: Earlier::Answered, .. })) {
                    core.publishers -= 1;
                }
                core.count_out(connections, session.address);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a connection that moved is still polled here"),
        }
    }
    let rest: Vec<ConnectionId> =
        (0..connections.slots()).filter_map(|slot| connections.in_slot(slot)).collect();
    for &id in &rest {
        core.ctx(connections, id).leave(Leave::ComeBack(ComeBack::Drain));
    }
    rest.len()
}
