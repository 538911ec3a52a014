//! Publications that an application leaves in its own stores, with real servers and gateways that die.

#![allow(clippy::unwrap_used)]

mod outbox;
mod page;
mod stream;
mod upgrade;

use std::collections::HashMap;

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Received, WsClient};

/// Numbers that arrived, by channel, in the order in which they did.
type Arrived = HashMap<String, Vec<u64>>;

/// Reads so many publications of an enveloped client, whose payloads are numbers.
#[track_caller]
fn read(client: &mut WsClient, count: usize) -> Arrived {
    let mut arrived = Arrived::new();
    for nth in 0..count {
        let Received::Text(text) = client.next(DEADLINE * 3) else { panic!("{nth} of {count} came") };
        let told: Value = serde_json::from_str(&text).unwrap();
        let number = told["data"].as_str().unwrap_or_else(|| panic!("{told}")).parse().unwrap();
        arrived.entry(told["channel"].as_str().unwrap().to_owned()).or_default().push(number);
    }
    arrived
}

/// Each came once, and those of a channel in their order.
#[track_caller]
fn expect_once_in_order(arrived: &Arrived, count: usize) {
    for (channel, numbers) in arrived {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{channel} is out of order: {numbers:?}");
    }
    assert_eq!(arrived.values().map(Vec::len).sum::<usize>(), count);
}

/// `/ws` with `channels` channels `c0`, `c1`, …
fn path(channels: usize) -> String {
    let names: Vec<_> = (0..channels).map(|n| format!("channel=c{n}")).collect();
    format!("/ws?envelope=json&{}", names.join("&"))
}
