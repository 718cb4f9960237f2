//! A client's TLS from its handshake to its hold: what is agreed to, which certificate is shown, and the connection as
//! a stream of plain bytes. It makes no records and reads none: `fantail_pin::Tls` does, here and in a pin.

use std::{
    cell::RefCell,
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use fantail_pin::{Tls, TlsError};
use rustls::{
    HandshakeKind, ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    config::TlsProfile,
    metrics::{Count, Counters},
    shard::Shard,
    snapshot::Snapshot,
};

/// What a listener with TLS agrees to. Certificates are those of the snapshot that is current at a handshake.
///
/// # Errors
/// There are no keys to be had for tickets.
pub fn config(
    profile: TlsProfile,
    address: SocketAddr,
    snapshot: Arc<ArcSwap<Snapshot>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions: &[_] = match profile {
        TlsProfile::Intermediate => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsProfile::Modern => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver { snapshot, port: address.port() }));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session costs the client a ticket and us nothing.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

struct Resolver {
    snapshot: Arc<ArcSwap<Snapshot>>,
    port: u16,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.snapshot.load().certificates.find(hello.server_name(), self.port)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A connection whose handshake is done or under way.
#[derive(Debug)]
pub struct TlsStream {
    pub(super) tcp: TcpStream,
    pub(super) tls: Box<Tls>,
}

impl TlsStream {
    /// Does the handshake, and counts what becomes of it. Handshakes of one shard take turns, so that a crowd of them
    /// leaves time for all else.
    ///
    /// # Errors
    /// There is no connection: the socket is given back to be closed, and its client has been told why if it could be.
    pub(super) async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        shard: &Shard,
    ) -> Result<Self, TcpStream> {
        let patience = shard.snapshot.load().config.client.head_timeout;
        let counters = &shard.counters;
        let tls = match Tls::new(config) {
            Ok(tls) => Box::new(tls),
            Err(error) => {
                tracing::error!(%error, "TLS cannot begin");
                return Err(tcp);
            }
        };
        let mut stream = Self { tcp, tls };
        match tokio::time::timeout(patience, stream.shake_hands(shard)).await {
            Ok(Ok(())) => {
                let resumed = stream.tls.agreed().handshake_kind() == Some(HandshakeKind::Resumed);
                let count = if resumed { &counters.tls_resumed } else { &counters.tls_full };
                count.add(1);
                return Ok(stream);
            }
            Ok(Err(failure)) => {
                failure.cause(counters).add(1);
                tracing::debug!(%failure, "a TLS handshake failed");
                // The alert; a client that does not take it is not waited for.
                if let Ok(sent) = stream.tcp.try_write(stream.tls.output()) {
                    stream.tls.sent(sent);
                }
            }
            Err(_) => counters.tls_timeout.add(1),
        }
        Err(stream.tcp)
    }

    async fn shake_hands(&mut self, shard: &Shard) -> Result<(), Failure> {
        while self.tls.is_handshaking() {
            self.tcp.readable().await.map_err(Failure::Cut)?;
            let turn = shard.handshakes.acquire().await;
            let received = match self.receive_ready() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                received => received.map_err(Failure::Cut)?,
            };
            // Others go on before the next takes its turn.
            tokio::task::yield_now().await;
            match received {
                Received::End => return Err(Failure::Cut(ErrorKind::UnexpectedEof.into())),
                Received::Records(records) => records.map_err(Failure::Tls)?,
            }
            drop(turn);
            self.send().await.map_err(Failure::Cut)?;
        }
        Ok(())
    }

    /// Decrypts what the socket has now.
    fn receive_ready(&mut self) -> io::Result<Received> {
        SCRATCH.with_borrow_mut(|scratch| {
            let read = self.tcp.try_read(scratch)?;
            Ok(self.receive(scratch, read))
        })
    }

    fn receive(&mut self, scratch: &mut [u8], read: usize) -> Received {
        match scratch.get_mut(..read) {
            None | Some([]) => Received::End,
            Some(bytes) => Received::Records(self.tls.receive(bytes)),
        }
    }

    /// Sends what waits to be sent.
    async fn send(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.drain(cx)).await
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.tls.output().is_empty() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, self.tls.output()))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                sent => self.tls.sent(sent),
            }
        }
        Poll::Ready(Ok(()))
    }
}

enum Received {
    End,
    Records(Result<(), TlsError>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Tls(TlsError),
    /// The client left, or its connection broke.
    #[error("{0}")]
    Cut(io::Error),
}

impl Failure {
    fn cause<'a>(&self, counters: &'a Counters) -> &'a Count {
        match self {
            Self::Cut(_) | Self::Tls(TlsError::Protocol(rustls::Error::AlertReceived(_))) => {
                &counters.tls_client
            }
            Self::Tls(TlsError::Protocol(rustls::Error::PeerIncompatible(_)))
            | Self::Tls(TlsError::Protocol(rustls::Error::NoApplicationProtocol)) => {
                &counters.tls_incompatible
            }
            // All that rustls says in this form of a server's handshake: the resolver had nothing.
            Self::Tls(TlsError::Protocol(rustls::Error::General(_))) => &counters.tls_no_certificate,
            Self::Tls(_) => &counters.tls_malformed,
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        loop {
            let read = stream.tls.read(buf.initialize_unfilled());
            if read > 0 {
                buf.advance(read);
                return Poll::Ready(Ok(()));
            }
            if buf.remaining() == 0 || stream.tls.peer_has_closed() {
                return Poll::Ready(Ok(()));
            }
            let received = SCRATCH.with_borrow_mut(|scratch| {
                let mut bytes = ReadBuf::new(scratch);
                ready!(Pin::new(&mut stream.tcp).poll_read(cx, &mut bytes))?;
                let read = bytes.filled().len();
                Poll::Ready(io::Result::Ok(stream.receive(scratch, read)))
            });
            match ready!(received)? {
                // HTTP says where its messages end: a connection that is cut is no secret way to end one.
                Received::End => return Poll::Ready(Ok(())),
                Received::Records(Ok(())) => _ = stream.drain(cx)?,
                Received::Records(Err(error)) => {
                    _ = stream.drain(cx)?;
                    return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, error)));
                }
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    /// What is taken is a record and will be sent; only [`Self::poll_flush`] says that it has been.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        ready!(stream.drain(cx))?;
        let some = &buf[..buf.len().min(WRITE_BYTES)];
        stream.tls.write(some).map_err(|error| io::Error::new(ErrorKind::BrokenPipe, error))?;
        _ = stream.drain(cx)?;
        Poll::Ready(Ok(some.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.tls.close();
        ready!(stream.drain(cx))?;
        Pin::new(&mut stream.tcp).poll_shutdown(cx)
    }
}

/// Four full records: little enough that a slow client's progress is seen.
const WRITE_BYTES: usize = 64 << 10;
/// A record and what comes with it.
const SCRATCH_BYTES: usize = 18 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}
