//! Why a configuration is refused: one line that names the key, the value and where it came from.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File(PathBuf),
    /// An environment variable, by its name.
    Variable(Box<str>),
    /// A command-line flag, with its dashes.
    Flag(Box<str>),
    /// Nobody set it: the default.
    Default,
}

/// A configuration that cannot be used. The sentence is one line; the process exits with
/// [`ConfigError::EXIT_CODE`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },

    #[error("{}:{line}:{column}: not valid TOML: {problem}", path.display())]
    Syntax { path: PathBuf, line: usize, column: usize, problem: Box<str> },

    #[error("unknown key `{key}` in {origin}{}", nearest_hint(nearest.as_deref()))]
    UnknownKey { key: Box<str>, origin: Origin, nearest: Option<Box<str>> },

    #[error("bad value {value} for `{key}` in {origin}: expected {expected}")]
    BadValue { key: Box<str>, value: Box<str>, origin: Origin, expected: &'static str },

    #[error("the environment variable {variable} is not valid UTF-8")]
    NotUnicode { variable: Box<str> },

    /// An entry of a list lacks a key that has no default.
    #[error("`{key}` is missing in {origin}")]
    Missing { key: Box<str>, origin: Origin },

    /// Of several keys that say the same thing in different ways, none or more than one is given.
    #[error("`{key}` in {origin} needs exactly one of {one_of}, but has {given}")]
    OneOf { key: Box<str>, origin: Origin, one_of: &'static str, given: usize },

    /// Two entries of a list have the same name.
    #[error("two entries of `{key}` are named {name:?}")]
    Duplicate { key: &'static str, name: Box<str> },

    #[error("cannot read {} for `{key}`: {source}", path.display())]
    KeyFile { key: Box<str>, path: PathBuf, source: io::Error },

    /// What a setting holds, or its file, is not what it is for.
    #[error("`{key}`{} cannot be used: {problem}", in_file(path.as_deref()))]
    Unusable { key: Box<str>, path: Option<PathBuf>, problem: Box<dyn std::error::Error + Send + Sync> },

    /// Two settings that exclude each other.
    #[error("`{key}` and `{other}` do not fit together: {rule}")]
    Contradiction { key: Box<str>, other: Box<str>, rule: &'static str },

    /// A value that is good as such, but not in this configuration.
    #[error("`{key}` is {value}, but {rule}")]
    Forbidden { key: Box<str>, value: Box<str>, rule: &'static str },
}

/// A file that should hold something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is empty")]
pub struct Empty;

impl ConfigError {
    /// What a process exits with when its configuration is refused.
    pub const EXIT_CODE: u8 = 2;
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "the environment variable {name}"),
            Self::Flag(name) => write!(f, "the flag {name}"),
            Self::Default => f.write_str("the defaults"),
        }
    }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

fn in_file(path: Option<&Path>) -> String {
    path.map(|path| format!(" in {}", path.display())).unwrap_or_default()
}
