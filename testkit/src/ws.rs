//! A WebSocket client over tungstenite: blocking, with a deadline on every read.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use crate::net::{SocketOptions, connect};
use crate::wait::DEADLINE;

/// A connected client.
#[derive(Debug)]
pub struct WsClient {
    socket: WebSocket<TcpStream>,
}

/// The HTTP answer that a refused upgrade got.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Closed(Closed),
    /// Nothing within the deadline; the connection stands.
    Nothing,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// A close frame with a code and a reason (1005 without one, RFC 6455 section 7.1.5).
    Frame { code: u16, reason: String },
    /// The stream ended or was reset with no close frame before.
    Abrupt,
}

impl WsClient {
    /// # Panics
    /// When the upgrade is refused.
    #[track_caller]
    pub fn connect(address: SocketAddr, path: &str) -> Self {
        match Self::try_connect(address, path, &[]) {
            Ok(client) => client,
            Err(refusal) => panic!("upgrade of {path} refused: {refusal:?}"),
        }
    }

    /// Connects with extra headers.
    ///
    /// # Errors
    /// The HTTP answer when it is not `101`.
    ///
    /// # Panics
    /// When there is no HTTP answer at all.
    #[track_caller]
    pub fn try_connect(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Box<Refusal>> {
        Self::try_connect_from(address, path, headers, SocketOptions::default())
    }

    /// As [`WsClient::try_connect`], over a socket with the given options.
    ///
    /// # Errors
    /// The HTTP answer when it is not `101`.
    ///
    /// # Panics
    /// When there is no HTTP answer at all.
    #[track_caller]
    pub fn try_connect_from(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
        options: SocketOptions,
    ) -> Result<Self, Box<Refusal>> {
        let stream = match connect(address, options) {
            Ok(stream) => stream,
            Err(error) => panic!("connect to {address}: {error}"),
        };
        stream.set_read_timeout(Some(DEADLINE)).expect("a positive time-out");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("a valid URL");
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header name");
            request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
        }
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(HandshakeError::Failure(Error::Http(response))) => Err(Box::new(Refusal::from(*response))),
            Err(error) => panic!("upgrade of {path}: no answer: {error}"),
        }
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send(Message::text(text));
    }

    #[track_caller]
    pub fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec()));
    }

    #[track_caller]
    pub fn send_ping(&mut self, payload: &[u8]) {
        self.send(Message::Ping(payload.to_vec().into()));
    }

    /// Starts the close handshake; [`WsClient::expect_close`] sees the answer.
    #[track_caller]
    pub fn send_close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        if let Err(error) = self.socket.close(Some(frame)) {
            panic!("send close: {error}");
        }
    }

    /// # Panics
    /// When the connection no longer takes it.
    #[track_caller]
    fn send(&mut self, message: Message) {
        if let Err(error) = self.socket.send(message) {
            panic!("send: {error}");
        }
    }

    /// Reads the next message, control frames included (pings are answered by tungstenite).
    ///
    /// # Panics
    /// When the server breaks the protocol.
    #[track_caller]
    pub fn next(&mut self, deadline: Duration) -> Received {
        let give_up = Instant::now() + deadline;
        loop {
            let left = give_up.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.get_ref().set_read_timeout(Some(left)).expect("a positive time-out");
            match self.socket.read() {
                Ok(Message::Text(text)) => return Received::Text(text.to_string()),
                Ok(Message::Binary(bytes)) => return Received::Binary(bytes.to_vec()),
                Ok(Message::Ping(payload)) => return Received::Ping(payload.to_vec()),
                Ok(Message::Pong(payload)) => return Received::Pong(payload.to_vec()),
                Ok(Message::Close(frame)) => return Received::Closed(self.finish_close(frame)),
                Ok(Message::Frame(_)) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                    return Received::Closed(Closed::Abrupt);
                }
                Err(Error::Io(error)) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if Instant::now() >= give_up => {
                        return Received::Nothing;
                    }
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Received::Closed(Closed::Abrupt),
                },
                Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                    return Received::Closed(Closed::Abrupt);
                }
                Err(error) => panic!("the server broke the protocol: {error}"),
            }
        }
    }

    /// The next text message; control frames are passed over.
    ///
    /// # Panics
    /// When something else or nothing comes.
    #[track_caller]
    pub fn expect_text(&mut self) -> String {
        match self.next_data() {
            Received::Text(text) => text,
            other => panic!("expected a text message, got {other:?}"),
        }
    }

    /// The next text message, as JSON.
    ///
    /// # Panics
    /// When something else or nothing comes.
    #[track_caller]
    pub fn expect_json(&mut self) -> Value {
        let text = self.expect_text();
        match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}): {text}"),
        }
    }

    /// # Panics
    /// When something else or nothing comes.
    #[track_caller]
    pub fn expect_binary(&mut self) -> Vec<u8> {
        match self.next_data() {
            Received::Binary(bytes) => bytes,
            other => panic!("expected a binary message, got {other:?}"),
        }
    }

    /// The pong of an own ping.
    ///
    /// # Panics
    /// When something else or nothing comes.
    #[track_caller]
    pub fn expect_pong(&mut self) -> Vec<u8> {
        match self.next_but(DEADLINE, |received| matches!(received, Received::Ping(_))) {
            Received::Pong(payload) => payload,
            other => panic!("expected a pong, got {other:?}"),
        }
    }

    /// A close frame with this code comes next; its reason is given.
    ///
    /// # Panics
    /// When another code or something else comes.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> String {
        match self.next_data() {
            Received::Closed(Closed::Frame { code: got, reason }) if got == code => reason,
            other => panic!("expected close {code}, got {other:?}"),
        }
    }

    /// Reads messages until the connection ends and tells how it ended and how many data messages came before.
    ///
    /// # Panics
    /// When it stays open without any for so long.
    #[track_caller]
    pub fn read_to_close(&mut self, deadline: Duration) -> (usize, Closed) {
        let mut messages = 0;
        loop {
            match self
                .next_but(deadline, |received| matches!(received, Received::Ping(_) | Received::Pong(_)))
            {
                Received::Text(_) | Received::Binary(_) => messages += 1,
                Received::Ping(_) | Received::Pong(_) => {}
                Received::Closed(closed) => return (messages, closed),
                Received::Nothing => {
                    panic!("still open after {deadline:?} of silence and {messages} messages")
                }
            }
        }
    }

    #[track_caller]
    fn next_data(&mut self) -> Received {
        self.next_but(DEADLINE, |received| matches!(received, Received::Ping(_) | Received::Pong(_)))
    }

    /// The next that is not passed over. What is does not make the deadline later: pings come for as long as a
    /// connection stands.
    #[track_caller]
    fn next_but(&mut self, deadline: Duration, is_passed: impl Fn(&Received) -> bool) -> Received {
        let give_up = Instant::now() + deadline;
        loop {
            let received = self.next(give_up.saturating_duration_since(Instant::now()));
            if !is_passed(&received) {
                return received;
            }
        }
    }

    /// Sends the echo of the close frame, so that the server sees a complete handshake.
    fn finish_close(&mut self, frame: Option<CloseFrame>) -> Closed {
        // An error means that the server closed the stream first, which section 7.1.1 lets it do.
        drop(self.socket.flush());
        match frame {
            Some(frame) => Closed::Frame { code: frame.code.into(), reason: frame.reason.to_string() },
            None => Closed::Frame { code: 1005, reason: String::new() },
        }
    }
}

impl Refusal {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl From<tungstenite::http::Response<Option<Vec<u8>>>> for Refusal {
    fn from(response: tungstenite::http::Response<Option<Vec<u8>>>) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers =
            response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        Self { status: response.status().as_u16(), headers, body }
    }
}
