//! A queue with which another process goes on: what it was sending and does not know to be taken comes first, once more.

use std::sync::Arc;

use tidegate_wire::fields::{Malformed, Reader, Writer};

use super::{Queue, Topic};
use crate::app::webhooks::{dialect::EventJson, wills::Ticket};

/// An event as another process had it.
#[derive(Debug)]
pub(in crate::app::webhooks) struct Moved<'a> {
    pub(in crate::app::webhooks) json: &'a [u8],
    is_change: bool,
    topic: Option<Topic>,
    /// It had a ticket.
    pub(in crate::app::webhooks) is_end: bool,
}

const MISS: u8 = 0;
const COUNT: u8 = 1;

impl Queue {
    /// Nothing more is sent; what is under way may end.
    pub(in crate::app::webhooks) fn suspend(&self) {
        self.state().is_suspended = true;
    }

    pub(in crate::app::webhooks) fn resume(&self) {
        self.state().is_suspended = false;
        self.pushed.notify_one();
    }

    pub(in crate::app::webhooks) fn is_quiet(&self) -> bool {
        self.state().under_way.is_empty()
    }

    /// All events, oldest first.
    pub(in crate::app::webhooks) fn write(&self, out: &mut Writer) {
        let state = self.state();
        let waiting = state.lanes.iter().enumerate();
        let waiting = waiting.flat_map(|(lane, it)| it.events.iter().map(move |event| (lane, event)));
        let under_way = state.under_way.iter().map(|(lane, event)| (*lane, event));
        let mut all: Vec<_> = under_way.chain(waiting).collect();
        all.sort_by_key(|(_, event)| event.number);
        out.list(all.into_iter(), |out, (lane, event)| {
            out.bytes(&event.json);
            out.bool(lane == 0);
            out.option(event.topic.as_ref(), |out, topic| {
                out.u8(if matches!(topic, Topic::Miss(_)) { MISS } else { COUNT });
                out.text(topic.channel());
            });
            out.bool(event.ticket.is_some());
        });
    }

    /// Another process has all of it: nothing is sent here any more, not even to its end.
    pub(in crate::app::webhooks) fn give(&self) {
        let mut state = self.state();
        state.is_given = true;
        state.lanes.iter_mut().for_each(|lane| lane.events.clear());
        drop(state);
        self.abandon();
    }

    pub(in crate::app::webhooks) fn go_on(&self, moved: Moved<'_>, ticket: Option<Arc<Ticket>>) {
        self.add(moved.topic, moved.is_change, EventJson::from(moved.json), ticket);
    }
}

impl<'a> Moved<'a> {
    /// What a queue has written.
    ///
    /// # Errors
    /// [`Malformed`]: it is of another form.
    pub(in crate::app::webhooks) fn read_list(fields: &mut Reader<'a>) -> Result<Vec<Self>, Malformed> {
        let topic = |fields: &mut Reader<'a>| match (fields.u8()?, fields.text()?) {
            (MISS, channel) => Ok(Topic::Miss(channel.into())),
            (COUNT, channel) => Ok(Topic::Count(channel.into())),
            _ => Err(Malformed),
        };
        fields.list(|fields| {
            Ok(Self {
                json: fields.bytes()?,
                is_change: fields.bool()?,
                topic: fields.option(topic)?,
                is_end: fields.bool()?,
            })
        })
    }
}
