//! Applications that are asked and told: real gateways on a real Redis, and what becomes of it when any of them dies.

#![allow(clippy::unwrap_used)]

mod lives;
mod page;
mod secured;
mod stream;
mod upgrade;
