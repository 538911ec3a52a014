//! HMAC-SHA256 in hexadecimal digits: made, and compared in constant time.

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};

use crate::config::Secret;

/// An app's key and secrets.
pub(crate) struct Signer {
    /// The public part: it says whose signature one is.
    pub(crate) key: Box<str>,
    /// The first one signs; a signature of any of them is taken.
    secrets: Vec<Key>,
}

const TAG_BYTES: usize = 32;

impl Signer {
    pub(crate) fn new<'a>(key: Box<str>, secrets: impl Iterator<Item = &'a Secret>) -> Self {
        Self { key, secrets: secrets.map(|secret| Key::new(HMAC_SHA256, secret.expose())).collect() }
    }

    pub(crate) fn verify(&self, signed: &[u8], signature: &str) -> bool {
        let Some(tag) = tag(signature) else { return false };
        self.secrets.iter().any(|key| hmac::verify(key, signed, &tag).is_ok())
    }

    pub(crate) fn sign(&self, signed: &[u8]) -> String {
        let tag = self.secrets.first().map(|key| hmac::sign(key, signed));
        hex(tag.as_ref().map_or(&[], |tag| tag.as_ref()))
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The bytes of a signature. Its form is no secret, so this may stop early.
fn tag(signature: &str) -> Option<[u8; TAG_BYTES]> {
    let digits: &[u8; 2 * TAG_BYTES] = signature.as_bytes().try_into().ok()?;
    let mut tag = [0; TAG_BYTES];
    for (byte, pair) in tag.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(tag)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(secrets: &[&str]) -> Signer {
        let secrets: Vec<_> = secrets.iter().map(|secret| Secret::new(secret.as_bytes())).collect();
        Signer::new("key".into(), secrets.iter())
    }

    /// The vectors of Pusher's pages on authorising channels and on the HTTP API, recomputed:
    ///
    /// ```console
    /// $ printf '1234.1234:private-foobar' | openssl dgst -sha256 -hmac 7ad3773142a6692b25b8
    /// ```
    #[test]
    fn vectors() {
        let check = |signed: &str, signature: &str| {
            let secrets = secrets(&["7ad3773142a6692b25b8"]);
            assert_eq!(secrets.sign(signed.as_bytes()), signature, "{signed}");
            assert!(secrets.verify(signed.as_bytes(), signature), "{signed}");
        };
        check("1234.1234:private-foobar", "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4");
        check(
            r#"1234.1234:presence-foobar:{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#,
            "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
        );
        check(
            "POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&\
             body_md5=ec365a775a4cd0599faeb73354201b6f",
            "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
        );
    }

    #[test]
    fn what_is_no_signature() {
        let good = secrets(&["s"]).sign(b"text");
        assert!(secrets(&["s"]).verify(b"text", &good));
        for bad in [
            "",
            &good[..62],
            &format!("{good}00"),
            &good.to_uppercase(),
            &good.replacen(&good[..1], "g", 1),
            &format!("{}é", &good[..62]),
            &good.chars().rev().collect::<String>(),
        ] {
            assert!(!secrets(&["s"]).verify(b"text", bad), "{bad}");
        }
        assert!(!secrets(&["s"]).verify(b"texu", &good));
        assert!(!secrets(&["t"]).verify(b"text", &good));
    }

    #[test]
    fn a_previous_secret_verifies_and_does_not_sign() {
        let (old, both) = (secrets(&["old"]), secrets(&["new", "old"]));
        assert!(both.verify(b"text", &old.sign(b"text")));
        assert_eq!(both.sign(b"text"), secrets(&["new"]).sign(b"text"));
        assert!(!old.verify(b"text", &both.sign(b"text")));
    }
}
