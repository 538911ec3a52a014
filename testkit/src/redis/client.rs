//! A client of a few lines for the Redis protocol (RESP2), so that the kit shares no code with the product.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::net::{SocketOptions, connect};

/// A server that is stopped answers nothing; a test that asks it must not hang.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// One connection.
#[derive(Debug)]
pub struct RedisClient {
    stream: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Nil,
    Integer(i64),
    Status(String),
    Bytes(Vec<u8>),
    Array(Vec<Value>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("not RESP2: {0:?}")]
    NotResp(String),
}

impl RedisClient {
    /// # Errors
    /// Whatever the kernel answers.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = connect(address, SocketOptions::default())?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command and waits for its answer.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub fn command(&mut self, words: &[impl AsRef<[u8]>]) -> Result<Value, RedisError> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value, RedisError> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| RedisError::NotResp(line.clone()))?;
        let number = || rest.parse::<i64>().map_err(|_| RedisError::NotResp(line.clone()));
        match kind {
            "+" => Ok(Value::Status(rest.to_owned())),
            "-" => Err(RedisError::Refused(rest.to_owned())),
            ":" => Ok(Value::Integer(number()?)),
            "$" => match usize::try_from(number()?) {
                Ok(length) => self.bytes(length),
                Err(_) => Ok(Value::Nil),
            },
            "*" => match number()? {
                length @ 0.. => {
                    (0..length).map(|_| self.answer()).collect::<Result<_, _>>().map(Value::Array)
                }
                _ => Ok(Value::Nil),
            },
            _ => Err(RedisError::NotResp(line)),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Value, RedisError> {
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(length);
        Ok(Value::Bytes(bytes))
    }

    fn line(&mut self) -> Result<String, RedisError> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(RedisError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(line.trim_end_matches("\r\n").to_owned())
    }
}

impl Value {
    /// Text of a status or of bytes, the number of an integer, nothing for the rest.
    pub fn text(&self) -> String {
        match self {
            Value::Status(text) => text.clone(),
            Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Nil | Value::Array(_) => String::new(),
        }
    }

    /// The elements of an array, none for the rest.
    pub fn elements(&self) -> &[Value] {
        match self {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }

    /// The value behind `name` in a flat list of names and values.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut pairs = self.elements().chunks_exact(2);
        pairs.find_map(|pair| match pair {
            [key, value] if key.text() == name => Some(value.text()),
            _ => None,
        })
    }
}

/// The value of `name:` in the text of INFO and its like.
pub(super) fn info_field(info: &str, name: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_lists_and_in_info() {
        let bytes = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        let list = Value::Array(vec![bytes("a"), bytes("b"), bytes("b"), Value::Integer(3)]);
        assert_eq!(list.field("b").as_deref(), Some("3"));
        assert_eq!(list.field("c"), None);
        let info = "# Replication\r\nrole:master\r\nrole_x:1\r\n";
        assert_eq!(info_field(info, "role").as_deref(), Some("master"));
        assert_eq!(info_field(info, "slaves"), None);
    }
}
