//! Entries of one shard's connections: paged, so that growing copies nothing and an empty page goes back to the
//! allocator.

/// A page: 512 entries of about 110 bytes (see `entry`) are 56 KiB.
const PAGE: u32 = 512;

/// Names a connection of one shard for as long as it lives; a later connection in the same slot has another
/// generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionId {
    pub slot: u32,
    pub generation: u32,
}

#[derive(Debug)]
struct Page<T> {
    entries: Vec<Option<T>>,
    /// Free places within `entries`, as a stack.
    free: Vec<u16>,
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    pages: Vec<Option<Page<T>>>,
    /// Pages that have room, each once; those that were given back come first, to be used last.
    roomy: Vec<u32>,
    /// One emptied page, so that a connection that comes and goes alone does not cost a page each time.
    spare: Option<Page<T>>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { pages: Vec::new(), roomy: Vec::new(), spare: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// One past the highest slot that may be in use.
    pub(crate) fn slots(&self) -> u32 {
        self.pages.len() as u32 * PAGE
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let page_index = self.roomy_page();
        let page = self.pages[page_index as usize].as_mut().expect("a roomy page exists");
        let at = match page.free.pop() {
            Some(at) => {
                page.entries[at as usize] = Some(value);
                u32::from(at)
            }
            None => {
                page.entries.push(Some(value));
                page.entries.len() as u32 - 1
            }
        };
        if page.is_full() {
            self.roomy.pop();
        }
        self.len += 1;
        page_index * PAGE + at
    }

    /// Puts an entry at a place that was chosen elsewhere. False: another one is there.
    pub(crate) fn insert_at(&mut self, slot: u32, value: T) -> bool {
        let (page_index, at) = (slot / PAGE, (slot % PAGE) as usize);
        while self.pages.len() <= page_index as usize {
            // To be used last, as those that were given back are.
            self.roomy.insert(0, self.pages.len() as u32);
            self.pages.push(None);
        }
        let page = self.pages[page_index as usize].get_or_insert_with(Page::new);
        while page.entries.len() <= at {
            page.free.push(page.entries.len() as u16);
            page.entries.push(None);
        }
        if page.entries[at].is_some() {
            return false;
        }
        page.free.retain(|&free| usize::from(free) != at);
        page.entries[at] = Some(value);
        if page.is_full() {
            self.roomy.retain(|&roomy| roomy != page_index);
        }
        self.len += 1;
        true
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.pages.get((slot / PAGE) as usize)?.as_ref()?.entries.get((slot % PAGE) as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.pages
            .get_mut((slot / PAGE) as usize)?
            .as_mut()?
            .entries
            .get_mut((slot % PAGE) as usize)?
            .as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let page_index = slot / PAGE;
        let page = self.pages.get_mut(page_index as usize)?.as_mut()?;
        let value = page.entries.get_mut((slot % PAGE) as usize)?.take()?;
        let was_full = page.is_full();
        page.free.push((slot % PAGE) as u16);
        self.len -= 1;
        if page.free.len() == page.entries.len() {
            self.give_back(page_index);
        } else if was_full {
            self.roomy.push(page_index);
        }
        Some(value)
    }

    /// Index of a page with room: the top of `roomy`, made if it is not there.
    fn roomy_page(&mut self) -> u32 {
        if self.roomy.is_empty() {
            self.roomy.push(self.pages.len() as u32);
            self.pages.push(None);
        }
        let index = *self.roomy.last().expect("just filled");
        let spare = &mut self.spare;
        self.pages[index as usize].get_or_insert_with(|| spare.take().unwrap_or_else(Page::new));
        index
    }

    /// Takes an empty page away, and the end of the table if there are only such. A walk over the table, at most
    /// once in 512 removals.
    fn give_back(&mut self, index: u32) {
        self.spare = self.pages[index as usize].take().map(Page::emptied);
        while self.pages.pop_if(|page| page.is_none()).is_some() {}
        let pages = self.pages.len() as u32;
        self.roomy.retain(|&roomy| roomy < pages && roomy != index);
        if index < pages {
            self.roomy.insert(0, index);
        }
        if self.roomy.capacity() > 64 && self.roomy.len() < self.roomy.capacity() / 4 {
            self.roomy.shrink_to_fit();
        }
    }
}

impl<T> Page<T> {
    fn new() -> Self {
        Self { entries: Vec::with_capacity(PAGE as usize), free: Vec::new() }
    }

    fn emptied(mut self) -> Self {
        self.entries.clear();
        self.free.clear();
        self
    }

    fn is_full(&self) -> bool {
        self.entries.len() == PAGE as usize && self.free.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn behaves_like_a_map_and_gives_pages_back() {
        let mut random = fastrand::Rng::with_seed(0x9E37_79B9_7F4A_7C15);
        let mut slab = Slab::new();
        let mut model: HashMap<u32, u32> = HashMap::new();
        for (phase, inserts_of_ten) in [8, 2, 9, 5, 0].into_iter().enumerate() {
            for step in 0..6000u32 {
                if random.usize(..10) < inserts_of_ten {
                    let value = phase as u32 * 10_000 + step;
                    let slot = slab.insert(value);
                    assert!(model.insert(slot, value).is_none(), "slot {slot} was in use");
                } else if let Some(&slot) = model.keys().nth(random.usize(..model.len().max(1))) {
                    assert_eq!(slab.remove(slot), model.remove(&slot));
                    assert_eq!(slab.remove(slot), None);
                }
                assert_eq!(slab.len(), model.len());
            }
            for (slot, value) in &model {
                assert_eq!(slab.get(*slot), Some(value));
            }
        }
        for slot in model.into_keys() {
            slab.remove(slot);
        }
        assert_eq!((slab.slots(), slab.roomy.len()), (0, 0));
    }

    #[test]
    fn partly_used_pages_are_filled_before_new_ones_are_made() {
        let mut slab = Slab::new();
        for value in 0..4 * PAGE {
            slab.insert(value);
        }
        let given_back = PAGE..2 * PAGE;
        for slot in given_back.clone().chain([3, 2 * PAGE + 1]) {
            slab.remove(slot);
        }
        assert!(slab.pages[1].is_none());
        assert_eq!([slab.insert(0), slab.insert(0)].map(|slot| slot / PAGE), [2, 0]);
        for _ in given_back.clone() {
            assert!(given_back.contains(&slab.insert(0)));
        }
        assert_eq!(slab.slots(), 4 * PAGE);
    }

    #[test]
    fn entries_keep_places_that_were_chosen_elsewhere() {
        let mut random = fastrand::Rng::with_seed(0x1234_5678_9ABC_DEF0);
        let mut slots: Vec<u32> = (0..4 * PAGE).collect();
        random.shuffle(&mut slots);
        slots.truncate(1_000);
        let mut slab = Slab::new();
        for &slot in &slots {
            assert!(slab.insert_at(slot, slot));
            assert!(!slab.insert_at(slot, 0), "it is taken");
        }
        let mut all: std::collections::HashSet<u32> = slots.iter().copied().collect();
        while slab.len() < 4 * PAGE as usize {
            let slot = slab.insert(u32::MAX);
            assert!(all.insert(slot), "slot {slot} was in use");
        }
        assert_eq!(slab.slots(), 4 * PAGE, "places between are filled first");
        assert!(slots.iter().all(|&slot| slab.get(slot) == Some(&slot)));
        for slot in all {
            assert!(slab.remove(slot).is_some());
        }
        assert_eq!((slab.slots(), slab.roomy.len()), (0, 0));
    }

    #[test]
    fn one_that_comes_and_goes_uses_the_same_page() {
        let mut slab = Slab::new();
        let slot = slab.insert(1);
        let page = slab.pages[0].as_ref().map(|page| page.entries.as_ptr());
        slab.remove(slot);
        assert_eq!((slab.slots(), slab.insert(2)), (0, slot));
        assert_eq!(slab.pages[0].as_ref().map(|page| page.entries.as_ptr()), page);
    }
}
