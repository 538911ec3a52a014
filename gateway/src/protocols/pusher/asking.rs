//! What the application decides for Pusher's clients where their app's server has signed nothing: who may be there, which public
//! channels they subscribe to, and what they publish.

use std::sync::Arc;

use tidegate_backplane::{Channel, Payload};
use tidegate_wire::pusher::{Access, ChannelKind, Code};

use super::{
    entering::{EntranceError, Kind},
    events::EventRefused,
    leave_with,
    opening::enabled,
};
use crate::{
    app::apps::App,
    auth::Claims,
    config::HookQuestion,
    hooks::{HandedOn, Hook, Known, No},
    metrics::DisconnectReason,
    session::{Ctx, leaving::Leave},
};

impl Ctx<'_> {
    /// Asks who connects; it is told hello, or why not, with the answer.
    pub(super) fn ask_who_connects(&mut self, app: &App, hook: &Arc<Hook>, request: Arc<HandedOn>) {
        let Some(mut question) = self.question(HookQuestion::Connect, None, None, None) else { return };
        question.caller.known = Arc::new(Known { request: Arc::clone(&request), ..Known::default() });
        let id = app.id.clone();
        self.connections.set_held(self.id, true);
        self.ask(hook, question, move |ctx, answer| {
            match answer {
                Ok(reply) => {
                    let mut claims = Claims::of_reply(&reply);
                    if ctx.core.shared.hooks.keeps_requests() {
                        claims.keep_request(request);
                    }
                    ctx.set_claims(claims);
                    // The list of apps may be another one by now.
                    ctx.establish(enabled(ctx.core.shared.apps.by_id(id.as_str())));
                }
                Err(No::Away) => ctx.leave(leave_with(Code::OVER_CAPACITY)),
                // Clients do not come back after that.
                Err(no) => ctx.leave(Leave::Own {
                    code: Code::UNAUTHORIZED.into(),
                    text: no.to_string().into(),
                    reason: DisconnectReason::Forbidden,
                }),
            }
            ctx.connections.set_held(ctx.id, false);
        });
    }

    /// Whom to ask about a subscription: where nothing was signed for it.
    pub(super) fn whom_to_ask(&self, app: &App, channel: &Channel) -> Option<Arc<Hook>> {
        let name = channel.name();
        let is_signed = ChannelKind::of(name).access != Access::Public;
        let claims = self.open()?.claims().map(|claims| &**claims);
        let hook = (app.is_asked_about() && !is_signed).then(|| self.core.asks_to_subscribe(name, claims));
        hook.flatten()
    }

    /// Asks whether a public channel may be subscribed to, and subscribes.
    pub(super) fn ask_to_enter(&mut self, hook: &Arc<Hook>, channel: Channel) {
        let subject = (HookQuestion::Subscribe, Some(channel.name().into()));
        self.ask_holding(hook, subject, (None, None), move |ctx, answer| {
            let Some(app) = ctx.app_of() else { return };
            let has_room = ctx.core.has_room_for(std::slice::from_ref(&channel));
            match answer {
                Ok(_) if has_room => ctx.enter(&app, &channel, Kind::Plain),
                Ok(_) => ctx.fail_entrance(channel.name(), &EntranceError::NodeFull),
                Err(no) => ctx.fail_entrance(channel.name(), &no.into()),
            }
        });
    }

    /// Asks whether a client event may be published, and publishes what is to be then.
    pub(super) fn ask_to_publish_event(
        &mut self,
        hook: &Arc<Hook>,
        channel: Channel,
        event: &str,
        data: &str,
    ) {
        let (event, sent) = (Box::<str>::from(event), Payload::Text(data.into()));
        let subject = (HookQuestion::Publish, Some(channel.name().into()));
        self.ask_holding(hook, subject, (Some(sent.clone()), Some(event.clone())), move |ctx, answer| {
            let Some(app) = ctx.app_of() else { return };
            let refused = match answer.map(|reply| reply.data.unwrap_or(sent)) {
                Ok(Payload::Text(data)) => return ctx.publish_event(&app, channel, &event, &data),
                Ok(Payload::Binary(_)) => EventRefused::NoText,
                Err(no) => no.into(),
            };
            ctx.refuse_event(Some(channel.name()), &refused);
        });
    }
}
