//! Each way of a replica, and random histories against the truth.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_backplane::Member;

use super::*;

/// Applies what it is told as a client does, from the first list on.
#[derive(Default)]
struct Told {
    lists: Vec<(u64, Result<Arc<List>, BackplaneError>)>,
    /// Each with the number of lists that were given before it.
    events: Vec<(usize, Arc<PresenceEvent>)>,
}

impl Outlet<u64> for Told {
    fn deliver(&mut self, event: Arc<PresenceEvent>) {
        self.events.push((self.lists.len(), event));
    }

    fn answer(&mut self, asker: u64, list: Result<Arc<List>, BackplaneError>) {
        self.lists.push((asker, list));
    }
}

impl Told {
    /// What the client of one list knows in the end; panics if it was told of one who was there, or was not, or
    /// another number of connections than a user has.
    fn final_members(&self, nth: usize) -> Vec<Arc<Member>> {
        let (_, list) = &self.lists[nth];
        let list = list.as_ref().expect("a list");
        let mut members: BTreeMap<_, _> =
            list.members.iter().map(|member| (member.connection.clone(), Arc::clone(member))).collect();
        for (_, event) in self.events.iter().filter(|(before, _)| *before > nth) {
            let (user, told) = match &event.kind {
                PresenceKind::Joined { member, connections } => {
                    let before = members.insert(member.connection.clone(), Arc::clone(member));
                    assert_eq!(before, None, "{member:?} was there");
                    (&member.user, connections)
                }
                PresenceKind::Left { member, connections } => {
                    assert_eq!(members.remove(&member.connection).as_ref(), Some(member), "who left");
                    (&member.user, connections)
                }
                PresenceKind::Count { .. } => continue,
            };
            let of_user = members.values().filter(|member| member.user == *user).count() as u64;
            assert_eq!(of_user, *told, "connections of {user}");
        }
        members.into_values().collect()
    }
}

/// A connection `ada.1` is of the user `ada`.
fn member(connection: &str) -> Arc<Member> {
    let user = connection.split_once('.').map_or(connection, |(user, _)| user);
    Arc::new(Member { connection: connection.into(), user: user.into(), info: None })
}

fn roll(sequence: u64, connections: &[&str]) -> Roll {
    Roll { sequence, subscriptions: 0, members: connections.iter().map(|own| member(own)).collect() }
}

fn joined(sequence: u64, connection: &str) -> Arc<PresenceEvent> {
    let kind = PresenceKind::Joined { member: member(connection), connections: 1 };
    Arc::new(PresenceEvent { sequence, kind })
}

fn left(sequence: u64, connection: &str) -> Arc<PresenceEvent> {
    let kind = PresenceKind::Left { member: member(connection), connections: 0 };
    Arc::new(PresenceEvent { sequence, kind })
}

/// Read at 5 with `a`, given to asker 0.
fn current(told: &mut Told) -> Replica<u64> {
    let mut replica = Replica::new();
    assert_eq!(replica.ask(5, 0, told), Some(Cause::First));
    replica.begin_read();
    assert_eq!(replica.read(Ok(roll(5, &["a"])), told), Next::Current);
    replica
}

#[test]
fn a_list_is_given_when_it_has_the_askers_own_entry() {
    let mut told = Told::default();
    let mut replica = current(&mut told);
    assert_eq!(replica.ask(6, 1, &mut told), None);
    assert_eq!(told.lists.len(), 1, "6 did not come by yet");
    assert_eq!(replica.event(joined(6, "b"), true, &mut told), None);
    assert_eq!(told.lists[1].1, Ok(Arc::new(List::new(roll(6, &["a", "b"])))));
    assert_eq!(replica.ask(3, 2, &mut told), None);
    assert!(Arc::ptr_eq(told.lists[1].1.as_ref().unwrap(), told.lists[2].1.as_ref().unwrap()));
    assert_eq!(told.events, [(1, joined(6, "b"))], "those who ask later have it in their list");
}

#[test]
fn a_change_that_does_not_come_is_read() {
    let mut told = Told::default();
    let mut replica = current(&mut told);
    assert_eq!(replica.overdue(), None, "nobody waits");
    assert_eq!(replica.ask(6, 1, &mut told), None);
    assert_eq!(replica.overdue(), Some(Cause::Overdue));
    replica.begin_read();
    assert_eq!(replica.read(Ok(roll(5, &["a"])), &mut told), Next::Current);
    assert_eq!(told.lists.len(), 2, "it was read after the asker's entry, whatever its number says");
}

#[test]
fn a_skipped_number_is_made_good_by_reading() {
    let mut told = Told::default();
    let mut replica = current(&mut told);
    assert_eq!(replica.event(left(5, "a"), true, &mut told), None, "old");
    assert_eq!(replica.event(joined(8, "d"), true, &mut told), Some(Cause::Hole));
    replica.begin_read();
    assert_eq!(replica.event(joined(9, "e"), true, &mut told), None);
    assert_eq!(replica.read(Ok(roll(8, &["b", "d"])), &mut told), Next::Current);
    assert_eq!(told.final_members(0), ["b", "d", "e"].map(member));
    let (at, again) = (told.events.len(), joined(8, "d"));
    assert_eq!(replica.event(again, true, &mut told), None);
    assert_eq!(told.events.len(), at);
}

#[test]
fn what_was_lost_or_had_no_room_is_read_and_told_as_changes() {
    let mut told = Told::default();
    let mut replica = current(&mut told);
    assert_eq!(replica.lost(), Some(Cause::Lost));
    assert_eq!(replica.lost(), None);
    replica.begin_read();
    assert_eq!(replica.read(Ok(roll(7, &["b"])), &mut told), Next::Current);
    assert_eq!(told.final_members(0), [member("b")]);
    assert_eq!(replica.event(joined(8, "c"), false, &mut told), Some(Cause::Full));
    replica.begin_read();
    assert_eq!(replica.read(Ok(roll(8, &["b", "c"])), &mut told), Next::Current);
    assert_eq!(told.final_members(0), [member("b"), member("c")]);
}

#[test]
fn a_reading_that_is_not_sufficient_is_made_again() {
    let mut told = Told::default();
    let mut replica = Replica::new();
    assert_eq!(replica.ask(1, 0, &mut told), Some(Cause::First));
    replica.begin_read();
    for sequence in 2..KEPT_MAX as u64 + 10 {
        let event = if sequence % 2 == 0 { joined(sequence, "b") } else { left(sequence, "b") };
        assert_eq!(replica.event(event, true, &mut told), None);
    }
    assert_eq!(replica.read(Ok(roll(1, &["a"])), &mut told), Next::Again);
    replica.begin_read();
    let last = KEPT_MAX as u64 + 9;
    assert_eq!(replica.read(Ok(roll(last, &["c"])), &mut told), Next::Current);
    assert_eq!(told.final_members(0), [member("c")]);
}

/// Everybody who joins a large channel at once asks for the list, each for one with a change of its own.
#[test]
fn who_asks_at_once_in_a_large_channel_gets_one_list() {
    let (mut replica, mut told) = (Replica::new(), Told::default());
    let many: Vec<String> = (0..GATHERED_FROM).map(|n| format!("u{n:03}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    replica.ask(0, 0, &mut told);
    replica.read(Ok(roll(7, &many)), &mut told);
    let mut gatherings = 0;
    for sequence in 8..108 {
        replica.event(joined(sequence, &format!("v{sequence}")), true, &mut told);
        replica.ask(sequence, sequence, &mut told);
        gatherings += usize::from(replica.begins_to_gather());
    }
    assert_eq!((told.lists.len(), gatherings), (1, 1));
    replica.gathered(&mut told);
    let lists: Vec<_> = told.lists[1..].iter().map(|(_, list)| list.as_ref().unwrap()).collect();
    assert_eq!(lists.len(), 100);
    assert!(lists.iter().all(|list| Arc::ptr_eq(list, lists[0])));
    assert_eq!((lists[0].sequence, lists[0].members.len()), (107, GATHERED_FROM + 100));
    // The list is current: it is given at once.
    replica.ask(107, 0, &mut told);
    assert_eq!(told.lists.len(), 102);
}

#[test]
fn who_asks_is_answered_an_error_and_those_who_come_later_the_list() {
    let mut told = Told::default();
    let mut replica = Replica::new();
    assert_eq!(replica.ask(1, 0, &mut told), Some(Cause::First));
    replica.begin_read();
    assert_eq!(replica.ask(2, 1, &mut told), None);
    let error = BackplaneError::Unavailable("away".into());
    assert_eq!(replica.read(Err(error.clone()), &mut told), Next::Retry);
    assert_eq!(told.lists, [(0, Err(error.clone()))]);
    replica.begin_read();
    assert_eq!(replica.read(Ok(roll(2, &["a"])), &mut told), Next::Current);
    assert_eq!(told.lists[1], (1, Ok(Arc::new(List::new(roll(2, &["a"]))))));
    assert_eq!(replica.ask(9, 2, &mut told), None);
    replica.end(&error, &mut told);
    assert_eq!(told.lists[2], (2, Err(error)));
}

/// Changes on their way from the truth to the replica.
#[derive(Debug, Clone)]
enum Step {
    /// A connection comes or goes: two of each user.
    Toggle(u8),
    /// The oldest change on its way arrives.
    Arrive {
        has_room: bool,
    },
    /// All that are on their way are lost, and that is told.
    Lose,
    Ask,
    BeginRead,
    Read {
        succeeds: bool,
    },
    Overdue,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6u8).prop_map(Step::Toggle),
        4 => (0..8u8).prop_map(|dice| Step::Arrive { has_room: dice > 0 }),
        1 => Just(Step::Lose),
        2 => Just(Step::Ask),
        2 => Just(Step::BeginRead),
        3 => (0..5u8).prop_map(|dice| Step::Read { succeeds: dice > 0 }),
        1 => Just(Step::Overdue),
    ];
    proptest::collection::vec(step, 0..120)
}

/// The truth, a link, and the replica behind it.
struct World {
    sequence: u64,
    members: BTreeMap<Box<str>, Arc<Member>>,
    under_way: std::collections::VecDeque<Arc<PresenceEvent>>,
    replica: Replica<u64>,
    told: Told,
    /// A reading was asked for.
    reads: bool,
    /// What the server answers to the one that was begun.
    answer: Option<Roll>,
    askers: u64,
}

impl World {
    fn step(&mut self, step: &Step) {
        let cause = match *step {
            Step::Toggle(nth) => {
                self.toggle(nth);
                None
            }
            Step::Arrive { has_room } => {
                let event = self.under_way.pop_front();
                event.and_then(|event| self.replica.event(event, has_room, &mut self.told))
            }
            Step::Lose => {
                self.under_way.clear();
                self.replica.lost()
            }
            Step::Ask => {
                self.askers += 1;
                self.replica.ask(self.sequence, self.askers, &mut self.told)
            }
            Step::BeginRead => {
                if self.reads && self.answer.is_none() {
                    self.replica.begin_read();
                    self.answer = Some(self.roll());
                }
                None
            }
            Step::Read { succeeds } => {
                if let Some(roll) = self.answer.take() {
                    let read = if succeeds { Ok(roll) } else { Err(BackplaneError::Refused("".into())) };
                    self.reads = self.replica.read(read, &mut self.told) != Next::Current;
                }
                None
            }
            Step::Overdue => self.replica.overdue(),
        };
        assert!(cause.is_none() || !self.reads, "one reading at a time");
        self.reads |= cause.is_some();
    }

    fn toggle(&mut self, nth: u8) {
        let member = member(&format!("{}.{nth}", nth / 2));
        let (connection, user) = (member.connection.clone(), member.user.clone());
        self.sequence += 1;
        let has_left = self.members.remove(&connection).is_some();
        if !has_left {
            self.members.insert(connection.clone(), Arc::clone(&member));
        }
        let connections = self.members.values().filter(|other| other.user == user).count() as u64;
        let kind = match has_left {
            true => PresenceKind::Left { member, connections },
            false => PresenceKind::Joined { member, connections },
        };
        self.under_way.push_back(Arc::new(PresenceEvent { sequence: self.sequence, kind }));
    }

    fn roll(&self) -> Roll {
        let members = self.members.values().cloned().collect();
        Roll { sequence: self.sequence, subscriptions: 0, members }
    }

    /// Lets everything arrive.
    fn come_to_rest(&mut self) {
        while !self.under_way.is_empty() {
            self.step(&Step::Arrive { has_room: true });
        }
        self.step(&Step::Overdue);
        while self.reads {
            self.step(&Step::BeginRead);
            self.step(&Step::Read { succeeds: true });
        }
    }
}

proptest! {
    /// Whoever is given a list has the truth in the end, without being told anything twice, whatever is lost, late or
    /// read when.
    #[test]
    fn every_list_and_what_follows_it_is_the_truth(steps in steps()) {
        let mut world = World {
            sequence: 7,
            members: BTreeMap::new(),
            under_way: Default::default(),
            replica: Replica::new(),
            told: Told::default(),
            reads: false,
            answer: None,
            askers: 0,
        };
        for step in &steps {
            world.step(step);
        }
        world.come_to_rest();
        prop_assert_eq!(world.told.lists.len() as u64, world.askers, "everyone is answered once");
        let truth = world.roll().members;
        for nth in 0..world.told.lists.len() {
            if world.told.lists[nth].1.is_ok() {
                prop_assert_eq!(&world.told.final_members(nth), &truth);
            }
        }
    }
}
