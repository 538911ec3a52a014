//! The mailbox with a real waker. The orders of threads are played in `tests/mailbox_orders.rs`.

#![allow(clippy::unwrap_used)]

use std::{panic, time::Duration};

use mio::{Events, Poll, Token, Waker};

use crate::mailbox::*;

/// Whether the shard is woken, without waiting for it.
fn is_woken(poll: &mut Poll) -> bool {
    let mut events = Events::with_capacity(4);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    !events.is_empty()
}

#[test]
fn what_is_posted_together_wakes_at_the_end() {
    let mut poll = Poll::new().unwrap();
    let mailbox = Mailbox::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let mut inbox = std::collections::VecDeque::new();
    waking_once(|| {
        mailbox.send(1);
        waking_once(|| mailbox.send(2));
        assert!(!is_woken(&mut poll));
        // The shard was awake and has looked by itself: what follows is told like the first.
        mailbox.drain(&mut inbox);
        mailbox.send(3);
    });
    assert!(is_woken(&mut poll));
    mailbox.drain(&mut inbox);
    assert_eq!(inbox, [1, 2, 3]);
    mailbox.send(4);
    assert!(is_woken(&mut poll), "afterwards everything wakes again");
}

#[test]
fn a_panic_owes_nobody_a_wake_up() {
    let mut poll = Poll::new().unwrap();
    let mailbox = Mailbox::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let work = panic::AssertUnwindSafe(|| {
        mailbox.send(1);
        panic!("on purpose");
    });
    assert!(panic::catch_unwind(|| waking_once(work)).is_err());
    assert!(is_woken(&mut poll));
}
