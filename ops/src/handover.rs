//! Sockets that change hands between processes of one machine: a listening Unix socket, and lines to it that carry
//! descriptors with records.
//!
//! The socket is `SOCK_SEQPACKET`: a record arrives whole, with its descriptor, or not at all. It belongs to one user
//! (mode 0600), and each end asks the kernel whose process the other one is: only one of the same user is spoken to.
//! What records say is `tidegate_wire::handover`.

use std::{
    fmt,
    fs::{self, Metadata},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::TcpStream,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::Mode,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Where a gateway takes sockets over: which machine, and which file there.
///
/// Two processes see the same file where the kernel is the same (by the id of its boot) and the path leads to the same
/// inode: so a path that means another file in another container is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    machine: Box<str>,
    device: u64,
    inode: u64,
    path: Box<Path>,
}

/// A socket on which connections are taken over. Its file is removed with it, unless another process listens on.
#[derive(Debug)]
pub struct Doorway {
    listener: UnixListener,
    place: Place,
    is_given: AtomicBool,
}

/// A connection between a process that hands sockets over and one that takes them. Does not block.
#[derive(Debug)]
pub struct Line(UnixStream);

/// A record that was received.
#[derive(Debug)]
pub struct Record<'b> {
    pub bytes: &'b [u8],
    /// The sockets that came with it, in order: the first of those that were sent where this process has no more
    /// descriptors.
    pub sockets: Vec<TcpStream>,
}

/// Why sockets are not taken over.
#[derive(Debug, thiserror::Error)]
pub enum DoorwayError {
    #[error(
        "cannot take connections over at {} (`handover.socket`): another process does; stop it, or choose another path",
        .0.display()
    )]
    InUse(PathBuf),
    #[error(
        "cannot take connections over at {} (`handover.socket`): the file is no socket; choose another path",
        .0.display()
    )]
    NoSocket(PathBuf),
    #[error(
        "cannot take connections over at {} (`handover.socket`): {source}; its directory must exist and be writable, and a \
         path has at most 107 bytes",
        path.display()
    )]
    System { path: PathBuf, source: io::Error },
}

/// The other end is another user's.
#[derive(Debug, thiserror::Error)]
#[error("the process at the other end is of user {other}, this one of user {own}: both must be of one user")]
struct Stranger {
    other: u32,
    own: u32,
}

/// Routers of one machine have a line for each of their shards: 64 may wait to be accepted at once.
const BACKLOG: i32 = 64;

/// Sockets with one record at most. The kernel lets 253 through.
pub const SOCKETS_MAX: usize = 32;

/// A descriptor that arrives is closed in programs that this one starts.
#[cfg(target_os = "linux")]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const RECEIVE: RecvFlags = RecvFlags::empty();

impl Doorway {
    /// Listens at `path`. A file that a process left there which is gone is replaced.
    pub fn bind(path: &Path) -> Result<Self, DoorwayError> {
        let system = |source| DoorwayError::System { path: path.to_owned(), source };
        remove_left(path)?;
        let socket = unix().map_err(system)?;
        // Before it has a name, so that it never has one that others may open.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| system(error.into()))?;
        socket.bind(&SockAddr::unix(path).map_err(system)?).map_err(system)?;
        socket.listen(BACKLOG).map_err(system)?;
        let place = Place::of(path).map_err(system)?;
        Ok(Self::at(OwnedFd::from(socket).into(), place))
    }

    /// Listens on with the socket of another process. `None`: it is not the one of this path.
    pub fn go_on(listener: UnixListener, place: &str, path: &Path) -> Option<Self> {
        let own = Place::of(path).ok().filter(|own| own.to_string() == place)?;
        Some(Self::at(listener, own))
    }

    fn at(listener: UnixListener, place: Place) -> Self {
        Self { listener, place, is_given: AtomicBool::new(false) }
    }

    /// Another process listens on, and the file is its.
    pub fn give(&self) {
        self.is_given.store(true, Ordering::Release);
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What accepts lines; each is to be made a [`Line`]. Does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        // Another process may have bound the path meanwhile.
        if !self.is_given.load(Ordering::Acquire)
            && self.place.is_there()
            && let Err(error) = fs::remove_file(&self.place.path)
        {
            tracing::debug!(%error, path = %self.place.path.display(), "the hand-over socket was not removed");
        }
    }
}

impl Line {
    /// Connects to a process that takes sockets over. Does not wait.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = unix()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Self::of(OwnedFd::from(socket).into())
    }

    /// One that was accepted, or whose connection stands.
    ///
    /// # Errors
    /// `PermissionDenied`: the other end is of another user.
    pub fn of(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        check_peer(stream.as_fd())?;
        Ok(Self(stream))
    }

    /// See [`receive`].
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Record<'b>>> {
        receive(self.as_fd(), buffer)
    }

    /// See [`send`].
    pub fn send(&self, record: &[u8]) -> io::Result<()> {
        send(self.as_fd(), record)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A line that a reactor is to have: to it all sockets are read and written alike.
impl From<Line> for TcpStream {
    fn from(line: Line) -> Self {
        OwnedFd::from(line.0).into()
    }
}

impl From<Line> for UnixStream {
    fn from(line: Line) -> Self {
        line.0
    }
}

/// Sends a record without a socket.
pub fn send(line: BorrowedFd<'_>, record: &[u8]) -> io::Result<()> {
    sendmsg(line, &[IoSlice::new(record)], &mut SendAncillaryBuffer::default(), SendFlags::empty())?;
    Ok(())
}

/// Receives one record; of one that is longer than the buffer, its begin. `None`: the other end is gone.
pub fn receive<'b>(line: BorrowedFd<'_>, buffer: &'b mut [u8]) -> io::Result<Option<Record<'b>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(line, &mut [IoSliceMut::new(buffer)], &mut control, RECEIVE)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            sockets.extend(came.map(TcpStream::from));
        }
    }
    if received.bytes == 0 && sockets.is_empty() {
        return Ok(None);
    }
    let bytes = &buffer[..received.bytes.min(buffer.len())];
    Ok(Some(Record { bytes, sockets }))
}

/// Sends a record with sockets, at most [`SOCKETS_MAX`], of which the other end gets descriptors of its own.
///
/// # Errors
/// `WouldBlock`: as much waits at the other end as may. Nothing was sent then, nor with any other error.
pub fn send_with(line: BorrowedFd<'_>, record: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(line, &[IoSlice::new(record)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// From now on nothing that the other end sends arrives: it is told so when it tries. What it has sent before can
/// still be received.
pub fn shut_receiving(line: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::shutdown(line, rustix::net::Shutdown::Read)?)
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = fs::metadata(&path)?;
        Ok(Self {
            machine: machine()?.into(),
            device: metadata.dev(),
            inode: metadata.ino(),
            path: path.into_boxed_path(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process can reach it.
    pub fn is_here(&self) -> bool {
        machine().is_ok_and(|machine| *machine == *self.machine) && self.is_there()
    }

    fn is_there(&self) -> bool {
        let is_same = |metadata: Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        fs::metadata(&self.path).is_ok_and(is_same)
    }
}

/// `MACHINE:DEVICE:INODE:PATH`, as a node announces it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.machine, self.device, self.inode, self.path.display())
    }
}

/// A text that is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected MACHINE:DEVICE:INODE:PATH")]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let mut parts = text.splitn(4, ':');
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(NoPlace);
        let (machine, device, inode, path) = (part()?, part()?, part()?, part()?);
        let number = |text: &str| text.parse().map_err(|_| NoPlace);
        Ok(Self {
            machine: machine.into(),
            device: number(device)?,
            inode: number(inode)?,
            path: Path::new(path).into(),
        })
    }
}

/// The kernel that runs: no two machines have the same id, nor one after a restart; containers of one machine do. It
/// stays as long as this process, and routers ask each second.
fn machine() -> io::Result<&'static str> {
    static MACHINE: OnceLock<Box<str>> = OnceLock::new();
    if let Some(known) = MACHINE.get() {
        return Ok(known);
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(MACHINE.get_or_init(|| read.trim().into()))
}

fn unix() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A socket at which nobody listens any more is in the way.
fn remove_left(path: &Path) -> Result<(), DoorwayError> {
    let system = |source| DoorwayError::System { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(system)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(DoorwayError::NoSocket(path.to_owned()));
    }
    let address = SockAddr::unix(path).map_err(system)?;
    match unix().map_err(system)?.connect(&address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system)
        }
        _ => Err(DoorwayError::InUse(path.to_owned())),
    }
}

#[cfg(target_os = "linux")]
fn check_peer(socket: BorrowedFd<'_>) -> io::Result<()> {
    let other = rustix::net::sockopt::socket_peercred(socket)?.uid;
    let own = rustix::process::geteuid();
    if other == own {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        Stranger { other: other.as_raw(), own: own.as_raw() },
    ))
}

#[cfg(not(target_os = "linux"))]
fn check_peer(_: BorrowedFd<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests;
