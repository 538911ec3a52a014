//! What is told to the subscribers of a channel, before a form says it.

use std::sync::Arc;

use tidegate_backplane::{Gap, GapReason, Position, PresenceEvent, Publication, Sender};

use crate::subscription::Arrival;

/// What is told to the subscribers of a channel.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Publication(Arc<Publication>),
    Gap(Gap),
    /// Who is in the channel has changed. Only clients that are told who is there are told of it.
    Presence(Arc<PresenceEvent>),
}

impl Content {
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Publication(publication) => publication.position,
            Self::Gap(gap) => gap.top,
            Self::Presence(_) => None,
        }
    }

    pub(crate) fn sender(&self) -> Option<&Sender> {
        match self {
            Self::Publication(publication) => publication.sender.as_deref(),
            Self::Gap(_) | Self::Presence(_) => None,
        }
    }

    /// What it is to a client that may have it already.
    pub(crate) fn arrival(&self) -> Arrival {
        match self {
            Self::Publication(publication) => Arrival::Publication(publication.position),
            Self::Gap(gap) => Arrival::Gap(gap.top),
            Self::Presence(event) => Arrival::Presence(event.sequence),
        }
    }

    /// Whether it may be missed where a channel's policy says so. What is not a publication never may.
    pub(crate) fn is_publication(&self) -> bool {
        matches!(self, Self::Publication(_))
    }
}

/// The word for a gap's reason in notices and close frames.
pub(crate) fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Reconnect => "reconnect",
        GapReason::Overflow => "overflow",
        GapReason::Hole => "hole",
        // For a client both mean that its position is of no use any more.
        GapReason::Unrecoverable | GapReason::Forgotten => "unrecoverable",
    }
}
