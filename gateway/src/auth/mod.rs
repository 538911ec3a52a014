//! Who may connect, subscribe, publish and administrate.

mod origin;
mod pattern;

pub use origin::{OriginRule, Origins};
pub use pattern::{PATTERN_BYTES_MAX, Pattern, PatternError};

use crate::config::setting::choice;

choice! {
    /// How a token is signed (RFC 7518 section 3.1, RFC 8037). `none` is not among them.
    Algorithm, r#""HS256", "RS256", "ES256" or "EdDSA""#, "a list of algorithms", {
        Hs256 = "HS256",
        Rs256 = "RS256",
        Es256 = "ES256",
        EdDsa = "EdDSA",
    }
}

choice! {
    /// What an API key may do.
    Scope, r#""publish", "read" or "admin""#, r#"a list of "publish", "read", "admin""#, {
        Publish = "publish",
        /// Channels, history, presence, nodes.
        Read = "read",
        /// Disconnect clients.
        Admin = "admin",
    }
}
