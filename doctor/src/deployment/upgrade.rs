//! The upgrade to a WebSocket, and the little of RFC 6455 that a silent client needs.

use std::{
    io,
    time::{Duration, Instant},
};

use base64::Engine as _;
use http::{Request, Response, header};
use http_body_util::Empty;
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tidegate_wire::{
    frame::{CONTROL_PAYLOAD_BYTES_MAX, CloseCode, Opcode},
    upgrade::accept_key,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    STEP_TIMEOUT,
    answer::Answer,
    connect::{Route, Stream},
    request::send,
    trouble::Trouble,
};

/// An open WebSocket over a stream.
pub(super) struct Socket<S = TokioIo<Upgraded>> {
    stream: S,
}

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Message,
    Ping(Vec<u8>),
    Pong,
    Close { code: Option<u16>, reason: String },
}

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a frame that RFC 6455 does not know")]
    Malformed,
}

pub(super) async fn open(
    route: &Route,
    channel: &str,
    token: Option<&str>,
) -> Result<(Socket, Duration), Trouble> {
    let began = Instant::now();
    let key = base64::engine::general_purpose::STANDARD.encode(random::<16>()?);
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("channel", channel).finish();
    let mut request = Request::get(route.target().path(&format!("/ws?{query}")))
        .header(header::HOST, route.target().authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = send(route, request.body(Empty::new()).map_err(Trouble::Request)?).await?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(Trouble::refused("/ws", Answer::read(response).await));
    }
    let socket = upgraded(response, &key).await?;
    Ok((socket, began.elapsed()))
}

async fn upgraded(response: Response<Incoming>, key: &str) -> Result<Socket, Trouble> {
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|accept| accept.as_bytes() != accept_key(key)) {
        return Err(Trouble::Accept);
    }
    match timeout(STEP_TIMEOUT, hyper::upgrade::on(response)).await {
        Ok(Ok(upgraded)) => Ok(Socket { stream: TokioIo::new(upgraded) }),
        Ok(Err(source)) => Err(Trouble::Http { source }),
        Err(_) => Err(Trouble::Silent),
    }
}

impl<S: Stream> Socket<S> {
    /// The next frame. Payloads of messages are read and left.
    pub(super) async fn next(&mut self) -> Result<Frame, FrameError> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await?;
        let opcode = Opcode::from_bits(head[0] & 0x0F).ok_or(FrameError::Malformed)?;
        let length = match head[1] {
            // Servers do not mask (RFC 6455 section 5.1).
            masked if masked & 0x80 != 0 => return Err(FrameError::Malformed),
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            short => u64::from(short),
        };
        if !opcode.is_control() {
            let left = tokio::io::copy(&mut (&mut self.stream).take(length), &mut tokio::io::sink()).await?;
            return if left == length { Ok(Frame::Message) } else { Err(end_of_stream()) };
        }
        if length > CONTROL_PAYLOAD_BYTES_MAX as u64 {
            return Err(FrameError::Malformed);
        }
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(match opcode {
            Opcode::Ping => Frame::Ping(payload),
            Opcode::Close => close_frame(&payload),
            _ => Frame::Pong,
        })
    }

    pub(super) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.control(Opcode::Pong, payload).await
    }

    /// Says goodbye; whether it is heard does not matter any more.
    pub(super) async fn close(mut self) {
        if self.control(Opcode::Close, &CloseCode::NORMAL.0.to_be_bytes()).await.is_ok() {
            // The answer, so that the end counts as an orderly one on the other side; a broken one is as good.
            drop(timeout(STEP_TIMEOUT, self.next()).await);
        }
    }

    /// Clients mask (RFC 6455 section 5.3).
    async fn control(&mut self, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)];
        let key = random::<4>().map_err(io::Error::other)?;
        let mut frame = vec![0x80 | opcode as u8, 0x80 | payload.len() as u8];
        frame.extend_from_slice(&key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }
}

fn close_frame(payload: &[u8]) -> Frame {
    let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
    Frame::Close { code, reason }
}

fn end_of_stream() -> FrameError {
    FrameError::Io(io::ErrorKind::UnexpectedEof.into())
}

fn random<const N: usize>() -> Result<[u8; N], Trouble> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Trouble::Random)?;
    Ok(bytes)
}

#[cfg(test)]
impl<S> Socket<S> {
    pub(super) fn over(stream: S) -> Self {
        Self { stream }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Frames up to the end of the stream or the first that is malformed.
    async fn check(bytes: &[u8], expect: &[Frame], end: Option<io::ErrorKind>) {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        server.write_all(bytes).await.unwrap();
        drop(server);
        let mut socket = Socket::over(client);
        let mut frames = Vec::new();
        let error = loop {
            match socket.next().await {
                Ok(frame) => frames.push(frame),
                Err(FrameError::Io(error)) => break Some(error.kind()),
                Err(FrameError::Malformed) => break None,
            }
        };
        assert_eq!((frames.as_slice(), error), (expect, end), "{bytes:x?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn frames_of_every_length_are_read() {
        const END: Option<io::ErrorKind> = Some(io::ErrorKind::UnexpectedEof);
        for length in [0, 125, 126, 65_535, 65_536] {
            let mut bytes = Vec::new();
            tidegate_wire::frame::encode(Opcode::Text, &vec![b'x'; length], &mut bytes);
            tidegate_wire::frame::encode(Opcode::Ping, b"p", &mut bytes);
            check(&bytes, &[Frame::Message, Frame::Ping(b"p".to_vec())], END).await;
            check(&bytes[..bytes.len() - 4], &[], END).await;
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_no_server_may_send_is_malformed() {
        for bytes in [&[0x83, 0][..], &[0x81, 0x81, 0, 0, 0, 0, 1], &[0x89, 126, 0, 126]] {
            check(bytes, &[], None).await;
        }
    }
}
