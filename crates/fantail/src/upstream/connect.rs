//! Opening a connection to an origin: resolve, refuse private addresses where asked to, connect, TLS.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fantail_proto::address;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Failure;
use crate::{config, tcp};

/// Where a connection goes and what it may be shared by.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Destination {
    /// A name or an address without brackets.
    pub host: String,
    pub port: u16,
    /// Where the host is, if that is known and judged already: then its name is not looked up.
    pub addresses: Vec<IpAddr>,
    /// Private and local addresses are refused.
    pub untrusted: bool,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Tls {
    /// What the certificate must be for, and SNI.
    pub name: String,
    /// The certificate is not verified.
    pub insecure: bool,
    /// PEM files for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A shard's TLS configurations, by what is in them.
#[derive(Debug, Default)]
pub struct Trust(HashMap<Ingredients, Arc<ClientConfig>>);

#[derive(Debug, Eq, Hash, PartialEq)]
struct Ingredients {
    insecure: bool,
    identity: Option<(PathBuf, PathBuf)>,
    ca_file: Option<PathBuf>,
}

impl Trust {
    pub(super) fn config(&mut self, tls: &Tls, config: &config::Origin) -> io::Result<Arc<ClientConfig>> {
        let key = Ingredients {
            insecure: tls.insecure,
            identity: tls.identity.clone(),
            ca_file: config.ca_file.clone(),
        };
        if let Some(made) = self.0.get(&key) {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(make(&key)?);
        self.0.insert(key, Arc::clone(&made));
        Ok(made)
    }

    /// Certificates and keys are read again when next needed.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

pub(super) type Stream = TokioIo<Wire>;

/// A connection's bytes, plain or not.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Frames for a worker, which gets them as packets.
    Worker(DuplexStream),
}

pub(super) async fn open(
    to: &Destination,
    tls: Option<Arc<ClientConfig>>,
    (patience, lost): (Duration, Duration),
) -> Result<Stream, Failure> {
    let tcp = dial(to, patience).await?;
    tcp.set_nodelay(true).map_err(Failure::Unreachable)?;
    tcp::lose_after(&SockRef::from(&tcp), lost).map_err(Failure::Unreachable)?;
    let (Some(config), Some(tls)) = (tls, &to.tls) else {
        return Ok(TokioIo::new(Wire::Plain(tcp)));
    };
    let name = ServerName::try_from(tls.name.clone()).map_err(|e| Failure::Tls(io::Error::other(e)))?;
    let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(Failure::Tls)?;
    Ok(TokioIo::new(Wire::Tls(Box::new(stream))))
}

async fn dial(to: &Destination, patience: Duration) -> Result<TcpStream, Failure> {
    let addresses: Vec<SocketAddr> = match to.host.parse::<IpAddr>() {
        _ if !to.addresses.is_empty() => {
            to.addresses.iter().map(|ip| SocketAddr::new(*ip, to.port)).collect()
        }
        Ok(ip) => vec![SocketAddr::new(ip, to.port)],
        Err(_) => {
            let found = tokio::net::lookup_host((to.host.as_str(), to.port)).await;
            found.map_err(Failure::Unreachable)?.collect()
        }
    };
    // An address that swallows everything must not take the time of the next.
    let share = patience / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failure =
        Failure::Unreachable(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for address in addresses {
        if to.untrusted && address::special(address.ip()).is_some() {
            failure = Failure::Blocked;
            continue;
        }
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => failure = Failure::Unreachable(error),
            Err(_) => failure = Failure::ConnectTimeout(share),
        }
    }
    Err(failure)
}

fn make(from: &Ingredients) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if from.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else if let Some(file) = &from.ca_file {
        builder.with_root_certificates(roots(file)?)
    } else {
        builder.with_platform_verifier().map_err(io::Error::other)?
    };
    let Some((certificate, key)) = &from.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| in_file(key, e))?;
    builder.with_client_auth_cert(certificates(certificate)?, key).map_err(io::Error::other)
}

/// The certificates of a PEM file, to be trusted. Blocks.
pub fn roots(file: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| in_file(file, e))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).map_err(|e| in_file(file, e))?;
    all.map(|one| one.map_err(|e| in_file(file, e))).collect()
}

fn in_file(file: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}

/// Verifies nothing but that the peer has the key that it shows (route parameter `insecure`).
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Worker(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Worker(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::Worker(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
            Self::Worker(pipe) => pipe.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Worker(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Worker(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}
