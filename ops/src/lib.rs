//! What any tidegate process needs to be operated, whatever it does: configuration, logs, metrics, probes, sockets.
//!
//! - [`config`]: settings from a file, the environment and flags; a section is a struct made by [`section!`]
//! - [`log`]: where log events go; [`seldom`]: one of many like lines
//! - [`metrics`]: counters as plain atomics, labels made by [`label!`], the exposition, saturation
//! - [`probes`]: the internal port
//! - [`edge`], [`tls`], [`trust`]: what comes before a client's first request; certificates of a listening port;
//!   which proxies may say who a client is
//! - [`http`]: the socket between hyper and the kernel, where each request head is judged
//! - [`listener`], [`descriptors`]: what the process takes from the operating system; [`handover`]: sockets that it gives
//!   to, or takes from, another process of this machine
//! - [`succession`]: a process that takes this one's place; [`service`]: what systemd is told of that
//! - [`children`]: programs that one process starts, keeps running and stops
//! - [`budget`]: rates, of a connection, of an address, of all; [`stopping`], [`sweep`]: being told to stop, and closing everyone evenly

pub mod budget;
pub mod children;
pub mod config;
pub mod descriptors;
pub mod edge;
pub mod handover;
pub mod hosts;
pub mod http;
pub mod listener;
pub mod log;
pub mod metrics;
pub mod probes;
pub mod seldom;
pub mod service;
pub mod stopping;
pub mod succession;
pub mod sweep;
pub mod tls;
pub mod trust;
