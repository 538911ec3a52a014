//! A master, two replicas, and three Sentinels that watch them.

use std::net::SocketAddr;

use super::client::{RedisClient, Value};
use super::server::{RedisServer, RedisServerBuilder, loopback};
use crate::wait::{DEADLINE, eventually, eventually_some};

/// The name under which the Sentinels know the master.
pub const SENTINEL_MASTER: &str = "tidegate";

/// Enough that one Sentinel may be lost.
const SENTINELS: usize = 3;
const SERVERS: usize = 3;

/// Six processes, ended when it is dropped.
#[derive(Debug)]
pub struct Sentinel {
    sentinels: Vec<RedisServer>,
    servers: Vec<RedisServer>,
    /// The master that was killed or stopped last.
    lost: Option<SocketAddr>,
}

impl Sentinel {
    /// Starts all and waits until each Sentinel knows all the others and both replicas follow.
    #[track_caller]
    pub fn start() -> Self {
        Self::of(&RedisServer::builder())
    }

    /// The same with servers that are started so.
    #[track_caller]
    pub fn of(builder: &RedisServerBuilder) -> Self {
        let master = builder.clone().start();
        let port = master.address().port().to_string();
        let mut servers = vec![master];
        for _ in 1..SERVERS {
            let replica = builder.clone().following(&servers[0]).start();
            servers.push(replica);
        }
        servers.iter().skip(1).for_each(RedisServer::eventually_follows);
        let watch =
            |(name, value): (&str, &str)| (format!("sentinel {name}"), format!("{SENTINEL_MASTER} {value}"));
        let monitor = format!("127.0.0.1 {port} 2");
        // Away after two seconds, since a busy machine makes a server wait for one; an election that failed is held
        // again after two failover time-outs.
        let settings = [
            ("monitor", monitor.as_str()),
            ("down-after-milliseconds", "2000"),
            ("failover-timeout", "3000"),
        ];
        let start = |_| {
            let builder = settings
                .into_iter()
                .map(watch)
                .fold(RedisServer::builder().sentinel(), |builder, (n, v)| builder.option(&n, &v));
            builder.start()
        };
        let sentinels: Vec<RedisServer> = (0..SENTINELS).map(start).collect();
        let group = Self { sentinels, servers, lost: None };
        group.eventually_known(SENTINELS - 1, SERVERS - 1);
        group
    }

    /// `redis-sentinel://A,B,C/NAME`.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.sentinels.iter().map(|s| s.address().to_string()).collect();
        format!("redis-sentinel://{}/{SENTINEL_MASTER}", addresses.join(","))
    }

    pub fn sentinels(&mut self) -> &mut [RedisServer] {
        &mut self.sentinels
    }

    /// The master and its replicas, in the order in which they were started.
    pub fn servers(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// The server that the Sentinels name as the master.
    ///
    /// # Panics
    /// When they name none.
    #[track_caller]
    pub fn master(&mut self) -> &mut RedisServer {
        let index = self.master_index();
        self.servers.get_mut(index).expect("the index of a server")
    }

    /// Kills the master and waits until the Sentinels name another one that takes writes. Gives its address.
    ///
    /// # Panics
    /// When no other is made master.
    #[track_caller]
    pub fn failover(&mut self) -> SocketAddr {
        let old = self.master();
        old.kill();
        let old = old.address();
        self.next_master(old)
    }

    /// The same with a master that hangs; [`Sentinel::revive`] has it go on.
    ///
    /// # Panics
    /// When no other is made master.
    #[track_caller]
    pub fn failover_of_hung(&mut self) -> SocketAddr {
        let old = self.master();
        old.stop();
        let old = old.address();
        self.next_master(old)
    }

    /// Brings the master back that was lost last. It takes itself for the master until a Sentinel tells it otherwise.
    ///
    /// # Panics
    /// When none was lost.
    #[track_caller]
    pub fn revive(&mut self) {
        let address = self.lost.take().expect("a master was lost");
        let server = self.servers.iter_mut().find(|server| server.address() == address);
        let server = server.expect("the address of a server");
        if server.process().try_wait().is_some() {
            server.restart();
        } else {
            server.cont();
        }
    }

    /// Waits until all servers but the master follow it. A Sentinel takes 10 to 20 s to turn an old master round.
    #[track_caller]
    pub fn eventually_whole(&self) {
        eventually("one master and its replicas", DEADLINE, || {
            let up = |server: &&RedisServer| server.info("master_link_status").as_deref() == Some("up");
            self.servers.iter().filter(up).count() == SERVERS - 1
        });
    }

    #[track_caller]
    fn next_master(&mut self, old: SocketAddr) -> SocketAddr {
        self.lost = Some(old);
        eventually_some("another master", DEADLINE, || {
            let named: Vec<Option<SocketAddr>> = self.sentinels.iter().map(named_master).collect();
            let address = named.first().copied().flatten().filter(|address| *address != old)?;
            if named.iter().any(|other| *other != Some(address)) {
                return None;
            }
            let server = self.servers.iter().find(|server| server.address() == address)?;
            (server.info("role")? == "master").then_some(address)
        })
    }

    #[track_caller]
    fn master_index(&self) -> usize {
        eventually_some("the Sentinels name a master", DEADLINE, || {
            let address = self.sentinels.iter().find_map(named_master)?;
            self.servers.iter().position(|server| server.address() == address)
        })
    }

    #[track_caller]
    fn eventually_known(&self, sentinels: usize, replicas: usize) {
        for sentinel in &self.sentinels {
            eventually("each Sentinel knows the others", DEADLINE, || {
                let Some(master) = ask(sentinel, &["SENTINEL", "MASTER", SENTINEL_MASTER]) else {
                    return false;
                };
                master.field("num-other-sentinels") == Some(sentinels.to_string())
                    && master.field("num-slaves") == Some(replicas.to_string())
            });
        }
    }
}

fn named_master(sentinel: &RedisServer) -> Option<SocketAddr> {
    let answer = ask(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SENTINEL_MASTER])?;
    Some(loopback(answer.elements().get(1)?.text().parse().ok()?))
}

/// `None` while it does not answer: a test may have killed it.
fn ask(sentinel: &RedisServer, words: &[&str]) -> Option<Value> {
    RedisClient::connect(sentinel.address()).ok()?.command(words).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_master_takes_over_and_the_old_one_follows() {
        let mut group = Sentinel::start();
        group.master().command(&["SET", "a", "1"]);
        assert_eq!(group.master().command(&["WAIT", "2", "10000"]), Value::Integer(2));
        let next = group.failover();
        assert_ne!(Some(next), group.lost);
        assert_eq!(group.master().command(&["GET", "a"]).text(), "1");
        group.revive();
        group.eventually_whole();
        let next = group.failover_of_hung();
        assert_ne!(Some(next), group.lost);
        group.revive();
    }
}
