//! What a service manager is told, which a socket of ours plays. What systemd does of it is in `tests/containers`.

use std::os::unix::net::UnixDatagram;

use tidegate_testkit::{SHORT_DRAIN, product_binary};

use super::*;

/// The next thing that it is told.
#[track_caller]
fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = manager.recv(&mut buffer).expect("it is told something");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn a_manager_is_told_who_serves() {
    let program = Program::real();
    let place = program.path.with_extension("notify");
    let manager = UnixDatagram::bind(&place).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let builder = Gateway::builder().program(&program.path).config(SHORT_DRAIN);
    let mut gateway = builder.environment("NOTIFY_SOCKET", place.to_str().unwrap()).start();
    let serving = format!(
        "READY=1\nSTATUS=listening public=http://{} internal=http://{}\n",
        gateway.public(),
        gateway.internal()
    );
    assert_eq!(told(&manager), serving);
    let mut successors = Successors::default();
    for _ in 0..2 {
        let process = successors.upgrade(gateway.pid(), gateway.internal());
        assert_eq!(told(&manager), "RELOADING=1\n");
        assert_eq!(told(&manager), format!("MAINPID={process}\n"));
        assert_eq!(told(&manager), serving);
    }
    assert_eq!(gateway.process().try_wait().and_then(|status| status.code()), Some(0));
    program.replace("exit 7");
    refused(gateway.internal());
    assert_eq!(told(&manager), "RELOADING=1\n");
    assert_eq!(told(&manager), "READY=1\n");
    gateway.internal_rest().post("/drain", "text/plain", "");
    assert_eq!(told(&manager), "STOPPING=1\nSTATUS=draining\n");
}

/// Such a one would take the end of the old process for the end of all.
#[test]
fn a_unit_whose_manager_cannot_be_told_says_so() {
    let program = Program::real();
    program.replace(&format!("SYSTEMD_EXEC_PID=$$ exec {} \"$@\"", product_binary().display()));
    let gateway = Gateway::builder().program(&program.path).start();
    let mut client = gateway.subscribe("news");
    let why = refused(gateway.internal());
    assert!(why.contains("Type=notify"), "{why}");
    goes_on(&gateway, &mut client, "after");
}
