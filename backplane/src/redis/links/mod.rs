//! Links to the servers of a deployment: which there are, which one holds a tag, and calls and subscriptions on them.
//!
//! - `links`: what the others see. `shared`: the links of a deployment, and the tasks that keep them.
//! - `link`: one server. `session`: how a session follows the last. `live`: a session. `room`: what may wait.
//! - `dial`, `login`, `rights`: how a connection begins. `driver`: what carries one. `wire`: what arrives on it.
//! - `pipe`: commands on a connection. `replication`: those that replicas must have. `feed`: the subscribed connection,
//!   with `probe`, which shows that both carry, and `silence`, when it is away. `around`: what these ask of the whole.
//! - `halt`, `moving`: sessions that another process goes on with.
//! - `call`: one call with its repetitions.
//! - `map`: tags to links. `sentinel`, `cluster`, `watch`: where the servers are.
//! - `counters`: for the metrics.

mod around;
mod call;
mod cluster;
mod counters;
mod dial;
mod driver;
mod feed;
mod halt;
mod link;
#[expect(clippy::module_inception, reason = "what the others see has the name of the whole")]
mod links;
mod live;
mod login;
mod map;
mod moving;
mod pipe;
mod probe;
mod replication;
mod rights;
mod room;
mod sentinel;
mod session;
mod shared;
mod silence;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

pub use counters::{LinkCounters, REFUSALS, REPEATS, REPLACEMENTS};
pub(crate) use links::Links;
pub(crate) use login::Login;
pub(crate) use moving::Halted;
pub(crate) use shared::LinkOptions;
