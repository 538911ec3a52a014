//! A node that goes on in another process: with its connections to Redis, and what it knows of channels, presence and its
//! lease (`docs/adr/0026-live-upgrade.md`).
//!
//! Nothing is asked of a server for that. What arrives meanwhile waits in the sockets, which both processes have; only one
//! of them reads.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

use crate::fields::{Malformed, Reader, Writer};

use super::{
    backplane::RedisBackplane,
    contract::Seat,
    error::{HALT_PATIENCE, HandOnError, RedisStartError, TakeInError},
    links::Halted,
};
use crate::{OnLeave, Sink};

/// Of this form.
const VERSION: u8 = 2;

impl RedisBackplane {
    /// Whether another process could go on.
    ///
    /// # Errors
    /// [`HandOnError`], as those that follow.
    pub fn can_go_on(&self) -> Result<(), HandOnError> {
        self.core.links.can_go_on()
    }

    /// From now on, whoever publishes, gives an order or removes history waits.
    pub fn suspend(&self) {
        self.core.gate.shut();
    }

    /// What it is at, in a word for the log; `None`: everything that was begun has ended.
    pub fn under_way(&self) -> Option<&'static str> {
        let core = &self.core;
        let parts = [
            ("publishing", core.gate.is_quiet()),
            ("writing presence", core.presence.is_quiet()),
            ("writing wills", core.wills.is_quiet()),
            ("subscribing", core.subscriptions.is_quiet()),
            ("waiting for Redis", core.links.is_quiet()),
        ];
        parts.into_iter().find(|(_, is_quiet)| !is_quiet).map(|(part, _)| part)
    }

    /// Nothing is sent or read any more. Blocks.
    pub fn halt(&self) -> Result<(), HandOnError> {
        let core = &self.core;
        core.subscriptions.halt(true);
        let halted = core.runtime.block_on(async {
            tokio::time::timeout(HALT_PATIENCE, core.links.halt()).await.unwrap_or(Err(HandOnError::Busy))
        })?;
        *core.halted.lock().unwrap_or_else(PoisonError::into_inner) = halted;
        if core.gate.is_quiet() { Ok(()) } else { Err(HandOnError::Busy) }
    }

    /// Goes on after [`suspend`](Self::suspend) and [`halt`](Self::halt).
    pub fn resume(&self) {
        let core = &self.core;
        core.halted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        core.links.end_halt();
        core.subscriptions.halt(false);
        core.gate.open();
    }

    /// Everything, as of now. After [`halt`](Self::halt).
    pub fn to_bytes(&self) -> Vec<u8> {
        let core = &self.core;
        let mut out = Writer::default();
        out.u8(VERSION);
        out.text(core.prefix.as_str());
        core.links.write(&core.halted.lock().unwrap_or_else(PoisonError::into_inner), &mut out);
        core.subscriptions.write(&mut out);
        out.option(core.orders.seat(), Seat::write);
        core.registry.write(&mut out);
        core.presence.write(&mut out);
        core.wills.hand_on(&mut out);
        out.bool(core.doubt.is_there());
        out.into_bytes()
    }

    /// The sockets that belong to what [`to_bytes`](Self::to_bytes) has written.
    pub fn sockets(&self) -> Result<Vec<OwnedFd>, HandOnError> {
        let halted = self.core.halted.lock().unwrap_or_else(PoisonError::into_inner);
        halted.iter().flat_map(Halted::sockets).collect::<io::Result<_>>().map_err(HandOnError::Socket)
    }

    /// Whether the sessions that were halted are those of the servers still.
    pub fn stands(&self) -> Result<(), HandOnError> {
        let halted = self.core.halted.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.links.stands(&halted)
    }

    /// Takes in what another process knew. Nothing is done with it before [`go_on`](Self::go_on).
    ///
    /// # Errors
    /// [`TakeInError`]. Some of it may be here then: this backplane is not to be used.
    pub fn take_in(&self, record: &[u8], sockets: Vec<OwnedFd>) -> Result<(), TakeInError> {
        let core = &self.core;
        let mut fields = Reader::new(record);
        if fields.u8()? != VERSION {
            return Err(Malformed.into());
        }
        if fields.text()? != core.prefix.as_str() {
            return Err(TakeInError::Elsewhere);
        }
        core.links.take_in(&mut fields, sockets)?;
        core.subscriptions.take_in(&mut fields)?;
        core.orders.go_on(Vec::new(), fields.option(Seat::read)?);
        core.registry.take_in(&mut fields)?;
        core.presence.take_in(&mut fields)?;
        core.wills.take_in(&mut fields)?;
        if fields.bool()? {
            core.doubt.raise();
        }
        Ok(fields.end()?)
    }

    /// It is this process's. Commands are sent from now on; what arrives in channels waits for [`begin`](Self::begin).
    pub fn go_on(&self) {
        let core = &self.core;
        let sessions = core.links.go_on();
        for &(link, session) in &sessions {
            core.subscriptions.go_on_with(link, session);
        }
        let seats = sessions.into_iter().map(|(link, session)| Seat { link, session }).collect();
        core.orders.go_on(seats, core.orders.seat());
    }

    /// All who want a channel have subscribed to it.
    ///
    /// # Errors
    /// It was begun before.
    pub fn begin(&self, sink: Arc<dyn Sink>) -> Result<(), RedisStartError> {
        let core = &self.core;
        core.links.begin(core.owner(sink))?;
        core.subscriptions.go_on();
        core.keep();
        Ok(())
    }

    /// Another process goes on with what [`to_bytes`](Self::to_bytes) has written: nothing is sent here any more, and
    /// `on_leave` is told of connections that leave their channels.
    pub fn give_away(&self, on_leave: OnLeave) {
        let core = &self.core;
        core.gate.give(on_leave);
        core.stopping.cancel();
        core.subscriptions.stop();
        core.links.cancel();
    }
}
