//! What a sequence is given to hand over to.

use std::sync::Arc;

use super::counters::Counters;
use crate::{Gap, Intake, Publication};

/// Where a sequence hands over, and what bounds its memory.
pub(super) trait Outlet {
    fn publication(&mut self, publication: Arc<Publication>) -> Intake;
    fn gap(&mut self, gap: Gap);
    /// Changes of who is in the channel may have been missed.
    fn presence_lost(&mut self);
    /// Takes memory for a publication that waits; false when the node has none left.
    fn reserve(&mut self, bytes: usize) -> bool;
    fn release(&mut self, bytes: usize);
    fn counters(&self) -> &Counters;
}
