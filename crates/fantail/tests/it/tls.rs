//! TLS towards clients: requests and every kind of hold over it, which certificate is shown, what renewing one does to
//! those who are there, and clients that break the protocol (spec 8.5).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustix::process::Signal;
use rustls::{ClientConfig, ClientConnection, version};
use serde_json::json;

use crate::harness::{
    Client, DEADLINE, Origin, TestServer, WebSocket, answer, hold, poll_item, stream_item,
    tls::{Certificates, TlsClient, any, config, relay},
    websocket::{close, events, events_of, native, opened, over_http, subscribe},
};

struct Secure {
    server: TestServer,
    certificates: Certificates,
    address: SocketAddr,
}

impl Secure {
    fn start(routes: &[&str], names: &[&str], more: &[(&str, &str)]) -> Self {
        let certificates = Certificates::of(names);
        let server = TestServer::start(routes, |o| {
            o.set("server.tls_listen", "127.0.0.1:0");
            o.set("tls.folder", &certificates.folder().display().to_string());
            more.iter().for_each(|(key, value)| _ = o.set(key, value));
        });
        let address = server.client_tls.expect("it speaks TLS");
        Self { server, certificates, address }
    }

    fn before(origin: &Origin) -> Self {
        Self::start(&[&format!("* {origin}")], &["test.example"], &[])
    }

    fn connect(&self, config: &Arc<ClientConfig>) -> TlsClient {
        TlsClient::connect(self.address, "test.example", config).expect("a connection")
    }

    fn handshakes(&self, result: &str, wanted: f64) {
        self.server.wait_metric("fantail_tls_handshakes_total", &[&format!("result=\"{result}\"")], wanted);
    }
}

fn chunk(content: &str) -> String {
    format!("{:x}\r\n{content}\r\n", content.len())
}

#[test]
fn a_stream_and_what_follows_it_in_both_versions() {
    let origin = Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[], "hi\n"),
        _ => answer("200 OK", &[], "after"),
    });
    let secure = Secure::before(&origin);
    for (count, version) in [&version::TLS12, &version::TLS13].into_iter().enumerate() {
        let mut client = secure.connect(&Arc::new(config(&[version])));
        assert_eq!(client.connection.protocol_version(), Some(version.version));
        client.get("/stream").until(&chunk("hi\n"));
        secure.server.wait_pins("stream", 1);
        // One after the other: what waits together is one chunk.
        secure.server.publish_stream("c", "one\n");
        client.until(&chunk("one\n"));
        secure.server.publish_stream("c", "two\n");
        client.until(&chunk("two\n"));
        // More than a record, and more than a socket takes at once.
        let large = "x".repeat(900_000);
        secure.server.publish(&json!([stream_item("c", &large)]));
        assert_eq!(client.until("x\r\n").len(), chunk(&large).len());
        secure
            .server
            .publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "close" } } }]));
        client.until("0\r\n\r\n");
        assert!(client.get("/after").until("after").starts_with("HTTP/1.1 200 OK"));
        secure.handshakes("full", (count + 1) as f64);
    }
    let seen: Vec<_> =
        origin.requests().iter().map(|r| r.head.field("x-forwarded-proto").map(String::from)).collect();
    assert_eq!(seen, vec![Some("https".to_string()); 4]);
}

#[test]
fn a_long_poll_gives_its_connection_back_with_what_was_sent_ahead() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "c", &[], "nothing"),
        _ => answer("200 OK", &[], "after"),
    });
    let secure = Secure::before(&origin);
    for versions in [[&version::TLS12], [&version::TLS13]] {
        let mut client = Client::connect(relay(secure.address, Arc::new(config(&versions))));
        client.get("/poll");
        secure.server.wait_pins("poll", 1);
        // These arrive while the poll is held, in records of their own.
        client.get("/next").get("/third");
        secure.server.publish(&json!([poll_item("c", "answered")]));
        assert_eq!(client.response().text(), "answered");
        assert_eq!(client.response().text(), "after");
        assert_eq!(client.response().text(), "after");
        client.get("/poll");
        secure.server.wait_pins("poll", 1);
        secure.server.publish(&json!([poll_item("c", "again")]));
        assert_eq!(client.response().text(), "again");
    }
}

#[test]
fn what_a_client_sends_ahead_has_a_limit() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "c", &[], "nothing"),
        _ => answer("200 OK", &[], "after"),
    });
    let secure = Secure::before(&origin);
    let mut client = secure.connect(&any());
    client.get("/poll");
    secure.server.wait_pins("poll", 1);
    for n in 0..1000 {
        client.get(&format!("/{n}?{}", "x".repeat(100)));
    }
    secure.server.publish(&json!([poll_item("c", "answered")]));
    client.until("answered");
    for _ in 0..1000 {
        client.until("after");
    }
    assert!(origin.wait_requests(1001)[1000].target().starts_with("/999?"));
}

#[test]
fn websockets_of_both_kinds() {
    let over = over_http(
        |_| opened(&[subscribe("c")]),
        |_, said| {
            events(
                &said
                    .into_iter()
                    .filter(|e| {
                        matches!(
                            e,
                            fantail_proto::websocket::events::Event::Message(..)
                                | fantail_proto::websocket::events::Event::Close(_)
                        )
                    })
                    .collect::<Vec<_>>(),
            )
        },
    );
    let secure = Secure::start(&[&format!("* {over},over_http")], &["test.example"], &[]);
    let mut client = WebSocket::open_with(relay(secure.address, any()), "/", &[]);
    client.text("m:hello").expect_text("hello");
    let long = "y".repeat(100_000);
    client.text(&format!("m:{long}")).expect_text(&long);
    secure.server.publish(&json!([{ "channel": "c", "formats": { "ws-message": { "content": "news" } } }]));
    client.expect_text("news");
    client.close(1000, "bye").expect(close(1000, "bye"));
    secure.server.wait_pins("websocket", 0);
    let open = origin_proto(&over);
    assert_eq!(open.as_deref(), Some("wss"));
    assert!(!events_of(&over.requests()[0]).is_empty());

    let own = native("", |mut client| {
        client.text("first");
        while let crate::harness::Said::Text(content) = client.next() {
            client.text(&content);
        }
    });
    let secure = Secure::start(&[&format!("* {own}")], &["test.example"], &[]);
    let mut client = WebSocket::open_with(relay(secure.address, any()), "/", &[]);
    client.expect_text("first");
    client.text("hello").expect_text("hello").text(&long).expect_text(&long);
}

fn origin_proto(origin: &Origin) -> Option<String> {
    origin.requests().first()?.head.field("x-forwarded-proto").map(String::from)
}

#[test]
fn routes_know_tls() {
    let plain = Origin::fixed(answer("200 OK", &[], "plain"));
    let sealed = Origin::fixed(answer("200 OK", &[], "sealed"));
    let routes = [&*format!("*,ssl=yes {sealed}"), &*format!("*,ssl=no {plain}")];
    let secure = Secure::start(&routes, &["test.example"], &[("logging.access", "true")]);
    assert_eq!(secure.server.get("/").text(), "plain");
    secure.connect(&any()).get("/").until("sealed");
    assert_eq!(origin_proto(&plain), None);
    secure.server.log_text("https://test.example/");
}

#[test]
fn the_certificate_is_the_one_for_the_name() {
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let secure = Secure::start(&[&format!("* {origin}")], &["www.example.com", "_.example.com"], &[]);
    let default = format!("default_{}", secure.address.port());
    let shown = |name: &str| {
        let client = TlsClient::connect(secure.address, name, &any());
        client.map(|client| client.connection.peer_certificates().expect("one")[0].clone().into_owned())
    };
    let der = |name: &str| secure.certificates.der(name);
    assert_eq!(shown("www.example.com").expect("shown"), der("www.example.com"));
    assert_eq!(shown("WWW.EXAMPLE.com").expect("shown"), der("www.example.com"));
    assert_eq!(shown("api.example.com").expect("shown"), der("_.example.com"));
    for name in ["example.org", "127.0.0.1"] {
        let refused = shown(name).expect_err("nothing is for it").to_string();
        assert!(refused.contains("AccessDenied"), "{refused}");
    }
    secure.handshakes("no_certificate", 2.0);
    secure.certificates.make(&default);
    secure.server.signal(Signal::HUP);
    secure.server.wait_until(DEADLINE, "a certificate for all", || shown("example.org").is_ok());
    assert_eq!(shown("example.org").expect("shown"), der(&default));
    assert_eq!(shown("127.0.0.1").expect("shown"), der(&default));
    // No socket sends such a name unless it means harm.
    let hello = |name: &str| {
        let mut hello = Vec::new();
        let name = name.to_owned().try_into().expect("a name");
        ClientConnection::new(any(), name).expect("a client").write_tls(&mut hello).expect("a Vec");
        hello
    };
    let mut bad = hello("aaaaaaaaaaaaaaaaaaa");
    let at = crate::harness::find(&bad, b"aaaaaaaaaaaaaaaaaaa").expect("it is in the clear");
    bad[at..at + 19].copy_from_slice(b"../www.example.com\0");
    let mut socket = TcpStream::connect(secure.address).expect("it listens");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    socket.write_all(&bad).expect("it reads");
    let mut got = Vec::new();
    socket.read_to_end(&mut got).expect("it closes");
    assert_eq!((got.len(), got[0]), (7, 21), "an alert: {got:?}");
}

#[test]
fn a_renewed_certificate_disturbs_nobody_and_a_broken_one_changes_nothing() {
    let origin = Origin::fixed(hold("stream", "c", &[], "hi\n"));
    let secure = Secure::before(&origin);
    let mut client = secure.connect(&any());
    client.get("/").until("hi\n");
    let old = secure.certificates.der("test.example");
    let shown = || {
        let client = secure.connect(&any());
        client.connection.peer_certificates().expect("one")[0].clone().into_owned()
    };
    std::fs::write(secure.certificates.file("test.example.key"), "no key").expect("a file");
    secure.server.signal(Signal::HUP);
    secure.server.log_text("test.example.key");
    assert_eq!(shown(), old);
    // Seen without being told.
    secure.certificates.make("test.example");
    let renewed = secure.certificates.der("test.example");
    secure.server.wait_until(DEADLINE, "the renewed certificate", || shown() == renewed);
    secure.server.publish_stream("c", "still here");
    client.until("still here");
}

#[test]
fn keys_are_changed_while_a_stream_is_held() {
    let origin = Origin::fixed(hold("stream", "c", &[], "hi\n"));
    let secure = Secure::before(&origin);
    let mut client = secure.connect(&Arc::new(config(&[&version::TLS13])));
    client.get("/").until("hi\n");
    secure.server.wait_pins("stream", 1);
    for n in 0..5 {
        client.connection.refresh_traffic_keys().expect("TLS 1.3");
        if n % 2 == 0 {
            _ = client.dribble()
        } else {
            client.write_out()
        }
        // Behind the new keys, so that they have been read when this is.
        let item = format!("item {n}");
        secure.server.publish_stream("c", &item);
        client.until(&item);
    }
    secure.server.publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "close" } } }]));
    client.until("0\r\n\r\n");
    client.connection.refresh_traffic_keys().expect("TLS 1.3");
    client.get("/").until("hi\n");
}

#[test]
fn a_slow_client_gets_all_of_it_in_order() {
    let origin = Origin::fixed(hold("stream", "c", &[], "hi\n"));
    let secure =
        Secure::start(&[&format!("* {origin}")], &["test.example"], &[("client.queue_bytes", "50000000")]);
    for versions in [[&version::TLS12], [&version::TLS13]] {
        let mut slow = secure.connect(&Arc::new(config(&versions)));
        slow.get("/").until("hi\n");
        secure.server.wait_pins("stream", 1);
        let item = |n: usize| format!("{n:08}{}\n", "z".repeat(49_991));
        for n in 0..400 {
            secure.server.publish_stream("c", &item(n));
        }
        for n in 0..400 {
            assert!(slow.until(&format!("{n:08}")).len() < 20, "a hole before {n}");
            slow.until("z\n");
        }
        drop(slow);
        secure.server.wait_pins("stream", 0);
    }
    assert!(secure.server.metric("fantail_deliveries_queued_total", &[]) > 100.0);
}

#[test]
fn a_full_queue_ends_a_client_without_a_hole() {
    let origin = Origin::fixed(hold("stream", "c", &[], "hi\n"));
    let secure =
        Secure::start(&[&format!("* {origin}")], &["test.example"], &[("client.queue_bytes", "1000000")]);
    let mut slow = secure.connect(&any());
    slow.get("/").until("hi\n");
    let item = |n: usize| format!("{n:08}{}\n", "z".repeat(99_991));
    let overflow = || secure.server.metric("fantail_pins_ended_total", &["cause=\"overflow\""]);
    let mut published = 0;
    while overflow() < 0.5 {
        assert!(published < 500, "never closed");
        secure.server.publish_stream("c", &item(published));
        published += 1;
    }
    let refused = slow.rest().expect_err("it did not end in order");
    assert!(!refused.to_string().is_empty());
}

#[test]
fn an_orderly_end_is_said() {
    let origin = Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[], "hi\n"),
        _ => answer("200 OK", &[], "done"),
    });
    let secure = Secure::before(&origin);
    for versions in [[&version::TLS12], [&version::TLS13]] {
        let connect = || secure.connect(&Arc::new(config(&versions)));
        let mut client = connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(client.rest().expect("close_notify").ends_with(b"done"));
        let mut client = connect();
        client.send("GET / HTTP/1.1\r\nbad\r\n\r\n");
        assert!(client.rest().expect("close_notify").starts_with(b"HTTP/1.1 400"));
        let mut client = connect();
        client.send("GET /stream HTTP/1.0\r\nHost: a\r\n\r\n").until("hi\n");
        secure.server.wait_pins("stream", 1);
        secure
            .server
            .publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "close" } } }]));
        assert!(client.rest().expect("close_notify").is_empty());
        // And the other way round.
        let mut client = connect();
        client.get("/stream").until("hi\n\r\n");
        secure.server.wait_pins("stream", 1);
        client.connection.send_close_notify();
        client.write_out();
        assert!(client.rest().expect("close_notify").is_empty());
        secure.server.wait_pins("stream", 0);
    }
    let mut client = secure.connect(&any());
    client.get("/stream").until("hi\n\r\n");
    secure.server.wait_pins("stream", 1);
    assert!(secure.server.terminate().success());
    assert!(client.rest().expect("close_notify").ends_with(b"0\r\n\r\n"));
}

#[test]
fn a_client_that_was_here_before_resumes() {
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let secure = Secure::before(&origin);
    for (count, version) in [&version::TLS12, &version::TLS13].into_iter().enumerate() {
        let config = Arc::new(config(&[version]));
        for _ in 0..2 {
            secure.connect(&config).get("/").until("fine");
        }
        secure.handshakes("full", (count + 1) as f64);
        secure.handshakes("resumed", (count + 1) as f64);
    }
}

#[test]
fn clients_that_break_the_protocol_are_counted_and_gone() {
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let secure = Secure::start(
        &[&format!("* {origin}")],
        &["test.example"],
        &[("client.head_timeout", "1s"), ("tls.profile", "modern")],
    );
    let raw = |bytes: &[u8]| {
        let mut socket = TcpStream::connect(secure.address).expect("it listens");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
        socket.write_all(bytes).expect("it reads");
        socket
    };
    let mut hello = Vec::new();
    let name = "test.example".try_into().expect("a name");
    ClientConnection::new(any(), name).expect("a client").write_tls(&mut hello).expect("a Vec");
    let mut got = Vec::new();
    raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_to_end(&mut got).expect("closed");
    secure.handshakes("malformed", 1.0);
    raw(&hello[..hello.len() / 2]).read_to_end(&mut got).expect("closed");
    secure.handshakes("timeout", 1.0);
    drop(raw(&hello[..100]));
    secure.handshakes("client", 1.0);
    let old = TlsClient::connect(secure.address, "test.example", &Arc::new(config(&[&version::TLS12])));
    assert!(old.expect_err("modern").to_string().contains("ProtocolVersion"));
    let mut config = config(&[&version::TLS13]);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let alpn = TlsClient::connect(secure.address, "test.example", &Arc::new(config));
    assert!(alpn.is_err());
    secure.handshakes("incompatible", 2.0);
    // After the handshake, too: in a request and in a hold.
    for target in ["/", ""] {
        let mut client = secure.connect(&any());
        if !target.is_empty() {
            client.get(target).until("fine");
        }
        client
            .socket
            .write_all(&[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
            ])
            .expect("it reads");
        assert!(client.rest().is_err(), "an alert");
    }
    // One that says its hello in tiny records is served.
    let mut tiny = crate::harness::tls::config(rustls::ALL_VERSIONS);
    tiny.max_fragment_size = Some(32);
    secure.connect(&Arc::new(tiny)).get("/").until("fine");
}

#[test]
fn one_pair_is_for_all_names() {
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let certificates = Certificates::of(&["any"]);
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        for (flag, value) in [
            ("--tls-listen", "127.0.0.1:0".to_owned()),
            ("--cert", certificates.file("any.crt").display().to_string()),
            ("--key", certificates.file("any.key").display().to_string()),
        ] {
            o.argument(flag).argument(value);
        }
    });
    let address = server.client_tls.expect("it speaks TLS");
    for name in ["a.example", "127.0.0.1"] {
        TlsClient::connect(address, name, &any()).expect("a connection").get("/").until("fine");
    }
    for (key, value) in [("tls.cert_file", "any.crt"), ("tls.folder", "nowhere")] {
        let (status, said) = TestServer::refused(&["* test"], |o| {
            o.set("server.tls_listen", "127.0.0.1:0").set(key, value);
        });
        assert!(!status.success() && said.contains("TLS__") || said.contains("tls:"), "{said}");
    }
}
