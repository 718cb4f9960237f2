//! WebSockets that are passed on to an origin's own server (spec 7.8, check 69), and control messages (spec 7.4,
//! checks 63 and 68), which mean the same whichever way the origin is asked.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use fantail_proto::{
    item::WsKind,
    websocket::{
        events::Event,
        frame::{Frame, Opcode},
    },
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{
    DEADLINE, Origin, Said, TestServer, WebSocket, answer,
    websocket::{close, events, events_with, native, over_http, text, upgrade},
};

/// How an origin is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    OverHttp,
    Native,
}

const BOTH: [Mode; 2] = [Mode::OverHttp, Mode::Native];

/// An origin that says what its client says, word for word: so the client decides what its origin says.
fn puppet(mode: Mode, grip: &'static str) -> Origin {
    match mode {
        Mode::Native => native(grip, puppet_of),
        Mode::OverHttp => over_http(
            move |_| events_with(&[("Sec-WebSocket-Extensions", grip)], &[Event::Open]),
            |_, said| {
                let back = said.into_iter().filter_map(|event| match event {
                    Event::Message(WsKind::Ping, content) => Some(Event::Message(WsKind::Pong, content)),
                    Event::Disconnect => None,
                    event => Some(event),
                });
                events(&back.collect::<Vec<_>>())
            },
        ),
    }
}

fn puppet_of(mut client: WebSocket) {
    client.wire.patience = Duration::from_secs(600);
    loop {
        match client.next() {
            Said::Text(content) => client.text(&content),
            Said::Binary(content) => client.send(Opcode::Binary, content),
            Said::Ping(content) => client.send(Opcode::Pong, content),
            Said::Pong(_) => &mut client,
            Said::Close(None) => client.send(Opcode::Close, ""),
            Said::Close(Some((code, reason))) => client.close(code, &reason),
            Said::Gone => return,
        };
    }
}

fn route(mode: Mode, origin: &Origin, flags: &str) -> String {
    let mode = if mode == Mode::OverHttp { ",over_http" } else { "" };
    format!("* {origin}{mode}{flags}")
}

fn before(mode: Mode, origin: &Origin) -> TestServer {
    TestServer::start(&[&route(mode, origin, "")], |_| {})
}

/// A puppet's client, its server and its origin.
fn pulled(mode: Mode) -> (WebSocket, TestServer, Origin) {
    let origin = puppet(mode, "grip");
    let server = before(mode, &origin);
    (WebSocket::open(&server, "/"), server, origin)
}

/// Makes the origin say these control messages, and waits until they were heeded.
fn instruct(client: &mut WebSocket, all: &[Value]) {
    for one in all {
        client.text(&format!("c:{one}"));
    }
    client.text("m:heeded").expect_text("heeded");
}

fn subscribe(channel: &str) -> Value {
    json!({ "type": "subscribe", "channel": channel })
}

fn item(channel: &str, content: &str) -> Value {
    json!({ "channel": channel, "formats": { "ws-message": { "content": content } } })
}

/// Publishes one item and returns how many got it.
fn publish(server: &TestServer, item: &Value) -> u64 {
    server.receipts(&json!([item]))[0]["delivered"].as_u64().expect("a number")
}

/// An origin whose words and deeds the test has in hand: each connection comes out of the receiver.
fn in_hand(grip: &'static str) -> (Origin, mpsc::Receiver<WebSocket>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let origin = native(grip, move |socket| {
        let _kept = tell.lock().expect("no panic holds it").send(socket);
    });
    (origin, told)
}

/// A client and its origin's end.
fn joined(grip: &'static str, set: &[(&str, &str)]) -> (WebSocket, WebSocket, TestServer, Origin) {
    let (origin, told) = in_hand(grip);
    let routes = [route(Mode::Native, &origin, ""), "*,path_beg=/plain test".into()];
    let server = TestServer::start(&[&routes[0], &routes[1]], |o| {
        set.iter().for_each(|(key, value)| {
            o.set(key, value);
        });
    });
    let client = WebSocket::open(&server, "/");
    let far = told.recv_timeout(DEADLINE).expect("a connection");
    (client, far, server, origin)
}

fn expect_ended(server: &TestServer, cause: &str) {
    server.wait_pins("websocket", 0);
    server.wait_metric("fantail_connections", &[], 0.0);
    assert_eq!(server.metric("fantail_pins_ended_total", &[&format!("cause=\"{cause}\"")]), 1.0);
    assert_eq!(server.metric("fantail_pins_ended_total", &[]), 1.0);
}

#[test]
fn the_handshake_with_an_origin() {
    let (origin, told) = in_hand("grip");
    let server = before(Mode::Native, &origin);
    let fields = [
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Protocol", "chat, other"),
        ("Origin", "https://page.example"),
        ("Cookie", "c=1"),
        ("Grip-Sig", "forged"),
    ];
    let client = WebSocket::open_with(server.client, "/room?n=1", &fields);
    assert_eq!(client.head.field("x-origin"), Some("native"));
    assert!(!client.head.has("sec-websocket-extensions"), "{:?}", client.head);
    let far = told.recv_timeout(DEADLINE).expect("a connection");
    let wanted = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-extensions", "grip"),
        ("sec-websocket-protocol", "chat, other"),
        ("origin", "https://page.example"),
        ("cookie", "c=1"),
        ("host", "fantail.example"),
    ];
    assert_eq!(far.head.first_line, "GET /room?n=1 HTTP/1.1");
    for (name, value) in wanted {
        assert_eq!(far.head.field(name), Some(value), "{name}: {:?}", far.head);
    }
    assert_ne!(far.head.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(far.head.field("grip-sig").expect("signed").split('.').count(), 3);
    assert!(!far.head.has("connection-id"));
}

#[test]
fn a_refusal_is_relayed() {
    let refusal = answer("403 Forbidden", &[("X-Own", "kept"), ("Content-Type", "text/plain")], "not you");
    let origin = Origin::fixed(refusal);
    let server = before(Mode::Native, &origin);
    let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
    assert_eq!((refused.status(), refused.text()), (403, "not you".to_string()));
    assert_eq!(refused.head.field("x-own"), Some("kept"));
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    for wrong in ["\r\n", "Sec-WebSocket-Accept: wrong\r\n\r\n"] {
        let origin = Origin::raw(format!("{head}{wrong}"));
        let server = before(Mode::Native, &origin);
        assert_eq!(WebSocket::try_open(server.client, "/", &[]).expect_err("no 101").status(), 502);
    }
}

#[test]
fn an_opening_moves_on_to_the_next_target() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let origin = puppet(Mode::Native, "grip");
    let server = TestServer::start(&[&format!("* {dead} {origin}")], |_| {});
    WebSocket::open(&server, "/").text("m:hi").expect_text("hi");
}

#[test]
fn everything_goes_both_ways() {
    let (mut client, mut far, server, _origin) = joined("", &[]);
    client.text("to you").send(Opcode::Binary, [0, 255]).send(Opcode::Ping, "p").send(Opcode::Pong, "q");
    far.expect_text("to you").expect(Said::Binary(vec![0, 255])).expect(Said::Ping(b"p".to_vec()));
    far.expect(Said::Pong(b"q".to_vec()));
    far.text("to me").send(Opcode::Binary, [1, 0]).send(Opcode::Ping, "r").send(Opcode::Pong, "s");
    client.expect_text("to me").expect(Said::Binary(vec![1, 0])).expect(Said::Ping(b"r".to_vec()));
    client.expect(Said::Pong(b"s".to_vec()));
    for length in [0, 125, 126, 65_535, 65_536, 1_000_000] {
        let content = "x".repeat(length);
        client.text(&content);
        far.expect_text(&content).text(&content);
        client.expect_text(&content);
    }
    // Three fragments, a ping between them.
    let piece = |first: u8, content: &[u8]| [&[first, content.len() as u8], content].concat();
    let pieces = [piece(0x01, b"one "), piece(0x89, b"!"), piece(0x00, b"two "), piece(0x80, b"three")];
    far.send_raw(&pieces.concat());
    client.expect(Said::Ping(b"!".to_vec())).expect_text("one two three");
    assert_eq!(server.metric("fantail_websocket_messages_total", &["from=\"client\""]), 10.0);
}

/// What an origin says before its client has its socket waits for it.
#[test]
fn an_origin_may_speak_first() {
    let origin = native("grip", |mut client| {
        client.text("m:welcome").text(r#"c:{"type":"subscribe","channel":"c"}"#).text("m:ready");
        puppet_of(client);
    });
    let server = before(Mode::Native, &origin);
    let mut client = WebSocket::open(&server, "/");
    client.expect_text("welcome").expect_text("ready");
    assert_eq!(publish(&server, &item("c", "hi")), 1);
    client.expect_text("hi");
    let mut early = server.connect();
    early.send([upgrade("/", &[]).into_bytes(), client.frame(Opcode::Text, b"m:early")].concat());
    let mut early = WebSocket::begun(early).expect("a 101");
    early.expect_text("welcome").expect_text("ready").expect_text("early");
}

#[test]
fn closes_go_both_ways() {
    for (said, code, reason) in [(true, 4001, "bye"), (true, 1000, ""), (false, 0, "")] {
        let said = said.then(|| (code, reason.to_string()));
        let say = |socket: &mut WebSocket| match &said {
            Some((code, reason)) => drop(socket.close(*code, reason)),
            None => drop(socket.send(Opcode::Close, "")),
        };
        let (mut client, mut far, server, _origin) = joined("", &[]);
        say(&mut client);
        far.expect(Said::Close(said.clone())).close(4002, "you too");
        client.expect(close(4002, "you too")).expect(Said::Gone);
        far.expect(Said::Gone);
        expect_ended(&server, "client");

        let (mut client, mut far, server, _origin) = joined("", &[]);
        say(&mut far);
        client.expect(Said::Close(said.clone())).close(4003, "as you like").expect(Said::Gone);
        far.expect(close(4003, "as you like")).expect(Said::Gone);
        expect_ended(&server, "close");
    }
}

/// Who vanishes takes the other along, without a close frame.
#[test]
fn who_vanishes_takes_the_other_along() {
    let (mut client, far, server, _origin) = joined("", &[]);
    drop(far);
    client.expect(Said::Gone);
    expect_ended(&server, "origin");
    for leave in [drop, WebSocket::reset] {
        let (mut client, mut far, server, _origin) = joined("", &[]);
        client.text("last words");
        far.expect_text("last words");
        leave(client);
        far.expect(Said::Gone);
        expect_ended(&server, "client");
    }
}

#[test]
fn an_origin_that_breaks_the_protocol() {
    for (flags, reason) in [("", ""), (",debug", "the origin broke the protocol: a server's frame is masked")]
    {
        let (origin, told) = in_hand("grip");
        let server = TestServer::start(&[&format!("*{flags} {origin}")], |_| {});
        let mut client = WebSocket::open(&server, "/");
        let mut far = told.recv_timeout(DEADLINE).expect("a connection");
        far.send_raw(&client.frame(Opcode::Text, b"m:masked"));
        client.expect(close(1011, reason)).close(1011, "").expect(Said::Gone);
        expect_ended(&server, "origin");
    }
}

/// With `no_grip`, or without the extension, nothing is looked at; channels of the target are there all the same.
#[test]
fn without_grip_everything_is_verbatim() {
    let table =
        [(Mode::Native, "", ""), (Mode::Native, "", ",no_grip"), (Mode::OverHttp, "grip", ",no_grip")];
    for (mode, grip, flag) in table {
        let origin = puppet(mode, grip);
        let line = route(mode, &origin, ",sub=c").replacen('*', &format!("*{flag}"), 1);
        let server = TestServer::start(&[&line], |_| {});
        let mut client = WebSocket::open(&server, "/");
        let control = r#"c:{"type":"detach"}"#;
        client.text(control).expect_text(control).text("m:x").expect_text("m:x");
        assert_eq!(publish(&server, &item("c", "hi")), 1);
        client.expect_text("hi");
        if flag == ",no_grip" {
            assert!(!origin.requests()[0].head.has("sec-websocket-extensions"));
        }
    }
}

/// Two Fantails in a row: the first speaks GRIP with the origin through the second.
#[test]
fn servers_may_be_chained() {
    for mode in BOTH {
        let origin = puppet(mode, "grip; message-prefix=\"x:\"");
        let inner = TestServer::start(&[&route(mode, &origin, "")], |o| {
            o.set("proxy.upstream_key", "between-us");
        });
        let outer = TestServer::start(&[&format!("* {}", inner.client)], |o| {
            o.set("proxy.sig_key", "between-us");
        });
        let mut client = WebSocket::open(&outer, "/");
        assert!(!client.head.has("sec-websocket-extensions"));
        client.text(r#"c:{"type":"subscribe","channel":"c"}"#).text("x:done").expect_text("done");
        assert_eq!((publish(&inner, &item("c", "no")), publish(&outer, &item("c", "yes"))), (0, 1));
        client.expect_text("yes").close(4000, "").expect(close(4000, "")).expect(Said::Gone);
    }
}

/// A client that does not read keeps its origin waiting, and nobody else.
#[test]
fn a_slow_client_slows_its_origin() {
    let (mut client, mut far, server, _origin) =
        joined("", &[("server.shards", "1"), ("client.send_timeout", "60s")]);
    client.narrow();
    pushes_back(&server, &mut far, client);
}

#[test]
fn a_slow_origin_slows_its_client() {
    let (mut client, mut far, server, _origin) = joined("", &[("server.shards", "1")]);
    far.narrow();
    pushes_back(&server, &mut client, far);
}

/// `from` says far more than `to` reads, until `to` reads.
fn pushes_back(server: &TestServer, from: &mut WebSocket, mut to: WebSocket) {
    let before = server.memory();
    let count = 4_000;
    let content = "s".repeat(10_000);
    let frame = from.frame(Opcode::Text, content.as_bytes());
    let mut speaking = from.wire.socket.try_clone().expect("a live socket");
    let (said, progress) = mpsc::channel();
    let speaker = std::thread::spawn(move || {
        for n in 0..count {
            std::io::Write::write_all(&mut speaking, &frame).expect("a live socket");
            said.send(n).expect("the test waits");
        }
    });
    let stalled = std::iter::from_fn(|| progress.recv_timeout(Duration::from_millis(500)).ok()).last();
    assert!(stalled.is_some_and(|n| n + 1 < count), "everything was taken: {stalled:?}");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 4_000_000, "{grown} bytes for a slow peer");
    assert_eq!(server.get("/plain").status(), 200, "the neighbours are served");
    for _ in 0..count {
        assert!(matches!(to.next(), Said::Text(text) if text.len() == content.len()));
    }
    speaker.join().expect("all is said");
    server.wait_pins("websocket", 1);
}

/// An origin that takes nothing does not keep what its client has left behind.
#[test]
fn a_link_whose_origin_does_not_read_ends() {
    let (mut client, mut far, server, _origin) = joined("", &[("websocket.close_timeout", "300ms")]);
    far.narrow();
    let files = server.open_files();
    let frame = client.frame(Opcode::Text, "s".repeat(60_000).as_bytes());
    client.wire.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a live socket");
    while std::io::Write::write_all(&mut client.wire.socket, &frame).is_ok() {}
    client.reset();
    server.wait_pins("websocket", 0);
    server.wait_until(DEADLINE, "the origin's connection is closed", || server.open_files() <= files - 2);
}

#[test]
fn subscriptions_come_and_go() {
    for mode in BOTH {
        let origin = puppet(mode, "grip");
        let server = TestServer::start(&[&route(mode, &origin, ",sub=own")], |_| {});
        let mut client = WebSocket::open(&server, "/");
        assert_eq!(publish(&server, &item("own", "implicit")), 1);
        client.expect_text("implicit");
        instruct(&mut client, &[subscribe("a"), subscribe("b"), subscribe("a")]);
        let unsubscribe = |channel| json!({ "type": "unsubscribe", "channel": channel });
        assert_eq!(publish(&server, &item("a", "1")), 1);
        client.expect_text("1");
        instruct(&mut client, &[unsubscribe("a"), unsubscribe("own"), unsubscribe("never")]);
        assert_eq!(publish(&server, &item("a", "2")), 0);
        for channel in ["b", "own"] {
            assert_eq!(publish(&server, &item(channel, channel)), 1, "{mode:?}");
            client.expect_text(channel);
        }
        instruct(&mut client, &[subscribe("a")]);
        assert_eq!(publish(&server, &item("a", "3")), 1);
        client.expect_text("3");
        drop(client);
        server.wait_metric("fantail_subscriptions", &[], 0.0);
        server.wait_metric("fantail_channels", &[], 0.0);
    }
}

#[test]
fn prefixes_of_channels_and_limits() {
    for mode in BOTH {
        let origin = puppet(mode, "grip");
        let line = route(mode, &origin, ",sub=own").replacen('*', "*,prefix=p-", 1);
        let server = TestServer::start(&[&line], |o| {
            o.set("grip.subscriptions", "3").set("grip.channel_bytes", "12");
        });
        let mut client = WebSocket::open(&server, "/");
        let names = ["a", "b", "c", "d"];
        let all = names.map(subscribe);
        instruct(&mut client, &all);
        for (channel, count) in [("p-a", 1), ("a", 0), ("p-b", 1), ("p-c", 1), ("p-d", 0)] {
            assert_eq!(publish(&server, &item(channel, channel)), count, "{mode:?} {channel}");
        }
        client.expect_text("p-a").expect_text("p-b").expect_text("p-c");
        assert_eq!(server.metric("fantail_subscriptions", &[]), 4.0, "that of the route is not counted");
        // One that it has is not one more.
        let user = json!({ "type": "set-meta", "name": "user", "value": "bob" });
        let again = json!({ "type": "subscribe", "channel": "a", "filters": ["skip-users"] });
        instruct(&mut client, &[user, again]);
        let mut for_others = item("p-a", "for others");
        for_others["meta"] = json!({ "skip_users": "bob" });
        server.publish(&json!([for_others, item("p-a", "for all")]));
        client.expect_text("for all");
        client.text(&format!("c:{}", subscribe("ten-bytes.")));
        instruct(&mut client, &[]);
        client.text(&format!("c:{}", subscribe("much-too-long"))).expect(close(1011, ""));
    }
}

/// The limit is for channels that an origin names, not for those of the route (spec 2.4).
#[test]
fn a_route_may_have_many_channels() {
    for mode in BOTH {
        let origin = puppet(mode, "grip");
        let subs: String = (0..25).map(|n| format!(",sub=c{n}")).collect();
        let server = TestServer::start(&[&route(mode, &origin, &subs)], |_| {});
        let mut client = WebSocket::open(&server, "/");
        assert_eq!(publish(&server, &item("c24", "the last")), 1, "{mode:?}");
        client.expect_text("the last");
        instruct(&mut client, &[subscribe("more")]);
        assert_eq!(publish(&server, &item("more", "more")), 1, "{mode:?}");
        client.expect_text("more");
    }
}

/// A value may be as long as the limit allows, and be replaced by another; over the limit the client does not go on
/// with less than its filters are to know.
#[test]
fn meta_has_a_limit() {
    for mode in BOTH {
        let origin = puppet(mode, "grip");
        let server = TestServer::start(&[&route(mode, &origin, "").replacen('*', "*,debug", 1)], |_| {});
        let mut client = WebSocket::open(&server, "/");
        let user = |letter: &str, n| json!({ "type": "set-meta", "name": "user", "value": letter.repeat(n) });
        let filtered = json!({ "type": "subscribe", "channel": "c", "filters": ["var-subst"] });
        instruct(&mut client, &[user("a", 6000), user("b", 8000), filtered]);
        server.publish(&json!([item("c", "%(user)s")]));
        client.expect_text(&"b".repeat(8000));
        client.text(&format!("c:{}", user("c", 8189)));
        client.expect(close(1011, "too much is noted by set-meta"));
    }
}

/// Frames of any size and messages of any length pass where nothing looks at them (spec 7.8).
#[test]
fn long_messages_are_relayed() {
    let (mut client, mut far, _server, _origin) = joined("", &[("websocket.message_bytes", "1000")]);
    let long = "Zeit und Länge; ".repeat(300_000);
    let relays = |from: &mut WebSocket, to: &mut WebSocket| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                from.text(&long).send(Opcode::Ping, "between").send(Opcode::Binary, vec![7; 70_000]);
            });
            to.expect(text(&*long)).expect(Said::Ping(b"between".to_vec()));
            to.expect(Said::Binary(vec![7; 70_000]));
        });
    };
    relays(&mut client, &mut far);
    relays(&mut far, &mut client);
}

/// Where items may come between, or a prefix decides, an origin's message is had whole, and has its limit.
#[test]
fn long_messages_that_are_looked_at_have_a_limit() {
    for (grip, sub) in [("grip", ""), ("", ",sub=c")] {
        let (origin, told) = in_hand(grip);
        let line = route(Mode::Native, &origin, sub);
        let server = TestServer::start(&[&line], |o| {
            o.set("websocket.message_bytes", "1000");
        });
        let mut client = WebSocket::open(&server, "/");
        let mut far = told.recv_timeout(DEADLINE).expect("a connection");
        client.text(&"x".repeat(5000));
        far.expect_text(&"x".repeat(5000));
        far.text(&format!("m:{}", "x".repeat(1000)));
        client.expect(close(1011, ""));
    }
}

/// A message may take its time: what has come of it is passed on.
#[test]
fn slow_messages_are_relayed() {
    let (mut client, mut far, _server, _origin) = joined("grip", &[("websocket.message_timeout", "1s")]);
    let part = |first: u8, client: &WebSocket, payload: &[u8]| {
        let mut frame = client.frame(Opcode::Text, payload);
        frame[0] = first;
        frame
    };
    let begin = part(0x01, &client, b"slow");
    client.send_raw(&begin);
    far.expect_silence(Duration::from_millis(1500));
    let middle = part(0x00, &client, b"ly ");
    client.send_raw(&middle).send(Opcode::Ping, "p");
    far.expect(Said::Ping(b"p".to_vec()));
    let end = part(0x80, &client, b"said");
    client.send_raw(&end);
    far.expect_text("slowly said");
    client.text("next");
    far.expect_text("next");
}

#[test]
fn filters_write_meta_into_messages() {
    for mode in BOTH {
        let (mut client, server, _origin) = pulled(mode);
        let user = json!({ "type": "set-meta", "name": "user", "value": "ann" });
        let filtered = json!({ "type": "subscribe", "channel": "c", "filters": ["var-subst"] });
        instruct(&mut client, &[user, filtered]);
        server.publish(&json!([item("c", "for %(user)s"), item("c", "%(none)s"), item("c", "plain")]));
        client.expect_text("for ann").expect_text("plain");
    }
}

#[test]
fn filters_look_at_meta() {
    for mode in BOTH {
        let (mut client, server, _origin) = pulled(mode);
        let filtered = |channel: &str, filter: &str| json!({ "type": "subscribe", "channel": channel, "filters": [filter] });
        let user = |value: Value| json!({ "type": "set-meta", "name": "user", "value": value });
        instruct(
            &mut client,
            &[user(json!("alice")), filtered("self", "skip-self"), filtered("req", "require-sub")],
        );
        let with = |channel: &str, meta: Value| {
            let mut item = item(channel, channel);
            item["meta"] = meta;
            item
        };
        let counts = |item: Value| {
            let receipt = server.receipts(&json!([item])).remove(0);
            (receipt["delivered"].as_u64(), receipt["filtered"].as_u64())
        };
        assert_eq!(counts(with("self", json!({ "sender": "alice" }))), (Some(0), Some(1)), "{mode:?}");
        assert_eq!(counts(with("self", json!({ "sender": "bob" }))), (Some(1), Some(0)));
        assert_eq!(counts(with("req", json!({ "require_sub": "other" }))), (Some(0), Some(1)));
        assert_eq!(counts(with("req", json!({ "require_sub": "self" }))), (Some(1), Some(0)));
        client.expect_text("self").expect_text("req");
        // Without the name, and without the filter, nothing is left out.
        let mut removed = user(json!(null));
        removed.as_object_mut().expect("an object").remove("value");
        instruct(&mut client, &[removed, subscribe("req")]);
        assert_eq!(counts(with("self", json!({ "sender": "alice" }))), (Some(1), Some(0)));
        assert_eq!(counts(with("req", json!({ "require_sub": "other" }))), (Some(1), Some(0)));
        client.expect_text("self").expect_text("req");
    }
}

/// Without those that are too many the client would see too much (spec 7.5).
#[test]
fn filters_that_cannot_be_close_the_client() {
    let table = [
        ("", json!(["a", "b", "c", "d", "e", "f"]), ""),
        (",debug", json!(["a", "b", "c", "d", "e", "f"]), "too many filters for channel 'c'"),
    ];
    for mode in BOTH {
        for (flag, filters, reason) in &table {
            let origin = puppet(mode, "grip");
            let line = route(mode, &origin, "").replacen('*', &format!("*{flag}"), 1);
            let server = TestServer::start(&[&line], |_| {});
            let mut client = WebSocket::open(&server, "/");
            let subscribe = json!({ "type": "subscribe", "channel": "c", "filters": filters });
            client.text(&format!("c:{subscribe}")).expect(close(1011, reason));
            client.close(1011, "").expect(Said::Gone);
            expect_ended(&server, "origin");
        }
    }
}

/// Check 68: the origin is done, the client stays.
#[test]
fn a_detached_client_lives_on_what_is_published() {
    let (mut client, mut far, server, _origin) = joined("grip", &[]);
    far.text(r#"c:{"type":"subscribe","channel":"c"}"#).text(r#"c:{"type":"detach"}"#).text("m:late");
    far.expect(Said::Close(None)).send(Opcode::Close, "").expect(Said::Gone);
    expect_detached(&server, &mut client);

    let origin = over_http(
        |_| {
            let control = |json: &str| Event::Message(WsKind::Text, format!("c:{json}").into());
            let detach = control(r#"{"type":"detach"}"#);
            let subscribe = control(r#"{"type":"subscribe","channel":"c"}"#);
            let late = Event::Message(WsKind::Text, "m:late".into());
            let fields = [("Sec-WebSocket-Extensions", "grip")];
            events_with(&fields, &[Event::Open, subscribe, detach, late, Event::Close(None)])
        },
        |_, _| events(&[Event::Close(None)]),
    );
    let server = before(Mode::OverHttp, &origin);
    let mut client = WebSocket::open(&server, "/");
    expect_detached(&server, &mut client);
    let requests = origin.wait_requests(2);
    assert_eq!(requests.len(), 2, "{requests:#?}");
    server.wait_until(DEADLINE, "CLOSE", || origin.requests()[1].body == b"CLOSE\r\n");
}

fn expect_detached(server: &TestServer, client: &mut WebSocket) {
    client.text("for nobody").send(Opcode::Ping, "no pong");
    assert_eq!(publish(server, &item("c", "published")), 1);
    client.expect_text("published").close(4000, "bye").expect(close(4000, "bye")).expect(Said::Gone);
    expect_ended(server, "client");
}

/// A client that was not read when its origin detached is read again: its leaving shows.
#[test]
fn a_detached_client_is_read() {
    let (mut client, mut far, server, _origin) = joined("grip", &[("websocket.buffer_bytes", "1000")]);
    far.narrow();
    let frame = client.frame(Opcode::Text, "s".repeat(60_000).as_bytes());
    client.wire.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a live socket");
    while std::io::Write::write_all(&mut client.wire.socket, &frame).is_ok() {}
    far.text(r#"c:{"type":"detach"}"#);
    server.wait_metric("fantail_websocket_messages_total", &["from=\"origin\""], 1.0);
    client.wire.socket.shutdown(std::net::Shutdown::Write).expect("a live socket");
    server.wait_pins("websocket", 0);
}

#[test]
fn keep_alives_are_sent() {
    for mode in BOTH {
        let (mut client, server, _origin) = pulled(mode);
        let keep_alive = |more: Value| {
            let mut control = json!({ "type": "keep-alive", "timeout": 1 });
            more.as_object()
                .expect("an object")
                .iter()
                .for_each(|(name, value)| control[name] = value.clone());
            control
        };
        let table = [
            (json!({ "content": "a" }), text("a")),
            (json!({ "content-bin": "AP8=", "message-type": "binary" }), Said::Binary(vec![0, 255])),
            (json!({ "content": "p", "message-type": "ping" }), Said::Ping(b"p".to_vec())),
            (json!({ "content": "", "message-type": "pong", "mode": "interval" }), Said::Pong(Vec::new())),
        ];
        for (asked, said) in table {
            instruct(&mut client, &[keep_alive(asked)]);
            client.expect(said.clone()).expect(said);
        }
        client.text(r#"c:{"type":"keep-alive"}"#).text("m:off");
        while client.next() != text("off") {}
        client.expect_silence(Duration::from_millis(1300));
        server.wait_pins("websocket", 1);
    }
}

/// What is sent to the client puts an idle keep-alive off, but not one on an interval.
#[test]
fn an_idle_keep_alive_waits_for_silence() {
    let (mut client, server, _origin) = pulled(Mode::Native);
    for (mode, comes) in [("idle", false), ("interval", true)] {
        let control = json!({ "type": "keep-alive", "timeout": 2, "content": "beat", "mode": mode });
        instruct(&mut client, &[control, subscribe("c")]);
        // The first may come up to a second early.
        client.expect_text("beat");
        let start = Instant::now();
        let mut beats = 0;
        while start.elapsed() < Duration::from_millis(3000) {
            server.publish(&json!([item("c", "busy")]));
            loop {
                match client.next() {
                    Said::Text(said) if said == "beat" => beats += 1,
                    said => break assert_eq!(said, text("busy")),
                }
            }
        }
        assert_eq!(beats > 0, comes, "{mode}: {beats}");
    }
}

#[test]
fn messages_may_be_delayed() {
    for mode in BOTH {
        let (mut client, _server, _origin) = pulled(mode);
        let delayed = |content: &str, timeout: u32| json!({ "type": "send-delayed", "content": content, "timeout": timeout });
        instruct(&mut client, &[delayed("soon", 1)]);
        client.expect_text("soon");
        client.text(&format!("c:{}", delayed("first", 600)));
        client.text("m:before").expect_text("before");
        // One waits at a time: a second sends the first.
        client.text(&format!("c:{}", delayed("second", 600))).expect_text("first");
        client.text("m:still").expect_text("still");
        client.text(r#"c:{"type":"flush-delayed"}"#).expect_text("second");
        client.text(r#"c:{"type":"flush-delayed"}"#).text("m:nothing").expect_text("nothing");
        // A close lets it go first; a detached client gets it, too.
        client.text(&format!("c:{}", delayed("last", 1))).text(r#"c:{"type":"detach"}"#).expect_text("last");
    }
}

#[test]
fn prefixes_of_messages() {
    /// What the origin says, and what its client hears of it.
    type Words = [(&'static str, Option<&'static str>)];
    let table: [(&str, &Words); 5] = [
        ("grip", &[("m:x", Some("x")), ("x", None), ("m:", Some("")), ("", None)]),
        ("grip; message-prefix=\"y:\"", &[("y:x", Some("x")), ("m:x", None)]),
        ("grip ;message-prefix = y", &[("yx", Some("x")), ("m:x", None)]),
        ("grip; message-prefix=\"\"", &[("x", Some("x")), ("m:x", Some("m:x")), ("c:{}", None)]),
        ("grip; message-prefix=c", &[("c:{}", None), ("cx", Some("x"))]),
    ];
    for mode in BOTH {
        for (grip, said) in table {
            let origin = puppet(mode, grip);
            let server = before(mode, &origin);
            let mut client = WebSocket::open(&server, "/");
            for (said, _) in said {
                client.text(said);
            }
            client.send(Opcode::Ping, "end");
            for heard in said.iter().filter_map(|(_, heard)| *heard) {
                client.expect_text(heard);
            }
            client.expect(Said::Pong(b"end".to_vec()));
            let dropped = said.iter().filter(|(_, heard)| heard.is_none()).count() as f64;
            assert_eq!(server.metric("fantail_websocket_dropped_total", &[]), dropped, "{mode:?} {grip}");
        }
    }
}

/// A control message is one text frame; others are data, or nothing.
#[test]
fn what_is_no_control_message() {
    for mode in BOTH {
        let (mut client, server, _origin) = pulled(mode);
        let wrong = [
            "c:",
            "c:{",
            "c:[]",
            r#"c:{"type":"fly"}"#,
            r#"c:{"type":"subscribe"}"#,
            r#"c:{"type":"subscribe","channel":""}"#,
            r#"c:{"type":"subscribe","channel":5}"#,
            r#"c:{"type":"keep-alive","timeout":-1,"content":"x"}"#,
            &format!(r#"c:{{"type":"subscribe","channel":"c","x":"{}"}}"#, "x".repeat(70_000)),
        ];
        for wrong in wrong {
            client.text(wrong);
        }
        client.send(Opcode::Binary, r#"c:{"type":"subscribe","channel":"c"}"#);
        client.text("m:end").expect_text("end");
        assert_eq!(publish(&server, &item("c", "x")), 0, "{mode:?}");
        assert_eq!(
            server.metric("fantail_websocket_dropped_total", &[]),
            wrong.len() as f64 + 1.0,
            "{mode:?}"
        );
    }
    let (mut client, mut far, server, _origin) = joined("grip", &[]);
    let control = br#"c:{"type":"subscribe","channel":"c"}"#;
    let (begin, end) = control.split_at(9);
    let mut end = Frame::new(Opcode::Text, end).to_bytes().to_vec();
    end[0] = 0x80;
    let begin = [&[0x01, begin.len() as u8], begin].concat();
    far.send_raw(&[begin, end].concat()).text("m:end");
    client.expect_text("end");
    assert_eq!(publish(&server, &item("c", "x")), 0);
}
