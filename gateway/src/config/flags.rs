//! The flags of `tidegate gateway` that are settings.

use super::Flag;

pub const LISTEN: Flag = Flag { name: "--listen", key: "listen" };
pub const INTERNAL: Flag = Flag { name: "--internal", key: "internal" };
pub const NODE: Flag = Flag { name: "--node", key: "node" };
pub const ADVERTISE: Flag = Flag { name: "--advertise", key: "advertise" };
pub const ZONE: Flag = Flag { name: "--zone", key: "zone" };
pub const SHARDS: Flag = Flag { name: "--shards", key: "shards" };
pub const REUSE_PORT: Flag = Flag { name: "--reuse-port", key: "reuse_port" };
pub const BACKPLANE: Flag = Flag { name: "--backplane", key: "backplane" };
pub const DEV: Flag = Flag { name: "--dev", key: "dev" };
pub const DEV_ANYWHERE: Flag = Flag { name: "--dev-anywhere", key: "dev_anywhere" };
pub const LOG_FORMAT: Flag = Flag { name: "--log-format", key: "log.format" };
pub const LOG_LEVEL: Flag = Flag { name: "--log-level", key: "log.level" };

pub const HANDOVER_SOCKET: Flag = Flag { name: "--handover-socket", key: "handover.socket" };

/// All of them.
pub const ALL: [Flag; 13] = [
    LISTEN,
    INTERNAL,
    NODE,
    ADVERTISE,
    ZONE,
    SHARDS,
    REUSE_PORT,
    BACKPLANE,
    DEV,
    DEV_ANYWHERE,
    LOG_FORMAT,
    LOG_LEVEL,
    HANDOVER_SOCKET,
];
