//! Two blocking connections: requests to a node, commands to Redis.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::compare::rig::MeasureError;
use crate::http::ResponseReader;
use crate::target::Target;

/// A keep-alive connection with one `POST` under way.
pub(in crate::compare) struct Posts {
    stream: TcpStream,
    authority: String,
    reader: ResponseReader,
    buffer: Box<[u8]>,
}

impl Posts {
    pub(in crate::compare) fn connect(target: &Target) -> Result<Self, MeasureError> {
        let stream = TcpStream::connect(target.address)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            authority: target.authority.clone(),
            reader: ResponseReader::default(),
            buffer: vec![0; 64 * 1024].into(),
        })
    }

    pub(in crate::compare) fn request(&self, path: &str, body: &Value) -> Vec<u8> {
        let (authority, body) = (&self.authority, body.to_string());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer dev-key\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        (head + &body).into_bytes()
    }

    /// Sends a request and waits until it is answered with 200.
    pub(in crate::compare) fn post(&mut self, request: &[u8]) -> Result<(), MeasureError> {
        self.stream.write_all(request)?;
        let mut status = None;
        while status.is_none() {
            let read = self.stream.read(&mut self.buffer)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let fed = self.reader.feed(&self.buffer[..read], |head| status = Some(head.status));
            fed.map_err(io::Error::other)?;
        }
        match status {
            Some(200) => Ok(()),
            status => Err(MeasureError::Batch { status: status.unwrap_or_default() }),
        }
    }
}

/// A connection for commands that are answered with a number or a text.
pub(in crate::compare) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub(in crate::compare) fn connect(address: SocketAddr) -> Result<Self, MeasureError> {
        Ok(Self { stream: BufReader::new(TcpStream::connect(address)?) })
    }

    pub(in crate::compare) fn text(&mut self, words: &[&str]) -> Result<String, MeasureError> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(command.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        if let Some(length) = line.strip_prefix('$') {
            let length: usize = length.parse().map_err(io::Error::other)?;
            let mut text = vec![0; length + 2];
            self.stream.read_exact(&mut text)?;
            return Ok(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        match line.split_at_checked(1) {
            Some((":" | "+", value)) => Ok(value.to_owned()),
            _ => Err(io::Error::other(line.to_owned()).into()),
        }
    }

    /// A number of `INFO`: the digits after `field`; 0 where there is none.
    pub(in crate::compare) fn info(&mut self, section: &str, field: &str) -> Result<u64, MeasureError> {
        let info = self.text(&["INFO", section])?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        let digits = value.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        Ok(digits.parse().unwrap_or(0))
    }
}
