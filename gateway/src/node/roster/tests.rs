//! Rosters between a relay and the memory backplane.

#![allow(clippy::unwrap_used)]

use futures_util::{FutureExt, future::join_all};
use tidegate_backplane::{Join, Member, MemoryBackplane, MemoryOptions};
use tokio::sync::oneshot;

use super::*;
use crate::node::{
    Relay,
    shards::{Order, ShardPort},
};

/// Carries out nothing: what is put into it stays.
#[derive(Default)]
struct Keeping(Mutex<Vec<Order>>);

impl ShardPort for Keeping {
    fn order(&self, order: Order) {
        self.0.lock().unwrap().push(order);
    }

    fn stop(&self) {}
}

struct Rig {
    relay: Arc<Relay>,
    backplane: Arc<dyn Backplane>,
}

impl Rig {
    fn new() -> Self {
        let relay = Arc::new(Relay::new(vec![Box::<Keeping>::default()]));
        let memory = MemoryBackplane::new(relay.clone(), MemoryOptions::default());
        let backplane: Arc<dyn Backplane> = Arc::new(memory);
        relay.rosters.begin(&backplane, Handle::current());
        Self { relay, backplane }
    }

    fn subscribe(&self) {
        self.relay.interests.enter(&channel(), 0, &*self.backplane);
    }

    fn enter(&self, id: &str) -> u64 {
        let member = Member { connection: id.into(), user: id.into(), info: None };
        self.backplane.join(&channel(), Join::listed(member)).now_or_never().unwrap().unwrap().sequence
    }

    fn read(&self, at_least: u64) -> oneshot::Receiver<Result<Arc<List>, BackplaneError>> {
        let (send, list) = oneshot::channel();
        self.relay.rosters.read(&channel(), at_least, move |list| send.send(list).unwrap());
        list
    }

    fn reads(&self) -> u64 {
        self.relay.rosters.counters.reads.iter().map(|reads| reads.load(Relaxed)).sum()
    }

    fn changes(&self) -> u64 {
        self.relay.rosters.counters.changes.load(Relaxed)
    }
}

fn channel() -> Channel {
    Channel::in_app("1", "presence-c").unwrap()
}

fn ids(list: &List) -> Vec<&str> {
    list.members.iter().map(|member| &*member.user).collect()
}

#[tokio::test]
async fn a_channel_is_read_once_and_kept_by_what_is_told() {
    let rig = Rig::new();
    rig.subscribe();
    let own = rig.enter("a");
    let asked: Vec<_> = (0..20).map(|_| rig.read(own)).collect();
    for list in join_all(asked).await {
        assert_eq!(ids(&list.unwrap().unwrap()), ["a"]);
    }
    assert_eq!((rig.reads(), rig.changes()), (1, 0));
    let own = rig.enter("b");
    let list = rig.read(own).await.unwrap().unwrap();
    assert_eq!((ids(&list), list.sequence), (vec!["a", "b"], own));
    assert_eq!((rig.reads(), rig.changes()), (1, 1));
}

#[tokio::test]
async fn a_new_subscription_is_read_anew() {
    let rig = Rig::new();
    rig.subscribe();
    let own = rig.enter("a");
    rig.read(own).await.unwrap().unwrap();
    rig.relay.interests.leave(&channel(), 0, &*rig.backplane);
    let own = rig.enter("b");
    rig.subscribe();
    assert_eq!(ids(&rig.read(own).await.unwrap().unwrap()), ["a", "b"]);
    assert_eq!(rig.reads(), 2);
    rig.relay.rosters.sweep();
    assert_eq!(rig.relay.rosters.rosters.read().unwrap().len(), 1);
    rig.relay.interests.leave(&channel(), 0, &*rig.backplane);
    rig.relay.rosters.sweep();
    assert_eq!(rig.relay.rosters.rosters.read().unwrap().len(), 0);
}

#[tokio::test]
async fn changes_of_channels_without_lists_are_not_spread() {
    let rig = Rig::new();
    assert!(rig.read(0).await.unwrap().is_err(), "nobody subscribed");
    rig.subscribe();
    rig.enter("a");
    assert_eq!(rig.changes(), 0);
    let join = Join { tells_counts: Some(true), ..Join::counted() };
    rig.backplane.join(&channel(), join).now_or_never().unwrap().unwrap();
    assert_eq!(rig.changes(), 1, "counts are");
}

#[tokio::test]
async fn what_was_lost_is_told_as_changes() {
    let rig = Rig::new();
    rig.subscribe();
    let own = rig.enter("a");
    rig.read(own).await.unwrap().unwrap();
    rig.relay.rosters.lost(&channel());
    let own = rig.enter("b");
    assert_eq!(ids(&rig.read(own).await.unwrap().unwrap()), ["a", "b"]);
    assert_eq!((rig.reads(), rig.changes()), (2, 1));
}
