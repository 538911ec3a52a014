//! `publish`: rights, rates, and the answer.

use tidegate_backplane::{Channel, Payload, Sender};
use tidegate_wire::centrifuge::{
    code::{Disconnect, ErrorCode},
    message::{Empty, PublishRequest as Request, Reply},
};

use crate::{
    config::ClientPublish,
    metrics::DropReason,
    node::{PublishError, PublishHistory, PublishRequest},
    session::{Ctx, access::ChannelRefused, publishing::Rates},
};

/// What a client sends, as others are sent it.
pub(super) fn payload(data: Vec<u8>) -> Payload {
    match String::from_utf8(data) {
        Ok(text) => Payload::Text(text.into()),
        Err(error) => Payload::Binary(error.into_bytes().into()),
    }
}

impl Ctx<'_> {
    pub(super) fn publish_to(&mut self, id: u32, request: Request) {
        let Request { channel: name, data, r#type } = request;
        if name.is_empty() || data.is_empty() {
            return self.cut(Disconnect::BadRequest, &"publish without a channel or data");
        }
        if r#type != 0 {
            return self.deny_publish(id, ErrorCode::NotAvailable, &"only streams can be published to");
        }
        let claims = self.open().and_then(|open| open.claims().cloned());
        // Whoever is in a channel may be so by a token of its own.
        let own = self.key_of_own(&name).map(|key| self.core.hub.channel(key).clone());
        let is_in = own.is_some();
        let channel = match own.map_or_else(|| self.core.channel_for(&name, claims.as_deref()), Ok) {
            // The application has the last word on what is published there.
            Err(ChannelRefused::Rights) => {
                self.core.channel_of_claims(&name, claims.as_deref()).map_err(ChannelRefused::from)
            }
            other => other,
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(refused) => return self.refuse_channel(id, &name, refused),
        };
        let hook = self.core.asks_to_publish(&channel);
        let may_publish = hook.is_some()
            || match self.core.shared.node.namespaces().of(&channel).client_publish {
                ClientPublish::Never => false,
                ClientPublish::Subscribed => is_in,
                ClientPublish::Anyone => true,
                ClientPublish::Token => claims.as_ref().is_some_and(|claims| claims.may_publish(&channel)),
            };
        if !may_publish {
            return self.deny_publish(id, ErrorCode::PermissionDenied, &"it may not publish there");
        }
        let rates = Rates::from(&self.core.shared.node.config().limits);
        let now = self.connections.now().duration();
        let Some(open) = self.open_mut() else { return };
        if !open.rare_mut().publisher.get_or_insert_default().take(rates, now, data.len()) {
            return self.deny_publish(id, ErrorCode::TooManyRequests, &"publishing faster than allowed");
        }
        let payload = payload(data);
        match hook {
            Some(hook) => self.ask_publication(id, &hook, channel, payload),
            None => {
                self.wait_for_answer();
                self.publish_as_asked(id, channel, payload);
            }
        }
    }

    /// Publishes; its answer lets the commands behind it go on.
    pub(super) fn publish_as_asked(&mut self, id: u32, channel: Channel, payload: Payload) {
        // The sender is told its own publications, so only its user is named.
        let user = self.open().and_then(|open| open.claims()?.user.clone());
        let sender = user.map(|user| Box::new(Sender { connection: None, user: Some(user) }));
        let history = PublishHistory::Namespace;
        let request =
            PublishRequest { channel, event: None, payload, idempotency_key: None, sender, history };
        let reply = self.reply_with(id);
        let ended = move |result| {
            reply(result);
            Ok(())
        };
        self.start_publish(request, Some(Box::new(ended)));
    }

    /// Answers a publish that has ended, from whichever thread.
    fn reply_with(&self, id: u32) -> impl FnOnce(Result<(), PublishError>) + Send + 'static {
        let then = move |ctx: &mut Ctx<'_>, result: Result<(), PublishError>| {
            match result {
                Ok(()) => ctx.send_reply(&Reply { id, publish: Some(Empty {}), ..Reply::default() }),
                Err(error @ PublishError::TooLarge { .. }) => {
                    ctx.deny_publish(id, ErrorCode::LimitExceeded, &error);
                }
                Err(error) => ctx.deny_publish(id, ErrorCode::Internal, &error),
            }
            ctx.go_on();
        };
        Ctx::reply(self, then)
    }

    fn deny_publish(&mut self, id: u32, code: ErrorCode, why: &dyn std::fmt::Display) {
        let reason = match code {
            ErrorCode::TooManyRequests => DropReason::RateLimit,
            ErrorCode::Internal | ErrorCode::LimitExceeded => DropReason::PublishFailed,
            _ => DropReason::Forbidden,
        };
        self.core.metrics.messages_dropped.add(reason, 1);
        self.deny_command(id, code, why);
    }
}
