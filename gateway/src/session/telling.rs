//! What a client is told of a channel while its subscription is not in a lane: what it missed, and what is delivered meanwhile.

use tidegate_backplane::{Gap, GapReason};
use tidegate_reactor::{Overflow, Shared as SharedBytes};
use tidegate_wire::sse;

use super::{Ctx, Session, opening::terms, protocol::Event};
use crate::{
    hub::{
        ChannelKey,
        content::{Content, gap_reason},
    },
    subscription::Item,
};

impl Ctx<'_> {
    /// Writes what the client missed, or that it cannot be had; a protocol whose form cannot say so is told.
    ///
    /// It counts against the bound of the queue, which is empty, unless it alone is more: then it is one page.
    pub(super) fn tell_items(&mut self, key: ChannelKey, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let mut out = Vec::new();
        let mut untold = None;
        for item in items {
            let content = Content::from(item);
            if let Content::Gap(gap) = &content {
                let name = self.core.hub.channel(key).name().to_owned();
                self.note_told(&name, &format_args!("a gap, {}", gap_reason(gap.reason)));
            }
            let is_forgotten = matches!(content, Content::Gap(Gap { reason: GapReason::Forgotten, .. }));
            if !self.say(key, &content, &mut out) && !is_forgotten {
                untold = Some(content);
                break;
            }
        }
        self.write_counted(&out);
        if let Some(Content::Gap(gap)) = untold {
            self.tell_protocol(Event::Missed { key, reason: gap.reason });
        }
    }

    /// Writes something live to a client that is not in a lane yet, a publication by the policy of the channel's namespace.
    pub(super) fn tell_live(&mut self, key: ChannelKey, content: &Content) {
        let mut out = Vec::new();
        if self.say(key, content, &mut out) {
            let policy = terms(self.core.shared.node.namespaces().of(self.core.hub.channel(key))).overflow;
            let overflow = if content.is_publication() { policy } else { Overflow::Never };
            let shared =
                SharedBytes { head: &[], bytes: &out.into(), messages: 1, last_at: 0, key, overflow };
            self.connections.write_shared(self.id.slot, &shared);
        }
    }

    /// Appends what the connection is told of a content. False: its form cannot say it.
    fn say(&mut self, key: ChannelKey, content: &Content, out: &mut Vec<u8>) -> bool {
        let core = &mut *self.core;
        let Some(open) = self.connections.get_mut(self.id).and_then(Session::open_mut) else { return true };
        let form = open.unsettled(key).and_then(|it| it.form).unwrap_or(open.form).plain();
        let form = match content {
            // It is told only to those who were told the list.
            Content::Presence(_) => core.hub.forms().with_presence(form),
            Content::Publication(_) | Content::Gap(_) => form,
        };
        let said = core.encoder.encode(core.hub.channel(key), content, form);
        if said.is_empty() {
            return false;
        }
        if core.hub.forms().get(form).has_heads()
            && let Some(id) = open.rare.as_mut().and_then(|rare| rare.advance(key, content.position()))
        {
            sse::begin_event(&id, out);
        }
        out.extend_from_slice(&said);
        core.metrics.messages_sent.add(1);
        true
    }
}

impl From<Item> for Content {
    fn from(item: Item) -> Self {
        match item {
            Item::Publication(publication) => Self::Publication(publication),
            Item::Gap(gap) => Self::Gap(gap),
        }
    }
}
