//! What the service manager is told that started this process: systemd, for a unit of `Type=notify` (sd_notify(3)).
//!
//! A program that is replaced while it serves needs that. Of any other unit systemd takes the end of the first process for
//! the end of all, and ends the process that took its place.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    os::unix::net::{SocketAddr, UnixDatagram},
    sync::OnceLock,
    time::Duration,
};

/// What is told.
#[derive(Debug, Clone, Copy)]
pub enum State<'a> {
    /// It serves.
    Ready,
    /// Another process is started to take its place. `Ready` follows, from whichever serves then.
    Reloading,
    Stopping,
    /// The process that the unit lives as long as.
    Main(u32),
    /// For whoever asks how it is, in one line.
    Status(&'a str),
}

/// Who started this process.
struct Manager {
    /// Where it listens.
    place: Option<OsString>,
    /// This is the first process of a unit of systemd.
    is_first: bool,
}

static MANAGER: OnceLock<Manager> = OnceLock::new();

/// It reads at once; where it does not, nobody waits for long.
const PATIENCE: Duration = Duration::from_secs(1);

/// From now on the manager is told, if the variables of the environment name one that listens.
pub fn begin(variable: impl Fn(&str) -> Option<OsString>) {
    let own = std::process::id().to_string();
    let is_first = variable("SYSTEMD_EXEC_PID").is_some_and(|process| *process == *own);
    let place = variable("NOTIFY_SOCKET").filter(|place| !place.is_empty());
    // The first one holds.
    let _kept = MANAGER.set(Manager { place, is_first });
}

/// Whether the manager ends a process that has taken this one's place, since it cannot be told of it.
pub fn ends_successors() -> bool {
    MANAGER.get().is_some_and(|manager| manager.is_first && manager.place.is_none())
}

/// Tells the manager, if there is one that listens.
pub fn tell(states: &[State<'_>]) {
    let Some(place) = MANAGER.get().and_then(|manager| manager.place.as_deref()) else { return };
    if let Err(error) = send(place, states) {
        tracing::warn!(%error, place = %place.display(), "the service manager could not be told: {states:?}");
    }
}

fn send(place: &OsStr, states: &[State<'_>]) -> io::Result<()> {
    let text: String = states.iter().map(State::to_string).collect();
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.send_to_addr(text.as_bytes(), &address(place)?).map(drop)
}

/// `/a/path`, or `@name` of Linux alone.
fn address(place: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = place.as_encoded_bytes().strip_prefix(b"@") {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(place)
}

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => writeln!(f, "READY=1"),
            Self::Reloading => writeln!(f, "RELOADING=1"),
            Self::Stopping => writeln!(f, "STOPPING=1"),
            Self::Main(process) => writeln!(f, "MAINPID={process}"),
            Self::Status(line) => writeln!(f, "STATUS={}", line.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[track_caller]
    fn check(place: &OsStr) {
        let socket = UnixDatagram::bind_addr(&address(place).unwrap()).unwrap();
        send(place, &[State::Main(7), State::Ready, State::Status("a line\n")]).unwrap();
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], *b"MAINPID=7\nREADY=1\nSTATUS=a line\n");
    }

    #[test]
    fn a_socket_in_a_folder_is_told() {
        check(tempfile::tempdir().unwrap().path().join("notify").as_os_str());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_that_has_a_name_alone_is_told() {
        check(OsStr::new(&format!("@tidegate-{}", std::process::id())));
    }
}
