//! One call: to the link of its tag, and again after a refusal that proves that nothing happened.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, ServerError, ServerErrorKind, Value};
use tokio::time::{Instant, sleep};

use super::cluster;
use super::counters::{Refusal, Repeat};
use super::link::{Link, Way};
use super::live::Sent;
use super::room::WAITING_BYTES_MAX;
use super::shared::Shared;
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

/// Calls; see [`crate::redis::contract::Commands::call`].
pub(super) async fn call(
    shared: &Arc<Shared>,
    tag: &str,
    command: &Cmd,
    way: Way,
) -> Result<Value, BackplaneError> {
    let mut outcome = call_all(shared, tag, std::slice::from_ref(command), way).await;
    outcome.pop().unwrap_or_else(|| Err(BackplaneError::Unavailable("nothing was sent".into())))
}

/// Calls in their order; see [`crate::redis::contract::Commands::call_all`].
pub(super) async fn call_all(
    shared: &Arc<Shared>,
    tag: &str,
    commands: &[Cmd],
    way: Way,
) -> Vec<Result<Value, BackplaneError>> {
    let mut done = Vec::with_capacity(commands.len());
    let mut pauses = Pauses::new();
    let mut refusal: Option<Box<str>> = None;
    let mut there: Option<Arc<Link>> = None;
    loop {
        let left: Vec<&Cmd> = commands[done.len()..].iter().collect();
        let asking = there.is_some();
        let Some(link) = there.take().or_else(|| shared.link_of(tag)) else {
            if refusal.is_some() && pauses.pause().await {
                continue;
            }
            let why = refusal.unwrap_or_else(|| "no server of the Cluster holds the slot".into());
            return fill(done, commands.len(), &BackplaneError::Unavailable(why));
        };
        // ASKING speaks for one command.
        let sent = link.send(if asking { &left[..1] } else { &left }, way, asking).await;
        match settle(shared, tag, &link, sent, &mut done) {
            None if done.len() == commands.len() => return done,
            None => {}
            Some(Left::Never) => match &refusal {
                // Its new place may be on the way up.
                Some(_) => {}
                None => {
                    return fill(done, commands.len(), &BackplaneError::Unavailable(link.unavailable()));
                }
            },
            Some(Left::Refused(error, next)) => {
                let (repeat, target) = match next {
                    Next::Again(repeat) => (repeat, None),
                    Next::There(repeat, target) => (repeat, Some(target)),
                };
                link.counts.add_repeat(repeat);
                refusal = Some(sentence(&error).into());
                let is_redirected = target.is_some() || repeat == Repeat::Moved;
                there = target;
                if is_redirected && pauses.may_follow_at_once() {
                    continue;
                }
            }
        }
        if done.len() < commands.len() && refusal.is_some() && !pauses.pause().await {
            return fill(done, commands.len(), &BackplaneError::Unavailable(refusal.unwrap_or_default()));
        }
    }
}

/// Why a call is to be made again.
enum Left {
    /// It was not sent.
    Never,
    Refused(ServerError, Next),
}

/// Takes the outcomes in, up to those at the end that are to be sent again: one that stands before another that was
/// accepted is not, since it would come behind it.
fn settle(
    shared: &Arc<Shared>,
    tag: &str,
    link: &Arc<Link>,
    sent: Vec<Sent>,
    done: &mut Vec<Result<Value, BackplaneError>>,
) -> Option<Left> {
    let may_have_run = |sent: &Sent| matches!(sent, Sent::Answer(_) | Sent::Unknown(_));
    let keep = sent.iter().rposition(may_have_run).map_or(0, |last| last + 1);
    for (nth, sent) in sent.into_iter().enumerate() {
        let outcome = match sent {
            Sent::Answer(answer) => Ok(answer),
            Sent::Unknown(trouble) => Err(unconfirmed(link, &trouble)),
            Sent::NoRoom => Err(BackplaneError::Overloaded(
                format!("{} MiB wait for answers of Redis at {}", WAITING_BYTES_MAX >> 20, link.name).into(),
            )),
            Sent::Never(_) if nth < keep => Err(BackplaneError::Unavailable(link.unavailable())),
            Sent::Never(_) => return Some(Left::Never),
            Sent::Refused(error) => match next_of(shared, tag, link, &error) {
                None => Err(refused(link, &error)),
                Some(_) if nth < keep => Err(BackplaneError::Unavailable(sentence(&error).into())),
                Some(next) => return Some(Left::Refused(error, next)),
            },
        };
        done.push(outcome);
    }
    None
}

fn fill(
    mut done: Vec<Result<Value, BackplaneError>>,
    count: usize,
    error: &BackplaneError,
) -> Vec<Result<Value, BackplaneError>> {
    done.resize_with(count, || Err(error.clone()));
    done
}

/// How long a call goes on trying.
struct Pauses {
    give_up_at: Instant,
    pause: Duration,
    redirections: u32,
}

impl Pauses {
    fn new() -> Self {
        Self { give_up_at: Instant::now() + REPEAT_DEADLINE, pause: PAUSES[0], redirections: 0 }
    }

    fn may_follow_at_once(&mut self) -> bool {
        self.redirections += 1;
        self.redirections <= REDIRECTIONS_AT_ONCE
    }

    /// False: the time is over.
    async fn pause(&mut self) -> bool {
        if Instant::now() + self.pause >= self.give_up_at {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES[1]);
        true
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
            if let Some(asked) = target().and_then(|server| cluster::asked(shared, &server)) {
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

fn unconfirmed(link: &Link, trouble: &Trouble) -> BackplaneError {
    BackplaneError::Unconfirmed(format!("Redis at {}: {trouble}", link.name).into())
}

/// Nothing happened in either case.
fn refused(link: &Link, error: &ServerError) -> BackplaneError {
    if error.code() != "NOSCRIPT" {
        link.note_refusal(error);
    }
    let answer = sentence(error).into();
    match Refusal::of(error.code()).passes() {
        true => BackplaneError::Overloaded(answer),
        false => BackplaneError::Refused(answer),
    }
}
