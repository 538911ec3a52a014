//! Bytes as a PROXY protocol v2 header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_wire::proxy_v2::{HEADER_BYTES_MAX, Header, SIGNATURE};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&[&SIGNATURE[..], bytes].concat());
});

fn check(bytes: &[u8]) {
    let longer = [bytes, b"GET / HTTP/1.1\r\n"].concat();
    match Header::parse(bytes) {
        Ok(None) => assert!(bytes.len() < HEADER_BYTES_MAX),
        Err(error) => assert_eq!(Header::parse(&longer), Err(error)),
        Ok(Some(header)) => {
            assert!(header.len <= bytes.len());
            assert_eq!(Header::parse(&longer), Ok(Some(header)));
            assert_eq!(Header::parse(&bytes[..header.len]), Ok(Some(header)));
            assert_eq!(Header::parse(&bytes[..header.len - 1]), Ok(None));
            if let Some(addresses) = header.addresses {
                let mut out = Vec::new();
                addresses.write(&mut out);
                let again = Header::parse(&out).expect("what is written is good").expect("and whole");
                assert_eq!(again.addresses, Some(addresses));
            }
        }
    }
}
