//! Coming back: what was missed, in the answer; and what cannot be had.

use serde_json::{Value, json};

use super::{Client, Rig, config};

/// `subscribe` from a place.
fn back(channel: &str, epoch: &Value, offset: u64) -> Value {
    json!({"channel": channel, "recover": true, "epoch": epoch, "offset": offset})
}

fn offsets(told: &Value) -> Vec<u64> {
    let publications = told["publications"].as_array().map_or(&[][..], |all| all);
    publications.iter().map(|it| it["offset"].as_u64().unwrap()).collect()
}

#[test]
fn what_was_missed_is_in_the_answer() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.publish("a", "1");
    let first = client.ask("subscribe", json!({"channel": "a"}));
    let epoch = first["epoch"].clone();
    assert_eq!(first, json!({"recoverable": true, "positioned": true, "epoch": epoch, "offset": 1}));
    drop(client);
    for number in 2..=4 {
        rig.publish("a", &number.to_string());
    }
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", back("a", &epoch, 1));
    assert_eq!(offsets(&told), [2, 3, 4]);
    let flags = ["recoverable", "positioned", "recovered", "was_recovering"].map(|flag| told[flag] == true);
    assert_eq!((flags, &told["offset"], &told["epoch"]), ([true; 4], &json!(1), &epoch), "{told}");
    rig.publish("a", "5");
    assert_eq!(client.expect_publication("a"), json!({"data": 5, "offset": 5}));
    // Nothing was missed.
    let mut other = Client::connect(&rig);
    let told = other.ask("subscribe", back("a", &epoch, 5));
    assert_eq!((offsets(&told), &told["recovered"], &told["offset"]), (vec![], &json!(true), &json!(5)));
}

#[test]
fn of_whatever_epoch() {
    let rig = Rig::start(config());
    rig.publish("a", "1");
    rig.publish("a", "2");
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", json!({"channel": "a", "recover": true, "offset": 1}));
    assert_eq!((offsets(&told), &told["recovered"]), (vec![2], &json!(true)), "{told}");
    let told = client.ask("subscribe", json!({"channel": "b", "recover": true}));
    assert_eq!((&told["recovered"], offsets(&told)), (&json!(true), vec![]), "{told}");
}

#[test]
fn what_cannot_be_recovered_is_said() {
    let rig = Rig::start(config());
    let top = rig.publish("a", "1").unwrap();
    let mut client = Client::connect(&rig);
    for (epoch, offset) in [("other", 1), ("_", 0), (&*top.epoch.to_string(), 9)] {
        let told = client.ask("subscribe", back("a", &json!(epoch), offset));
        let expect = json!({
            "recoverable": true, "positioned": true, "was_recovering": true,
            "epoch": top.epoch.to_string(), "offset": 1
        });
        assert_eq!(told, expect, "{epoch} {offset}");
        client.ask("unsubscribe", json!({"channel": "a"}));
    }
    // It may ask for an error instead, and has no subscription then.
    let mut rejects = back("a", &json!("other"), 1);
    rejects["flag"] = json!(3);
    assert_eq!(client.refused("subscribe", rejects.clone()), 112);
    rejects["epoch"] = json!(top.epoch.to_string());
    assert_eq!(client.ask("subscribe", rejects)["recovered"], true);
    drop(client);
    rig.eventually_empty();
}

/// Who subscribes to a channel that had nothing yet is told a stand-in for its epoch, and the epoch with the first
/// publication. Both lead back.
#[test]
fn a_channel_that_had_nothing_is_recovered_too() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", json!({"channel": "a"}));
    let stand_in = told["epoch"].clone();
    assert!(stand_in.as_str().unwrap().contains('.') && told["offset"].is_null(), "{told}");
    rig.publish("a", "1");
    let first = client.expect_publication("a");
    assert_eq!((&first["data"], &first["offset"]), (&json!(1), &json!(1)));
    let epoch = first["epoch"].clone();
    rig.publish("a", "2");
    assert_eq!(client.expect_publication("a"), json!({"data": 2, "offset": 2}));
    rig.publish("a", "3");
    for (epoch, offset, expect) in
        [(&stand_in, 0, &[1, 2, 3][..]), (&stand_in, 1, &[2, 3]), (&epoch, 2, &[3])]
    {
        let mut back_again = Client::connect(&rig);
        let told = back_again.ask("subscribe", back("a", epoch, offset));
        assert_eq!((offsets(&told), &told["recovered"]), (expect.to_vec(), &json!(true)), "{told}");
        assert_eq!(told["epoch"], first["epoch"], "{told}");
    }
    // Of another process nobody knows what was between.
    let mut back_again = Client::connect(&rig);
    let told = back_again.ask("subscribe", back("a", &json!("abc.100"), 1));
    assert_eq!((&told["recovered"], &told["offset"]), (&Value::Null, &json!(3)), "{told}");
}

/// More than a page: the first is in the answer, the others are pushed, in order.
#[test]
fn a_long_absence_is_recovered_in_pages() {
    let rig = Rig::start(config());
    let start = rig.publish("a", "0").unwrap();
    let text = "x".repeat(30_000);
    for _ in 0..7 {
        rig.publish("a", &text);
    }
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", back("a", &json!(start.epoch.to_string()), 1));
    let mut all = offsets(&told);
    assert!((1..7).contains(&all.len()), "{all:?}");
    while all.len() < 7 {
        all.push(client.expect_publication("a")["offset"].as_u64().unwrap());
    }
    assert_eq!(all, (2..=8).collect::<Vec<_>>());
}

/// A gap of the backplane takes the subscription, and nothing else: the client comes back to it from where it is.
#[test]
fn after_a_gap_the_client_subscribes_again() {
    let rig = Rig::start(config());
    let mut client = Client::connect(&rig);
    rig.publish("a", "1");
    let place = client.ask("subscribe", json!({"channel": "a"}));
    client.ask("subscribe", json!({"channel": "plain:b"}));
    rig.gap("a", None);
    let told = client.next();
    let unsubscribe = json!({"code": 2500, "reason": "insufficient state"});
    assert_eq!(told, json!({"push": {"channel": "a", "unsubscribe": unsubscribe}}));
    rig.eventually_subscribers("a", 0);
    rig.publish("a", "2");
    let told = client.ask("subscribe", back("a", &place["epoch"], 1));
    assert_eq!((offsets(&told), &told["recovered"]), (vec![2], &json!(true)), "{told}");
    rig.publish("plain:b", "3");
    assert_eq!(client.expect_publication("plain:b"), json!({"data": 3}));
    drop(client);
    rig.eventually_empty();
}

/// The newest publication, also for who comes for the first time; nothing to who has it.
#[test]
fn a_cache_has_the_newest_alone() {
    let mut config = config();
    config.namespaces.default.recovery = crate::config::RecoveryMode::Cache;
    let rig = Rig::start(config);
    for number in 1..=3 {
        rig.publish("a", &number.to_string());
    }
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", json!({"channel": "a", "recover": true}));
    let epoch = told["epoch"].clone();
    assert_eq!(
        (offsets(&told), &told["offset"], &told["recovered"]),
        (vec![3], &json!(3), &json!(true)),
        "{told}"
    );
    rig.publish("a", "4");
    assert_eq!(client.expect_publication("a"), json!({"data": 4, "offset": 4}));
    client.ask("unsubscribe", json!({"channel": "a"}));
    let told = client.ask("subscribe", back("a", &epoch, 4));
    assert_eq!(
        (offsets(&told), &told["offset"], &told["recovered"]),
        (vec![], &json!(4), &json!(true)),
        "{told}"
    );
    client.ask("unsubscribe", json!({"channel": "a"}));
    let told = client.ask("subscribe", back("a", &json!("other"), 4));
    assert_eq!((offsets(&told), &told["recovered"]), (vec![4], &json!(true)), "{told}");
    // Nothing is there.
    let told = client.ask("subscribe", json!({"channel": "b", "recover": true}));
    let flags = (&told["recovered"], &told["was_recovering"], &told["recoverable"]);
    assert_eq!(flags, (&Value::Null, &json!(true), &json!(true)), "{told}");
    let told = Client::connect(&rig).ask("subscribe", json!({"channel": "a"}));
    assert_eq!(
        (offsets(&told), &told["offset"], &told["recovered"]),
        (vec![], &json!(4), &Value::Null),
        "{told}"
    );
}
