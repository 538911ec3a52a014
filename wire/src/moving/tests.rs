//! What is written is read as it was; a form that is not understood is not guessed at.

#![allow(clippy::unwrap_used)]

use core::ops::ControlFlow;

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{decoder::Message, deflate::Inflater};

fn text() -> impl Strategy<Value = Box<str>> {
    "[a-z:é]{0,12}".prop_map(Box::from)
}

fn place() -> impl Strategy<Value = Place> {
    any::<(u64, u64)>().prop_map(|(epoch, offset)| Place { epoch, offset })
}

fn kept() -> impl Strategy<Value = Kept> {
    (any::<(u32, Option<u32>, Vec<u8>, u64, Vec<u8>, bool, bool)>()).prop_map(
        |(heard_ago, timer_in, unsent, dropped, unused, awaits_flush, is_half_open)| Kept {
            heard_ago,
            timer_in,
            unsent,
            dropped,
            unused,
            awaits_flush,
            is_half_open,
        },
    )
}

fn subscription() -> impl Strategy<Value = Subscription> {
    (text(), text(), option::of(place()), any::<(bool, bool, Option<u64>)>()).prop_map(
        |(channel, form, through, (met, is_new, presence))| Subscription {
            channel,
            form,
            seen: Seen { through, met, is_new, presence },
        },
    )
}

fn claims() -> impl Strategy<Value = Claims> {
    let texts = || option::of(text());
    let lists = (vec(text(), 0..3), option::of(vec(text(), 0..3)), any::<Option<Vec<u8>>>());
    (texts(), any::<Option<u64>>(), texts(), texts(), lists).prop_map(
        |(user, expires_ms, info, app, (channels, publish, known))| Claims {
            user,
            expires_ms,
            info,
            app,
            channels,
            publish,
            known,
        },
    )
}

/// Frames of a client, cut anywhere.
fn decoder() -> impl Strategy<Value = Decoder> {
    (vec((0_u8..4, vec(any::<u8>(), 0..300)), 0..4), any::<prop::sample::Index>()).prop_map(
        |(messages, cut)| {
            let mut bytes = frames(&messages);
            let cut = cut.index(bytes.len() + 1);
            let mut decoder = Decoder::new(false);
            // What is no text ends the decoder: that is a state, too.
            let goes_on = |_: Message<'_>| ControlFlow::Continue(());
            let _judged = decoder.decode(&mut bytes[..cut], 1 << 20, &mut Inflater::new(), goes_on);
            decoder
        },
    )
}

fn frames(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let key = [1, 2, 3, 4];
    let mut out = Vec::new();
    for (kind, payload) in messages {
        let (first, payload) = match kind {
            0 => (0x81, &payload[..0]),
            1 => (0x82, &payload[..]),
            2 => (0x89, &payload[..payload.len().min(125)]),
            _ => (0x02, &payload[..]),
        };
        out.push(first);
        match payload.len() {
            0..=125 => out.push(0x80 | payload.len() as u8),
            len => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(&key);
        out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
        if first == 0x02 {
            out.extend_from_slice(&[0x80, 0x80]);
            out.extend_from_slice(&key);
        }
    }
    out
}

fn open() -> impl Strategy<Value = Open> {
    let debts = any::<(u32, u32, u32, Option<(u32, u32)>)>();
    let lists = (vec(subscription(), 0..4), vec((text(), option::of(place())), 0..3), option::of(claims()));
    (text(), text(), any::<(Option<u32>, u32, Option<u32>, Vec<u8>)>(), debts, decoder(), lists).prop_map(
        |(protocol, form, (pinged_ago, tag, expires_in, own), debts, decoder, lists)| {
            let (messages, subscribes, inflated_bytes, published) = debts;
            let (subscriptions, places, claims) = lists;
            let debts = Debts { messages, subscribes, inflated_bytes, published };
            Open {
                protocol,
                form,
                pinged_ago,
                tag,
                debts,
                decoder,
                subscriptions,
                places,
                claims,
                expires_in,
                own,
            }
        },
    )
}

fn connection() -> impl Strategy<Value = Connection> {
    let phase = prop_oneof![
        any::<(Vec<u8>, bool, bool)>().prop_map(|(received, awaits_header, is_answered)| Phase::Head {
            received,
            awaits_header,
            is_answered
        }),
        open().prop_map(|open| Phase::Open(Box::new(open))),
    ];
    (any::<(u32, u32, Option<IpAddr>, u32)>(), kept(), phase).prop_map(
        |((slot, generation, address, age_ms), kept, phase)| Connection {
            slot,
            generation,
            address,
            age_ms,
            kept,
            phase,
        },
    )
}

proptest! {
    #[test]
    fn a_connection_is_read_as_it_was_written(connection in connection(), cut in any::<prop::sample::Index>()) {
        let record = connection.to_bytes();
        let again = Connection::parse(&record).unwrap();
        // A decoder has no equality of its own: what it says of itself has.
        prop_assert_eq!(format!("{again:?}"), format!("{connection:?}"));
        prop_assert_eq!(again.to_bytes(), &record[..]);
        prop_assert!(Connection::parse(&record[..cut.index(record.len())]).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut record: Vec<u8>) {
        record.insert(0, VERSION);
        drop(Connection::parse(&record));
    }

    /// A frame that is cut at a hand-over arrives whole on the other side.
    #[test]
    fn a_decoder_goes_on_where_it_was(payload in vec(any::<u8>(), 0..400), cut in any::<prop::sample::Index>()) {
        let mut bytes = frames(&[(3, payload.clone()), (1, payload.clone())]);
        let cut = cut.index(bytes.len() + 1);
        let mut received = Vec::new();
        let mut take = |message: Message<'_>| {
            if let Message::Binary(bytes) = message {
                received.push(bytes.to_vec());
            }
            ControlFlow::Continue(())
        };
        let mut first = Decoder::new(true);
        let (before, after) = bytes.split_at_mut(cut);
        first.decode(before, 1 << 20, &mut Inflater::new(), &mut take).unwrap();
        let mut out = Writer::default();
        first.write(&mut out);
        let record = out.into_bytes();
        let mut second = Decoder::read(&mut Reader::new(&record)).unwrap();
        second.decode(after, 1 << 20, &mut Inflater::new(), &mut take).unwrap();
        prop_assert_eq!(received, vec![payload.clone(), payload]);
    }
}

/// The form of version 2, byte by byte: a change of it is a new version.
#[test]
fn the_form_does_not_change_under_its_number() {
    let connection = Connection {
        slot: 7,
        generation: 9,
        address: Some([192, 0, 2, 1].into()),
        age_ms: 1000,
        kept: Kept { heard_ago: 2, timer_in: Some(3), unsent: vec![0xAA], ..Kept::default() },
        phase: Phase::Head { received: b"GET".to_vec(), awaits_header: false, is_answered: true },
    };
    let golden: &[u8] = &[
        2, 0, 0, 0, 7, 0, 0, 0, 9, 1, 0, 0, 0, 4, 192, 0, 2, 1, 0, 0, 3, 232, 0, 0, 0, 2, 1, 0, 0, 0, 3, 0,
        0, 0, 1, 0xAA, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, b'G', b'E', b'T', 0, 1,
    ];
    assert_eq!(connection.to_bytes(), golden);
    let mut other = golden.to_vec();
    other[0] = VERSION + 1;
    assert!(Connection::parse(&other).is_err(), "another version is not guessed at");
    let open = Open {
        protocol: "raw".into(),
        form: "f".into(),
        pinged_ago: None,
        tag: 1,
        debts: Debts { published: Some((4, 5)), ..Debts::default() },
        decoder: Decoder::new(true),
        subscriptions: vec![Subscription { channel: "c".into(), form: "f".into(), seen: Seen::default() }],
        places: vec![("c".into(), Some(Place { epoch: 1, offset: 2 }))],
        claims: None,
        expires_in: None,
        own: vec![],
    };
    let mut out = Writer::default();
    open.write(&mut out);
    let golden: &[u8] = &[
        0, 0, 0, 3, b'r', b'a', b'w', 0, 0, 0, 1, b'f', 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        0, 0, 0, 4, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'c', 0, 0, 0, 1, b'f', 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 1, b'c', 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(out.into_bytes(), golden);
}
