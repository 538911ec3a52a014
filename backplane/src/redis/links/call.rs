//! One call: to the link of its tag, and again after a refusal that proves that nothing happened.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ServerError, ServerErrorKind, Value};
use tokio::time::{Instant, sleep};

use super::Shared;
use super::counters::Repeat;
use super::link::{Link, Sent};
use crate::BackplaneError;
use crate::redis::error::{Trouble, sentence};
use crate::redis::slot::slot_of;
use crate::redis::url::Server;

/// After so long nothing is sent again.
const REPEAT_DEADLINE: Duration = Duration::from_secs(2);

/// Between a refusal and the next attempt: a slot of many keys moves in steps of some milliseconds, a failover in
/// hundreds. Grows from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// Redirections that are followed without a pause. The map of a node whose view is old leads back and forth.
const REDIRECTIONS_AT_ONCE: u32 = 3;

/// What to do next.
enum Next {
    /// Again, wherever the tag lives now.
    Again(Repeat),
    /// Again at this link, as the node that was asked said.
    There(Repeat, Arc<Link>),
}

/// Calls; see [`crate::redis::contract::Commands::call`]. `replicated`: a success says that the replicas have it.
pub(super) async fn call(
    shared: &Arc<Shared>,
    tag: &str,
    command: &Cmd,
    replicated: bool,
) -> Result<Value, BackplaneError> {
    let give_up_at = Instant::now() + REPEAT_DEADLINE;
    let mut pause = PAUSES[0];
    let mut redirections = 0;
    let mut refusal: Option<Box<str>> = None;
    let mut there: Option<Arc<Link>> = None;
    loop {
        let asking = there.is_some();
        let link = there.take().or_else(|| shared.link_of(tag));
        let sent = match &link {
            Some(link) => link.send(command, asking, replicated).await,
            None => Sent::Never("no server of the Cluster holds the slot".into()),
        };
        let mut at_once = false;
        match sent {
            Sent::Answer(answer) => return Ok(answer),
            Sent::Unknown(trouble) => return Err(unconfirmed(link.as_deref(), &trouble)),
            Sent::Never(why) if refusal.is_none() => return Err(BackplaneError::Unavailable(why)),
            // Its new place may be on the way up.
            Sent::Never(_) => {}
            Sent::Refused(error) => {
                let Some(link) = link else { continue };
                let next = next_of(shared, tag, &link, &error).ok_or_else(|| refused(&error))?;
                let (repeat, target) = match next {
                    Next::Again(repeat) => (repeat, None),
                    Next::There(repeat, target) => (repeat, Some(target)),
                };
                link.counts.add_repeat(repeat);
                redirections += 1;
                at_once =
                    redirections <= REDIRECTIONS_AT_ONCE && (target.is_some() || repeat == Repeat::Moved);
                there = target;
                refusal = Some(sentence(&error).into());
            }
        }
        if at_once {
            continue;
        }
        if Instant::now() + pause >= give_up_at {
            return Err(BackplaneError::Unavailable(refusal.unwrap_or_default()));
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// Learns from a refusal. `None`: it is for good, or not to be repeated here.
fn next_of(shared: &Arc<Shared>, tag: &str, link: &Arc<Link>, error: &ServerError) -> Option<Next> {
    let repeat = match error.kind()? {
        ServerErrorKind::Moved => Repeat::Moved,
        ServerErrorKind::Ask => Repeat::Ask,
        ServerErrorKind::TryAgain => Repeat::TryAgain,
        ServerErrorKind::ClusterDown => Repeat::ClusterDown,
        ServerErrorKind::BusyLoading => Repeat::Loading,
        ServerErrorKind::ReadOnly => Repeat::ReadOnly,
        ServerErrorKind::MasterDown => Repeat::MasterDown,
        _ => return None,
    };
    let target = || redirection(error, link);
    match repeat {
        Repeat::Moved => {
            if let Some(server) = target() {
                shared.moved(slot_of(tag.as_bytes()), &server);
            }
            shared.refresh();
        }
        Repeat::Ask => {
            if let Some(asked) = target().and_then(|server| shared.asked(&server)) {
                return Some(Next::There(repeat, asked));
            }
        }
        Repeat::ReadOnly | Repeat::MasterDown => {
            // The server is a replica now. A name or the Sentinels may lead to the new master.
            if let Some(live) = link.live() {
                live.give_up(Trouble::Replica);
            }
            shared.refresh();
        }
        Repeat::TryAgain => {}
        Repeat::ClusterDown | Repeat::Loading => shared.refresh(),
    }
    Some(Next::Again(repeat))
}

/// `MOVED 3999 127.0.0.1:6381`: the address; an empty host is the one that answered.
fn redirection(error: &ServerError, link: &Link) -> Option<Server> {
    let address = error.details()?.split_ascii_whitespace().nth(1)?;
    let (host, port) = address.rsplit_once(':')?;
    let host = match host {
        "" => {
            link.away().and_then(|away| away.server).or_else(|| link.live().map(|l| l.server.clone()))?.host
        }
        host => host.trim_start_matches('[').trim_end_matches(']').into(),
    };
    Some(Server { host, port: port.parse().ok()? })
}

fn unconfirmed(link: Option<&Link>, trouble: &Trouble) -> BackplaneError {
    let name = link.map_or("?", |link| &link.name);
    BackplaneError::Unconfirmed(format!("Redis at {name}: {trouble}").into())
}

/// Nothing happened in either case. What the server lacks (replicas, memory, its disk, time) may be there later.
fn refused(error: &ServerError) -> BackplaneError {
    let answer = sentence(error).into();
    match error.code() {
        "NOREPLICAS" | "OOM" | "MISCONF" | "BUSY" => BackplaneError::Unavailable(answer),
        _ => BackplaneError::Refused(answer),
    }
}
