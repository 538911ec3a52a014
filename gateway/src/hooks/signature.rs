//! Standard Webhooks: the headers that say that a request is ours, and of now.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::hmac::{Context, HMAC_SHA256, Key};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::{HookEntry, secret_bytes};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Signs with each secret that an application may have.
pub(crate) struct Signer(Vec<Key>);

/// Names requests; no two of this process, and none of another, are the same.
#[derive(Debug)]
pub(crate) struct Ids {
    life: u64,
    next: AtomicU64,
}

impl Signer {
    pub(crate) fn new(entry: &HookEntry) -> Self {
        let secrets = [&entry.secret, &entry.previous_secret].into_iter().flatten();
        Self(secrets.filter_map(secret_bytes).map(|bytes| Key::new(HMAC_SHA256, &bytes)).collect())
    }

    /// Adds the three headers. `timestamp`: seconds since 1970. A repetition keeps its id.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8], headers: &mut HeaderMap) {
        let timestamp = itoa::Buffer::new().format(timestamp).to_owned();
        let signatures: Vec<String> = self.0.iter().map(|key| signature(key, id, &timestamp, body)).collect();
        let values = [(ID, id.to_owned()), (TIMESTAMP, timestamp), (SIGNATURE, signatures.join(" "))];
        for (name, value) in values {
            if !value.is_empty()
                && let Ok(value) = HeaderValue::try_from(value)
            {
                headers.insert(name, value);
            }
        }
    }
}

fn signature(key: &Key, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut context = Context::with_key(key);
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        context.update(part);
    }
    format!("v1,{}", STANDARD.encode(context.sign()))
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("secrets", &self.0.len()).finish_non_exhaustive()
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self { life: getrandom::u64().unwrap_or_default(), next: AtomicU64::new(0) }
    }
}

impl Ids {
    pub(crate) fn next(&self) -> String {
        format!("msg_{:016x}{:x}", self.life, self.next.fetch_add(1, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::Secret;

    /// The vector of the specification's page, recomputed:
    ///
    /// ```console
    /// $ printf 'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}' |
    ///     openssl dgst -sha256 -mac hmac -macopt hexkey:$(printf MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw | base64 -d | xxd -p -c 99) -binary | base64
    /// ```
    #[test]
    fn vector() {
        let secret = |text: &str| Some(Secret::new(text.as_bytes()));
        let entry =
            HookEntry { secret: secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), ..HookEntry::default() };
        let mut headers = HeaderMap::new();
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        Signer::new(&entry).sign(id, 1_614_265_330, body, &mut headers);
        let signed = headers[SIGNATURE].to_str().unwrap();
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let previous_secret = secret("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        Signer::new(&HookEntry { previous_secret, ..entry }).sign(id, 1_614_265_330, body, &mut headers);
        let both = headers[SIGNATURE].to_str().unwrap().to_owned();
        assert!(both.starts_with("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,"), "{both}");
    }

    #[test]
    fn without_a_secret_nothing_is_signed() {
        let mut headers = HeaderMap::new();
        Signer::new(&HookEntry::default()).sign("msg_1", 1, b"", &mut headers);
        assert!(headers.get(SIGNATURE).is_none() && headers[ID] == "msg_1");
    }
}
