//! Where the body of a request ends (RFC 9112 §6.3, §7.1). Pure.

use crate::head::Head;

/// A request of which it is not certain where its body ends (RFC 9112 §6.3): two readers may see two requests in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("Content-Length is given twice")]
    LengthRepeated,
    #[error("Content-Length is not a number")]
    Length,
    #[error("both Content-Length and Transfer-Encoding are given")]
    LengthAndEncoding,
    #[error("Transfer-Encoding does not end with `chunked`, has it twice, or is given in HTTP/1.0")]
    Encoding,
    #[error("Transfer-Encoding has a coding other than `chunked`, which this server does not decode")]
    CodingUnknown,
    #[error("the body is not in chunks")]
    Chunk,
}

/// The rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked(Chunked),
}

/// What is to come of a body in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
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
    pub(crate) const CHUNKED: Self = Self::Chunked(Chunked::BEGIN);

    /// Of a request.
    ///
    /// # Errors
    /// [`FramingError`]: its headers have more than one meaning, or none.
    pub fn of(head: &Head<'_>) -> Result<Self, FramingError> {
        let (mut length, mut encodings) = (None, Vec::new());
        for (name, value) in head.headers() {
            if name.eq_ignore_ascii_case("content-length") {
                if length.replace(value.trim_ascii()).is_some() {
                    return Err(FramingError::LengthRepeated);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                encodings.push(value);
            }
        }
        match length {
            Some(_) if !encodings.is_empty() => Err(FramingError::LengthAndEncoding),
            Some(length) => digits(length).map(Self::Length).ok_or(FramingError::Length),
            None if encodings.is_empty() => Ok(Self::Length(0)),
            None => {
                let codings = encodings.into_iter().flat_map(|value| value.split(|byte| *byte == b','));
                Self::of_codings(codings.map(<[u8]>::trim_ascii), head.minor_version)
            }
        }
    }

    /// RFC 9112 §6.1: chunks are the last coding, and applied once.
    fn of_codings<'c>(
        codings: impl Iterator<Item = &'c [u8]>,
        minor_version: u8,
    ) -> Result<Self, FramingError> {
        let is_chunked: Vec<bool> = codings.map(|coding| coding.eq_ignore_ascii_case(b"chunked")).collect();
        match is_chunked[..] {
            _ if minor_version == 0 => Err(FramingError::Encoding),
            [true] => Ok(Self::CHUNKED),
            [ref others @ .., true] if !others.contains(&true) => Err(FramingError::CodingUnknown),
            _ => Err(FramingError::Encoding),
        }
    }

    /// Nothing more of the body is to come.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunked::Over))
    }

    /// How many of these bytes belong to the body; what follows them is the next request.
    ///
    /// # Errors
    /// [`FramingError::Chunk`].
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, FramingError> {
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

impl Head<'_> {
    /// Whether a body follows the head (RFC 9112 §6.3). A length of zero counts as none, however it is written; anything
    /// unclear counts as a body, so that nothing which might be one is read as the next protocol.
    #[must_use]
    pub fn has_body(&self) -> bool {
        !Framing::of(self).is_ok_and(Framing::is_over)
    }
}

/// A number in nothing but digits, without a sign.
fn digits(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit).then_some(text)?;
    str::from_utf8(digits).ok()?.parse().ok()
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
}
