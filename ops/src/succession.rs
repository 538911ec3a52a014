//! Another process takes this one's place, with its connections (docs/adr/0026-live-upgrade.md).
//!
//! ```text
//! start it, with the listening sockets ─► it is ready ─► nothing is begun any more (`Upgradable::suspend`)
//!   ─► all that was begun has ended ─► each shard stands still and writes down its connections (`standing`)
//!   ─► it has read all of that (`predecessor`) ─► Go ─► shards let go of what moved, and see to the others
//! ```
//!
//! Until `Go` every error, and every end of the other process, has this one go on as if nothing had been: the other process
//! is ended first, so that never two serve. What a gateway or a router has to hand on is its own matter ([`Upgradable`]).
//!
//! The other process is started with one end of a `SOCK_SEQPACKET` pair as its standard input. Nobody else can have that
//! end, so there is no name, and nobody to be checked. What is said over it is `tidegate_wire::succession`; this file carries
//! records and descriptors, with a bound on each wait.

mod predecessor;
mod shards;
mod standing;
mod upgradable;
mod upgrades;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt::{Timeout, set_socket_timeout},
};
use tidegate_wire::{
    fields::Malformed,
    succession::{RECORD_BYTES_MAX, SOCKETS_MAX, Step},
};

pub use predecessor::{Predecessor, STATE_PATIENCE, Taken};
pub use shards::{ask_all, send};
pub use upgradable::{Record, ShardMailbox, Upgradable, UpgradeError, Work, Written};
pub use upgrades::{End, Launch, Ports, Upgrades, open};

/// Of the state as a whole: shards with their records, and what goes along beside them.
const FORM: u8 = 4;

/// One end of what two such processes say to each other. Blocks.
#[derive(Debug)]
pub struct Talk(OwnedFd);

/// A process that was started to take this one's place. Unless it is [let go](Self::let_go) it ends with this value: there is
/// never more than one that serves.
#[derive(Debug)]
pub struct Successor {
    child: Option<Child>,
    pub talk: Talk,
}

/// Why the other end does not say what it was to say.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    #[error("it ended")]
    Ended,
    #[error("it said nothing for {0:?}")]
    Silent(Duration),
    #[error("it is of another version: {0}")]
    Malformed(#[from] Malformed),
    #[error(
        "{missing} of its {expected} descriptors did not arrive: the process may have no more; raise its limit \
         (LimitNOFILE, ulimit -n)"
    )]
    Descriptors { expected: usize, missing: usize },
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Descriptors are closed in programs that this one starts.
#[cfg(target_os = "linux")]
const FLAGS: (SocketFlags, RecvFlags) = (SocketFlags::CLOEXEC, RecvFlags::CMSG_CLOEXEC);
#[cfg(not(target_os = "linux"))]
const FLAGS: (SocketFlags, RecvFlags) = (SocketFlags::empty(), RecvFlags::empty());

impl Successor {
    /// Starts a program with one end of the pair as its standard input.
    pub fn start(program: &Path, args: &[OsString]) -> io::Result<Self> {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS.0, None)?;
        let child = Command::new(program).args(args).stdin(Stdio::from(other)).spawn()?;
        Ok(Self { child: Some(child), talk: Talk(own) })
    }

    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// It serves, and outlives this process.
    pub fn let_go(&mut self) {
        self.child = None;
    }

    /// How it ended, if it has by then.
    pub fn ended_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        loop {
            let ended = self.child.as_mut()?.try_wait().ok()?;
            if ended.is_some() || Instant::now() >= until {
                return ended;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // One that has ended already cannot be killed; it is waited for all the same.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Talk {
    /// The end that this process was started with.
    ///
    /// # Errors
    /// The standard input is no such socket.
    pub fn inherited() -> io::Result<Self> {
        let own = io::stdin().as_fd().try_clone_to_owned()?;
        let kind = rustix::net::sockopt::socket_type(&own)?;
        if kind != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self(own))
    }

    /// The same end once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// # Errors
    /// [`TalkError`], within 5 s: the other end takes no more.
    pub fn say(&self, step: &Step, descriptors: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        set_socket_timeout(&self.0, Timeout::Send, Some(SAY_PATIENCE)).map_err(io::Error::from)?;
        let record = step.to_bytes();
        match sendmsg(&self.0, &[IoSlice::new(&record)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(TalkError::Ended),
            Err(rustix::io::Errno::AGAIN) => Err(TalkError::Silent(SAY_PATIENCE)),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// The next record, and the descriptors that came with it, of which there are to be so many.
    pub fn hear(
        &self,
        patience: Duration,
        expected: impl FnOnce(&Step) -> usize,
    ) -> Result<(Step, Vec<OwnedFd>), TalkError> {
        let until = Instant::now() + patience;
        let mut buffer = vec![0; RECORD_BYTES_MAX];
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            set_socket_timeout(&self.0, Timeout::Recv, Some(left)).map_err(io::Error::from)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut control, FLAGS.1)
            {
                Ok(received) => received,
                // An end with unread records in it is told once, before what that end said last.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => continue,
                Err(rustix::io::Errno::AGAIN) => return Err(TalkError::Silent(patience)),
                Err(error) => return Err(io::Error::from(error).into()),
            };
            if received.bytes == 0 {
                return Err(TalkError::Ended);
            }
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    descriptors.extend(more);
                }
            }
            let step = Step::parse(&buffer[..received.bytes.min(RECORD_BYTES_MAX)])?;
            let expected = expected(&step);
            return match expected.checked_sub(descriptors.len()) {
                Some(0) => Ok((step, descriptors)),
                missing => Err(TalkError::Descriptors { expected, missing: missing.unwrap_or(0) }),
            };
        }
    }
}

/// The other end reads at once what it is told, or hangs.
const SAY_PATIENCE: Duration = Duration::from_secs(5);

/// A file in memory alone, to be passed on.
#[cfg(target_os = "linux")]
pub fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("tidegate-state", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(not(target_os = "linux"))]
pub fn memory_file(_: &[u8]) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// All that such a file holds.
pub fn read_memory_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_a_process_said_last_is_heard_though_it_left_something_unread() {
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS.0, None).unwrap();
        let (own, other) = (Talk(own), Talk(other));
        own.say(&Step::Ready, &[]).unwrap();
        let why = Step::Refused { why: "it has too few descriptors".into() };
        other.say(&why, &[]).unwrap();
        drop(other);
        assert_eq!(own.hear(SAY_PATIENCE, |_| 0).unwrap().0, why);
        assert!(matches!(own.hear(SAY_PATIENCE, |_| 0), Err(TalkError::Ended)));
    }
}
