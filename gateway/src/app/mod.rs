//! The applications that clients belong to: their keys and limits, and the webhooks that tell their servers what happens.

pub mod apps;
pub mod webhooks;
