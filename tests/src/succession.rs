//! What tests of live upgrades share: processes that take over, programs that may be replaced, and somebody who publishes
//! meanwhile.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Received, Rest, SseClient, WsClient, end, eventually, pid_runs, product_binary,
};

/// Processes that took over, ended with the test.
#[derive(Debug, Default)]
pub struct Successors(Vec<u32>);

impl Successors {
    /// Has the process replaced that listens there, the first of which has this number, and waits until the one before is gone.
    #[track_caller]
    pub fn upgrade(&mut self, first: u32, internal: SocketAddr) -> u32 {
        let before = self.0.last().copied().unwrap_or(first);
        let answer = Rest::new(internal).post("/upgrade", "text/plain", "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let process = answer.json()["process"].as_u64().expect("its id") as u32;
        assert_ne!(process, before);
        self.0.push(process);
        eventually("the process before has ended", DEADLINE, || !pid_runs(before));
        process
    }

    /// One that took over though nobody was told.
    pub fn note(&mut self, process: u32) {
        self.0.push(process);
    }
}

impl Drop for Successors {
    fn drop(&mut self) {
        self.0.iter().copied().filter(|&pid| pid_runs(pid)).for_each(end);
    }
}

/// Somebody who publishes numbers, one after the other, until told to stop.
#[derive(Debug)]
pub struct Publisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicUsize>,
    thread: JoinHandle<usize>,
}

impl Publisher {
    pub fn start(mut publish: impl FnMut(usize) + Send + 'static) -> Self {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&published));
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Acquire) {
                publish(number);
                number += 1;
                count.store(number, Ordering::Release);
            }
            number
        });
        Self { stop, published, thread }
    }

    /// A client that waits for its own message, so that it never has more than one under way.
    pub fn client(mut client: WsClient) -> Self {
        Self::start(move |number| {
            client.send_text(&number.to_string());
            assert_eq!(next_text(&mut client), number.to_string());
        })
    }

    /// Waits until so many more were published.
    #[track_caller]
    pub fn more(&self, number: usize) {
        let wanted = self.published.load(Ordering::Acquire) + number;
        eventually("more is published", DEADLINE, || self.published.load(Ordering::Acquire) >= wanted);
    }

    #[track_caller]
    pub fn stop(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("whoever publishes is answered")
    }
}

/// The next message, whatever heartbeats come before it.
#[track_caller]
pub fn next_text(client: &mut WsClient) -> String {
    loop {
        match client.next(DEADLINE) {
            Received::Text(text) => return text,
            Received::Ping(_) => {}
            other => panic!("expected a text: {other:?}"),
        }
    }
}

/// Of all numbers that were published, each once and in order.
#[track_caller]
pub fn expect_numbers(client: &mut WsClient, published: usize, who: &str) {
    for wanted in 0..published {
        assert_eq!(next_text(client), wanted.to_string(), "{who}, of {published}");
    }
}

/// The same of an event stream.
#[track_caller]
pub fn expect_events(stream: &mut SseClient, published: usize) {
    for wanted in 0..published {
        assert_eq!(stream.expect_event().data, wanted.to_string(), "of {published}");
    }
}

/// Which process of an upgrade is killed, by what it would have heard next.
#[derive(Debug, Clone, Copy)]
pub enum Kill {
    OldAtState,
    OldAtTaken,
    NewAtGo,
}

/// A program that can be exchanged: a link to the real one, or a script.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    _directory: TempDir,
}

impl Program {
    pub fn real() -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path().join("tidegate");
        symlink(product_binary(), &path).expect("a link to the program");
        Self { path, _directory: directory }
    }

    pub fn replace(&self, script: &str) {
        fs::remove_file(&self.path).expect("a program that was there");
        fs::write(&self.path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o755)).expect("a script that runs");
    }

    /// The next process that takes over, or the one that it takes over from, is killed; `between` is `tidegate-between`.
    pub fn replace_with_kill(&self, between: &str, kill: Kill) {
        let (step, victim) = match kill {
            Kill::OldAtState => (3, "old"),
            Kill::OldAtTaken => (5, "old"),
            Kill::NewAtGo => (6, "new"),
        };
        let (product, pid) = (product_binary(), self.path.with_extension("pid"));
        self.replace(&format!(
            "exec {between} {step} {victim} {} {} \"$@\"",
            pid.display(),
            product.display()
        ));
    }

    /// The process that was started by that one.
    #[track_caller]
    pub fn successor(&self) -> u32 {
        let text = fs::read_to_string(self.path.with_extension("pid")).expect("it was started");
        text.parse().expect("a number")
    }

    pub fn restore(&self) {
        fs::remove_file(&self.path).expect("a program that was there");
        symlink(product_binary(), &self.path).expect("a link to the program");
    }
}

/// What a process says that listens there and is not replaced. One that took over all the same is ended.
#[track_caller]
pub fn refused(internal: SocketAddr) -> String {
    let answer = Rest::new(internal).post("/upgrade", "text/plain", "");
    if answer.status == 200 {
        end(answer.json()["process"].as_u64().expect("its id") as u32);
    }
    assert_eq!(answer.status, 409, "{}", answer.text());
    answer.text()
}
