//! What happens to channels in the whole cluster, told to the webhooks of their apps and to hooks.

use std::sync::Arc;

use tidegate_backplane::{Channel, Transition};

use super::{Event, HookEvents, Webhooks};
use crate::app::apps::Apps;

/// Takes the transitions that the backplane hands to this node. Each comes to one node of the cluster, and ends come
/// when they have lasted: nothing is to be decided here.
#[derive(Debug)]
pub(crate) struct TransitionHooks {
    apps: Arc<Apps>,
    webhooks: Arc<Webhooks>,
    hooks: Arc<HookEvents>,
}

/// Names that begin so are of the gateway itself: who watches whom, and what is sent to one user.
pub(crate) const INTERNAL: char = '#';

impl TransitionHooks {
    pub(crate) fn new(apps: Arc<Apps>, webhooks: Arc<Webhooks>, hooks: Arc<HookEvents>) -> Self {
        Self { apps, webhooks, hooks }
    }

    /// The will of a connection of a node that died.
    pub(crate) fn tell_will(&self, will: &str) {
        self.hooks.tell_will(will);
    }

    /// The same, told by others though this node lives.
    pub(crate) fn tell_again(&self, will: &str) {
        self.hooks.tell_again(will);
    }

    /// Never blocks. A channel of an app that is gone has nobody to tell.
    pub(crate) fn tell(&self, channel: &Channel, transition: &Transition) {
        if !channel.name().starts_with(INTERNAL) {
            self.hooks.tell_transition(channel, transition);
        }
        let app = channel.app().map_or_else(|| self.apps.default(), |id| self.apps.by_id(id));
        let (Some(app), channel) = (app, channel.name()) else { return };
        let is_told = match transition {
            // Counted for who was subscribed before it was switched off.
            Transition::Count { .. } => app.subscription_count,
            _ => true,
        };
        if is_told && !channel.starts_with(INTERNAL) {
            self.webhooks.notify(&app.webhooks, event(channel, transition));
        }
    }
}

fn event<'a>(channel: &'a str, transition: &'a Transition) -> Event<'a> {
    match transition {
        Transition::Occupied => Event::ChannelOccupied { channel },
        Transition::Vacated => Event::ChannelVacated { channel },
        Transition::UserJoined { user } => Event::MemberAdded { channel, user_id: user },
        Transition::UserLeft { user } => Event::MemberRemoved { channel, user_id: user },
        Transition::Count { subscriptions } => {
            Event::SubscriptionCount { channel, subscription_count: *subscriptions }
        }
    }
}
