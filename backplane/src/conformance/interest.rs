//! Checks of who is handed what: payloads, subscriptions, generations.

use std::sync::Arc;

use bytes::Bytes;

use super::{AGE_LONG, Bench, Subject, draft, eventually, policy, text, texts, unique_channel};
use crate::{Channel, Payload, Text};

/// Text and binary, empty ones too, and event names arrive as they were published, live and from history.
pub async fn payloads_and_events_are_preserved(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "payloads").await;
    let binary: Vec<u8> = (0..=255).collect();
    let cases = [
        (Payload::Text("zwölf € 🦀".into()), None),
        (Payload::Text(Text::new()), None),
        (Payload::Text("{\"a\":\"\\u0000\"}\r\n".into()), Some("an event, with \"signs\": é")),
        (Payload::Binary(Bytes::from(binary)), Some("e")),
        (Payload::Binary(Bytes::new()), Some("empty")),
        (Payload::Binary(Bytes::from_static(b"looks like text")), None),
        (Payload::Binary(Bytes::from(vec![0xff; 300_000])), None),
    ];
    for (payload, event) in &cases {
        for with_history in [true, false] {
            let mut draft = draft(&channel, payload.clone());
            if let Some(event) = event {
                draft = draft.with_event(event);
            }
            if with_history {
                draft = draft.with_history(policy(100, AGE_LONG));
            }
            bench.publish(draft.0).await;
        }
    }
    let handed = bench.recorder.until_publications(&channel, 2 * cases.len()).await;
    let history = bench.history(&channel, None, 100).await.publications;
    assert_eq!(history.len(), cases.len());
    for (at, (payload, event)) in cases.iter().enumerate() {
        for publication in [&handed[2 * at], &handed[2 * at + 1], &history[at]] {
            assert!(&publication.payload == payload, "payload {at}");
            assert_eq!(publication.event.as_deref(), *event, "event {at}");
        }
        assert_eq!(handed[2 * at].position, history[at].position);
        assert_eq!(handed[2 * at + 1].position, None);
    }
}

/// A sink is told of the channels it asked for, from then on, and of no other.
pub async fn only_subscribed_channels_are_handed_over(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "mine").await;
    let late = unique_channel("late");
    bench.publish(text(&late, "before").0).await;
    bench.publish(text(&late, "before, kept").with_history(policy(10, AGE_LONG)).0).await;
    bench.subscribe(&late, 1).await;
    bench.publish(text(&late, "after").0).await;
    bench.publish(text(&channel, "end").0).await;
    assert_eq!(texts(&bench.recorder.until_publications(&late, 1).await), ["after"]);
    bench.recorder.until_publications(&channel, 1).await;
    assert_eq!(texts(&bench.recorder.publications(&late)), ["after"]);
}

/// An unsubscribe ends its own generation and older ones, not a newer one.
pub async fn a_stale_unsubscribe_ends_nothing(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "generations").await;
    let barrier = unique_channel("generations-barrier");
    bench.subscribe(&barrier, 1).await;

    // Two channels have no common order (they may be on two servers): the barrier only tells when to look, so what
    // has to be handed over is asked for again.
    let handed = async || is_handed(&bench, &channel, &barrier).await;

    bench.subscribe(&channel, 2).await;
    bench.backplane.unsubscribe(&channel, 1);
    eventually("handed over after the unsubscribe of an older generation", handed, |handed| *handed).await;
    bench.subscribe(&channel, 3).await;
    bench.backplane.unsubscribe(&channel, 2);
    eventually("handed over after an unsubscribe that was overtaken", handed, |handed| *handed).await;

    bench.backplane.unsubscribe(&channel, 3);
    eventually("the last unsubscribe counts", handed, |handed| !handed).await;
    bench.backplane.unsubscribe(&channel, 3);
    bench.backplane.unsubscribe(&unique_channel("never"), 1);

    bench.subscribe(&channel, 4).await;
    eventually("handed over, subscribed again", handed, |handed| *handed).await;
}

/// Nothing that a node began holds its sink when the node is gone.
pub async fn a_node_that_is_dropped_lets_go_of_its_sink(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "dropped").await;
    bench.publish(text(&channel, "a").0).await;
    bench.recorder.until_publications(&channel, 1).await;
    let Bench { backplane, recorder } = bench;
    drop(backplane);
    let holders = async || Arc::strong_count(&recorder);
    eventually("the sink is let go of", holders, |holders| *holders == 1).await;
}

/// Whether a publication to `channel` was handed over before a later one to `barrier` was.
async fn is_handed(bench: &Bench, channel: &Channel, barrier: &Channel) -> bool {
    let before = bench.recorder.publications(channel).len();
    let barriers = bench.recorder.publications(barrier).len();
    bench.publish(text(channel, "is it handed over?").0).await;
    bench.publish(text(barrier, "end").0).await;
    bench.recorder.until_publications(barrier, barriers + 1).await;
    bench.recorder.publications(channel).len() > before
}
