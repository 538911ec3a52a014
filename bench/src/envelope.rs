//! The little of the raw protocol's envelopes that a client needs that recovers: the position, and the payload.

use crate::http::find;

/// Reads the head of a message. What follows the opening quote of its data, if it is a publication; `position` is then, and
/// where a subscription has begun, what is said of it: `EPOCH:OFFSET`.
pub(crate) fn data<'a>(head: &'a [u8], position: &mut String) -> Option<&'a [u8]> {
    let after = |name: &[u8]| find(head, name).map(|at| &head[at + name.len()..]);
    let epoch = after(br#""epoch":""#).and_then(|rest| rest.split(|&byte| byte == b'"').next());
    let offset = after(br#""offset":"#).and_then(|rest| rest.split(|&byte| !byte.is_ascii_digit()).next());
    if let (Some(epoch), Some(offset)) = (epoch, offset) {
        position.clear();
        for part in [epoch, b":", offset] {
            position.push_str(&String::from_utf8_lossy(part));
        }
    }
    after(br#""data":""#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_kept_and_a_payload_found() {
        let mut position = String::new();
        let begun = br#"{"channel":"kept:a","subscribed":{"epoch":"k3f9","offset":41,"recovered":false}}"#;
        assert_eq!(data(begun, &mut position), None);
        assert_eq!(position, "k3f9:41");
        let publication = br#"{"channel":"kept:a","epoch":"k3f9","offset":42,"data":"T71de"}"#;
        assert_eq!(data(publication, &mut position), Some(&b"T71de\"}"[..]));
        assert_eq!(position, "k3f9:42");
        let unknown = br#"{"channel":"kept:a","gap":{"reason":"lost","epoch":null,"offset":null}}"#;
        assert_eq!(data(unknown, &mut position), None);
        assert_eq!(position, "k3f9:42");
    }
}
