//! What carries publications, handed on to another process and taken over from one.

use std::{net::TcpStream, sync::Arc};

use tidegate_backplane::{HandOnError, OnLeave, Sink, TakeInError};
use tidegate_ops::succession::UpgradeError;
use tidegate_wire::fields::{Reader, Writer};

use crate::server::{
    StartError,
    carrier::{Carrier, Kind},
};

/// Which kind of backplane a state is of.
const MEMORY: u8 = 0;
const REDIS: u8 = 1;

impl Carrier {
    /// Why another process could not go on now.
    pub(super) fn not_now(&self) -> Option<Box<str>> {
        match &self.kind {
            Kind::Memory(_) => None,
            Kind::Redis(redis) => redis.can_go_on().err().map(|error| error.to_string().into()),
        }
    }

    /// From now on, who publishes waits.
    pub(super) fn suspend(&self) {
        match &self.kind {
            Kind::Memory(memory) => memory.suspend(),
            Kind::Redis(redis) => redis.suspend(),
        }
    }

    /// What it is at; `None`: everything that was begun has ended.
    pub(super) fn under_way(&self) -> Option<&'static str> {
        match &self.kind {
            Kind::Memory(_) => None,
            Kind::Redis(redis) => redis.under_way(),
        }
    }

    /// Nothing more arrives.
    pub(super) fn halt(&self) -> Result<(), UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => redis.halt().map_err(hand_on),
        }
    }

    /// Goes on as before.
    pub(super) fn resume(&self) {
        match &self.kind {
            Kind::Memory(memory) => memory.resume(),
            Kind::Redis(redis) => redis.resume(),
        }
    }

    /// All that it knows.
    pub(super) fn write(&self, out: &mut Writer) {
        let (kind, state) = match &self.kind {
            Kind::Memory(memory) => (MEMORY, memory.to_bytes()),
            Kind::Redis(redis) => (REDIS, redis.to_bytes()),
        };
        out.u8(kind);
        out.bytes(&state);
    }

    /// The sockets that belong to that.
    pub(super) fn sockets(&self) -> Result<Vec<TcpStream>, UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(Vec::new()),
            // Only their descriptors are passed on.
            Kind::Redis(redis) => {
                let sockets = redis.sockets().map_err(hand_on)?;
                Ok(sockets.into_iter().map(TcpStream::from).collect())
            }
        }
    }

    /// Whether what was written is so still.
    pub(super) fn stands(&self) -> Result<(), UpgradeError> {
        match &self.kind {
            Kind::Memory(_) => Ok(()),
            Kind::Redis(redis) => redis.stands().map_err(hand_on),
        }
    }

    /// Another process goes on.
    pub(super) fn give_away(&self, on_leave: OnLeave) {
        match &self.kind {
            Kind::Memory(memory) => memory.give_away(on_leave),
            Kind::Redis(redis) => redis.give_away(on_leave),
        }
    }

    /// Takes in what [`write`](Self::write) wrote in another process, and its sockets.
    pub(super) fn take_in(
        &self,
        fields: &mut Reader<'_>,
        sockets: Vec<TcpStream>,
    ) -> Result<(), UpgradeError> {
        let kind = fields.u8()?;
        let state = fields.bytes()?;
        match (&self.kind, kind) {
            (Kind::Memory(memory), MEMORY) => Ok(memory.take_in(state)?),
            (Kind::Redis(redis), REDIS) => {
                let sockets = sockets.into_iter().map(Into::into).collect();
                redis.take_in(state, sockets).map_err(|error| match error {
                    TakeInError::Malformed(error) => error.into(),
                    error => UpgradeError::Process(error.to_string().into()),
                })
            }
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

fn hand_on(error: HandOnError) -> UpgradeError {
    UpgradeError::Process(error.to_string().into())
}

const OTHER_BACKPLANE: &str =
    "its configuration names another kind of backplane: a change of that needs a restart";
