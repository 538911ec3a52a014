//! What is delivered while history is read.

use super::{Item, seen::Seen};

/// Most that is kept for one channel of one connection: what a busy channel publishes during one read. Payloads are
/// shared with everyone else who has them, so the usual cost is a pointer for each.
pub(crate) const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Live publications and gaps that wait for the page which is being read. They do not count as load of the channel:
/// its publishers must not wait for one client's history.
#[derive(Debug, Default)]
pub(super) struct Kept {
    items: Vec<Item>,
    bytes: usize,
    overflowed: bool,
    begins_late: bool,
    /// As the code before this machine did: the overflow is not looked at.
    #[cfg(test)]
    forgets_overflow: bool,
}

impl Kept {
    /// Keeps an item. Once there is no room for one, all are let go of: history has them.
    pub(super) fn keep(&mut self, item: &Item) {
        if self.overflowed {
            return;
        }
        self.bytes += item.bytes();
        if self.bytes <= KEPT_BYTES_MAX {
            return self.items.push(item.clone());
        }
        self.overflowed = true;
        self.items = Vec::new();
    }

    /// Some of what was delivered is not here: history has to be read once more.
    pub(super) fn has_overflowed(&self) -> bool {
        #[cfg(test)]
        if self.forgets_overflow {
            return false;
        }
        self.overflowed
    }

    /// Keeps an item for who wants the newest and what follows it: what came before a gap is let go of, and what does
    /// not fit but for the newest.
    pub(super) fn keep_newest(&mut self, item: &Item) {
        self.bytes += item.bytes();
        let is_gap = matches!(item, Item::Gap(_));
        if is_gap || self.bytes > KEPT_BYTES_MAX {
            self.items.retain(|kept| !is_gap && matches!(kept, Item::Gap(_)));
            self.bytes = item.bytes();
            self.begins_late = true;
        }
        self.items.push(item.clone());
    }

    /// Some of what followed the read was let go of: what is here does not continue it.
    pub(super) fn begins_late(&self) -> bool {
        self.begins_late
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The read may be from before a gap, and nothing has come since to say where the channel stands.
    pub(super) fn ends_with_gap(&self) -> bool {
        matches!(self.items.last(), Some(Item::Gap(_)))
    }

    /// What is newer than what the client has.
    pub(super) fn into_news(self, seen: &mut Seen) -> Vec<Item> {
        let mut items = self.items;
        items.retain(|item| seen.take(item.arrival()));
        items
    }

    #[cfg(test)]
    pub(super) fn set_forgets_overflow(&mut self, forgets: bool) {
        self.forgets_overflow = forgets;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.items.iter().map(Item::bytes).sum()
    }
}
