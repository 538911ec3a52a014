//! A socket on Tokio that comes from a shard: plain, or with the TLS session that it had there.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tidegate_reactor::TlsSession;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use super::TlsStream;

/// See the module.
#[derive(Debug)]
pub enum Link {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
}

/// A link as a shard takes it back.
#[derive(Debug)]
pub struct LinkParts {
    pub socket: StdTcpStream,
    pub tls: Option<Box<TlsSession>>,
    /// Decrypted, and read by nobody.
    pub unread: Vec<u8>,
}

/// A peer that has heard the end needs a round trip to end its own side; the rest of a body that nobody wants takes what
/// the network takes for it.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// A body by mistake is some MiB. More is not worth reading: that peer may see a reset.
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Dropped with one call.
const DROP_BYTES: usize = 16 * 1024;

impl Link {
    /// Within a runtime.
    pub fn new(socket: StdTcpStream, tls: Option<Box<TlsSession>>) -> io::Result<Self> {
        let socket = TcpStream::from_std(socket)?;
        Ok(match tls {
            None => Self::Plain(socket),
            Some(session) => Self::Tls(TlsStream::new(socket, session)),
        })
    }

    pub fn into_parts(self) -> io::Result<LinkParts> {
        let (socket, tls, unread) = match self {
            Self::Plain(socket) => (socket, None, Vec::new()),
            Self::Tls(stream) => {
                let (socket, session, unread) = stream.into_parts();
                (socket, Some(session), unread)
            }
        };
        Ok(LinkParts { socket: socket.into_std()?, tls, unread })
    }

    /// Ends the connection with a last answer, which may be empty, and drops what the peer still sends until it ends
    /// its side: a socket that is closed with unread bytes is reset, and the peer may lose what it was told last
    /// (RFC 9112 §9.6). For 5 s and 16 MiB at most.
    pub async fn end_with(mut self, answer: &[u8]) {
        let ending = async {
            self.write_all(answer).await?;
            self.shutdown().await?;
            let mut dropped = 0;
            let mut buffer = vec![0; DROP_BYTES];
            while dropped < LINGER_BYTES_MAX {
                match self.read(&mut buffer).await? {
                    0 => break,
                    count => dropped += count,
                }
            }
            io::Result::Ok(())
        };
        if let Ok(Err(error)) = timeout(LINGER_MAX, ending).await {
            tracing::debug!(%error, "a connection was not ended in order");
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    /// hyper joins small parts by itself for a socket that does not: one record instead of one for each.
    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Plain(socket) if socket.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
