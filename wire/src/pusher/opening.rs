//! The request that opens a connection: `/app/KEY?protocol=7&client=js&version=8.6.0&flash=false`.

use std::borrow::Cow;

use super::Code;
use crate::head::percent_decode;

/// A request that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening<'a> {
    pub key: Cow<'a, str>,
}

/// Versions in use: 5 by the clients for Java and .NET, 7 by the others. What differs is nothing that a server sends.
const VERSIONS: std::ops::RangeInclusive<u32> = 5..=7;

/// Whether a path is for this protocol at all, right or not.
#[must_use]
pub fn is_pusher_path(path: &str) -> bool {
    path == "/app" || path.starts_with("/app/")
}

impl<'a> Opening<'a> {
    /// Reads a path and its query, without the `?`. Keys of the query that are not known are ignored.
    ///
    /// # Errors
    /// The code to close with.
    pub fn parse(path: &'a str, query: Option<&'a str>) -> Result<Self, Code> {
        let key = path.strip_prefix("/app/").ok_or(Code::PATH)?;
        let key = key.strip_suffix('/').unwrap_or(key);
        if key.is_empty() || key.contains('/') {
            return Err(Code::PATH);
        }
        let key = percent_decode(key).map_err(|_| Code::PATH)?;
        let pairs =
            query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let version = pairs.into_iter().find_map(|(name, value)| (name == "protocol").then_some(value));
        let version = version.filter(|version| !version.is_empty()).ok_or(Code::VERSION_MISSING)?;
        // Digits only: `parse` would take a `+` too.
        if !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Code::VERSION_FORMAT);
        }
        let is_known = version.parse().is_ok_and(|version: u32| VERSIONS.contains(&version));
        if is_known { Ok(Self { key }) } else { Err(Code::VERSION_UNSUPPORTED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let check = |path: &str, query: &str, expect: Result<&str, Code>| {
            let query = (!query.is_empty()).then_some(query);
            let opening = Opening::parse(path, query);
            assert_eq!(
                opening.as_ref().map(|opening| &*opening.key).map_err(|code| *code),
                expect,
                "{path} {query:?}"
            );
            assert!(is_pusher_path(path), "{path}");
        };
        check("/app/key", "protocol=7&client=js&version=8.6.0&flash=false", Ok("key"));
        check("/app/key", "client=java-client&protocol=5&version=2", Ok("key"));
        check("/app/key/", "protocol=7", Ok("key"));
        check("/app/k%65y", "protocol=7", Ok("key"));
        check("/app/k+y", "protocol=7", Ok("k+y"));
        check("/app/", "protocol=7", Err(Code::PATH));
        check("/app", "protocol=7", Err(Code::PATH));
        check("/app/a/b", "protocol=7", Err(Code::PATH));
        check("/app/%zz", "protocol=7", Err(Code::PATH));
        check("/app/key", "", Err(Code::VERSION_MISSING));
        check("/app/key", "client=js", Err(Code::VERSION_MISSING));
        check("/app/key", "protocol=", Err(Code::VERSION_MISSING));
        for version in ["x", "7.0", "-7", "+7"] {
            check("/app/key", &format!("protocol={version}"), Err(Code::VERSION_FORMAT));
        }
        for version in ["0", "4", "8", "99999999999999999999"] {
            check("/app/key", &format!("protocol={version}"), Err(Code::VERSION_UNSUPPORTED));
        }
        assert!(!is_pusher_path("/apps/1/events") && !is_pusher_path("/application"));
    }
}
