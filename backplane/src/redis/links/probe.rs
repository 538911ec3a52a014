//! What a node sends itself through a server, to see that both connections carry.

use redis::Cmd;

use super::link::Link;
use super::live::Live;

/// The write that goes with a probe ends by itself.
const WRITTEN_FOR_MS: u64 = 5_000;

/// The pub/sub channel that this node sends itself something through.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    /// Chosen so that its slot is the link's.
    pub(super) tag: Box<str>,
    pub(super) channel: Vec<u8>,
}

impl Probe {
    pub(super) fn new(tag: String, prefix: &str, instance: &str) -> Self {
        let channel = format!("{prefix}:{{{tag}}}:probe:{instance}").into_bytes();
        Self { tag: tag.into(), channel }
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.channel
    }

    pub(super) fn subscribe(&self, link: &Link) -> Cmd {
        let mut command = redis::cmd(if link.is_sharded() { "SSUBSCRIBE" } else { "SUBSCRIBE" });
        command.arg(&self.channel);
        command
    }

    pub(super) fn publish(&self, link: &Link, live: &Live, sent_us: u64) -> Cmd {
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(&live.session.0.to_be_bytes());
        payload[8..].copy_from_slice(&sent_us.to_be_bytes());
        let mut command = redis::cmd(link.publish_verb());
        command.arg(&self.channel).arg(&payload[..]);
        command
    }

    pub(super) fn write(&self) -> Cmd {
        let mut command = redis::cmd("SET");
        command.arg(&self.channel).arg("").arg("PX").arg(WRITTEN_FOR_MS);
        command
    }
}
