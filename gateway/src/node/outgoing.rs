//! Content on its way to the subscribers of this node, and its encodings: made when the first subscriber needs them,
//! and shared by reference between shards and queues.

use std::{
    sync::{Mutex, TryLockError},
    time::Instant,
};

use bytes::Bytes;
use tidegate_backplane::{Channel, Position};

use super::{
    content::Content,
    form::{Encoder, FormId},
    interest::Load,
};

/// Content on its way to the subscribers of this node. While it lives it counts as load of its channel; it is
/// dropped when the last shard has fanned it out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) channel: Channel,
    pub(crate) content: Content,
    pub(crate) accepted: Instant,
    /// One for each form in use.
    encoded: Mutex<Vec<(FormId, Bytes)>>,
    _load: Load,
}

impl Outgoing {
    pub(crate) fn new(channel: Channel, content: Content, load: Load) -> Self {
        Self { channel, content, accepted: Instant::now(), encoded: Mutex::default(), _load: load }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.content.position()
    }

    /// The bytes of a form; empty when it says nothing of this.
    ///
    /// No shard waits for another here. An encoding is made outside of the lock, and a shard that does not get the lock
    /// at once makes it for itself: two that need the same one at the same moment both make it, and one is kept.
    pub(crate) fn encoded(&self, form: FormId, encoder: &mut Encoder) -> Bytes {
        if let Some(bytes) = self.with_encoded(|encoded| find(encoded, form)).flatten() {
            return bytes;
        }
        let deflated = form.is_deflated().then(|| encoder.deflate(&self.channel, &self.content, form));
        let bytes = match deflated {
            None => encoder.encode(&self.channel, &self.content, form),
            Some(Some(deflated)) => deflated,
            Some(None) => self.encoded(form.plain(), encoder),
        };
        let kept = self.with_encoded(|encoded| {
            find(encoded, form).unwrap_or_else(|| {
                encoded.push((form, bytes.clone()));
                bytes.clone()
            })
        });
        kept.unwrap_or(bytes)
    }

    /// `None`: another thread has the lock.
    fn with_encoded<T>(&self, work: impl FnOnce(&mut Vec<(FormId, Bytes)>) -> T) -> Option<T> {
        match self.encoded.try_lock() {
            Ok(mut encoded) => Some(work(&mut encoded)),
            Err(TryLockError::Poisoned(poisoned)) => Some(work(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

fn find(encoded: &[(FormId, Bytes)], form: FormId) -> Option<Bytes> {
    encoded.iter().find(|(own, _)| *own == form).map(|(_, bytes)| bytes.clone())
}
