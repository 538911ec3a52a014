//! Many live WebSockets on one machine behind one port: `tidegate serve`, processes full of clients, and a count of every
//! delivery.
//!
//! - `plan`: how many processes it takes, and whether the machine has what they need (pure)
//! - `crowd`: one process full of clients
//! - `run`: the whole of it, and its report

mod crowd;
mod plan;
mod run;

pub use crowd::{CrowdOptions, run as crowd};
pub use plan::{Facts, Plan, PlanError};
pub use run::{Options, run};
