//! The subscribed connection of a session: what arrives, what is asked of it, and the probe that shows that both
//! connections carry.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::{PushKind, ServerError, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::context::TokioContext;

use super::around::Around;
use super::dial::{Connection, next, send};
use super::driver::{Side, Signals, drive};
use super::halt::Part;
use super::link::Link;
use super::live::{Live, Sent};
use super::pipe::Answers;
use super::probe::Probe;
use super::silence::Silence;
use super::wire::{Frame, Inbound};
use crate::redis::contract::Subscriber;
use crate::redis::error::{Trouble, sentence};

/// How often a probe is sent.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A server that hangs is noticed so long after the last thing that it sent, at the latest the probe of the second before.
const DEADLINE: Duration = Duration::from_millis(2_500);

/// When another connection of the session broke: for what has arrived on this one to be read, up to its end.
const REST_DEADLINE: Duration = Duration::from_millis(100);

/// The first probe goes through both connections before the link is up.
const FIRST_PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Subscribes the probe's channel and sends the first probe around. A node without slots has none.
pub(super) async fn begin(
    connection: &mut Connection,
    link: &Link,
    live: &Live,
    probe: Option<&Probe>,
) -> Result<(), Trouble> {
    let Some(probe) = probe else { return Ok(()) };
    let round = async {
        send(connection, &probe.subscribe(link)).await?;
        until_push(connection, &[PushKind::Subscribe, PushKind::SSubscribe]).await?;
        match live.send(&probe.publish(link, live, 0)).await {
            Sent::Answer(_) => {}
            Sent::Refused(error) => return Err(Trouble::Refused(error)),
            Sent::Unknown(trouble) | Sent::Never(trouble) => return Err(trouble),
            Sent::NoRoom => return Err(Trouble::Closed),
        }
        until_push(connection, &[PushKind::Message, PushKind::SMessage]).await
    };
    let late = Trouble::Late { what: "return the first probe", within: FIRST_PROBE_DEADLINE };
    timeout(FIRST_PROBE_DEADLINE, round).await.unwrap_or(Err(late))
}

/// Of which link and session a feed is, and who is told.
#[derive(Clone)]
pub(super) struct Of {
    pub(super) link: Arc<Link>,
    pub(super) live: Arc<Live>,
    pub(super) around: Arc<dyn Around>,
    pub(super) subscriber: Arc<dyn Subscriber>,
}

/// Carries subscribe commands out and messages in, until the session is given up: where publications are read on this
/// node, or here.
pub(super) async fn run(connection: Connection, probe: Option<Probe>, of: Of) {
    let (around, live, number) = (Arc::clone(&of.around), Arc::clone(&of.live), of.link.id.0 as usize);
    let Some(host) = around.host().filter(|_| !around.dialer().is_tls()) else {
        return carry(connection, probe, of).await;
    };
    let Connection { stream, inbound } = connection;
    let socket = match stream.into_socket() {
        Ok(socket) => socket,
        Err(error) => return live.give_up(Trouble::Broken(error.into())),
    };
    let (ends, ended) = oneshot::channel::<()>();
    let here = Handle::current();
    let work = Box::new(|socket| {
        let connection = Connection { stream: Box::new(socket), inbound };
        let carried = async move {
            carry(connection, probe, of).await;
            drop(ends);
        };
        TokioContext::new(carried, here).boxed()
    });
    host.begin(number, socket, work);
    // Nothing is sent: it ends with the task.
    drop(ended.await);
    // Where nobody runs tasks any more, it was dropped.
    live.give_up(Trouble::Closed);
}

async fn carry(connection: Connection, probe: Option<Probe>, of: Of) {
    let Of { link, live, around, subscriber } = &of;
    let now = Instant::now();
    let mut feed = Feed {
        link,
        live,
        around: &**around,
        subscriber: &**subscriber,
        probe,
        probed: None,
        probe_at: now,
        heard: now,
        silence: Silence::begin(DEADLINE, now),
    };
    let signals = Signals { filled: &live.outbox.filled, halt: &live.halt, part: Part::Feed };
    let driving = drive(connection, signals, &mut feed);
    tokio::pin!(driving);
    tokio::select! {
        trouble = &mut driving => live.give_up(trouble),
        () = live.ended.cancelled() => {
            // A server that died has sent what it accepted before: another may not have it, and who has it here will see that.
            if matches!(live.why(), Some(Trouble::Closed | Trouble::Broken(_))) {
                drop(timeout(REST_DEADLINE, driving).await);
            }
        }
    }
}

/// A session while it runs.
struct Feed<'a> {
    link: &'a Link,
    live: &'a Arc<Live>,
    around: &'a dyn Around,
    subscriber: &'a dyn Subscriber,
    probe: Option<Probe>,
    /// What becomes of the last one.
    probed: Option<oneshot::Receiver<Answers>>,
    probe_at: Instant,
    /// When something last arrived.
    heard: Instant,
    silence: Silence,
}

impl Side for Feed<'_> {
    fn outgoing(&mut self, spent: Vec<u8>) -> Vec<u8> {
        self.live.outbox.take(spent)
    }

    fn arrived(&mut self, inbound: &mut Inbound) -> Result<(), Trouble> {
        self.heard = Instant::now();
        let (subscriber, mut outcome) = (self.subscriber, Ok(()));
        subscriber.together(&mut || outcome = self.take_all(inbound));
        outcome
    }

    fn is_at_rest(&self) -> bool {
        true
    }

    fn probe(&self) -> Option<Box<str>> {
        self.probe.as_ref().map(|probe| probe.tag.clone())
    }

    fn due_at(&self) -> Instant {
        self.probe_at.min(self.silence.judged_at())
    }

    fn due(&mut self, now: Instant) -> Result<(), Trouble> {
        let late = now.saturating_duration_since(self.due_at());
        if now >= self.probe_at {
            self.probe_at = now + PROBE_INTERVAL;
            self.look_at_last_probe();
            self.send_probe();
        }
        if self.silence.judge(now, self.heard, late) {
            self.link.counts.probes_lost.add();
            return Err(Trouble::Silent(self.silence.deadline()));
        }
        Ok(())
    }
}

impl Feed<'_> {
    fn take_all(&mut self, inbound: &mut Inbound) -> Result<(), Trouble> {
        loop {
            let taken = inbound.take(|frame| match frame {
                Frame::Message { channel, payload } => self.take_message(channel, payload),
                Frame::Value(value) => self.take(value.map_err(Trouble::Broken)?),
            });
            match taken? {
                Some(taken) => taken?,
                None => return Ok(()),
            }
        }
    }

    fn take_message(&mut self, channel: &[u8], payload: &[u8]) -> Result<(), Trouble> {
        if self.is_probe(channel) {
            self.probe_returned(payload);
        } else {
            self.subscriber.message(self.link.id, self.live.session, channel, payload);
        }
        Ok(())
    }

    fn take(&mut self, value: Value) -> Result<(), Trouble> {
        match value {
            Value::Push { kind, data } => self.take_push(&kind, data),
            Value::ServerError(error) => self.take_refusal(&error),
            // The answer to a PING.
            _ => {}
        }
        Ok(())
    }

    fn take_push(&mut self, kind: &PushKind, data: Vec<Value>) {
        let Some(Value::BulkString(channel)) = data.into_iter().next() else { return };
        let is_probe = self.is_probe(&channel);
        let (id, session) = (self.link.id, self.live.session);
        match kind {
            PushKind::Subscribe | PushKind::SSubscribe if !is_probe => {
                self.subscriber.confirmed(id, session, &channel);
            }
            PushKind::Unsubscribe | PushKind::SUnsubscribe => {
                let ending = &self.live.outbox.ending;
                let asked = ending.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                if asked.is_err() {
                    // The server's own decision: the slot moved.
                    self.around.refresh();
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
        self.subscriber.refused(self.link.id, self.live.session);
        let answer = sentence(error);
        tracing::debug!(server = %self.link.name, %answer, "Redis refused a subscribe command");
        if is_about_slots(error) {
            self.around.refresh();
        }
    }

    fn is_probe(&self, channel: &[u8]) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.channel == channel)
    }

    fn probe_returned(&self, payload: &[u8]) {
        let Some((session, sent_us)) = payload.split_first_chunk() else { return };
        let Ok(sent_us) = sent_us.try_into().map(u64::from_be_bytes) else { return };
        // A probe of the session before may come late.
        if *session == self.live.session.0.to_be_bytes() {
            self.link
                .counts
                .set_lag(self.live.began.elapsed().saturating_sub(Duration::from_micros(sent_us)));
        }
    }

    /// Sends the next probe; on a Cluster, to a slot that is still the link's. A write goes with it: a replica takes what
    /// is published, and only refuses what is written.
    fn send_probe(&mut self) {
        let is_outdated = |probe: &Probe| !self.around.owns(self.link.id, &probe.tag);
        if self.probe.as_ref().is_none_or(is_outdated) {
            self.probe = self.around.probe(self.link.id);
            if let Some(probe) = &self.probe {
                // Not counted as refused when it does not fit: the probe will be missed.
                self.live.outbox.push(&probe.subscribe(self.link));
            }
        }
        let Some(probe) = &self.probe else {
            self.live.outbox.push(&redis::cmd("PING"));
            return;
        };
        let sent_us = self.live.began.elapsed().as_micros() as u64;
        let commands = [&probe.publish(self.link, self.live, sent_us), &probe.write()];
        self.probed = self.live.post(&commands);
    }

    fn look_at_last_probe(&mut self) {
        let Some(mut probed) = self.probed.take() else { return };
        let Ok(answers) = probed.try_recv() else {
            // Late. The next one is sent all the same: it shows when the server is back.
            return;
        };
        let mut sent = answers.values.into_iter().map(Sent::of);
        if let Some(Sent::Refused(error)) = sent.next()
            && is_about_slots(&error)
        {
            self.around.refresh();
        }
        match sent.next() {
            Some(Sent::Refused(error)) if error.kind() == Some(ServerErrorKind::ReadOnly) => {
                self.live.give_up(Trouble::Replica);
            }
            Some(Sent::Refused(error)) => self.link.note_refusal(&error),
            Some(Sent::Answer(_)) => self.link.note_write(),
            _ => {}
        }
    }
}

/// Whether the answer says that the node no longer serves the slot.
fn is_about_slots(error: &ServerError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain};
    matches!(error.kind(), Some(Moved | Ask | TryAgain | ClusterDown))
}

async fn until_push(connection: &mut Connection, kinds: &[PushKind]) -> Result<(), Trouble> {
    loop {
        match next(connection).await? {
            Value::Push { kind, .. } if kinds.contains(&kind) => return Ok(()),
            Value::ServerError(error) => return Err(Trouble::Refused(error)),
            _ => {}
        }
    }
}
