//! What the backplane calls: it spreads publications, gaps and presence to the shards that have subscribers.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tidegate_backplane::{Channel, Control, Gap, Intake, PresenceEvent, Publication, Sink, Transition};
use tidegate_reactor::waking_once;

use super::{
    asking::Answering,
    content::Content,
    instruction::What,
    interest::{Interest, Interests},
    outgoing::Outgoing,
    roster::Rosters,
    shards::{Order, ShardPort, Shards},
    watching::Watching,
};
use crate::app::webhooks::TransitionHooks;

/// What the backplane calls: spreads to the shards.
pub(crate) struct Relay {
    /// What is published locally has one order on all shards.
    local_order: Mutex<()>,
    pub(crate) interests: Arc<Interests>,
    pub(crate) rosters: Arc<Rosters>,
    pub(crate) watching: Watching,
    shards: Shards,
    /// Publications handed over for channels that nobody here is subscribed to any more.
    pub(crate) unwanted: AtomicU64,
    /// Set once, before there is a backplane that tells of them.
    pub(crate) transition_hooks: OnceLock<TransitionHooks>,
    /// The same.
    pub(crate) answering: OnceLock<Answering>,
}

impl Relay {
    pub(crate) fn new(shards: Vec<Box<dyn ShardPort>>) -> Self {
        let shards: Shards = shards.into();
        let (interests, unwanted) = (Arc::new(Interests::new()), AtomicU64::new(0));
        let rosters = Arc::new(Rosters::new(Arc::clone(&interests), Arc::clone(&shards)));
        let (transition_hooks, answering) = (OnceLock::new(), OnceLock::new());
        let watching = Watching::default();
        Self {
            local_order: Mutex::default(),
            interests,
            rosters,
            watching,
            shards,
            unwanted,
            transition_hooks,
            answering,
        }
    }

    /// Spreads what the backplane could not be given. Whether it comes before or after what the backplane hands over
    /// at the same time may differ from shard to shard.
    pub(super) fn publish_locally(&self, channel: &Channel, publication: Publication) {
        let Some(interest) = self.interests.get(channel) else { return };
        let payload_bytes = publication.payload.bytes().len();
        let _in_order = self.local_order.lock().unwrap_or_else(PoisonError::into_inner);
        self.spread(&interest, channel, Content::Publication(Arc::new(publication)), payload_bytes);
    }

    fn spread(&self, interest: &Arc<Interest>, channel: &Channel, content: Content, payload_bytes: usize) {
        self.watching.published(channel);
        interest.hand();
        spread(&self.shards, interest, channel, content, payload_bytes);
    }

    pub(crate) fn to_all(&self, order: &Order) {
        for shard in self.shards.iter() {
            shard.order(order.clone());
        }
    }

    pub(crate) fn stop_shards(&self) {
        for shard in self.shards.iter() {
            shard.stop();
        }
    }
}

/// Puts content into the mailboxes of the shards that have subscribers of its channel.
pub(crate) fn spread(
    shards: &Shards,
    interest: &Arc<Interest>,
    channel: &Channel,
    content: Content,
    payload_bytes: usize,
) {
    let load = interest.load(payload_bytes);
    let outgoing = Arc::new(Outgoing::new(channel.clone(), content, load));
    for shard in interest.shards() {
        shards[shard].order(Order::Deliver(Arc::clone(&outgoing)));
    }
}

impl Sink for Relay {
    fn publication(&self, channel: &Channel, publication: Arc<Publication>) -> Intake {
        let Some(interest) = self.interests.get(channel) else {
            self.unwanted.fetch_add(1, Ordering::Relaxed);
            return Intake::Taken;
        };
        if !interest.takes_more() {
            return Intake::Full;
        }
        let payload_bytes = publication.payload.bytes().len();
        self.spread(&interest, channel, Content::Publication(publication), payload_bytes);
        Intake::Taken
    }

    fn together(&self, hand_over: &mut dyn FnMut()) {
        waking_once(hand_over);
    }

    fn gap(&self, channel: &Channel, gap: Gap) {
        if let Some(interest) = self.interests.get(channel) {
            self.spread(&interest, channel, Content::Gap(gap), 0);
        }
    }

    fn control(&self, control: Control) {
        match control {
            Control::Disconnect { target, reason } => {
                self.to_all(&Order::Disconnect { target, reason });
            }
            Control::Instruct { target, text } => {
                let Some(answering) = self.answering.get() else { return };
                let Some(instruction) = answering.read(&text).map(Arc::new) else { return };
                let round = answering.round(&instruction);
                if let What::Channels(asked) = &instruction.what {
                    let (asked, interests) = (asked.clone(), Arc::clone(&self.interests));
                    return round.map_or((), |round| {
                        answering.apart(move || round.add(0, interests.page(&asked)));
                    });
                }
                self.to_all(&Order::Instruct { target, instruction, round });
            }
            Control::AskBack { node, peers } => {
                self.to_all(&Order::AskBack { node, peers: peers.into() });
            }
            Control::Watch { connections } => self.watching.renew(connections, Instant::now()),
        }
    }

    fn presence(&self, channel: &Channel, event: Arc<PresenceEvent>) {
        self.rosters.event(channel, event);
    }

    fn presence_lost(&self, channel: &Channel) {
        self.rosters.lost(channel);
    }

    fn transition(&self, channel: &Channel, transition: Transition) {
        if let Some(hooks) = self.transition_hooks.get() {
            hooks.tell(channel, &transition);
        }
    }

    fn will(&self, will: &str) {
        if let Some(hooks) = self.transition_hooks.get() {
            hooks.tell_will(will);
        }
    }

    fn will_was_told(&self, will: &str) {
        if let Some(hooks) = self.transition_hooks.get() {
            hooks.tell_again(will);
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}
