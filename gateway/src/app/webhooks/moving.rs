//! All that applications and apps' servers are still to be told, for another process that tells it.

use std::sync::{Arc, PoisonError};

use tidegate_ops::succession::UpgradeError;
use tidegate_wire::fields::{Reader, Writer};

use super::{
    Forward, HookEvents, Webhooks,
    metrics::WebhookDrop,
    queue::{Moved, Queue},
};

/// What tells, together.
#[derive(Debug, Clone)]
pub(crate) struct Telling {
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) hooks: Arc<HookEvents>,
}

impl Telling {
    /// No request is begun any more.
    pub(crate) fn suspend(&self) {
        self.each(Queue::suspend);
    }

    pub(crate) fn resume(&self) {
        self.each(Queue::resume);
    }

    /// Whether no request is under way.
    pub(crate) fn has_sent(&self) -> bool {
        let mut all_quiet = true;
        self.each(|queue| all_quiet &= queue.is_quiet());
        all_quiet
    }

    /// Whether no will is being written, or taken back.
    pub(crate) fn has_no_will_under_way(&self) -> bool {
        self.hooks.is_quiet()
    }

    /// What waits, and what was begun to be sent and has not ended.
    pub(crate) fn write(&self, out: &mut Writer) {
        let queues = self.webhooks.queues.lock().unwrap_or_else(PoisonError::into_inner);
        out.list(queues.iter(), |out, ((app, url, nth), queue)| {
            out.text(app.as_str());
            out.text(url.url().as_str());
            out.u32(*nth as u32);
            queue.write(out);
        });
        drop(queues);
        self.hooks.write(out);
    }

    /// Takes that in; it is sent when this is [resumed](Self::resume). What was for an address that is gone is dropped.
    ///
    /// # Errors
    /// [`UpgradeError`]: it is of another form, or connections are kept otherwise.
    pub(crate) fn take_in<'a>(&self, fields: &mut Reader<'a>) -> Result<(), UpgradeError> {
        let read = |fields: &mut Reader<'a>| {
            Ok((fields.text()?, fields.text()?, fields.u32()? as usize, Moved::read_list(fields)?))
        };
        let told = fields.list(read)?;
        self.suspend();
        let queues = self.webhooks.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for (app, url, nth, events) in told {
            let is_its =
                |key: &super::QueueKey| key.0.as_str() == app && key.1.url().as_str() == url && key.2 == nth;
            match queues.iter().find(|(key, _)| is_its(key)) {
                Some((_, queue)) => events.into_iter().for_each(|event| queue.go_on(event, None)),
                None if events.is_empty() => {}
                None => {
                    self.webhooks.metrics.dropped.add(WebhookDrop::Removed, events.len() as u64);
                    tracing::warn!(
                        app,
                        events = events.len(),
                        "what a webhook was not told yet is dropped: the configuration has it no more"
                    );
                }
            }
        }
        drop(queues);
        self.hooks.take_in(fields)
    }

    /// Another process has all of that.
    pub(crate) fn give(&self) {
        self.each(Queue::give);
    }

    /// What is to be told later that process tells, too.
    pub(crate) fn forward(&self, forward: Forward) {
        self.hooks.forward(forward);
    }

    fn each(&self, mut what: impl FnMut(&Queue)) {
        let queues = self.webhooks.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.values().for_each(|queue| what(queue));
        drop(queues);
        self.hooks.queues().for_each(|queue| what(queue));
    }
}
