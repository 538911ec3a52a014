//! One subscription: of one connection to one channel, from the request until it gets what everyone gets.

mod seen;

pub(crate) use seen::{Arrival, Seen};
