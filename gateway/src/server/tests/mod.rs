//! The data plane over real sockets: shards, sessions and hub as the server starts them, with a backplane whose
//! answers and hand-overs the test holds back.
#![allow(clippy::unwrap_used)]

mod apart;
mod browsers;
mod centrifuge;
mod commands;
mod failing;
mod heads;
mod histories;
mod hooks;
mod leaving;
mod memory;
mod presence;
mod publishing;
mod pusher;
mod pusher_http;
mod random;
mod recovery;
mod redis;
mod rig;
mod whole;
