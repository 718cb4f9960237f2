//! What of a WebSocket's handshake is believed, and what of its origin's answer reaches the client: headers in
//! disguise, forwarded protocols, GRIP's own headers, and the signatures of trusted clients.

use std::time::{Duration, SystemTime};

use fantail_proto::websocket::{events::Event, frame::Opcode};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use crate::harness::{
    DEADLINE, Origin, Said, TestServer, Then, WebSocket, answer,
    websocket::{events, events_of, message, native, opened, over_http},
};

/// Accepts over HTTP and says nothing more.
fn quiet() -> Origin {
    over_http(|_| opened(&[]), |_, _| events(&[]))
}

/// Frameworks that read `_` as `-` must not take a client's header for one of the session's own.
#[test]
fn headers_of_the_session_cannot_be_disguised() {
    let origin = quiet();
    let server = TestServer::start(&[&format!("* {origin},over_http")], |_| {});
    let forged = [
        "Connection_Id",
        "Meta_User",
        "Meta-User",
        "META_role",
        "Content_Bytes_Replayed",
        "Content_Type",
        "Sec_WebSocket_Extensions",
        "Grip_Sig",
        "Grip_Feature",
    ];
    let fields: Vec<_> = forged.iter().map(|name| (*name, "forged")).chain([("X_Own", "kept")]).collect();
    let mut client = WebSocket::open_with(server.client, "/", &fields);
    client.text("hi");
    for request in origin.wait_requests(2) {
        let text = format!("{:?}", request.head);
        assert!(!text.contains("forged"), "{text}");
        assert_eq!(request.head.field("x_own"), Some("kept"));
    }
}

/// `wss` counts as TLS where the configuration says that the header is believed, and nowhere else.
#[test]
fn a_forwarded_wss_is_believed_when_configured() {
    for believed in [true, false] {
        let (secure, plain) = (quiet(), quiet());
        let routes = [format!("*,ssl=yes {secure},over_http"), format!("*,ssl=no {plain},over_http")];
        let server = TestServer::start(&[&routes[0], &routes[1]], |o| {
            o.set("proxy.accept_x_forwarded_protocol", &believed.to_string());
        });
        let table =
            [("X-Forwarded-Proto", "wss"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Protocol", "wss")];
        let mut clients = Vec::new();
        for (n, field) in table.into_iter().enumerate() {
            clients.push(WebSocket::open_with(server.client, "/", &[field]));
            let origin = if believed { &secure } else { &plain };
            let request = origin.wait_requests(n + 1).remove(n);
            assert_eq!(request.head.field("x-forwarded-proto"), believed.then_some("wss"), "{field:?}");
            assert!(!request.head.has("x-forwarded-protocol"));
        }
        clients.push(WebSocket::open_with(server.client, "/", &[("X-Forwarded-Proto", "http")]));
        assert_eq!(plain.requests().len(), if believed { 1 } else { 4 });
    }
}

/// What an origin says to Fantail is not for clients, whether it takes the WebSocket or refuses it. With `no_grip`
/// nothing is said to Fantail.
#[test]
fn grip_headers_do_not_reach_clients() {
    let said =
        [("Grip-Hold", "stream"), ("Grip-Channel", "c"), ("Grip-Set-Meta", "user=ann"), ("X-Own", "kept")];
    for mode in ["", ",over_http"] {
        for (flag, passes) in [("", false), (",no_grip", true)] {
            let origin = Origin::fixed(answer("403 Forbidden", &said, "not you"));
            let server = TestServer::start(&[&format!("*{flag} {origin}{mode}")], |_| {});
            let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
            assert_eq!((refused.status(), refused.text()), (403, "not you".to_string()));
            assert_eq!(refused.head.field("x-own"), Some("kept"));
            for name in ["grip-hold", "grip-channel", "grip-set-meta"] {
                assert_eq!(refused.head.has(name), passes, "{mode} {flag}: {:?}", refused.head);
            }
        }
    }
    let origin = Origin::scripted(|exchange| {
        let mut client =
            crate::harness::websocket::accept(exchange, "grip\r\nGrip-Channel: c\r\nX-Own: kept");
        client.expect(Said::Gone);
        Then::Close
    });
    let server = TestServer::before(&origin);
    let client = WebSocket::open(&server, "/");
    assert!(!client.head.has("grip-channel"), "{:?}", client.head);
    assert_eq!(client.head.field("x-own"), Some("kept"));
}

/// RFC 6455 section 4.1: a server must not use an extension that was not offered.
#[test]
fn an_extension_that_was_not_offered_is_refused() {
    for (flag, extension) in [(",no_grip", "grip"), ("", "permessage-deflate"), ("", "x-other")] {
        let origin = native(extension, |mut client| drop(client.next()));
        let server = TestServer::start(&[&format!("*{flag} {origin}")], |_| {});
        let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
        assert_eq!(refused.status(), 502, "{flag} {extension}");
    }
}

/// What a trusted client says of addresses has a rule of its own.
#[test]
fn forwarded_addresses_of_trusted_clients_have_their_own_rule() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({ "iss": "edge", "exp": now + 60 });
    let theirs = jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(b"between-us"));
    let theirs = theirs.expect("a token");
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("proxy.upstream_key", "between-us").set("proxy.x_forwarded_for", "truncate:0,append");
        o.set("proxy.x_forwarded_for_trusted", "append");
    });
    for (sig, wanted) in [("none", "127.0.0.1"), (theirs.as_str(), "192.0.2.1, 127.0.0.1")] {
        let fields = [("Grip-Sig", sig), ("X-Forwarded-For", "192.0.2.1")];
        server.request("GET", "/", &fields, b"");
        assert_eq!(origin.requests().pop().expect("one").head.field("x-forwarded-for"), Some(wanted));
    }
}

/// A trusted client's signature stands for ours as long as it is good; from then on ours goes.
#[test]
fn an_expired_signature_is_not_repeated() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({ "iss": "edge", "exp": now + 3 });
    let key = EncodingKey::from_secret(b"between-us");
    let theirs = jsonwebtoken::encode(&Header::default(), &claims, &key).expect("a token");
    for (own, signs) in [("ours", true), ("", false)] {
        let origin = quiet();
        let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
            o.set("proxy.upstream_key", "between-us").set("proxy.sig_key", own);
        });
        let mut client = WebSocket::open_with(server.client, "/", &[("Grip-Sig", theirs.as_str())]);
        if signs {
            client.text("early");
            let requests = origin.wait_requests(2);
            assert!(requests.iter().all(|request| request.head.field("grip-sig") == Some(theirs.as_str())));
        }
        let mut said_later = || {
            client.text("later");
            let requests = origin.requests();
            requests.last().and_then(|last| last.head.field("grip-sig").map(str::to_owned))
        };
        let mut last = None;
        server.wait_until(DEADLINE, "another signature", || {
            last = said_later();
            last.as_deref() != Some(theirs.as_str())
        });
        assert_eq!(last.is_some(), signs);
    }
}

/// An origin whose answer cannot be had whole has heard the request all the same, and hears of the end.
#[test]
fn a_spoilt_answer_ends_with_a_farewell() {
    let media = "Content-Type: application/websocket-events\r\n";
    let cut = format!("HTTP/1.1 200 OK\r\n{media}Content-Length: 100\r\n\r\nOPEN\r\n").into_bytes();
    let long = |first: &[Event]| {
        let filler = message(&format!("m:{}", "x".repeat(1_000_000)));
        events(&[first, &[filler]].concat())
    };
    for (at_once, bad) in
        [(true, cut.clone()), (true, long(&[Event::Open])), (false, cut), (false, long(&[]))]
    {
        let origin = Origin::scripted(move |exchange| {
            if exchange.read_body().is_err() {
                return Then::Close;
            }
            let said = events_of(&exchange.request);
            if said == [Event::Disconnect] || said == [Event::Open] && !at_once {
                exchange.send(if said == [Event::Open] { opened(&[]) } else { events(&[]) });
                return Then::Next;
            }
            exchange.send(&bad);
            if bad.len() > 1000 { Then::Next } else { Then::Close }
        });
        let server = TestServer::start(&[&format!("* {origin},over_http")], |_| {});
        if at_once {
            let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
            assert_eq!(refused.status(), 502);
        } else {
            let mut client = WebSocket::open(&server, "/");
            client.text("hi").expect(Said::Gone);
        }
        server.wait_until(DEADLINE, "DISCONNECT", || {
            origin.requests().iter().any(|request| request.body == b"DISCONNECT\r\n")
        });
        server.wait_pins("websocket", 0);
    }
}

/// A reload reaches WebSockets on which nothing happens.
#[test]
fn a_reload_reaches_idle_connections() {
    let origin = quiet();
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.config("[websocket]\nidle_timeout = \"30m\"\n");
    });
    let mut clients: Vec<_> = (0..40).map(|_| WebSocket::open(&server, "/")).collect();
    let reload = |toml: &str| {
        let (file, fresh) = (server.folder.path().join("fantail.toml"), server.folder.path().join("fresh"));
        std::fs::write(&fresh, toml).and_then(|()| std::fs::rename(&fresh, &file)).expect("a file");
        server.signal(rustix::process::Signal::HUP);
    };
    reload("[websocket]\nping_every = \"200ms\"\n");
    for client in &mut clients {
        let Said::Ping(content) = client.next() else { panic!("no ping") };
        client.send(Opcode::Pong, content);
    }
    reload("[websocket]\nidle_timeout = \"300ms\"\n");
    for client in &mut clients {
        client.wire.patience = Duration::from_secs(20);
        let said = std::iter::repeat_with(|| client.next()).find(|said| !matches!(said, Said::Ping(_)));
        assert_eq!(said, Some(crate::harness::websocket::close(1001, "")));
    }
}
