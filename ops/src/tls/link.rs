//! A socket on Tokio that comes from a shard: plain, or with the TLS session that it had there.

use std::{
    io,
    net::TcpStream as StdTcpStream,
    pin::Pin,
    task::{Context, Poll},
};

use tidegate_reactor::TlsSession;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
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

    /// Sends a last answer as far as the socket takes it now.
    pub fn try_answer(&mut self, answer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(answer),
            Self::Tls(stream) => {
                let session = stream.session_mut();
                session.queue(answer).map_err(io::Error::other)?;
                session.close();
                let unsent = session.unsent().to_vec();
                stream.get_ref().try_write(&unsent)
            }
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
