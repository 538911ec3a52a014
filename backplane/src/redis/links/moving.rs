//! Sessions that another process goes on with: their sockets, what was received of them, and which link each is of.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::fields::{Malformed, Reader, Writer};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::dial::{Connection, stream_of};
use super::halt::Stood;
use super::link::{Link, Place};
use super::links::Links;
use super::live::Live;
use super::map::{Map, Spread};
use super::probe::Probe;
use super::session::{Connections, Going, Made};
use crate::redis::contract::{LinkId, Session};
use crate::redis::error::{HandOnError, TakeInError};
use crate::redis::url::{Server, TopologyKind};

/// A session whose connections stand still.
pub(crate) struct Halted {
    link: Arc<Link>,
    live: Arc<Live>,
    stood: Vec<Arc<Stood>>,
}

/// A link with its session.
struct Up {
    link: Arc<Link>,
    live: Arc<Live>,
}

impl Links {
    /// Whether all servers are there, and their connections can be given away.
    pub(crate) fn can_go_on(&self) -> Result<(), HandOnError> {
        if self.shared.dialer.is_tls() {
            return Err(HandOnError::Tls);
        }
        self.lives().map(drop)
    }

    /// Whether nothing waits for an answer, or to be sent.
    pub(crate) fn is_quiet(&self) -> bool {
        let links = &self.shared.map().links;
        links.iter().filter_map(|link| link.live()).all(|live| live.waiting() == 0 && live.outbox.is_empty())
    }

    /// Has all connections stand still, each when what it was asked is answered.
    ///
    /// # Errors
    /// [`HandOnError`]: they are to be let go on.
    pub(crate) async fn halt(&self) -> Result<Vec<Halted>, HandOnError> {
        let stand = |Up { link, live }| async move {
            live.halt.begin();
            live.outbox.filled.notify_one();
            live.pipes().for_each(|pipe| pipe.wake());
            let stood = live.halt.all_stood(1 + live.pipes().count()).await;
            Halted { link, live, stood }
        };
        Ok(join_all(self.lives()?.into_iter().map(stand)).await)
    }

    /// All connections go on.
    pub(crate) fn end_halt(&self) {
        let links = &self.shared.map().links;
        links.iter().filter_map(|link| link.live()).for_each(|live| live.halt.end());
    }

    /// Whether these are the sessions of all links, and stand still.
    pub(crate) fn stands(&self, halted: &[Halted]) -> Result<(), HandOnError> {
        let links = &self.shared.map().links;
        let are_same =
            halted.len() == links.len() && halted.iter().zip(links).all(|(halted, link)| halted.is_of(link));
        if are_same { Ok(()) } else { Err(HandOnError::Changed) }
    }

    /// Writes what stands still.
    pub(crate) fn write(&self, halted: &[Halted], out: &mut Writer) {
        let shared = &self.shared;
        out.u8(shared.replicas);
        out.u64(shared.sessions.load(Ordering::Relaxed));
        out.u32(shared.link_ids.load(Ordering::Relaxed));
        out.list(halted.iter(), |out, Halted { link, live, stood }| {
            out.u32(link.id.0);
            out.text(&link.name);
            out.text(&live.server.host);
            out.u32(live.server.port.into());
            out.u64(live.session.0);
            out.u64(live.began.elapsed().as_micros() as u64);
            out.option(stood.iter().find_map(|stood| stood.probe.as_deref()), Writer::text);
            out.list(stood.iter(), |out, stood| out.bytes(&stood.received));
        });
        out.option(shared.map().spread.ranges(), |out, ranges| {
            out.list(ranges.into_iter(), |out, (first, last, position)| {
                out.u32(first.into());
                out.u32(last.into());
                out.u32(position as u32);
            });
        });
    }

    /// Takes sessions in, which [`go_on`](Self::go_on) begins to use. To be called on a Tokio runtime.
    pub(crate) fn take_in(&self, fields: &mut Reader<'_>, sockets: Vec<OwnedFd>) -> Result<(), TakeInError> {
        let shared = &self.shared;
        if fields.u8()? != shared.replicas {
            return Err(TakeInError::Elsewhere);
        }
        shared.sessions.store(fields.u64()?, Ordering::Relaxed);
        shared.link_ids.store(fields.u32()?, Ordering::Relaxed);
        let mut sockets = sockets.into_iter();
        let moved = fields.list(|fields| Moved::read(fields, &mut sockets))?;
        let ranges = fields.option(|fields| {
            fields.list(|fields| Ok((slot(fields)?, slot(fields)?, fields.u32()? as usize)))
        })?;
        let is_cluster = shared.kind == TopologyKind::Cluster;
        if ranges.is_some() != is_cluster {
            return Err(TakeInError::Elsewhere);
        }
        if let Some(ranges) = ranges {
            let node = |Moved { id, name, server, .. }: &Moved<'_>| {
                Link::new(*id, (*name).into(), Place::Node(server.clone()), &shared.stopping)
            };
            let links = moved.iter().map(node).collect();
            shared.set_map(Map { links, spread: Spread::slots(ranges.into_iter()) });
        }
        let map = shared.map();
        if map.links.len() != moved.len() {
            return Err(TakeInError::Elsewhere);
        }
        let mut going = HashMap::new();
        for (link, moved) in map.links.iter().zip(moved) {
            if link.id != moved.id || *link.name != *moved.name {
                return Err(TakeInError::Elsewhere);
            }
            going.insert(link.id, moved.going(|tag| shared.probe_of(tag))?);
        }
        *shared.going.lock().unwrap_or_else(PoisonError::into_inner) = going;
        Ok(())
    }

    /// Sends commands on the connections that were taken in, from now on. What is subscribed on them is not read before
    /// [`begin`](Self::begin).
    pub(crate) fn go_on(&self) -> Vec<(LinkId, Session)> {
        let going = std::mem::take(&mut *self.shared.going.lock().unwrap_or_else(PoisonError::into_inner));
        let map = self.shared.map();
        let mut sessions = Vec::new();
        for (id, going) in going {
            let Some(link) = map.links.iter().find(|link| link.id == id) else { continue };
            sessions.push((id, going.session));
            let made = Made::going_on(link, &*self.shared, going);
            link.set_up(made.live());
            self.shared.made.lock().unwrap_or_else(PoisonError::into_inner).insert(id, made);
        }
        sessions
    }

    fn lives(&self) -> Result<Vec<Up>, HandOnError> {
        let up = |link: &Arc<Link>| match link.live() {
            Some(live) => Ok(Up { link: Arc::clone(link), live }),
            None => Err(HandOnError::Away(link.unavailable())),
        };
        self.shared.map().links.iter().map(up).collect()
    }
}

impl Halted {
    /// Of its connections, in the order in which they are written.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = io::Result<OwnedFd>> {
        self.stood.iter().map(|stood| match &stood.socket {
            Ok(socket) => socket.try_clone(),
            Err(error) => Err(error.kind().into()),
        })
    }

    fn is_of(&self, link: &Arc<Link>) -> bool {
        let live = link.live();
        link.id == self.link.id && live.is_some_and(|live| live.session == self.live.session)
    }
}

/// A session as it is written.
struct Moved<'r> {
    id: LinkId,
    name: &'r str,
    server: Server,
    session: Session,
    age: Duration,
    probe: Option<&'r str>,
    connections: Vec<(OwnedFd, &'r [u8])>,
}

impl<'r> Moved<'r> {
    fn read(fields: &mut Reader<'r>, sockets: &mut impl Iterator<Item = OwnedFd>) -> Result<Self, Malformed> {
        Ok(Self {
            id: LinkId(fields.u32()?),
            name: fields.text()?,
            server: Server { host: fields.text()?.into(), port: slot(fields)? },
            session: Session(fields.u64()?),
            age: Duration::from_micros(fields.u64()?),
            probe: fields.option(Reader::text)?,
            connections: fields.list(|fields| Ok((sockets.next().ok_or(Malformed)?, fields.bytes()?)))?,
        })
    }

    fn going(self, probe: impl FnOnce(&str) -> Probe) -> Result<Going, TakeInError> {
        let Self { server, session, age, connections, .. } = self;
        let now = Instant::now();
        let began = now.checked_sub(age).unwrap_or(now);
        let mut connections = connections.into_iter().map(|(socket, received)| {
            let stream = stream_of(socket, &server).map_err(TakeInError::Socket)?;
            Ok::<_, TakeInError>(Connection::going_on(stream, received))
        });
        let mut next = || connections.next().ok_or(Malformed)?;
        let (feed, commands, vital) = (next()?, next()?, next()?);
        let replicated = connections.next().transpose()?;
        let connections = Connections { feed, commands, vital, replicated };
        Ok(Going { session, server, began, connections, probe: self.probe.map(probe) })
    }
}

/// A number of 16 bits.
fn slot(fields: &mut Reader<'_>) -> Result<u16, Malformed> {
    u16::try_from(fields.u32()?).map_err(|_| Malformed)
}
