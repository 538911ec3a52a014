//! Sessions with one server, one after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::around::Around;
use super::dial::{Connection, Greeting, Mode};
use super::feed::{self, Of};
use super::halt::Part;
use super::link::{Link, Place};
use super::live::Live;
use super::pipe::{self, Pipe};
use super::probe::Probe;
use super::replication::{self, Replication};
use super::rights;
use crate::redis::contract::{Session, Subscriber};
use crate::redis::error::Trouble;
use crate::redis::url::Server;

/// Pauses between attempts grow from the first to the second; each is shortened by up to half, at random, so that the
/// nodes of a deployment do not return together.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// A session that lived so long was good: the next pause is the shortest.
const SESSION_GOOD: Duration = Duration::from_secs(5);

/// A session that is ready to begin.
pub(super) struct Made {
    live: Arc<Live>,
    feed: Connection,
    probe: Option<Probe>,
    /// The tasks of the other connections.
    drivers: JoinSet<()>,
    /// It began in another process.
    goes_on: bool,
}

/// The connections of a session.
pub(super) struct Connections {
    pub(super) feed: Connection,
    pub(super) commands: Connection,
    pub(super) vital: Connection,
    /// Where replicas are asked for.
    pub(super) replicated: Option<Connection>,
}

/// A session that another process had, before it is gone on with.
pub(super) struct Going {
    pub(super) session: Session,
    pub(super) server: Server,
    pub(super) began: Instant,
    pub(super) connections: Connections,
    pub(super) probe: Option<Probe>,
}

/// Makes sessions, one after the other, until the server leaves the topology. `first` began in another process.
pub(super) async fn run(
    link: Arc<Link>,
    around: Arc<dyn Around>,
    subscriber: Arc<dyn Subscriber>,
    mut first: Option<Made>,
) {
    let mut pause = PAUSES[0];
    loop {
        let made = match first.take() {
            Some(made) => Ok(made),
            None => tokio::select! {
                made = attempt(&link, &*around) => made,
                () = link.dropped.cancelled() => return,
            },
        };
        match made {
            Ok(made) => {
                let began = Instant::now();
                let of = Of {
                    link: Arc::clone(&link),
                    live: Arc::clone(&made.live),
                    around: Arc::clone(&around),
                    subscriber: Arc::clone(&subscriber),
                };
                serve(made, of).await;
                if began.elapsed() >= SESSION_GOOD {
                    pause = PAUSES[0];
                }
            }
            Err(trouble) => note_failure(&link, trouble, &*around),
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(PAUSES[1]),
            () = link.dropped.cancelled() => return,
        }
    }
}

/// A session from `up` to `down`.
async fn serve(made: Made, of: Of) {
    let Made { feed, probe, mut drivers, goes_on, .. } = made;
    let Of { link, live, around, subscriber } = of.clone();
    if !goes_on {
        link.set_up(&live);
        tracing::info!(server = %link.name, at = %live.server, session = live.session.0, "Redis is up");
        subscriber.up(link.id, live.session);
        around.changed();
    }
    let feeding = feed::run(feed, probe, of);
    tokio::pin!(feeding);
    tokio::select! {
        () = &mut feeding => {}
        () = link.dropped.cancelled() => {
            live.give_up(Trouble::Dropped);
            feeding.await;
        }
    }
    let why = live.why().cloned().unwrap_or(Trouble::Closed);
    // Calls that wait hear at once that their outcome is not known.
    drivers.shutdown().await;
    link.counts.add_replacement(&why);
    match &why {
        // It left the topology, or the process stops: nobody is to do anything about it.
        Trouble::Dropped => {
            tracing::info!(server = %link.name, session = live.session.0, "Redis is asked no more");
        }
        why => tracing::warn!(server = %link.name, session = live.session.0, %why, "Redis is away"),
    }
    link.set_away(live.server.clone(), why);
    around.changed();
    subscriber.down(link.id, live.session);
    around.refresh();
}

async fn attempt(link: &Link, around: &dyn Around) -> Result<Made, Trouble> {
    let server = match &link.place {
        Place::Fixed(server) | Place::Node(server) => server.clone(),
        Place::Master(sentinels) => sentinels.master(around.dialer()).await?,
    };
    link.set_tried(&server);
    let (feed, greeting) = around.dialer().raw(&server).await?;
    check(link, &greeting)?;
    let mut commands = around.dialer().commands(&server).await?;
    let probe = around.probe(link.id);
    rights::check(
        &mut commands,
        around.scripts(),
        probe.as_ref().map(Probe::name),
        link.publish_verb(),
        around.replicas(),
    )
    .await?;
    link.note_evicting(rights::evicting_policy(&mut commands).await?);
    let vital = around.dialer().commands(&server).await?;
    let replicated = match around.replicas() {
        0 => None,
        _ => Some(around.dialer().commands(&server).await?),
    };
    let connections = Connections { feed, commands, vital, replicated };
    let session = around.next_session();
    let mut made = Made::begin(link, around, session, server, Instant::now(), connections, probe);
    feed::begin(&mut made.feed, link, &made.live, made.probe.as_ref()).await?;
    // A master that hung meanwhile, and goes on, takes itself for the master still. What it accepts then is lost.
    if let Place::Master(sentinels) = &link.place
        && let Ok(master) = sentinels.master(around.dialer()).await
        && master != made.live.server
    {
        return Err(Trouble::OtherMaster("a Sentinel"));
    }
    Ok(made)
}

impl Made {
    pub(super) fn going_on(link: &Link, around: &dyn Around, going: Going) -> Self {
        let Going { session, server, began, connections, probe } = going;
        let made = Self::begin(link, around, session, server, began, connections, probe);
        Self { goes_on: true, ..made }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Carries commands from now on.
    fn begin(
        link: &Link,
        around: &dyn Around,
        session: Session,
        server: Server,
        began: Instant,
        connections: Connections,
        probe: Option<Probe>,
    ) -> Self {
        let Connections { feed, commands, vital, replicated } = connections;
        let replicated = replicated.map(|connection| (Replication::new(), connection));
        let (replication, replicating) = match replicated {
            Some(((part, waiters), connection)) => (Some(part), Some((waiters, connection))),
            None => (None, None),
        };
        let live = Live::new(session, server, began, replication);
        let mut drivers = JoinSet::new();
        let mut carry = |connection, pipe: &Arc<Pipe>, part| {
            drivers.spawn(pipe::carry(
                connection,
                Arc::clone(pipe),
                part,
                Arc::clone(&live.halt),
                ends(&live),
            ));
        };
        carry(commands, &live.pipe, Part::Commands);
        carry(vital, &live.vital, Part::Vital);
        if let (Some(replication), Some((waiters, connection))) = (&live.replication, replicating) {
            carry(connection, &replication.pipe, Part::Replicated);
            let (pipe, waits) = (Arc::clone(&replication.pipe), Arc::clone(&link.counts.waits));
            let count = move || waits.add();
            drivers.spawn(replication::run(around.replicas(), pipe, waiters, count, ends(&live)));
        }
        Self { live, feed, probe, drivers, goes_on: false }
    }
}

fn check(link: &Link, greeting: &Greeting) -> Result<(), Trouble> {
    match greeting.mode {
        _ if link.is_sharded() => check_cluster(greeting)?,
        Mode::Sentinel => return Err(Trouble::IsSentinel),
        Mode::Cluster => return Err(Trouble::IsCluster),
        Mode::Standalone => greeting.require("6.2")?,
    }
    if greeting.is_master { Ok(()) } else { Err(Trouble::Replica) }
}

fn note_failure(link: &Link, trouble: Trouble, around: &dyn Around) {
    tracing::debug!(server = %link.name, %trouble, "Redis stays away");
    link.set_failed(trouble);
    around.changed();
    // A node that does not come back may have a successor.
    around.refresh();
}

fn ends(live: &Arc<Live>) -> impl Fn(Trouble) + Send + Sync + use<> {
    let live = Arc::clone(live);
    move |why| live.give_up(why)
}

/// Sharded pub/sub came with 7.0.
pub(super) fn check_cluster(greeting: &Greeting) -> Result<(), Trouble> {
    match greeting.mode {
        Mode::Cluster => greeting.require("7.0"),
        Mode::Standalone => Err(Trouble::NotCluster),
        Mode::Sentinel => Err(Trouble::IsSentinel),
    }
}

fn jittered(pause: Duration) -> Duration {
    // Without randomness the pause is as long as it may be.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}
