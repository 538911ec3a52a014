//! Configuration: a TOML file, environment variables and flags, merged, checked and with every default filled in.
//!
//! This is the only place that reads the environment and the configuration file. [`Sources`] are merged into one
//! tree whose values know where they came from; sections load themselves from it. A key that no section has, or a
//! value that its type does not accept, is a [`ConfigError`]: one line.
//!
//! - `setting`: types of values and what they expect
//! - `section`: loading, and the list of keys that a reference is made of
//! - `sources`: merging
//! - `reference`: the reference of all keys as Markdown

mod error;
mod reference;
mod section;
mod setting;
mod sources;
#[cfg(test)]
mod tests;

pub use error::{ConfigError, Empty, Origin};
pub use reference::reference;
pub use section::{Entry, List, Load, Node, without_passwords};
pub use setting::{ByteSize, Secret, Setting, Sha256, THREADS_MAX, UnitError, parse_duration};
pub use sources::{Flag, Loader, Merged, PREFIX, Sources, read_secret};
