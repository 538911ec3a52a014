//! The console: what all nodes say while somebody watches, as one view of the cluster.
//!
//! ```text
//! node: metrics, readiness ──► reporter ──► report ──► backplane ──► watch ──► cluster (pure) ──► view ──► HTTP
//!                                  ▲                       │
//!                                  └── order `Watch` ◄─────┘ every 5 s while somebody watches
//! ```
//!
//! `report` is what a node says, `reporter` says it; `watch` serves those who watch on this node: it gives the order,
//! reads the reports each second, and hands them to `cluster`, which does the arithmetic over time without any I/O
//! (`ledger`: what was refused and closed; `percentiles`). `view` is what the page and `tidegate top` show; `advice`
//! says what to do about a resource (`docs/adr/0016-console.md`).

mod advice;
mod cluster;
mod ledger;
mod percentiles;
mod report;
pub(crate) mod reporter;
pub mod view;
pub(crate) mod watch;

pub(crate) use watch::Console;

#[cfg(test)]
mod tests;
