//! Processes, clients and conditions for tests: real binaries, real sockets, deadlines instead of sleeps.
//!
//! A test starts its own [`Gateway`] on free ports, drives it through clients that share no code with the product
//! ([`WsClient`] over tungstenite, [`SseClient`], [`RawTcp`] for exact bytes, [`Rest`], [`Tool`] for Node, Python
//! and Chromium) and reads what the operator would read ([`Metrics`], [`memory`]). Redis, and what goes wrong with it,
//! is in [`redis`].
//!
//! The functions here panic with a sentence when what they promise does not come true: a failure inside the kit
//! is the failure of the test that called it, with the server's captured output beside it. The few calls whose
//! failure is the very thing under test return typed errors ([`Refusal`], [`ReadError`]).
//!
//! Nothing sleeps to wait. [`eventually`] polls a condition up to a deadline that is far longer than any healthy
//! run needs: it bounds a broken run and asserts nothing about speed.

mod gateway;
mod inbox;
pub mod memory;
mod metrics;
pub mod net;
pub mod plot;
mod postgres;
mod process;
pub mod redis;
mod rest;
mod sse;
mod tcp;
pub mod tls;
mod tool;
mod wait;
mod ws;

pub use gateway::{Gateway, GatewayBuilder, SHORT_DRAIN};
pub use inbox::{Inbox, Posted};
pub use metrics::{Metrics, Sample};
pub use postgres::PostgresServer;
pub use process::{Exit, Process, Stop, end, pid_runs, preloaded, product_binary};
pub use rest::{Answer, Position, Rest};
pub use sse::{SseClient, SseEvent};
pub use tcp::{HttpHead, RawTcp, ReadError, frame, masked_frame};
pub use tool::{Tool, cache_directory, chromium_path, scripts_directory, target_directory};
pub use wait::{DEADLINE, eventually, eventually_some, observe};
pub use ws::{Closed, Received, Refusal, WsClient};
