//! What this node's user may do is tried before a session begins, so that a right that is missing is named and not found
//! by clients. The scripts are loaded on the way: a server that does not know one would have calls sent twice, and those
//! that are under way at the same time change places.

use redis::{Cmd, Value};

use super::dial::{Connection, ask, text};
use super::replication;
use crate::redis::error::{Trouble, sentence};

/// Tries every command that is used, on a key that ends by itself.
const TRIAL: &str = include_str!("../scripts/rights.lua");

/// `probe`: a pub/sub channel and a key of this node's own; a Cluster node without slots has none.
pub(super) async fn check(
    connection: &mut Connection,
    scripts: &[Box<str>],
    probe: Option<&[u8]>,
    publish: &str,
    replicas: u8,
) -> Result<(), Trouble> {
    if replicas > 0 {
        right(replication::check(connection).await)?;
    }
    for script in scripts {
        right(ask(connection, redis::cmd("SCRIPT").arg("LOAD").arg(&**script)).await)?;
    }
    let Some(probe) = probe else { return Ok(()) };
    let loaded = right(ask(connection, redis::cmd("SCRIPT").arg("LOAD").arg(TRIAL)).await)?;
    let Value::BulkString(sha) = loaded else { return Err(Trouble::Protocol) };
    let mut trial = Cmd::new();
    trial.arg("EVALSHA").arg(sha).arg(1).arg([probe, b":trial"].concat()).arg(publish).arg(probe);
    match right(ask(connection, &trial).await)? {
        Value::Array(refused) => match refused.as_slice() {
            [Value::BulkString(command), Value::BulkString(answer)] => {
                let [command, answer] = [command, answer].map(|bytes| String::from_utf8_lossy(bytes));
                Err(Trouble::Rights(format!("{command}: {answer}").into()))
            }
            _ => Ok(()),
        },
        _ => Err(Trouble::Protocol),
    }
}

/// The rule by which the server would take away what nodes and presence hold, which has no expiry; `None` where it has no
/// such rule, or this node's user may not ask.
pub(super) async fn evicting_policy(connection: &mut Connection) -> Result<Option<Box<str>>, Trouble> {
    let info = match ask(connection, redis::cmd("INFO").arg("memory")).await {
        Ok(info) => text(&info).unwrap_or_default(),
        Err(Trouble::Refused(_)) => return Ok(None),
        Err(trouble) => return Err(trouble),
    };
    let field = |name: &str| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
    let is_bounded = field("maxmemory:").is_some_and(|bytes| bytes != "0");
    let policy = field("maxmemory_policy:").filter(|policy| is_bounded && policy.starts_with("allkeys-"));
    Ok(policy.map(Into::into))
}

fn right<T>(answer: Result<T, Trouble>) -> Result<T, Trouble> {
    answer.map_err(|trouble| match trouble {
        Trouble::Refused(error) if error.code() == "NOPERM" => Trouble::Rights(sentence(&error).into()),
        other => other,
    })
}
