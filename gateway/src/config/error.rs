//! Why a configuration is refused: one line that names the key, the value and where it came from.

use std::{
    fmt, io,
    net::SocketAddr,
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

    #[error("`{key}`{} cannot be used: {problem}", in_file(path.as_deref()))]
    KeyMaterial { key: Box<str>, path: Option<PathBuf>, problem: KeyProblem },

    /// Two settings that exclude each other.
    #[error("`{key}` and `{other}` do not fit together: {rule}")]
    Contradiction { key: Box<str>, other: Box<str>, rule: &'static str },

    #[error("`{key}` is {address}, but --dev has fixed credentials and listens on loopback addresses only")]
    DevNotLoopback { key: &'static str, address: SocketAddr },

    #[error("no HTTP client for `auth.jwt` with `jwks_url`: {0}")]
    HttpClient(#[source] reqwest::Error),
}

/// What is wrong with a key or a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("it is empty")]
    Empty,
    /// RFC 7518 section 3.2: a key of the size of the hash output or larger must be used.
    #[error("HS256 needs a secret of at least 32 bytes")]
    SecretShort,
    /// 16 random characters of an alphabet of 64 are 96 bits.
    #[error("an API key has at least 16 characters")]
    ApiKeyShort,
    #[error("it is a private key; only the public key belongs here")]
    Private,
    /// Public keys are not secret: whoever reads one could sign tokens with it.
    #[error("it is a PEM key; HS256 needs a secret")]
    PemSecret,
    #[error("it is not a PEM public key for the algorithm of this entry")]
    Pem,
    #[error("it is not a JSON Web Key Set with a key for the algorithm of this entry")]
    Jwks,
}

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
