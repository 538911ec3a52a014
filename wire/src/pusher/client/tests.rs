//! Messages of clients, right ones in both forms and wrong ones.

use super::*;

fn subscribe<'a>(channel: &'a str, auth: &'a str, channel_data: Option<&'a str>) -> ClientMessage<'a> {
    ClientMessage::Subscribe(Subscribe {
        channel: channel.into(),
        auth: auth.into(),
        channel_data: channel_data.map(Cow::Borrowed),
    })
}

fn event<'a>(event: &'a str, channel: &'a str, data: &'a str) -> ClientMessage<'a> {
    ClientMessage::Event { event: event.into(), channel: channel.into(), data: data.into() }
}

#[test]
fn data_is_an_object_or_a_string_that_holds_one() {
    let check = |event: &str, data: &str, expect: ClientMessage<'_>| {
        let text = format!(r#"{{"event":"{event}","data":{data}}}"#);
        assert_eq!(ClientMessage::parse(&text).expect("an object"), expect);
        let string = serde_json::to_string(data).expect("a string");
        let text = format!(r#"{{"data":{string},"event":"{event}"}}"#);
        assert_eq!(ClientMessage::parse(&text).expect("a string"), expect);
    };
    check("pusher:subscribe", r#"{"channel":"a"}"#, subscribe("a", "", None));
    check("pusher:subscribe", r#"{"auth":"","channel":"a","x":[1]}"#, subscribe("a", "", None));
    check("pusher:subscribe", r#"{"auth":null,"channel_data":null,"channel":"a"}"#, subscribe("a", "", None));
    check(
        "pusher:subscribe",
        r#"{"channel":"presence-a","auth":"k:s","channel_data":"{\"user_id\":\"1\"}"}"#,
        subscribe("presence-a", "k:s", Some(r#"{"user_id":"1"}"#)),
    );
    check("pusher:unsubscribe", r#"{"channel":"a"}"#, ClientMessage::Unsubscribe { channel: "a".into() });
    check(
        "pusher:signin",
        r#"{"auth":"k:s","user_data":"{\"id\":\"1\"}"}"#,
        ClientMessage::Signin { auth: "k:s".into(), user_data: r#"{"id":"1"}"#.into() },
    );
    for data in ["{}", "[]", "1", r#""x""#] {
        check("pusher:ping", data, ClientMessage::Ping);
        check("pusher:pong", data, ClientMessage::Pong);
    }
    assert_eq!(ClientMessage::parse(r#"{"event":"pusher:ping"}"#).expect("no data"), ClientMessage::Ping);
}

#[test]
fn client_events_carry_any_data() {
    let check = |data: &str, expect: &str| {
        let text = format!(r#"{{"event":"client-x","channel":"private-a"{data}}}"#);
        assert_eq!(ClientMessage::parse(&text).expect("an event"), event("client-x", "private-a", expect));
    };
    check(r#","data":{"a":1}"#, r#"{"a":1}"#);
    check(r#","data":"{\"a\":1}""#, r#"{"a":1}"#);
    check(r#","data":"text""#, "text");
    check(r#","data":5"#, "5");
    check(r#","data":null"#, "null");
    check("", "null");
}

#[test]
fn what_is_no_message() {
    let check = |text: &str, expect: &str| {
        let error = ClientMessage::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(expect), "{text}: {error}");
    };
    for text in ["", "{", "[]", "1", "null", r#""pusher:ping""#, r#"["pusher:ping"]"#, "{}", r#"{"event":1}"#]
    {
        check(text, "the message is not a JSON object with an event: ");
    }
    check(&"[".repeat(100_000), "the message is not a JSON object with an event: ");
    check(r#"{"event":"pusher:ping"} x"#, "the message is not a JSON object with an event: ");
    check(r#"{"event":"pusher:subscribe"}"#, "the data of pusher:subscribe is not what it has to be: ");
    for data in
        ["{}", "[]", r#"["a"]"#, r#""""#, r#""x""#, "7", r#"{"channel":7}"#, r#"{"channel":"a","auth":7}"#]
    {
        let text = format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#);
        check(&text, "the data of pusher:subscribe is not what it has to be: ");
        let text = format!(r#"{{"event":"pusher:unsubscribe","data":{data}}}"#);
        if data != r#"{"channel":"a","auth":7}"# {
            check(&text, "the data of pusher:unsubscribe is not what it has to be: ");
        }
        let text = format!(r#"{{"event":"pusher:signin","data":{data}}}"#);
        check(&text, "the data of pusher:signin is not what it has to be: ");
    }
    check(r#"{"event":"client-x","data":1}"#, "a client event names its channel");
    check(r#"{"event":"pusher:x"}"#, r#"there is no event "pusher:x" for clients to send"#);
    check(r#"{"event":"news","channel":"private-a"}"#, r#"there is no event "news" for clients to send"#);
    check(r#"{"event":"client-\n","channel":"a"}"#, "the event's name is longer than 200 bytes");
    let long = format!(r#"{{"event":"client-{}","channel":"a"}}"#, "x".repeat(194));
    check(&long, "the event's name is longer than 200 bytes");
    let unknown = format!(r#"{{"event":"{}"}}"#, "é".repeat(5000));
    assert!(ClientMessage::parse(&unknown).expect_err("unknown").to_string().len() < 400);
}

#[test]
fn members() {
    let check = |data: &str, expect: (&str, Option<&str>)| {
        let member = PresenceMember::parse(data, 20).expect(data);
        assert_eq!((&*member.user_id, member.user_info.as_deref()), expect, "{data}");
    };
    check(r#"{"user_id":"u"}"#, ("u", None));
    check(r#"{"user_id":10,"user_info":{"a": 1}}"#, ("10", Some(r#"{"a": 1}"#)));
    check(r#"{"user_id":-1,"user_info":null}"#, ("-1", None));
    check(r#"{"user_info":"x","user_id":"\u00e9 !"}"#, ("é !", Some(r#""x""#)));
    let error = |data: &str| PresenceMember::parse(data, 20).expect_err(data).to_string();
    for data in ["", "{}", "[1]", r#"{"user_id":null}"#, r#"{"user_id":{}}"#, r#"{"user_id":1.5}"#] {
        assert!(error(data).starts_with("channel_data is not"), "{data}");
    }
    assert!(error(r#"{"user_id":""}"#).starts_with("user_id is empty"));
    assert!(error(&format!(r#"{{"user_id":"{}"}}"#, "u".repeat(129))).starts_with("user_id is empty"));
    let large = format!(r#"{{"user_id":"u","user_info":"{}"}}"#, "i".repeat(19));
    assert_eq!(error(&large), "the user's object has 21 bytes, 20 are allowed");
}

#[test]
fn identities() {
    let check = |data: &str, id: &str, watchlist: &[&str], too_long| {
        let (identity, long) = Identity::parse(data).expect(data);
        let users: Vec<&str> = identity.watchlist.iter().map(|user| &**user).collect();
        assert_eq!((&*identity.id, users.as_slice(), long), (id, watchlist, too_long), "{data}");
    };
    check(r#"{"id":"u"}"#, "u", &[], false);
    check(
        r#"{"id":7,"user_info":{"n":1},"watchlist":["b","a","b",3,"no user"]}"#,
        "7",
        &["3", "a", "b"],
        false,
    );
    let users = |count: usize| (0..count).map(|n| format!("\"u{n}\"")).collect::<Vec<_>>().join(",");
    let longer = format!(r#"{{"id":"u","watchlist":[{}]}}"#, users(101));
    let (identity, too_long) = Identity::parse(&longer).expect("the first ones count");
    assert_eq!((identity.watchlist.len(), too_long), (100, true));
    assert!(!identity.watchlist.contains(&"u100".into()));
    let of = |data: &str| Identity::parse(data).expect(data).0.info;
    assert_eq!(of(r#"{"id":"u","user_info":{"n": 1}}"#).as_deref(), Some(r#"{"n": 1}"#));
    assert_eq!(of(r#"{"id":"u"}"#), None);
    let error = Identity::parse(r#"{"id":"a b"}"#).map_err(|error| error.to_string());
    assert!(error.is_err_and(|text| text.contains("has ' '")));
    let member = |id: &str| PresenceMember::parse(&format!(r#"{{"user_id":"{id}"}}"#), 100).is_ok();
    assert!(member(&"é".repeat(128)) && !member(&"é".repeat(129)), "characters count, not bytes");
    let most = format!(r#"{{"id":"u","watchlist":[{}]}}"#, users(100));
    assert_eq!(Identity::parse(&most).expect("the most").0.watchlist.len(), 100);
    for data in ["", "{}", "[]", r#"{"id":""}"#, r#"{"id":"a b"}"#, r#"{"id":"a","watchlist":1}"#] {
        assert!(Identity::parse(data).is_err(), "{data}");
    }
    assert!(Identity::parse(&format!(r#"{{"id":"{}"}}"#, "u".repeat(129))).is_err());
}
