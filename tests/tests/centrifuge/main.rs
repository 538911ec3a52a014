//! Centrifugo's client protocol with its real client, on several nodes. One executable; each test starts everything it
//! needs. Behind a router: `tests/router/centrifuge.rs`; by frames: `gateway/src/server/tests/centrifuge`.

#![allow(clippy::unwrap_used)]

mod sdk;
