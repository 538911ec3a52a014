//! One gateway node. Under construction: the lead composes the modules.

pub mod auth;
pub mod http;
pub mod metrics;
pub mod node;
