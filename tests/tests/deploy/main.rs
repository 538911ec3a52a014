//! What operators are given, held against the real programs: image, compose file, metrics, alerts, dashboards. One
//! executable; `cargo xtask test --only deploy` installs what it needs and runs it.

#![allow(clippy::unwrap_used)]

mod alerts;
mod compose;
mod dashboards;
mod exposition;
mod image;
mod nodes;
mod prometheus;
mod tools;
mod workflows;
