//! The subscribed connection of a session: what arrives, what is asked of it, and the probe that shows that both
//! connections carry.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use redis::{Cmd, PushKind, RedisError, ServerError, ServerErrorKind, Value, ValueCodec};
use tokio::io::{AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::codec::FramedRead;

use super::Shared;
use super::dial::{Raw, Stream};
use super::link::{Link, Live, Sent};
use crate::redis::contract::Subscriber;
use crate::redis::error::{Trouble, sentence};

/// How often a probe is sent.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A link whose probes do not come back for so long is away: 2,400 ms and then 100 ms more, which begin when this
/// process runs again if it was stopped. A probe that came meanwhile is read in these. A server that hangs is
/// noticed within 2.5 s of the last probe that came back, whenever it began to hang.
const PROBE_DEADLINE: [Duration; 2] = [Duration::from_millis(2_400), Duration::from_millis(100)];

/// The first probe goes through both connections before the link is up.
const FIRST_PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Messages handed over before anything else has its turn.
const MESSAGES_A_TURN: usize = 256;

/// A subscribed connection whose first probe came back.
pub(crate) struct Feed {
    raw: Raw,
    probe: Option<Probe>,
}

/// The pub/sub channel that this node sends itself something through.
struct Probe {
    /// Chosen so that its slot is the link's.
    tag: Box<str>,
    channel: Vec<u8>,
}

/// Where a session's probes are.
struct Watch {
    /// `None`: the node has no slot, and is only pinged.
    probe: Option<Probe>,
    /// Probes carry the time since then.
    began: Instant,
    judged_at: Instant,
    /// In the last 100 ms.
    is_late: bool,
}

impl Feed {
    /// Subscribes the probe's channel and sends the first probe around.
    pub(crate) async fn begin(
        mut raw: Raw,
        link: &Link,
        live: &Live,
        shared: &Shared,
    ) -> Result<Self, Trouble> {
        let probe = shared.probe_tag(link).map(|tag| Probe::new(tag, shared));
        let Some(probe) = probe else { return Ok(Self { raw, probe: None }) };
        let round = async {
            raw.send(probe.subscribe(link).get_packed_command()).await.map_err(Trouble::Broken)?;
            await_push(&mut raw, &[PushKind::Subscribe, PushKind::SSubscribe]).await?;
            match live.send(&probe.publish(link, live, 0)).await {
                Sent::Answer(_) => {}
                Sent::Refused(error) => return Err(Trouble::Refused(error)),
                Sent::Unknown(trouble) => return Err(trouble),
                Sent::Never(_) => return Err(Trouble::Closed),
            }
            await_push(&mut raw, &[PushKind::Message, PushKind::SMessage]).await
        };
        let late = Trouble::Late { what: "return the first probe", within: FIRST_PROBE_DEADLINE };
        timeout(FIRST_PROBE_DEADLINE, round).await.unwrap_or(Err(late))?;
        Ok(Self { raw, probe: Some(probe) })
    }
}

/// Carries subscribe commands out and messages in, until the session is given up.
pub(crate) async fn run(
    feed: Feed,
    link: &Link,
    live: &Arc<Live>,
    shared: &Shared,
    subscriber: &dyn Subscriber,
) {
    let (mut reader, mut writer) = split(feed.raw);
    let mut session = Running { link, live, shared, subscriber, watch: Watch::new(feed.probe) };
    let mut outgoing = BytesMut::new();
    let mut is_flushed = true;
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probes = FuturesUnordered::new();
    let ended = live.ended.cancelled();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => return,
            value = reader.next() => if session.take_together(value, &mut reader).is_break() { return },
            written = write(&mut writer, &mut outgoing), if !is_flushed => match written {
                Ok(()) => is_flushed = true,
                Err(error) => return live.give_up(Trouble::Broken(error.into())),
            },
            () = live.outbox.filled.notified(), if is_flushed => {
                outgoing = live.outbox.take();
                is_flushed = false;
            }
            _ = ticks.tick() => if probes.is_empty() { probes.push(session.probe()) },
            Some(sent) = probes.next(), if !probes.is_empty() => session.probed(&sent),
            () = sleep_until(session.watch.judged_at) => session.judge(),
        }
    }
}

/// A session while it runs.
struct Running<'a> {
    link: &'a Link,
    live: &'a Arc<Live>,
    shared: &'a Shared,
    subscriber: &'a dyn Subscriber,
    watch: Watch,
}

pub(super) type Reader = FramedRead<ReadHalf<Box<dyn Stream>>, ValueCodec>;

impl Running<'_> {
    fn take_together(
        &mut self,
        first: Option<Result<Value, RedisError>>,
        reader: &mut Reader,
    ) -> ControlFlow<()> {
        let (subscriber, mut first, mut flow) = (self.subscriber, Some(first), ControlFlow::Continue(()));
        subscriber.together(&mut || {
            if let Some(first) = first.take() {
                flow = self.take_all(first, reader);
            }
        });
        flow
    }

    /// Hands over what was read, and what is there to be read, up to a turn's share.
    fn take_all(&mut self, first: Option<Result<Value, RedisError>>, reader: &mut Reader) -> ControlFlow<()> {
        let mut next = Some(first);
        for _ in 0..MESSAGES_A_TURN {
            match next {
                None => return ControlFlow::Continue(()),
                Some(Some(Ok(value))) => self.take(value),
                Some(Some(Err(error))) => {
                    self.live.give_up(Trouble::Broken(error));
                    return ControlFlow::Break(());
                }
                Some(None) => {
                    self.live.give_up(Trouble::Closed);
                    return ControlFlow::Break(());
                }
            }
            next = reader.next().now_or_never();
        }
        // The last one read is still owed.
        match next {
            Some(value) => self.take_last(value),
            None => ControlFlow::Continue(()),
        }
    }

    fn take_last(&mut self, value: Option<Result<Value, RedisError>>) -> ControlFlow<()> {
        let trouble = match value {
            Some(Ok(value)) => {
                self.take(value);
                return ControlFlow::Continue(());
            }
            Some(Err(error)) => Trouble::Broken(error),
            None => Trouble::Closed,
        };
        self.live.give_up(trouble);
        ControlFlow::Break(())
    }

    fn take(&mut self, value: Value) {
        match value {
            Value::Push { kind, data } => self.take_push(kind, data),
            Value::ServerError(error) => self.take_refusal(&error),
            // Nothing else is asked on this connection.
            _ => {}
        }
    }

    fn take_push(&mut self, kind: PushKind, data: Vec<Value>) {
        let mut data = data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else { return };
        let is_probe = self.watch.probe.as_ref().is_some_and(|probe| probe.channel == channel);
        let (id, session) = (self.link.id, self.live.session);
        match kind {
            PushKind::Message | PushKind::SMessage => {
                let Some(Value::BulkString(payload)) = data.next() else { return };
                if is_probe {
                    self.watch.returned(&payload, self.live, self.link);
                } else {
                    self.subscriber.message(id, session, &channel, payload);
                }
            }
            PushKind::Subscribe | PushKind::SSubscribe if !is_probe => {
                self.subscriber.confirmed(id, session, &channel);
            }
            PushKind::Unsubscribe | PushKind::SUnsubscribe => {
                let ending = &self.live.outbox.ending;
                let asked = ending.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                if asked.is_err() {
                    // The server's own decision: the slot moved.
                    self.shared.refresh();
                }
                if !is_probe {
                    self.subscriber.ended(id, session, &channel);
                }
            }
            _ => {}
        }
    }

    /// A subscribe command was refused. Which one is not said; its channels stay unconfirmed.
    fn take_refusal(&self, error: &ServerError) {
        self.link.counts.subscribes_refused_server.add();
        let answer = sentence(error);
        tracing::debug!(server = %self.link.name, %answer, "Redis refused a subscribe command");
        if is_about_slots(error) {
            self.shared.refresh();
        }
    }

    /// Sends the next probe; on a Cluster, to a slot that is still the link's.
    fn probe(&mut self) -> BoxFuture<'static, Sent> {
        let is_outdated = |probe: &Probe| !self.shared.owns(self.link, &probe.tag);
        if self.watch.probe.as_ref().is_none_or(is_outdated) {
            self.watch.probe = self.shared.probe_tag(self.link).map(|tag| Probe::new(tag, self.shared));
            if let Some(probe) = &self.watch.probe {
                // Not counted as refused when it does not fit: the probe will be missed.
                self.live.outbox.push(&probe.subscribe(self.link));
            }
        }
        let sent_us = self.watch.began.elapsed().as_micros() as u64;
        let command = match &self.watch.probe {
            Some(probe) => probe.publish(self.link, self.live, sent_us),
            None => redis::cmd("PING"),
        };
        let live = Arc::clone(self.live);
        async move { live.send(&command).await }.boxed()
    }

    fn probed(&mut self, sent: &Sent) {
        match sent {
            Sent::Answer(_) if self.watch.probe.is_none() => self.watch.is_back(),
            Sent::Refused(error) if is_about_slots(error) => self.shared.refresh(),
            // Whatever else went wrong, the probe will be missed.
            _ => {}
        }
    }

    fn judge(&mut self) {
        if self.watch.is_late {
            self.link.counts.probes_lost.add();
            self.live.give_up(Trouble::ProbeLost(PROBE_DEADLINE.iter().sum()));
        } else {
            self.watch.is_late = true;
            self.watch.judged_at = Instant::now() + PROBE_DEADLINE[1];
        }
    }
}

impl Watch {
    fn new(probe: Option<Probe>) -> Self {
        let began = Instant::now();
        Self { probe, began, judged_at: began + PROBE_DEADLINE[0], is_late: false }
    }

    fn returned(&mut self, payload: &[u8], live: &Live, link: &Link) {
        let Some((session, sent_us)) = payload.split_first_chunk() else { return };
        let Ok(sent_us) = sent_us.try_into().map(u64::from_be_bytes) else { return };
        // A probe of the session before may come late.
        if *session == live.session.0.to_be_bytes() {
            link.counts.set_lag(self.began.elapsed().saturating_sub(Duration::from_micros(sent_us)));
            self.is_back();
        }
    }

    fn is_back(&mut self) {
        self.is_late = false;
        self.judged_at = Instant::now() + PROBE_DEADLINE[0];
    }
}

impl Probe {
    fn new(tag: String, shared: &Shared) -> Self {
        let channel = format!("{}:{{{tag}}}:probe:{}", shared.prefix, shared.instance).into_bytes();
        Self { tag: tag.into(), channel }
    }

    fn subscribe(&self, link: &Link) -> Cmd {
        let mut command = redis::cmd(if link.is_sharded() { "SSUBSCRIBE" } else { "SUBSCRIBE" });
        command.arg(&self.channel);
        command
    }

    fn publish(&self, link: &Link, live: &Live, sent_us: u64) -> Cmd {
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(&live.session.0.to_be_bytes());
        payload[8..].copy_from_slice(&sent_us.to_be_bytes());
        let mut command = redis::cmd(if link.is_sharded() { "SPUBLISH" } else { "PUBLISH" });
        command.arg(&self.channel).arg(&payload[..]);
        command
    }
}

/// Whether the answer says that the node no longer serves the slot.
fn is_about_slots(error: &ServerError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain};
    matches!(error.kind(), Some(Moved | Ask | TryAgain | ClusterDown))
}

async fn await_push(raw: &mut Raw, kinds: &[PushKind]) -> Result<(), Trouble> {
    loop {
        match raw.next().await {
            Some(Ok(Value::Push { kind, .. })) if kinds.contains(&kind) => return Ok(()),
            Some(Ok(Value::ServerError(error))) => return Err(Trouble::Refused(error)),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(Trouble::Broken(error)),
            None => return Err(Trouble::Closed),
        }
    }
}

/// Reading and writing apart, so that neither waits for the other.
pub(super) fn split(raw: Raw) -> (Reader, WriteHalf<Box<dyn Stream>>) {
    let parts = raw.into_parts();
    let (read, write) = tokio::io::split(parts.io);
    let mut reader = FramedRead::new(read, parts.codec);
    *reader.read_buffer_mut() = parts.read_buf;
    (reader, write)
}

/// Cancel-safe: what was written is gone from `outgoing`.
pub(super) async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    outgoing: &mut impl Buf,
) -> std::io::Result<()> {
    while outgoing.has_remaining() {
        writer.write_buf(outgoing).await?;
    }
    writer.flush().await
}
