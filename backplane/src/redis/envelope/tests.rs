//! Golden bytes, errors by kind, and round trips of envelopes and bodies.

use proptest::prelude::*;

use super::*;
use crate::Text;

fn publication(position: Option<Position>, event: Option<&str>, payload: Payload) -> Publication {
    Publication { position, event: event.map(Into::into), payload, sender: None }
}

fn text(text: &'static str) -> Payload {
    Payload::Text(Text::from_static(text))
}

const POSITION: Position = Position { epoch: Epoch(0x0102_0304_0506_0708), offset: 0x2a };

/// Version 1 must read the same on every node for as long as it exists.
#[test]
fn golden_bytes() {
    let check = |envelope: Envelope, bytes: &[u8]| {
        assert_eq!(encode_envelope(&envelope), bytes);
        assert_eq!(Envelope::decode(bytes), Ok(envelope));
    };
    check(Envelope { tags: None, publication: publication(None, None, text("hi")) }, b"\x01\x00hi");
    check(
        Envelope {
            tags: None,
            publication: publication(None, Some("ev"), Payload::Binary(Bytes::from_static(b"\xff"))),
        },
        b"\x01\x06\x00\x02ev\xff",
    );
    check(
        Envelope {
            tags: Some(Tags { previous: Tag(0xa1), own: Tag(0xb2) }),
            publication: publication(Some(POSITION), Some("e"), text("é")),
        },
        b"\x01\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\xa1\0\0\0\0\0\0\0\xb2\0\x01e\xc3\xa9",
    );
    let sender = Sender { connection: Some("1.2".into()), user: Some("ü".into()) };
    let mut sent = publication(None, None, text("hi"));
    sent.sender = Some(Box::new(sender));
    check(Envelope { tags: None, publication: sent }, b"\x01\x08\x03\0\x031.2\0\x02\xc3\xbchi");
    let body = b"\x01\0\0\0\0\0\0\0\xb2hi";
    let read = decode_body(POSITION, body.to_vec()).expect("a body");
    assert_eq!(read, (Tag(0xb2), publication(Some(POSITION), None, text("hi"))));
    assert_eq!(encode_body(&as_new(&read.1), read.0).expect("it fits"), body);
}

#[test]
fn golden_bytes_of_presence() {
    let check = |bytes: &[u8], expect: Result<PresenceKind, EnvelopeError>| {
        let expect = expect.map(|kind| Message::Presence(PresenceEvent { sequence: 7, kind }));
        let bytes = [b"\x01\x10\0\0\0\0\0\0\0\x07", bytes].concat();
        assert_eq!(Message::decode(&bytes), expect);
    };
    let joined = |info: Option<&str>| {
        let (connection, info) = ("n.1".into(), info.map(Into::into));
        let member = Arc::new(Member { connection, user: "ü".into(), info });
        PresenceKind::Joined { member, connections: 2 }
    };
    check(b"\x04\0\0\0\x02\0\x03n.1\0\x02\xc3\xbc{}", Ok(joined(Some("{}"))));
    check(b"\x04\0\0\0\x02\0\x03n.1\0\x02\xc3\xbc", Ok(joined(None)));
    let member = Arc::new(Member { connection: "n.1".into(), user: "ada".into(), info: None });
    check(b"\x05\0\0\0\0\0\x03n.1ada", Ok(PresenceKind::Left { member, connections: 0 }));
    check(b"\x03\0\0\0\0\0\0\x01\0", Ok(PresenceKind::Count { subscriptions: 256 }));
    check(b"\x03\0\0\0\0\0\0\x01\0\0", Err(EnvelopeError::Presence));
    check(b"\x03\0", Err(EnvelopeError::Truncated));
    check(b"\x04\0\0\0\x01\0\x02\xc3", Err(EnvelopeError::Truncated));
    check(b"\x05\0\0\0\x01\0\x01\xff", Err(EnvelopeError::Presence));
    check(b"\x01\0\x01a", Err(EnvelopeError::Presence));
    check(b"", Err(EnvelopeError::Truncated));
    assert_eq!(Message::decode(b"\x01\x10\0"), Err(EnvelopeError::Truncated));
    assert_eq!(Message::decode(b"\x01\x11hi"), Err(EnvelopeError::Flags(0x11)));
}

#[test]
fn errors_are_told_by_kind() {
    let check = |bytes: &[u8], error: EnvelopeError| {
        assert_eq!(Envelope::decode(bytes), Err(error), "{bytes:?}");
    };
    check(b"", EnvelopeError::Truncated);
    check(b"\x01", EnvelopeError::Truncated);
    check(b"\x02\x00hi", EnvelopeError::Version(2));
    check(b"{\"json\":1}", EnvelopeError::Version(b'{'));
    check(b"\x01\x20hi", EnvelopeError::Flags(0x20));
    check(b"\x01\x08", EnvelopeError::Truncated);
    check(b"\x01\x08\x04", EnvelopeError::Sender);
    check(b"\x01\x08\x01\0", EnvelopeError::Truncated);
    check(b"\x01\x08\x01\0\x02a", EnvelopeError::Truncated);
    check(b"\x01\x08\x02\0\x01\xff", EnvelopeError::Sender);
    check(b"\x01\x04\x00", EnvelopeError::Truncated);
    check(b"\x01\x04\xff\xffshort", EnvelopeError::Truncated);
    check(b"\x01\x04\x00\x01\xff", EnvelopeError::Event);
    check(b"\x01\x00\xff", EnvelopeError::Text);
    check(&[b"\x01\x01".as_slice(), &[0; 32]].concat(), EnvelopeError::Offset);
    check(&[b"\x01\x01".as_slice(), &[1; 31]].concat(), EnvelopeError::Truncated);
    assert_eq!(decode_body(POSITION, b"\x00hi".to_vec()), Err(EnvelopeError::Flags(0)));
    assert_eq!(decode_body(POSITION, b"\x01hi".to_vec()), Err(EnvelopeError::Truncated));
}

#[test]
fn an_event_name_has_a_bound() {
    let mut new = as_new(&publication(None, None, text("")));
    new.event = Some("e".repeat(65_535).into());
    assert!(encode_plain(&new).is_ok());
    new.event = Some("e".repeat(65_536).into());
    assert_eq!(encode_plain(&new), Err(NameTooLong(65_536)));
    new.event = None;
    new.sender = Some(Box::new(Sender { connection: None, user: Some("u".repeat(65_536).into()) }));
    assert_eq!(encode_plain(&new), Err(NameTooLong(65_536)));
}

fn senders() -> impl Strategy<Value = Option<Box<Sender>>> {
    let part = || proptest::option::of(".{0,8}".prop_map(Into::into));
    proptest::option::of(
        (part(), part()).prop_map(|(connection, user)| Box::new(Sender { connection, user })),
    )
}

fn payloads() -> impl Strategy<Value = Payload> {
    prop_oneof![
        ".{0,64}".prop_map(|text| Payload::Text(text.into())),
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Payload::Binary(bytes.into())),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        event in proptest::option::of(".{0,16}"),
        payload in payloads(),
        sender in senders(),
        place in proptest::option::of((any::<u64>(), 1..u64::MAX, any::<u64>(), any::<u64>())),
    ) {
        let position = place.map(|(epoch, offset, ..)| Position { epoch: Epoch(epoch), offset });
        let tags = place.map(|(.., previous, own)| Tags { previous: Tag(previous), own: Tag(own) });
        let publication = Publication { sender, ..publication(position, event.as_deref(), payload) };
        let envelope = Envelope { tags, publication };
        prop_assert_eq!(Envelope::decode(&encode_envelope(&envelope)), Ok(envelope));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(
        version in 0..3u8,
        flags in 0..33u8,
        rest in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        check_decoders(&[&[version, flags], &*rest].concat());
        check_decoders(&rest);
    }
}
