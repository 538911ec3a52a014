//! The sessions of a shard, by the slot of their connection. A plain connection has no entry, and without TLS there
//! is no table: 8 bytes for each slot and the session are what a TLS connection pays beside its entry.

use super::{TlsSession, session::SCRATCH_BYTES, writer::Encrypting};

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_slot: Vec<Option<Box<TlsSession>>>,
    /// Where plaintext is put that was just decrypted.
    pub(crate) plaintext: Vec<u8>,
    /// Where a record is put that was just encrypted.
    scratch: Vec<u8>,
}

impl Sessions {
    pub(crate) fn insert(&mut self, slot: u32, session: Box<TlsSession>) {
        let slot = slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize_with(slot + 1, || None);
        }
        self.by_slot[slot] = Some(session);
        self.scratch.resize(SCRATCH_BYTES, 0);
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<TlsSession>> {
        let session = self.by_slot.get_mut(slot as usize)?.take();
        while self.by_slot.pop_if(|session| session.is_none()).is_some() {}
        if self.by_slot.capacity() > 4096 && self.by_slot.len() < self.by_slot.capacity() / 4 {
            self.by_slot.shrink_to_fit();
        }
        session
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&TlsSession> {
        self.by_slot.get(slot as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut TlsSession> {
        self.by_slot.get_mut(slot as usize)?.as_deref_mut()
    }

    /// What encrypts for a slot; `None` for a plain connection.
    pub(crate) fn encrypting(&mut self, slot: u32) -> Option<Encrypting<'_>> {
        let session = self.by_slot.get_mut(slot as usize)?.as_deref_mut()?;
        Some(Encrypting { session, scratch: &mut self.scratch })
    }

    /// A session, and where its plaintext is put.
    pub(crate) fn decrypting(&mut self, slot: u32) -> Option<(&mut TlsSession, &mut Vec<u8>)> {
        let session = self.by_slot.get_mut(slot as usize)?.as_deref_mut()?;
        Some((session, &mut self.plaintext))
    }
}
