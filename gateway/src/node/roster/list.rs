//! Who is in a channel at one moment, shared by all who are told of it.

use std::{ops::Deref, sync::OnceLock};

use tidegate_backplane::Roll;

/// A version of a channel's roll, and what clients are told of it: written once for each way of saying it, however many
/// join before the next change.
#[derive(Debug, Default)]
pub(crate) struct List {
    roll: Roll,
    said: [OnceLock<Box<[u8]>>; ListForm::COUNT],
}

/// A way of saying a list. A protocol has one for each of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListForm(usize);

impl ListForm {
    /// Ways that there may be.
    const COUNT: usize = 4;

    pub(crate) const fn new(number: usize) -> Self {
        assert!(number < Self::COUNT);
        Self(number)
    }
}

impl List {
    pub(crate) fn new(roll: Roll) -> Self {
        Self { roll, said: Default::default() }
    }

    /// What `write` writes. Two shards that ask at the same moment may both write: neither waits for the other.
    pub(crate) fn said(&self, form: ListForm, write: impl FnOnce(&Roll, &mut Vec<u8>)) -> &[u8] {
        let said = &self.said[form.0];
        if said.get().is_none() {
            let mut out = Vec::new();
            write(&self.roll, &mut out);
            // Another shard's is the same.
            if said.set(out.into()).is_err() {}
        }
        said.get().map(|said| &**said).unwrap_or_default()
    }
}

/// What was said of it changes nothing.
impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        self.roll == other.roll
    }
}

impl Deref for List {
    type Target = Roll;

    fn deref(&self) -> &Roll {
        &self.roll
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_once_for_each_form() {
        let (list, mut writes) = (List::new(Roll::default()), 0);
        for number in [0, 1, 0, 1, 0] {
            let said = list.said(ListForm::new(number), |_, out| {
                writes += 1;
                out.push(number as u8);
            });
            assert_eq!(said, [number as u8]);
        }
        assert_eq!(writes, 2);
    }
}
