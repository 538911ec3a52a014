//! Every stage of a connection and every command: what comes of it, as one table.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tidegate_testkit::{Closed, DEADLINE, Received};
use tidegate_wire::centrifuge::COMMAND_NAMES;

use super::{super::apart::token_of, Client, Rig, with_presence};

/// `result`, `error CODE` or `close CODE`, of each command in each stage.
const TABLE: &str = "\
\x20              | new        | connected  | subscribed | refused
connect        | result     | close 3501 | close 3501 | close 3501
subscribe      | close 3501 | result     | error 105  | close 3501
unsubscribe    | close 3501 | result     | result     | close 3501
publish        | close 3501 | result     | result     | close 3501
presence       | close 3501 | result     | result     | close 3501
presence_stats | close 3501 | result     | result     | close 3501
history        | close 3501 | result     | result     | close 3501
ping           | close 3501 | result     | result     | close 3501
send           | close 3501 | close 3508 | close 3508 | close 3501
rpc            | close 3501 | error 104  | error 104  | close 3501
refresh        | close 3501 | result     | result     | close 3501
sub_refresh    | close 3501 | error 103  | result     | close 3501
pong           | close 3501 | close 3501 | close 3501 | close 3501
unknown        | close 3501 | close 3501 | close 3501 | close 3501
";

const STAGES: [&str; 4] = ["new", "connected", "subscribed", "refused"];

fn claims() -> Value {
    json!({"sub": "ada", "channels": ["room:*"], "publish": ["room:*"]})
}

/// A client in a stage, with nothing left to read.
fn in_stage(rig: &Rig, stage: &str) -> Client {
    let mut client = Client::open(rig);
    match stage {
        "new" => {}
        "refused" => {
            let expired = token_of(&json!({"sub": "ada", "exp": 1}));
            assert_eq!(client.refused("connect", json!({"token": expired})), 109);
        }
        _ => {
            client.ask("connect", json!({"token": token_of(&claims())}));
        }
    }
    if stage == "subscribed" {
        client.ask("subscribe", json!({"channel": "room:1"}));
    }
    client
}

fn request(command: &str) -> Value {
    match command {
        "connect" | "refresh" => json!({"token": token_of(&claims())}),
        "publish" => json!({"channel": "room:1", "data": 1}),
        "sub_refresh" => json!({"channel": "room:1", "token": token_of(&claims())}),
        "send" | "rpc" => json!({"data": 1}),
        "ping" => json!({}),
        _ => json!({"channel": "room:1"}),
    }
}

fn outcome(mut client: Client, command: &str) -> String {
    match command {
        "pong" => client.socket.send_text("{}"),
        _ => drop(client.send(command, request(command))),
    }
    loop {
        let told: Value = match client.socket.next(DEADLINE) {
            Received::Closed(Closed::Frame { code, .. }) => return format!("close {code}"),
            Received::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{command}: {other:?}"),
        };
        match (&told["error"]["code"], &told["id"]) {
            (Value::Number(code), _) => return format!("error {code}"),
            (_, Value::Number(_)) => return "result".to_owned(),
            _ => {}
        }
    }
}

#[test]
fn every_stage_and_every_command() {
    let rig = Rig::start(with_presence());
    let mut table = format!("{:14}", "");
    STAGES.iter().for_each(|stage| write!(table, " | {stage:10}").unwrap());
    for command in COMMAND_NAMES.into_iter().chain(["pong", "unknown"]) {
        table = format!("{}\n{command:14}", table.trim_end());
        for stage in STAGES {
            let outcome = outcome(in_stage(&rig, stage), command);
            write!(table, " | {outcome:10}").unwrap();
        }
    }
    assert_eq!(format!("{}\n", table.trim_end()), TABLE, "\n{table}");
    rig.eventually_empty();
}
