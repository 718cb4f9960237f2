//! Keys of every kind, and certificates: what Fantail signs, whom it trusts, and TLS towards origins. The
//! files are made by openssl, as an operator would make them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::Value;

use crate::harness::{Origin, TestServer, answer, find, hold};

pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    fn spec(&self, name: &str) -> String {
        format!("file:{}", self.path(name).display())
    }

    fn openssl(&self, arguments: &str) {
        let made = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// `NAME.key` and `NAME.pub`.
    fn key(&self, name: &str, algorithm: &str) {
        self.openssl(&format!("genpkey -algorithm {algorithm} -out {name}.key"));
        self.openssl(&format!("pkey -in {name}.key -pubout -out {name}.pub"));
    }

    /// `NAME.key` and `NAME.crt`, which vouches for itself.
    pub fn certificate(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={name} \
             -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE \
             -keyout {name}.key -out {name}.crt"
        ));
    }
}

const EC: &str = "EC -pkeyopt ec_paramgen_curve:P-256";
const RSA: &str = "RSA -pkeyopt rsa_keygen_bits:2048";

/// Check 3.
#[test]
fn keys_of_every_kind_sign() {
    let files = Files::new();
    files.key("ec", EC);
    files.key("rsa", RSA);
    std::fs::write(files.path("hex"), "  736563726574\n").expect("a file");
    let secret = || DecodingKey::from_secret(b"secret");
    let ec = DecodingKey::from_ec_pem(&files.read("ec.pub")).expect("a key");
    let rsa = DecodingKey::from_rsa_pem(&files.read("rsa.pub")).expect("a key");
    let table = [
        ("base64:c2VjcmV0".to_string(), Algorithm::HS256, secret()),
        (files.spec("hex"), Algorithm::HS256, secret()),
        (files.spec("ec.key"), Algorithm::ES256, ec),
        (files.spec("rsa.key"), Algorithm::RS256, rsa),
    ];
    for (spec, algorithm, key) in table {
        let origin = Origin::fixed(answer("200 OK", &[], "fine"));
        let server = TestServer::start(&[&format!("*,sig_iss=me,sig_key={spec} {origin}")], |_| {});
        server.get("/");
        let request = origin.request();
        let token = request.head.field("grip-sig").expect("a signature");
        let claims = jsonwebtoken::decode::<Value>(token, &key, &Validation::new(algorithm));
        assert_eq!(claims.expect("a good signature").claims["iss"], "me", "{spec}");
    }
}

/// A Fantail behind another: it trusts the one in front, whose key it knows the public half of, passes its
/// signature on to the origin and the instruct back, and the one in front holds.
#[test]
fn signatures_of_another_fantail_are_trusted_by_its_public_key() {
    let files = Files::new();
    for (name, algorithm) in [("ec", EC), ("rsa", RSA)] {
        files.key(name, algorithm);
        files.key("other", algorithm);
        let origin = Origin::fixed(hold("stream", "c", &[], "held\n"));
        let behind = TestServer::start(&[&format!("* {origin}")], |o| {
            o.set("proxy.upstream_key", &files.spec(&format!("{name}.pub")));
        });
        let front = |key: &str| {
            TestServer::start(&[&format!("* {}", behind.client)], |o| {
                o.set("proxy.sig_key", &files.spec(key)).set("proxy.sig_iss", "front");
            })
        };

        let known = front(&format!("{name}.key"));
        let mut client = known.stream("/");
        client.expect("held\n");
        known.wait_pins("stream", 1);
        assert_eq!(behind.metric("fantail_pins", &["kind=\"stream\""]), 0.0);
        known.publish_stream("c", "an item");
        client.expect("an item");

        let unknown = front("other.key");
        let mut client = unknown.stream("/");
        client.expect("held\n");
        behind.wait_pins("stream", 1);
        behind.publish_stream("c", "from behind");
        client.expect("from behind");

        let requests = origin.wait_requests(2);
        let tokens = requests.iter().map(|request| request.head.field("grip-sig").expect("a signature"));
        let signed: Vec<_> = tokens.map(issuer).collect();
        assert_eq!(signed, ["front", "pushpin"], "{name}");
    }
}

fn issuer(token: &str) -> String {
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(token).expect("a token").claims;
    claims["iss"].as_str().expect("a text").to_owned()
}

/// HTTPS to the origin: the certificate must be good for the host, unless the target says otherwise.
#[test]
fn certificates_of_origins_are_verified() {
    let files = Files::new();
    files.certificate("origin.example");
    let address = tls_origin(&files, None);
    let server = TestServer::start(
        &[
            &format!("good.example {address},ssl,host=origin.example"),
            &format!("wrong.example {address},ssl"),
            &format!("insecure.example {address},ssl,insecure"),
        ],
        |o| {
            o.set("origin.ca_file", &files.path("origin.example.crt").display().to_string());
        },
    );
    let get = |host: &str| server.request("GET", "/", &[("Host", host)], b"");
    assert_eq!(get("good.example").text(), "over TLS");
    assert_eq!(get("wrong.example").status(), 502);
    assert_eq!(get("insecure.example").text(), "over TLS");
    let distrusting = TestServer::start(&[&format!("* {address},ssl,host=origin.example")], |_| {});
    assert_eq!(distrusting.get("/").status(), 502);
}

/// An origin that wants to know who asks: a target has its certificate, and a connection that was made with
/// it is no other target's.
#[test]
fn an_origin_may_want_a_certificate() {
    let files = Files::new();
    for name in ["origin.example", "us", "others"] {
        files.certificate(name);
    }
    let address = tls_origin(&files, Some("us"));
    let target = format!("{address},ssl,host=origin.example");
    let identity = |name: &str| {
        let path = |end: &str| files.path(&format!("{name}.{end}")).display().to_string();
        format!("client_cert={},client_key={}", path("crt"), path("key"))
    };
    let server = TestServer::start(
        &[
            &format!("us.example {target},{}", identity("us")),
            &format!("others.example {target},{}", identity("others")),
            &format!("nobody.example {target}"),
        ],
        |o| {
            o.set("origin.ca_file", &files.path("origin.example.crt").display().to_string());
        },
    );
    for (host, status) in [("us.example", 200), ("nobody.example", 502), ("others.example", 502)] {
        for _ in 0..2 {
            assert_eq!(server.request("GET", "/", &[("Host", host)], b"").status(), status, "{host}");
        }
    }
}

/// An origin with the certificate `origin.example`, for whoever has the certificate `client`, if one is named.
pub fn tls_origin(files: &Files, client: Option<&str>) -> SocketAddr {
    let certificate = |name: &str| {
        CertificateDer::from_pem_file(files.path(&format!("{name}.crt"))).expect("a certificate")
    };
    let key = PrivateKeyDer::from_pem_file(files.path("origin.example.key")).expect("a key");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match client {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(client) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(client)).expect("a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            verifier.build().expect("a good verifier")
        }
    };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate("origin.example")], key)
        .expect("a good pair");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let session = ServerConnection::new(config.clone()).expect("a good configuration");
            let mut stream = StreamOwned::new(session, socket);
            thread::spawn(move || while answers(&mut stream) {});
        }
    });
    address
}

fn answers(stream: &mut StreamOwned<ServerConnection, std::net::TcpStream>) -> bool {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while find(&head, b"\r\n\r\n").is_none() {
        match stream.read(&mut piece) {
            Ok(n @ 1..) => head.extend_from_slice(&piece[..n]),
            _ => return false,
        }
    }
    stream.write_all(&answer("200 OK", &[], "over TLS")).and_then(|()| stream.flush()).is_ok()
}
