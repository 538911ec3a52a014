//! Tests of the units and of what the process takes from files.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[test]
fn durations_and_sizes() {
    let ms = |text| Duration::from_text(text).map(|duration| duration.as_millis());
    for (text, expect) in [
        ("500ms", Some(500)),
        ("10s", Some(10_000)),
        ("1m30s", Some(90_000)),
        ("2h", Some(7_200_000)),
        ("1d", Some(86_400_000)),
        ("0s", Some(0)),
        ("10", None),
        ("s", None),
        ("", None),
        ("-1s", None),
        ("1.5s", None),
        ("1 s", None),
        ("10s5", None),
        ("10sec", None),
        ("99999999999999999999s", None),
        ("18446744073709551615d", None),
    ] {
        assert_eq!(ms(text), expect, "{text:?}");
    }
    for (text, expect) in [
        ("0", Some(0)),
        ("65536", Some(65_536)),
        ("12B", Some(12)),
        ("64KiB", Some(65_536)),
        ("1 MiB", Some(1 << 20)),
        ("2GiB", Some(2 << 30)),
        ("64kb", None),
        ("64k", None),
        ("KiB", None),
        ("", None),
        ("-1", None),
        ("1.5MiB", None),
        ("99999999999999999999", None),
        ("18446744073709551615GiB", None),
    ] {
        assert_eq!(ByteSize::from_text(text).map(ByteSize::bytes), expect, "{text:?}");
    }
}

proptest! {
    #[test]
    fn what_is_shown_can_be_read(ms in 0u64..10_000_000_000, bytes in 0usize..1 << 40) {
        let duration = Duration::from_millis(ms);
        prop_assert_eq!(Duration::from_text(duration.show().trim_matches('"')), Some(duration));
        let size = ByteSize::new(bytes);
        prop_assert_eq!(ByteSize::from_text(size.show().trim_matches('"')), Some(size));
        prop_assert_eq!(ByteSize::from_text(&size.to_string()), Some(size));
    }
}

#[test]
fn a_password_takes_its_place_in_a_url() {
    let check = |url: &str, expect: Option<&str>| {
        assert_eq!(Secret::new(b"p@s/s").in_url(url).as_deref(), expect, "{url}");
    };
    check("redis://h:1/2", Some("redis://:p%40s%2Fs@h:1/2"));
    check("redis://h", Some("redis://:p%40s%2Fs@h"));
    check("rediss-sentinel://me@a,b/main", Some("rediss-sentinel://me:p%40s%2Fs@a,b/main"));
    check("redis-sentinel://a,b/m@in", Some("redis-sentinel://:p%40s%2Fs@a,b/m@in"));
    check("redis-cluster://me:old@h", None);
    check("redis-cluster://:old@h", None);
    check("h:6379", None);
}
