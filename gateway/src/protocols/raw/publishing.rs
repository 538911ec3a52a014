//! What clients publish over a raw WebSocket: which channel is meant, rights, and what a refused client is told.

use bytes::Bytes;
use tidegate_backplane::{Channel, Payload, Sender};
use tidegate_wire::{
    frame::Opcode,
    raw::{
        ClientPublication,
        command::{self, ClientText, ClientTextProblem, parse_client_text},
    },
};

use super::forms::ENVELOPED;
use crate::{
    config::ClientPublish,
    event::{self, EventNameError},
    hooks::No,
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    session::{Ctx, Session, leaving::Leave, publishing::Rates},
};

/// Why a client's message is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Malformed(#[from] ClientTextProblem),
    #[error("event: {0}")]
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
    #[error(transparent)]
    Application(#[from] No),
}

impl Ctx<'_> {
    pub(super) fn client_text(&mut self, text: &str) {
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else { return };
        let enveloped = open.form.plain() == ENVELOPED;
        if !enveloped {
            let payload = Payload::Text(text.into());
            return self.client_publish(None, None, payload);
        }
        match parse_client_text(text) {
            Ok(ClientText::Command(command)) => self.command(command),
            Ok(ClientText::Publication(publication)) => match check_event(&publication) {
                Ok(()) => {
                    let payload = Payload::Text((&*publication.data).into());
                    let event = publication.event.as_deref().map(Box::from);
                    self.client_publish(publication.channel.as_deref(), event, payload);
                }
                Err(refused) => self.refuse_publish(&refused),
            },
            Err(error) if error.is_publication => match error.id {
                None => self.refuse_publish(&Refused::Malformed(error.problem)),
                id => self.refuse_publish_command(id, &Refused::Malformed(error.problem)),
            },
            Err(error) => self.refuse_command(error.id, 400, &error.to_string()),
        }
    }

    /// Publishes what a command holds, and answers it.
    pub(super) fn publish_command(&mut self, id: Option<u64>, publication: ClientPublication<'_>) {
        let bytes = publication.data.len();
        let checked = check_event(&publication)
            .and_then(|()| self.check_publish(publication.channel.as_deref(), bytes));
        match checked {
            Ok(channel) => {
                let payload = Payload::Text((&*publication.data).into());
                let event: Option<Box<str>> = publication.event.as_deref().map(Box::from);
                if let Some(hook) = self.core.asks_to_publish(&channel) {
                    return self.ask_to_publish(&hook, channel, event, payload, move |ctx, allowed| {
                        match allowed {
                            Ok(request) => ctx.publish_answered(id, request),
                            Err(no) => ctx.refuse_publish_command(id, &no.into()),
                        }
                    });
                }
                let request = self.request(channel, event, payload);
                self.publish_answered(id, request);
            }
            Err(refused) => self.refuse_publish_command(id, &refused),
        }
    }

    /// Publishes, and answers the command.
    fn publish_answered(&mut self, id: Option<u64>, request: PublishRequest) {
        let reply = self.reply(move |ctx, result: Result<(), PublishError>| match result {
            Ok(()) => ctx.ok(id, |_| {}),
            Err(error) => ctx.refuse_publish_command(id, &error.into()),
        });
        let ended = move |result| {
            reply(result);
            Ok(())
        };
        self.start_publish(request, Some(Box::new(ended)));
    }

    fn refuse_publish_command(&mut self, id: Option<u64>, refused: &Refused) {
        let (code, reason) = refused.kind();
        self.core.metrics.messages_dropped.add(reason, 1);
        self.refuse_command(id, code, &refused.to_string());
    }

    pub(super) fn client_binary(&mut self, bytes: &[u8]) {
        let payload = Payload::Binary(Bytes::copy_from_slice(bytes));
        self.client_publish(None, None, payload);
    }

    fn client_publish(&mut self, channel: Option<&str>, event: Option<Box<str>>, payload: Payload) {
        match self.check_publish(channel, payload.bytes().len()) {
            Ok(channel) => match self.core.asks_to_publish(&channel) {
                Some(hook) => {
                    self.ask_to_publish(&hook, channel, event, payload, |ctx, allowed| match allowed {
                        Ok(request) => ctx.start_publish(request, None),
                        Err(no) => ctx.refuse_publish(&no.into()),
                    });
                }
                None => {
                    let request = self.request(channel, event, payload);
                    self.start_publish(request, None);
                }
            },
            Err(refused) => self.refuse_publish(&refused),
        }
    }

    fn check_publish(&mut self, channel: Option<&str>, bytes: usize) -> Result<Channel, Refused> {
        let now = self.connections.now().duration();
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
            ClientPublish::Anyone | ClientPublish::Subscribed => true,
            ClientPublish::Token => open.claims().is_some_and(|claims| claims.may_publish(&channel)),
        };
        // The application has the last word.
        if !allowed && self.core.asks_to_publish(&channel).is_none() {
            return Err(Refused::Forbidden);
        }
        let rates = Rates::from(&self.core.shared.node.config().limits);
        let publisher = open.rare_mut().publisher.get_or_insert_default();
        if publisher.take(rates, now, bytes) { Ok(channel) } else { Err(Refused::Rate) }
    }

    /// The sender is handed its own publications, so only its user is told.
    pub(super) fn request(
        &self,
        channel: Channel,
        event: Option<Box<str>>,
        payload: Payload,
    ) -> PublishRequest {
        let user = self.open().and_then(|open| open.claims()?.user.as_deref().map(Box::from));
        let sender = user.map(|user| Box::new(Sender { connection: None, user: Some(user) }));
        let history = PublishHistory::Namespace;
        PublishRequest { channel, event, payload, idempotency_key: None, sender, history }
    }

    /// Says why a message was not published: in the envelope's words, or by closing, since verbatim payloads leave
    /// no room for words.
    pub(super) fn refuse_publish(&mut self, refused: &Refused) {
        let (code, reason) = refused.kind();
        self.core.metrics.messages_dropped.add(reason, 1);
        self.note_told("publish", refused);
        let Some(open) = self.connections.get(self.id).and_then(Session::open) else { return };
        if open.form.plain() == ENVELOPED {
            let mut notice = Vec::new();
            command::encode_error(None, code, &refused.to_string(), &mut notice);
            return self.write_frame(Opcode::Text, &notice);
        }
        let why = match refused {
            Refused::Rate => Leave::RateLimit,
            Refused::Failed(_) | Refused::Application(No::Away) => {
                Leave::Forbidden("the message could not be published")
            }
            Refused::Ambiguous => {
                Leave::Forbidden("publishing to one of several channels needs envelope=json")
            }
            _ => Leave::Forbidden("this connection may not publish"),
        };
        self.leave(why);
    }
}

impl Refused {
    /// The code that the client is told, and how it is counted.
    fn kind(&self) -> (u16, DropReason) {
        match self {
            Self::Malformed(_) | Self::Event(_) | Self::Ambiguous => (400, DropReason::Forbidden),
            Self::NotSubscribed | Self::Forbidden => (403, DropReason::Forbidden),
            Self::Rate => (429, DropReason::RateLimit),
            Self::Application(no @ No::Away) => (no.status(), DropReason::PublishFailed),
            Self::Application(no) => (no.status(), DropReason::Forbidden),
            Self::Failed(PublishError::TooLarge { .. }) => (413, DropReason::PublishFailed),
            Self::Failed(_) => (503, DropReason::PublishFailed),
        }
    }
}

/// A publication's event is one that it may have.
fn check_event(publication: &ClientPublication<'_>) -> Result<(), Refused> {
    publication.event.as_deref().map_or(Ok(()), event::check_name).map_err(Refused::from)
}

/// A client's text in an envelope, whose event is one that a publication may have.
#[cfg(test)]
fn parse(text: &str) -> Result<ClientPublication<'_>, Refused> {
    let publication = tidegate_wire::raw::parse_client_publication(text)?;
    check_event(&publication)?;
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
        let object = r#"expected one JSON object such as {"channel":"A","data":1}"#;
        check("[1]", Err(object));
        check("1", Err(object));
        check("{}", Err("data: expected what is to be published: any JSON, in which every string is text"));
        let form = "event: an event name has 1 to 200 characters and no control characters";
        check(r#"{"event":"","data":1}"#, Err(form));
        check(r#"{"event":"a\nb","data":1}"#, Err(form));
        let reserved = "event: the event names gap, dropped, disconnect, binary are the gateway's own";
        check(r#"{"event":"gap","data":1}"#, Err(reserved));
    }
}
