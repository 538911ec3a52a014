//! Counts the events of an event stream inside an HTTP body, chunked or not, wherever reads cut it.

/// First bytes of an event's data that are reported.
const DATA_HEAD_BYTES: usize = 128;

/// Where one event stream stands.
#[derive(Debug)]
pub struct SseScanner {
    chunked: bool,
    chunk: Chunk,
    line: Line,
    /// First bytes of the event's first data line.
    data: Vec<u8>,
    data_lines: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// Reading the size line; `None` before its first digit. An extension after `;` is skipped.
    Size {
        size: u64,
        extension: bool,
    },
    Data {
        left: u64,
    },
    /// The line end after the data.
    DataEnd,
}

/// What the current line turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Its first bytes match `data:` so far.
    Start {
        matched: u8,
    },
    Data {
        leading: bool,
    },
    Other,
}

const DATA_FIELD: &[u8] = b"data:";

impl SseScanner {
    #[must_use]
    pub fn new(chunked: bool) -> Self {
        Self {
            chunked,
            chunk: Chunk::Size { size: 0, extension: false },
            line: Line::Start { matched: 0 },
            data: Vec::new(),
            data_lines: 0,
        }
    }

    /// Takes the next bytes of the body; `on` gets the first bytes of each event that has data.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(&[u8])) {
        for &byte in bytes {
            if !self.chunked {
                self.take(byte, &mut on);
                continue;
            }
            match self.chunk {
                Chunk::Size { size, extension } => self.chunk = size_step(size, extension, byte),
                Chunk::Data { left } => {
                    self.take(byte, &mut on);
                    self.chunk = if left == 1 { Chunk::DataEnd } else { Chunk::Data { left: left - 1 } };
                }
                Chunk::DataEnd if byte == b'\n' => self.chunk = Chunk::Size { size: 0, extension: false },
                Chunk::DataEnd => {}
            }
        }
    }

    /// One byte of the stream itself (WHATWG HTML §9.2.6; servers here end lines with LF).
    fn take(&mut self, byte: u8, on: &mut impl FnMut(&[u8])) {
        if byte == b'\r' {
            return;
        }
        if byte == b'\n' {
            let empty = self.line == Line::Start { matched: 0 };
            if empty && self.data_lines > 0 {
                on(&self.data);
                self.data.clear();
                self.data_lines = 0;
            }
            self.line = Line::Start { matched: 0 };
            return;
        }
        match self.line {
            Line::Start { matched } if byte == DATA_FIELD[usize::from(matched)] => {
                self.line = if usize::from(matched) + 1 == DATA_FIELD.len() {
                    self.data_lines += 1;
                    Line::Data { leading: true }
                } else {
                    Line::Start { matched: matched + 1 }
                };
            }
            Line::Start { .. } | Line::Other => self.line = Line::Other,
            Line::Data { leading: true } if byte == b' ' => self.line = Line::Data { leading: false },
            Line::Data { .. } => {
                self.line = Line::Data { leading: false };
                if self.data_lines == 1 && self.data.len() < DATA_HEAD_BYTES {
                    self.data.push(byte);
                }
            }
        }
    }
}

fn size_step(size: u64, extension: bool, byte: u8) -> Chunk {
    match byte {
        b'\n' if size == 0 => Chunk::Size { size: 0, extension: false },
        b'\n' => Chunk::Data { left: size },
        _ => match (byte as char).to_digit(16) {
            Some(digit) if !extension => {
                Chunk::Size { size: size.wrapping_mul(16).wrapping_add(u64::from(digit)), extension }
            }
            _ => Chunk::Size { size, extension: true },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nid: e:1\ndata: first\n\nevent: gap\r\ndata:second\r\ndata: more\r\n\r\nretry: 5\n\ndata: third\n\n";

    fn scan(bytes: &[u8], chunked: bool, pieces: usize) -> Vec<String> {
        let mut scanner = SseScanner::new(chunked);
        let mut seen = Vec::new();
        for piece in bytes.chunks(pieces) {
            scanner.feed(piece, |data| seen.push(String::from_utf8_lossy(data).into_owned()));
        }
        seen
    }

    #[test]
    fn events_are_counted_wherever_cut() {
        for pieces in 1..STREAM.len() {
            assert_eq!(scan(STREAM.as_bytes(), false, pieces), ["first", "second", "third"]);
        }
    }

    #[test]
    fn chunks_are_invisible() {
        for size in [1, 3, 7, 16, 40] {
            let mut body = String::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                body += &format!("{:X};ext=a\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
            }
            for pieces in [1, 2, 5, 64, 4_096] {
                assert_eq!(scan(body.as_bytes(), true, pieces), ["first", "second", "third"]);
            }
        }
    }
}
