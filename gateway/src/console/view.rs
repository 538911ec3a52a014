//! What the page and `tidegate top` show: one JSON object, each second.

use serde::{Deserialize, Serialize};

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Milliseconds since 1970, by the node that serves it.
    pub at_ms: u64,
    /// Which node serves it.
    pub served_by: String,
    pub state: State,
    /// The first line.
    pub sentence: String,
    pub ceiling: Option<Ceiling>,
    pub totals: Totals,
    pub sample: Sample,
    pub nodes: Vec<NodeView>,
    /// Nodes that are not listed: there are more than fit.
    pub nodes_more: u64,
    pub by_subscribers: Vec<ChannelView>,
    pub by_rate: Vec<ChannelView>,
    pub refusals: Vec<Counted>,
    pub closes: Vec<Counted>,
}

/// What the samples before were; the first that a watcher is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Good,
    /// Something is near its ceiling, or a node is not as it should be.
    Warning,
    /// Clients are refused or will be.
    Bad,
}

/// The fullest resource of all nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    pub resource: String,
    pub node: String,
    /// From 0 to 1.
    pub share: f64,
    /// What to do about it.
    pub advice: String,
}

/// Sums over all nodes that report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub nodes: u64,
    pub ready: u64,
    pub connections: u64,
    pub capacity: u64,
    pub subscriptions: u64,
    pub bytes_sent: f64,
    pub received: f64,
    pub dropped: f64,
    pub queued_bytes: u64,
    pub webhook_queue_bytes: u64,
    pub webhook_failures: f64,
    /// The largest lag of any node's Redis.
    pub redis_lag_ms: Option<f64>,
}

/// One point of the plots; rates are of a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub at_ms: u64,
    pub connections: u64,
    pub deliveries: f64,
    pub publishes: f64,
    pub opened: f64,
    pub closed: f64,
    pub refused: f64,
    /// Publish to write, of the last ten seconds; `None` where nothing was delivered.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It was asked to report a moment ago.
    Asked,
    Ready,
    NotReady,
    Draining,
    /// In the registry, but it says nothing: of an older version, or cut off.
    Silent,
    /// No longer in the registry, and it did not drain.
    Lost,
    /// It drained and is gone.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    pub name: String,
    pub address: String,
    pub zone: Option<String>,
    pub version: String,
    pub state: NodeState,
    /// Why it is not ready, what does not work, and since when it is gone.
    pub notes: Vec<String>,
    pub uptime_s: Option<u64>,
    pub connections: u64,
    pub capacity: u64,
    /// Above it routers bring no one to the node (their default, 1.25 times its share).
    pub bound: Option<u64>,
    pub deliveries: f64,
    pub publishes: f64,
    /// Resources by how full they are, the fullest first.
    pub saturation: Vec<(String, f64)>,
    pub redis_connected: Option<String>,
    pub redis_lag_ms: Option<f64>,
    pub webhook_queue_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelView {
    pub app: Option<String>,
    pub name: String,
    /// On all nodes that name it among their largest.
    pub subscribers: u64,
    pub publications: f64,
    pub deliveries: f64,
}

/// How often something happened for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    pub what: String,
    pub reason: String,
    pub meaning: Option<String>,
    pub last_minute: f64,
    pub last_quarter: f64,
    /// Where it happened last, and how long ago.
    pub node: String,
    pub ago_s: u64,
}
