//! What clients publish over their connection: rates and order, whatever the protocol.

use std::time::Duration;

use tidegate_ops::budget::{Budget, Rate};

use super::{Ctx, protocol::Event};
use crate::{
    config::Limits,
    node::{PublishError, PublishRequest},
};

/// State of a connection that publishes.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    messages: Budget,
    bytes: Budget,
    /// A publish has to wait. The connection is paused until it has ended, so what it sends next waits unread.
    under_way: bool,
}

/// What a connection may publish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) messages: Rate,
    pub(crate) bytes: Rate,
}

impl Publisher {
    /// Takes a message with so many bytes from both rates, or nothing.
    pub(crate) fn take(&mut self, rates: Rates, now: Duration, bytes: usize) -> bool {
        let mut messages = self.messages;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let fits =
            messages.take(rates.messages, now, 1).is_ok() && self.bytes.take(rates.bytes, now, bytes).is_ok();
        if fits {
            self.messages = messages;
        }
        fits
    }
}

impl From<&Limits> for Rates {
    fn from(limits: &Limits) -> Self {
        let bytes_per_second = u32::try_from(limits.publish_bytes_per_second.bytes()).unwrap_or(u32::MAX);
        Self {
            messages: Rate::per_second(limits.publishes_per_second),
            bytes: Rate::per_second(bytes_per_second),
        }
    }
}

impl Ctx<'_> {
    /// A publish that had to wait has ended: what the connection says next is read.
    fn published(&mut self, result: Result<(), PublishError>) {
        if let Err(error) = result {
            self.tell_protocol(Event::PublishFailed(error));
        }
        if let Some(publisher) = self.publisher() {
            publisher.under_way = false;
            self.connections.set_paused(self.id, false);
        }
    }

    /// Publishes. What has to wait pauses the connection, so that there is one after the other.
    pub(crate) fn start_publish(&mut self, request: PublishRequest) {
        debug_assert!(
            self.publisher().is_none_or(|publisher| !publisher.under_way),
            "it is paused meanwhile"
        );
        match self.publish(request) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.tell_protocol(Event::PublishFailed(error)),
            None => {
                if let Some(publisher) = self.publisher() {
                    publisher.under_way = true;
                }
                self.connections.set_paused(self.id, true);
            }
        }
    }

    /// Publishes; the outcome when it is there at once, else [`published`](Self::published) is called with it.
    fn publish(&self, request: PublishRequest) -> Option<Result<(), PublishError>> {
        let node = self.core.shared.node.clone();
        match self.core.begin(async move { node.publish(request).await.map(|_| ()) }) {
            Ok(result) => Some(result),
            Err(waits) => {
                let reply = self.reply(|ctx, result| ctx.published(result));
                self.core.shared.runtime.spawn(async move { reply(waits.await) });
                None
            }
        }
    }

    fn publisher(&mut self) -> Option<&mut Publisher> {
        self.open_mut()?.rare.as_mut()?.publisher.as_mut()
    }
}
