//! Asks the Sentinels where the master is.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::dial::{Connection, Dialer, ask, text};
use crate::redis::error::{SentinelTrouble, Trouble};
use crate::redis::url::Server;

/// For one Sentinel to answer, connecting included.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// For the others, once one has answered.
const OTHERS_DEADLINE: Duration = Duration::from_millis(200);

/// The Sentinels of one master.
#[derive(Debug)]
pub(crate) struct Sentinels {
    name: Box<str>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    server: Server,
    /// Kept between questions; taken out while one is asked, so that a question that was given up leaves none.
    connection: Mutex<Option<Connection>>,
}

/// What a Sentinel knows.
#[derive(Debug, PartialEq, Eq)]
struct Master {
    server: Server,
    /// Grows with every failover: the highest one is the newest knowledge.
    config_epoch: u64,
}

impl Sentinels {
    pub(crate) fn new(name: Box<str>, servers: &[Server]) -> Self {
        let sentinel = |server: &Server| Sentinel { server: server.clone(), connection: Mutex::new(None) };
        Self { name, sentinels: servers.iter().map(sentinel).collect() }
    }

    /// The master's address, by the newest knowledge among the Sentinels that answer.
    pub(crate) async fn master(&self, dialer: &Dialer) -> Result<Server, Trouble> {
        let asked = self.sentinels.iter().map(|sentinel| async move {
            let answer = sentinel.master(&self.name, dialer).await;
            answer.map_err(|trouble| SentinelTrouble { server: sentinel.server.clone(), trouble })
        });
        let mut answers: FuturesUnordered<_> = asked.collect();
        let mut newest: Option<Master> = None;
        let mut trouble = None;
        let mut until = Instant::now() + ANSWER_DEADLINE;
        while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
            match answer {
                Ok(master) => {
                    until = until.min(Instant::now() + OTHERS_DEADLINE);
                    if newest.as_ref().is_none_or(|newest| newest.config_epoch < master.config_epoch) {
                        newest = Some(master);
                    }
                }
                Err(error) => trouble = Some(error),
            }
        }
        let late = || SentinelTrouble {
            server: self.sentinels[0].server.clone(),
            trouble: Trouble::Late { what: "answer", within: ANSWER_DEADLINE },
        };
        newest
            .map(|master| master.server)
            .ok_or_else(|| Trouble::Sentinels(Box::new(trouble.unwrap_or_else(late))))
    }
}

impl Sentinel {
    async fn master(&self, name: &str, dialer: &Dialer) -> Result<Master, Trouble> {
        let question = async {
            let mut kept = self.connection.lock().await;
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => dialer.sentinel(&self.server).await?,
            };
            let answers = known_of(&mut connection, name).await;
            if matches!(answers, Ok(_) | Err(Trouble::Refused(_))) {
                *kept = Some(connection);
            }
            match answers {
                // "ERR No such master with that name"; what is forbidden has another code.
                Err(Trouble::Refused(error)) if error.code() == "ERR" => {
                    Err(Trouble::UnknownMaster(name.into()))
                }
                Err(trouble) => Err(trouble),
                Ok([master, address]) => Master::of(&master, &address).ok_or(Trouble::Protocol),
            }
        };
        let late = Trouble::Late { what: "answer", within: ANSWER_DEADLINE };
        timeout(ANSWER_DEADLINE, question).await.unwrap_or(Err(late))
    }
}

/// Two answers, since a Sentinel that fails over has the new epoch beside the old address in the first for a second or so: only
/// the other has the address that goes with it. In this order a new address may come with an old epoch, and no old one
/// with a new epoch.
async fn known_of(connection: &mut Connection, name: &str) -> Result<[Value; 2], Trouble> {
    let master = ask(connection, redis::cmd("SENTINEL").arg("MASTER").arg(name)).await?;
    let address = ask(connection, redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name)).await?;
    Ok([master, address])
}

impl std::fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sentinel").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Master {
    fn of(master: &Value, address: &Value) -> Option<Self> {
        let (Value::Map(pairs), Value::Array(address)) = (master, address) else { return None };
        let is_epoch = |key: &Value| text(key).as_deref() == Some("config-epoch");
        let (_, config_epoch) = pairs.iter().find(|(key, _)| is_epoch(key))?;
        let [host, port] = address.as_slice() else { return None };
        let server = Server { host: text(host)?, port: text(port)?.parse().ok()? };
        Some(Self { server, config_epoch: text(config_epoch)?.parse().ok()? })
    }
}
