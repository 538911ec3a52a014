//! Who receives what one lane carries, walked in slices while people come and go.

/// Connection slots in three parts, so that a running fan-out serves each member once, whoever joins or leaves
/// meanwhile:
///
/// ```text
/// [0, served) have it    [served, end) will get it    [end, ..) joined after it began
/// ```
///
/// 4 bytes for a member; its connection keeps the index, which makes leaving O(1).
#[derive(Debug, Default)]
pub(crate) struct Members {
    slots: Vec<u32>,
    served: usize,
    end: usize,
}

impl Members {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Who is at an index.
    pub(crate) fn slot(&self, index: u32) -> u32 {
        self.slots[index as usize]
    }

    /// Adds a member; its index.
    pub(crate) fn join(&mut self, slot: u32) -> u32 {
        self.slots.push(slot);
        self.slots.len() as u32 - 1
    }

    /// Removes the member at `index` and reports each member that moved, with its new index. At most three do:
    /// the hole travels to the end of its part, then of the next ones.
    pub(crate) fn leave(&mut self, index: u32, mut on_moved: impl FnMut(u32, u32)) {
        let mut hole = index as usize;
        let mut fill = |slots: &mut Vec<u32>, hole: usize, from: usize| {
            if hole != from {
                slots[hole] = slots[from];
                on_moved(slots[hole], hole as u32);
            }
            from
        };
        if hole < self.served {
            self.served -= 1;
            hole = fill(&mut self.slots, hole, self.served);
        }
        if hole < self.end {
            self.end -= 1;
            hole = fill(&mut self.slots, hole, self.end);
        }
        let last = self.slots.len() - 1;
        fill(&mut self.slots, hole, last);
        self.slots.pop();
        if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Removes everyone. No fan-out may be under way.
    pub(crate) fn take(&mut self) -> Vec<u32> {
        std::mem::take(self).slots
    }

    /// Removes everyone; the answer also says how many of them, the first, the last fan-out has served. None may be under
    /// way.
    pub(crate) fn take_served(&mut self) -> (Vec<u32>, usize) {
        let served = self.end;
        (self.take(), served)
    }

    /// Begins a fan-out to everyone who is here now.
    pub(crate) fn begin(&mut self) {
        self.served = 0;
        self.end = self.slots.len();
    }

    /// The next member to serve in the running fan-out.
    pub(crate) fn next_to_serve(&mut self) -> Option<u32> {
        let slot = (self.served < self.end).then(|| self.slots[self.served])?;
        self.served += 1;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Join,
        Leave(usize),
        Serve,
        Begin,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Join),
            2 => any::<usize>().prop_map(Step::Leave),
            4 => Just(Step::Serve),
            1 => Just(Step::Begin),
        ];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        /// Everyone who was a member when the fan-out began and still is gets it, exactly once; nobody else does.
        #[test]
        fn a_fan_out_serves_each_member_once(steps in steps()) {
            let mut members = Members::default();
            let mut index_of: HashMap<u32, u32> = HashMap::new();
            let mut owed: HashSet<u32> = HashSet::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Join => {
                        let slot = n as u32;
                        index_of.insert(slot, members.join(slot));
                    }
                    Step::Leave(pick) => {
                        let mut slots: Vec<u32> = index_of.keys().copied().collect();
                        slots.sort_unstable();
                        if slots.is_empty() { continue }
                        let slot = slots[pick % slots.len()];
                        let index = index_of.remove(&slot).expect("picked from it");
                        members.leave(index, |moved, to| { index_of.insert(moved, to); });
                        owed.remove(&slot);
                    }
                    Step::Serve => {
                        match members.next_to_serve() {
                            Some(slot) => prop_assert!(owed.remove(&slot), "{slot} was not owed anything"),
                            None => prop_assert!(owed.is_empty(), "{owed:?} were skipped"),
                        }
                    }
                    Step::Begin => {
                        // A lane begins anew only when everyone was served.
                        while let Some(slot) = members.next_to_serve() {
                            prop_assert!(owed.remove(&slot));
                        }
                        members.begin();
                        owed = index_of.keys().copied().collect();
                    }
                }
                for (&slot, &index) in &index_of {
                    prop_assert_eq!(members.slots[index as usize], slot);
                }
                prop_assert_eq!(members.slots.len(), index_of.len());
            }
        }
    }
}
