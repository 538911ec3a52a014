//! The hub by itself: members are numbers, and what is written to them is noted.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tidegate_backplane::{
    Channel, Control, Epoch, Gap, GapReason, Intake, Member, MemoryBackplane, MemoryOptions, Payload,
    Position, PresenceEvent, PresenceKind, Publication, Sink, Transition,
};
use tidegate_reactor::{ConnectionId, Overflow, Shared, Tick, Turn, Written};
use tidegate_wire::frame::Opcode;

use super::{
    ChannelKey, Delivery, Hub, Receivers, Subscription, Terms,
    content::Content,
    form::{Encoder, Form, FormId, Forms, Said},
    outgoing::Outgoing,
};
use crate::{metrics::ShardMetrics, node::interest::Interests, subscription::Seen};

const VERBATIM: FormId = FormId::new(0);
const NOTED: FormId = FormId::new(1);
const OWN_IDS: FormId = FormId::new(2);

static FORMS: Forms = Forms(&[
    &Plain { id: VERBATIM, says_all: false, has_heads: false },
    &Plain { id: NOTED, says_all: true, has_heads: false },
    &Plain { id: OWN_IDS, says_all: true, has_heads: true },
]);

/// Says a publication's text, and, if it says all, `GAP` and `PRESENCE`.
#[derive(Debug)]
struct Plain {
    id: FormId,
    says_all: bool,
    has_heads: bool,
}

impl Form for Plain {
    fn id(&self) -> FormId {
        self.id
    }

    fn say<'a>(&self, _: &Channel, content: &'a Content, scratch: &'a mut Vec<u8>) -> Option<Said<'a>> {
        match content {
            Content::Publication(publication) if self.id == VERBATIM => {
                return Some(Said::Message(Opcode::Text, publication.payload.bytes()));
            }
            Content::Publication(publication) => scratch.extend_from_slice(publication.payload.bytes()),
            Content::Gap(_) if self.says_all => scratch.extend_from_slice(b"GAP"),
            Content::Presence(_) if self.says_all => scratch.extend_from_slice(b"PRESENCE"),
            _ => return None,
        }
        Some(Said::Bytes(scratch))
    }

    fn says_gaps(&self) -> bool {
        self.says_all
    }

    fn says_presence(&self) -> bool {
        self.says_all
    }

    fn has_heads(&self) -> bool {
        self.has_heads
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

/// One write to one member.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Write {
    text: String,
    messages: u32,
    overflow: Overflow,
    /// Where the shared bytes are in memory.
    at: usize,
}

/// Members, by their slot.
#[derive(Default)]
struct Members {
    places: HashMap<u32, Subscription>,
    writes: HashMap<u32, Vec<Write>>,
    closed: Vec<u32>,
    moves: usize,
}

impl Receivers for Members {
    fn write(&mut self, slot: u32, shared: &Shared<'_>) -> Written {
        let text = [shared.head, &shared.bytes[..]].concat();
        self.writes.entry(slot).or_default().push(Write {
            text: String::from_utf8_lossy(&text).into_owned(),
            messages: shared.messages,
            overflow: shared.overflow,
            at: shared.bytes.as_ptr() as usize,
        });
        Written::Sent
    }

    fn holds(&self, id: ConnectionId) -> bool {
        id.generation == 1
    }

    fn put_head(&mut self, slot: u32, _: ChannelKey, _: Option<Position>, head: &mut Vec<u8>) {
        head.extend_from_slice(format!("{slot}:").as_bytes());
    }

    fn close_for_gap(&mut self, slot: u32, _: ChannelKey, _: Gap) {
        self.closed.push(slot);
    }

    fn moved(&mut self, slot: u32, from_lane: u32, to: Subscription) {
        let place = self.places.get_mut(&slot).expect("a member");
        assert!(place.is_of_lane(from_lane));
        *place = to;
        self.moves += 1;
    }
}

/// A hub with one channel.
struct Bench {
    hub: Hub,
    members: Members,
    encoder: Encoder,
    metrics: ShardMetrics,
    interests: Arc<Interests>,
    channel: Channel,
    key: ChannelKey,
    now: Tick,
}

impl Bench {
    fn new(terms: Terms) -> Self {
        let interests = Arc::new(Interests::new());
        let backplane = Arc::new(MemoryBackplane::new(Arc::new(NoSink), MemoryOptions::default()));
        let mut hub = Hub::new(0, Arc::clone(&interests), backplane, FORMS);
        let channel = Channel::new("a").expect("a name");
        let (key, _) = hub.hold(&channel, terms);
        Self {
            hub,
            members: Members::default(),
            encoder: Encoder::new(FORMS),
            metrics: ShardMetrics::default(),
            interests,
            channel,
            key,
            now: Tick(100),
        }
    }

    fn follow(&mut self, slot: u32, form: FormId, seen: Seen) {
        drop(self.hub.hold(&self.channel, Terms::default()));
        let place = self.hub.join(self.key, form, seen, slot, self.now);
        assert_eq!(self.members.places.insert(slot, place), None);
    }

    fn join(&mut self, slot: u32, form: FormId) {
        self.follow(slot, form, Seen::default());
    }

    fn part(&mut self, slot: u32) {
        let place = self.members.places.remove(&slot).expect("a member");
        self.hub.part(place, self.now, &mut self.members);
    }

    fn content(&mut self, content: Content, except: Option<ConnectionId>) {
        let load = self.hub.load(self.key, 0);
        let outgoing = Arc::new(Outgoing::new(self.channel.clone(), content, load));
        self.hub.deliver(&outgoing, except);
    }

    fn publish(&mut self, text: &str, position: Option<(u64, u64)>) {
        self.content(publication(text, position), None);
    }

    fn gap(&mut self) {
        self.content(Content::Gap(Gap { reason: GapReason::Hole, top: None }), None);
    }

    fn presence(&mut self) {
        let member = Arc::new(Member { connection: "n.1".into(), user: "u".into(), info: None });
        let kind = PresenceKind::Left { member, connections: 0 };
        self.content(Content::Presence(Arc::new(PresenceEvent { sequence: 1, kind })), None);
    }

    fn turn(&mut self, is_over: impl FnMut() -> bool) -> Turn {
        let mut delivery = Delivery {
            receivers: &mut self.members,
            encoder: &mut self.encoder,
            metrics: &self.metrics,
            now: self.now,
        };
        self.hub.run(&mut delivery, is_over)
    }

    /// Sends all that waits; what became of it, for each slot.
    fn sent(&mut self) -> HashMap<u32, Vec<Write>> {
        while let Turn::More = self.turn(|| false) {}
        std::mem::take(&mut self.members.writes)
    }

    /// The same, as text.
    fn told(&mut self, slot: u32) -> Vec<String> {
        let writes = self.sent().remove(&slot).unwrap_or_default();
        writes.into_iter().map(|write| write.text).collect()
    }
}

fn publication(text: &str, position: Option<(u64, u64)>) -> Content {
    let position = position.map(|(epoch, offset)| Position { epoch: Epoch(epoch), offset });
    let payload = Payload::Text(text.into());
    Content::Publication(Arc::new(Publication { position, event: None, payload, sender: None }))
}

fn through(epoch: u64, offset: u64) -> Seen {
    Seen::through(Some(Position { epoch: Epoch(epoch), offset }))
}

#[test]
fn what_piles_up_is_one_write_for_each_member_and_shared() {
    let mut bench = Bench::new(Terms::default());
    (0..40).for_each(|slot| bench.join(slot, NOTED));
    bench.join(40, VERBATIM);
    ["a", "b", "c"].iter().for_each(|text| bench.publish(text, None));
    let writes = bench.sent();
    let first = writes[&0][0].clone();
    assert_eq!((&*first.text, first.messages), ("abc", 3));
    assert!((0..40).all(|slot| writes[&slot] == [first.clone()]), "the same bytes in one place");
    assert_eq!((&*writes[&40][0].text, writes[&40].len()), ("\u{fffd}\u{1}a\u{fffd}\u{1}b\u{fffd}\u{1}c", 1));
}

#[test]
fn a_batch_has_a_bound() {
    let mut bench = Bench::new(Terms::default());
    bench.join(0, NOTED);
    let text = "x".repeat(6 * 1024);
    (0..5).for_each(|_| bench.publish(&text, None));
    let sizes: Vec<u32> = bench.sent()[&0].iter().map(|write| write.messages).collect();
    assert_eq!(sizes, [2, 2, 1]);
}

#[test]
fn who_comes_during_a_fan_out_gets_what_comes_after_it() {
    let mut bench = Bench::new(Terms::default());
    (0..40).for_each(|slot| bench.join(slot, NOTED));
    bench.publish("old", None);
    assert!(matches!(bench.turn(|| true), Turn::More), "a slice");
    bench.join(99, NOTED);
    (0..20).for_each(|slot| bench.part(slot));
    bench.publish("new", None);
    let writes = bench.sent();
    let texts = |slot| writes.get(&slot).map(|all| all.iter().map(|write| &*write.text).collect::<Vec<_>>());
    assert_eq!(texts(99), Some(vec!["new"]));
    assert_eq!(texts(39), Some(vec!["old", "new"]));
    assert_eq!(bench.hub.subscriptions(), 21);
}

#[test]
fn a_turn_ends_when_its_time_is_over_and_lanes_take_turns() {
    let mut bench = Bench::new(Terms::default());
    (0..100).for_each(|slot| bench.join(slot, NOTED));
    (100..200).for_each(|slot| bench.join(slot, VERBATIM));
    bench.publish("x", None);
    let mut looks = 0;
    let turn = bench.turn(|| {
        looks += 1;
        looks == 3
    });
    assert!(matches!(turn, Turn::More));
    let served =
        |slots: std::ops::Range<u32>| slots.filter(|slot| bench.members.writes.contains_key(slot)).count();
    assert_eq!((served(0..100), served(100..200)), (32, 16), "three slices, of two lanes");
    assert_eq!(bench.sent().len(), 200);
}

#[test]
fn who_has_it_from_history_is_not_told_again_and_follows_no_longer_than_needed() {
    let mut bench = Bench::new(Terms::default());
    bench.publish("1", Some((7, 1)));
    bench.follow(0, NOTED, through(7, 3));
    bench.join(1, NOTED);
    (2..5).for_each(|offset| bench.publish(&offset.to_string(), Some((7, offset))));
    let writes = bench.sent();
    assert_eq!(writes[&0].iter().map(|write| &*write.text).collect::<Vec<_>>(), ["4"]);
    assert_eq!(writes[&1].iter().map(|write| &*write.text).collect::<Vec<_>>(), ["234"]);
    // It is in the ordinary lane now: what piles up is one write.
    bench.publish("5", Some((7, 5)));
    bench.publish("6", Some((7, 6)));
    assert_eq!(bench.told(0), ["56"]);
    assert!(bench.hub.following.is_empty());
}

#[test]
fn what_waited_in_its_lane_when_it_joined_is_not_told() {
    let mut bench = Bench::new(Terms::default());
    bench.follow(0, NOTED, through(7, 9));
    bench.publish("a", None);
    bench.follow(1, NOTED, through(7, 9));
    bench.publish("b", None);
    let writes = bench.sent();
    assert_eq!((writes[&0].len(), &*writes[&1][0].text, writes[&1].len()), (2, "b", 1));
}

/// Publications without a position say nothing of those who follow: they were looked at after each, forever.
#[test]
fn followers_whose_position_never_comes_are_not_looked_at_each_time_and_settle() {
    let mut bench = Bench::new(Terms::default());
    (0..50).for_each(|slot| bench.follow(slot, NOTED, through(7, 9)));
    bench.publish("first", None);
    bench.sent();
    let moves = bench.members.moves;
    (0..10).for_each(|_| {
        bench.publish("x", None);
        bench.sent();
    });
    assert_eq!(bench.members.moves, moves);
    bench.now = bench.now.after(super::following::FOLLOW_MAX);
    bench.hub.sweep(&mut bench.members, bench.now);
    assert!(bench.hub.following.is_empty());
    bench.publish("a", None);
    bench.publish("b", None);
    assert_eq!(bench.told(7), ["ab"]);
    (0..50).for_each(|slot| bench.part(slot));
    assert_eq!(bench.hub.subscriptions(), 0);
}

#[test]
fn what_is_still_to_come_is_followed_however_long_it_takes() {
    let mut bench = Bench::new(Terms::default());
    bench.publish("1", Some((7, 1)));
    bench.follow(0, NOTED, through(7, 2));
    bench.now = bench.now.after(super::following::FOLLOW_MAX);
    bench.hub.sweep(&mut bench.members, bench.now);
    bench.publish("2", Some((7, 2)));
    bench.publish("3", Some((7, 3)));
    assert_eq!(bench.told(0), ["3"]);
}

#[test]
fn what_is_not_a_publication_goes_under_no_policy() {
    for overflow in [Overflow::Latest, Overflow::Drop] {
        let mut bench = Bench::new(Terms { overflow, ..Terms::default() });
        bench.join(0, NOTED);
        bench.publish("a", None);
        bench.presence();
        bench.gap();
        bench.publish("b", None);
        let writes: Vec<_> = bench.sent()[&0]
            .iter()
            .map(|write| (write.text.clone(), write.messages, write.overflow))
            .collect();
        let expect = [("a", 1, overflow), ("PRESENCEGAP", 2, Overflow::Never), ("b", 1, overflow)];
        assert_eq!(writes, expect.map(|(text, messages, overflow)| (text.to_owned(), messages, overflow)));
    }
    // Where nothing is ever dropped, all go together.
    let mut bench = Bench::new(Terms::default());
    bench.join(0, NOTED);
    bench.publish("a", None);
    bench.presence();
    assert_eq!(bench.told(0), ["aPRESENCE"]);
}

#[test]
fn who_cannot_be_told_of_a_gap_is_closed_and_told_nothing_more() {
    let mut bench = Bench::new(Terms::default());
    (0..20).for_each(|slot| bench.join(slot, VERBATIM));
    bench.publish("a", None);
    bench.gap();
    bench.publish("b", None);
    let mut told = HashMap::new();
    loop {
        let turn = bench.turn(|| false);
        told.extend(std::mem::take(&mut bench.members.writes));
        for slot in std::mem::take(&mut bench.members.closed) {
            let place = bench.members.places[&slot];
            let silent = bench.hub.silence(place, &mut bench.members);
            bench.members.places.insert(slot, silent);
        }
        if matches!(turn, Turn::Idle) {
            break;
        }
    }
    assert_eq!(told.len(), 20);
    assert!(told.values().all(|writes| writes.len() == 1 && writes[0].text.ends_with('a')), "{told:?}");
    bench.join(20, VERBATIM);
    bench.publish("c", None);
    assert_eq!(bench.sent().into_keys().collect::<Vec<_>>(), [20], "who came after the gap");
    (0..21).for_each(|slot| bench.part(slot));
    assert_eq!(bench.hub.subscriptions(), 0);
}

#[test]
fn where_the_namespace_says_so_they_stay_and_are_counted() {
    let mut bench = Bench::new(Terms { stays_at_gaps: true, ..Terms::default() });
    (0..3).for_each(|slot| bench.join(slot, VERBATIM));
    bench.gap();
    bench.publish("b", None);
    assert_eq!(bench.sent().len(), 3);
    assert!(bench.members.closed.is_empty());
    assert_eq!(bench.metrics.gaps_untold.get(), 3);
}

/// History was lost while they were subscribed, so they have all of it: who cannot come back to a position loses nothing.
#[test]
fn who_has_no_position_stays_when_only_history_was_lost() {
    let mut bench = Bench::new(Terms::default());
    (0..3).for_each(|slot| bench.join(slot, VERBATIM));
    bench.content(Content::Gap(Gap { reason: GapReason::Forgotten, top: None }), None);
    bench.publish("b", None);
    assert_eq!(bench.sent().len(), 3);
    assert!(bench.members.closed.is_empty());
    assert_eq!(bench.metrics.gaps_untold.get(), 0);
}

#[test]
fn a_sender_gets_the_rest_of_the_batch() {
    let mut bench = Bench::new(Terms::default());
    (0..3).for_each(|slot| bench.join(slot, NOTED));
    let id = |slot, generation| Some(ConnectionId { slot, generation });
    bench.content(publication("a", None), id(1, 1));
    bench.content(publication("b", None), None);
    // Whoever has the slot now did not send it.
    bench.content(publication("c", None), id(2, 2));
    let writes = bench.sent();
    let text = |slot| writes[&slot].iter().map(|write| (&*write.text, write.messages)).collect::<Vec<_>>();
    assert_eq!((text(0), text(1), text(2)), (vec![("abc", 3)], vec![("bc", 2)], vec![("abc", 3)]));
    bench.content(publication("d", None), id(1, 1));
    assert!(!bench.sent().contains_key(&1));
}

#[test]
fn what_differs_in_heads_only_shares_the_rest() {
    let mut bench = Bench::new(Terms::default());
    bench.join(4, OWN_IDS);
    bench.join(5, OWN_IDS);
    bench.publish("x", Some((1, 1)));
    bench.gap();
    let writes = bench.sent();
    let texts = |slot| writes[&slot].iter().map(|write| &*write.text).collect::<Vec<_>>();
    assert_eq!((texts(4), texts(5)), (vec!["4:x", "4:GAP"], vec!["5:x", "5:GAP"]));
    assert_eq!(writes[&4][0].at, writes[&5][0].at);
}

#[test]
fn those_who_watch_are_named_for_what_is_delivered() {
    let mut bench = Bench::new(Terms::default());
    let id = ConnectionId { slot: 3, generation: 1 };
    let load = bench.hub.load(bench.key, 0);
    let outgoing = Arc::new(Outgoing::new(bench.channel.clone(), publication("a", Some((1, 4))), load));
    bench.hub.watch(bench.key, id);
    assert_eq!(bench.hub.deliver(&outgoing, None), Some((bench.key, &[id][..])));
    assert_eq!(bench.hub.delivered(bench.key), outgoing.position());
    bench.hub.unwatch(bench.key, id);
    assert_eq!(bench.hub.deliver(&outgoing, None), Some((bench.key, &[][..])));
}

#[test]
fn a_channel_outlives_its_last_hold_for_a_while() {
    let mut bench = Bench::new(Terms::default());
    bench.join(0, NOTED);
    bench.part(0);
    bench.hub.release(bench.key, bench.now);
    bench.hub.sweep(&mut bench.members, bench.now);
    assert_eq!(bench.interests.len(), 1);
    bench.now = bench.now.after(super::LINGER);
    bench.hub.sweep(&mut bench.members, bench.now);
    assert_eq!((bench.interests.len(), bench.hub.key_of("a")), (0, None));
}

#[test]
fn an_encoding_is_made_once_and_deflated_where_that_pays() {
    let mut encoder = Encoder::new(FORMS);
    let bench = Bench::new(Terms::default());
    let outgoing = |text: &str| {
        Outgoing::new(bench.channel.clone(), publication(text, None), bench.hub.load(bench.key, 0))
    };
    let at = |bytes: &Bytes| bytes.as_ptr() as usize;
    let short = outgoing("short");
    let plain = short.encoded(VERBATIM, &mut encoder);
    assert_eq!(at(&plain), at(&short.encoded(VERBATIM, &mut encoder)));
    assert_eq!(at(&plain), at(&short.encoded(VERBATIM.deflated(), &mut encoder)), "it does not pay");
    let long = outgoing(&"long ".repeat(200));
    let (plain, deflated) =
        (long.encoded(VERBATIM, &mut encoder), long.encoded(VERBATIM.deflated(), &mut encoder));
    assert!(deflated.len() < plain.len() / 4, "{} of {}", deflated.len(), plain.len());
    assert_eq!(at(&deflated), at(&long.encoded(VERBATIM.deflated(), &mut encoder)));
    // It is shared by all subscribers of a node.
    assert!(size_of::<Outgoing>() <= 176, "{}", size_of::<Outgoing>());
}

/// Whoever comes, goes, follows and settles in whatever order: each member is told what is delivered while it is one,
/// once and in order.
#[test]
fn members_that_come_and_go_miss_nothing_and_get_nothing_twice() {
    for seed in 1..200_u64 {
        let mut random = seed;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut bench = Bench::new(Terms::default());
        let mut told: HashMap<u32, String> = HashMap::new();
        let mut joined: HashMap<u32, u64> = HashMap::new();
        let (mut slots, mut published) = (0, 0);
        for _ in 0..200 {
            match next(10) {
                0..3 => {
                    // It has everything that was delivered, and perhaps some of what is to come.
                    let has = published + next(3);
                    let seen = if has == 0 { Seen::default() } else { through(1, has) };
                    // Seen through a place, it is not told what waits.
                    bench.follow(slots, NOTED, seen);
                    joined.insert(slots, has);
                    slots += 1;
                }
                3 if !joined.is_empty() => {
                    let mut all: Vec<u32> = joined.keys().copied().collect();
                    all.sort_unstable();
                    let slot = all[next(all.len() as u64) as usize];
                    bench.part(slot);
                    joined.remove(&slot);
                }
                4..7 => {
                    published += 1;
                    bench.publish(&format!("{published} "), Some((1, published)));
                }
                _ => {
                    let mut left = next(4);
                    bench.turn(|| {
                        left = left.saturating_sub(1);
                        left == 0
                    });
                }
            }
            for (slot, writes) in std::mem::take(&mut bench.members.writes) {
                writes.iter().for_each(|write| told.entry(slot).or_default().push_str(&write.text));
            }
        }
        for (slot, writes) in bench.sent() {
            writes.iter().for_each(|write| told.entry(slot).or_default().push_str(&write.text));
        }
        for (slot, has) in joined {
            let expect: String = (has + 1..=published).map(|number| format!("{number} ")).collect();
            assert_eq!(told.remove(&slot).unwrap_or_default(), expect, "seed {seed}, slot {slot}");
        }
    }
}
