//! Where the nodes are known from: a list, DNS, or the registry of the backplane.
//!
//! [`Members`] asks its source in rounds and tells the chooser. A source that is out of reach changes nothing: the last
//! known members stay.
//!
//! - `setting`: how a source is written
//! - `names`, `lookups`: resolving host names, many at once
//! - `listing`: the nodes of a list or of DNS
//! - `registry`: the nodes that announce themselves
//! - `health`: whether a node answers
//! - `membership`: what follows from all of that over time

mod health;
mod listing;
mod lookups;
mod membership;
mod names;
mod registry;
mod setting;

use std::{collections::HashMap, net::SocketAddr, num::NonZeroU32, path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tidegate_backplane::{BackplaneError, ReadNodes};
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use self::{
    health::Health,
    names::{NameError, Names},
    setting::{DnsName, HostPort, MembersSetting},
};
use self::{
    health::Outcome,
    listing::{Listed, Listing},
    membership::{Membership, Rules, Standing},
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
    health: Health,
    membership: Membership<Place>,
    /// What was last logged of each member.
    shown: HashMap<Box<str>, Standing>,
    begin: Instant,
    every: Duration,
    chooser: Arc<Chooser>,
    metrics: Arc<Metrics>,
    /// The last round failed: only the first of several failures is logged.
    is_failing: bool,
    /// Nearly all members look bad.
    is_panicking: bool,
    /// It was said that members keep publications to themselves.
    said_alone: bool,
}

/// What is known of a member beside how it stands.
#[derive(Debug, Clone)]
struct Place {
    address: Box<str>,
    socket: SocketAddr,
    weight: u64,
    connections: Option<u64>,
    capacity: Option<u64>,
    handover: Option<Box<Path>>,
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
    Listing(Box<Listing>, Leaving),
    Registry(Box<Registry>),
}

/// Nodes that DNS has no more and that still have clients here. They get no others.
#[derive(Debug, Default)]
struct Leaving(Vec<Listed>);

/// As often as gateways announce themselves.
const REGISTRY_INTERVAL: Duration = Duration::from_secs(1);

/// What gateways are asked unless it is configured, and those of a registry.
const ALIVE: &str = "/livez";
const READY: &str = "/readyz";

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
        let source = Source::Listing(Box::new(Listing::of_list(list, names)), Leaving::default());
        Self::new(source, health.interval, health, chooser, metrics)
    }

    /// Nodes that a name in DNS has, checked for their health.
    pub fn of_dns(
        name: DnsName,
        names: Names,
        health: Health,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let source = Source::Listing(Box::new(Listing::of_dns(name, names)), Leaving::default());
        Self::new(source, health.interval, health, chooser, metrics)
    }

    /// Nodes that announce themselves on a backplane. Those of which it says nothing good are checked, unless it is said
    /// otherwise for whether they are ready: one that cannot reach the backplane lives, and serves nobody.
    pub fn of_registry(
        nodes: Arc<dyn ReadNodes>,
        names: Names,
        health: Health,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let source = Source::Registry(Box::new(Registry::new(nodes, names)));
        let path = if &*health.path == ALIVE { READY.into() } else { health.path };
        let health = Health { path, ..health };
        Self::new(source, REGISTRY_INTERVAL, health, chooser, metrics)
    }

    fn new(
        source: Source,
        every: Duration,
        health: Health,
        chooser: Arc<Chooser>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let rules = Rules { failures: health.failures, cut_after: health.cut_after };
        Self {
            source,
            health,
            membership: Membership::new(rules),
            shown: HashMap::new(),
            begin: Instant::now(),
            every,
            chooser,
            metrics,
            is_failing: false,
            is_panicking: false,
            said_alone: false,
        }
    }

    /// Asks the source once, checks who is to be checked, and tells the chooser what follows.
    pub async fn round(&mut self) {
        match self.read().await {
            Ok(error) => self.note(error),
            Err(error) => {
                self.membership.unreadable();
                return self.note(Some(error));
            }
        }
        self.check().await;
        self.tell();
    }

    /// Asks the source. An error beside its answer: a part of it is not known.
    async fn read(&mut self) -> Result<Option<MembersError>, MembersError> {
        let (listed, error, announced) = match &mut self.source {
            Source::Registry(registry) => {
                let (listed, error) = registry.read(&self.metrics).await?;
                (listed, error, true)
            }
            // Never fails as a whole: nodes that were listed before are checked also when the list cannot be read.
            Source::Listing(listing, leaving) => {
                let before = listing.nodes().to_vec();
                let outcome = listing.refresh().await;
                self.metrics.unresolved.set(listing.unresolved() as i64);
                leaving.note(before, listing.nodes(), &self.chooser);
                let listed = listing.nodes().iter().map(|node| of_listed(node, false));
                let listed = listed.chain(leaving.0.iter().map(|node| of_listed(node, true))).collect();
                (listed, outcome.err().map(MembersError::Name), false)
            }
        };
        self.membership.listed(self.begin.elapsed(), listed, announced);
        Ok(error)
    }

    /// Checks all nodes that do not speak for themselves, and those that have not spoken lately.
    async fn check(&mut self) {
        let now = self.begin.elapsed();
        let of = |(name, place): (&str, &Place)| (Box::<str>::from(name), place.clone());
        let whom: Vec<_> = match &self.source {
            Source::Listing(..) => self.membership.all().map(of).collect(),
            Source::Registry(_) => self.membership.doubtful(now).map(of).collect(),
        };
        let health = &self.health;
        let checks = stream::iter(whom).map(|(name, place)| async move {
            let outcome = health.check(&place.address, place.socket).await;
            (name, outcome)
        });
        let mut checks = std::pin::pin!(checks.buffer_unordered(CHECKS_AT_ONCE));
        let (mut asked, mut alone) = (0, 0);
        while let Some((name, outcome)) = checks.next().await {
            asked += 1;
            match &outcome {
                Outcome::Failed(error) => tracing::debug!(node = name, %error, "a check failed"),
                Outcome::NotMade(error) => tracing::warn!(%error, "gateways cannot be checked from here"),
                Outcome::Healthy { alone: true } => alone += 1,
                Outcome::Healthy { .. } | Outcome::Refusing => {}
            }
            self.membership.checked(self.begin.elapsed(), &name, outcome.found());
        }
        if alone > 0 && asked > 1 && !self.said_alone {
            self.said_alone = true;
            tracing::warn!(
                "{alone} of {asked} gateways have the memory backplane: what is published on one does not reach the clients \
                 of another. Give all of them the same Redis (`backplane`)"
            );
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

    fn tell(&mut self) {
        self.note_panic();
        let decisions = self.membership.decide(self.begin.elapsed());
        let mut shown = HashMap::new();
        let mut observed = Vec::with_capacity(decisions.len());
        for (name, place, standing) in decisions {
            if self.shown.get(name) != Some(&standing) {
                log_standing(name, standing);
            }
            shown.insert(name.into(), standing);
            observed.push(place.observed(name, standing));
        }
        self.shown = shown;
        let (all, live) = (observed.len(), observed.iter().filter(|one| !one.member.draining).count());
        if self.chooser.update(observed) {
            let digest = format_args!("{:016x}", self.chooser.digest());
            tracing::info!(members = all, live, %digest, "the members have changed");
        }
    }

    fn note_panic(&mut self) {
        let panics = self.membership.is_panicking();
        if panics != self.is_panicking {
            match panics {
                true => tracing::error!(
                    "nearly all gateways look bad: this router may be cut off, and believes none of it"
                ),
                false => tracing::info!("most gateways look well again"),
            }
        }
        self.is_panicking = panics;
        self.metrics.panicking.set(panics.into());
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

impl Leaving {
    /// What leaves DNS is mostly a gateway that is not ready: it drains, or its backplane is away. Its clients need not
    /// lose their connections for that; a gateway that died fails its checks.
    fn note(&mut self, before: Vec<Listed>, listed: &[Listed], chooser: &Chooser) {
        self.0.extend(before);
        self.0.retain(|node| !listed.iter().any(|other| other.name == node.name));
        if self.0.is_empty() {
            return;
        }
        let members = chooser.members();
        let has_clients =
            |name: &str| members.iter().any(|(member, node)| *member.name == *name && node.claims() > 0);
        self.0.retain(|node| has_clients(&node.name));
        self.0.sort_by(|one, other| one.name.cmp(&other.name));
        self.0.dedup_by(|later, first| later.name == first.name);
    }
}

impl Place {
    fn observed(&self, name: &str, standing: Standing) -> Observed {
        let weight = u32::try_from(self.weight).unwrap_or(u32::MAX);
        let member = Member {
            name: name.into(),
            address: self.address.clone(),
            weight: NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN),
            draining: standing != Standing::Live,
        };
        Observed {
            member,
            is_down: matches!(standing, Standing::Down | Standing::Lost),
            is_lost: standing == Standing::Lost,
            socket: self.socket,
            connections: self.connections,
            capacity: self.capacity,
            handover: self.handover.clone(),
        }
    }
}

fn of_listed(node: &Listed, draining: bool) -> membership::Listed<Place> {
    let data = Place {
        address: node.address.clone(),
        socket: node.socket,
        weight: node.weight.into(),
        connections: None,
        capacity: None,
        handover: None,
    };
    membership::Listed { name: node.name.clone(), data, draining, renewed: true }
}

fn log_standing(node: &str, standing: Standing) {
    match standing {
        Standing::Live => tracing::info!(node, "takes clients"),
        Standing::Leaving => tracing::info!(node, "takes no more clients"),
        Standing::Down => tracing::warn!(node, "does not answer: it gets no new clients"),
        Standing::Lost => tracing::warn!(node, "is lost: its clients are cut"),
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
