//! The new process: it takes the place of the one that started it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use bytes::Bytes;
use tidegate_reactor::Connections;
use tidegate_wire::{
    fields::{Malformed, Reader},
    succession::{REFUSED_MAX, Step},
};

use super::{
    FORM, Talk, TalkError, read_memory_file,
    shards::ask,
    upgradable::{ShardMailbox, Upgradable, UpgradeError},
};

/// What was given first: where to listen, and who to be.
#[derive(Debug)]
pub struct Predecessor {
    pub node: Box<str>,
    pub life: u64,
    shards: u32,
    pub public: TcpListener,
    pub internal: TcpListener,
    talk: Talk,
}

/// The connections of a process that has given them all away. Their records are understood, and not yet gone on with: what a
/// shard makes of them it makes one by one, and nothing is left over of it.
#[derive(Debug)]
pub struct Taken(Vec<Shard>);

/// What one shard had.
#[derive(Debug)]
struct Shard {
    newest_generation: u32,
    /// As it wrote it.
    state: Bytes,
    /// Of its records, in their order.
    sockets: Vec<TcpStream>,
    /// Places of records that are not understood: their connections stay.
    refused: BTreeSet<usize>,
}

/// A record, and how many sockets are its.
type Record<'a> = (usize, &'a [u8]);

/// The other process says what it has to say at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// It may be a while until it gives everything away, but not for ever.
pub const STATE_PATIENCE: Duration = Duration::from_secs(60);

impl Predecessor {
    /// Hears who to be, from the process that started this one.
    ///
    /// # Errors
    /// [`UpgradeError`], as all the others: the standard input leads to no such process, or that one says something else.
    pub fn receive() -> Result<Self, UpgradeError> {
        let talk = Talk::inherited()?;
        let listeners = |step: &Step| if matches!(step, Step::Listeners { .. }) { 2 } else { 0 };
        let (step, sockets) = talk.hear(PATIENCE, listeners)?;
        let (Step::Listeners { node, life, shards }, Ok([public, internal])) =
            (step, <[OwnedFd; 2]>::try_from(sockets))
        else {
            return Err(UpgradeError::Unexpected);
        };
        Ok(Self { node, life, shards, public: public.into(), internal: internal.into(), talk })
    }

    /// Both ports once more, if they are those that a configuration names for so many shards.
    pub fn ports(
        &self,
        listen: SocketAddr,
        internal: SocketAddr,
        shards: usize,
    ) -> Result<(TcpListener, TcpListener), UpgradeError> {
        let listens = |listener: &TcpListener, wanted: SocketAddr, key| {
            let has = listener.local_addr()?;
            match wanted == has || (wanted.port() == 0 && wanted.ip() == has.ip()) {
                true => Ok(listener.try_clone()?),
                false => Err(UpgradeError::Address { key, has, wanted }),
            }
        };
        let ports =
            (listens(&self.public, listen, "listen")?, listens(&self.internal, internal, "internal")?);
        let has = shards as u32;
        if has != self.shards {
            return Err(UpgradeError::Shards { had: self.shards, has });
        }
        Ok(ports)
    }

    /// Says why it is not to be, so that the other process goes on.
    pub fn refuse(&self, why: &dyn fmt::Display) {
        if let Err(error) = self.talk.say(&Step::Refused { why: why.to_string().into() }, &[]) {
            tracing::warn!(%error, "the process before was not told why this one does not take over");
        }
    }

    /// Says that it is ready, and takes what it is given: when this returns, everything is this process's. `understand` reads
    /// the record of each connection, with the number of its sockets; one that it does not understand stays. `rest` takes what
    /// goes along beside the connections, with the sockets that belong to it.
    pub fn take(
        &self,
        rest: impl FnOnce(&[u8], Vec<TcpStream>) -> Result<(), UpgradeError>,
        understand: impl Fn(&[u8], usize) -> Result<(), Malformed> + Sync,
    ) -> Result<Taken, UpgradeError> {
        self.talk.say(&Step::Ready, &[])?;
        let state = |step: &Step| usize::from(matches!(step, Step::State { .. }));
        let (Step::State { sockets }, file) = self.talk.hear(STATE_PATIENCE, state)? else {
            return Err(UpgradeError::Unexpected);
        };
        let file = file.into_iter().next().ok_or(UpgradeError::Unexpected)?;
        let state = read_memory_file(file)?;
        let receive = || self.take_sockets(sockets as usize);
        let (taken, refused) = Taken::read(state.into(), receive, rest, understand)?;
        if refused.len() > REFUSED_MAX {
            let why = "the connections are written in a form that this version does not read";
            return Err(UpgradeError::Refused(why.into()));
        }
        self.talk.say(&Step::Taken { refused }, &[])?;
        match self.talk.hear(STATE_PATIENCE, |_| 0) {
            Ok((Step::Go, _)) => Ok(taken),
            // A process that goes on itself ends this one first: this one has died.
            Err(TalkError::Ended) => {
                tracing::error!("the process before has died: this one goes on in its place");
                Ok(taken)
            }
            Ok(_) => Err(UpgradeError::Unexpected),
            Err(error) => Err(error.into()),
        }
    }

    fn take_sockets(&self, number: usize) -> Result<Vec<TcpStream>, UpgradeError> {
        let of = |step: &Step| if let Step::Sockets { number } = step { *number as usize } else { 0 };
        let mut sockets = Vec::new();
        while sockets.len() < number {
            match self.talk.hear(PATIENCE, of)? {
                (Step::Sockets { .. }, more) => sockets.extend(more.into_iter().map(TcpStream::from)),
                _ => return Err(UpgradeError::Unexpected),
            }
        }
        Ok(sockets)
    }

    /// Says that it serves. What the other process says after that is heard over what is given back, if it can be.
    pub fn serve(self) -> Option<Talk> {
        match self.talk.say(&Step::Serving, &[]) {
            Ok(()) => Some(self.talk),
            Err(error) => {
                tracing::warn!(%error, "the process before does not know that this one serves");
                None
            }
        }
    }
}

impl Taken {
    /// Reads what was written, and the places of records that are not understood.
    fn read(
        state: Bytes,
        receive: impl FnOnce() -> Result<Vec<TcpStream>, UpgradeError>,
        rest: impl FnOnce(&[u8], Vec<TcpStream>) -> Result<(), UpgradeError>,
        understand: impl Fn(&[u8], usize) -> Result<(), Malformed> + Sync,
    ) -> Result<(Self, Vec<u32>), UpgradeError> {
        let mut fields = Reader::new(&state);
        if fields.u8()? != FORM {
            return Err(Malformed.into());
        }
        let parts = fields.list(Reader::bytes)?;
        let beside = fields.bytes()?;
        fields.end()?;
        let written = parts.iter().map(|part| read_shard(part)).collect::<Result<Vec<_>, _>>()?;
        let look = |records: &[Record<'_>]| -> BTreeSet<usize> {
            let is_refused =
                |&(_, &(sockets, record)): &(usize, &Record<'_>)| understand(record, sockets).is_err();
            records.iter().enumerate().filter(is_refused).map(|(at, _)| at).collect()
        };
        // Clients wait for this: what each shard wrote is read beside what the others did, and beside the sockets.
        let (sockets, looked) = thread::scope(|scope| {
            let begun: Vec<_> = written.iter().map(|(_, records)| scope.spawn(|| look(records))).collect();
            let sockets = receive();
            let looked: Vec<_> = begun.into_iter().map(thread::ScopedJoinHandle::join).collect();
            (sockets, looked)
        });
        let mut sockets = sockets?.into_iter();
        let (mut shards, mut refused, mut first) = (Vec::new(), Vec::new(), 0);
        for ((part, (newest_generation, records)), looked) in parts.into_iter().zip(&written).zip(looked) {
            let number = records.iter().map(|&(sockets, _)| sockets).sum();
            let own: Vec<TcpStream> = sockets.by_ref().take(number).collect();
            if own.len() < number {
                return Err(Malformed.into());
            }
            let stay = looked.map_err(|_panic| Malformed)?;
            refused.extend(stay.iter().map(|at| (first + at) as u32));
            first += records.len();
            let (newest_generation, state) = (*newest_generation, state.slice_ref(part));
            shards.push(Shard { newest_generation, state, sockets: own, refused: stay });
        }
        rest(beside, sockets.collect())?;
        Ok((Self(shards), refused))
    }

    /// Has the shards go on with the connections, each with `go_on`. When this returns all of them are there, and nothing was
    /// read or delivered.
    pub fn settle<U: Upgradable>(
        self,
        mailboxes: &[ShardMailbox<U>],
        go_on: impl FnMut(
            &mut U::Shard,
            &mut Connections<U::Connection>,
            &[u8],
            Vec<TcpStream>,
        ) -> Result<(), Malformed>
        + Clone
        + Send
        + 'static,
    ) -> Result<(), UpgradeError> {
        let mut begun = Vec::new();
        for (shard, mailbox) in self.0.into_iter().zip(mailboxes) {
            let mut go_on = go_on.clone();
            begun.push(ask::<U, Result<usize, Malformed>>(mailbox, move |part, connections| {
                connections.hold_reads(true);
                connections.number_after(shard.newest_generation);
                let (_, records) = read_shard(&shard.state)?;
                let (mut sockets, mut lost) = (shard.sockets.into_iter(), 0);
                for (at, (number, record)) in records.into_iter().enumerate() {
                    let own = sockets.by_ref().take(number).collect();
                    if !shard.refused.contains(&at) {
                        lost += usize::from(go_on(part, connections, record, own).is_err());
                    }
                }
                Ok(lost)
            }));
        }
        drop(go_on);
        for settled in begun {
            let lost = settled.recv_timeout(PATIENCE).map_err(|_| UpgradeError::Shard)??;
            if lost > 0 {
                tracing::error!(
                    lost,
                    "connections were understood and could not be gone on with: they are closed"
                );
            }
        }
        Ok(())
    }
}

fn read_shard(state: &[u8]) -> Result<(u32, Vec<Record<'_>>), Malformed> {
    let mut fields = Reader::new(state);
    let newest_generation = fields.u32()?;
    let records = fields.list(|fields| Ok((usize::from(fields.u8()?), fields.bytes()?)))?;
    fields.end()?;
    Ok((newest_generation, records))
}
