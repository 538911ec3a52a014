//! The one that the links tell what happens: it knows whom each thing concerns.

use std::sync::{Arc, Weak};

use super::{
    contract::{Changed, LinkId, Seat, Session, Subscriber},
    control::Orders,
    leases::Doubt,
    subscriptions::Subscriptions,
};
use crate::Sink;

pub(crate) struct Owner {
    subscriptions: Arc<Subscriptions>,
    orders: Arc<Orders>,
    /// What this node holds on the servers. Not owned: it holds the links.
    held: Weak<Doubt>,
    sink: Arc<dyn Sink>,
}

impl Owner {
    pub(crate) fn new(
        subscriptions: Arc<Subscriptions>,
        orders: Arc<Orders>,
        held: Weak<Doubt>,
        sink: Arc<dyn Sink>,
    ) -> Self {
        Self { subscriptions, orders, held, sink }
    }

    fn doubt(&self) {
        if let Some(held) = self.held.upgrade() {
            held.raise();
        }
    }
}

impl Subscriber for Owner {
    fn up(&self, link: LinkId, session: Session) {
        self.subscriptions.up(link, session);
        self.orders.up(Seat { link, session });
        self.doubt();
    }

    fn down(&self, link: LinkId, session: Session) {
        self.orders.down(Seat { link, session });
        self.subscriptions.down(link, session);
    }

    fn routes_changed(&self, changed: &Changed) {
        self.orders.subscribe();
        self.subscriptions.routes_changed(changed);
        self.doubt();
    }

    fn refused(&self, link: LinkId, session: Session) {
        self.subscriptions.refused(link, session);
    }

    fn confirmed(&self, link: LinkId, session: Session, channel: &[u8]) {
        if self.orders.is_for(channel) {
            self.orders.confirmed(Seat { link, session });
        } else {
            self.subscriptions.confirmed(link, session, channel);
        }
    }

    fn ended(&self, link: LinkId, session: Session, channel: &[u8]) {
        if self.orders.is_for(channel) {
            self.orders.ended(Seat { link, session });
        } else {
            self.subscriptions.ended(link, session, channel);
        }
    }

    fn message(&self, link: LinkId, session: Session, channel: &[u8], payload: &[u8]) {
        if self.orders.is_for(channel) {
            self.orders.message(payload);
        } else {
            self.subscriptions.message(link, session, channel, payload);
        }
    }

    fn together(&self, tell: &mut dyn FnMut()) {
        self.sink.together(tell);
    }
}
