//! A socket that changes hands, within one process.

#![allow(clippy::unwrap_used)]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
};

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Both ends of a line.
fn line(doorway: &Doorway) -> (Line, Line) {
    let from = Line::connect(doorway.place().path()).unwrap();
    let (stream, _) = doorway.listener().accept().unwrap();
    (from, Line::of(stream).unwrap())
}

#[test]
fn a_socket_arrives_with_its_record() {
    let directory = directory();
    let doorway = Doorway::bind(&directory.path().join("a")).unwrap();
    let (from, to) = line(&doorway);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    client.write_all(b"later").unwrap();

    let mut buffer = [0; 64];
    assert_eq!(to.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    send_with(from.as_fd(), b"first", &[accepted.as_fd()]).unwrap();
    from.send(b"second").unwrap();
    drop(accepted);
    let record = to.receive(&mut buffer).unwrap().unwrap();
    assert_eq!(record.bytes, b"first");
    let [mut socket] = <[TcpStream; 1]>::try_from(record.sockets).unwrap();
    let record = to.receive(&mut buffer).unwrap().unwrap();
    assert_eq!(record.bytes, b"second");
    assert!(record.sockets.is_empty());

    let mut read = [0; 5];
    socket.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"later");
    socket.write_all(b"here").unwrap();
    drop(socket);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "here");

    drop(from);
    assert!(to.receive(&mut buffer).unwrap().is_none(), "the other end is gone");
}

/// The router says that it waits no longer: the gateway must find out before it touches a socket.
#[test]
fn who_no_longer_listens_is_not_answered() {
    let directory = directory();
    let doorway = Doorway::bind(&directory.path().join("a")).unwrap();
    let (from, to) = line(&doorway);
    to.send(b"before").unwrap();
    shut_receiving(from.as_fd()).unwrap();
    assert_eq!(to.send(b"after").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let mut buffer = [0; 64];
    assert_eq!(from.receive(&mut buffer).unwrap().unwrap().bytes, b"before");
    assert!(from.receive(&mut buffer).unwrap().is_none());
}

#[test]
fn the_socket_is_of_one_user_and_one_process() {
    let directory = directory();
    let path = directory.path().join("a");
    let doorway = Doorway::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Doorway::bind(&path), Err(DoorwayError::InUse(_))));
    let left = directory.path().join("left");
    fs::rename(&path, &left).unwrap();
    drop(doorway);
    assert!(left.exists(), "what is not its file is not removed");
    // Nobody listens there any more.
    let doorway = Doorway::bind(&left).unwrap();
    drop(doorway);
    assert!(!left.exists());
    fs::write(&path, "mine").unwrap();
    assert!(matches!(Doorway::bind(&path), Err(DoorwayError::NoSocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let missing = Doorway::bind(&directory.path().join("no/a")).unwrap_err();
    assert!(missing.to_string().contains("its directory must exist"), "{missing}");
    let long = Doorway::bind(&directory.path().join("x".repeat(120))).unwrap_err();
    assert!(matches!(long, DoorwayError::System { .. }), "{long}");
}

#[test]
fn a_place_is_known_by_machine_and_file() {
    let directory = directory();
    let doorway = Doorway::bind(&directory.path().join("a:b")).unwrap();
    let text = doorway.place().to_string();
    let place: Place = text.parse().unwrap();
    assert_eq!(&place, doorway.place());
    assert!(place.is_here());
    let (machine, rest) = text.split_once(':').unwrap();
    let elsewhere: Place = format!("{machine}x:{rest}").parse().unwrap();
    assert!(!elsewhere.is_here(), "another machine");
    drop(doorway);
    let _again = Doorway::bind(&directory.path().join("a:b")).unwrap();
    for bad in ["", "a:1:2", "a:b:2:/p", ":1:2:/p", "a:1:2:"] {
        assert_eq!(bad.parse::<Place>(), Err(NoPlace), "{bad}");
    }
}
