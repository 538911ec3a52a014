//! Channel patterns: text in which `*` stands for any run of characters, none included.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::Setting;

/// Longest pattern in bytes: a channel name of the longest kind, and some stars.
pub const PATTERN_BYTES_MAX: usize = 256;

/// Which channels. `news:*` has every channel that begins with `news:`; `*:alice` every one that ends with
/// `:alice`; `room` only itself.
///
/// Nothing is compiled: matching is linear in the lengths of pattern and name.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A pattern that is empty or longer than [`PATTERN_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a channel pattern has 1 to {PATTERN_BYTES_MAX} bytes")]
pub struct PatternError;

impl Pattern {
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        match pattern.len() {
            1..=PATTERN_BYTES_MAX => Ok(Self(pattern.into())),
            _ => Err(PatternError),
        }
    }

    /// Has every channel.
    pub fn any() -> Self {
        Self("*".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first piece must begin the name and the last must end it. Taking every piece between at its first
    /// place loses nothing: a later place only leaves less of the name for the pieces after it.
    pub fn matches(&self, name: &str) -> bool {
        let Some((prefix, rest)) = self.0.split_once('*') else { return *self.0 == *name };
        let (middle, suffix) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut name) = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix)) else {
            return false;
        };
        for piece in middle.split('*') {
            match name.find(piece) {
                Some(at) => name = &name[at + piece.len()..],
                None => return false,
            }
        }
        true
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(D::Error::custom)
    }
}

impl Setting for Pattern {
    const EXPECTED: &'static str = r#"a channel pattern such as "news:*""#;
    const EXPECTED_LIST: &'static str = r#"a list of channel patterns such as ["news:*", "room"]"#;

    fn from_text(text: &str) -> Option<Self> {
        Self::new(text).ok()
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pattern: &str, name: &str, expect: bool) {
        let pattern = Pattern::new(pattern).expect("a valid pattern");
        assert_eq!(pattern.matches(name), expect, "{pattern:?} against {name:?}");
    }

    #[test]
    fn table() {
        for (pattern, name, expect) in [
            ("*", "anything:at/all", true),
            ("news", "news", true),
            ("news", "news:x", false),
            ("news:*", "news:", true),
            ("news:*", "news:sport:1", true),
            ("news:*", "news", false),
            ("*:alice", "dm:alice", true),
            ("*:alice", "alice", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("ab*ba", "aba", false),
            ("a*b*c", "a-c-b", false),
            ("a*b*c", "abc", true),
            ("**", "x", true),
            ("a**b", "ab", true),
            ("*b*b*", "b", false),
            ("*b*b*", "xbxb", true),
            // The name of a channel cannot have a star, but a star must never stand for itself only.
            ("a*", "a*", true),
        ] {
            check(pattern, name, expect);
        }
    }

    #[test]
    fn length_is_bounded() {
        assert_eq!(Pattern::new(""), Err(PatternError));
        assert!(Pattern::new(&"x".repeat(PATTERN_BYTES_MAX)).is_ok());
        assert_eq!(Pattern::new(&"x".repeat(PATTERN_BYTES_MAX + 1)), Err(PatternError));
    }

    /// What `*` means, written as its definition.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, name) || name.split_first().is_some_and(|(_, n)| naive(pattern, n))
            }
            (Some((p, rest)), Some((n, name))) => p == n && naive(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab:*]{1,8}", name in "[ab:]{0,10}") {
            let matched = Pattern::new(&pattern).expect("a valid pattern").matches(&name);
            prop_assert_eq!(matched, naive(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn cut_out_pieces_match(name in "[a-c:é]{1,20}", cuts in proptest::collection::vec(any::<bool>(), 20)) {
            let pattern: String = name.chars().zip(cuts).map(|(c, cut)| if cut { '*' } else { c }).collect();
            prop_assert!(Pattern::new(&pattern).expect("a valid pattern").matches(&name));
        }
    }
}
