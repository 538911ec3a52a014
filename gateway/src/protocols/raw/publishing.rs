//! What clients publish over a raw WebSocket: which channel is meant, rights, and what a refused client is told.

use bytes::Bytes;
use tidegate_backplane::{Channel, Payload};
use tidegate_wire::{
    frame::Opcode,
    raw::{self, ClientPublication, ClientPublicationError},
};

use super::forms::ENVELOPED;
use crate::{
    config::ClientPublish,
    event::{self, EventNameError},
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    session::{
        Ctx, Session,
        leaving::Leave,
        publishing::{Publisher, Rates},
    },
};

/// Why a client's message is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
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

impl Ctx<'_> {
    pub(super) fn client_text(&mut self, text: &str) {
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else { return };
        let enveloped = open.form.plain() == ENVELOPED;
        if !enveloped {
            let payload = Payload::Text(text.into());
            return self.client_publish(None, None, payload);
        }
        match parse(text) {
            Ok(publication) => {
                let payload = Payload::Text((&*publication.data).into());
                let event = publication.event.as_deref().map(Box::from);
                self.client_publish(publication.channel.as_deref(), event, payload);
            }
            Err(refused) => self.refuse_publish(&refused),
        }
    }

    pub(super) fn client_binary(&mut self, bytes: &[u8]) {
        let payload = Payload::Binary(Bytes::copy_from_slice(bytes));
        self.client_publish(None, None, payload);
    }

    fn client_publish(&mut self, channel: Option<&str>, event: Option<Box<str>>, payload: Payload) {
        match self.check_publish(channel, payload.bytes().len()) {
            Ok(channel) => {
                let request = PublishRequest {
                    channel,
                    event,
                    payload,
                    idempotency_key: None,
                    sender: None,
                    history: PublishHistory::Namespace,
                };
                self.start_publish(request, None);
            }
            Err(refused) => self.refuse_publish(&refused),
        }
    }

    fn check_publish(&mut self, channel: Option<&str>, bytes: usize) -> Result<Channel, Refused> {
        let now = self.connections.now();
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else {
            return Err(Refused::NotSubscribed);
        };
        let mut own = open
            .subscriptions
            .as_slice()
            .iter()
            .map(|&own| self.core.hub.channel(self.core.hub.channel_of(own)));
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
        let allowed = match self.core.shared.node.namespaces().of(&channel).client_publish {
            ClientPublish::Never => false,
            ClientPublish::Anyone => true,
            ClientPublish::Token => open.claims().is_some_and(|claims| claims.may_publish(&channel)),
        };
        if !allowed {
            return Err(Refused::Forbidden);
        }
        let rates = Rates::from(&self.core.shared.node.config().limits);
        let publisher = open.rare_mut().publisher.get_or_insert_with(|| Publisher::new(rates, now));
        if publisher.take(rates, now, bytes) { Ok(channel) } else { Err(Refused::Rate) }
    }

    /// Says why a message was not published: in the envelope's words, or by closing, since verbatim payloads leave
    /// no room for words.
    pub(super) fn refuse_publish(&mut self, refused: &Refused) {
        let (code, reason) = match refused {
            Refused::Malformed(_) | Refused::Event(_) | Refused::Ambiguous => (400, DropReason::Forbidden),
            Refused::NotSubscribed | Refused::Forbidden => (403, DropReason::Forbidden),
            Refused::Rate => (429, DropReason::RateLimit),
            Refused::Failed(PublishError::TooLarge { .. }) => (413, DropReason::PublishFailed),
            Refused::Failed(_) => (503, DropReason::PublishFailed),
        };
        self.core.metrics.messages_dropped.add(reason, 1);
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else { return };
        if open.form.plain() == ENVELOPED {
            let mut notice = Vec::new();
            raw::encode_error(code, &refused.to_string(), &mut notice);
            return self.write_frame(Opcode::Text, &notice);
        }
        let why = match refused {
            Refused::Rate => Leave::RateLimit,
            Refused::Failed(_) => Leave::Forbidden("the message could not be published"),
            Refused::Ambiguous => {
                Leave::Forbidden("publishing to one of several channels needs envelope=json")
            }
            _ => Leave::Forbidden("this connection may not publish"),
        };
        self.leave(why);
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
