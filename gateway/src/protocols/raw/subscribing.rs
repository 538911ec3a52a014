//! What a client with `envelope=json` is told of its subscriptions.

use tidegate_backplane::{JoinError, Position};
use tidegate_wire::{
    frame::{self, Opcode},
    raw::{self, command},
};

use super::{TELLS_POSITIONS, forms};
use crate::{
    hub::ChannelKey,
    metrics::Instructed,
    node::roster::List,
    session::{Ctx, leaving::Leave},
};

impl Ctx<'_> {
    /// Tells where the client is in the channel, so that it can come back before the first message.
    pub(super) fn raw_subscribed(
        &mut self,
        key: ChannelKey,
        position: Option<Position>,
        recovered: bool,
        list: Option<&List>,
    ) {
        if let Some(id) = self.take_command(key) {
            let channel = self.core.hub.channel(key).clone();
            let place = self.core.place(key, position);
            let epoch = place.map(|place| place.epoch.to_string());
            let standing = |out: &mut Vec<u8>| {
                command::push_place(channel.name(), epoch.as_deref().zip(place.map(|it| it.offset)), out);
                command::push_flag("recovered", recovered, out);
            };
            return match list {
                None => self.ok(id, standing),
                Some(list) => self.ok_large(id, |out| {
                    standing(out);
                    out.push(b',');
                    out.extend_from_slice(forms::members(list));
                }),
            };
        }
        let (is_instructed, place) = (self.take_instructed(key), self.core.place(key, position));
        let tells_place = self.open().is_some_and(|open| open.tag == TELLS_POSITIONS) && place.is_some();
        if self.is_enveloped() && (is_instructed || tells_place) {
            let mut notice = Vec::new();
            let name = self.core.hub.channel(key).name();
            let epoch = place.map(|place| place.epoch.to_string());
            let place = epoch.as_deref().zip(place.map(|place| place.offset));
            raw::encode_subscribed(name, place, recovered, &mut notice);
            self.write_frame(Opcode::Text, &notice);
        }
        if let Some(list) = list {
            let mut notice = Vec::new();
            forms::put_list(self.core.hub.channel(key), list, &mut notice);
            self.answer_large(|out| frame::encode(Opcode::Text, &notice, out));
        }
    }

    pub(super) fn raw_refused(&mut self, key: ChannelKey, error: &JoinError) {
        self.forget_grant(key);
        if self.take_instructed(key) {
            return self.count_instructed(Instructed::Failed);
        }
        if let Some(id) = self.take_command(key) {
            return self.refuse_command(id, 503, &error.to_string());
        }
        self.leave(Leave::unavailable(error));
    }
}
