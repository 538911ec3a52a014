//! Checks of presence: who is in a channel, what is told of it, and to whom.
//!
//! A connection `ada.1` is of the user `ada`.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, TryFutureExt, future::join_all};

use super::{Bench, Subject, eventually, pair, unique, unique_channel};
use crate::{
    Attendance, BackplaneError, COUNTS_INTERVAL, COUNTS_SMALL_INTERVAL, COUNTS_SMALL_MAX, Channel, Join,
    JoinError, Member, PresenceEvent, PresenceKind, Roll, Sums, Transition,
};

/// Members come in order of their connections; one that joins again is replaced; leaving twice is no error.
pub async fn presence_is_ordered_and_replaced(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "presence").await;
    let other = unique_channel("presence-other");
    assert_eq!(bench.members(&channel).await, [""; 0]);
    for connection in ["c.1", "a.1", "b.1"] {
        bench.enter(&channel, connection).await;
    }
    let twice = bench.enter(&channel, "b.1").await;
    let (connection, user, info) = ("b.1".into(), "ü".into(), Some("{\"name\":\"Zoë\"}".into()));
    let replacing = Member { connection, user, info };
    let replaced = bench.backplane.join(&channel, Join::listed(replacing.clone())).await.expect("join");
    assert_eq!((replaced.sums, replaced.sequence), (twice.sums, twice.sequence + 2), "who is the same stays");
    bench.enter(&other, "d.1").await;
    let roll = bench.backplane.roll(&channel).await.expect("roll");
    assert_eq!(roll.members, [member("a.1"), Arc::new(replacing.clone()), member("c.1")]);
    let events = bench.recorder.until_presence(&channel, 5).await;
    let (member, connections) = (Arc::new(replacing), 1);
    assert_eq!(kinds(&events)[3..], [left("b.1", 0), PresenceKind::Joined { member, connections }]);

    for connection in ["a.1", "a.1", "d.1", "never"] {
        bench.leave(&channel, connection).await;
    }
    assert_eq!(bench.members(&channel).await, ["b.1", "c.1"]);
    assert_eq!(bench.members(&other).await, ["d.1"]);
    for connection in ["b.1", "c.1"] {
        bench.leave(&channel, connection).await;
    }
    assert_eq!(bench.members(&channel).await, [""; 0]);
}

/// Calls take effect in their order, whoever waits for which answer; what is counted is not listed.
pub async fn presence_keeps_the_order_of_the_calls(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let channel = unique_channel("presence-order");
    let mut answers = Vec::new();
    for round in 0..20 {
        answers.push(bench.backplane.join(&channel, Join::counted()).map_err(|_| ()).boxed());
        for connection in ["a.1", "b.1", "c.1"] {
            let join = Join::listed(Member::clone(&member(connection)));
            answers.push(bench.backplane.join(&channel, join).map_err(|_| ()).boxed());
            if round < 19 || connection != "b.1" {
                answers.push(bench.backplane.leave(&channel, Some(connection)).map_err(|_| ()).boxed());
            }
        }
        if round > 0 {
            answers.push(bench.backplane.leave(&channel, None).map_err(|_| ()).boxed());
        }
    }
    // A node's own reads come after what it was asked for.
    assert_eq!(bench.members(&channel).await, ["b.1"]);
    answers.reverse();
    assert!(join_all(answers).await.iter().all(Result::is_ok));
    assert_eq!(bench.members(&channel).await, ["b.1"]);
    assert_eq!(bench.sums(&channel).await, Ok(Sums { subscriptions: 2, users: 1 }));
}

/// Events are numbered without holes and say how many connections their user has; transitions come once for a user,
/// ends when they have lasted.
pub async fn presence_tells_each_user_once(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "presence-once").await;
    let first = bench.enter(&channel, "ada.1").await;
    let second = bench.enter(&channel, "ada.2").await;
    assert_eq!(second.sums, Sums { subscriptions: 2, users: 1 });
    let third = bench.enter(&channel, "bob.1").await;
    assert_eq!(third.sums, Sums { subscriptions: 3, users: 2 });
    bench.leave(&channel, "ada.1").await;
    let last = bench.leave(&channel, "ada.2").await;
    assert_eq!(last.sums, Sums { subscriptions: 1, users: 1 });

    let events = bench.recorder.until_presence(&channel, 5).await;
    let expected =
        [joined("ada.1", 1), joined("ada.2", 2), joined("bob.1", 1), left("ada.1", 1), left("ada.2", 0)];
    assert_eq!(kinds(&events), expected);
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (first.sequence..first.sequence + 5).collect::<Vec<_>>());
    assert_eq!((second.sequence, third.sequence, last.sequence), (numbers[1], numbers[2], numbers[4]));

    let roll = bench.backplane.roll(&channel).await.expect("roll");
    assert_eq!((roll.sequence, roll.subscriptions), (last.sequence, 1));
    assert_eq!(roll.members, [member("bob.1")]);
    assert_eq!(bench.sums(&channel).await, Ok(last.sums));

    let mut expected = vec![Transition::Occupied, user_joined("ada"), user_joined("bob")];
    assert_eq!(bench.recorder.transitions(&channel), expected);
    expected.push(user_left("ada"));
    until_transitions(subject, &bench, &channel, &expected).await;
    bench.leave(&channel, "bob.1").await;
    expected.extend([user_left("bob"), Transition::Vacated]);
    until_transitions(subject, &bench, &channel, &expected).await;
    assert_eq!(bench.members(&channel).await, [""; 0]);
    let again = bench.enter(&channel, "ada.3").await;
    assert!(again.sequence > last.sequence, "the numbers of a channel that was empty go on above");
}

/// Who comes back in time has not been away, as far as transitions go.
pub async fn a_return_is_no_transition(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "presence-return").await;
    bench.enter(&channel, "ada.1").await;
    bench.leave(&channel, "ada.1").await;
    bench.enter(&channel, "ada.2").await;
    let events = bench.recorder.until_presence(&channel, 3).await;
    assert_eq!(kinds(&events), [joined("ada.1", 1), left("ada.1", 0), joined("ada.2", 1)]);
    subject.pass(subject.presence_settle() + Duration::from_secs(1)).await;
    bench.enter(&channel, "bob.1").await;
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob")];
    until_transitions(subject, &bench, &channel, &expected).await;
}

/// A channel over its limit refuses those who are not in it, and nobody else.
pub async fn a_full_channel_refuses_new_users(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "presence-full").await;
    let limited = |connection: &str, users_max: u32| Join {
        users_max: Some(users_max),
        ..Join::listed(Member::clone(&member(connection)))
    };
    let enter = async |connection: &str| {
        let joined = bench.backplane.join(&channel, limited(connection, 2)).await;
        joined.map(|attendance| attendance.sums)
    };
    assert_eq!(enter("ada.1").await, Ok(Sums { subscriptions: 1, users: 1 }));
    assert_eq!(enter("bob.1").await, Ok(Sums { subscriptions: 2, users: 2 }));
    assert_eq!(enter("eve.1").await, Err(JoinError::Full { users_max: 2 }));
    assert_eq!(enter("ada.2").await, Ok(Sums { subscriptions: 3, users: 2 }));
    bench.leave(&channel, "eve.1").await;
    bench.leave(&channel, "bob.1").await;
    assert_eq!(enter("eve.1").await, Ok(Sums { subscriptions: 3, users: 2 }));
    let events = bench.recorder.until_presence(&channel, 5).await;
    let expected =
        [joined("ada.1", 1), joined("bob.1", 1), joined("ada.2", 2), left("bob.1", 0), joined("eve.1", 1)];
    assert_eq!(kinds(&events), expected);

    // Together, as many as there is room for.
    let crowd = unique_channel("presence-crowd");
    let join = |number: usize| bench.backplane.join(&crowd, limited(&format!("{number}.1"), 10));
    let answers = join_all((0..30).map(join)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 10);
    assert_eq!(bench.sums(&crowd).await, Ok(Sums { subscriptions: 10, users: 10 }));
}

/// The number of subscriptions is told at once, then so often, and always the last one.
pub async fn counts_are_told(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "presence-counts").await;
    let told = Join { tells_counts: Some(true), ..Join::counted() };
    let enter = || bench.backplane.join(&channel, told.clone());
    let leave = || bench.backplane.leave(&channel, None);
    let count = |subscriptions| PresenceKind::Count { subscriptions };
    for _ in 0..20 {
        enter().await.expect("join");
    }
    for _ in 0..19 {
        leave().await.expect("leave");
    }
    let told = kinds(&bench.recorder.until_presence(&channel, 1).await);
    assert_eq!(told[0], count(1));
    assert!(told.len() <= 10, "{told:?}");
    let joined = enter().await.expect("join");
    assert_eq!(joined.sums.subscriptions, 2);
    subject.pass(COUNTS_SMALL_INTERVAL).await;
    let newest = async || bench.recorder.presence(&channel).last().map(|event| event.kind.clone());
    eventually("the newest small count is told", newest, |newest| *newest == Some(count(2))).await;
    leave().await.expect("leave");
    let all = 2 * COUNTS_SMALL_MAX;
    for answer in join_all((1..all).map(|_| enter())).await {
        answer.expect("join");
    }
    enter().await.expect("join");
    subject.pass(COUNTS_INTERVAL).await;
    eventually("the last count is told", newest, |newest| *newest == Some(count(all + 1))).await;
    let of_transitions = bench.recorder.transitions(&channel);
    assert_eq!(of_transitions.last(), Some(&Transition::Count { subscriptions: all + 1 }));
}

/// Channels are listed by app and prefix, in order, while somebody is in them.
pub async fn presence_channels_are_listed_by_app(subject: &dyn Subject) {
    let bench = Bench::new(subject).await;
    let prefix = unique("list");
    let app = |app: Option<&str>, end: &str| {
        let name = format!("{prefix}-{end}");
        match app {
            Some(app) => Channel::in_app(app, &name).expect("a channel"),
            None => Channel::new(&name).expect("a channel"),
        }
    };
    for channel in [app(None, "b"), app(None, "a"), app(Some("1"), "a"), app(Some("2"), "c")] {
        bench.enter(&channel, "ada.1").await;
    }
    bench.enter(&app(None, "gone"), "ada.1").await;
    bench.leave(&app(None, "gone"), "ada.1").await;
    let list = async |of: Option<&str>, prefix: &str| {
        let found = bench.backplane.presence_channels(of, prefix).await.expect("channels");
        let sums = Sums { subscriptions: 1, users: 1 };
        assert!(found.iter().all(|found| found.sums == sums), "{found:?}");
        found.into_iter().map(|found| found.channel).collect::<Vec<_>>()
    };
    assert_eq!(list(None, &prefix).await, [app(None, "a"), app(None, "b")]);
    assert_eq!(list(Some("1"), &prefix).await, [app(Some("1"), "a")]);
    assert_eq!(list(Some("2"), &format!("{prefix}-c")).await, [app(Some("2"), "c")]);
    assert_eq!(list(Some("2"), &format!("{prefix}-a")).await, []);
    assert_eq!(list(Some("3"), &prefix).await, []);
    for pattern in ["*", "-?", "-[ab]", "-[^c]", "-\\a"] {
        assert_eq!(list(None, &format!("{prefix}{pattern}")).await, [], "{pattern} is no pattern");
    }
}

/// A user on two nodes is one user; every subscribed node is told the same, one of them the transitions.
pub async fn a_user_on_two_nodes_is_one_user(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("presence-nodes");
    for bench in [&a, &b] {
        bench.subscribe(&channel, 1).await;
    }
    a.enter(&channel, "ada.1").await;
    b.enter(&channel, "ada.2").await;
    a.leave(&channel, "ada.1").await;
    b.enter(&channel, "bob.1").await;
    let sums = Ok(Sums { subscriptions: 2, users: 2 });
    let mut expected = vec![joined("ada.1", 1), joined("ada.2", 2), left("ada.1", 1), joined("bob.1", 1)];
    for bench in [&a, &b] {
        assert_eq!(bench.sums(&channel).await, sums);
        assert_eq!(bench.members(&channel).await, ["ada.2", "bob.1"]);
        assert_eq!(kinds(&bench.recorder.until_presence(&channel, 4).await), expected);
    }
    // From one node to the other: for the subscribers they were away, for everybody else they were not.
    b.leave(&channel, "ada.2").await;
    a.enter(&channel, "ada.3").await;
    b.leave(&channel, "bob.1").await;
    expected.extend([left("ada.2", 0), joined("ada.3", 1), left("bob.1", 0)]);
    for bench in [&a, &b] {
        assert_eq!(kinds(&bench.recorder.until_presence(&channel, 7).await), expected);
    }
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob"), user_left("bob")];
    let told = async || told(&[&a, &b], &channel);
    let mut sorted = expected.to_vec();
    sorted.sort_by_key(|transition| format!("{transition:?}"));
    eventually("the end is told once", told, |told| *told == sorted).await;
    a.leave(&channel, "ada.3").await;
    sorted.extend([user_left("ada"), Transition::Vacated]);
    sorted.sort_by_key(|transition| format!("{transition:?}"));
    eventually("the channel is vacated once", told, |told| *told == sorted).await;
}

/// The users of a node that vanishes are gone with its lease, once, and the channel is vacated.
pub async fn a_node_that_vanishes_takes_its_users_with_it(subject: &dyn Subject) {
    let (Some([a, b]), Some(lease)) = (pair(subject).await, subject.node_lease()) else { return };
    let (shared, alone) = (unique_channel("presence-shared"), unique_channel("presence-alone"));
    b.subscribe(&shared, 1).await;
    for number in 0..50 {
        a.enter(&shared, &format!("a{number}.1")).await;
    }
    a.enter(&alone, "ada.1").await;
    for connection in ["bob.1", "a0.2"] {
        b.enter(&shared, connection).await;
    }
    drop(a);
    subject.pass(lease).await;
    let sums = async || b.sums(&shared).await.ok();
    let remaining = Some(Sums { subscriptions: 2, users: 2 });
    eventually("the users of the dead are gone", sums, |sums| *sums == remaining).await;
    let transitions = async |channel: &Channel| b.recorder.transitions(channel);
    let is_all = |told: &Vec<Transition>| told.len() == 1 + 49;
    eventually("their ends are told", async || transitions(&shared).await, is_all).await;
    let told = transitions(&shared).await;
    assert_eq!(told.iter().filter(|told| matches!(told, Transition::UserLeft { .. })).count(), 49);
    let vacated = [user_left("ada"), Transition::Vacated];
    eventually("the other channel is vacated", async || transitions(&alone).await, |told| *told == vacated)
        .await;
    let events = b.recorder.until_presence(&shared, 52 + 50).await;
    let is_last =
        |event: &&Arc<PresenceEvent>| matches!(event.kind, PresenceKind::Left { connections: 0, .. });
    assert_eq!(events.iter().filter(is_last).count(), 49);
    assert_eq!(b.members(&shared).await, ["a0.2", "bob.1"]);
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// A backplane that lost everything is told who is there again; what was told is not told again.
pub async fn presence_comes_back_after_a_loss(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("presence-loss");
    b.subscribe(&channel, 1).await;
    a.enter(&channel, "ada.1").await;
    let before = b.enter(&channel, "bob.1").await;
    if !subject.lose_all().await {
        return;
    }
    let roll = async || b.backplane.roll(&channel).await.expect("roll");
    // The members are read after the numbers: a roll that is read while nodes write may have more of them.
    let is_whole = |roll: &Roll| (roll.subscriptions, roll.members.len()) == (2, 2);
    let roll = eventually("all are there again", roll, is_whole).await;
    assert!(roll.sequence > before.sequence, "the numbers go on above");
    assert_eq!((roll.subscriptions, &roll.members[..]), (2, &[member("ada.1"), member("bob.1")][..]));
    a.enter(&channel, "eve.1").await;
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob"), user_joined("eve")];
    assert_eq!(told(&[&a, &b], &channel), expected);
}

impl Bench {
    async fn enter(&self, channel: &Channel, connection: &str) -> Attendance {
        let join = Join::listed(Member::clone(&member(connection)));
        self.backplane.join(channel, join).await.expect("join")
    }

    async fn leave(&self, channel: &Channel, connection: &str) -> Attendance {
        self.backplane.leave(channel, Some(connection)).await.expect("leave")
    }

    async fn sums(&self, channel: &Channel) -> Result<Sums, BackplaneError> {
        self.backplane.attendance(channel).await.map(|attendance| attendance.sums)
    }

    /// The connections in a channel.
    async fn members(&self, channel: &Channel) -> Vec<String> {
        let roll = self.backplane.roll(channel).await.expect("roll");
        roll.members.iter().map(|member| member.connection.to_string()).collect()
    }
}

async fn until_transitions(subject: &dyn Subject, bench: &Bench, channel: &Channel, expected: &[Transition]) {
    subject.pass(subject.presence_settle()).await;
    let told = async || bench.recorder.transitions(channel);
    eventually("the transitions are told", told, |told| told == expected).await;
}

/// What several nodes were told, in no order.
fn told(benches: &[&Bench], channel: &Channel) -> Vec<Transition> {
    let mut told: Vec<_> = benches.iter().flat_map(|bench| bench.recorder.transitions(channel)).collect();
    told.sort_by_key(|transition| format!("{transition:?}"));
    told
}

fn kinds(events: &[Arc<PresenceEvent>]) -> Vec<PresenceKind> {
    let kind = |event: &Arc<PresenceEvent>| match &event.kind {
        // Whether the info of who left is told is left to the backplane.
        PresenceKind::Left { member, connections } => left(&member.connection, *connections),
        kind => kind.clone(),
    };
    events.iter().map(kind).collect()
}

fn user_of(connection: &str) -> &str {
    connection.split_once('.').map_or(connection, |(user, _)| user)
}

fn member(connection: &str) -> Arc<Member> {
    let user = user_of(connection);
    let info = Some(format!("{{\"name\":\"{user} é\"}}").into());
    Arc::new(Member { connection: connection.into(), user: user.into(), info })
}

fn joined(connection: &str, connections: u64) -> PresenceKind {
    PresenceKind::Joined { member: member(connection), connections }
}

fn left(connection: &str, connections: u64) -> PresenceKind {
    PresenceKind::Left { member: member(connection), connections }
}

fn user_joined(id: &str) -> Transition {
    Transition::UserJoined { user: id.into() }
}

fn user_left(id: &str) -> Transition {
    Transition::UserLeft { user: id.into() }
}
