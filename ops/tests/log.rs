//! Logging in a process of its own, whose standard error is a pipe that nobody reads.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use tidegate_ops::log::{self, Log};

/// In the environment of the process that logs.
const CHILD: &str = "TIDEGATE_TEST_LOG_CHILD";

/// More than a pipe (64 KiB) and the queue take.
const LINES: u64 = 50_000;

#[test]
fn who_logs_does_not_wait_for_who_reads() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "who_logs_does_not_wait_for_who_reads", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    // It ends by itself, though its standard error is full.
    let mut told = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut told).expect("text");
    assert!(told.contains("dropped some: true"), "{told}");
    let mut lines = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut lines).expect("text");
    assert!(child.wait().expect("an end").success(), "{told}");
    assert!(lines.contains("line=0"), "{}", lines.len());
    assert!(!lines.contains('\u{1b}'), "no colours where nobody sees them");
}

fn child() {
    let _logging = log::init(&Log::default());
    for line in 0..LINES {
        tracing::info!(line, "one of many");
    }
    println!("dropped some: {}", log::lines_dropped() > 0);
}
