//! Checks of order, atomicity and idempotency, with publishers that run at the same time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    AGE_LONG, Bench, Subject, eventually, offsets, policy, text, texts, unique_channel, within_deadline,
};
use crate::{Backplane, Channel, HistoryQuery, Payload, Position, Publication, Published};

const PUBLISHERS: usize = 8;
const PUBLICATIONS_EACH: usize = 150;
const PUBLICATIONS: usize = PUBLISHERS * PUBLICATIONS_EACH;

/// Offsets are handed to the sink as 1, 2, 3 …; each publisher's answers name the publications it made.
pub async fn concurrent_publishers_have_one_order(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "order").await;
    let answers = Publishers::start(&bench, &channel, true).join().await;

    let handed = bench.recorder.until_publications(&channel, PUBLICATIONS).await;
    assert_eq!(offsets(&handed), (1..=PUBLICATIONS as u64).collect::<Vec<_>>(), "order of the sink");
    assert_in_order_of_each_publisher(&handed);
    let by_position: BTreeMap<u64, &str> = offsets(&handed).into_iter().zip(texts(&handed)).collect();
    for (publisher, positions) in answers.iter().enumerate() {
        for (sequence, position) in positions.iter().enumerate() {
            let position = position.expect("a position");
            assert_eq!(by_position[&position.offset], message(publisher, sequence), "at {position}");
        }
    }
    let history = bench.history(&channel, None, PUBLICATIONS + 1).await;
    assert_eq!(texts(&history.publications), texts(&handed), "history and sink");
    assert_eq!(history.top, handed.last().and_then(|last| last.position));
    assert!(bench.recorder.gaps().is_empty());
}

/// Without positions, each publisher's order still holds, and nothing is lost or doubled.
pub async fn publishers_keep_their_order_without_history(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "plain-order").await;
    let answers = Publishers::start(&bench, &channel, false).join().await;
    assert!(answers.iter().flatten().all(Option::is_none), "no history, no position");

    let handed = bench.recorder.until_publications(&channel, PUBLICATIONS).await;
    assert_eq!(handed.len(), PUBLICATIONS);
    assert!(handed.iter().all(|publication| publication.position.is_none()));
    assert_in_order_of_each_publisher(&handed);
}

/// Publications of a flight are accepted one after the other, whether or not something of them is kept.
pub async fn flights_keep_their_order(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "flight").await;
    let mut expected = Vec::new();
    for flight in 0..20 {
        let kept = |sequence: usize| flight % 4 == 3 && sequence.is_multiple_of(2);
        let draft = |sequence| match text(&channel, &message(flight, sequence)) {
            draft if kept(sequence) => draft.with_history(policy(u32::MAX, AGE_LONG)).0,
            draft => draft.0,
        };
        let size = [0, 1, 64, 7][flight % 4];
        let answers = bench.backplane.publish_flight((0..size).map(draft).collect()).await;
        let positions: Vec<bool> =
            answers.into_iter().map(|answer| answer.expect("published").position.is_some()).collect();
        assert_eq!(positions, (0..size).map(kept).collect::<Vec<_>>(), "what is kept has a position");
        expected.extend((0..size).map(|sequence| message(flight, sequence)));
    }
    let handed = bench.recorder.until_publications(&channel, expected.len()).await;
    assert_eq!(texts(&handed), expected);
}

/// Who subscribes while others publish, then reads history, has every publication: those up to the top from history,
/// all after it from the sink.
pub async fn history_and_sink_are_one_step(subject: &dyn Subject) {
    for round in 0..5 {
        let bench = Bench::new(subject).await;
        let channel = unique_channel("atomic");
        let publishers = Publishers::start(&bench, &channel, true);
        // Each round joins the run at another place.
        let seen = async || bench.history(&channel, None, 0).await.top.map_or(0, |top| top.offset);
        eventually("publishers are under way", seen, |&top| top >= round * PUBLICATIONS as u64 / 10).await;

        bench.subscribe(&channel, 1).await;
        let history = bench.history(&channel, None, PUBLICATIONS).await;
        publishers.join().await;

        let top = history.top.map_or(0, |top| top.offset);
        assert_eq!(offsets(&history.publications), (1..=top).collect::<Vec<_>>());
        let missing = PUBLICATIONS as u64 - top;
        let is_after =
            |publication: &&Arc<Publication>| publication.position.is_some_and(|at| at.offset > top);
        let live = async || {
            let handed = bench.recorder.publications(&channel);
            offsets(handed.iter().filter(is_after))
        };
        let live = eventually("all live publications", live, |live| live.len() as u64 >= missing).await;
        assert_eq!(live, (top + 1..=PUBLICATIONS as u64).collect::<Vec<_>>());
        let handed = offsets(&bench.recorder.publications(&channel));
        assert!(handed.windows(2).all(|pair| pair[1] == pair[0] + 1), "a hole or a repetition: {handed:?}");
    }
}

/// Whatever the sink was handed is in history already.
pub async fn history_is_ahead_of_the_sink(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "ahead").await;
    let publishers = Publishers::start(&bench, &channel, true);
    let watch = async {
        loop {
            let handed =
                bench.recorder.newest(&channel).and_then(|newest| newest.position).map_or(0, |at| at.offset);
            let top = bench.history(&channel, None, 0).await.top.map_or(0, |top| top.offset);
            assert!(top >= handed, "history stands at {top}, the sink was handed {handed}");
            if handed == PUBLICATIONS as u64 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    within_deadline("all publications are handed over", watch).await;
    publishers.join().await;
}

/// A reader that asks again and again for what came since, in small steps, reads everything once.
pub async fn history_read_in_steps_has_no_holes(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("steps");
    let first = bench.publish(text(&channel, "first").with_history(policy(u32::MAX, AGE_LONG)).0).await;
    let publishers = Publishers::start(&bench, &channel, true);
    let mut at = first.position.expect("a position");
    let read = async {
        while at.offset <= PUBLICATIONS as u64 {
            let history = bench.history(&channel, Some(at), 7).await;
            assert!(history.continuous);
            for publication in &history.publications {
                let position = publication.position.expect("a position");
                assert_eq!(position, Position { epoch: at.epoch, offset: at.offset + 1 });
                at = position;
            }
            tokio::task::yield_now().await;
        }
    };
    within_deadline("all publications are read", read).await;
    publishers.join().await;
}

/// A second publish with a key publishes nothing and repeats the first answer; keys belong to one channel.
pub async fn a_key_publishes_once(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "key").await;
    let other = unique_channel("key-other");
    let history = policy(10, AGE_LONG);

    let first = bench.publish(text(&channel, "a").with_history(history).with_key("k").0).await;
    assert!(!first.duplicate);
    let second = bench.publish(text(&channel, "b").with_history(history).with_key("k").0).await;
    assert_eq!(second, Published { duplicate: true, ..first });
    let elsewhere = bench.publish(text(&other, "c").with_history(history).with_key("k").0).await;
    assert!(!elsewhere.duplicate, "the same key in another channel");
    let third = bench.publish(text(&channel, "d").with_history(history).with_key("l").0).await;
    assert_eq!(third.position.map(|at| at.offset), Some(2), "a duplicate takes no offset");

    let plain = bench.publish(text(&channel, "e").with_key("m").0).await;
    assert_eq!(plain, Published { position: None, duplicate: false });
    let again = bench.publish(text(&channel, "f").with_key("m").0).await;
    assert_eq!(again, Published { position: None, duplicate: true });
    bench.publish(text(&channel, "end").0).await;
    let handed = bench.recorder.until_publications(&channel, 4).await;
    assert_eq!(texts(&handed), ["a", "d", "e", "end"]);
}

/// Of many publishes with one key at the same time, one publishes and all have its answer.
pub async fn concurrent_duplicates_publish_once(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "duplicates").await;
    for round in 0..20 {
        let key = format!("key-{round}");
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let backplane = Arc::clone(&bench.backplane);
                let draft = text(&channel, &message(publisher, round));
                let draft = draft.with_history(policy(1000, AGE_LONG)).with_key(&key);
                tokio::spawn(async move { backplane.publish(draft.0).await.expect("publish") })
            })
            .collect();
        let mut answers = Vec::new();
        for publisher in publishers {
            answers.push(publisher.await.expect("publisher"));
        }
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer.position == answers[0].position), "{answers:?}");
        let handed = bench.recorder.until_publications(&channel, round + 1).await;
        assert_eq!(offsets(&handed), (1..=round as u64 + 1).collect::<Vec<_>>());
    }
}

/// After the window, a key is a new one.
pub async fn a_key_is_forgotten_after_the_window(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("window");
    let publish = async || bench.publish(text(&channel, "a").with_key("k").0).await.duplicate;
    assert!(!publish().await);
    assert!(publish().await);
    subject.pass(subject.idempotency_window() + Duration::from_secs(1)).await;
    eventually("the key is forgotten", publish, |duplicate| !duplicate).await;
}

/// Publishers at work on one channel, each a task.
struct Publishers(Vec<tokio::task::JoinHandle<Vec<Option<Position>>>>);

impl Publishers {
    fn start(bench: &Bench, channel: &Channel, with_history: bool) -> Self {
        let start = |publisher| {
            let (backplane, channel) = (Arc::clone(&bench.backplane), channel.clone());
            tokio::spawn(publish_all(backplane, channel, publisher, with_history))
        };
        Self((0..PUBLISHERS).map(start).collect())
    }

    /// Awaits their end; the positions they were answered.
    async fn join(self) -> Vec<Vec<Option<Position>>> {
        let mut answers = Vec::new();
        for publisher in self.0 {
            answers.push(publisher.await.expect("publisher"));
        }
        answers
    }
}

async fn publish_all(
    backplane: Arc<dyn Backplane>,
    channel: Channel,
    publisher: usize,
    with_history: bool,
) -> Vec<Option<Position>> {
    let mut positions = Vec::new();
    for sequence in 0..PUBLICATIONS_EACH {
        let mut draft = text(&channel, &message(publisher, sequence));
        if with_history {
            draft = draft.with_history(policy(u32::MAX, AGE_LONG));
        }
        let published = backplane.publish(draft.0).await.expect("publish");
        if with_history {
            assert_readable(&*backplane, &channel, published).await;
        }
        positions.push(published.position);
        tokio::task::yield_now().await;
    }
    positions
}

/// A publication is in history before publish answers.
async fn assert_readable(backplane: &dyn Backplane, channel: &Channel, published: Published) {
    let position = published.position.expect("a position");
    let before = Position { offset: position.offset - 1, ..position };
    let query = HistoryQuery { since: Some(before), limit: 1, bytes: usize::MAX };
    let history = backplane.history(channel, query).await.expect("history");
    assert_eq!(offsets(&history.publications), [position.offset]);
}

fn message(publisher: usize, sequence: usize) -> String {
    format!("{publisher}/{sequence}")
}

fn assert_in_order_of_each_publisher(publications: &[Arc<Publication>]) {
    let mut next = [0; PUBLISHERS];
    for publication in publications {
        let Payload::Text(text) = &publication.payload else { panic!("not text: {publication:?}") };
        let (publisher, sequence) = text.split_once('/').expect("PUBLISHER/SEQUENCE");
        let next = &mut next[publisher.parse::<usize>().expect("a number")];
        assert_eq!(sequence.parse(), Ok(*next), "publisher {publisher}");
        *next += 1;
    }
}
