//! What the application decides for Centrifugo's clients: who they are, what they subscribe to and publish, and calls.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::value::RawValue;
use tidegate_backplane::{Channel, Payload};
use tidegate_wire::{
    centrifuge::{
        code::{Disconnect, ErrorCode},
        message::{DataMessage, Error, Reply, SubscribeRequest},
    },
    frame::CloseCode,
};

use super::{Stage, forms::Carrier, publishing::payload, subscribing::Granted};
use crate::{
    auth::Claims,
    config::HookQuestion,
    hooks::{HandedOn, Hook, Known, No, Question, Reply as Said},
    metrics::DisconnectReason,
    problem::log_refusal,
    session::{Ctx, leaving::Leave},
};

impl Ctx<'_> {
    /// Asks who a client without a token is. `request`: what its request said.
    pub(super) fn ask_to_connect(
        &mut self,
        id: u32,
        hook: &Arc<Hook>,
        subs: BTreeMap<String, SubscribeRequest>,
        data: Vec<u8>,
        request: Arc<HandedOn>,
    ) {
        self.set_stage(Stage::Connecting);
        let Some(mut caller) = self.caller() else { return };
        caller.known = Arc::new(Known { request: Arc::clone(&request), ..Known::default() });
        let payload = Some(data).filter(|data| !data.is_empty()).map(payload);
        let question = Question { kind: HookQuestion::Connect, caller, channel: None, payload, name: None };
        self.with_answer(hook, question, move |ctx, answer| match answer {
            Ok(said) => {
                let mut claims = Claims::of_reply(&said);
                if ctx.core.shared.hooks.keeps_requests() {
                    claims.keep_request(request);
                }
                let data = ctx.told(said.data);
                ctx.connect_as(id, claims, &subs, data);
            }
            Err(no) => {
                ctx.set_stage(Stage::Refused);
                ctx.refuse_asked(id, &no);
                // Clients close after that.
                ctx.await_connect(None);
            }
        });
    }

    /// Asks whether a channel may be subscribed to, and subscribes.
    pub(super) fn ask_subscription(
        &mut self,
        id: u32,
        hook: &Arc<Hook>,
        request: SubscribeRequest,
        claims: Option<Arc<Claims>>,
    ) {
        let channel = match self.core.channel_of_claims(&request.channel, claims.as_deref()) {
            Ok(channel) => channel,
            Err(error) => return self.refuse_channel(id, &request.channel, error.into()),
        };
        let sent = Some(request.data.clone()).filter(|data| !data.is_empty()).map(payload);
        let Some(question) = self.question(HookQuestion::Subscribe, Some(channel.name()), sent, None) else {
            return;
        };
        self.with_answer(hook, question, move |ctx, answer| match answer {
            Ok(said) => {
                let expires = Claims::of_reply(&said).expiry(ctx.connections.now());
                let (info, overrides, data) = (said.info, said.overrides, Some(ctx.told(said.data)));
                let granted = Granted { expires, data, info, overrides };
                ctx.begin_asked_on(id, &request, &channel, claims.as_deref(), granted);
            }
            Err(no) => ctx.refuse_asked(id, &no),
        });
    }

    /// Asks whether something may be published, and publishes what is to be then.
    pub(super) fn ask_publication(&mut self, id: u32, hook: &Arc<Hook>, channel: Channel, payload: Payload) {
        let sent = Some(payload.clone());
        let Some(question) = self.question(HookQuestion::Publish, Some(channel.name()), sent, None) else {
            return;
        };
        self.wait_for_answer();
        self.ask(hook, question, move |ctx, answer| match answer {
            // Commands go on when it is published.
            Ok(said) => ctx.publish_as_asked(id, channel, said.data.unwrap_or(payload)),
            Err(no) => {
                ctx.refuse_asked(id, &no);
                ctx.go_on();
            }
        });
    }

    /// `rpc`: the application answers.
    pub(super) fn call_application(&mut self, id: u32, method: String, data: Vec<u8>) {
        let Some(hook) = self.core.shared.hooks.of(HookQuestion::Message, None).map(Arc::clone) else {
            return self.deny_command(id, ErrorCode::MethodNotFound, &"nobody answers calls");
        };
        let (sent, method) = (Some(payload(data)), Some(method.into()));
        let Some(question) = self.question(HookQuestion::Message, None, sent, method) else { return };
        self.with_answer(&hook, question, move |ctx, answer| match answer {
            Ok(said) => {
                let rpc = Some(DataMessage { data: ctx.told(said.data) });
                ctx.send_reply(Reply { id, rpc, ..Reply::default() });
            }
            Err(no) => ctx.refuse_asked(id, &no),
        });
    }

    /// `send`: the application is told, and the client nothing.
    pub(super) fn send_to_application(&mut self, data: Vec<u8>) {
        let Some(hook) = self.core.shared.hooks.of(HookQuestion::Message, None).map(Arc::clone) else {
            return self.cut(Disconnect::NotAvailable, &"nobody takes what clients send");
        };
        let Some(question) = self.question(HookQuestion::Message, None, Some(payload(data)), None) else {
            return;
        };
        self.with_answer(&hook, question, |ctx, answer| match answer {
            Err(no @ No::Disconnect { .. }) => ctx.refuse_asked(0, &no),
            Err(no) => log_refusal("send", &no),
            Ok(_) => {}
        });
    }

    /// Asks; commands wait for the answer.
    fn with_answer(
        &mut self,
        hook: &Arc<Hook>,
        question: Question,
        then: impl FnOnce(&mut Ctx<'_>, Result<Said, No>) + Send + 'static,
    ) {
        self.wait_for_answer();
        self.ask(hook, question, move |ctx, answer| {
            then(ctx, answer);
            ctx.go_on();
        });
    }

    /// Says why something is not done, in the application's words.
    fn refuse_asked(&mut self, id: u32, no: &No) {
        match no {
            No::Away => self.deny_command(id, ErrorCode::Internal, no),
            No::Said { code, message } => {
                log_refusal("command", &format_args!("{code} {message}"));
                let error = Error { code: u32::from(*code), message: message.to_string(), temporary: false };
                self.send_reply(Reply { id, error: Some(error), ..Reply::default() });
            }
            No::Disconnect { code, reason } => {
                let code =
                    if (3000..=4999).contains(code) { *code } else { Disconnect::PermissionDenied as u16 };
                let (text, reason) = (reason.to_string().into(), DisconnectReason::Forbidden);
                self.leave(Leave::Own { code: CloseCode(code), text, reason });
            }
        }
    }

    /// What the application says, as a client of this encoding is told it: text that is no JSON is a string.
    fn told(&self, data: Option<Payload>) -> Vec<u8> {
        let Some(data) = data else { return Vec::new() };
        let is_json = self.carrier().is_some_and(Carrier::is_json);
        match is_json && serde_json::from_slice::<&RawValue>(data.bytes()).is_err() {
            true => serde_json::Value::from(String::from_utf8_lossy(data.bytes())).to_string().into_bytes(),
            false => data.bytes().to_vec(),
        }
    }
}
