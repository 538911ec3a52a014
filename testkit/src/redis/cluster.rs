//! A Redis Cluster whose slots move and whose masters die.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;

use super::client::{Value, info_field};
use super::server::{RedisServer, RedisServerBuilder};
use crate::process::Process;
use crate::wait::{DEADLINE, eventually, eventually_some};

/// 2^14, fixed by the Cluster specification.
const SLOTS: usize = 16_384;

/// Masters and replicas, ended when it is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    killed: Vec<usize>,
}

/// What a node is at this moment, from CLUSTER SHARDS of any live node.
#[derive(Debug, Clone)]
struct Member {
    id: String,
    port: u16,
    master: bool,
    slots: usize,
}

impl RedisCluster {
    /// Starts `masters` nodes with an equal share of the slots, and `replicas_each` for each of them.
    ///
    /// # Panics
    /// When they do not form a cluster; `redis-cli` asks for at least three masters.
    #[track_caller]
    pub fn start(masters: usize, replicas_each: usize) -> Self {
        Self::of(&RedisServer::builder(), masters, replicas_each)
    }

    /// The same with nodes that are started so.
    ///
    /// # Panics
    /// As [`RedisCluster::start`].
    #[track_caller]
    pub fn of(builder: &RedisServerBuilder, masters: usize, replicas_each: usize) -> Self {
        let start = |_| builder.clone().option("cluster-enabled", "yes").start();
        let nodes: Vec<RedisServer> = (0..masters * (1 + replicas_each)).map(start).collect();
        let cluster = Self { nodes, killed: Vec::new() };
        let addresses = cluster.nodes.iter().map(|node| node.address().to_string());
        let replicas = replicas_each.to_string();
        let create = ["create".to_owned()].into_iter().chain(addresses);
        let options = ["--cluster-replicas", &replicas].map(str::to_owned);
        redis_cli(&create.chain(options).collect::<Vec<_>>());
        cluster.eventually_ok();
        let replicating = |members: &[Member]| members.iter().filter(|member| !member.master).count();
        eventually("the replicas are known", DEADLINE, || {
            cluster.members().is_some_and(|members| replicating(&members) == masters * replicas_each)
        });
        for node in &cluster.nodes {
            eventually("every replica follows", DEADLINE, || match node.info("role").as_deref() {
                Some("master") => true,
                _ => node.info("master_link_status").as_deref() == Some("up"),
            });
            notices_death(node);
        }
        cluster
    }

    /// `redis-cluster://A,B,C` with every node.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis-cluster://{}", addresses.join(","))
    }

    pub fn nodes(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// The address of the `index`th live master, in the order in which the nodes were started.
    ///
    /// # Panics
    /// When there are not so many.
    #[track_caller]
    pub fn master(&self, index: usize) -> SocketAddr {
        self.node_of(&self.master_member(index)).1.address()
    }

    /// Moves `slots` slots from one master to another with all their keys, while traffic goes on. Waits until every
    /// node has heard of it.
    ///
    /// # Panics
    /// When `redis-cli` fails.
    #[track_caller]
    pub fn move_slots(&mut self, from: usize, to: usize, slots: usize) {
        let (from, to) = (self.master_member(from), self.master_member(to));
        let entry = self.node_of(&from).1.address().to_string();
        let count = slots.to_string();
        let reshard = ["reshard", &entry, "--cluster-from", &from.id, "--cluster-to", &to.id];
        let options = ["--cluster-slots", &count, "--cluster-yes"];
        redis_cli(&reshard.into_iter().chain(options).map(str::to_owned).collect::<Vec<_>>());
        let expected = to.slots + slots;
        let heard = |node: &RedisServer| {
            let members = members_as_seen_by(node)?;
            members.into_iter().find(|member| member.id == to.id).map(|member| member.slots)
        };
        for node in self.live() {
            eventually("every node has heard of the move", DEADLINE, || heard(node) == Some(expected));
        }
        self.eventually_ok();
    }

    /// Kills the `index`th master and, when it has a replica, waits until that has taken over. Gives the address of
    /// the dead one.
    ///
    /// # Panics
    /// When nobody takes over.
    #[track_caller]
    pub fn kill_master(&mut self, index: usize) -> SocketAddr {
        let member = self.master_member(index);
        let has_replicas = self.nodes.len() > self.master_members().len();
        let (position, _) = self.node_of(&member);
        let node = self.nodes.get_mut(position).expect("the index of a node");
        let address = node.address();
        node.kill();
        self.killed.push(position);
        if has_replicas {
            eventually("a replica has taken over", DEADLINE, || {
                self.live().all(|node| {
                    members_as_seen_by(node)
                        .is_some_and(|members| slots_of_others(&members, &member.id) == SLOTS)
                })
            });
            self.eventually_ok();
        }
        address
    }

    /// Starts all nodes again that were killed, and waits until the cluster is whole.
    #[track_caller]
    pub fn revive(&mut self) {
        for index in std::mem::take(&mut self.killed) {
            let node = self.nodes.get_mut(index).expect("the index of a node");
            node.restart();
            notices_death(node);
        }
        self.eventually_ok();
    }

    /// Waits until every live node says that all slots are served.
    #[track_caller]
    pub fn eventually_ok(&self) {
        for node in self.live() {
            let what = format!("cluster_state:ok at {}", node.address());
            eventually(&what, DEADLINE, || {
                let info = node.try_client().and_then(|mut client| client.command(&["CLUSTER", "INFO"]));
                info.is_ok_and(|info| info_field(&info.text(), "cluster_state").as_deref() == Some("ok"))
            });
        }
    }

    fn live(&self) -> impl Iterator<Item = &RedisServer> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(index, _)| !self.killed.contains(index)).map(|(_, node)| node)
    }

    fn members(&self) -> Option<Vec<Member>> {
        self.live().find_map(members_as_seen_by)
    }

    /// Live masters with slots, in the order of the nodes.
    #[track_caller]
    fn master_members(&self) -> Vec<Member> {
        let members = eventually_some("a node tells the members", DEADLINE, || self.members());
        let of_node = |node: &RedisServer| {
            let of_port = |member: &&Member| member.port == node.address().port();
            members.iter().find(of_port).filter(|member| member.master && member.slots > 0).cloned()
        };
        self.live().filter_map(of_node).collect()
    }

    #[track_caller]
    fn master_member(&self, index: usize) -> Member {
        let masters = self.master_members();
        let member = masters.get(index).cloned();
        member.unwrap_or_else(|| panic!("no master {index} among {masters:?}"))
    }

    fn node_of(&self, member: &Member) -> (usize, &RedisServer) {
        let mut nodes = self.nodes.iter().enumerate();
        nodes.find(|(_, node)| node.address().port() == member.port).expect("a member is one of the nodes")
    }
}

/// What the nodes thought of each other, when a condition of the test did not come true.
impl Drop for RedisCluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for node in self.live() {
            let view = node.try_client().and_then(|mut client| client.command(&["CLUSTER", "NODES"]));
            match view {
                Ok(view) => eprintln!("{} sees\n{}", node.address(), view.text()),
                Err(error) => eprintln!("{}: {error}", node.address()),
            }
        }
    }
}

/// From now on a node that is silent for 1.5 s is taken for dead. Not before the cluster stands: the same time bounds
/// the handshake of two nodes, which nobody begins again, and `redis-cli` then waits for it for ever.
#[track_caller]
fn notices_death(node: &RedisServer) {
    node.command(&["CONFIG", "SET", "cluster-node-timeout", "1500"]);
}

fn slots_of_others(members: &[Member], id: &str) -> usize {
    members.iter().filter(|member| member.id != id).map(|member| member.slots).sum()
}

fn members_as_seen_by(node: &RedisServer) -> Option<Vec<Member>> {
    let text =
        node.try_client().ok()?.command(&["CLUSTER", "NODES"]).ok().map(|answer: Value| answer.text())?;
    text.lines().map(member).collect()
}

/// `ID IP:PORT@BUS,HOST FLAGS MASTER PING PONG EPOCH LINK [SLOT | FROM-TO | [MIGRATING]]…`
fn member(line: &str) -> Option<Member> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [id, address, flags, _, _, _, _, _, ranges @ ..] = fields.as_slice() else { return None };
    let port = address.split('@').next()?.rsplit(':').next()?.parse().ok()?;
    let whole = ranges.iter().filter(|range| !range.starts_with('['));
    let slots = whole.map(|range| slots_in(range)).sum::<Option<usize>>()?;
    let master = flags.split(',').any(|flag| flag == "master");
    Some(Member { id: (*id).to_owned(), port, master, slots })
}

fn slots_in(range: &str) -> Option<usize> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
}

/// Runs `redis-cli --cluster …` to its end.
#[track_caller]
fn redis_cli(arguments: &[String]) {
    let mut command = Command::new("redis-cli");
    command.arg("--cluster").args(arguments).arg("--cluster-yes");
    let exit = Process::spawn("redis-cli", &mut command).wait(DEADLINE);
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cluster_nodes_are_read() {
        let line =
            "07c3 127.0.0.1:30004@31004,host myself,master - 0 1426 4 connected 0-5460 5462 [93->-77fe]";
        let member = member(line).expect("a member");
        assert_eq!((member.port, member.master, member.slots), (30_004, true, 5_462));
        assert!(super::member("nonsense").is_none());
    }

    #[test]
    fn slots_move_and_a_replica_takes_over() {
        let mut cluster = RedisCluster::start(3, 1);
        let slots = |cluster: &RedisCluster, index| cluster.master_member(index).slots;
        let before = slots(&cluster, 1);
        cluster.move_slots(0, 1, 100);
        assert_eq!(slots(&cluster, 1), before + 100);
        let dead = cluster.kill_master(1);
        assert!((0..3).all(|index| cluster.master(index) != dead));
        cluster.revive();
    }
}
