//! Checks of history: its bounds, its positions, and that what cannot be continued is told.

use std::time::Duration;

use super::{AGE_LONG, AGE_SHORT, Bench, Subject, eventually, offsets, policy, text, texts, unique_channel};
use crate::{Epoch, HistoryQuery, Position};

/// The newest publications are kept, as many as the policy says.
pub async fn history_is_bounded_by_size(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("size");
    let top = bench.publish_numbers(&channel, policy(4, AGE_LONG), 10).await;
    let history = bench.history(&channel, None, 100).await;
    assert_eq!(texts(&history.publications), ["7", "8", "9", "10"]);
    assert_eq!(offsets(&history.publications), [7, 8, 9, 10]);
    assert_eq!(history.top, Some(top));
    assert!(history.continuous);
    // A smaller policy counts from its first publication on.
    bench.publish(text(&channel, "11").with_history(policy(2, AGE_LONG)).0).await;
    assert_eq!(texts(&bench.history(&channel, None, 100).await.publications), ["10", "11"]);
}

/// Old publications go; a channel that is subscribed keeps its place meanwhile.
pub async fn history_is_bounded_by_age(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "age").await;
    let top = bench.publish_numbers(&channel, policy(100, AGE_SHORT), 3).await;
    subject.pass(AGE_SHORT + Duration::from_secs(1)).await;
    let read = async || bench.history(&channel, None, 100).await;
    let history = eventually("history ages", read, |history| history.publications.is_empty()).await;
    assert_eq!(history.top, Some(top));

    let missed_none = bench.history(&channel, Some(top), 100).await;
    assert!(missed_none.continuous && missed_none.publications.is_empty());
    let missed_one = bench.history(&channel, Some(Position { offset: 2, ..top }), 100).await;
    assert!(!missed_one.continuous && missed_one.publications.is_empty());

    let next = bench.publish(text(&channel, "4").with_history(policy(100, AGE_LONG)).0).await;
    assert_eq!(next.position, Some(Position { offset: 4, ..top }));
    let history = bench.history(&channel, Some(top), 100).await;
    assert!(history.continuous);
    assert_eq!(texts(&history.publications), ["4"]);
}

/// What was removed cannot be told; positions go on, also where nothing was there.
pub async fn removed_history_is_gone(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("removed");
    bench.backplane.remove_history(&channel).await.expect("nothing to remove");
    let top = bench.publish_numbers(&channel, policy(10, AGE_LONG), 3).await;
    bench.backplane.remove_history(&channel).await.expect("removed");
    let history = bench.history(&channel, None, 100).await;
    assert_eq!((texts(&history.publications), history.top), (vec![], Some(top)));
    let missed_none = bench.history(&channel, Some(top), 100).await;
    assert!(missed_none.continuous && missed_none.publications.is_empty());
    let missed_one = bench.history(&channel, Some(Position { offset: 2, ..top }), 100).await;
    assert!(!missed_one.continuous && missed_one.publications.is_empty());
    bench.publish(text(&channel, "4").with_history(policy(10, AGE_LONG)).0).await;
    let history = bench.history(&channel, Some(top), 100).await;
    assert!(history.continuous);
    assert_eq!(offsets(&history.publications), [4]);
}

/// With `since` the oldest that follow, without it the newest.
pub async fn a_query_is_limited(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("limit");
    let top = bench.publish_numbers(&channel, policy(10, AGE_LONG), 6).await;
    let since = Some(Position { offset: 2, ..top });
    for (since, limit, expected) in [
        (None, 2, vec![5, 6]),
        (None, 0, vec![]),
        (None, usize::MAX, vec![1, 2, 3, 4, 5, 6]),
        (since, 2, vec![3, 4]),
        (since, 0, vec![]),
        (since, usize::MAX, vec![3, 4, 5, 6]),
        (Some(Position { offset: 0, ..top }), 3, vec![1, 2, 3]),
    ] {
        let history = bench.history(&channel, since, limit).await;
        assert_eq!(offsets(&history.publications), expected, "since {since:?} limit {limit}");
        assert!(history.continuous);
        assert_eq!(history.top, Some(top));
    }
}

/// A page is as large as it may be, and no larger but for one publication; page by page nothing is missing.
pub async fn a_query_is_limited_in_bytes(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("bytes");
    let mut top = None;
    for size in [1_000, 1_000, 1_000, 1_000, 9_000, 1_000, 0, 0, 1_000] {
        let draft = text(&channel, &"x".repeat(size)).with_history(policy(100, AGE_LONG));
        top = bench.publish(draft.0).await.position;
    }
    let top = top.expect("a position");
    let mut at = Position { offset: 0, ..top };
    for expected in [vec![1, 2, 3], vec![4], vec![5], vec![6, 7, 8, 9], vec![]] {
        let page = bench.backplane.history(&channel, HistoryQuery::page(at, 3_500)).await.expect("history");
        assert_eq!(offsets(&page.publications), expected, "after {at}");
        assert!(page.continuous && page.top == Some(top));
        at = page.publications.last().and_then(|last| last.position).unwrap_or(at);
    }
    let all = bench.history(&channel, Some(Position { offset: 0, ..top }), 100).await;
    assert_eq!(all.publications.len(), 9);
}

/// Every position that is not continued by what is kept is answered so.
pub async fn a_position_that_cannot_be_continued_is_told(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("since");
    let top = bench.publish_numbers(&channel, policy(4, AGE_LONG), 10).await;
    let other = Epoch(top.epoch.0.wrapping_add(1));
    for (since, continuous, expected) in [
        (Position { offset: 0, ..top }, false, vec![7, 8, 9, 10]),
        (Position { offset: 5, ..top }, false, vec![7, 8, 9, 10]),
        (Position { offset: 6, ..top }, true, vec![7, 8, 9, 10]),
        (Position { offset: 9, ..top }, true, vec![10]),
        (top, true, vec![]),
        (Position { offset: 11, ..top }, false, vec![]),
        (Position { offset: u64::MAX, ..top }, false, vec![]),
        (Position { epoch: other, offset: 6 }, false, vec![]),
        (Position { epoch: other, offset: 10 }, false, vec![]),
    ] {
        let history = bench.history(&channel, Some(since), 100).await;
        assert_eq!(history.continuous, continuous, "since {since}");
        assert_eq!(offsets(&history.publications), expected, "since {since}");
        assert_eq!(history.top, Some(top));
    }
}

/// A client that has a position of a channel nobody knows (any more) is told so.
pub async fn a_channel_without_state_continues_nothing(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("nothing");
    let history = bench.history(&channel, None, 10).await;
    assert!(history.continuous && history.top.is_none() && history.publications.is_empty());
    for offset in [0, 1] {
        let since = Position { epoch: Epoch(42), offset };
        let history = bench.history(&channel, Some(since), 10).await;
        assert!(!history.continuous && history.top.is_none() && history.publications.is_empty());
    }
}

/// A channel out of use for longer than its age loses its place, and says so by another epoch.
pub async fn an_unused_channel_begins_a_new_epoch(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("epoch");
    let history = policy(100, AGE_SHORT);
    let old = bench.publish_numbers(&channel, history, 3).await;
    assert_eq!(old.offset, 3);
    subject.pass(2 * AGE_SHORT).await;
    let read = async || bench.history(&channel, Some(old), 100).await;
    eventually("the epoch ends", read, |read| !read.continuous && read.top.is_none()).await;

    let new = bench.publish_numbers(&channel, history, 1).await;
    assert_eq!(new.offset, 1);
    assert_ne!(new.epoch, old.epoch);
    let history = bench.history(&channel, Some(old), 100).await;
    assert!(!history.continuous && history.publications.is_empty());
    assert_eq!(history.top, Some(new));
}

/// Publications that are not kept pass between those that are.
pub async fn a_publication_without_history_takes_no_offset(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "mixed").await;
    let history = policy(100, AGE_LONG);
    bench.publish(text(&channel, "a").with_history(history).0).await;
    bench.publish(text(&channel, "b").0).await;
    bench.publish(text(&channel, "c").with_history(history).0).await;
    let handed = bench.recorder.until_publications(&channel, 3).await;
    assert_eq!(texts(&handed), ["a", "b", "c"]);
    let read = bench.history(&channel, None, 100).await;
    assert_eq!(texts(&read.publications), ["a", "c"]);
    assert_eq!(offsets(&read.publications), [1, 2]);
}

/// When a subscribed channel loses its history, what follows is of another epoch, and a gap is told before it.
pub async fn a_gap_stands_between_epochs(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "epochs").await;
    let history = policy(100, AGE_LONG);
    let old = bench.publish_numbers(&channel, history, 3).await;
    bench.recorder.until_publications(&channel, 3).await;
    let is_lost = subject.lose_all().await;
    let new = bench.publish_numbers(&channel, history, 3).await;
    assert_eq!(new.epoch != old.epoch, is_lost, "{old} and {new}");

    let newest = async || bench.recorder.newest(&channel).and_then(|newest| newest.position);
    eventually("the last one is handed over", newest, |newest| *newest == Some(new)).await;
    let handed = bench.recorder.publications(&channel);
    let epochs: Vec<_> = handed.iter().filter_map(|it| it.position).map(|at| at.epoch).collect();
    let changes = (1..epochs.len()).filter(|&at| epochs[at] != epochs[at - 1]);
    let mut told = bench.recorder.gaps_after(&channel);
    told.dedup();
    assert_eq!(told, changes.collect::<Vec<_>>(), "gaps and changes of {epochs:?}");
}
