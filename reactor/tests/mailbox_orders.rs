//! Every order of threads that post to a mailbox and of the shard that looks into it. The mailbox is compiled here with
//! the primitives of a model checker in the place of the standard library's.

#![allow(clippy::expect_used, clippy::unwrap_used)]

#[path = "../src/mailbox.rs"]
#[allow(dead_code, unreachable_pub, reason = "only what the model needs is used")]
mod mailbox;

use std::collections::VecDeque;

use loom::{model::Builder, thread};
use mailbox::{Mailbox, waking_once};
use sync::{Arc, Waker};

mod sync {
    use std::io;
    pub(crate) use std::sync::PoisonError;

    use loom::sync::Notify;
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};
    pub(crate) use tidegate_reactor::{Listener, Task};

    /// What wakes a shard.
    pub(crate) struct Waker(pub(crate) Arc<Notify>);

    impl Waker {
        pub(crate) fn wake(&self) -> io::Result<()> {
            self.0.notify();
            Ok(())
        }
    }

    macro_rules! per_thread {
        ($(#[$meta:meta])* static $name:ident: $type:ty = const $init:block;) => {
            loom::thread_local! { $(#[$meta])* static $name: $type = $init; }
        };
    }
    pub(crate) use per_thread;
}

/// Two threads post; the shard sleeps until it is woken, looks, and sleeps again until it has everything. A wake-up that
/// is lost leaves it asleep, which the model reports as a deadlock.
fn check(post: fn(&Mailbox<u32>, u32)) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let woken = Arc::new(loom::sync::Notify::new());
        let mailbox = Mailbox::new(Waker(Arc::clone(&woken)));
        let senders: Vec<_> = [10, 20]
            .into_iter()
            .map(|from| {
                let mailbox = mailbox.clone();
                thread::spawn(move || post(&mailbox, from))
            })
            .collect();
        let mut inbox = VecDeque::new();
        while inbox.len() < 4 {
            woken.wait();
            mailbox.will_look();
            mailbox.drain(&mut inbox);
        }
        senders.into_iter().for_each(|sender| sender.join().expect("no panic"));
        let of = |from| inbox.iter().copied().filter(move |mail| mail / 10 * 10 == from).collect::<Vec<_>>();
        assert_eq!((of(10), of(20)), (vec![10, 11], vec![20, 21]), "once, and in the order of each");
    });
}

#[test]
fn no_wake_up_is_lost() {
    check(|mailbox, from| {
        mailbox.send(from);
        mailbox.send(from + 1);
    });
}

#[test]
fn no_wake_up_is_lost_that_is_put_off() {
    check(|mailbox, from| {
        waking_once(|| {
            mailbox.send(from);
            mailbox.send(from + 1);
        });
    });
}

#[test]
fn what_is_posted_to_a_shard_that_ends_is_dropped() {
    loom::model(|| {
        let mailbox = Mailbox::new(Waker(Arc::new(loom::sync::Notify::new())));
        let kept = std::sync::Arc::new(());
        let sender = {
            let (mailbox, kept) = (mailbox.clone(), std::sync::Arc::clone(&kept));
            thread::spawn(move || mailbox.send(kept))
        };
        mailbox.close();
        sender.join().expect("no panic");
        assert_eq!(std::sync::Arc::strong_count(&kept), 1, "nothing waits for a shard that is gone");
    });
}
