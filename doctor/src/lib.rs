//! `tidegate doctor`: how many connections this machine can hold, which limit is the first, and the line that raises
//! it; and what a running deployment does to a connection.
//!
//! The way of the data: [`Machine`] reads files below a root into [`Facts`], each of which may be unreadable.
//! [`Assessment::of`] is pure arithmetic over them: a number of connections per resource, warnings, and remedies.
//! [`Plan::of`] is arithmetic over measured costs for what is not there yet. [`Deployment::measure`] opens connections to a URL, one step after the other. A [`Report`] is both, as text or JSON.

mod capacity;
mod deployment;
mod facts;
mod limit;
mod machine;
mod node;
mod number;
mod plan;
mod remedy;
mod report;
mod warning;

pub use capacity::Assessment;
pub use deployment::{Deployment, Options, Outcome, Step, StepName, Target, TargetError};
pub use facts::{
    Buffers, Conntrack, Descriptors, Fact, Facts, MachineMemory, Place, Ports, SystemFiles, TcpMemory,
    Unreadable, Why,
};
pub use limit::Limit;
pub use machine::Machine;
pub use node::{Node, Resource, Role};
pub use plan::{Costs, CostsError, MachineSize, Path, Plan, Settings, Wanted};
pub use remedy::Remedy;
pub use report::Report;
pub use warning::{Warning, WarningKind};
