//! Questions to a real application over HTTP: one that says yes, no, something else, too much, nothing, or is not there.

mod application;
mod centrifuge;
mod events;
mod pusher;
mod questions;
mod trouble;
