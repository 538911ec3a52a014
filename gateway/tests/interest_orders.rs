//! Every order in which shards come to a channel and leave it. The table of channels is compiled here with the
//! primitives of a model checker in the place of the standard library's; the backplane is the one in memory.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../src/node/interest.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "only what the model needs is used")]
mod interest;

use std::sync::Arc;

use interest::Interests;
use loom::{model::Builder, thread};
use tidegate_backplane::{
    Channel, Control, Gap, Intake, MemoryBackplane, MemoryOptions, PresenceEvent, Publication, Sink,
    Transition,
};

mod sync {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    pub(crate) use loom::sync::{RwLock, atomic};

    /// The same in every run: the model plays each order again from its beginning.
    #[derive(Debug, Default)]
    pub(crate) struct RandomState(BuildHasherDefault<DefaultHasher>);

    impl RandomState {
        pub(crate) fn new() -> Self {
            Self::default()
        }
    }

    impl std::hash::BuildHasher for RandomState {
        type Hasher = DefaultHasher;
        fn build_hasher(&self) -> DefaultHasher {
            self.0.build_hasher()
        }
    }
}

struct NoSink;

impl Sink for NoSink {
    fn publication(&self, _: &Channel, _: Arc<Publication>) -> Intake {
        Intake::Taken
    }
    fn gap(&self, _: &Channel, _: Gap) {}
    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

fn main() {
    // What a test harness is asked by cargo and nextest: name the tests, all of them or the ignored ones.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("the_node_is_subscribed_exactly_to_the_channels_in_its_table: test");
        }
        return;
    }
    the_node_is_subscribed_exactly_to_the_channels_in_its_table();
    println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Two shards come and leave, and one of them comes back and stays or not: a late unsubscribe must not end the
/// subscription of whoever came after it, and nobody may be left over.
fn the_node_is_subscribed_exactly_to_the_channels_in_its_table() {
    for stays in [false, true] {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let interests = Arc::new(Interests::new());
            let backplane = Arc::new(MemoryBackplane::new(Arc::new(NoSink), MemoryOptions::default()));
            let channel = Channel::new("a").expect("a name");
            let visit = |shard: usize, stays: bool| {
                let (interests, backplane, channel) =
                    (Arc::clone(&interests), Arc::clone(&backplane), channel.clone());
                move || {
                    interests.enter(&channel, shard, &*backplane);
                    interests.leave(&channel, shard, &*backplane);
                    if stays {
                        interests.enter(&channel, shard, &*backplane);
                    }
                }
            };
            let other = thread::spawn(visit(1, false));
            visit(0, stays)();
            other.join().expect("no panic");
            assert_eq!(backplane.counters().subscriptions, u64::from(stays));
            let shards = interests.get(&channel).map(|interest| interest.shards().collect::<Vec<_>>());
            assert_eq!(shards, stays.then(|| vec![0]));
        });
    }
}
