//! What waits, what makes room, and what one request has.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::app::apps::signature::Signer;

fn queue(bytes_max: usize) -> Queue {
    let dialect = Dialect::Pusher(Arc::new(Signer::new("key".into(), std::iter::empty())));
    let queue = Queue::new(bytes_max, dialect.clone(), Arc::default());
    queue.configure(dialect, true);
    queue
}

const CHANGE: Event<'static> = Event::ChannelOccupied { channel: "c" };
const CLIENT: Event<'static> =
    Event::ClientEvent { channel: "c", event: "e", data: "", socket_id: "1.1", user_id: None };

fn event(bytes: usize) -> EventJson {
    vec![b'e'; bytes].into()
}

fn text(text: &str) -> EventJson {
    text.as_bytes().into()
}

fn taken(queue: &Queue) -> Vec<String> {
    let batch = queue.take();
    let events = batch.events.iter().map(|event| String::from_utf8_lossy(event).into_owned()).collect();
    batch.settle();
    events
}

#[test]
fn a_request_is_bounded_in_bytes() {
    let queue = queue(1024 * 1024);
    (0..10).for_each(|_| queue.push(&CHANGE, event(10 * 1024)));
    queue.push(&CHANGE, event(BATCH_BYTES_MAX + 1));
    let batches: Vec<usize> = (0..4)
        .map(|_| {
            let batch = queue.take();
            let events = batch.events.len();
            batch.settle();
            events
        })
        .collect();
    assert_eq!(batches, [6, 4, 1, 0], "one that is too large goes alone");
    assert_eq!(queue.state().bytes(), 0);
}

/// What is sent at that moment is sent once more, before what waits.
#[test]
fn another_process_goes_on_in_order() {
    let (before, after) = (queue(1024), queue(1024));
    let count = Event::SubscriptionCount { channel: "c", subscription_count: 1 };
    before.push(&CHANGE, text("1"));
    let under_way = before.take();
    before.push(&count, text("2"));
    before.push(&CHANGE, text("3"));
    before.push(&CLIENT, text("4"));
    before.suspend();
    assert!(!before.is_quiet());
    let mut out = tidegate_wire::fields::Writer::default();
    before.write(&mut out);
    before.give();
    under_way.settle();
    assert_eq!(before.len(), 0);
    let written = out.into_bytes();
    let moved = moving::Moved::read_list(&mut tidegate_wire::fields::Reader::new(&written)).unwrap();
    moved.into_iter().for_each(|moved| after.go_on(moved, None));
    after.push(&count, text("2, of later"));
    assert_eq!(taken(&after), ["1", "2, of later", "3", "4"]);
}

#[test]
fn what_could_not_fit_anyway_drops_nothing_else() {
    let queue = queue(30 * 1024);
    queue.push(&CHANGE, event(10 * 1024));
    let under_way = queue.take();
    queue.push(&CHANGE, event(15 * 1024));
    queue.push(&CHANGE, event(25 * 1024));
    assert_eq!((under_way.events.len(), queue.len()), (1, 1));
    under_way.settle();
    queue.push(&CHANGE, event(25 * 1024));
    assert_eq!(queue.len(), 1, "now the older one makes room");
    assert_eq!(queue.take().events[0].len(), 25 * 1024);
    assert_eq!(queue.state().bytes(), 0, "given up, and released");
}

/// An anonymous client may subscribe to cache channels by the thousand, and one with rights send events.
#[test]
fn what_happened_to_channels_keeps_its_room() {
    let queue = queue(10 * 1024);
    queue.push(&CHANGE, text("occupied"));
    for number in 0..1000 {
        queue.push(&Event::CacheMiss { channel: &format!("cache-{number}") }, event(100));
        queue.push(&CLIENT, event(100));
    }
    assert_eq!(queue.take().events[0], text("occupied"));
    assert!(queue.state().bytes() <= 10 * 1024);
    assert!(queue.metrics.dropped.get(WebhookDrop::QueueFull) > 1900);
}

#[test]
fn events_of_both_kinds_leave_in_their_order() {
    let queue = queue(1024 * 1024);
    for (kind, name) in [(&CLIENT, "1"), (&CHANGE, "2"), (&CHANGE, "3"), (&CLIENT, "4")] {
        queue.push(kind, text(name));
    }
    assert_eq!(taken(&queue), ["1", "2", "3", "4"]);
}

#[test]
fn a_miss_is_told_once_while_it_is_fresh() {
    let (mut state, now) = (State::default(), Instant::now());
    let mut miss = |channel: &str, after: Duration| {
        let event = Event::CacheMiss { channel };
        state.push((Topic::of(&event), text(channel), None), event.is_change(), 1 << 24, now + after)
    };
    let (added, moment) = (Pushed::Added { dropped: 0 }, Duration::from_millis(1));
    assert_eq!(miss("a", Duration::ZERO), added);
    assert_eq!(miss("a", MISS_INTERVAL - moment), Pushed::Coalesced);
    assert_eq!(miss("b", Duration::ZERO), added);
    assert_eq!(miss("a", MISS_INTERVAL), added);
    for number in 0..2 * MISSES_MAX {
        assert_eq!(miss(&format!("c{number}"), MISS_INTERVAL), added);
    }
    assert_eq!(state.misses.len(), MISSES_MAX);
}

#[test]
fn of_numbers_that_wait_the_newest_is_told() {
    let queue = queue(1024 * 1024);
    let count = |channel: &str, json: &str| {
        queue.push(&Event::SubscriptionCount { channel, subscription_count: 1 }, text(json));
    };
    count("a", "a 9");
    count("b", "b 1");
    count("a", "a 10");
    count("a", "a 11");
    assert_eq!(taken(&queue), ["a 11", "b 1"]);
    count("a", "a 12");
    assert_eq!(taken(&queue), ["a 12"]);
    assert_eq!(queue.state().bytes(), 0);
    assert!(queue.state().topics.is_empty());
    assert_eq!(queue.metrics.coalesced.get(), 2);
}

#[test]
fn a_request_has_one_event_where_no_more_are_wanted() {
    let queue = queue(1024 * 1024);
    queue.configure(Dialect::clone(&queue.dialect()), false);
    (0..3).for_each(|number| queue.push(&CHANGE, text(&number.to_string())));
    assert_eq!([taken(&queue), taken(&queue), taken(&queue)], [["0"], ["1"], ["2"]]);
}
