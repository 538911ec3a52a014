//! Values that a setting can have: how each is read from text, a number or a list, and what it expects.

use std::{fmt, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use config::{Value, ValueKind};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

/// A type that a key of the configuration can have.
pub trait Setting: Sized {
    /// Completes the sentence 'expected …'; also the type in `docs/configuration.md`.
    const EXPECTED: &'static str;
    /// The same for a list of them.
    const EXPECTED_LIST: &'static str = "a list";
    /// The value is never shown.
    const SECRET: bool = false;

    fn from_text(text: &str) -> Option<Self>;

    fn from_integer(_integer: i64) -> Option<Self> {
        None
    }

    fn from_bool(_bool: bool) -> Option<Self> {
        None
    }

    fn read(value: &Value) -> Option<Self> {
        match &value.kind {
            ValueKind::String(text) => Self::from_text(text),
            ValueKind::I64(integer) => Self::from_integer(*integer),
            ValueKind::Boolean(bool) => Self::from_bool(*bool),
            _ => None,
        }
    }

    /// A more precise expectation for a value that was refused.
    fn explain(_text: &str) -> Option<&'static str> {
        None
    }

    /// As it would be written in the file.
    fn show(&self) -> String;
}

/// A number of bytes. Written as a whole number or with a binary unit: `65536`, `"64KiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(usize);

impl ByteSize {
    pub const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    pub const fn kib(kib: usize) -> Self {
        Self(kib * 1024)
    }

    pub const fn mib(mib: usize) -> Self {
        Self(mib * 1024 * 1024)
    }

    pub const fn bytes(self) -> usize {
        self.0
    }
}

/// A text that is no size, or no duration; the sentence says what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct UnitError(&'static str);

/// Reads a duration as the configuration writes them: `"500ms"`, `"10s"`, `"1m30s"`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    Duration::from_text(text).ok_or(UnitError(Duration::EXPECTED))
}

impl std::str::FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        Self::from_text(text).ok_or(UnitError(Self::EXPECTED))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = BYTE_UNITS
            .iter()
            .find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit))
            .unwrap_or(&(1, ""));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Largest first: the first that divides a size is the one to show it with.
const BYTE_UNITS: [(usize, &str); 4] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "")];

impl Setting for ByteSize {
    const EXPECTED: &'static str = r#"a size in bytes such as 65536 or "64KiB" (units: KiB, MiB, GiB)"#;

    fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, unit) = text.split_at(digits);
        let unit = match unit.trim_start() {
            "B" => 1,
            name => BYTE_UNITS.iter().find(|(_, known)| *known == name)?.0,
        };
        count.parse::<usize>().ok()?.checked_mul(unit).map(Self)
    }

    fn from_integer(integer: i64) -> Option<Self> {
        usize::try_from(integer).ok().map(Self)
    }

    fn show(&self) -> String {
        match self.0 {
            bytes if bytes.is_multiple_of(1024) && bytes > 0 => format!("\"{self}\""),
            bytes => bytes.to_string(),
        }
    }
}

/// Largest first.
const TIME_UNITS: [(u64, &str); 5] =
    [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];

impl Setting for Duration {
    const EXPECTED: &'static str = r#"a duration such as "10s", "500ms" or "5m" (units: ms, s, m, h, d)"#;

    /// One or more numbers, each with its unit: `1m30s`. A number without a unit is refused: seconds and
    /// milliseconds are confused too easily.
    fn from_text(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        let mut total_ms = 0u64;
        loop {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let (count, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (name, tail) = tail.split_at(letters);
            let unit_ms = TIME_UNITS.iter().find(|(_, known)| *known == name)?.0;
            total_ms = total_ms.checked_add(count.parse::<u64>().ok()?.checked_mul(unit_ms)?)?;
            rest = tail;
            if rest.is_empty() {
                return Some(Self::from_millis(total_ms));
            }
        }
    }

    fn show(&self) -> String {
        let ms = self.as_millis();
        let (unit, name) = TIME_UNITS
            .iter()
            .find(|(unit, _)| ms > 0 && ms.is_multiple_of(u128::from(*unit)))
            .unwrap_or(&(1_000, "s"));
        format!("\"{}{name}\"", ms / u128::from(*unit))
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_bool(bool: bool) -> Option<Self> {
        Some(bool)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_integer(integer: i64) -> Option<Self> {
        integer.try_into().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// So that a set of threads is one word of 64 bits (`gateway/src/interest.rs`). A machine with more cores than that is
/// better used by two processes.
pub const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

impl Setting for NonZeroUsize {
    const EXPECTED: &'static str = "a whole number from 1 to 64";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|count: &Self| *count <= THREADS_MAX)
    }

    fn from_integer(integer: i64) -> Option<Self> {
        Self::from_text(&integer.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for SocketAddr {
    const EXPECTED: &'static str = r#"an IP address and port such as "127.0.0.1:8000" or "[::]:8000""#;

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for Box<str> {
    const EXPECTED: &'static str = "a text that is not empty";
    const EXPECTED_LIST: &'static str = "a list of texts";

    fn from_text(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| text.into())
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "the path of a file";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }

    fn show(&self) -> String {
        format!("{:?}", self.display().to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const SECRET: bool = T::SECRET;

    fn from_text(text: &str) -> Option<Self> {
        T::from_text(text).map(Some)
    }

    fn read(value: &Value) -> Option<Self> {
        T::read(value).map(Some)
    }

    fn explain(text: &str) -> Option<&'static str> {
        T::explain(text)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), T::show)
    }
}

/// A list of plain values: a TOML array, or one text with commas, which is what fits into a variable.
impl<T: Setting> Setting for Vec<T> {
    const EXPECTED: &'static str = T::EXPECTED_LIST;
    const SECRET: bool = T::SECRET;

    fn from_text(text: &str) -> Option<Self> {
        text.split(',').map(|item| T::from_text(item.trim())).collect()
    }

    fn read(value: &Value) -> Option<Self> {
        match &value.kind {
            ValueKind::Array(items) => items.iter().map(T::read).collect(),
            ValueKind::String(text) => Self::from_text(text),
            _ => None,
        }
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}

/// A secret: an HMAC key, an API key. Never shown, not by `Debug` either.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// A URL `scheme://user@hosts…` with this as its password; `None` if it has one already, or is no such URL.
    pub fn in_url(&self, url: &str) -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let password = percent_encode(self.expose(), NON_ALPHANUMERIC);
        (!user.contains(':')).then(|| format!("{scheme}://{user}:{password}@{hosts}{path}"))
    }

    /// The secret itself. Whoever calls this keeps it out of logs and errors.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "a text that is not empty";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::new(text.as_bytes()))
    }

    fn show(&self) -> String {
        "(hidden)".to_owned()
    }
}

/// A SHA-256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Setting for Sha256 {
    const EXPECTED: &'static str = "a SHA-256 digest as 64 hexadecimal digits";
    const SECRET: bool = true;

    fn from_text(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (hex(pair[0])? << 4) | hex(pair[1])?;
        }
        Some(Self(digest))
    }

    fn show(&self) -> String {
        "(hidden)".to_owned()
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| value.try_into().ok())
}

/// Defines an enum whose variants are written as fixed words.
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident, $expected:literal, $expected_list:literal,
     { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// The word that it is written as.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl $crate::config::Setting for $name {
            const EXPECTED: &'static str = $expected;
            const EXPECTED_LIST: &'static str = $expected_list;

            fn from_text(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn show(&self) -> String {
                format!("\"{}\"", self.word())
            }
        }
    };
}
