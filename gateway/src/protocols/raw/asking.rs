//! What a client of a raw WebSocket has the application asked: messages to it, subscriptions, publications.

use std::sync::Arc;

use serde_json::value::RawValue;
use tidegate_backplane::{Channel, Payload, Position};
use tidegate_wire::{
    frame::{self, Opcode},
    raw::command,
};

use super::commands::Refused;
use crate::{
    auth::Claims,
    config::HookQuestion,
    hooks::{Hook, No},
    node::PublishRequest,
    session::Ctx,
};

impl Ctx<'_> {
    /// Hands a message to the application, and its answer to the client.
    pub(super) fn message_command(&mut self, id: Option<u64>, json: &str) -> Result<(), Refused> {
        let Some(hook) = self.core.shared.hooks.of(HookQuestion::Message, None).map(Arc::clone) else {
            return Err(Refused(404, "message: no application takes messages here".to_owned()));
        };
        let payload = Some(Payload::Text(json.into()));
        self.ask_holding(&hook, (HookQuestion::Message, None), (payload, None), move |ctx, answer| {
            match answer.map(|reply| reply.data) {
                Ok(None) => ctx.tell_answer(id, "null"),
                Ok(Some(Payload::Text(text))) => match serde_json::from_str::<&RawValue>(&text) {
                    Ok(json) => ctx.tell_answer(id, json.get()),
                    // Text that is no JSON is told as a string.
                    Err(_) => ctx.tell_answer(id, &serde_json::Value::from(&*text).to_string()),
                },
                Ok(Some(Payload::Binary(_))) => {
                    ctx.refuse_command(id, 502, "the application has answered bytes that are no text");
                }
                Err(no) => ctx.refuse_command(id, no.status(), &no.to_string()),
            }
        });
        Ok(())
    }

    fn tell_answer(&mut self, id: Option<u64>, json: &str) {
        let mut text = Vec::new();
        command::encode_answer(id, json, &mut text);
        if self.open().is_some() {
            self.answer_large(|out| frame::encode(Opcode::Text, &text, out));
        }
    }

    /// Asks whether a channel may be subscribed to, and subscribes.
    pub(super) fn ask_to_subscribe(
        &mut self,
        id: Option<u64>,
        hook: &Arc<Hook>,
        name: &str,
        since: Option<Position>,
        join_leave: bool,
    ) -> Result<(), Refused> {
        let claims = self.open().and_then(|open| open.claims().cloned());
        let channel = self.core.channel_of_claims(name, claims.as_deref());
        let channel = channel.map_err(|error| Refused(400, format!("channel: {error}")))?;
        let subject = (HookQuestion::Subscribe, Some(name.into()));
        self.ask_holding(hook, subject, (None, None), move |ctx, answer| {
            let done = match answer {
                Ok(reply) => {
                    ctx.begin_command_on(id, &channel, since, claims.as_deref(), join_leave).map(|key| {
                        let expires = Claims::of_reply(&reply).expiry(ctx.connections.now());
                        if let (Some(key), Some(_)) = (key, expires) {
                            ctx.grant_until(key, expires, true);
                        }
                    })
                }
                Err(no) => Err(Refused(no.status(), format!("{}: {no}", channel.name()))),
            };
            if let Err(Refused(code, message)) = done {
                ctx.refuse_command(id, code, &message);
            }
        });
        Ok(())
    }

    /// Asks whether something may be published, and goes on with what is published then.
    pub(super) fn ask_to_publish(
        &mut self,
        hook: &Arc<Hook>,
        channel: Channel,
        event: Option<Box<str>>,
        payload: Payload,
        then: impl FnOnce(&mut Ctx<'_>, Result<PublishRequest, No>) + Send + 'static,
    ) {
        let subject = (HookQuestion::Publish, Some(channel.name().into()));
        self.ask_holding(hook, subject, (Some(payload.clone()), event.clone()), move |ctx, answer| {
            let allowed = answer.map(|reply| ctx.request(channel, event, reply.data.unwrap_or(payload)));
            then(ctx, allowed);
        });
    }
}
