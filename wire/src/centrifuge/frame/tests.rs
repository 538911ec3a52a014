//! Golden frames of both encodings, and round trips.

use proptest::{collection::vec, option, prelude::*};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::*;
use crate::centrifuge::{
    code::{ErrorCode, Unsubscribed},
    message::*,
    push::{self, Data, Published, Style},
};

/// All commands of a frame.
fn commands(frame: &[u8], encoding: Encoding) -> Result<Vec<Command>, Malformed> {
    let (mut rest, mut all) = (frame, Vec::new());
    while let Some((command, used)) = next_command(rest, encoding)? {
        assert!(used > 0 && used <= rest.len());
        rest = &rest[used..];
        all.push(command);
    }
    Ok(all)
}

fn lines(text: &str) -> Vec<Command> {
    commands(text.as_bytes(), Encoding::Json).expect(text)
}

#[track_caller]
fn check_reply(reply: &Reply, expect: &str) {
    let mut out = Vec::new();
    encode(reply, Encoding::Json, &mut out);
    assert_eq!(String::from_utf8(out).expect("UTF-8"), expect);
    let mut out = Vec::new();
    encode(reply, Encoding::Protobuf, &mut out);
    assert_eq!(Reply::decode_length_delimited(&*out).expect("a reply"), *reply);
}

/// Each in JSON, and in Protobuf as another implementation writes it (`tests/clients/python/centrifuge_golden.py`).
#[test]
fn golden_frames() {
    for line in include_str!("golden.tsv").lines() {
        let [kind, json, hex] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let octet = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).expect("ASCII");
            u8::from_str_radix(digits, 16).expect("two digits")
        };
        let protobuf: Vec<u8> = hex.as_bytes().chunks(2).map(octet).collect();
        match kind {
            "Command" => check_golden::<Command>(json, &protobuf),
            _ => check_golden::<Reply>(json, &protobuf),
        }
    }
}

#[track_caller]
fn check_golden<M>(json: &str, protobuf: &[u8])
where
    M: Message + Default + PartialEq + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let message = M::decode(protobuf).expect(json);
    assert_eq!(serde_json::to_string(&message).expect(json), json);
    assert_eq!(serde_json::from_str::<M>(json).expect(json), message);
    assert_eq!(message.encode_to_vec(), protobuf, "{json}");
}

#[test]
fn a_frame_has_a_command_on_each_line() {
    let text = "{\"connect\":{\"token\":\"t\",\"name\":\"js\"},\"id\":1}\n\n{\"subscribe\":{\"channel\":\"a:b\",\"flag\":1,\
                \"recover\":true,\"offset\":3,\"epoch\":\"k3\"},\"id\":2}\r\n {} \n";
    let connect = ConnectRequest { token: "t".into(), name: "js".into(), ..ConnectRequest::default() };
    let subscribe = SubscribeRequest {
        channel: "a:b".into(),
        flag: 1,
        recover: true,
        offset: 3,
        epoch: "k3".into(),
        ..SubscribeRequest::default()
    };
    let expect = [
        Command { id: 1, connect: Some(Box::new(connect)), ..Command::default() },
        Command { id: 2, subscribe: Some(Box::new(subscribe)), ..Command::default() },
        Command::default(),
    ];
    assert_eq!(lines(text), expect);
    assert_eq!(lines(""), []);
    assert_eq!(lines("\n \n"), []);
}

#[test]
fn zero_may_be_said_as_null_and_what_is_unknown_is_not_read() {
    let text =
        r#"{"id":4,"history":{"channel":"a","limit":null,"since":null,"x":[{}]},"y":1,"subscribe":null}"#;
    let history = HistoryRequest { channel: "a".into(), ..HistoryRequest::default() };
    assert_eq!(lines(text), [Command { id: 4, history: Some(Box::new(history)), ..Command::default() }]);
}

#[test]
fn a_payload_is_the_json_that_was_sent() {
    for data in [r#"{"a": [1, "\n"]}"#, "5", "null", r#""text""#, "true"] {
        let [command] = &*lines(&format!(r#"{{"id":1,"publish":{{"channel":"a","data":{data}}}}}"#)) else {
            panic!("one command")
        };
        assert_eq!(command.publish.as_ref().expect("publish").data, data.as_bytes());
    }
}

#[test]
fn what_is_no_command_is_malformed() {
    for text in [
        "x",
        "[1]",
        "5",
        "{",
        "{}x",
        r#"{"id":-1}"#,
        r#"{"id":1.5}"#,
        r#"{"id":4294967296}"#,
        r#"{"id":"1"}"#,
        r#"{"id":1,"id":2}"#,
        r#"{"subscribe":{"channel":5},"id":1}"#,
        r#"{"publish":{"channel":"a","data":"\ud83d"},"id":1}"#,
    ] {
        assert!(commands(text.as_bytes(), Encoding::Json).is_err(), "{text}");
    }
    assert!(commands(b"{\"id\":1,\"x\":\"\xff\"}", Encoding::Json).is_err());
    for bytes in [
        &[0x05][..],
        // A length that never ends, and one of 2^35.
        &[0xff; 11],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0x08],
        // A string that is longer than the message around it.
        &[0x04, 0x2a, 0x02, 0x0a, 0x7f],
        // A field without a number, and a channel that is not UTF-8.
        &[0x01, 0x00],
        &[0x05, 0x2a, 0x03, 0x0a, 0x01, 0xff],
    ] {
        assert!(commands(bytes, Encoding::Protobuf).is_err(), "{bytes:?}");
    }
}

#[test]
fn commands_in_protobuf() {
    // {id: 2, subscribe: {channel: "a", recover: true, offset: 300}}, then a pong.
    let frame = [10, 0x08, 2, 0x2a, 8, 0x0a, 1, b'a', 0x18, 1, 0x38, 0xac, 2, 0];
    let frame = [&[frame.len() as u8 - 2], &frame[1..]].concat();
    let subscribe =
        SubscribeRequest { channel: "a".into(), recover: true, offset: 300, ..SubscribeRequest::default() };
    let expect =
        [Command { id: 2, subscribe: Some(Box::new(subscribe)), ..Command::default() }, Command::default()];
    assert_eq!(commands(&frame, Encoding::Protobuf).expect("commands"), expect);
}

#[test]
fn replies() {
    let connect = ConnectResult {
        client: "c".into(),
        version: "v".into(),
        expires: true,
        ttl: 5,
        ping: 25,
        pong: true,
        ..ConnectResult::default()
    };
    check_reply(
        &Reply { id: 1, connect: Some(Box::new(connect)), ..Reply::default() },
        r#"{"id":1,"connect":{"client":"c","version":"v","expires":true,"ttl":5,"ping":25,"pong":true}}"#,
    );
    let publications = vec![Publication { data: b"[1]".to_vec(), offset: 3, ..Publication::default() }];
    let subscribe = SubscribeResult {
        recoverable: true,
        epoch: "e".into(),
        publications,
        recovered: true,
        offset: 2,
        positioned: true,
        was_recovering: true,
        ..SubscribeResult::default()
    };
    check_reply(
        &Reply { id: 2, subscribe: Some(Box::new(subscribe)), ..Reply::default() },
        concat!(
            r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"e","publications":[{"data":[1],"offset":3}],"#,
            r#""recovered":true,"offset":2,"positioned":true,"was_recovering":true}}"#
        ),
    );
    check_reply(
        &Reply { id: 3, unsubscribe: Some(Empty {}), ..Reply::default() },
        r#"{"id":3,"unsubscribe":{}}"#,
    );
    let error = Some(ErrorCode::TooManyRequests.into());
    check_reply(
        &Reply { id: 4, error, ..Reply::default() },
        r#"{"id":4,"error":{"code":111,"message":"too many requests","temporary":true}}"#,
    );
    let info = ClientInfo {
        user: "u".into(),
        client: "c".into(),
        conn_info: b"{\"n\":1}".to_vec(),
        ..ClientInfo::default()
    };
    let presence = Some(PresenceResult { presence: [("c".to_owned(), info)].into() });
    check_reply(
        &Reply { id: 5, presence, ..Reply::default() },
        r#"{"id":5,"presence":{"presence":{"c":{"user":"u","client":"c","conn_info":{"n":1}}}}}"#,
    );
    check_reply(&Reply::default(), "{}");
}

#[test]
fn payloads_that_are_no_json_are_strings() {
    let check = |data: &[u8], expect: &str| {
        let rpc = Some(DataMessage { data: data.to_vec() });
        check_reply(
            &Reply { id: 1, rpc, ..Reply::default() },
            &format!(r#"{{"id":1,"rpc":{{"data":{expect}}}}}"#),
        );
    };
    check(b"plain text", r#""plain text""#);
    check(b"{\"a\":\n1}", r#"{"a": 1}"#);
    check(b"5", "5");
    check(&[0, 255], r#""AP8=""#);
}

#[test]
fn pushes() {
    let check = |published: Published<'_>, expect: &str| {
        let mut out = Vec::new();
        push::publication("a:b", &published, Style::of(Encoding::Json), &mut out);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), expect);
        // The same as the message itself says.
        let publication = Some(Box::new(Publication::from(&published)));
        let pushed = Push { channel: "a:b".into(), r#pub: publication, ..Push::default() };
        check_reply(&Reply { push: Some(Box::new(pushed)), ..Reply::default() }, expect);
    };
    let text = |text| Published {
        data: Data::Text(text),
        user: None,
        offset: 0,
        epoch: None,
        event: None,
        is_delta: false,
    };
    check(text("{\"a\":\r\n1}"), r#"{"push":{"channel":"a:b","pub":{"data":{"a":  1}}}}"#);
    check(text("x"), r#"{"push":{"channel":"a:b","pub":{"data":"x"}}}"#);
    check(
        Published { user: Some("u"), offset: 1, epoch: Some("e"), event: Some("goal"), ..text("1") },
        concat!(
            r#"{"push":{"channel":"a:b","pub":{"data":1,"info":{"user":"u"},"offset":1,"#,
            r#""tags":{"event":"goal"},"epoch":"e"}}}"#
        ),
    );
    check(
        Published { data: Data::Binary(&[0, 255]), ..text("") },
        r#"{"push":{"channel":"a:b","pub":{"data":"AP8="}}}"#,
    );
    let mut out = Vec::new();
    push::unsubscribe("a", Unsubscribed::InsufficientState.into(), Style::of(Encoding::Json), &mut out);
    let expect = r#"{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#;
    assert_eq!(String::from_utf8(out).expect("UTF-8"), expect);
    for (encoding, expect) in [(Encoding::Json, &b"{}"[..]), (Encoding::Protobuf, &[0])] {
        let mut out = Vec::new();
        push::ping(Style::of(encoding), &mut out);
        assert_eq!(out, expect);
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<String>().prop_map(|text| json!(text).to_string()),
        any::<i64>().prop_map(|number| json!({ "n": [number] }).to_string()),
    ]
    .prop_map(String::into_bytes)
}

fn command() -> impl Strategy<Value = Command> {
    let connect = (any::<String>(), payload()).prop_map(|(token, data)| Command {
        connect: Some(Box::new(ConnectRequest { token, data, ..ConnectRequest::default() })),
        ..Command::default()
    });
    let subscribe = (any::<String>(), any::<u64>(), any::<bool>(), option::of(payload())).prop_map(
        |(channel, offset, recover, data)| {
            let data = data.unwrap_or_default();
            let request = SubscribeRequest { channel, offset, recover, data, ..SubscribeRequest::default() };
            Command { subscribe: Some(Box::new(request)), ..Command::default() }
        },
    );
    let publish = (any::<String>(), payload()).prop_map(|(channel, data)| Command {
        publish: Some(Box::new(PublishRequest { channel, data, r#type: 0 })),
        ..Command::default()
    });
    let history = (any::<String>(), any::<i32>(), option::of((any::<u64>(), any::<String>()))).prop_map(
        |(channel, limit, since)| {
            let since = since.map(|(offset, epoch)| StreamPosition { offset, epoch });
            let request = HistoryRequest { channel, limit, since, reverse: true };
            Command { history: Some(Box::new(request)), ..Command::default() }
        },
    );
    let any_of = prop_oneof![connect, subscribe, publish, history, Just(Command::default())];
    (any::<u32>(), any_of).prop_map(|(id, command)| Command { id, ..command })
}

proptest! {
    #[test]
    fn commands_come_back_in_both_encodings(all in vec(command(), 0..8)) {
        let mut json = Vec::new();
        let mut protobuf = Vec::new();
        for command in &all {
            json.extend_from_slice(&serde_json::to_vec(command).expect("JSON"));
            json.push(b'\n');
            command.encode_length_delimited(&mut protobuf).expect("room");
        }
        prop_assert_eq!(&commands(&json, Encoding::Json).expect("commands"), &all);
        prop_assert_eq!(&commands(&protobuf, Encoding::Protobuf).expect("commands"), &all);
    }

    #[test]
    fn a_reply_is_one_line_whatever_is_in_it(data in vec(any::<u8>(), 0..64), channel in any::<String>(), event in any::<String>()) {
        let data = match std::str::from_utf8(&data) {
            Ok(text) => Data::Text(text),
            Err(_) => Data::Binary(&data),
        };
        let published = Published { data, user: Some(&event), offset: 1, epoch: None, event: Some(&event), is_delta: false };
        let mut out = Vec::new();
        push::publication(&channel, &published, Style::of(Encoding::Json), &mut out);
        prop_assert!(!out.contains(&b'\n'));
        let read: Reply = serde_json::from_slice(&out).expect("a reply");
        let push = read.push.expect("a push");
        prop_assert_eq!(push.channel, channel);
        prop_assert_eq!(&push.r#pub.expect("a publication").tags["event"], &event);
    }

    #[test]
    fn any_bytes_are_commands_or_malformed(bytes in vec(any::<u8>(), 0..200)) {
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            drop(commands(&bytes, encoding));
        }
    }
}

/// protobufjs has no value where an entry has none.
#[test]
fn an_entry_that_says_nothing_has_its_value() {
    let subs = vec![SubscribeEntry { key: "a".to_owned(), value: Some(SubscribeResult::default()) }];
    let connect = Some(Box::new(ConnectResult { subs, ..ConnectResult::default() }));
    let reply = Reply { id: 1, connect, ..Reply::default() };
    let mut json = Vec::new();
    encode(&reply, Encoding::Json, &mut json);
    assert_eq!(String::from_utf8(json).expect("text"), r#"{"id":1,"connect":{"subs":{"a":{}}}}"#);
    let mut protobuf = Vec::new();
    encode(&reply, Encoding::Protobuf, &mut protobuf);
    // Length, id, connect; then field 6 with key and value.
    assert_eq!(protobuf, [11, 8, 1, 42, 7, 50, 5, 10, 1, b'a', 18, 0]);
}

#[test]
fn commands_that_come_by_requests_of_their_own() {
    let read = |body: &str| read_emulated(body.as_bytes(), Encoding::Json).ok();
    let frame = "{\"id\":2}\n{\"id\":3}";
    let body = json!({"session": "s!p", "node": "n", "data": frame}).to_string();
    assert_eq!(read(&body), Some(("s!p".to_owned(), frame.as_bytes().to_vec())));
    for bad in ["", "[]", "{}", "{\"session\":\"s\",\"data\":{}}", "{\"session\":1,\"data\":\"\"}"] {
        assert_eq!(read(bad), None, "{bad}");
    }
    let request =
        EmulationRequest { session: "s".to_owned(), data: vec![0, 255], ..EmulationRequest::default() };
    let read = read_emulated(&request.encode_to_vec(), Encoding::Protobuf).ok();
    assert_eq!(read, Some(("s".to_owned(), vec![0, 255])));
    assert!(read_emulated(&[26, 9, 1], Encoding::Protobuf).is_err());
}
