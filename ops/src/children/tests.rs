//! Children that are shell scripts.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
};

use tidegate_testkit::{DEADLINE, eventually};

use super::*;

fn shell(name: &str, script: &str) -> Program {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script);
    Program { name: name.into(), command, names_lines: true }
}

fn run_here(groups: Vec<Vec<Program>>, on_ready: impl FnOnce(Vec<Ready>)) -> Result<(), ChildrenError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(groups, on_ready))
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// One test, because signals are the process's: nextest gives each test a process of its own, `cargo test` does not.
#[test]
fn groups_begin_in_order_what_ends_begins_again_and_all_stop_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let (log, kill) = (directory.path().join("log"), directory.path().join("kill"));
    let (at, once) = (log.display(), kill.display());
    let waits = "trap 'echo $0 stops >> LOG; exit 0' TERM; while :; do sleep 0.02; done";
    let script = |begin: &str| {
        format!("echo {begin} >> {at}; echo listening {begin}; {}", waits.replace("LOG", &at.to_string()))
    };
    let dies = format!(
        "echo second >> {at}; echo listening second; while [ ! -e {once} ]; do sleep 0.02; done; rm {once}; exit 3"
    );
    let groups = vec![
        vec![shell("first", &script("first"))],
        vec![shell("second", &dies), shell("third", &script("third"))],
    ];
    let is_ready = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_ready);
    let path = log.clone();
    let watcher = thread::spawn(move || {
        eventually("all listen", DEADLINE, || seen.load(Ordering::Relaxed));
        assert_eq!(lines(&path)[0], "first", "the second group waits for the first");
        fs::write(kill, "").unwrap();
        let begun = |name: &str| lines(&path).iter().filter(|line| *line == name).count();
        eventually("what has ended begins again", DEADLINE, || begun("second") == 2);
        assert_eq!(begun("first"), 1);
        rustix::process::kill_process(rustix::process::getpid(), Signal::TERM).unwrap();
        path
    });
    run_here(groups, |ready| {
        let said: Vec<_> = ready.iter().map(Ready::line).collect();
        assert_eq!(&*said[0], "first");
        assert_eq!(said.len(), 3);
        is_ready.store(true, Ordering::Relaxed);
    })
    .unwrap();
    let path = watcher.join().unwrap();
    assert_eq!(lines(&path).iter().filter(|line| line.ends_with(" stops")).count(), 2);
}

#[test]
fn who_ends_before_it_listens_ends_all() {
    let waits = "echo listening a; while :; do sleep 0.02; done";
    let groups = vec![vec![shell("a", waits)], vec![shell("b", "exit 78")]];
    let error = run_here(groups, |_| panic!("not all listen")).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().starts_with("b has ended before it listened"), "{error}");
    let groups = vec![vec![Program {
        name: "c".into(),
        command: Command::new("/nowhere/program"),
        names_lines: false,
    }]];
    let error = run_here(groups, |_| panic!("it does not run")).unwrap_err();
    assert!(error.to_string().starts_with("cannot start c: "), "{error}");
}

/// The first one ends when another one is there that it has started; only that one's end is the program's.
#[test]
fn who_takes_a_childs_place_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (log, end) = (directory.path().join("log"), directory.path().join("end"));
    let (at, once) = (log.display(), end.display());
    let waits = format!("while [ ! -e {once} ]; do sleep 0.02; done");
    let second = format!("echo listening second; {waits}; rm {once}; exit 3");
    let first = format!("echo begins >> {at}; echo listening first; ({second}) & echo ends >> {at}");
    let path = log.clone();
    let watcher = thread::spawn(move || {
        let begun = |word: &str| lines(&path).iter().filter(|line| *line == word).count();
        eventually("the first has ended", DEADLINE, || begun("ends") == 1);
        fs::write(&end, "").unwrap();
        eventually("the program begins again", DEADLINE, || begun("ends") == 2);
        assert_eq!(begun("begins"), 2);
        rustix::process::kill_process(rustix::process::getpid(), Signal::TERM).unwrap();
    });
    run_here(vec![vec![shell("a", &first)]], |_| {}).unwrap();
    watcher.join().unwrap();
}
