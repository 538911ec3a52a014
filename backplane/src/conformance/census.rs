//! Checks of the census: who is in a channel, what is told of it, and to whom.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{Bench, Subject, eventually, pair, unique, unique_channel};
use crate::{
    Attend, AttendError, Attended, COUNTS_INTERVAL, COUNTS_SMALL_INTERVAL, COUNTS_SMALL_MAX, CensusEvent,
    CensusKind, Channel, Roll, Sums, Transition, User,
};

/// Events are numbered without holes and come once for a user; transitions come once, ends when they have lasted.
pub async fn the_census_tells_each_user_once(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "census").await;
    let first = bench.enter(&channel, "ada").await;
    let second = bench.enter(&channel, "ada").await;
    assert_eq!(second.sums, Sums { subscriptions: 2, users: 1 });
    let third = bench.enter(&channel, "bob").await;
    assert_eq!(third.sums, Sums { subscriptions: 3, users: 2 });
    bench.leave(&channel, "ada").await;
    let last = bench.leave(&channel, "ada").await;
    assert_eq!(last.sums, Sums { subscriptions: 1, users: 1 });

    let events = bench.recorder.until_census(&channel, 3).await;
    assert_eq!(kinds(&events), [joined("ada"), joined("bob"), left("ada")]);
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, [first.sequence, first.sequence + 1, first.sequence + 2]);
    assert_eq!((second.sequence, third.sequence, last.sequence), (numbers[0], numbers[1], numbers[2]));

    let roll = bench.backplane.roll(&channel).await.expect("roll");
    assert_eq!((roll.sequence, roll.subscriptions), (last.sequence, 1));
    assert_eq!(roll.users, [user("bob")]);
    assert_eq!(bench.backplane.sums(&channel).await, Ok(last.sums));

    let mut expected = vec![Transition::Occupied, user_joined("ada"), user_joined("bob")];
    assert_eq!(bench.recorder.transitions(&channel), expected);
    expected.push(user_left("ada"));
    until_transitions(subject, &bench, &channel, &expected).await;
    bench.leave(&channel, "bob").await;
    expected.extend([user_left("bob"), Transition::Vacated]);
    until_transitions(subject, &bench, &channel, &expected).await;
    assert_eq!(bench.backplane.roll(&channel).await.expect("roll").users, []);
    let again = bench.enter(&channel, "ada").await;
    assert!(again.sequence > last.sequence, "the numbers of a channel that was empty go on above");
}

/// Who comes back in time has not been away, as far as transitions go.
pub async fn a_return_is_no_transition(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "census-return").await;
    bench.enter(&channel, "ada").await;
    bench.leave(&channel, "ada").await;
    bench.enter(&channel, "ada").await;
    let events = bench.recorder.until_census(&channel, 3).await;
    assert_eq!(kinds(&events), [joined("ada"), left("ada"), joined("ada")]);
    subject.pass(subject.census_settle() + Duration::from_secs(1)).await;
    bench.enter(&channel, "bob").await;
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob")];
    until_transitions(subject, &bench, &channel, &expected).await;
}

/// A channel over its limit refuses those who are not in it, and nobody else.
pub async fn a_full_channel_refuses_new_users(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "census-full").await;
    let enter = async |id: &str| {
        let (users_max, tells_counts) = (Some(2), false);
        let attend = Attend::Enter { user: Some(user(id)), users_max, tells_counts };
        bench.backplane.attend(&channel, attend).await.map(|attended| attended.sums)
    };
    assert_eq!(enter("ada").await, Ok(Sums { subscriptions: 1, users: 1 }));
    assert_eq!(enter("bob").await, Ok(Sums { subscriptions: 2, users: 2 }));
    assert_eq!(enter("eve").await, Err(AttendError::Full { users_max: 2 }));
    assert_eq!(enter("ada").await, Ok(Sums { subscriptions: 3, users: 2 }));
    bench.leave(&channel, "bob").await;
    assert_eq!(enter("eve").await, Ok(Sums { subscriptions: 3, users: 2 }));
    let events = bench.recorder.until_census(&channel, 4).await;
    assert_eq!(kinds(&events), [joined("ada"), joined("bob"), left("bob"), joined("eve")]);

    // Together, as many as there is room for.
    let crowd = unique_channel("census-crowd");
    let attend = |number: usize| {
        let user = Some(user(&number.to_string()));
        bench.backplane.attend(&crowd, Attend::Enter { user, users_max: Some(10), tells_counts: false })
    };
    let answers = join_all((0..30).map(attend)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 10);
    assert_eq!(bench.backplane.sums(&crowd).await, Ok(Sums { subscriptions: 10, users: 10 }));
}

/// The number of subscriptions is told at once, then so often, and always the last one.
pub async fn counts_are_told(subject: &dyn Subject) {
    let (bench, channel) = Bench::subscribed(subject, "census-counts").await;
    let attend = |attend| bench.backplane.attend(&channel, attend);
    let enter = || attend(Attend::Enter { user: None, users_max: None, tells_counts: true });
    let count = |subscriptions| CensusKind::Count { subscriptions };
    for _ in 0..20 {
        enter().await.expect("attend");
    }
    for _ in 0..19 {
        attend(Attend::Leave { user: None }).await.expect("attend");
    }
    let told = kinds(&bench.recorder.until_census(&channel, 1).await);
    assert_eq!(told[0], count(1));
    assert!(told.len() <= 10, "{told:?}");
    let joined = enter().await.expect("attend");
    assert_eq!(joined.sums.subscriptions, 2);
    subject.pass(COUNTS_SMALL_INTERVAL).await;
    let newest = async || bench.recorder.census(&channel).last().map(|event| event.kind.clone());
    eventually("the newest small count is told", newest, |newest| *newest == Some(count(2))).await;
    attend(Attend::Leave { user: None }).await.expect("attend");
    let all = 2 * COUNTS_SMALL_MAX;
    for answer in join_all((1..all).map(|_| enter())).await {
        answer.expect("attend");
    }
    enter().await.expect("attend");
    subject.pass(COUNTS_INTERVAL).await;
    eventually("the last count is told", newest, |newest| *newest == Some(count(all + 1))).await;
    let of_transitions = bench.recorder.transitions(&channel);
    assert_eq!(of_transitions.last(), Some(&Transition::Count { subscriptions: all + 1 }));
}

/// Channels are listed by app and prefix, in order, while somebody is in them.
pub async fn census_channels_are_listed_by_app(subject: &dyn Subject) {
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
        bench.enter(&channel, "ada").await;
    }
    bench.enter(&app(None, "gone"), "ada").await;
    bench.leave(&app(None, "gone"), "ada").await;
    let list = async |of: Option<&str>, prefix: &str| {
        let found = bench.backplane.census_channels(of, prefix).await.expect("channels");
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

/// A user on two nodes joins once and leaves once; every subscribed node is told the same, one of them the transitions.
pub async fn a_user_on_two_nodes_is_one_user(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("census-nodes");
    for bench in [&a, &b] {
        bench.subscribe(&channel, 1).await;
    }
    a.enter(&channel, "ada").await;
    b.enter(&channel, "ada").await;
    a.leave(&channel, "ada").await;
    b.enter(&channel, "bob").await;
    let sums = Ok(Sums { subscriptions: 2, users: 2 });
    for bench in [&a, &b] {
        assert_eq!(bench.backplane.sums(&channel).await, sums);
        let events = bench.recorder.until_census(&channel, 2).await;
        assert_eq!(kinds(&events), [joined("ada"), joined("bob")]);
    }
    // From one node to the other: for the subscribers they were away, for everybody else they were not.
    b.leave(&channel, "ada").await;
    a.enter(&channel, "ada").await;
    b.leave(&channel, "bob").await;
    for bench in [&a, &b] {
        let events = bench.recorder.until_census(&channel, 5).await;
        assert_eq!(kinds(&events)[2..], [left("ada"), joined("ada"), left("bob")]);
    }
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob"), user_left("bob")];
    let told = async || told(&[&a, &b], &channel);
    let mut sorted = expected.to_vec();
    sorted.sort_by_key(|transition| format!("{transition:?}"));
    eventually("the end is told once", told, |told| *told == sorted).await;
    a.leave(&channel, "ada").await;
    sorted.extend([user_left("ada"), Transition::Vacated]);
    sorted.sort_by_key(|transition| format!("{transition:?}"));
    eventually("the channel is vacated once", told, |told| *told == sorted).await;
}

/// The users of a node that vanishes are gone with its lease, once, and the channel is vacated.
pub async fn a_node_that_vanishes_takes_its_users_with_it(subject: &dyn Subject) {
    let (Some([a, b]), Some(lease)) = (pair(subject).await, subject.node_lease()) else { return };
    let (shared, alone) = (unique_channel("census-shared"), unique_channel("census-alone"));
    b.subscribe(&shared, 1).await;
    for number in 0..50 {
        a.enter(&shared, &format!("a{number}")).await;
    }
    a.enter(&alone, "ada").await;
    for name in ["bob", "a0"] {
        b.enter(&shared, name).await;
    }
    drop(a);
    subject.pass(lease).await;
    let sums = async || b.backplane.sums(&shared).await.ok();
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
    let events = b.recorder.until_census(&shared, 51 + 49).await;
    assert_eq!(events.iter().filter(|event| matches!(event.kind, CensusKind::Left { .. })).count(), 49);
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// A backplane that lost everything is told who is there again; what was told is not told again.
pub async fn the_census_comes_back_after_a_loss(subject: &dyn Subject) {
    let Some([a, b]) = pair(subject).await else { return };
    let channel = unique_channel("census-loss");
    b.subscribe(&channel, 1).await;
    a.enter(&channel, "ada").await;
    let before = b.enter(&channel, "bob").await;
    if !subject.lose_all().await {
        return;
    }
    let roll = async || b.backplane.roll(&channel).await.expect("roll");
    // The users are read after the numbers: a roll that is read while nodes write may have more of them.
    let is_whole = |roll: &Roll| (roll.subscriptions, roll.users.len()) == (2, 2);
    let roll = eventually("all are there again", roll, is_whole).await;
    assert!(roll.sequence > before.sequence, "the numbers go on above");
    assert_eq!((roll.subscriptions, &roll.users[..]), (2, &[user("ada"), user("bob")][..]));
    a.enter(&channel, "eve").await;
    let expected = [Transition::Occupied, user_joined("ada"), user_joined("bob"), user_joined("eve")];
    assert_eq!(told(&[&a, &b], &channel), expected);
}

impl Bench {
    async fn enter(&self, channel: &Channel, id: &str) -> Attended {
        let attend = Attend::Enter { user: Some(user(id)), users_max: None, tells_counts: false };
        self.backplane.attend(channel, attend).await.expect("attend")
    }

    async fn leave(&self, channel: &Channel, id: &str) -> Attended {
        let attend = Attend::Leave { user: Some(id.into()) };
        self.backplane.attend(channel, attend).await.expect("attend")
    }
}

async fn until_transitions(subject: &dyn Subject, bench: &Bench, channel: &Channel, expected: &[Transition]) {
    subject.pass(subject.census_settle()).await;
    let told = async || bench.recorder.transitions(channel);
    eventually("the transitions are told", told, |told| told == expected).await;
}

/// What several nodes were told, in no order.
fn told(benches: &[&Bench], channel: &Channel) -> Vec<Transition> {
    let mut told: Vec<_> = benches.iter().flat_map(|bench| bench.recorder.transitions(channel)).collect();
    told.sort_by_key(|transition| format!("{transition:?}"));
    told
}

fn kinds(events: &[Arc<CensusEvent>]) -> Vec<CensusKind> {
    events.iter().map(|event| event.kind.clone()).collect()
}

fn user(id: &str) -> User {
    User { id: id.into(), info: Some(format!("{{\"name\":\"{id} é\"}}").into()) }
}

fn joined(id: &str) -> CensusKind {
    CensusKind::Joined(user(id))
}

fn left(id: &str) -> CensusKind {
    CensusKind::Left { user: id.into() }
}

fn user_joined(id: &str) -> Transition {
    Transition::UserJoined { user: id.into() }
}

fn user_left(id: &str) -> Transition {
    Transition::UserLeft { user: id.into() }
}
