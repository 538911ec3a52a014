//! Under construction.

pub mod auth;
pub mod config;
