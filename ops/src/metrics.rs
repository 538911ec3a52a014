//! Metrics: groups of plain atomics, rendered when somebody scrapes.
//!
//! An update is one relaxed add; handles are fields of the groups, so nothing is looked up by name or label while the
//! process works. A process writes its families with [`Page`] in a [`Collector`]; [`openmetrics`] renders several.

mod exposition;
mod label;
mod primitives;
mod process;
mod saturation;

pub use exposition::{Page, openmetrics, to_prometheus};
pub use label::Label;
pub use primitives::{Counter, Counters, Gauge, Histogram};
pub use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
pub use saturation::{Bounds, Listener, Load, Resource};
