//! The node registry: records of nodes, and the leases of the instances that hold presence.
//!
//! Both live where the tag `nodes` routes, and end by the server's clock. One script does a whole round
//! (`scripts/announce.lua`): it renews, and answers who lives where that is asked. The stored form of a record is 16 bytes
//! (end of the lease in ms, process; both big-endian) and a JSON object with the fields of [`StoredRecord`]; readers ignore
//! fields that they do not know, so nodes of several versions can be in one registry.
//!
//! An *instance* is a node name, a life of the process, and a number. When its lease may have ended for others (this
//! node was away for longer, or the server lost its data), the process goes on as the next instance: so whoever removes
//! what the old one left cannot remove what the new one writes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::fields::{Malformed, Reader, Writer};
use serde::{Deserialize, Serialize};

use super::{
    contract::Commands,
    counters::Tallies,
    names::{NODES, Prefix},
    scripts::{self, Answer},
};
use crate::{BackplaneError, NodeRecord, REPORT_LEASE};

pub(crate) struct Registry {
    commands: Arc<dyn Commands>,
    prefix: Prefix,
    lease: Duration,
    /// `NODE.LIFE.`, what the names of this process's instances begin with.
    own: Box<str>,
    life: u64,
    state: Mutex<State>,
    /// When it was last asked who lives, and answered. Held by who asks.
    asked_at: tokio::sync::Mutex<Option<Instant>>,
    tallies: Arc<Tallies>,
}

#[derive(Debug)]
struct State {
    /// The number of the current instance.
    number: u32,
    /// When a renewal of the current instance was last sent that succeeded.
    renewed: Option<Instant>,
    /// Instances, and until when they live at least.
    live: HashMap<Box<str>, Instant>,
    /// Changes when the registry loses its data.
    generation: Option<u64>,
    /// Until then, an instance that is not known may live: this node was away, or the registry has lost its data.
    doubt_until: Instant,
    owed: Owed,
}

/// What a round read.
#[derive(Debug)]
struct Round {
    refused: bool,
    /// In order of their names; none where they were not asked for.
    records: Vec<NodeRecord>,
}

/// What rounds found and nobody has acted on yet. It outlives rounds that fail, and those of callers that only read.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    /// This process is another instance now: all its members are to be written again.
    pub(crate) lapsed: bool,
    /// The registry has lost its data.
    pub(crate) has_lost_data: bool,
    /// Instances whose lease ended; it is for this node to remove what they left. One for each that the registry has.
    pub(crate) ended: BTreeSet<Box<str>>,
}

/// A node's record as JSON. Fields may be added; the meaning of these stays.
#[derive(Debug, Serialize, Deserialize)]
struct StoredRecord {
    address: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Box<str>>,
    version: Box<str>,
    connections: u64,
    capacity: u64,
    draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    handover: Option<Box<str>>,
}

impl Registry {
    pub(crate) fn new(
        commands: Arc<dyn Commands>,
        prefix: Prefix,
        node: &str,
        life: u64,
        lease: Duration,
        tallies: Arc<Tallies>,
    ) -> Self {
        let state = State {
            number: 1,
            renewed: None,
            live: HashMap::new(),
            generation: None,
            // Whether the registry has just lost its data is not known yet.
            doubt_until: Instant::now() + lease,
            owed: Owed::default(),
        };
        let own = format!("{node}.{life:016x}.").into();
        Self {
            commands,
            prefix,
            lease,
            own,
            life,
            state: Mutex::new(state),
            asked_at: Default::default(),
            tallies,
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// The instance under which members are written now.
    pub(crate) fn instance(&self) -> String {
        self.with(|state| self.name_of(state.number))
    }

    /// The current instance, and when the renewal of its lease was last sent that succeeded.
    pub(crate) fn renewed(&self) -> (String, Option<Instant>) {
        self.with(|state| (self.name_of(state.number), state.renewed))
    }

    /// What the names of all instances of this process begin with.
    pub(crate) fn process(&self) -> &str {
        &self.own
    }

    /// Whether an instance is one of this process, current or former.
    pub(crate) fn is_own(&self, instance: &str) -> bool {
        instance.starts_with(&*self.own)
    }

    /// Whether a lease is known to hold, or may hold. Of leases that began or were renewed since [`who_lives`](Self::who_lives)
    /// was last asked, it is not known.
    pub(crate) fn may_live(&self, instance: &str) -> bool {
        let now = Instant::now();
        self.with(|state| now < state.doubt_until || state.live.get(instance).is_some_and(|end| now < *end))
    }

    /// Instances that lived when that was last asked.
    pub(crate) fn live(&self) -> Vec<Box<str>> {
        self.with(|state| state.live.keys().cloned().collect())
    }

    /// Whether the lease of the current instance holds for so long that no round is due, and nothing is owed.
    pub(crate) fn is_fresh(&self) -> bool {
        let is_fresh = |at: Instant| at.elapsed() < self.lease / 4;
        self.with(|state| state.renewed.is_some_and(is_fresh) && state.owed.is_empty())
    }

    /// Whether what this node's members are on the server still counts there: not after a lapse that nobody has acted
    /// on, when what the members were told is of the former instance.
    pub(crate) fn is_leased(&self) -> bool {
        let is_leased = |at: Instant| at.elapsed() < self.lease;
        self.with(|state| state.renewed.is_some_and(is_leased) && !state.owed.lapsed)
    }

    /// For another process, which is this one then.
    pub(crate) fn write(&self, out: &mut Writer) {
        self.with(|state| {
            out.u32(state.number);
            out.option(state.renewed, |out, at| out.u64(at.elapsed().as_millis() as u64));
            out.option(state.generation, Writer::u64);
            let Owed { lapsed, has_lost_data, ended } = &state.owed;
            out.bool(*lapsed);
            out.bool(*has_lost_data);
            out.list(ended.iter(), |out, instance| out.text(instance));
        });
    }

    /// Who lives is not known before that is asked.
    pub(crate) fn take_in(&self, fields: &mut Reader<'_>) -> Result<(), Malformed> {
        let number = fields.u32()?;
        let renewed = fields.option(|fields| {
            let ago = Duration::from_millis(fields.u64()?);
            Ok(Instant::now().checked_sub(ago))
        })?;
        let generation = fields.option(Reader::u64)?;
        let (lapsed, has_lost_data) = (fields.bool()?, fields.bool()?);
        let ended = fields.list(|fields| fields.text().map(Box::from))?.into_iter().collect();
        self.with(|state| {
            (state.number, state.renewed, state.generation) = (number, renewed.flatten(), generation);
            state.owed = Owed { lapsed, has_lost_data, ended };
        });
        Ok(())
    }

    /// What the caller has to act on, once.
    pub(crate) fn take_owed(&self) -> Owed {
        self.with(|state| std::mem::take(&mut state.owed))
    }

    /// Renews the lease, and writes or renews a record. What follows from it is owed from then on. True: another living
    /// process has the record's name.
    pub(crate) async fn renew(&self, record: Option<&NodeRecord>) -> Result<bool, BackplaneError> {
        Ok(self.round(record, Asked::Nothing).await?.refused)
    }

    /// Renews the lease, and reads who lives. The server looks through all nodes for it.
    pub(crate) async fn who_lives(&self) -> Result<Vec<NodeRecord>, BackplaneError> {
        Ok(self.round(None, Asked::WhoLives).await?.records)
    }

    /// Has [`may_live`](Self::may_live) know who lives now. One asks for all who want to know at the same time: a herd of
    /// clients reads many rolls at once.
    pub(crate) async fn learn_who_lives(&self) -> Result<(), BackplaneError> {
        let wanted = Instant::now();
        let mut asked_at = self.asked_at.lock().await;
        if asked_at.is_none_or(|at| at < wanted) {
            let sent = Instant::now();
            self.who_lives().await?;
            *asked_at = Some(sent);
        }
        Ok(())
    }

    async fn round(&self, record: Option<&NodeRecord>, asked: Asked) -> Result<Round, BackplaneError> {
        self.with(|state| {
            if state.renewed.is_some_and(|at| at.elapsed() >= self.lease) {
                self.lapse(state);
            }
        });
        loop {
            let sent = Instant::now();
            let number = self.with(|state| state.number);
            let answer = self.ask(&self.name_of(number), record, asked).await;
            let (round, found) = match answer.and_then(|answer| self.read(answer, asked)) {
                Ok(read) => read,
                Err(error) => {
                    self.with(|state| state.doubt_until = Instant::now() + self.lease);
                    return Err(error);
                }
            };
            if self.with(|state| self.note(state, number, found, sent)) {
                return Ok(round);
            }
        }
    }

    /// The answer to a record whose name another living process has.
    pub(crate) fn refusal(&self, name: &str) -> BackplaneError {
        let why = format!(
            "another living node is named {name}: give each node a name of its own (--node), or wait {} s if this \
             one was restarted",
            self.lease.as_secs()
        );
        BackplaneError::Refused(why.into())
    }

    /// Takes this process's record of that name away.
    pub(crate) async fn retire(&self, name: &str) -> Result<(), BackplaneError> {
        let nodes = self.prefix.nodes();
        let args = [name.as_bytes(), &self.life.to_be_bytes()];
        scripts::RETIRE.call(&*self.commands, NODES, &[nodes.as_bytes()], &args).await?;
        Ok(())
    }

    /// Keeps what a node says to those who watch.
    pub(crate) async fn report(&self, node: &str, report: String) -> Result<(), BackplaneError> {
        let mut command = redis::cmd("SET");
        command.arg(self.prefix.report(node)).arg(report).arg("PX").arg(REPORT_LEASE.as_millis() as u64);
        self.commands.call(NODES, command).await?;
        Ok(())
    }

    pub(crate) async fn reports(&self, nodes: &[Box<str>]) -> Result<Vec<Option<Vec<u8>>>, BackplaneError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        command.arg(nodes.iter().map(|node| self.prefix.report(node)).collect::<Vec<_>>());
        let answer = self.commands.call(NODES, command).await?;
        let not_ours = |_| BackplaneError::Refused("the keys of reports hold something else".into());
        redis::FromRedisValue::from_redis_value(answer).map_err(not_ours)
    }

    /// Forgets an instance after what it left was removed.
    pub(crate) async fn forget(&self, instance: &str) -> Result<(), BackplaneError> {
        let mut command = redis::cmd("HDEL");
        command.arg(self.prefix.instances()).arg(instance);
        self.commands.call(NODES, command).await?;
        self.tallies.instances_removed.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn ask(
        &self,
        instance: &str,
        record: Option<&NodeRecord>,
        asked: Asked,
    ) -> Result<Answer, BackplaneError> {
        let keys = [self.prefix.nodes(), self.prefix.instances(), self.prefix.nodes_swept()];
        let lease = self.lease.as_millis().to_string();
        let name = record.map_or("", |record| &record.name);
        let stored = record.map(encode).transpose()?.unwrap_or_default();
        let keys = keys.each_ref().map(|key| key.as_bytes());
        let life = self.life.to_be_bytes();
        let generation = scripts::random()?.to_be_bytes();
        let who_lives: &[u8] = if asked == Asked::WhoLives { b"1" } else { b"" };
        let head = [lease.as_bytes(), instance.as_bytes(), name.as_bytes()];
        let args = [head[0], head[1], head[2], &life, &stored, &generation, who_lives];
        scripts::ANNOUNCE.call(&*self.commands, NODES, &keys, &args).await
    }

    fn read(&self, mut answer: Answer, asked: Asked) -> Result<(Round, Found), BackplaneError> {
        let refused = answer.flag()?;
        let known = match answer.number()? {
            0 => Known::New,
            1 => Known::Renewed,
            _ => Known::Over,
        };
        let generation = answer.word()?;
        let (mut ended, mut list) = (Vec::new(), answer.list()?);
        while !list.is_empty() {
            ended.push(list.text()?);
        }
        let (mut records, mut list) = (Vec::new(), answer.list()?);
        while !list.is_empty() {
            let name = list.text()?;
            match decode(name, &list.bytes()?) {
                Ok(record) => records.push(record),
                Err(_) => {
                    self.tallies.records_undecodable.fetch_add(1, Relaxed);
                }
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut live, mut list) = (Vec::new(), answer.list()?);
        while !list.is_empty() {
            live.push((list.text()?, Duration::from_millis(list.number()?)));
        }
        let live = (asked == Asked::WhoLives).then_some(live);
        Ok((Round { refused, records }, Found { known, generation, ended, live }))
    }

    /// Takes a round's answer in. False: the lease is over, and the next instance has to ask.
    fn note(&self, state: &mut State, number: u32, found: Found, sent: Instant) -> bool {
        let Found { known, generation, ended, live } = found;
        let before = state.generation.replace(generation);
        state.owed.has_lost_data |= before.is_some_and(|before| before != generation);
        // The registry names them once in a lease, to one node.
        state.owed.ended.extend(ended);
        if let Some(live) = live {
            // Counted from when it was asked, so that no lease is thought to hold for longer than it does.
            state.live = live.into_iter().map(|(instance, left)| (instance, sent + left)).collect();
        }
        if state.number != number {
            // Another round was faster, and found the lease over.
            return false;
        }
        let has_lost_data = known == Known::New && state.renewed.is_some();
        if has_lost_data {
            state.doubt_until = Instant::now() + self.lease;
        }
        if has_lost_data || known == Known::Over {
            self.lapse(state);
            return false;
        }
        state.renewed = Some(sent);
        true
    }

    fn lapse(&self, state: &mut State) {
        state.number += 1;
        state.renewed = None;
        state.owed.lapsed = true;
        self.tallies.leases_lapsed.fetch_add(1, Relaxed);
    }

    fn name_of(&self, number: u32) -> String {
        format!("{}{number}", self.own)
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Owed {
    fn is_empty(&self) -> bool {
        !self.lapsed && !self.has_lost_data && self.ended.is_empty()
    }
}

/// What a round asks beside the renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    WhoLives,
}

/// What an answer says beside the records.
struct Found {
    known: Known,
    generation: u64,
    ended: Vec<Box<str>>,
    /// Instances, and how long their leases hold, where that was asked.
    live: Option<Vec<(Box<str>, Duration)>>,
}

/// What the registry knew of the instance that was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    New,
    Renewed,
    Over,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("own", &self.own).field("state", &self.state).finish_non_exhaustive()
    }
}

fn encode(record: &NodeRecord) -> Result<Vec<u8>, BackplaneError> {
    let NodeRecord { name: _, address, zone, version, connections, capacity, draining, handover } =
        record.clone();
    let stored = StoredRecord { address, zone, version, connections, capacity, draining, handover };
    serde_json::to_vec(&stored).map_err(|error| BackplaneError::Refused(error.to_string().into()))
}

/// The record that is stored under a name, if its end counts.
pub(crate) fn read(name: Vec<u8>, held: &[u8], counts: impl Fn(u64) -> bool) -> Option<NodeRecord> {
    let (end, stored) = held.split_first_chunk()?;
    let name = String::from_utf8(name).ok()?.into();
    let record = decode(name, stored.get(8..)?).ok()?;
    counts(u64::from_be_bytes(*end)).then_some(record)
}

fn decode(name: Box<str>, bytes: &[u8]) -> serde_json::Result<NodeRecord> {
    let StoredRecord { address, zone, version, connections, capacity, draining, handover } =
        serde_json::from_slice(bytes)?;
    Ok(NodeRecord { name, address, zone, version, connections, capacity, draining, handover })
}
