//! Publish, history, position and renounce.

use std::{sync::Arc, time::Duration};

use super::server::Server;
use crate::{
    Channel, Epoch, HistoryPolicy, HistoryQuery, NewPublication, Payload, Position, Published,
    redis::{
        counters::Tallies,
        envelope::{Envelope, Tag, Tags},
        history::{Reader, Standing},
        names::Prefix,
        publish::Publisher,
    },
};

const LONG: Duration = Duration::from_secs(3600);

struct Rig {
    server: Arc<Server>,
    tallies: Arc<Tallies>,
    publisher: Publisher,
    reader: Reader,
}

impl Rig {
    async fn start() -> Self {
        let server = Server::start().await;
        let tallies = Arc::<Tallies>::default();
        let prefix = Prefix::new("test").expect("a prefix");
        let window = Duration::from_secs(300);
        Self {
            publisher: Publisher::new(
                server.clone(),
                server.clone(),
                prefix.clone(),
                window,
                tallies.clone(),
            ),
            reader: Reader::new(server.clone(), prefix, tallies.clone()),
            tallies,
            server,
        }
    }

    async fn publish(&self, payload: &str, size: u32, age: Duration) -> Position {
        let mut new = text(payload);
        new.history = Some(HistoryPolicy { size, age });
        let published = self.publisher.publish(new).await.expect("publish");
        published.position.expect("a position")
    }

    async fn standing(&self) -> Standing {
        self.if_standing().await.expect("state")
    }

    async fn if_standing(&self) -> Option<Standing> {
        self.reader.positions(&[&channel()]).await.expect("positions")[0]
    }

    async fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        self.server.run(&command).await
    }
}

fn channel() -> Channel {
    Channel::new("news:a").expect("a name")
}

fn text(payload: &str) -> NewPublication {
    NewPublication {
        channel: channel(),
        event: None,
        payload: Payload::Text(payload.into()),
        history: None,
        idempotency_key: None,
        sender: None,
    }
}

#[tokio::test]
async fn each_publication_names_the_tag_of_the_one_before() {
    let rig = Rig::start().await;
    let mut previous = Tag::NONE;
    let first = rig.publish("1", 10, LONG).await;
    for offset in 1..=3 {
        let standing = rig.standing().await;
        assert_eq!(standing.top.position, Position { offset, ..first });
        assert_eq!(standing.age, LONG);
        let before = Position { offset: offset - 1, ..first };
        let page = rig.reader.page(&channel(), Some(before), 1).await.expect("page");
        assert_eq!(page.since_tag, Some(previous));
        assert_eq!(page.publications[0].0, standing.top.tag);
        previous = standing.top.tag;
        rig.publish("more", 10, LONG).await;
    }
}

/// What subscribers receive is what the stream has, and the position the publisher was answered.
#[tokio::test]
async fn the_script_makes_an_envelope_of_the_body() {
    let rig = Rig::start().await;
    let page = async |offset, epoch| {
        let since = Some(Position { epoch, offset });
        rig.reader.page(&channel(), since, 1).await.expect("page").publications.remove(0)
    };
    // The channel itself is watched by a script of this test's own: what PUBLISH is given is kept in a list.
    let time_and_age = [include_str!("../scripts/time.lua"), include_str!("../scripts/age.lua")].concat();
    let publish = include_str!("../scripts/publish.lua").replace("redis.call(ARGV[1]", "redis.call('RPUSH'");
    let code = time_and_age + &publish;
    let mut previous = Tag::NONE;
    for offset in 1..=300 {
        let mut new = text("payload");
        new.event = Some("e".into());
        let body = crate::redis::envelope::encode_body(&new, Tag(offset)).expect("a body");
        let mut command = redis::cmd("EVAL");
        command.arg(&code).arg(2).arg("test:{news:a}:m").arg("test:{news:a}:s");
        command.arg("PUBLISH").arg("sent").arg("").arg(body).arg(1000).arg(3_600_000);
        command.arg(&offset.to_be_bytes()[..]).arg(&[7_u8; 8][..]);
        let (duplicate, epoch, at): (u8, Vec<u8>, u64) = rig.server.run(&command).await;
        assert_eq!((duplicate, at), (0, offset));
        let sent: Vec<u8> = rig.run(&["LPOP", "sent"]).await;
        let envelope = Envelope::decode(&sent).expect("an envelope");
        assert_eq!(envelope.tags, Some(Tags { previous, own: Tag(offset) }));
        let epoch = Epoch(u64::from_be_bytes(epoch.try_into().expect("8 bytes")));
        let (tag, kept) = page(offset - 1, epoch).await;
        assert_eq!(tag, Tag(offset));
        assert_eq!(*kept, envelope.publication);
        assert_eq!(kept.position, Some(Position { epoch, offset }));
        previous = Tag(offset);
    }
}

#[tokio::test]
async fn a_key_is_answered_again_with_and_without_history() {
    let rig = Rig::start().await;
    for history in [None, Some(HistoryPolicy { size: 5, age: LONG })] {
        let mut new = text("a");
        new.history = history;
        new.idempotency_key = Some(format!("a {{key}} {}", history.is_some()).into());
        let first = rig.publisher.publish(new.clone()).await.expect("publish");
        assert_eq!(first.position.is_some(), history.is_some());
        let second = rig.publisher.publish(new).await.expect("publish");
        assert_eq!(second, Published { duplicate: true, ..first });
    }
    let counted = rig.tallies.read();
    assert_eq!((counted.published_scripted, counted.publish_duplicates), (2, 2));
    let left: u64 = rig.run(&["PTTL", "test:{news:a}:i:a {key} true"]).await;
    assert!((1..=300_000).contains(&left));
}

/// Many bytes and many entries come in several answers, and as one history.
#[tokio::test]
async fn a_history_of_several_pages_is_read_as_one() {
    let rig = Rig::start().await;
    let payload = "x".repeat(100_000);
    let mut top = rig.publish(&payload, 5000, LONG).await;
    for _ in 0..29 {
        top = rig.publish(&payload, 5000, LONG).await;
    }
    for _ in 0..1500 {
        top = rig.publish("y", 5000, LONG).await;
    }
    let zero = Position { offset: 0, ..top };
    let page = rig.reader.page(&channel(), Some(zero), usize::MAX).await.expect("page");
    assert!(page.publications.len() < 30, "{}", page.publications.len());
    assert_eq!(page.last, Some(page.publications.len() as u64));
    for (since, limit, expect) in [
        (Some(zero), usize::MAX, 1..=1530),
        (None, usize::MAX, 1..=1530),
        (None, 1520, 11..=1530),
        (Some(Position { offset: 5, ..top }), 1400, 6..=1405),
    ] {
        let query = HistoryQuery { since, limit, bytes: usize::MAX };
        let history = rig.reader.history(&channel(), query).await.expect("history");
        let offsets = history.publications.iter().map(|it| it.position.expect("a position").offset);
        assert!(offsets.eq(expect), "{query:?}");
        assert!(history.continuous);
        assert_eq!(history.top, Some(top));
    }
}

/// Entries of any age pattern are left out exactly.
#[tokio::test]
async fn age_ends_at_its_entry() {
    let rig = Rig::start().await;
    for old in [0, 1, 2, 63, 64, 65, 200] {
        rig.run::<()>(&["FLUSHALL"]).await;
        // Written as the script does, with the times of 2001 for what is too old.
        for offset in 1..=200_u64 {
            let now = rig.run::<(u64, u64)>(&["TIME"]).await.0 * 1000;
            let ms = if offset <= old { 1_000_000_000_000 + offset } else { now };
            let mut add = redis::cmd("XADD");
            add.arg("test:{news:a}:s").arg(format!("{offset}-{ms}")).arg("b");
            add.arg([&b"\x01"[..], &offset.to_be_bytes(), b"payload"].concat());
            rig.server.run::<String>(&add).await;
        }
        let mut meta = redis::cmd("HSET");
        meta.arg("test:{news:a}:m").arg("e").arg(&[1_u8; 8][..]).arg("o").arg(200);
        meta.arg("t").arg(&200_u64.to_be_bytes()[..]).arg("a").arg(3_600_000);
        rig.server.run::<u8>(&meta).await;

        let epoch = Epoch(u64::from_be_bytes([1; 8]));
        let page = async |offset| {
            let since = Some(Position { epoch, offset });
            rig.reader.page(&channel(), since, 1000).await.expect("page")
        };
        // Until a publish lets go of it, an old entry still tells its tag.
        let read = page(old).await;
        assert_eq!(read.since_tag, Some(Tag(old)));
        assert!(read.continuous);
        assert_eq!(read.publications.len() as u64, 200 - old, "{old} of 200 are too old");
        if old > 0 {
            assert!(!page(old - 1).await.continuous);
        }
    }
}

/// What is not written by this version is left out, counted, and breaks continuity.
#[tokio::test]
async fn an_entry_that_cannot_be_decoded_is_told() {
    let rig = Rig::start().await;
    let first = rig.publish("1", 10, LONG).await;
    rig.run::<String>(&["XADD", "test:{news:a}:s", "2-9999999999999", "b", "\x7fgarbage"]).await;
    rig.run::<u8>(&["HSET", "test:{news:a}:m", "o", "2"]).await;
    rig.publish("3", 10, LONG).await;
    let query = HistoryQuery::page(first, usize::MAX);
    let history = rig.reader.history(&channel(), query).await.expect("history");
    assert!(!history.continuous);
    assert_eq!(history.publications.len(), 1);
    assert_eq!(history.top, Some(Position { offset: 3, ..first }));
    assert_eq!(rig.tallies.read().history_undecodable, 1);
}

#[tokio::test]
async fn an_epoch_is_renounced_once() {
    let rig = Rig::start().await;
    let old = rig.publish("1", 10, LONG).await;
    let first = rig.reader.renounce(&channel(), old.epoch).await.expect("renounce").expect("state");
    assert_ne!(first.top.position.epoch, old.epoch);
    assert_eq!((first.top.position.offset, first.age), (old.offset, LONG));
    let second = rig.reader.renounce(&channel(), old.epoch).await.expect("renounce").expect("state");
    assert_eq!(second, first, "who comes second changes nothing");
    let next = rig.publish("2", 10, LONG).await;
    assert_eq!(next, Position { offset: old.offset + 1, ..first.top.position });
    let history = rig.reader.history(&channel(), HistoryQuery::page(old, usize::MAX)).await;
    let history = history.expect("history");
    assert!(!history.continuous && history.publications.is_empty());
    let all = rig.reader.history(&channel(), HistoryQuery::newest(9)).await.expect("history");
    assert_eq!(all.publications.len(), 2, "what survived stays, under the new epoch");
    assert_eq!(rig.tallies.read().epochs_renounced, 1);
    let other = Channel::new("other").expect("a name");
    assert_eq!(rig.reader.renounce(&other, old.epoch).await, Ok(None));
}

/// Reading is not use of a channel, renewing is.
#[tokio::test]
async fn renewing_keeps_the_state_and_reading_does_not() {
    let rig = Rig::start().await;
    rig.publish("1", 10, LONG).await;
    let set = async || rig.run::<u8>(&["PEXPIRE", "test:{news:a}:m", "1000000"]).await;
    let left = async || rig.run::<u64>(&["PTTL", "test:{news:a}:m"]).await;
    set().await;
    let query = HistoryQuery::newest(9);
    assert_eq!(rig.reader.history(&channel(), query).await.expect("history").publications.len(), 1);
    let age = rig.standing().await.age;
    assert!(left().await <= 1_000_000);
    rig.reader.renew(&[(&channel(), age)]).await.expect("renewed");
    assert!(left().await > 1_000_000);
    rig.run::<u8>(&["DEL", "test:{news:a}:m"]).await;
    assert_eq!(rig.if_standing().await, None);
}

/// Reading goes on where writing is refused, whatever the server lacks.
#[tokio::test]
async fn reading_writes_nothing() {
    let rig = Rig::start().await;
    rig.publish("1", 10, LONG).await;
    rig.publish("2", 10, LONG).await;
    for refusing in [["maxmemory", "1"], ["min-replicas-to-write", "1"]] {
        rig.run::<()>(&["CONFIG", "SET", refusing[0], refusing[1]]).await;
        let mut new = text("refused");
        new.history = Some(HistoryPolicy { size: 10, age: LONG });
        rig.publisher.publish(new).await.expect_err("writing is refused");
        let query = HistoryQuery { since: None, limit: 9, bytes: usize::MAX };
        let history = rig.reader.history(&channel(), query).await.expect("history");
        assert_eq!(history.publications.len(), 2, "{refusing:?}");
        assert_eq!(rig.standing().await.top.position.offset, 2, "{refusing:?}");
        rig.run::<()>(&["CONFIG", "SET", refusing[0], "0"]).await;
    }
}

/// Publications of a flight keep their order, also where the server has forgotten the script in between.
#[tokio::test]
async fn a_flight_keeps_its_order_whatever_the_server_has_forgotten() {
    let rig = Rig::start().await;
    let flight = |range: std::ops::Range<u32>| {
        let new = range.map(|number| NewPublication {
            history: Some(HistoryPolicy { size: 100, age: LONG }),
            ..text(&number.to_string())
        });
        new.collect::<Vec<_>>()
    };
    for round in 0..3_u32 {
        rig.run::<()>(&["SCRIPT", "FLUSH"]).await;
        let published = rig.publisher.publish_flight(flight(round * 16..round * 16 + 16)).await;
        let offsets = published.into_iter().map(|it| it.expect("published").position.expect("one").offset);
        let first = u64::from(round * 16) + 1;
        assert_eq!(offsets.collect::<Vec<_>>(), (first..first + 16).collect::<Vec<_>>());
    }
    let history =
        rig.reader.history(&channel(), HistoryQuery { since: None, limit: 100, bytes: usize::MAX }).await;
    let texts = history
        .expect("history")
        .publications
        .into_iter()
        .map(|publication| String::from_utf8_lossy(publication.payload.bytes()).into_owned());
    let expected: Vec<_> = (0..48).map(|number| number.to_string()).collect();
    assert_eq!(texts.collect::<Vec<_>>(), expected);
}

/// A server that has lost its scripts is given them again.
#[tokio::test]
async fn scripts_are_sent_again() {
    let rig = Rig::start().await;
    for offset in 1..=2 {
        rig.run::<()>(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(rig.publish("1", 10, LONG).await.offset, offset);
    }
}
