//! When a certificate ends: the one field of X.509 that operators need and rustls does not tell.

/// `notAfter` in seconds since 1970 (RFC 5280 section 4.1.2.5). `None`: not such a certificate.
pub(super) fn not_after_s(certificate: &[u8]) -> Option<i64> {
    let (certificate, _) = take(certificate, SEQUENCE)?;
    let (fields, _) = take(certificate, SEQUENCE)?;
    // The version is there unless it is 1.
    let fields = take(fields, VERSION).map_or(fields, |(_, rest)| rest);
    let (_, fields) = take(fields, INTEGER)?;
    let (_, fields) = take(fields, SEQUENCE)?;
    let (_, fields) = take(fields, SEQUENCE)?;
    let (validity, _) = take(fields, SEQUENCE)?;
    let (_, not_after) = take_any(validity)?;
    let (tag, text, _) = split(not_after)?;
    match tag {
        UTC_TIME => {
            let (year, rest) = digits(text, 2)?;
            seconds(if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits(text, 4)?;
            seconds(year, rest)
        }
        _ => None,
    }
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Tag 0 of the context, constructed.
const VERSION: u8 = 0xA0;

/// Tag and contents of the first element (DER, X.690 section 8.1), and what follows it.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        // So many bytes of length follow; a certificate is never longer than three can say.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(length & 0x7F))?;
            (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// Contents of the first element, which has this tag, and what follows it.
fn take(bytes: &[u8], expected: u8) -> Option<(&[u8], &[u8])> {
    let (tag, contents, rest) = split(bytes)?;
    (tag == expected).then_some((contents, rest))
}

fn take_any(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    split(bytes).map(|(_, contents, rest)| (contents, rest))
}

fn digits(text: &[u8], count: usize) -> Option<(i64, &[u8])> {
    let (number, rest) = text.split_at_checked(count)?;
    let number = number
        .iter()
        .try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))?;
    Some((number, rest))
}

/// `MMDDHHMMSSZ` of a year.
fn seconds(year: i64, text: &[u8]) -> Option<i64> {
    let (month, text) = digits(text, 2)?;
    let (day, text) = digits(text, 2)?;
    let (hour, text) = digits(text, 2)?;
    let (minute, text) = digits(text, 2)?;
    let (second, text) = digits(text, 2)?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    (in_range && text == b"Z").then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 in the Gregorian calendar. Years begin in March here, so that the leap day is their last; then
/// the months before one of them have 30.6 days on average, rounded.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between the 1st of March of the year 0 and 1970.
    year * 365 + leap_days + (month * 306 + 5) / 10 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tidegate_testkit::tls::Authority;

    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        for (year, month, day, expect) in [
            (1970, 1, 1, 0),
            (1970, 12, 31, 364),
            (2000, 2, 29, 11_016),
            (2000, 3, 1, 11_017),
            (2024, 2, 29, 19_782),
        ] {
            assert_eq!(days(year, month, day), expect, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn both_spellings_of_a_time_are_read() {
        // From 2050 on a certificate spells the whole year (RFC 5280 section 4.1.2.5).
        for (year, expect) in [(2030, 1_924_905_600), (2049, 2_524_521_600), (2051, 2_587_593_600)] {
            assert_eq!(not_after_s(Authority::new().issue(year).der()), Some(expect), "{year}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let whole = Authority::new().issue(2040).der().to_vec();
        for end in 0..whole.len() {
            // Cut short at every byte: never a panic, and the outermost length is not met.
            assert_eq!(not_after_s(&whole[..end]), None);
        }
        assert_eq!(not_after_s(b"\x30\x84\xFF\xFF\xFF\xFF"), None);
    }
}
