//! What there is to compare: groups of measures, the scenarios that yield them, who takes part, how much of it.

use std::time::Duration;

use serde::Serialize;

use super::servers::Server;

/// Measures that share a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// One node against servers of its kind.
    Gateway,
    /// Nodes that are joined by Redis.
    Redis,
    /// The proxy before the nodes.
    Router,
    /// More and more nodes.
    Scaling,
    /// The Pusher protocol beside another server of it.
    Pusher,
    /// Centrifugo's protocol beside the raw one.
    Centrifuge,
    /// Plain HTTP beside servers of it.
    Ledger,
    /// Sockets that change hands between processes of one machine, and gateways that are filled.
    Handover,
    /// Questions to an application.
    Hooks,
}

/// One row of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    Memory,
    MemorySettled,
    FanoutCpu,
    FanoutRate,
    AcceptCpu,
    PublishRate,
    EchoRate,
    Pause,
    IdleCpu,
    MemoryThree,
    MemoryThreeSse,
    MemoryPresence,
    RedisLatency,
    RedisReceiveCpu,
    RedisReceiveCpuLoaded,
    RedisFanoutRate,
    RedisPublishRate,
    RedisBatchRate,
    RedisKeptRate,
    RedisKeptBatchRate,
    RedisIdleCommands,
    RedisIdleScripts,
    RedisBack,
    ProxyMemory,
    ProxyMessageCpu,
    ProxyHandshakeCpu,
    PlacementTime,
    PlacementBalance,
    PlacementMoved,
    ScalingHeld,
    ScalingMemory,
    ScalingNodeCpu,
    ScalingAllCpu,
    ScalingBalance,
    ScalingLost,
    PusherMemory,
    PusherConnectCpu,
    PusherDeliveryCpu,
    PusherEventsRate,
    CentrifugeMemory,
    CentrifugeConnectCpu,
    CentrifugeDeliveryCpu,
    CentrifugeDeliveryCpuProtobuf,
    CentrifugePublishRate,
    CentrifugeRecoveryTime,
    CentrifugeRecoveryMemory,
    CentrifugeRecoveryReads,
    AnswerRate,
    AnswerRateTwo,
    AnswerCpu,
    AnswerCpuTwo,
    AnswerMean,
    AnswerP99,
    AnswerWorst,
    AnswerMemory,
    PostRate,
    PostRateTwo,
    PostCpu,
    PostCpuTwo,
    PostMean,
    PostP99,
    PostWorst,
    PostMemory,
    HandoverCpu,
    HandoverMessageCpu,
    FillTime,
    FillBalance,
    FillNeedless,
    FillLost,
    RollTime,
    RollBalance,
    RollLost,
    HookConnectCpu,
    HookMessageCpu,
    HookMessageRate,
    HookOthersP99,
}

/// What servers have to be started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Fanout,
    Rest,
    Echo,
    Idle,
    Kinds,
    RedisLatency,
    RedisReceive,
    RedisFanout,
    RedisPublish,
    RedisKept,
    RedisMany,
    Proxy,
    Placement,
    Scaling,
    PusherIdle,
    PusherEvents,
    CentrifugeIdle,
    CentrifugeDelivery,
    CentrifugePublish,
    CentrifugeRecovery,
    LedgerAnswer,
    LedgerPost,
    Handover,
    Filling,
    Hooks,
}

impl Group {
    pub const ALL: [Self; 9] = [
        Self::Gateway,
        Self::Redis,
        Self::Router,
        Self::Scaling,
        Self::Pusher,
        Self::Centrifuge,
        Self::Ledger,
        Self::Handover,
        Self::Hooks,
    ];

    /// Everybody who takes part, in the order of the table.
    #[must_use]
    pub fn servers(self) -> &'static [Server] {
        match self {
            Self::Gateway => &[Server::Tidegate, Server::Before, Server::Floor, Server::Bun, Server::Ws],
            Self::Redis => &[Server::Tidegate, Server::OneNode, Server::SocketIo, Server::RedisBenchmark],
            Self::Router => &[Server::Tidegate, Server::Haproxy, Server::Nginx],
            Self::Hooks => &[Server::Tidegate],
            Self::Pusher => &[Server::Tidegate, Server::Sockudo],
            Self::Centrifuge => &[Server::Tidegate, Server::Raw],
            Self::Ledger => &[Server::Tidegate, Server::Bun, Server::NodeHttp, Server::GoHttp],
            Self::Handover => &[Server::Tidegate, Server::Direct, Server::Proxied],
            Self::Scaling => &[
                Server::Gateways1,
                Server::Gateways2,
                Server::Gateways4,
                Server::Gateways8,
                Server::Proxied8,
            ],
        }
    }
}

impl Measure {
    /// The group whose table it stands in.
    #[must_use]
    pub fn group(self) -> Group {
        let scenario = Scenario::ALL.into_iter().find(|scenario| scenario.measures().contains(&self));
        scenario.map_or(Group::Gateway, Scenario::group)
    }
}

impl Scenario {
    pub const ALL: [Self; 25] = [
        Self::Fanout,
        Self::Rest,
        Self::Echo,
        Self::Idle,
        Self::Kinds,
        Self::RedisLatency,
        Self::RedisReceive,
        Self::RedisFanout,
        Self::RedisPublish,
        Self::RedisKept,
        Self::RedisMany,
        Self::Proxy,
        Self::Placement,
        Self::Scaling,
        Self::PusherIdle,
        Self::PusherEvents,
        Self::CentrifugeIdle,
        Self::CentrifugeDelivery,
        Self::CentrifugePublish,
        Self::CentrifugeRecovery,
        Self::LedgerAnswer,
        Self::LedgerPost,
        Self::Handover,
        Self::Filling,
        Self::Hooks,
    ];

    #[must_use]
    pub fn group(self) -> Group {
        match self {
            Self::Fanout | Self::Rest | Self::Echo | Self::Idle | Self::Kinds => Group::Gateway,
            Self::RedisLatency
            | Self::RedisReceive
            | Self::RedisFanout
            | Self::RedisPublish
            | Self::RedisKept
            | Self::RedisMany => Group::Redis,
            Self::Proxy | Self::Placement => Group::Router,
            Self::Scaling => Group::Scaling,
            Self::PusherIdle | Self::PusherEvents => Group::Pusher,
            Self::CentrifugeIdle
            | Self::CentrifugeDelivery
            | Self::CentrifugePublish
            | Self::CentrifugeRecovery => Group::Centrifuge,
            Self::LedgerAnswer | Self::LedgerPost => Group::Ledger,
            Self::Handover | Self::Filling => Group::Handover,
            Self::Hooks => Group::Hooks,
        }
    }

    /// The measures it yields.
    #[must_use]
    pub fn measures(self) -> &'static [Measure] {
        match self {
            Self::Fanout => &[Measure::FanoutCpu, Measure::FanoutRate],
            Self::Rest => &[Measure::PublishRate],
            Self::Echo => &[Measure::EchoRate],
            Self::Idle => &[
                Measure::AcceptCpu,
                Measure::Memory,
                Measure::MemorySettled,
                Measure::IdleCpu,
                Measure::Pause,
            ],
            Self::Kinds => &[Measure::MemoryThree, Measure::MemoryThreeSse, Measure::MemoryPresence],
            Self::RedisLatency => &[Measure::RedisLatency],
            Self::RedisReceive => &[Measure::RedisReceiveCpu, Measure::RedisReceiveCpuLoaded],
            Self::RedisFanout => &[Measure::RedisFanoutRate],
            Self::RedisPublish => &[Measure::RedisPublishRate, Measure::RedisBatchRate],
            Self::RedisKept => &[Measure::RedisKeptRate, Measure::RedisKeptBatchRate],
            Self::RedisMany => &[Measure::RedisIdleCommands, Measure::RedisIdleScripts, Measure::RedisBack],
            Self::Proxy => &[Measure::ProxyHandshakeCpu, Measure::ProxyMemory, Measure::ProxyMessageCpu],
            Self::Placement => &[Measure::PlacementTime, Measure::PlacementBalance, Measure::PlacementMoved],
            Self::Scaling => &[
                Measure::ScalingHeld,
                Measure::ScalingMemory,
                Measure::ScalingNodeCpu,
                Measure::ScalingAllCpu,
                Measure::ScalingBalance,
                Measure::ScalingLost,
            ],
            Self::PusherIdle => &[Measure::PusherConnectCpu, Measure::PusherMemory],
            Self::PusherEvents => &[Measure::PusherDeliveryCpu, Measure::PusherEventsRate],
            Self::CentrifugeIdle => &[Measure::CentrifugeMemory, Measure::CentrifugeConnectCpu],
            Self::CentrifugeDelivery => {
                &[Measure::CentrifugeDeliveryCpu, Measure::CentrifugeDeliveryCpuProtobuf]
            }
            Self::CentrifugePublish => &[Measure::CentrifugePublishRate],
            Self::CentrifugeRecovery => &[
                Measure::CentrifugeRecoveryTime,
                Measure::CentrifugeRecoveryMemory,
                Measure::CentrifugeRecoveryReads,
            ],
            Self::Hooks => &[
                Measure::HookConnectCpu,
                Measure::HookMessageCpu,
                Measure::HookMessageRate,
                Measure::HookOthersP99,
            ],
            Self::LedgerAnswer => &[
                Measure::AnswerRate,
                Measure::AnswerRateTwo,
                Measure::AnswerCpu,
                Measure::AnswerCpuTwo,
                Measure::AnswerMean,
                Measure::AnswerP99,
                Measure::AnswerWorst,
                Measure::AnswerMemory,
            ],
            Self::LedgerPost => &[
                Measure::PostRate,
                Measure::PostRateTwo,
                Measure::PostCpu,
                Measure::PostCpuTwo,
                Measure::PostMean,
                Measure::PostP99,
                Measure::PostWorst,
                Measure::PostMemory,
            ],
            Self::Handover => &[Measure::HandoverCpu, Measure::HandoverMessageCpu],
            Self::Filling => &[
                Measure::FillTime,
                Measure::FillBalance,
                Measure::FillNeedless,
                Measure::FillLost,
                Measure::RollTime,
                Measure::RollBalance,
                Measure::RollLost,
            ],
        }
    }

    /// Who takes part in it.
    #[must_use]
    pub fn servers(self) -> &'static [Server] {
        match self {
            Self::RedisLatency | Self::RedisFanout => &[Server::Tidegate, Server::OneNode, Server::SocketIo],
            Self::Kinds => &[Server::Tidegate, Server::Before],
            Self::RedisReceive
            | Self::RedisMany
            | Self::Placement
            | Self::CentrifugeRecovery
            | Self::Filling => &[Server::Tidegate],
            Self::RedisPublish | Self::RedisKept => &[Server::Tidegate, Server::RedisBenchmark],
            _ => self.group().servers(),
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sizes {
    pub idle_connections: u32,
    pub subscribers: u32,
    pub warmup: Duration,
    pub window: Duration,
    pub settle: Duration,
    pub idle: Duration,
    /// Publications whose way from node to node is timed, one after the other.
    pub timed_publications: u32,
    /// Requests of `redis-benchmark`, unpipelined and pipelined.
    pub redis_requests: [u32; 2],
    /// Subscribed channels to which nothing is published.
    pub idle_channels: u32,
    /// Connections held by each gateway of the scaling table.
    pub per_gateway: u32,
    pub broadcasts: u32,
    /// Clients of the gateways that are filled.
    pub fill_clients: u32,
    /// Of the router: each client is asked back once in it on average.
    pub fill_period: Duration,
    /// Of the gateways that are restarted.
    pub drain_period: Duration,
}

impl Sizes {
    /// The sizes of the table. Two heartbeat periods of 25 s idle, so that every connection is pinged twice.
    /// 15,000 per gateway leave room for the bound of 1.25 under 20,000 descriptors.
    pub const FULL: Self = Self {
        idle_connections: 15_000,
        subscribers: 5_000,
        warmup: Duration::from_secs(1),
        window: Duration::from_secs(4),
        settle: Duration::from_secs(10),
        idle: Duration::from_secs(50),
        timed_publications: 5_000,
        redis_requests: [400_000, 4_000_000],
        idle_channels: 100_000,
        per_gateway: 15_000,
        broadcasts: 10,
        fill_clients: 10_000,
        fill_period: Duration::from_secs(60),
        drain_period: Duration::from_secs(30),
    };

    /// Enough to see that everything works; not enough to believe a number.
    pub const QUICK: Self = Self {
        idle_connections: 3_000,
        subscribers: 1_000,
        warmup: Duration::from_millis(300),
        window: Duration::from_secs(1),
        settle: Duration::from_secs(2),
        idle: Duration::from_secs(5),
        timed_publications: 300,
        redis_requests: [30_000, 300_000],
        idle_channels: 10_000,
        per_gateway: 500,
        broadcasts: 3,
        fill_clients: 1_000,
        fill_period: Duration::from_secs(5),
        drain_period: Duration::from_secs(3),
    };
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_measure_has_one_scenario() {
        for measure in Measure::value_variants() {
            let scenarios = Scenario::ALL.iter().filter(|scenario| scenario.measures().contains(measure));
            assert_eq!(scenarios.count(), 1, "{measure:?}");
        }
    }

    #[test]
    fn who_takes_part_has_a_column() {
        for scenario in Scenario::ALL {
            for server in scenario.servers() {
                assert!(scenario.group().servers().contains(server), "{scenario:?} {server:?}");
            }
        }
    }
}
