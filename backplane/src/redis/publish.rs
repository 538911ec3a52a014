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
            self.publish_plain(&new).await?;
            self.tallies.published_plain.fetch_add(1, Relaxed);
            return Ok(Published { position: None, duplicate: false });
        }
        let published = self.publish_scripted(&new).await?;
        let tally = match published.duplicate {
            true => &self.tallies.publish_duplicates,
            false => &self.tallies.published_scripted,
        };
        tally.fetch_add(1, Relaxed);
        Ok(published)
    }

    /// Publications of which nothing is kept leave as one command, which the server carries out in one step: commands
    /// under way at the same time could change places when some of them have to be sent again.
    pub(crate) async fn publish_flight(
        &self,
        publications: Vec<NewPublication>,
    ) -> Vec<Result<Published, BackplaneError>> {
        let is_plain = |new: &NewPublication| new.history.is_none() && new.idempotency_key.is_none();
        if publications.len() > 1 && publications.iter().all(is_plain) {
            return self.publish_plain_flight(&publications).await;
        }
        let mut published = Vec::with_capacity(publications.len());
        for publication in publications {
            published.push(self.publish(publication).await);
        }
        published
    }

    async fn publish_plain_flight(
        &self,
        publications: &[NewPublication],
    ) -> Vec<Result<Published, BackplaneError>> {
        let Some(first) = publications.first() else { return Vec::new() };
        let encoded: Vec<_> = publications.iter().map(envelope::encode_plain).collect();
        let pubsub = self.prefix.pubsub(first.channel.as_str());
        let envelopes = encoded.iter().flatten().map(Vec::as_slice);
        let args: Vec<&[u8]> = std::iter::once(self.verb().as_bytes()).chain(envelopes).collect();
        let answer =
            scripts::FLIGHT.call(&*self.commands, first.channel.as_str(), &[pubsub.as_bytes()], &args).await;
        if answer.is_ok() {
            self.tallies.published_plain.fetch_add(args.len() as u64 - 1, Relaxed);
        }
        let answer = answer.map(|_| Published { position: None, duplicate: false });
        encoded.into_iter().map(|encoded| encoded.map_err(Into::into).and(answer.clone())).collect()
    }

    async fn publish_plain(&self, new: &NewPublication) -> Result<(), BackplaneError> {
        let channel = new.channel.as_str();
        let envelope = envelope::encode_plain(new)?;
        let mut command = Cmd::with_capacity(3, envelope.len() + channel.len() + 96);
        command.arg(self.verb()).arg(self.prefix.pubsub(channel)).arg(envelope);
        self.commands.call(channel, command).await?;
        Ok(())
    }

    async fn publish_scripted(&self, new: &NewPublication) -> Result<Published, BackplaneError> {
        let channel = new.channel.as_str();
        let pubsub = self.prefix.pubsub(channel);
        let (meta, stream) = (self.prefix.meta(channel), self.prefix.stream(channel));
        let key = new.idempotency_key.as_ref().map(|key| self.prefix.idempotency(channel, key));
        let mut keys = Vec::with_capacity(3);
        if new.history.is_some() {
            keys.extend([meta.as_bytes(), stream.as_bytes()]);
        }
        keys.extend(key.as_ref().map(String::as_bytes));
        let window = key.as_ref().map_or_else(Box::default, |_| milliseconds(self.idempotency_window));
        let mut args = vec![self.verb().as_bytes(), pubsub.as_bytes(), window.as_bytes()];

        let Some(policy) = new.history else {
            let envelope = envelope::encode_plain(new)?;
            args.push(&envelope);
            return read_published(scripts::PUBLISH.call(&*self.kept, channel, &keys, &args).await?);
        };
        let stamp = Stamp::new(policy)?;
        let body = envelope::encode_body(new, stamp.tag)?;
        args.push(&body);
        let tag = stamp.tag.0.to_be_bytes();
        args.extend([stamp.size.as_bytes(), stamp.age.as_bytes(), &tag, &stamp.epoch]);
        read_published(scripts::PUBLISH.call(&*self.kept, channel, &keys, &args).await?)
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

/// What the script needs to give a publication its position.
struct Stamp {
    tag: Tag,
    epoch: [u8; 8],
    size: String,
    age: Box<str>,
}

impl Stamp {
    fn new(policy: HistoryPolicy) -> Result<Self, BackplaneError> {
        // Zero is Tag::NONE; to be given it once in 2^64 publications is not worth a second draw, one bit is.
        let tag = Tag(scripts::random()? | 1);
        let epoch = scripts::random_epoch()?.0.to_be_bytes();
        Ok(Self { tag, epoch, size: policy.size.to_string(), age: milliseconds(policy.age) })
    }
}

/// At least one: the server takes no expiry of 0 ms.
fn milliseconds(duration: Duration) -> Box<str> {
    duration.as_millis().clamp(1, AGE_MS_MAX).to_string().into()
}

fn read_published(mut answer: Answer) -> Result<Published, BackplaneError> {
    let duplicate = answer.flag()?;
    if answer.is_empty() {
        return Ok(Published { position: None, duplicate });
    }
    let epoch = Epoch(answer.word()?);
    Ok(Published { position: Some(Position { epoch, offset: answer.number()? }), duplicate })
}

impl From<NameTooLong> for BackplaneError {
    fn from(error: NameTooLong) -> Self {
        Self::Refused(error.to_string().into())
    }
}
