//! Why a channel is repaired.

use crate::GapReason;

/// Why what was handed over may not be all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The subscription was not there for a while.
    Reconnect,
    /// The sink had no room.
    Overflow,
    /// An offset was skipped.
    Hole,
    /// A look at the position found more than had arrived.
    Check,
    /// A publication of another epoch arrived.
    Epoch,
    /// A publication arrived that follows another one than that which was handed over.
    Rewritten,
}

impl Cause {
    pub(super) fn reason(self) -> GapReason {
        match self {
            Self::Reconnect => GapReason::Reconnect,
            Self::Overflow => GapReason::Overflow,
            Self::Hole | Self::Check => GapReason::Hole,
            Self::Epoch | Self::Rewritten => GapReason::Unrecoverable,
        }
    }
}
