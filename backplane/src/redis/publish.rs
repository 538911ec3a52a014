//! Publishing: one command where nothing is kept, one script where a position or a key is.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::Cmd;

use super::{
    contract::Commands,
    counters::Tallies,
    envelope::{self, NameTooLong, Tag},
    names::Prefix,
    scripts::{self, Answer},
};
use crate::{BackplaneError, Epoch, HistoryPolicy, NewPublication, Position, Published};

/// Longest age that the server is given, 89 years: its own limit is 2^63 ms since 1970, less than a policy can say.
const AGE_MS_MAX: u128 = 1 << 41;

#[derive(Clone)]
pub(crate) struct Publisher {
    commands: Arc<dyn Commands>,
    /// For what is kept.
    kept: Arc<dyn Commands>,
    prefix: Prefix,
    idempotency_window: Duration,
    tallies: Arc<Tallies>,
}

impl Publisher {
    pub(crate) fn new(
        commands: Arc<dyn Commands>,
        kept: Arc<dyn Commands>,
        prefix: Prefix,
        idempotency_window: Duration,
        tallies: Arc<Tallies>,
    ) -> Self {
        Self { commands, kept, prefix, idempotency_window, tallies }
    }

    pub(crate) async fn publish(&self, new: NewPublication) -> Result<Published, BackplaneError> {
        if new.history.is_none() && new.idempotency_key.is_none() {
            let command = self.plain_command(&new)?;
            // While the answer is awaited the payload is in the command, and once more in what is to be written.
            let channel = new.channel.clone();
            drop(new);
            self.commands.call(channel.as_str(), command).await?;
            self.tallies.published_plain.fetch_add(1, Relaxed);
            return Ok(Published { position: None, duplicate: false });
        }
        self.publish_scripted(new).await
    }

    /// Those that are of one kind with their neighbours leave together: the server takes them one after the other.
    pub(crate) async fn publish_flight(
        &self,
        publications: Vec<NewPublication>,
    ) -> Vec<Result<Published, BackplaneError>> {
        let is_plain = |new: &NewPublication| new.history.is_none() && new.idempotency_key.is_none();
        let mut published = Vec::with_capacity(publications.len());
        for flight in publications.chunk_by(|a, b| is_plain(a) == is_plain(b)) {
            match flight {
                [] => {}
                [first, ..] if is_plain(first) => published.extend(self.publish_plain_flight(flight).await),
                _ => published.extend(self.publish_scripted_flight(flight).await),
            }
        }
        published
    }

    async fn publish_plain_flight(
        &self,
        flight: &[NewPublication],
    ) -> Vec<Result<Published, BackplaneError>> {
        let mut outcomes = Outcomes::default();
        let commands: Vec<Cmd> =
            flight.iter().filter_map(|new| outcomes.keep(self.plain_command(new))).collect();
        let Some(first) = flight.first() else { return Vec::new() };
        let answers = self.commands.call_all(first.channel.as_str(), commands).await;
        let accepted = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        self.tallies.published_plain.fetch_add(accepted, Relaxed);
        outcomes.fill(
            answers.into_iter().map(|answer| answer.map(|_| Published { position: None, duplicate: false })),
        )
    }

    async fn publish_scripted_flight(
        &self,
        flight: &[NewPublication],
    ) -> Vec<Result<Published, BackplaneError>> {
        let mut outcomes = Outcomes::default();
        let parts: Vec<Parts> = flight.iter().filter_map(|new| outcomes.keep(self.parts(new))).collect();
        let calls: Vec<_> = parts.iter().map(|parts| parts.call(self.verb())).collect();
        let Some(first) = flight.first() else { return Vec::new() };
        let answers = scripts::PUBLISH.call_all(&*self.kept, first.channel.as_str(), &calls).await;
        outcomes.fill(answers.into_iter().map(|answer| self.read_published(answer?)))
    }

    fn plain_command(&self, new: &NewPublication) -> Result<Cmd, BackplaneError> {
        let channel = new.channel.as_str();
        let envelope = envelope::encode_plain(new)?;
        let mut command = Cmd::with_capacity(3, envelope.len() + channel.len() + 96);
        command.arg(self.verb()).arg(self.prefix.pubsub(channel)).arg(envelope);
        Ok(command)
    }

    async fn publish_scripted(&self, new: NewPublication) -> Result<Published, BackplaneError> {
        let parts = self.parts(&new)?;
        // The payload is in the parts.
        let channel = new.channel.clone();
        drop(new);
        let (keys, args) = parts.call(self.verb());
        let answer = scripts::PUBLISH.call(&*self.kept, channel.as_str(), &keys, &args).await?;
        self.read_published(answer)
    }

    fn parts(&self, new: &NewPublication) -> Result<Parts, BackplaneError> {
        let channel = new.channel.as_str();
        let key = new.idempotency_key.as_ref().map(|key| self.prefix.idempotency(channel, key));
        let stamp = new.history.map(Stamp::new).transpose()?;
        let content = match &stamp {
            Some(stamp) => envelope::encode_body(new, stamp.tag)?,
            None => envelope::encode_plain(new)?,
        };
        let kept = stamp.map(|stamp| (self.prefix.meta(channel), self.prefix.stream(channel), stamp));
        let window = key.as_ref().map_or_else(Box::default, |_| milliseconds(self.idempotency_window));
        Ok(Parts { pubsub: self.prefix.pubsub(channel), key, window, content, kept })
    }

    fn read_published(&self, mut answer: Answer) -> Result<Published, BackplaneError> {
        let duplicate = answer.flag()?;
        let tally = match duplicate {
            true => &self.tallies.publish_duplicates,
            false => &self.tallies.published_scripted,
        };
        tally.fetch_add(1, Relaxed);
        if answer.is_empty() {
            return Ok(Published { position: None, duplicate });
        }
        let epoch = Epoch(answer.word()?);
        Ok(Published { position: Some(Position { epoch, offset: answer.number()? }), duplicate })
    }

    fn verb(&self) -> &'static str {
        if self.commands.is_sharded() { "SPUBLISH" } else { "PUBLISH" }
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// What a flight comes to: some were refused before they were sent.
#[derive(Default)]
struct Outcomes(Vec<Option<BackplaneError>>);

impl Outcomes {
    fn keep<T>(&mut self, made: Result<T, BackplaneError>) -> Option<T> {
        let (made, error) = match made {
            Ok(made) => (Some(made), None),
            Err(error) => (None, Some(error)),
        };
        self.0.push(error);
        made
    }

    /// With the outcomes of those that were sent.
    fn fill(
        self,
        mut sent: impl Iterator<Item = Result<Published, BackplaneError>>,
    ) -> Vec<Result<Published, BackplaneError>> {
        let unsent = || Err(BackplaneError::Unavailable("nothing was sent".into()));
        let outcome = |error: Option<_>| error.map_or_else(|| sent.next().unwrap_or_else(unsent), Err);
        self.0.into_iter().map(outcome).collect()
    }
}

/// Keys and arguments of the script, before they are put in order.
struct Parts {
    pubsub: String,
    key: Option<String>,
    window: Box<str>,
    /// Body with history, envelope without.
    content: Vec<u8>,
    /// With history: keys of state and stream, and what gives a position.
    kept: Option<(String, String, Stamp)>,
}

impl Parts {
    fn call<'a>(&'a self, verb: &'a str) -> scripts::KeysAndArgs<'a> {
        let mut keys: Vec<&[u8]> = Vec::with_capacity(3);
        let mut args = vec![verb.as_bytes(), self.pubsub.as_bytes(), self.window.as_bytes(), &self.content];
        if let Some((meta, stream, stamp)) = &self.kept {
            keys.extend([meta.as_bytes(), stream.as_bytes()]);
            args.extend([stamp.size.as_bytes(), stamp.age.as_bytes(), &stamp.tag_bytes, &stamp.epoch]);
        }
        keys.extend(self.key.as_ref().map(String::as_bytes));
        (keys, args)
    }
}

/// What the script needs to give a publication its position.
struct Stamp {
    tag: Tag,
    tag_bytes: [u8; 8],
    epoch: [u8; 8],
    size: String,
    age: Box<str>,
}

impl Stamp {
    fn new(policy: HistoryPolicy) -> Result<Self, BackplaneError> {
        // Zero is Tag::NONE; to be given it once in 2^64 publications is not worth a second draw, one bit is.
        let tag = Tag(scripts::random()? | 1);
        let epoch = scripts::random_epoch()?.0.to_be_bytes();
        let tag_bytes = tag.0.to_be_bytes();
        Ok(Self { tag, tag_bytes, epoch, size: policy.size.to_string(), age: milliseconds(policy.age) })
    }
}

/// At least one: the server takes no expiry of 0 ms.
fn milliseconds(duration: Duration) -> Box<str> {
    duration.as_millis().clamp(1, AGE_MS_MAX).to_string().into()
}

impl From<NameTooLong> for BackplaneError {
    fn from(error: NameTooLong) -> Self {
        Self::Refused(error.to_string().into())
    }
}
