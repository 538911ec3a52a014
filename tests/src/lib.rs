//! End-to-end tests of Tidegate: real processes, real sockets, clients that share no code with the product.
//!
//! The tests are executables of their own (`tests/e2e` and others), so that each links once; their modules are the
//! features. The scripts that Node, Python and Chromium run are in `clients/`. `cargo xtask test --only e2e` builds the
//! release binary, installs the foreign clients and runs them all. [`application`]s are the handlers of the docs, [`answers`]
//! is an application that answers as a test says; [`attack`] is what hostile clients do, for `cargo xtask attack` and for
//! `tests/attack`; [`cluster`] is what the loss table and others judge by; [`million`] fills a machine with clients;
//! [`succession`] is what tests of live upgrades share.

pub mod answers;
pub mod application;
pub mod attack;
pub mod cluster;
pub mod million;
pub mod succession;
