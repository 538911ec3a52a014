//! What carries publications, handed on to another process and taken over from one.

use std::{os::fd::OwnedFd, sync::Arc};

use tidegate_backplane::{OnLeave, Sink};
use tidegate_wire::fields::{Reader, Writer};

use super::UpgradeError;
use crate::server::{
    StartError,
    carrier::{Carrier, Kind},
};

/// Which kind of backplane a state is of.
const MEMORY: u8 = 0;
const REDIS: u8 = 1;

impl Carrier {
    pub(super) fn can_go_on(&self) -> Result<(), UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => Ok(redis.can_go_on()?),
        }
    }

    /// From now on, who publishes waits.
    pub(super) fn suspend(&self) {
        match &self.kind {
            Kind::Memory(memory) => memory.suspend(),
            Kind::Redis(redis) => redis.suspend(),
        }
    }

    /// Whether everything that was begun has ended.
    pub(super) fn is_quiet(&self) -> bool {
        match &self.kind {
            Kind::Memory(_) => true,
            Kind::Redis(redis) => redis.is_quiet(),
        }
    }

    /// Nothing more arrives.
    pub(super) fn halt(&self) -> Result<(), UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => Ok(redis.halt()?),
        }
    }

    /// Goes on as before.
    pub(super) fn resume(&self) {
        match &self.kind {
            Kind::Memory(memory) => memory.resume(),
            Kind::Redis(redis) => redis.resume(),
        }
    }

    /// All that it knows, and the sockets that belong to that.
    pub(super) fn write(&self, out: &mut Writer) -> Result<Vec<OwnedFd>, UpgradeError> {
        let (kind, (state, sockets)) = match &self.kind {
            Kind::Memory(memory) => (MEMORY, (memory.to_bytes(), Vec::new())),
            Kind::Redis(redis) => (REDIS, redis.to_bytes()?),
        };
        out.u8(kind);
        out.bytes(&state);
        out.u32(sockets.len() as u32);
        Ok(sockets)
    }

    /// Whether what was written is so still.
    pub(super) fn stands(&self) -> Result<(), UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => Ok(redis.stands()?),
        }
    }

    /// Another process goes on.
    pub(super) fn give_away(&self, on_leave: OnLeave) {
        match &self.kind {
            Kind::Memory(memory) => memory.give_away(on_leave),
            Kind::Redis(redis) => redis.give_away(on_leave),
        }
    }

    /// Takes in what [`write`](Self::write) wrote in another process; its sockets are the last of `sockets`.
    pub(super) fn take_in(
        &self,
        fields: &mut Reader<'_>,
        sockets: &mut Vec<OwnedFd>,
    ) -> Result<(), UpgradeError> {
        let (kind, state, number) = (fields.u8()?, fields.bytes()?, fields.u32()? as usize);
        let at = sockets.len().checked_sub(number).ok_or(UpgradeError::Unexpected)?;
        let own = sockets.split_off(at);
        match (&self.kind, kind) {
            (Kind::Memory(memory), MEMORY) => Ok(memory.take_in(state)?),
            (Kind::Redis(redis), REDIS) => Ok(redis.take_in(state, own)?),
            _ => Err(UpgradeError::NotHere(OTHER_BACKPLANE)),
        }
    }

    /// It is this process's; what arrives in channels waits for [`begin`](Self::begin).
    pub(in crate::server) fn go_on(&self) {
        match &self.kind {
            Kind::Memory(_) => {}
            Kind::Redis(redis) => redis.go_on(),
        }
    }

    /// All connections are here.
    pub(in crate::server) fn begin(&self, sink: Arc<dyn Sink>) -> Result<(), StartError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => Ok(redis.begin(sink)?),
        }
    }
}

const OTHER_BACKPLANE: &str =
    "its configuration names another kind of backplane: a change of that needs a restart";
