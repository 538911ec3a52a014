//! The suite that every [`Backplane`] passes: the contract of the trait, as checks.
//!
//! An implementation's test gives a [`Subject`] and calls [`run`], or the checks one by one. The suite makes no
//! assumption on speed: it awaits conditions, and gives up after [`DEADLINE`]. Names of channels and nodes are
//! random, so it can run against a server that others use. Run it on a multi-thread Tokio runtime: publishers are
//! tasks, and on one thread they would only take turns.
//!
//! - `order`: order under concurrent publishers, atomicity of history and sink, idempotency.
//! - `recovery`: positions, bounds of history, epochs.
//! - `interest`: who is handed what.
//! - `presence`: who is in a channel, and what is told of it.
//! - `cluster`: nodes, control.
//! - `nodes`: what holds between the nodes of a cluster.

mod cluster;
mod interest;
mod nodes;
mod order;
mod presence;
mod recorder;
mod recovery;

use std::{fmt::Debug, sync::Arc, time::Duration};

pub use cluster::*;
use futures_util::future::{BoxFuture, FutureExt, LocalBoxFuture, join_all};
pub use interest::*;
pub use nodes::*;
pub use order::*;
pub use presence::*;
pub use recorder::Recorder;
pub use recovery::*;

use self::nodes::pair;
use crate::{
    Backplane, Channel, Epoch, History, HistoryPolicy, HistoryQuery, NewPublication, Payload, Position,
    Publication, Published, Sink,
};

/// How long a condition is awaited. Far above what any of them takes, so that a busy machine fails none.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Age of history that must not end during a check.
const AGE_LONG: Duration = Duration::from_secs(3600);

/// Age of history in the checks that let it pass; long enough that it does not pass by itself where time is real.
const AGE_SHORT: Duration = Duration::from_secs(8);

/// An implementation under test.
pub trait Subject: Send + Sync {
    /// A new node, connected, with this sink.
    fn node(&self, sink: Arc<dyn Sink>) -> BoxFuture<'_, Arc<dyn Backplane>>;

    /// Whether all nodes are of one cluster.
    fn shares_nodes(&self) -> bool;

    /// Lets time pass for history, idempotency keys and leases: moves a clock, or waits.
    fn pass(&self, time: Duration) -> BoxFuture<'_, ()>;

    /// Whether nothing but waiting lets time pass.
    fn is_real_time(&self) -> bool;

    /// How long a key makes a second publish a duplicate.
    fn idempotency_window(&self) -> Duration;

    /// How long a node's record holds without renewal, if it ends at all.
    fn node_lease(&self) -> Option<Duration>;

    /// How long an end must last until it is told as a transition.
    fn presence_settle(&self) -> Duration;

    /// Has the backplane lose all it keeps, as a server that comes back without its data. False: only the end of the
    /// process does that.
    fn lose_all(&self) -> BoxFuture<'_, bool>;
}

/// Runs all checks; panics at the first that fails. Those that let time pass run at the same time where time is real:
/// they do little else, so that one of them takes as long as all.
pub async fn run(subject: &dyn Subject) {
    work(subject).await;
    let waits = waits(subject);
    if subject.is_real_time() {
        join_all(waits).await;
    } else {
        for wait in waits {
            wait.await;
        }
    }
    presence_comes_back_after_a_loss(subject).await;
    a_gap_stands_between_epochs(subject).await;
}

/// Checks that need no time but their own, one after the other.
async fn work(subject: &dyn Subject) {
    concurrent_publishers_have_one_order(subject).await;
    publishers_keep_their_order_without_history(subject).await;
    flights_keep_their_order(subject).await;
    history_and_sink_are_one_step(subject).await;
    history_is_ahead_of_the_sink(subject).await;
    history_read_in_steps_has_no_holes(subject).await;
    a_key_publishes_once(subject).await;
    concurrent_duplicates_publish_once(subject).await;

    payloads_and_events_are_preserved(subject).await;
    only_subscribed_channels_are_handed_over(subject).await;
    a_stale_unsubscribe_ends_nothing(subject).await;

    history_is_bounded_by_size(subject).await;
    removed_history_is_gone(subject).await;
    a_query_is_limited(subject).await;
    a_query_is_limited_in_bytes(subject).await;
    a_position_that_cannot_be_continued_is_told(subject).await;
    a_channel_without_state_continues_nothing(subject).await;
    a_publication_without_history_takes_no_offset(subject).await;

    presence_is_ordered_and_replaced(subject).await;
    presence_keeps_the_order_of_the_calls(subject).await;
    nodes_are_announced_and_retired(subject).await;
    control_reaches_the_own_sink(subject).await;
    health_is_good(subject).await;

    publications_reach_all_nodes_in_one_order(subject).await;
    publications_without_history_reach_the_other_node(subject).await;
    a_key_counts_on_all_nodes(subject).await;
    control_reaches_all_nodes(subject).await;
    a_record_is_read_by_all_nodes(subject).await;
    reports_are_read_by_all_nodes(subject).await;

    a_full_channel_refuses_new_users(subject).await;
    presence_channels_are_listed_by_app(subject).await;
    a_node_that_is_dropped_lets_go_of_its_sink(subject).await;
}

/// Checks that let leases, ages and windows end.
fn waits(subject: &dyn Subject) -> Vec<LocalBoxFuture<'_, ()>> {
    vec![
        a_key_is_forgotten_after_the_window(subject).boxed_local(),
        history_is_bounded_by_age(subject).boxed_local(),
        an_unused_channel_begins_a_new_epoch(subject).boxed_local(),
        a_node_that_does_not_renew_vanishes(subject).boxed_local(),
        presence_tells_each_user_once(subject).boxed_local(),
        a_return_is_no_transition(subject).boxed_local(),
        counts_are_told(subject).boxed_local(),
        a_user_on_two_nodes_is_one_user(subject).boxed_local(),
        a_node_that_vanishes_takes_its_users_with_it(subject).boxed_local(),
    ]
}

/// A node of the subject with a recorder as its sink.
struct Bench {
    backplane: Arc<dyn Backplane>,
    recorder: Arc<Recorder>,
}

impl Bench {
    async fn new(subject: &dyn Subject) -> Self {
        let recorder = Arc::new(Recorder::default());
        let backplane = subject.node(recorder.clone()).await;
        Self { backplane, recorder }
    }

    /// A node that is subscribed to a new channel.
    async fn subscribed(subject: &dyn Subject, label: &str) -> (Self, Channel) {
        let bench = Self::new(subject).await;
        let channel = unique_channel(label);
        bench.subscribe(&channel, 1).await;
        (bench, channel)
    }

    async fn subscribe(&self, channel: &Channel, generation: u64) {
        self.backplane.subscribe(channel, generation).await.expect("subscribe");
    }

    async fn publish(&self, publication: NewPublication) -> Published {
        self.backplane.publish(publication).await.expect("publish")
    }

    /// Publishes texts `1`, `2` … `count`; returns the last position.
    async fn publish_numbers(&self, channel: &Channel, history: HistoryPolicy, count: u64) -> Position {
        let mut last = None;
        for number in 1..=count {
            last = self.publish(text(channel, &number.to_string()).with_history(history).0).await.position;
        }
        last.expect("a publication with history has a position")
    }

    async fn history(&self, channel: &Channel, since: Option<Position>, limit: usize) -> History {
        self.backplane
            .history(channel, HistoryQuery { since, limit, bytes: usize::MAX })
            .await
            .expect("history")
    }
}

/// A publication in the making.
struct Draft(NewPublication);

impl Draft {
    fn with_history(mut self, history: HistoryPolicy) -> Self {
        self.0.history = Some(history);
        self
    }

    fn with_key(mut self, key: &str) -> Self {
        self.0.idempotency_key = Some(key.into());
        self
    }

    fn with_event(mut self, event: &str) -> Self {
        self.0.event = Some(event.into());
        self
    }
}

fn text(channel: &Channel, text: &str) -> Draft {
    draft(channel, Payload::Text(text.into()))
}

fn draft(channel: &Channel, payload: Payload) -> Draft {
    Draft(NewPublication {
        channel: channel.clone(),
        event: None,
        payload,
        history: None,
        idempotency_key: None,
        sender: None,
    })
}

fn policy(size: u32, age: Duration) -> HistoryPolicy {
    HistoryPolicy { size, age }
}

fn unique(label: &str) -> String {
    format!("conformance-{label}-{}", Epoch(getrandom::u64().expect("randomness")))
}

fn unique_channel(label: &str) -> Channel {
    Channel::new(&unique(label)).expect("a valid name")
}

fn offsets<'a>(publications: impl IntoIterator<Item = &'a Arc<Publication>>) -> Vec<u64> {
    let offset = |publication: &Arc<Publication>| publication.position.expect("a position").offset;
    publications.into_iter().map(offset).collect()
}

fn texts<'a>(publications: impl IntoIterator<Item = &'a Arc<Publication>>) -> Vec<&'a str> {
    let text = |publication: &'a Arc<Publication>| match &publication.payload {
        Payload::Text(text) => &**text,
        Payload::Binary(bytes) => panic!("binary payload {bytes:?} where text was published"),
    };
    publications.into_iter().map(text).collect()
}

/// Asks again until the answer satisfies; for what may take effect a little later.
async fn eventually<T: Debug>(what: &str, ask: impl AsyncFn() -> T, is_good: impl Fn(&T) -> bool) -> T {
    let until = tokio::time::Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    loop {
        ticks.tick().await;
        let answer = ask().await;
        if is_good(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < until, "{what}: still {answer:?}");
    }
}

/// Ends a check that would otherwise go on for ever.
async fn within_deadline<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done after {DEADLINE:?}"),
    }
}
