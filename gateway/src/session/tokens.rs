//! Tokens that clients give on their open connection: verified at once, or when their key was fetched; and subscriptions
//! that last as long as a token of their own.

use std::{sync::Arc, time::SystemTime};

use tidegate_reactor::Tick;
use tokio::sync::OwnedSemaphorePermit;

use super::Ctx;
use crate::{
    auth::{Authenticator, Claims, TokenError, Verdict},
    hub::ChannelKey,
};

/// Why a token does not count.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum TokenRefused {
    #[error("the token is refused: {0}")]
    Token(#[from] TokenError),
    #[error("{0} has as many commands wait for keys as it may; try again")]
    Busy(&'static str),
}

/// Subscriptions that tokens of their own have opened, or the application's word (`true`), and when those expire.
#[derive(Debug, Default)]
pub(crate) struct Grants(Vec<(ChannelKey, Tick, bool)>);

/// Commands of one connection whose token may wait for a key.
const AWAITING_KEYS_MAX: u8 = 4;

impl Ctx<'_> {
    /// Goes on with the claims of a token, at once or when its key was fetched.
    pub(crate) fn with_claims(
        &mut self,
        token: String,
        then: impl FnOnce(&mut Ctx<'_>, Result<Claims, TokenRefused>) + Send + 'static,
    ) {
        let authenticator = Arc::clone(&self.core.shared.authenticator);
        match authenticator.verify(&token, SystemTime::now()) {
            Verdict::Valid(claims) => then(self, Ok(claims)),
            Verdict::Invalid(error) => then(self, Err(error.into())),
            Verdict::NeedsKeys(_) => match self.await_keys(&authenticator, &token) {
                Ok(room) => {
                    let fetched = async move {
                        let claims = authenticator.authenticate(&token).await;
                        drop(room);
                        claims
                    };
                    self.run(fetched, move |ctx, claims| {
                        ctx.keys_awaited();
                        then(ctx, claims.map_err(TokenRefused::from));
                    });
                }
                Err(busy) => then(self, Err(busy)),
            },
        }
    }

    /// Takes room for a command that waits for a key, of the connection's and the node's.
    fn await_keys(
        &mut self,
        authenticator: &Authenticator,
        token: &str,
    ) -> Result<OwnedSemaphorePermit, TokenRefused> {
        let busy = TokenRefused::Busy("this connection");
        let rare = self.open_mut().ok_or(busy)?.rare_mut();
        if rare.awaiting_keys >= AWAITING_KEYS_MAX {
            return Err(busy);
        }
        let room = authenticator.room_for(token).ok_or(TokenRefused::Busy("this node"))?;
        rare.awaiting_keys += 1;
        Ok(room)
    }

    fn keys_awaited(&mut self) {
        let Some(open) = self.open_mut() else { return };
        open.rare_mut().awaiting_keys -= 1;
        open.drop_empty_rare();
    }
}

impl Grants {
    /// Lasts until then; `None`: as long as the connection.
    pub(crate) fn set(&mut self, key: ChannelKey, expires: Option<Tick>, is_asked: bool) {
        self.forget(key);
        self.0.extend(expires.map(|expires| (key, expires, is_asked)));
    }

    pub(crate) fn has(&self, key: ChannelKey) -> bool {
        self.0.iter().any(|&(own, ..)| own == key)
    }

    pub(crate) fn forget(&mut self, key: ChannelKey) {
        self.0.retain(|&(own, ..)| own != key);
    }

    /// When one of them ends, whose client has to bring another token before that.
    pub(crate) fn due_to_client(&self, key: ChannelKey) -> Option<Tick> {
        self.0.iter().find(|&&(own, _, is_asked)| own == key && !is_asked).map(|&(_, expires, _)| expires)
    }

    /// Each, when it ends, and whether it is the application's word.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (ChannelKey, Tick, bool)> {
        self.0.iter().copied()
    }

    /// When the first of them ends.
    pub(crate) fn due(&self) -> Option<Tick> {
        self.0.iter().map(|&(_, expires, _)| expires).min()
    }

    /// Those that have ended, and whether the application is asked about them; they are forgotten.
    pub(crate) fn take_ended(&mut self, now: Tick) -> Vec<(ChannelKey, bool)> {
        self.0.extract_if(.., |(_, expires, _)| *expires <= now).map(|(key, _, asked)| (key, asked)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
