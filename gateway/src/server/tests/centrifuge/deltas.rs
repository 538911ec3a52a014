//! Publications told by how they differ: the first whole, then what a client can make the same payload of.

use serde_json::{Value, json};
use tidegate_wire::centrifuge::delta;

use super::{Client, Rig, config};
use crate::config::{Config, SlowReader};

/// A client and what it has of its channel.
struct Reader {
    client: Client,
    text: Vec<u8>,
    deltas: usize,
}

fn with_deltas() -> Config {
    let mut config = config();
    config.namespaces.default.delta = true;
    for namespace in config.namespaces.named.values_mut() {
        namespace.delta = true;
    }
    config
}

fn payload(number: usize) -> String {
    json!({"number": number, "unit": "°C", "name": "a name that stays as it is", "more": [1, 2, 3]})
        .to_string()
}

impl Reader {
    #[track_caller]
    fn subscribe(rig: &Rig, request: Value) -> (Self, Value) {
        let mut client = Client::connect(rig);
        let told = client.ask("subscribe", request);
        assert_eq!(told["delta"], true, "{told}");
        (Self { client, text: Vec::new(), deltas: 0 }, told)
    }

    #[track_caller]
    fn take(&mut self, publication: &Value) {
        let data = publication["data"].as_str().unwrap().as_bytes();
        self.text = match publication["delta"] == true {
            true => {
                self.deltas += 1;
                delta::apply(&self.text, data).unwrap_or_else(|| panic!("{publication}"))
            }
            false => data.to_vec(),
        };
    }

    #[track_caller]
    fn expect(&mut self, channel: &str, payload: &str) {
        let publication = self.client.expect_publication(channel);
        self.take(&publication);
        assert_eq!(String::from_utf8_lossy(&self.text), payload);
    }
}

#[test]
fn the_first_is_whole_and_the_next_are_differences() {
    let rig = Rig::start(with_deltas());
    let ask = json!({"channel": "a", "delta": "fossil"});
    let (mut early, _) = Reader::subscribe(&rig, ask.clone());
    let mut plain = Client::connect(&rig);
    assert_eq!(plain.ask("subscribe", json!({"channel": "a"}))["delta"], Value::Null);
    let mut late = None;
    for number in 0..40 {
        rig.publish("a", &payload(number));
        early.expect("a", &payload(number));
        if let Some(late) = &mut late {
            Reader::expect(late, "a", &payload(number));
        }
        assert_eq!(plain.expect_publication("a")["data"]["number"], number);
        if number == 19 {
            late = Some(Reader::subscribe(&rig, ask.clone()).0);
        }
    }
    assert_eq!((early.deltas, late.unwrap().deltas), (39, 19));
}

/// They come in batches, and members come and go between two.
#[test]
fn however_fast_they_come() {
    let rig = Rig::start(with_deltas());
    let ask = json!({"channel": "plain:a", "delta": "fossil", "join_leave": true});
    let mut readers: Vec<Reader> = (0..5).map(|_| Reader::subscribe(&rig, ask.clone()).0).collect();
    for round in 0..20 {
        for number in 0..25 {
            rig.publish("plain:a", &payload(round * 25 + number));
        }
        for reader in &mut readers {
            (0..25).for_each(|number| reader.expect("plain:a", &payload(round * 25 + number)));
        }
        readers.remove(round % 5);
        readers.push(Reader::subscribe(&rig, ask.clone()).0);
    }
    drop(readers);
    rig.eventually_empty();
}

#[test]
fn what_was_missed_is_whole() {
    let rig = Rig::start(with_deltas());
    rig.publish("a", &payload(0));
    let (reader, told) = Reader::subscribe(&rig, json!({"channel": "a", "delta": "fossil"}));
    drop(reader);
    for number in 1..4 {
        rig.publish("a", &payload(number));
    }
    let back =
        json!({"channel": "a", "delta": "fossil", "recover": true, "epoch": told["epoch"], "offset": 1});
    let (mut reader, told) = Reader::subscribe(&rig, back);
    for (publication, number) in told["publications"].as_array().unwrap().iter().zip(1..) {
        reader.take(publication);
        assert_eq!(String::from_utf8_lossy(&reader.text), payload(number));
    }
    for number in 4..8 {
        rig.publish("a", &payload(number));
        reader.expect("a", &payload(number));
    }
    assert!(reader.deltas > 0);
}

/// What is no JSON, has nothing in common, or is empty.
#[test]
fn of_any_payload() {
    let rig = Rig::start(with_deltas());
    let (mut reader, _) = Reader::subscribe(&rig, json!({"channel": "a", "delta": "fossil"}));
    for text in
        ["plain words, and more of them", "plain words, but others", "\"\"", "1", "é".repeat(50).as_str()]
    {
        rig.publish("a", text);
        let publication = reader.client.expect_publication("a");
        reader.take(&publication);
        let value: Value = serde_json::from_slice(&reader.text).unwrap();
        let expect = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        assert_eq!(value, expect);
    }
}

/// Whoever misses one could not read the next.
#[test]
fn not_where_publications_may_be_dropped() {
    let mut config = with_deltas();
    config.namespaces.default.slow_reader = SlowReader::Latest;
    let rig = Rig::start(config);
    let mut client = Client::connect(&rig);
    let told = client.ask("subscribe", json!({"channel": "a", "delta": "fossil"}));
    assert_eq!(told["delta"], Value::Null);
    let told = client.ask("subscribe", json!({"channel": "plain:a", "delta": "other"}));
    assert_eq!(told["delta"], Value::Null);
}
