//! What the copy does when batches fail, and with channels that are only in its set.

use super::*;

fn channel() -> Channel {
    Channel::new("c").expect("a name")
}

fn join(own: &mut Own) {
    let (done, _) = oneshot::channel();
    assert_ne!(own.join(&channel(), Join::counted(), done), Taken::NoRoom);
}

fn join_as(own: &mut Own, user: &str) {
    let member = Member { connection: "n.1".into(), user: user.into(), info: None };
    let (done, _) = oneshot::channel();
    assert_ne!(own.join(&channel(), Join::listed(member), done), Taken::NoRoom);
}

fn written() -> End<'static> {
    End::Written { refused: &[], settle_at: None, is_outdated: false, seats: Seats::default() }
}

/// Sends a batch to its end. Answers what was in it, and whether the channel is left.
fn send(own: &mut Own, instance: &str, end: End<'_>) -> (Vec<Entry>, bool) {
    let batch = own.next_batch(&channel(), instance, Seats::default()).expect("a batch");
    let is_left = own.finish(&channel(), &batch, &instance.into(), end);
    (batch.entries, is_left)
}

/// Who leaves while its joining is under way is removed by the batch after it, and kept until the server knows.
#[test]
fn who_has_left_is_kept_until_the_server_knows() {
    let mut own = Own::default();
    join_as(&mut own, "ada");
    let joining = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    let (done, _) = oneshot::channel();
    assert_eq!(own.leave(&channel(), Some("n.1"), done), Taken::Busy);
    assert!(!own.finish(&channel(), &joining, &"n.1".into(), End::Failed));
    for end in [End::Failed, written()] {
        let is_last = matches!(end, End::Written { .. });
        let (entries, is_left) = send(&mut own, "n.1", end);
        let gone = entries.iter().find(|entry| entry.connection.as_deref() == Some("n.1")).expect("n.1");
        assert_eq!((gone.subscriptions, is_left), (0, is_last));
    }
    assert!(own.next_batch(&channel(), "n.1", Seats::default()).is_none());
}

/// A refusal concerns the joining that was refused, and not a later one of the same connection.
#[test]
fn a_refusal_does_not_take_a_later_joining() {
    let mut own = Own::default();
    join_as(&mut own, "ada");
    let joining = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    join_as(&mut own, "bob");
    let refused = ["n.1".into()];
    let end =
        End::Written { refused: &refused, settle_at: None, is_outdated: false, seats: Seats::default() };
    own.finish(&channel(), &joining, &"n.1".into(), end);
    let (entries, _) = send(&mut own, "n.1", written());
    let users: Vec<_> = entries.iter().filter_map(|entry| entry.member.as_ref()).collect();
    assert_eq!((users.len(), &*users[0].user), (1, "bob"));
    assert_eq!(own.subscriptions(), 1);
}

/// A channel that was put in this node's set and owes nothing is taken out again; that it was there is remembered.
#[test]
fn an_adopted_channel_that_owes_nothing_is_left() {
    let mut own = Own::default();
    own.adopt(&channel(), None);
    assert_eq!(own.claim_stale(), [channel()]);
    assert!(send(&mut own, "n.1", written()).1);
    assert!(own.next_batch(&channel(), "n.1", Seats::default()).is_none());
    assert!(own.channels.values().all(|state| state.is_left() && state.written.is_left()));
}

/// A channel of this node that another one had a part in too stays as it is.
#[test]
fn an_adopted_channel_of_this_node_is_kept() {
    let mut own = Own::default();
    join(&mut own);
    assert!(!send(&mut own, "n.1", written()).1);
    own.adopt(&channel(), None);
    assert!(own.next_batch(&channel(), "n.1", Seats::default()).is_none());
    assert!(own.claim_stale().is_empty());
    assert_eq!(own.subscriptions(), 1);
}

/// What is written again while a batch is under way is listed again too: the instance may be another one.
#[test]
fn a_batch_from_before_a_lapse_does_not_count_as_listed() {
    let mut own = Own::default();
    join(&mut own);
    let batch = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    own.begin_again(false);
    own.finish(&channel(), &batch, &"n.1".into(), written());
    let batch = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    assert_eq!((batch.mode, batch.is_listed), (Mode::Whole, false));
}
