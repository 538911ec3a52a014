//! The parameters of methods. `null` and what is left out are zero; members that are not here are not read.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use tidegate_wire::json::JsonValue;

/// Declares requests, whose every field may be left out.
macro_rules! requests {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$life:lifetime>)? { $( $(#[$field_doc:meta])* $field:ident: $type:ty, )* }
    )*) => { $(
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        pub(super) struct $name $(<$life>)? {
            $( $(#[$field_doc])* #[serde(deserialize_with = "or_zero")] pub(super) $field: $type, )*
        }
    )* };
}

requests! {
    Publish<'a> {
        channel: String,
        /// Of `broadcast`.
        channels: Vec<String>,
        #[serde(borrow)]
        data: Option<JsonValue<'a>>,
        b64data: String,
        skip_history: bool,
        tags: BTreeMap<String, String>,
        idempotency_key: String,
        version: u64,
    }

    Subscribe<'a> {
        user: String,
        client: String,
        session: String,
        channel: String,
        #[serde(borrow)]
        data: Option<JsonValue<'a>>,
        b64data: String,
        #[serde(borrow)]
        info: Option<JsonValue<'a>>,
        b64info: String,
        recover_since: Option<Since>,
    }

    Since {
        offset: u64,
        epoch: String,
    }

    Unsubscribe {
        user: String,
        client: String,
        session: String,
        channel: String,
    }

    Disconnect {
        user: String,
        client: String,
        session: String,
        whitelist: Vec<String>,
        disconnect: Option<Code>,
    }

    Code {
        code: u16,
        reason: String,
    }

    Refresh {
        user: String,
        client: String,
        session: String,
        expired: bool,
        expire_at: i64,
    }

    /// `presence` and `presence_stats`.
    OfChannel {
        channel: String,
    }

    Channels {
        pattern: String,
    }
}

fn or_zero<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
