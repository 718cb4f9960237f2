//! A client's socket, TCP, TLS or Unix, and its way into a pin and back.

use std::{
    io::{self, IoSlice},
    mem,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll},
};

use fantail_pin::Wire;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::tls::TlsStream;

#[derive(Debug)]
pub enum Socket {
    /// TCP that the runtime has not been told of. It is when this must be waited for, which most requests that are
    /// held never need: they are there when their connection is accepted.
    Fresh(Fresh),
    Tcp(TcpStream),
    Tls(TlsStream),
    Unix(UnixStream),
}

/// A socket that does not block; empty only while it is given to the runtime.
#[derive(Debug)]
pub struct Fresh(Option<OwnedFd>);

impl Fresh {
    /// `socket` must be TCP and must not block.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(Some(socket))
    }

    fn socket(&self) -> io::Result<&OwnedFd> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub(super) fn into_tcp(mut self) -> io::Result<TcpStream> {
        let socket = mem::take(&mut self.0).ok_or(io::ErrorKind::NotConnected)?;
        TcpStream::from_std(socket.into())
    }

    /// None if it has nothing to read.
    fn read(&self, buf: &mut ReadBuf<'_>) -> io::Result<Option<()>> {
        let socket = self.socket()?;
        if let Some(read) =
            tried(|| rustix::net::recv(socket, buf.initialize_unfilled(), RecvFlags::empty()))?
        {
            let (read, _) = read;
            buf.advance(read);
            return Ok(Some(()));
        }
        Ok(None)
    }

    /// None if it has no room.
    fn write(&self, buf: &[u8]) -> io::Result<Option<usize>> {
        let socket = self.socket()?;
        tried(|| rustix::net::send(socket, buf, SendFlags::NOSIGNAL))
    }
}

/// What a call gives that does not block, or none if it would have to.
fn tried<R>(mut call: impl FnMut() -> Result<R, Errno>) -> io::Result<Option<R>> {
    match rustix::io::retry_on_intr(&mut call) {
        Ok(done) => Ok(Some(done)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Socket {
    /// Tells the runtime of a fresh socket, to be woken by it.
    fn register(&mut self) -> io::Result<()> {
        if let Self::Fresh(fresh) = self {
            let fresh = Fresh(fresh.0.take());
            *self = Self::Tcp(fresh.into_tcp()?);
        }
        Ok(())
    }

    pub(super) fn is_fresh(&self) -> bool {
        matches!(self, Self::Fresh(_))
    }

    /// Takes the socket from the runtime. What TLS has decrypted and nobody has read is appended to `unread`.
    pub(super) fn into_wire(self, unread: &mut Vec<u8>) -> io::Result<Wire> {
        match self {
            Self::Fresh(Fresh(socket)) => {
                let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
                Ok(Wire { socket, tls: None })
            }
            Self::Tcp(socket) => socket.into_std().map(|socket| Wire { socket: socket.into(), tls: None }),
            Self::Tls(TlsStream { tcp, mut tls }) => {
                unread.append(&mut tls.take_plain());
                tcp.into_std().map(|socket| Wire { socket: socket.into(), tls: Some(tls) })
            }
            Self::Unix(socket) => socket.into_std().map(|socket| Wire { socket: socket.into(), tls: None }),
        }
    }

    /// A socket that comes from a hold. `tcp` or not must be as it was.
    pub(super) fn from_wire(wire: Wire, tcp: bool) -> io::Result<Self> {
        let Wire { socket, tls } = wire;
        if !tcp {
            return UnixStream::from_std(socket.into()).map(Self::Unix);
        }
        Ok(match tls {
            Some(tls) => Self::Tls(TlsStream { tcp: TcpStream::from_std(socket.into())?, tls }),
            None => Self::Fresh(Fresh::new(socket)),
        })
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        if let Self::Fresh(fresh) = socket {
            if fresh.read(buf)?.is_some() {
                return Poll::Ready(Ok(()));
            }
            socket.register()?;
        }
        match socket {
            Self::Fresh(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        if let Self::Fresh(fresh) = socket {
            if let Some(written) = fresh.write(buf)? {
                return Poll::Ready(Ok(written));
            }
            socket.register()?;
        }
        match socket {
            Self::Fresh(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
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
        let socket = self.get_mut();
        // What is gathered is large.
        socket.register()?;
        match socket {
            Self::Fresh(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
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
            Self::Fresh(_) | Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Fresh(fresh) => Poll::Ready(
                fresh.socket().and_then(|socket| Ok(rustix::net::shutdown(socket, Shutdown::Write)?)),
            ),
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
