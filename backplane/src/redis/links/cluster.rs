//! Learns which node of a Cluster is the master of which slot, and keeps the links to the masters.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::Value;
use tokio::time::{sleep, timeout};

use super::dial::{ask, text};
use super::link::{Link, Place};
use super::live::Sent;
use super::map::{Map, Spread};
use super::session::check_cluster;
use super::shared::Shared;
use crate::redis::error::Trouble;
use crate::redis::slot::SLOTS;
use crate::redis::url::Server;

/// How often the slots are read when nothing says that they changed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

/// The least between two readings: one answer of a large Cluster has some 10 KB.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

/// For one node to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// A range of slots, first and last, and their master.
pub(crate) type Range = (u16, u16, Server);

/// Reads the slots again and again, and makes and drops links as masters come and go.
pub(super) async fn watch(shared: Arc<Shared>) {
    loop {
        match read(&shared).await {
            Ok(ranges) => apply(&shared, &ranges),
            Err((server, trouble)) => {
                tracing::debug!(%server, %trouble, "no server of the Cluster tells its slots");
                shared.note(server, trouble);
            }
        }
        sleep(REFRESH_PAUSE).await;
        tokio::select! {
            () = shared.refreshed.notified() => {}
            () = sleep(REFRESH_INTERVAL) => {}
        }
    }
}

/// The slots as the node tells them that knows the highest epoch: links that are up are asked, all of them, because one
/// that is cut off from the others goes on telling what was. Where none is up, nodes and seeds, until one answers.
async fn read(shared: &Shared) -> Result<Vec<Range>, (Server, Trouble)> {
    let map = shared.map();
    let asked = map.links.iter().filter_map(|link| link.live()).map(|live| async move {
        let both = async { (live.send(&epoch_question()).await, live.send(&slots_question()).await) };
        match timeout(ANSWER_DEADLINE, both).await {
            Ok((epoch, Sent::Answer(slots))) => {
                let epoch = if let Sent::Answer(epoch) = epoch { epoch_of(&epoch) } else { 0 };
                ranges_of(&slots, &live.server).map(|ranges| (epoch, ranges))
            }
            _ => None,
        }
    });
    if let Some(ranges) = newest(join_all(asked).await.into_iter().flatten()) {
        return Ok(ranges);
    }
    let nodes = map.links.iter().filter_map(|link| link.node().cloned());
    let mut servers: Vec<Server> = nodes.collect();
    servers.extend(shared.seeds.iter().filter(|seed| map.node(seed).is_none()).cloned());
    let mut last = None;
    for server in servers {
        match read_from(shared, &server).await {
            Ok(ranges) => return Ok(ranges),
            Err(trouble) => last = Some((server, trouble)),
        }
    }
    Err(last.unwrap_or_else(|| (shared.seeds[0].clone(), Trouble::NoAddress)))
}

/// What was told with the highest epoch; of equal ones the first.
fn newest<T>(told: impl Iterator<Item = (u64, T)>) -> Option<T> {
    told.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, newest)| newest)
}

async fn read_from(shared: &Shared, server: &Server) -> Result<Vec<Range>, Trouble> {
    let (mut connection, greeting) = shared.dialer.raw(server).await?;
    check_cluster(&greeting)?;
    let late = Trouble::Late { what: "tell its slots", within: ANSWER_DEADLINE };
    let question = slots_question();
    let answer = timeout(ANSWER_DEADLINE, ask(&mut connection, &question)).await.unwrap_or(Err(late))?;
    ranges_of(&answer, server).ok_or(Trouble::Protocol)
}

fn slots_question() -> redis::Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    command
}

fn epoch_question() -> redis::Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("INFO");
    command
}

/// Grows with every failover and every slot that moved, at those who heard of it.
fn epoch_of(info: &Value) -> u64 {
    let info = match info {
        Value::VerbatimString { text, .. } => text.as_str().into(),
        other => text(other).unwrap_or_default(),
    };
    let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"));
    epoch.and_then(|epoch| epoch.trim().parse().ok()).unwrap_or(0)
}

/// Replaces the map. Links that hold no slot any longer go, unless nodes send calls to them.
fn apply(shared: &Arc<Shared>, ranges: &[Range]) {
    shared.replace_map(|old| {
        let mut links: Vec<Arc<Link>> = Vec::new();
        let mut positions = Vec::new();
        for (first, last, server) in ranges {
            let position = links.iter().position(|link| link.is_node(server)).unwrap_or_else(|| {
                links.push(old.node(server).cloned().unwrap_or_else(|| new_link(shared, server)));
                links.len() - 1
            });
            positions.push((*first, *last, position));
        }
        let is_in = |links: &[Arc<Link>], link: &Link| links.iter().any(|other| other.id == link.id);
        let asked: Vec<_> =
            old.links.iter().filter(|link| !is_in(&links, link) && link.is_asked()).cloned().collect();
        links.extend(asked);
        Some(Map { links, spread: Spread::slots(positions.into_iter()) })
    });
}

/// The link of a node that others send calls to with `ASK`, made if there is none: a new node has no slots yet.
pub(super) fn asked(shared: &Arc<Shared>, server: &Server) -> Option<Arc<Link>> {
    if shared.map().node(server).is_none() {
        shared.replace_map(|old| {
            if old.node(server).is_some() {
                return None;
            }
            let link = new_link(shared, server);
            link.set_asked();
            let mut map = old.clone();
            map.links.push(link);
            Some(map)
        });
    }
    let link = shared.map().node(server).cloned()?;
    link.set_asked();
    Some(link)
}

fn new_link(shared: &Shared, server: &Server) -> Arc<Link> {
    Link::new(shared.next_link(), server.to_string().into(), Place::Node(server.clone()), &shared.stopping)
}

/// `[[first, last, [host, port, …], replica, …], …]`. A host that is null or empty is the one that answered; `?` is one
/// whose name the Cluster does not know, and cannot be reached.
fn ranges_of(answer: &Value, answered: &Server) -> Option<Vec<Range>> {
    let Value::Array(entries) = answer else { return None };
    let range = |entry: &Value| -> Option<Option<Range>> {
        let Value::Array(fields) = entry else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = fields.as_slice() else {
            return None;
        };
        let [host, Value::Int(port), ..] = master.as_slice() else { return None };
        let host = match host {
            Value::Nil => answered.host.clone(),
            host => text(host)?,
        };
        let host = if host.is_empty() { answered.host.clone() } else { host };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        if first > last || last >= SLOTS {
            return None;
        }
        let server = Server { host, port: u16::try_from(*port).ok()? };
        Some((&*server.host != "?").then_some((first, last, server)))
    };
    let ranges = entries.iter().map(range).collect::<Option<Vec<_>>>()?;
    Some(ranges.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_that_is_cut_off_from_the_others_is_not_believed() {
        let info = |epoch: &str| {
            let text = format!("cluster_state:ok\r\ncluster_current_epoch:{epoch}\r\ncluster_my_epoch:1\r\n");
            Value::BulkString(text.into_bytes())
        };
        assert_eq!([epoch_of(&info("7")), epoch_of(&info("x")), epoch_of(&Value::Nil)], [7, 0, 0]);
        let told = |epochs: &[u64]| newest(epochs.iter().copied().zip(0..));
        assert_eq!(
            [told(&[6, 7, 7]), told(&[7, 6]), told(&[0]), told(&[])],
            [Some(1), Some(0), Some(0), None]
        );
    }
}
