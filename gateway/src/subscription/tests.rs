//! What the machine answers, one rule a test; [`simulation`](simulation) plays the orders.

use tidegate_backplane::{Epoch, Payload, Text};

use super::*;

mod simulation;

fn at(offset: u64) -> Position {
    Position { epoch: Epoch(1), offset }
}

fn item(offset: u64, bytes: usize) -> Item {
    Item::Publication(publication(offset, bytes))
}

fn publication(offset: u64, bytes: usize) -> Arc<Publication> {
    let payload = Payload::Text("x".repeat(bytes).into());
    Arc::new(Publication { position: Some(at(offset)), event: None, payload, sender: None })
}

fn page(offsets: std::ops::RangeInclusive<u64>, top: u64) -> Result<History, BackplaneError> {
    let publications = offsets.map(|offset| publication(offset, 1)).collect();
    Ok(History { publications, top: Some(at(top)), left: None, continuous: true })
}

/// Where the channel stands, and nothing of its past.
fn standing(top: u64) -> Result<History, BackplaneError> {
    Ok(History { publications: Vec::new(), top: Some(at(top)), left: None, continuous: true })
}

/// The outputs in a short form, such as `subscribed 1:3 recovered, 1:4, room`.
#[track_caller]
fn check(outputs: &Outputs, expect: &str) {
    let place = |position: Option<Position>| position.map_or("nowhere".to_owned(), |at| at.to_string());
    let words = outputs.iter().flat_map(|output| match output {
        Output::AwaitRoom => vec!["room".to_owned()],
        Output::Read(Read::Page(position)) => vec![format!("read {position}")],
        Output::Read(read) => vec![format!("read {read:?}").to_lowercase()],
        Output::List => vec!["list".to_owned()],
        Output::Subscribed { position, recovered } => {
            vec![format!("subscribed {}{}", place(*position), if *recovered { " recovered" } else { "" })]
        }
        Output::Tell(items) => items
            .iter()
            .map(|item| match item {
                Item::Publication(publication) => place(publication.position),
                Item::Gap(gap) => format!("gap {}", place(gap.top)),
            })
            .collect(),
        Output::Join(seen) => vec![format!("join {}", place(seen.position()))],
        Output::Refuse(_) => vec!["refuse".to_owned()],
        Output::Release => vec!["release".to_owned()],
    });
    assert_eq!(words.collect::<Vec<_>>().join(", "), expect);
}

#[test]
fn without_a_past_it_is_live_at_once() {
    let mut machine = Machine::new(Want::Live, false);
    check(&machine.confirmed(), "subscribed nowhere, join nowhere");
    check(&machine.end(), "release");
    check(&machine.end(), "");
}

#[test]
fn a_place_is_told_and_what_came_meanwhile_moves_it() {
    let mut machine = Machine::new(Want::Place, false);
    check(&machine.confirmed(), "read place");
    check(&machine.delivered(&item(8, 1)), "");
    check(&machine.page(standing(7)), "subscribed 1:8, join 1:8");
}

#[test]
fn pages_wait_for_room_and_what_is_kept_follows_the_last() {
    let mut machine = Machine::new(Want::After(at(2)), false);
    check(&machine.confirmed(), "room");
    check(&machine.room(), "read 1:2");
    check(&machine.page(page(3..=4, 6)), "subscribed 1:2 recovered, 1:3, 1:4, room");
    // In history, which is read after it.
    check(&machine.delivered(&item(5, 1)), "");
    check(&machine.room(), "read 1:4");
    check(&machine.delivered(&item(6, 1)), "");
    check(&machine.delivered(&item(7, 1)), "");
    check(&machine.page(page(5..=6, 6)), "1:5, 1:6, 1:7, join 1:7");
}

/// More came while a page was read than can be kept, and the list of who is there is awaited meanwhile.
#[test]
fn an_overflow_is_seen_whatever_else_is_awaited() {
    let mut machine = Machine::new(Want::After(at(2)), true);
    machine.confirmed();
    machine.room();
    check(&machine.page(page(3..=4, 4)), "list");
    for offset in 5..=10 {
        check(&machine.delivered(&item(offset, 60 * 1024)), "");
    }
    check(&machine.listed(1), "subscribed 1:2 recovered, 1:3, 1:4, room");
    check(&machine.room(), "read 1:4");
    check(&machine.page(page(5..=10, 10)), "1:5, 1:6, 1:7, 1:8, 1:9, 1:10, join 1:10");
}

#[test]
fn what_is_not_in_history_is_told_at_once_after_the_answer() {
    let mut machine = Machine::new(Want::After(at(2)), false);
    machine.confirmed();
    let payload = Payload::Text(Text::new());
    let plain =
        Item::Publication(Arc::new(Publication { position: None, event: None, payload, sender: None }));
    check(&machine.delivered(&plain), "");
    machine.room();
    machine.page(page(3..=4, 6));
    check(&machine.delivered(&plain), "nowhere");
}

#[test]
fn what_is_gone_is_a_gap() {
    let mut machine = Machine::new(Want::After(at(2)), false);
    machine.confirmed();
    machine.room();
    let gone = Ok(History {
        publications: vec![publication(9, 1)],
        top: Some(at(9)),
        left: None,
        continuous: false,
    });
    check(&machine.page(gone), "subscribed 1:9, gap 1:9, join 1:9");
}

/// The channel begins anew after a restart: the first publication of the new epoch is news.
#[test]
fn after_a_gap_in_a_channel_without_anything_what_comes_is_news() {
    let mut machine = Machine::new(Want::After(at(3)), false);
    machine.confirmed();
    machine.room();
    let nothing = Ok(History { publications: Vec::new(), top: None, left: None, continuous: false });
    let outputs = machine.page(nothing);
    check(&outputs, "subscribed nowhere, gap nowhere, join 1:3");
    let Some(Output::Join(mut seen)) = outputs.into_iter().next_back() else { panic!("it joins") };
    let first = Position { epoch: Epoch(2), offset: 1 };
    assert!(seen.follow(Arrival::Publication(Some(first))));
    assert!(!seen.follow(Arrival::Publication(Some(first))));
    assert!(seen.is_settled(Some(first)));
}

#[test]
fn a_failed_read_refuses_before_the_answer_and_is_a_gap_after_it() {
    let lost = || Err(BackplaneError::Unavailable("gone".into()));
    let mut machine = Machine::new(Want::After(at(2)), false);
    machine.confirmed();
    machine.room();
    check(&machine.page(lost()), "release, refuse");
    let mut machine = Machine::new(Want::After(at(2)), false);
    machine.confirmed();
    machine.room();
    machine.page(page(3..=4, 6));
    machine.room();
    machine.delivered(&item(7, 1));
    check(&machine.page(lost()), "gap nowhere, 1:7, join 1:7");
}

#[test]
fn a_stream_that_had_nothing_gets_all_there_ever_was() {
    let age = Duration::from_secs(60);
    let since = |away| Want::SinceEmpty { offset: 0, away: Duration::from_secs(away), history_age: age };
    let nothing = || Ok(History { publications: Vec::new(), top: None, left: None, continuous: true });
    let mut machine = Machine::new(since(1), false);
    check(&machine.confirmed(), "read place");
    check(&machine.page(nothing()), "subscribed nowhere recovered, join nowhere");
    let mut machine = Machine::new(since(1), false);
    machine.confirmed();
    check(&machine.page(standing(3)), "room");
    check(&machine.room(), "read 1:0");
    let mut machine = Machine::new(since(61), false);
    machine.confirmed();
    check(&machine.page(nothing()), "subscribed nowhere, gap nowhere, join nowhere");
}
