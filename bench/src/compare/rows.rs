//! The rows of the tables: what a measure is called, its unit, what it is compared with, what must be reached.

use super::plan::Measure;
use super::servers::Server;

/// How a measure is shown and judged.
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) decimals: usize,
    pub(super) against: Against,
    /// What must be reached.
    pub(super) bar: &'static str,
}

/// What the gateway's reading is compared with, within a round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Against {
    Nothing,
    Ratio(Server),
    Difference(Server),
}

pub(super) fn row(measure: Measure) -> Row {
    use Against::{Difference, Nothing, Ratio};
    let bun = Ratio(Server::Bun);
    let (title, unit, decimals, against, bar) = match measure {
        Measure::Memory => ("user memory per idle connection, after the ramp", "B", 0, bun, "≤ 165 B"),
        Measure::MemorySettled => ("the same, settled", "B", 0, bun, "≤ 165 B"),
        Measure::FanoutCpu => {
            ("CPU per delivery, 1 message in flight", "µs", 2, Ratio(Server::Floor), "≤ 1.03 × floor")
        }
        Measure::FanoutRate => ("deliveries/s, 64 publishes in flight", "/s", 0, bun, "≥ 2.4 × Bun"),
        Measure::AcceptCpu => ("CPU per accepted connection", "µs", 1, bun, "≤ 1.0 × Bun"),
        Measure::PublishRate => ("REST publishes/s, no subscribers", "/s", 0, bun, "≥ Bun"),
        Measure::EchoRate => ("echo round trips/s", "/s", 0, bun, "≥ Bun"),
        Measure::Pause => ("longest wait of a bystander during a broadcast", "ms", 2, bun, "≤ 5 ms"),
        Measure::IdleCpu => ("idle CPU with heartbeats", "% of a core", 2, bun, "≤ 1 %"),
        Measure::MemoryThree => {
            ("user memory per raw connection with three channels, settled", "B", 0, Nothing, "≤ 400 B")
        }
        Measure::MemoryThreeSse => {
            ("user memory per event stream with three channels, settled", "B", 0, Nothing, "≤ 400 B")
        }
        Measure::MemoryPresence => {
            ("user memory per Pusher connection in a presence channel, settled", "B", 0, Nothing, "≤ 400 B")
        }
        Measure::RedisLatency => (
            "REST on node A to client on node B, median",
            "µs",
            0,
            Difference(Server::OneNode),
            "≤ 1,000 µs over one node",
        ),
        Measure::RedisReceiveCpu => {
            ("CPU of node B per publication beside its deliveries, 1 in flight", "µs", 2, Nothing, "≤ 15 µs")
        }
        Measure::RedisReceiveCpuLoaded => ("the same, 64 in flight", "µs", 2, Nothing, "≤ 2 µs"),
        Measure::RedisFanoutRate => (
            "deliveries per CPU second of node B, 64 in flight",
            "/s",
            0,
            Ratio(Server::OneNode),
            "≥ 0.9 × one node",
        ),
        Measure::RedisPublishRate => (
            "publishes/s into Redis, 64 single requests in flight",
            "/s",
            0,
            Ratio(Server::RedisBenchmark),
            "≥ 0.9 × redis-benchmark",
        ),
        Measure::RedisBatchRate => (
            "publishes/s into Redis, one connection with 64 at once",
            "/s",
            0,
            Ratio(Server::RedisBenchmark),
            "≥ 0.8 × redis-benchmark",
        ),
        Measure::RedisKeptRate => (
            "the same with history, 64 single requests in flight",
            "/s",
            0,
            Ratio(Server::RedisBenchmark),
            "≥ 0.8 × redis-benchmark",
        ),
        Measure::RedisKeptBatchRate => (
            "the same with history, one connection with 64 at once",
            "/s",
            0,
            Ratio(Server::RedisBenchmark),
            "≥ 0.8 × redis-benchmark",
        ),
        Measure::RedisIdleCommands => {
            ("commands that 100,000 idle subscriptions cost Redis", "/s", 1, Nothing, "≤ 50")
        }
        Measure::RedisIdleScripts => {
            ("the same with history: scripts, each for up to 512 channels", "/s", 1, Nothing, "≤ 50")
        }
        Measure::RedisBack => {
            ("back after a restart of Redis, 100,000 channels of one node", "s", 2, Nothing, "≤ 3 s")
        }
        Measure::ProxyMemory => {
            ("user memory per idle proxied connection", "B", 0, Ratio(Server::Haproxy), "≤ 800 B")
        }
        Measure::ProxyMessageCpu => {
            ("CPU per forwarded message", "µs", 2, Ratio(Server::Nginx), "≤ HAProxy, ≤ nginx")
        }
        Measure::ProxyHandshakeCpu => ("CPU per proxied handshake", "µs", 1, Ratio(Server::Nginx), "≤ nginx"),
        Measure::PlacementTime => ("placement of a key over 1,000 nodes", "µs", 2, Nothing, "≤ 5 µs"),
        Measure::PlacementBalance => {
            ("fullest of 50 nodes with weights 1 and 2, 100,000 keys", "× its share", 3, Nothing, "≤ 1.25")
        }
        Measure::PlacementMoved => {
            ("keys that move when 1 of 50 nodes leaves", "of all", 4, Nothing, "≤ 0.026 (1.3 / 50)")
        }
        Measure::ScalingHeld => ("connections held", "total", 0, Nothing, "N × 1 gateway"),
        Measure::ScalingMemory => {
            ("user memory per connection, gateways and routers", "B", 0, Nothing, "as 1 gateway")
        }
        Measure::ScalingNodeCpu => ("CPU of the gateways per delivery", "µs", 2, Nothing, "as 1 gateway"),
        Measure::ScalingAllCpu => ("the same with routers and Redis", "µs", 2, Nothing, "–"),
        Measure::ScalingBalance => ("connections of the fullest gateway", "× mean", 2, Nothing, "≤ 1.25"),
        Measure::ScalingLost => ("deliveries lost", "total", 0, Nothing, "0"),
        Measure::PusherMemory => (
            "user memory per idle connection with one public channel",
            "B",
            0,
            Ratio(Server::Sockudo),
            "≤ 800 B",
        ),
        Measure::PusherConnectCpu => {
            ("CPU per connect and subscribe", "µs", 1, Ratio(Server::Sockudo), "≤ 80 µs")
        }
        Measure::PusherDeliveryCpu => {
            ("CPU per delivery, 1 event in flight", "µs", 2, Ratio(Server::Sockudo), "≤ 0.5 × sockudo")
        }
        Measure::PusherEventsRate => (
            "signed POST /events per second, no subscribers",
            "/s",
            0,
            Ratio(Server::Sockudo),
            "≥ 3 × sockudo",
        ),
        Measure::CentrifugeMemory => (
            "user memory per idle Centrifuge connection, one subscription, JSON",
            "B",
            0,
            Ratio(Server::Raw),
            "≤ 400 B",
        ),
        Measure::CentrifugeConnectCpu => (
            "CPU per connect with an HS256 token and subscribe; raw: per connection",
            "µs",
            1,
            Ratio(Server::Raw),
            "≤ 3 × raw",
        ),
        Measure::CentrifugeDeliveryCpu => {
            ("CPU per delivery, 1 message in flight, JSON", "µs", 2, Ratio(Server::Raw), "≤ 1.05 × raw")
        }
        Measure::CentrifugeDeliveryCpuProtobuf => {
            ("the same, Protobuf", "µs", 2, Ratio(Server::Raw), "≤ 1.05 × raw")
        }
        Measure::CentrifugePublishRate => (
            "`/api/publish` per second, no subscribers; raw: `/v1/…/publish`",
            "/s",
            0,
            Ratio(Server::Raw),
            "≥ 0.9 × raw",
        ),
        Measure::CentrifugeRecoveryTime => {
            ("5,000 clients recover 100 publications each at another node", "s", 2, Nothing, "all")
        }
        Measure::CentrifugeRecoveryMemory => {
            ("the same: most memory meanwhile", "MiB", 1, Nothing, "bounded")
        }
        Measure::CentrifugeRecoveryReads => (
            "the same: commands of Redis that read a channel's stream",
            "a channel",
            1,
            Nothing,
            "≤ 4: two reads",
        ),
        Measure::AnswerRate => ("plain answers/s, one core", "/s", 0, bun, "–"),
        Measure::AnswerRateTwo => ("the same, two cores of which the client uses one", "/s", 0, bun, "–"),
        Measure::AnswerCpu => ("CPU per plain answer, one core", "µs", 2, bun, "–"),
        Measure::AnswerCpuTwo => ("the same, two cores", "µs", 2, bun, "–"),
        Measure::AnswerMean => ("plain answer at 5,000 a second, mean", "µs", 0, bun, "–"),
        Measure::AnswerP99 => ("the same, 99 of 100 within", "µs", 0, bun, "–"),
        Measure::AnswerWorst => ("the same, the longest", "µs", 0, bun, "–"),
        Measure::AnswerMemory => ("memory after that", "MiB", 1, bun, "–"),
        Measure::PostRate => ("publishes/s, one core", "/s", 0, bun, "–"),
        Measure::PostRateTwo => ("the same, two cores of which the client uses one", "/s", 0, bun, "–"),
        Measure::PostCpu => ("CPU per publish, one core", "µs", 2, bun, "–"),
        Measure::PostCpuTwo => ("the same, two cores", "µs", 2, bun, "–"),
        Measure::PostMean => ("publish at 5,000 a second, mean", "µs", 0, bun, "–"),
        Measure::PostP99 => ("the same, 99 of 100 within", "µs", 0, bun, "–"),
        Measure::PostWorst => ("the same, the longest", "µs", 0, bun, "–"),
        Measure::HookConnectCpu => (
            "CPU per connection beyond the handshake, whose application is asked",
            "µs",
            1,
            Nothing,
            "≤ 60 µs",
        ),
        Measure::HookMessageCpu => {
            ("CPU per message that the application answers", "µs", 1, Nothing, "≤ 40 µs")
        }
        Measure::HookMessageRate => ("messages/s that it answers, one core", "/s", 0, Nothing, "≥ 10,000"),
        Measure::HookOthersP99 => (
            "publish to delivery of others while it takes 1 s, 99 of 100 within",
            "µs",
            0,
            Nothing,
            "as without",
        ),
        Measure::PostMemory => ("memory after that", "MiB", 1, bun, "–"),
        Measure::HandoverCpu => (
            "CPU of router and gateway per handshake",
            "µs",
            1,
            Ratio(Server::Direct),
            "≤ 1.6 × direct (aim 1.3)",
        ),
        Measure::HandoverMessageCpu => {
            ("CPU of the router per delivery, beside what it uses at rest", "µs", 3, Nothing, "0")
        }
        Measure::FillTime => {
            ("third gateway added: all within 1.25 × mean after", "s", 0, Nothing, "≤ 120 s")
        }
        Measure::FillBalance => ("fullest gateway two periods after that", "× mean", 2, Nothing, "≤ 1.25"),
        Measure::FillNeedless => ("clients moved to another than the third", "total", 0, Nothing, "0"),
        Measure::FillLost => ("publications lost or doubled", "total", 0, Nothing, "0"),
        Measure::RollTime => {
            ("rolling restart of the three, until all are within 1.25 × mean", "s", 0, Nothing, "–")
        }
        Measure::RollBalance => {
            ("fullest gateway two periods after the last restart", "× mean", 2, Nothing, "≤ 1.25")
        }
        Measure::RollLost => ("publications lost or doubled meanwhile", "total", 0, Nothing, "0"),
    };
    Row { title, unit, decimals, against, bar }
}
