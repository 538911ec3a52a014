//! One executable for all end-to-end tests; each starts a gateway of its own on free ports.

#![allow(clippy::unwrap_used)]

mod bad_frames;
mod bad_handshakes;
mod bad_requests;
mod churn;
mod descriptors;
mod doctor;
mod drain;
mod edge;
mod first_message;
mod foreign_clients;
mod kept_alive;
mod openapi;
mod page;
mod recovery;
mod reload;
mod slow_reader;
mod sources;
mod stalled;
mod startup;
mod told;
mod upgrade;
