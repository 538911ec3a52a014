//! HTTP connections whose requests are hyper's one by one: each head is judged before hyper has it, and a connection
//! can leave hyper again with a request that is a shard's.
//!
//! - [`gate`]: the socket between hyper and the kernel
//! - [`exchange`]: what the gate, the service and the task of a connection tell each other
//! - [`serve()`]: the task

mod exchange;
mod gate;
mod serve;

pub(crate) use self::serve::poll_served;
pub use self::{
    exchange::{AnswerBody, End, Exchange, Open, Overdue, Patience, QUIET_MAX},
    gate::{Gate, IsShards},
    serve::{Departure, Left, serve},
};
