//! TLS for tests: certificates as an operator would make them, a client that sees what is on the wire, and a relay
//! through which clients that know nothing of TLS speak it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    thread,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use super::wire::{DEADLINE, find};

/// A folder of `NAME.crt` and `NAME.key`, each made by openssl.
#[derive(Debug)]
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    pub fn of(names: &[&str]) -> Self {
        let made = Self(tempfile::tempdir().expect("a folder"));
        names.iter().for_each(|name| made.make(name));
        made
    }

    pub fn make(&self, name: &str) {
        let made = Command::new("openssl")
            .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30".split(' '))
            .args(["-subj", "/CN=test", "-addext", "subjectAltName=DNS:test.example"])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
            .current_dir(self.folder())
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    pub fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.file(&format!("{name}.crt"))).expect("a certificate")
    }
}

/// A client's side, which takes any certificate.
pub fn config(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("versions that exist")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth()
}

/// A client of both versions.
pub fn any() -> Arc<ClientConfig> {
    Arc::new(config(rustls::ALL_VERSIONS))
}

#[derive(Debug)]
pub struct TlsClient {
    pub connection: ClientConnection,
    pub socket: TcpStream,
    got: Vec<u8>,
}

impl TlsClient {
    pub fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, DEADLINE)?;
        Self::over(socket, name, config)
    }

    /// Shakes hands over a socket.
    pub fn over(socket: TcpStream, name: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        socket.set_read_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut client = Self { connection, socket, got: Vec::new() };
        while client.connection.is_handshaking() {
            client.connection.complete_io(&mut client.socket)?;
        }
        Ok(client)
    }

    pub fn send(&mut self, plain: impl AsRef<[u8]>) -> &mut Self {
        self.connection.writer().write_all(plain.as_ref()).expect("a buffer takes all");
        self.write_out();
        self
    }

    /// Sends records that wait, a byte at a time.
    pub fn dribble(&mut self) -> &mut Self {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut records).expect("a Vec takes all");
        }
        self.socket.set_nodelay(true).expect("TCP");
        for byte in records {
            self.socket.write_all(&[byte]).expect("the server reads");
        }
        self
    }

    pub fn write_out(&mut self) {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket).expect("the server reads");
        }
    }

    pub fn get(&mut self, target: &str) -> &mut Self {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test.example\r\n\r\n"))
    }

    /// Everything up to and with `end`.
    pub fn until(&mut self, end: &str) -> String {
        let at = loop {
            if let Some(at) = find(&self.got, end.as_bytes()) {
                break at + end.len();
            }
            let filled = self.fill();
            assert!(
                matches!(filled, Ok(true)),
                "{filled:?}, and no {end:?} in {} bytes that end in {:?}",
                self.got.len(),
                String::from_utf8_lossy(self.got.split_at(self.got.len().saturating_sub(1000)).1)
            );
        };
        String::from_utf8(self.got.drain(..at).collect()).expect("text")
    }

    /// All that comes until the server says that it is over; without a `close_notify` an error.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.got))
    }

    /// Reads once; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let mut buffer = [0; 1 << 14];
            match self.connection.reader().read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.got.extend_from_slice(&buffer[..read]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.connection.read_tls(&mut self.socket)?;
            self.connection.process_new_packets().map_err(io::Error::other)?;
            self.write_out();
        }
    }
}

/// An address whose connections are carried to `to` with TLS, as long as the test runs.
pub fn relay(to: SocketAddr, config: Arc<ClientConfig>) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("the test waits");
            while let Ok((mut plain, _)) = listener.accept().await {
                let connector = TlsConnector::from(Arc::clone(&config));
                tokio::spawn(async move {
                    let tcp = tokio::net::TcpStream::connect(to).await?;
                    let name = ServerName::try_from("test.example").expect("a name");
                    let mut sealed = connector.connect(name, tcp).await?;
                    tokio::io::copy_bidirectional(&mut plain, &mut sealed).await
                });
            }
        });
    });
    told.recv().expect("it is bound")
}

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
