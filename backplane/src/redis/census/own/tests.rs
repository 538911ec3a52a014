//! What the copy does when batches fail, and with channels that are only in its set.

use super::*;

fn channel() -> Channel {
    Channel::new("c").expect("a name")
}

fn enter(own: &mut Own) {
    let attend = Attend::Enter { user: None, users_max: None, tells_counts: false };
    let (done, _) = oneshot::channel();
    assert_ne!(own.take(&channel(), attend, done), Taken::NoRoom);
}

fn written() -> End<'static> {
    End::Written { refused: &[], settle_at: None, is_outdated: false, seats: Seats::default() }
}

/// Sends a batch to its end. Answers the instance that it went on for, and whether the channel is left.
fn send(own: &mut Own, instance: &str, end: End<'_>) -> (Option<Arc<str>>, bool) {
    let batch = own.next_batch(&channel(), instance, Seats::default()).expect("a batch");
    let is_left = own.finish(&channel(), &batch, &instance.into(), end);
    (batch.former, is_left)
}

/// A batch that failed may not have removed the former instance's part: the next one does.
#[test]
fn a_failed_batch_leaves_the_former_instance_to_the_next() {
    let mut own = Own::default();
    enter(&mut own);
    assert_eq!(send(&mut own, "n.1", End::Failed), (None, false));
    assert_eq!(send(&mut own, "n.2", End::Failed), (Some("n.1".into()), false));
    assert_eq!(send(&mut own, "n.2", End::Failed), (Some("n.1".into()), false));
    assert_eq!(send(&mut own, "n.2", written()), (Some("n.1".into()), false));
    enter(&mut own);
    assert_eq!(send(&mut own, "n.2", written()), (None, false));
}

/// A channel that was put in this node's set and owes nothing is taken out again; that it was there is remembered.
#[test]
fn an_adopted_channel_that_owes_nothing_is_left() {
    let mut own = Own::default();
    own.adopt(&channel(), None);
    assert_eq!(own.claim_stale(), [channel()]);
    assert_eq!(send(&mut own, "n.1", written()), (None, true));
    assert!(own.next_batch(&channel(), "n.1", Seats::default()).is_none());
    assert!(own.channels.values().all(|state| state.is_left() && state.written.is_left()));
}

/// A channel of this node that another one had a part in too stays as it is.
#[test]
fn an_adopted_channel_of_this_node_is_kept() {
    let mut own = Own::default();
    enter(&mut own);
    assert_eq!(send(&mut own, "n.1", written()), (None, false));
    own.adopt(&channel(), None);
    assert!(own.next_batch(&channel(), "n.1", Seats::default()).is_none());
    assert!(own.claim_stale().is_empty());
    assert_eq!(own.subscriptions(), 1);
}

/// What is written again while a batch is under way is listed again too: the instance may be another one.
#[test]
fn a_batch_from_before_a_lapse_does_not_count_as_listed() {
    let mut own = Own::default();
    enter(&mut own);
    let batch = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    own.begin_again(false);
    own.finish(&channel(), &batch, &"n.1".into(), written());
    let batch = own.next_batch(&channel(), "n.1", Seats::default()).expect("a batch");
    assert_eq!((batch.mode, batch.is_listed), (Mode::Whole, false));
}
