//! The new process: it takes the place of the one that started it.

use std::{
    fmt,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

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

/// The connections of a process, read and not yet served: each `R` is made of a record and its sockets.
#[derive(Debug)]
pub struct Taken<R> {
    shards: Vec<Shard<R>>,
}

#[derive(Debug)]
struct Shard<R> {
    newest_generation: u32,
    read: Vec<R>,
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

    /// Says that it is ready, and takes what it is given: when this returns, everything is this process's. `rest` takes what
    /// goes along beside the connections, with the sockets that belong to it, before `parse` reads them one by one; one that
    /// it does not understand stays.
    pub fn take<R: Send>(
        &self,
        rest: impl FnOnce(&[u8], Vec<TcpStream>) -> Result<(), UpgradeError>,
        parse: impl Fn(&[u8], Vec<TcpStream>) -> Result<R, Malformed> + Sync,
    ) -> Result<Taken<R>, UpgradeError> {
        self.talk.say(&Step::Ready, &[])?;
        let state = |step: &Step| usize::from(matches!(step, Step::State { .. }));
        let (Step::State { sockets }, file) = self.talk.hear(STATE_PATIENCE, state)? else {
            return Err(UpgradeError::Unexpected);
        };
        let file = file.into_iter().next().ok_or(UpgradeError::Unexpected)?;
        let state = read_memory_file(file)?;
        let sockets = self.take_sockets(sockets as usize)?;
        let (taken, refused) = Taken::read(&state, sockets, rest, parse)?;
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

impl<R: Send> Taken<R> {
    /// Reads what was written, and the places of records that are not understood.
    fn read(
        state: &[u8],
        sockets: Vec<TcpStream>,
        rest: impl FnOnce(&[u8], Vec<TcpStream>) -> Result<(), UpgradeError>,
        parse: impl Fn(&[u8], Vec<TcpStream>) -> Result<R, Malformed> + Sync,
    ) -> Result<(Self, Vec<u32>), UpgradeError> {
        let mut fields = Reader::new(state);
        if fields.u8()? != FORM {
            return Err(Malformed.into());
        }
        let written = fields.list(|fields| fields.bytes().and_then(read_shard))?;
        let beside = fields.bytes()?;
        fields.end()?;
        let mut sockets = sockets.into_iter();
        let mut dealt = Vec::with_capacity(written.len());
        for (newest_generation, records) in written {
            let mut records_with = Vec::with_capacity(records.len());
            for (number, record) in records {
                let own: Vec<TcpStream> = sockets.by_ref().take(number).collect();
                if own.len() < number {
                    return Err(Malformed.into());
                }
                records_with.push((record, own));
            }
            dealt.push((newest_generation, records_with));
        }
        rest(beside, sockets.collect())?;
        // Clients wait for this: what each shard wrote is read beside what the others did.
        let parse = |(record, sockets): (&[u8], Vec<TcpStream>)| parse(record, sockets);
        let read = thread::scope(|scope| {
            let begin = |(newest_generation, records): (u32, Vec<(_, _)>)| {
                let read = scope.spawn(move || records.into_iter().map(parse).collect::<Vec<_>>());
                (newest_generation, read)
            };
            let begun: Vec<_> = dealt.into_iter().map(begin).collect();
            let end = |(newest, reading): (u32, thread::ScopedJoinHandle<'_, _>)| match reading.join() {
                Ok(read) => Ok((newest, read)),
                Err(_panic) => Err(Malformed.into()),
            };
            begun
                .into_iter()
                .map(end)
                .collect::<Result<Vec<(u32, Vec<Result<R, Malformed>>)>, UpgradeError>>()
        })?;
        let (mut shards, mut refused, mut at) = (Vec::new(), Vec::new(), 0);
        for (newest_generation, records) in read {
            let mut understood = Vec::with_capacity(records.len());
            for record in records {
                match record {
                    Ok(record) => understood.push(record),
                    Err(Malformed) => refused.push(at),
                }
                at += 1;
            }
            shards.push(Shard { newest_generation, read: understood });
        }
        Ok((Self { shards }, refused))
    }

    /// Has the shards go on with the connections, each with `go_on`. When this returns all of them are there, and nothing was
    /// read or delivered.
    pub fn settle<U: Upgradable>(
        self,
        mailboxes: &[ShardMailbox<U>],
        go_on: impl FnMut(&mut U::Shard, &mut Connections<U::Connection>, R) + Clone + Send + 'static,
    ) -> Result<(), UpgradeError>
    where
        R: 'static,
    {
        let mut begun = Vec::new();
        for (shard, mailbox) in self.shards.into_iter().zip(mailboxes) {
            let mut go_on = go_on.clone();
            begun.push(ask::<U, ()>(mailbox, move |part, connections| {
                connections.hold_reads(true);
                connections.number_after(shard.newest_generation);
                for read in shard.read {
                    go_on(part, connections, read);
                }
            }));
        }
        drop(go_on);
        begun.iter().try_for_each(|done| done.recv_timeout(PATIENCE)).map_err(|_| UpgradeError::Shard)
    }
}

fn read_shard(state: &[u8]) -> Result<(u32, Vec<Record<'_>>), Malformed> {
    let mut fields = Reader::new(state);
    let newest_generation = fields.u32()?;
    let records = fields.list(|fields| Ok((usize::from(fields.u8()?), fields.bytes()?)))?;
    fields.end()?;
    Ok((newest_generation, records))
}
