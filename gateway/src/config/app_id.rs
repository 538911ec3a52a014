//! The id of an app, and the one rule for the names of its channels.

use std::{fmt, sync::Arc};

use tidegate_backplane::{Channel, ChannelError};

/// Names an app inside: 1 to [`AppId::BYTES_MAX`] bytes of `[A-Za-z0-9_-]`. Shared by reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(Arc<str>);

impl AppId {
    /// In names of channels it stands before the `!`; see `docs/adr/0012-pusher.md`.
    pub const BYTES_MAX: usize = 32;

    pub fn new(id: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        ((1..=Self::BYTES_MAX).contains(&id.len()) && id.bytes().all(allowed)).then(|| Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The channel of this name in an app; `None` is the default one, whose channels have no prefix.
    pub fn channel(app: Option<&str>, name: &str) -> Result<Channel, ChannelError> {
        match app {
            None => Channel::new(name),
            Some(app) => Channel::in_app(app, name),
        }
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::borrow::Borrow<str> for AppId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}
