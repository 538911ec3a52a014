//! What clients publish over their connection: rights, rates, order.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use tidegate_backplane::{Channel, Payload};
use tidegate_ops::budget::{Budget, Rate};
use tidegate_reactor::{ConnectionId, Connections, Mail};
use tidegate_wire::{
    frame::Opcode,
    raw::{self, ClientPublication, ClientPublicationError},
};

use super::{Open, Protocol, Session, leaving::Leave};
use crate::protocols::pusher::EventRefused;
use crate::{
    config::{ClientPublish, Limits},
    event::{self, EventNameError},
    hub::outgoing::Encoding,
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    shard::{Command, Core},
};

/// What clients had sent before they left, while a publish of theirs was under way: it is still published.
pub(crate) type Legacies = HashMap<ConnectionId, VecDeque<PublishRequest>>;

/// State of a connection that publishes.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    messages: Budget,
    bytes: Budget,
    /// What came while a publish was under way. Reading is paused then, so it is at most what one read held.
    waiting: VecDeque<PublishRequest>,
    under_way: bool,
}

/// What a connection may publish.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) messages: Rate,
    pub(crate) bytes: Rate,
}

/// Why a client's message is not published.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("malformed publication: {0}")]
    Malformed(#[from] ClientPublicationError),
    #[error("malformed publication: {0}")]
    Event(#[from] EventNameError),
    #[error("name a channel: this connection is subscribed to several")]
    Ambiguous,
    #[error("this connection is not subscribed to that channel")]
    NotSubscribed,
    #[error("this connection may not publish to that channel")]
    Forbidden,
    #[error("publishing faster than allowed")]
    Rate,
    #[error(transparent)]
    Failed(#[from] PublishError),
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

impl Core {
    pub(crate) fn client_text(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        text: &str,
    ) {
        let Some(open) = connections.get(id).and_then(Session::open) else { return };
        let enveloped = matches!(open.encoding, Encoding::Envelope | Encoding::EnvelopeDeflated);
        if !enveloped {
            let payload = Payload::Text(Bytes::copy_from_slice(text.as_bytes()));
            return self.client_publish(connections, id, None, None, payload);
        }
        match parse(text) {
            Ok(publication) => {
                let payload = Payload::Text(Bytes::copy_from_slice(publication.data.as_bytes()));
                let event = publication.event.as_deref().map(Box::from);
                self.client_publish(connections, id, publication.channel.as_deref(), event, payload);
            }
            Err(refused) => self.refuse_publish(connections, id, &refused),
        }
    }

    pub(crate) fn client_binary(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        bytes: &[u8],
    ) {
        let payload = Payload::Binary(Bytes::copy_from_slice(bytes));
        self.client_publish(connections, id, None, None, payload);
    }

    /// A publish has ended; the next ones of the connection go.
    pub(crate) fn published(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        mut result: Result<(), PublishError>,
    ) {
        loop {
            if let Err(error) = result {
                self.fail_publish(connections, id, error);
            }
            let Some(next) = self.next_to_publish(connections, id) else { break };
            match self.publish(id, next) {
                Some(ended) => result = ended,
                None => return,
            }
        }
        if let Some(publisher) = publisher(connections, id) {
            publisher.under_way = false;
            connections.set_paused(id, false);
        }
    }

    /// A connection that publishes has left: what it sent before goes on, one after the other.
    pub(crate) fn publish_rest(&mut self, id: ConnectionId, publisher: Publisher) {
        // It waits for a publish under way, whose end brings `published`.
        if !publisher.waiting.is_empty() {
            self.legacies.insert(id, publisher.waiting);
        }
    }

    fn next_to_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
    ) -> Option<PublishRequest> {
        if let Some(publisher) = publisher(connections, id) {
            return publisher.waiting.pop_front();
        }
        let next = self.legacies.get_mut(&id)?.pop_front();
        if next.is_none() {
            self.legacies.remove(&id);
        }
        next
    }

    fn client_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        channel: Option<&str>,
        event: Option<Box<str>>,
        payload: Payload,
    ) {
        match self.check_publish(connections, id, channel, payload.bytes().len()) {
            Ok(channel) => {
                let request = PublishRequest {
                    channel,
                    event,
                    payload,
                    idempotency_key: None,
                    sender: None,
                    history: PublishHistory::Namespace,
                };
                self.start_publish(connections, id, request);
            }
            Err(refused) => self.refuse_publish(connections, id, &refused),
        }
    }

    fn check_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        channel: Option<&str>,
        bytes: usize,
    ) -> Result<Channel, Refused> {
        let now = connections.now().duration();
        let Some(open) = connections.get_mut(id).and_then(Session::open_mut) else {
            return Err(Refused::NotSubscribed);
        };
        let mut own =
            open.subscriptions.as_slice().iter().map(|&own| self.hub.channel(self.hub.channel_of(own)));
        let channel = match channel {
            Some(name) => own.find(|own| own.name() == name).ok_or(Refused::NotSubscribed)?.clone(),
            None => {
                let only = own.next().ok_or(Refused::NotSubscribed)?.clone();
                if own.next().is_some() {
                    return Err(Refused::Ambiguous);
                }
                only
            }
        };
        let allowed = match self.shared.node.namespaces().of(&channel).client_publish {
            ClientPublish::Never => false,
            ClientPublish::Anyone => true,
            ClientPublish::Token => open.claims().is_some_and(|claims| claims.may_publish(&channel)),
        };
        if !allowed {
            return Err(Refused::Forbidden);
        }
        let rates = Rates::from(&self.shared.node.config().limits);
        let publisher = open.rare_mut().publisher.get_or_insert_default();
        if publisher.take(rates, now, bytes) { Ok(channel) } else { Err(Refused::Rate) }
    }

    /// Publishes now, or after what the connection published before.
    pub(crate) fn start_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        request: PublishRequest,
    ) {
        let Some(publisher) = publisher(connections, id) else { return };
        if publisher.under_way {
            publisher.waiting.push_back(request);
            return;
        }
        match self.publish(id, request) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.fail_publish(connections, id, error),
            None => {
                publisher.under_way = true;
                connections.set_paused(id, true);
            }
        }
    }

    /// Publishes; the outcome when it is there at once, else [`Command::Published`] brings it.
    fn publish(&self, id: ConnectionId, request: PublishRequest) -> Option<Result<(), PublishError>> {
        let node = self.shared.node.clone();
        match self.begin(async move { node.publish(request).await.map(|_| ()) }) {
            Ok(result) => Some(result),
            Err(waits) => {
                let mailbox = self.mailbox.clone();
                self.shared.runtime.spawn(async move {
                    let result = waits.await;
                    mailbox.send(Mail::Command(Command::Published { id, result }));
                });
                None
            }
        }
    }

    fn fail_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        error: PublishError,
    ) {
        match connections.get(id).and_then(Session::open).map(|open| open.protocol) {
            Some(Protocol::Pusher) => {
                self.refuse_event(connections, id, None, &EventRefused::Failed(error));
            }
            _ => self.refuse_publish(connections, id, &Refused::Failed(error)),
        }
    }

    /// Says why a message was not published: in the envelope's words, or by closing, since verbatim payloads leave
    /// no room for words.
    fn refuse_publish(
        &mut self,
        connections: &mut Connections<Session>,
        id: ConnectionId,
        refused: &Refused,
    ) {
        let (code, reason) = match refused {
            Refused::Malformed(_) | Refused::Event(_) | Refused::Ambiguous => (400, DropReason::Forbidden),
            Refused::NotSubscribed | Refused::Forbidden => (403, DropReason::Forbidden),
            Refused::Rate => (429, DropReason::RateLimit),
            Refused::Failed(PublishError::TooLarge { .. }) => (413, DropReason::PublishFailed),
            Refused::Failed(_) => (503, DropReason::PublishFailed),
        };
        self.metrics.messages_dropped.add(reason, 1);
        let Some(open) = connections.get(id).and_then(Session::open) else { return };
        if open.encoding.carries_notices() {
            let mut notice = Vec::new();
            raw::encode_error(code, &refused.to_string(), &mut notice);
            return self.write_frame(connections, id, Opcode::Text, &notice);
        }
        let why = match refused {
            Refused::Rate => Leave::RateLimit,
            Refused::Failed(_) => Leave::Forbidden("the message could not be published"),
            Refused::Ambiguous => {
                Leave::Forbidden("publishing to one of several channels needs envelope=json")
            }
            _ => Leave::Forbidden("this connection may not publish"),
        };
        self.leave(connections, id, why);
    }
}

/// A client's text in an envelope, whose event is one that a publication may have.
fn parse(text: &str) -> Result<ClientPublication<'_>, Refused> {
    let publication = raw::parse_client_publication(text)?;
    if let Some(event) = &publication.event {
        event::check_name(event)?;
    }
    Ok(publication)
}

fn publisher(connections: &mut Connections<Session>, id: ConnectionId) -> Option<&mut Publisher> {
    connections
        .get_mut(id)
        .and_then(Session::open_mut)
        .and_then(|open: &mut Open| open.rare.as_mut()?.publisher.as_mut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<Option<&str>, &str>) {
        let parsed = parse(text).map_err(|refused| refused.to_string());
        let event = parsed.as_ref().map(|publication| publication.event.as_deref());
        assert_eq!(event.map_err(|text| &**text), expect, "{text}");
    }

    #[test]
    fn an_envelope_is_checked_before_it_is_published() {
        check(r#"{"data":1}"#, Ok(None));
        check(r#"{"event":"goal","data":1}"#, Ok(Some("goal")));
        let object = r#"malformed publication: expected a JSON object such as {"channel":"A","data":1}"#;
        check("[1]", Err(object));
        let number =
            "malformed publication: invalid type: integer `1`, expected an object at line 1 column 1";
        check("1", Err(number));
        check("{}", Err("malformed publication: missing field `data` at line 1 column 2"));
        let form = "malformed publication: an event name has 1 to 200 characters and no control characters";
        check(r#"{"event":"","data":1}"#, Err(form));
        check(r#"{"event":"a\nb","data":1}"#, Err(form));
        let reserved =
            "malformed publication: the event names gap, dropped, disconnect, binary are the gateway's own";
        check(r#"{"event":"gap","data":1}"#, Err(reserved));
    }
}
