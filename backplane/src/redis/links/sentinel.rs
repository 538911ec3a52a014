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
            let answer = ask(&mut connection, redis::cmd("SENTINEL").arg("MASTER").arg(name)).await;
            if matches!(answer, Ok(_) | Err(Trouble::Refused(_))) {
                *kept = Some(connection);
            }
            match answer {
                // "ERR No such master with that name"; what is forbidden has another code.
                Err(Trouble::Refused(error)) if error.code() == "ERR" => {
                    Err(Trouble::UnknownMaster(name.into()))
                }
                Err(trouble) => Err(trouble),
                Ok(answer) => Master::of(&answer).ok_or(Trouble::Protocol),
            }
        };
        let late = Trouble::Late { what: "answer", within: ANSWER_DEADLINE };
        timeout(ANSWER_DEADLINE, question).await.unwrap_or(Err(late))
    }
}

impl std::fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sentinel").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Master {
    fn of(answer: &Value) -> Option<Self> {
        let Value::Map(pairs) = answer else { return None };
        let field = |name: &str| {
            let pair = pairs.iter().find(|(key, _)| text(key).as_deref() == Some(name))?;
            text(&pair.1)
        };
        let server = Server { host: field("ip")?, port: field("port")?.parse().ok()? };
        Some(Self { server, config_epoch: field("config-epoch")?.parse().ok()? })
    }
}
