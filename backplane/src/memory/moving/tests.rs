//! A backplane that goes on in another process answers as the first one would have.

#![allow(clippy::unwrap_used)]

use futures_util::FutureExt as _;

use super::*;
use crate::{
    Backplane as _, Clock as _, HistoryQuery, Join, ManualClock, MemoryOptions, NewPublication,
    conformance::Recorder,
};

fn backplane(clock: &Arc<ManualClock>) -> (Arc<Recorder>, MemoryBackplane) {
    let recorder = Arc::new(Recorder::default());
    let clock: Arc<dyn crate::Clock> = clock.clone();
    let options = MemoryOptions { clock, ..MemoryOptions::default() };
    (recorder.clone(), MemoryBackplane::new(recorder, options))
}

fn publish(backplane: &MemoryBackplane, channel: &Channel, random: &mut fastrand::Rng) -> crate::Published {
    let text: String = (0..random.usize(..20)).map(|_| random.alphanumeric()).collect();
    let payload = match random.bool() {
        true => Payload::Text(Text::from(text.as_str())),
        false => Payload::Binary(text.into_bytes().into()),
    };
    let history = (!channel.name().starts_with("plain"))
        .then(|| HistoryPolicy { size: 5, age: Duration::from_secs(60) });
    let idempotency_key = random.bool().then(|| format!("k{}", random.u8(..10)).into());
    let event = random.bool().then(|| "e".into());
    let sender = random.bool().then(|| Box::new(Sender { connection: Some("c".into()), user: None }));
    let new = NewPublication { channel: channel.clone(), event, payload, history, idempotency_key, sender };
    backplane.publish(new).now_or_never().unwrap().unwrap()
}

fn step(backplane: &MemoryBackplane, channel: &Channel, random: &mut fastrand::Rng) {
    let connection = format!("n.{}", random.u8(..4));
    match random.u8(..6) {
        0..3 => drop(publish(backplane, channel, random)),
        3 => {
            let member = Member {
                connection: connection.into(),
                user: format!("u{}", random.u8(..2)).into(),
                info: None,
            };
            drop(
                backplane
                    .join(channel, Join { tells_counts: Some(true), ..Join::listed(member) })
                    .now_or_never(),
            );
        }
        4 => drop(backplane.join(channel, Join::counted()).now_or_never()),
        _ => {
            let connection = random.bool().then_some(connection);
            drop(backplane.leave(channel, connection.as_deref()).now_or_never());
        }
    }
}

/// What can be asked of a channel.
fn asked(backplane: &MemoryBackplane, channel: &Channel) -> String {
    let all = HistoryQuery { since: None, limit: 100, bytes: 1 << 20 };
    let history = backplane.history(channel, all).now_or_never().unwrap().unwrap();
    let roll = backplane.roll(channel).now_or_never().unwrap().unwrap();
    format!("{history:?} {roll:?}")
}

#[test]
fn it_goes_on_as_it_was() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let clock = Arc::new(ManualClock::new());
        let (told_first, first) = backplane(&clock);
        let channels = ["a", "b", "plain", "d"].map(|name| Channel::new(name).unwrap());
        for _ in 0..random.usize(..60) {
            step(&first, random.choice(&channels).unwrap(), &mut random);
            clock.advance(Duration::from_millis(random.u64(..3_000)));
        }
        // An epoch that begins later is a random number of each.
        for channel in &channels {
            publish(&first, channel, &mut random);
        }
        let (told_second, second) = backplane(&clock);
        second.take_in(&first.to_bytes()).unwrap();
        for channel in &channels {
            assert_eq!(asked(&second, channel), asked(&first, channel), "seed {seed}");
        }
        // What follows is the same on both, so one is the model of the other.
        for backplane in [&first, &second] {
            for channel in &channels {
                drop(backplane.subscribe(channel, 1).now_or_never());
            }
        }
        let (told_before, mut again) = (transitions(&told_first, &channels), random.clone());
        for random in [&mut random, &mut again].into_iter().zip([&first, &second]) {
            let (random, backplane) = random;
            for _ in 0..20 {
                step(backplane, random.choice(&channels).unwrap(), random);
            }
        }
        clock.advance(Duration::from_secs(10));
        first.sweep(clock.now());
        second.sweep(clock.now());
        for (nth, channel) in channels.iter().enumerate() {
            assert_eq!(asked(&second, channel), asked(&first, channel), "seed {seed}");
            assert_eq!(told_second.publications(channel), told_first.publications(channel), "seed {seed}");
            assert_eq!(told_second.presence(channel), told_first.presence(channel), "seed {seed}");
            let told = transitions(&told_first, &channels);
            assert_eq!(
                transitions(&told_second, &channels)[nth],
                told[nth][told_before[nth].len()..],
                "seed {seed}"
            );
        }
        let counted = |backplane: &MemoryBackplane| crate::MemoryCounters {
            history_evicted: 0,
            ..backplane.counters()
        };
        assert_eq!(counted(&second), counted(&first), "seed {seed}");
    }
}

fn transitions(recorder: &Recorder, channels: &[Channel]) -> Vec<Vec<crate::Transition>> {
    channels.iter().map(|channel| recorder.transitions(channel)).collect()
}

#[test]
fn another_form_is_not_taken_in() {
    let clock = Arc::new(ManualClock::new());
    let (_, first) = backplane(&clock);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        step(&first, &Channel::new("a").unwrap(), &mut random);
    }
    let record = first.to_bytes();
    let taken = |record: &[u8]| backplane(&clock).1.take_in(record);
    assert_eq!(taken(&record), Ok(()));
    for cut in 0..record.len() {
        assert_eq!(taken(&record[..cut]), Err(Malformed), "{cut} of {} bytes", record.len());
    }
    let mut other = record.clone();
    other[0] = VERSION + 1;
    assert_eq!(taken(&other), Err(Malformed));
    for _ in 0..2_000 {
        let mut broken = record.clone();
        let at = random.usize(1..broken.len());
        broken[at] = random.u8(..);
        // Whatever it says, it is no reason to panic.
        assert!(matches!(taken(&broken), Ok(()) | Err(Malformed)));
    }
}
