//! A client's socket, TCP, TLS or Unix, and its way into a pin and back.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use fantail_pin::Wire;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::tls::TlsStream;

#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Tls(TlsStream),
    Unix(UnixStream),
}

impl Socket {
    /// Takes the socket from the runtime. What TLS has decrypted and nobody has read is appended to `unread`.
    pub(super) fn into_wire(self, unread: &mut Vec<u8>) -> io::Result<Wire> {
        match self {
            Self::Tcp(socket) => socket.into_std().map(|socket| Wire { socket: socket.into(), tls: None }),
            Self::Tls(TlsStream { tcp, mut tls }) => {
                unread.append(&mut tls.take_plain());
                tcp.into_std().map(|socket| Wire { socket: socket.into(), tls: Some(tls) })
            }
            Self::Unix(socket) => socket.into_std().map(|socket| Wire { socket: socket.into(), tls: None }),
        }
    }

    /// Gives a socket to the runtime. `tcp` or not must be as it was.
    pub(super) fn from_wire(wire: Wire, tcp: bool) -> io::Result<Self> {
        let Wire { socket, tls } = wire;
        if !tcp {
            return UnixStream::from_std(socket.into()).map(Self::Unix);
        }
        let tcp = TcpStream::from_std(socket.into())?;
        Ok(match tls {
            Some(tls) => Self::Tls(TlsStream { tcp, tls }),
            None => Self::Tcp(tcp),
        })
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        !self.is_tls()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
