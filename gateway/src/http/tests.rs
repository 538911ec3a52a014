//! The routers as clients see them: a table per endpoint, each row a request and what it is answered.
#![allow(clippy::unwrap_used)]

mod centrifuge;
mod client;
mod fixture;
mod many;
mod ports;
mod publish;
mod pusher;
mod read;

pub(super) use self::fixture::Fixture;
use super::*;

/// A key for everything, one for channels that begin with `news`, one that may only read.
const ALL: &str = "all-all-all-all";
const NEWS: &str = "news-news-news-news";
const READER: &str = "reader-reader-reader";
const ORIGIN: &str = "https://app.example.org";
const PAYLOAD_MAX: usize = 64 * 1024;
const BODY_MAX: usize = 256 * 1024;
