//! Where the body of a request ends (RFC 9112 §6.3, §7.1). Pure.

use tidegate_wire::head::Head;

use crate::proxy::refusal::FramingError;

/// The rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked(Chunked),
}

/// What is to come of a body in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunked {
    /// A size, of which so much was read. The count of digits keeps it within 64 bits.
    Size {
        digits: u8,
        size: u64,
    },
    /// The end of a size line, behind a semicolon.
    Extension {
        size: u64,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataEnd,
    DataEndLine,
    /// A trailer, or the empty line after all of them.
    LineBegin,
    Trailer,
    TrailerEnd,
    LastEnd,
    Over,
}

const DIGITS_MAX: u8 = 16;

impl Framing {
    /// Of a request whose headers have one meaning ([`route`](crate::proxy::request::route) has looked).
    pub(super) fn of(head: &Head<'_>) -> Result<Self, FramingError> {
        let named = |wanted: &str| {
            head.headers().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value)
        };
        if named("transfer-encoding").is_some() {
            return Ok(Self::Chunked(Chunked::BEGIN));
        }
        let Some(length) = named("content-length") else { return Ok(Self::Length(0)) };
        let length = str::from_utf8(length).ok().and_then(|length| length.trim().parse().ok());
        length.map(Self::Length).ok_or(FramingError::Length)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::Over))
    }

    /// How many of these bytes belong to the body; what follows them is the next request.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
        match self {
            Self::Length(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(state) => state.take(bytes),
        }
    }
}

impl Chunked {
    const BEGIN: Self = Self::Size { digits: 0, size: 0 };

    fn take(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
        let mut taken = 0;
        while taken < bytes.len() && *self != Self::Over {
            if let Self::Data { left } = *self {
                let part = (bytes.len() - taken).min(usize::try_from(left).unwrap_or(usize::MAX));
                taken += part;
                let left = left - part as u64;
                *self = if left == 0 { Self::DataEnd } else { Self::Data { left } };
            } else {
                *self = self.after(bytes[taken]).ok_or(FramingError::Chunk)?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Of the states that take bytes one by one. Stricter than the grammar: a line ends with CR and LF, and there is no
    /// white space behind a size.
    fn after(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size { digits: 1.., size }, b';') => Self::Extension { size },
            (Self::Size { digits: 1.., size }, b'\r') => Self::SizeEnd { size },
            (Self::Size { digits: ..DIGITS_MAX, .. }, _) => self.after_digit(char::from(byte).to_digit(16)?),
            (Self::Extension { size }, b'\r') => Self::SizeEnd { size },
            (Self::Extension { size }, byte) if byte != b'\n' => Self::Extension { size },
            (Self::SizeEnd { size: 0 }, b'\n') => Self::LineBegin,
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataEnd, b'\r') => Self::DataEndLine,
            (Self::DataEndLine, b'\n') => Self::BEGIN,
            (Self::LineBegin, b'\r') => Self::LastEnd,
            (Self::Trailer, b'\r') => Self::TrailerEnd,
            (Self::LineBegin | Self::Trailer, byte) if byte != b'\n' => Self::Trailer,
            (Self::TrailerEnd, b'\n') => Self::LineBegin,
            (Self::LastEnd, b'\n') => Self::Over,
            _ => return None,
        })
    }

    fn after_digit(self, digit: u32) -> Self {
        match self {
            Self::Size { digits, size } => {
                Self::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In one piece and byte by byte: what is taken, and whether the body is over then.
    #[track_caller]
    fn check(begin: Framing, bytes: &str, expect: Result<(usize, bool), FramingError>) {
        let mut whole = begin;
        assert_eq!(whole.take(bytes.as_bytes()).map(|taken| (taken, whole.is_over())), expect, "{bytes:?}");
        let mut piecewise = begin;
        let mut taken = Ok(0);
        for byte in bytes.as_bytes() {
            taken = taken.and_then(|sum| Ok(sum + piecewise.take(&[*byte])?));
        }
        assert_eq!(taken.map(|taken| (taken, piecewise.is_over())), expect, "{bytes:?}, byte by byte");
    }

    #[test]
    fn a_length_ends_after_so_many_bytes() {
        check(Framing::Length(5), "hel", Ok((3, false)));
        check(Framing::Length(5), "helloGET /", Ok((5, true)));
        check(Framing::Length(0), "GET /", Ok((0, true)));
    }

    #[test]
    fn chunks_end_with_an_empty_line() {
        let begin = Framing::Chunked(Chunked::BEGIN);
        for (bytes, rest) in [
            ("0\r\n\r\n", "GET /"),
            ("5\r\nhello\r\n0\r\n\r\n", "GET /"),
            ("5;a=b;c\r\nhello\r\nA\r\n0\r\n\r\n0\r\n\r\r\r\n000\r\n\r\n", ""),
            ("1\r\nx\r\n0\r\nTrailer: a\r\nOther: b\r\n\r\n", "\r\n"),
        ] {
            check(begin, &format!("{bytes}{rest}"), Ok((bytes.len(), true)));
            check(begin, &bytes[..bytes.len() - 1], Ok((bytes.len() - 1, false)));
        }
        for bad in [
            "\r\n",
            "x\r\n",
            "5 \r\nhello",
            "5\nhello",
            "5;a\nhello",
            "5\r\nhello!",
            "0\r\n\n",
            "0\r\nTrailer: a\n\r\n",
            "11111111111111111\r\n",
            "-1\r\n",
            "0x1\r\n",
        ] {
            check(begin, bad, Err(FramingError::Chunk));
        }
    }

    #[test]
    fn the_head_says_which() {
        let of = |lines: &str| {
            let head = format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
            Framing::of(&Head::parse(head.as_bytes()).expect("good").expect("whole"))
        };
        assert_eq!(of(""), Ok(Framing::Length(0)));
        assert_eq!(of("Content-Length: 007\r\n"), Ok(Framing::Length(7)));
        assert_eq!(of("Content-Length: 18446744073709551616\r\n"), Err(FramingError::Length));
        assert_eq!(of("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked(Chunked::BEGIN)));
    }
}
