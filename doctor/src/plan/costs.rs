//! The measured costs, and their file.

use serde::Deserialize;

/// What `tidegate plan` reckons with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    pub gateway: GatewayCosts,
    pub router: RouterCosts,
    pub redis: RedisCosts,
    pub wire: WireCosts,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayCosts {
    pub connection_user_bytes: u64,
    pub connection_kernel_bytes: u64,
    pub tls_bytes: u64,
    pub process_bytes: u64,
    pub heartbeat_ns: u64,
    pub accept_ns: u64,
    pub delivery_ns: u64,
    pub publication_from_node_ns: u64,
    pub publication_from_node_batched_ns: u64,
    pub publication_over_rest_ns: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterCosts {
    pub pair_user_bytes: u64,
    pub pair_kernel_bytes: u64,
    pub handshake_ns: u64,
    pub message_ns: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisCosts {
    pub publications_per_second: u64,
    /// For each gateway that a publication is sent to.
    pub receiver_ns: u64,
    /// For each gateway, each second: its lease and its probe.
    pub node_ns: u64,
    pub publication_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WireCosts {
    pub segment_bytes: u64,
    pub segment_payload_bytes: u64,
    pub ping_bytes: u64,
    pub pong_bytes: u64,
}

/// Why a file is none of costs.
#[derive(Debug, thiserror::Error)]
#[error("not a file of costs ({0}); doctor/src/plan/costs.toml is one")]
pub struct CostsError(#[from] toml::de::Error);

impl Costs {
    /// Those that were measured for this version.
    ///
    /// # Panics
    /// Never: a test reads the file.
    pub fn measured() -> Self {
        Self::parse(include_str!("costs.toml")).expect("the file that is built in")
    }

    pub fn parse(text: &str) -> Result<Self, CostsError> {
        Ok(toml::from_str(text)?)
    }
}

impl WireCosts {
    /// Bytes on the wire of one frame with so much payload, in as many segments as it needs.
    pub(super) fn message(&self, payload: u64) -> u64 {
        let header = match payload {
            0..=125 => 2,
            126..=65_535 => 4,
            _ => 10,
        };
        let bytes = payload + header;
        bytes + bytes.div_ceil(self.segment_payload_bytes.max(1)) * self.segment_bytes
    }

    /// Bytes of a ping, its pong and the acknowledgement of that: to the client, and from it.
    pub(super) fn heartbeat(&self) -> (u64, u64) {
        (self.ping_bytes + 2 * self.segment_bytes, self.pong_bytes + self.segment_bytes)
    }
}
