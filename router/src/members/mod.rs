//! Where the nodes are known from: a list, DNS, or the registry of the backplane.
//!
//! [`Members`] asks its source in rounds and tells the chooser. A source that is out of reach changes nothing: the last
//! known members stay.
//!
//! - `setting`: how a source is written
//! - `names`: resolving host names
//! - `listing`: the nodes of a list or of DNS
//! - `health`: whether such a node answers
//! - `registry`: the nodes that announce themselves

mod health;
mod listing;
mod names;
mod registry;
mod setting;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tidegate_backplane::{Backplane, BackplaneError};
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use self::{
    health::Health,
    names::{NameError, Names},
    setting::{DnsName, HostPort, MembersSetting},
};
use self::{
    health::Standings,
    listing::{Listed, Listing},
    registry::Registry,
};
use crate::{
    chooser::{Chooser, Observed},
    metrics::{Metrics, Refresh},
    placement::Member,
};

/// Keeps the chooser's nodes as its source says.
#[derive(Debug)]
pub struct Members {
    source: Source,
    every: Duration,
    chooser: Arc<Chooser>,
    metrics: Arc<Metrics>,
    /// The last round failed: only the first of several failures is logged.
    is_failing: bool,
}

/// Why a round brought no news.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Registry(#[from] BackplaneError),
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

#[derive(Debug)]
enum Source {
    Checked(Box<Checked>),
    Registry(Box<Registry>),
}

/// Nodes that do not speak for themselves.
#[derive(Debug)]
struct Checked {
    listing: Listing,
    health: Health,
    standings: Standings,
    /// Nodes that DNS has no more and that still have clients here. They get no others.
    leaving: Vec<Listed>,
}

/// Longer than a name server takes that answers at all, shorter than two rounds that a client would wait.
const LISTING_TIMEOUT: Duration = Duration::from_secs(3);

/// As often as gateways announce themselves.
const REGISTRY_INTERVAL: Duration = Duration::from_secs(1);

/// Health checks under way at once.
const CHECKS_AT_ONCE: usize = 64;

impl Members {
    /// Nodes of a list, checked for their health.
    pub fn of_list(
        list: Vec<HostPort>,
        names: Names,
        health: Health,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::checked(Listing::of_list(list, names), health, chooser, metrics)
    }

    /// Nodes that a name in DNS has, checked for their health.
    pub fn of_dns(
        name: DnsName,
        names: Names,
        health: Health,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::checked(Listing::of_dns(name, names), health, chooser, metrics)
    }

    /// Nodes that announce themselves on a backplane.
    pub fn of_registry(
        backplane: Arc<dyn Backplane>,
        names: Names,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let source = Source::Registry(Box::new(Registry::new(backplane, names)));
        Self { source, every: REGISTRY_INTERVAL, chooser, metrics, is_failing: false }
    }

    fn checked(listing: Listing, health: Health, chooser: Arc<Chooser>, metrics: Arc<Metrics>) -> Self {
        let every = health.interval;
        let (standings, leaving) = (Standings::default(), Vec::new());
        let checked = Checked { listing, health, standings, leaving };
        Self { source: Source::Checked(Box::new(checked)), every, chooser, metrics, is_failing: false }
    }

    /// Asks the source once and tells the chooser.
    pub async fn round(&mut self) {
        let observed = match &mut self.source {
            Source::Checked(checked) => checked.observe(&self.metrics, &self.chooser).await,
            Source::Registry(registry) => registry.observe(&self.metrics).await,
        };
        match observed {
            Ok((observed, outcome)) => {
                self.note(outcome.err());
                self.tell(observed);
            }
            Err(error) => self.note(Some(error)),
        }
    }

    /// Rounds, forever.
    pub async fn run(mut self) {
        let mut rounds = interval(self.every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is now; `round` was called before.
        rounds.tick().await;
        loop {
            rounds.tick().await;
            self.round().await;
        }
    }

    fn tell(&self, observed: Vec<Observed>) {
        let (all, live) = (observed.len(), observed.iter().filter(|one| !one.member.draining).count());
        if self.chooser.update(observed) {
            let digest = format_args!("{:016x}", self.chooser.digest());
            tracing::info!(members = all, live, %digest, "the members have changed");
        }
    }

    fn note(&mut self, error: Option<MembersError>) {
        let refresh = if error.is_some() { Refresh::Failed } else { Refresh::Ok };
        self.metrics.members_refreshes.add(refresh, 1);
        match error {
            Some(error) if !self.is_failing => {
                tracing::warn!(%error, "members cannot be read; the last known ones stay");
                self.is_failing = true;
            }
            None if self.is_failing => {
                tracing::info!("members can be read again");
                self.is_failing = false;
            }
            _ => {}
        }
    }
}

/// What a source knows now, and whether its listing could be read.
type Observation = (Vec<Observed>, Result<(), MembersError>);

impl Checked {
    /// Never fails as a whole: nodes that were listed before are checked also when the list cannot be read.
    async fn observe(&mut self, metrics: &Metrics, chooser: &Chooser) -> Result<Observation, MembersError> {
        let before = self.listing.nodes().to_vec();
        let outcome = match tokio::time::timeout(LISTING_TIMEOUT, self.listing.refresh()).await {
            Ok(outcome) => outcome.map_err(MembersError::Name),
            Err(_) => Err(MembersError::Timeout(LISTING_TIMEOUT)),
        };
        metrics.unresolved.set(self.listing.unresolved() as i64);
        self.note_leaving(before, chooser);
        let health = &self.health;
        let listed = self.listing.nodes().iter().map(|node| (node.clone(), false));
        let leaving = self.leaving.iter().map(|node| (node.clone(), true));
        let nodes: Vec<_> = listed.chain(leaving).collect();
        let checks = stream::iter(nodes).map(|(node, leaves)| async move {
            let outcome = health.check(&node.address, node.socket).await;
            (node, leaves, outcome)
        });
        let mut observed = Vec::new();
        let mut checks = std::pin::pin!(checks.buffer_unordered(CHECKS_AT_ONCE));
        while let Some((node, leaves, outcome)) = checks.next().await {
            let standing = self.standings.note(&node.name, &outcome, health.failures);
            observed.push(node.observed(if leaves { standing.without_new() } else { standing }));
        }
        self.standings.keep(|name| observed.iter().any(|one| &*one.member.name == name));
        Ok((observed, outcome))
    }

    /// What leaves DNS is mostly a gateway that is not ready: it drains, or its backplane is away. Its clients need not
    /// lose their connections for that; a gateway that died fails its checks.
    fn note_leaving(&mut self, before: Vec<Listed>, chooser: &Chooser) {
        self.leaving.extend(before);
        let is_listed = |name: &str| self.listing.nodes().iter().any(|node| *node.name == *name);
        self.leaving.retain(|node| !is_listed(&node.name));
        if self.leaving.is_empty() {
            return;
        }
        let members = chooser.members();
        let has_clients =
            |name: &str| members.iter().any(|(member, node)| *member.name == *name && node.claims() > 0);
        self.leaving.retain(|node| has_clients(&node.name));
    }
}

/// Each second, as long as the router runs; see [`Chooser::tick`].
pub async fn tick(chooser: Arc<Chooser>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        chooser.tick();
    }
}

/// What of a node is the same in all sources.
fn member(name: &str, address: &str, weight: u64, draining: bool) -> Member {
    let weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let weight = std::num::NonZeroU32::new(weight).unwrap_or(std::num::NonZeroU32::MIN);
    Member { name: name.into(), address: address.into(), weight, draining }
}

/// Since when; Tokio's clock, so that tests can move it.
fn now() -> Instant {
    Instant::now()
}
