//! Pins with TLS against rustls' own client: what goes out is what was written, in order and whole, whichever way it is
//! fanned out and however slowly it is read; what comes in is heard even where nobody reads.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use fantail_pin::{
    Event, FanOut, Form, Limits, Outcome, Payload, PinId, Pins, Received, Tally, Tls, Wire,
    io_uring_available,
};
use proptest::prelude::*;
use rustix::net::sockopt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, SignatureScheme,
    SupportedProtocolVersion, version,
};

const LIMITS: Limits = Limits { queue_bytes: 1 << 20, send_timeout_ms: 10_000, pace: None };
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

static SERVER: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test".split(' '),
        )
        .args(["-keyout", "/dev/stdout", "-out", "/dev/stdout"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let certificate = CertificateDer::from_pem_slice(&made.stdout).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&made.stdout).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    Arc::new(config.unwrap())
});

fn client_config(version: &'static SupportedProtocolVersion) -> ClientConfig {
    ClientConfig::builder_with_protocol_versions(&[version])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

struct Peer {
    connection: ClientConnection,
    socket: UnixStream,
}

impl Peer {
    /// All that is there, decrypted; the flag says that the server said that it is over.
    fn read(&mut self) -> (Vec<u8>, bool) {
        let mut got = Vec::new();
        loop {
            let more = match self.connection.read_tls(&mut self.socket) {
                Ok(read) => read > 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            };
            self.connection.process_new_packets().unwrap();
            let mut buffer = [0; 4096];
            loop {
                match self.connection.reader().read(&mut buffer) {
                    Ok(0) => return (got, true),
                    Ok(read) => got.extend_from_slice(&buffer[..read]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return (got, false),
                    Err(error) => panic!("{error}"),
                }
            }
            if !more {
                return (got, false);
            }
        }
    }

    fn write(&mut self, plain: &[u8]) {
        self.connection.writer().write_all(plain).unwrap();
        self.write_out();
    }

    fn write_out(&mut self) {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket).unwrap();
        }
    }
}

/// Records that one side has to say.
fn said(connection: &mut ClientConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut records).unwrap();
    }
    records
}

/// Both sides after the handshake, with the server's tickets still to be sent.
fn shaken(config: ClientConfig) -> (Wire, Peer) {
    let (ours, socket) = UnixStream::pair().unwrap();
    sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
    let mut tls = Tls::new(Arc::clone(&SERVER)).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), "test".try_into().unwrap()).unwrap();
    while tls.is_handshaking() {
        tls.receive(&mut said(&mut connection)).unwrap();
        if tls.is_handshaking() {
            connection.read_tls(&mut &*tls.take_output()).unwrap();
            connection.process_new_packets().unwrap();
        }
    }
    socket.set_nonblocking(true).unwrap();
    (Wire { socket: ours.into(), tls: Some(Box::new(tls)) }, Peer { connection, socket })
}

fn pinned(pins: &mut Pins<u32>, version: &'static SupportedProtocolVersion) -> (PinId, Peer) {
    let (wire, mut peer) = shaken(client_config(version));
    let id = pins.reserve(Form::Plain, 0).unwrap();
    pins.attach(id, wire);
    // The end of the handshake, for the client.
    assert_eq!(peer.read(), (Vec::new(), false));
    (id, peer)
}

fn ways() -> impl Iterator<Item = FanOut> {
    [Some(FanOut::Send), io_uring_available().then_some(FanOut::IoUring)].into_iter().flatten()
}

fn table(way: FanOut) -> Pins<u32> {
    Pins::new(way, LIMITS, 0).unwrap()
}

/// What has happened by now.
fn turn(pins: &mut Pins<u32>) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..100 {
        pins.turn(&mut events).unwrap();
    }
    events.dedup();
    events
}

#[test]
fn every_pin_gets_all_of_it_in_order() {
    for way in ways() {
        let mut pins = table(way);
        let mut peers: Vec<_> = (0..20).map(|n| pinned(&mut pins, VERSIONS[n % 2])).collect();
        let (plain, _bare) = UnixStream::pair().unwrap();
        let plain = pins.insert(plain.into(), Form::Plain, 0).unwrap();
        let mut targets: Vec<_> = peers.iter().map(|(id, _)| *id).collect();
        targets.extend([plain, targets[0]]);
        let mut wanted = Vec::new();
        let mut got = vec![Vec::new(); peers.len()];
        // Larger than a socket takes, larger than a record, and small ones behind a queue.
        for (n, len) in [1, 100, 40_000, 10, 1, 17_000, 0, 30].into_iter().enumerate() {
            let item = vec![b'a' + n as u8; len];
            let payload = Payload { plain: item.clone().into(), coded: Bytes::new() };
            let mut tally = Tally::default();
            pins.fan_out(&targets, &payload, &mut tally);
            assert_eq!(tally.sent + tally.queued, targets.len() as u64, "{way:?} {tally:?}");
            wanted.push(item);
            if n % 3 == 0 {
                for ((_, peer), got) in peers.iter_mut().zip(&mut got) {
                    got.extend(peer.read().0);
                }
            }
        }
        let once = wanted.concat();
        let twice: Vec<u8> = wanted.iter().flat_map(|item| item.repeat(2)).collect();
        for _ in 0..200 {
            turn(&mut pins);
            for ((_, peer), got) in peers.iter_mut().zip(&mut got) {
                got.extend(peer.read().0);
            }
        }
        for (n, got) in got.iter().enumerate() {
            assert!(*got == if n == 0 { &*twice } else { &*once }, "{way:?}: pin {n} has {}", got.len());
        }
        assert!(peers.iter().all(|(id, _)| pins.queue_len(*id) == 0));
    }
}

#[test]
fn what_waited_for_the_socket_is_encrypted_behind_what_tls_had_to_say() {
    for version in VERSIONS {
        let mut pins = table(FanOut::Send);
        let id = pins.reserve(Form::Plain, 0).unwrap();
        assert_eq!(pins.write(id, &Bytes::from_static(b"one ")), Outcome::Queued);
        assert_eq!(pins.finish(id, &Bytes::from_static(b"two")), Outcome::Queued);
        let (wire, mut peer) = shaken(client_config(version));
        pins.attach(id, wire);
        assert_eq!(turn(&mut pins), [Event::Finished(id)]);
        assert_eq!(peer.read(), (b"one two".to_vec(), false));
    }
}

#[test]
fn a_client_that_says_goodbye_departs_and_is_answered() {
    for version in VERSIONS {
        let mut pins = table(FanOut::Send);
        let (id, mut peer) = pinned(&mut pins, version);
        // Heard, and kept for whoever gets the socket next.
        peer.write(b"ahead");
        assert_eq!(turn(&mut pins), []);
        peer.connection.send_close_notify();
        peer.write_out();
        assert_eq!(turn(&mut pins), [Event::Departed(id)]);
        let mut wire = pins.remove(id).unwrap().wire.unwrap();
        assert_eq!(wire.tls.as_mut().unwrap().take_plain(), b"ahead");
        assert_eq!(peer.read(), (Vec::new(), true));
    }
}

#[test]
fn a_client_that_vanishes_or_speaks_no_tls_departs() {
    for version in VERSIONS {
        let mut pins = table(FanOut::Send);
        let (id, peer) = pinned(&mut pins, version);
        peer.socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(turn(&mut pins), [Event::Departed(id)]);
        let (id, mut peer) = pinned(&mut pins, version);
        peer.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(turn(&mut pins), [Event::Departed(id)]);
        peer.connection.read_tls(&mut peer.socket).unwrap();
        let told = peer.connection.process_new_packets().unwrap_err();
        assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told}");
    }
}

#[test]
fn a_pin_that_is_read_gives_all_of_it_to_a_small_buffer() {
    for version in VERSIONS {
        let mut pins = table(FanOut::Send);
        let (id, mut peer) = pinned(&mut pins, version);
        pins.set_reading(id, true);
        let spoken: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        peer.write(&spoken);
        peer.connection.send_close_notify();
        peer.write_out();
        let mut heard = Vec::new();
        let mut buffer = [0; 999];
        let (mut departed, mut paused) = (false, false);
        while !departed {
            let mut events = Vec::new();
            pins.turn(&mut events).unwrap();
            for event in events {
                match event {
                    Event::Readable(_) if heard.len() > 5_000 && !paused => {
                        paused = true;
                        // A pause in the middle of what is decrypted already loses nothing.
                        pins.set_reading(id, false);
                        // One may be on its way.
                        turn(&mut pins);
                        assert_eq!(turn(&mut pins), []);
                        pins.set_reading(id, true);
                        if let Received::Bytes(read) = pins.read(id, &mut buffer) {
                            heard.extend_from_slice(&buffer[..read]);
                        }
                    }
                    Event::Readable(_) => {
                        if let Received::Bytes(read) = pins.read(id, &mut buffer) {
                            heard.extend_from_slice(&buffer[..read]);
                        }
                    }
                    Event::Departed(_) => departed = true,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(heard == spoken, "{} of {}", heard.len(), spoken.len());
        assert_eq!(peer.read(), (Vec::new(), true));
    }
}

#[test]
fn a_farewell_can_be_read_behind_a_full_queue() {
    let limits = Limits { queue_bytes: 50_000, ..LIMITS };
    let mut pins = Pins::new(FanOut::Send, limits, 0).unwrap();
    pins.set_farewell(Bytes::from_static(b"bye"));
    let (id, mut peer) = pinned(&mut pins, &version::TLS13);
    pins.set_reading(id, true);
    let item = Bytes::from(vec![b'x'; 10_000]);
    let mut taken = 0;
    while pins.write(id, &item) != Outcome::Overflow {
        taken += item.len();
        assert!(taken < 10_000_000);
    }
    assert!(pins.queue_len(id) <= 50_000 + 100);
    let mut got = Vec::new();
    let mut events = Vec::new();
    while !events.contains(&Event::Finished(id)) {
        events.extend(turn(&mut pins));
        got.extend(peer.read().0);
    }
    got.extend(peer.read().0);
    assert_eq!(got.len(), taken + 3);
    assert!(got.ends_with(b"bye"));
}

#[test]
fn keys_change_under_a_pin() {
    let mut pins = table(FanOut::Send);
    let (id, mut peer) = pinned(&mut pins, &version::TLS13);
    for n in 0..20_u8 {
        peer.connection.refresh_traffic_keys().unwrap();
        peer.write_out();
        assert_eq!(turn(&mut pins), []);
        assert_eq!(pins.write(id, &Bytes::copy_from_slice(&[n; 10])), Outcome::Sent);
        assert_eq!(peer.read().0, [n; 10]);
    }
}

/// rustls remembers where in its input a message began, and fails if the next input does not have that.
#[test]
fn half_a_hello_is_no_reason_to_panic() {
    let mut config = client_config(&version::TLS13);
    config.max_fragment_size = Some(32);
    let mut connection = ClientConnection::new(Arc::new(config), "test".try_into().unwrap()).unwrap();
    let mut hello = said(&mut connection);
    for cut in 0..100 {
        let mut tls = Tls::new(Arc::clone(&SERVER)).unwrap();
        tls.receive(&mut hello[..cut].to_vec()).unwrap();
        assert!(tls.encrypt(b"too early", &mut Vec::new()).is_err());
        tls.close();
        assert!(tls.output().is_empty());
        tls.receive(&mut hello[cut..].to_vec()).unwrap_or_default();
    }
    let mut tls = Tls::new(Arc::clone(&SERVER)).unwrap();
    hello.iter_mut().for_each(|byte| tls.receive(std::slice::from_mut(byte)).unwrap());
    assert!(!tls.output().is_empty(), "a hello in single bytes is answered");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        change in any::<(u16, u8)>(),
        step in 1_usize..50,
    ) {
        let config = Arc::new(client_config(VERSIONS[usize::from(change.1) % 2]));
        let mut connection = ClientConnection::new(config, "test".try_into().unwrap()).unwrap();
        let mut hello = said(&mut connection);
        let at = usize::from(change.0) % hello.len();
        hello[at] ^= change.1;
        for input in [bytes, hello] {
            let mut tls = Tls::new(Arc::clone(&SERVER)).unwrap();
            for part in input.chunks(step) {
                if tls.receive(&mut part.to_vec()).is_err() {
                    break;
                }
                let early = tls.is_handshaking() && tls.encrypt(b"early", &mut Vec::new()).is_ok();
                prop_assert!(!early);
            }
            tls.close();
        }
    }
}
