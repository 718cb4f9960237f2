//! WebSockets whose origins get POSTs of events: what each request says, in what order clients are heard, what
//! answers mean to them, and how it all ends (checks 61–67 and 70).

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::{
    item::WsKind,
    websocket::{events::Event, frame::Opcode},
};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{
    DEADLINE, Origin, Request, Said, TestServer, Then, WebSocket, answer,
    websocket::{
        close, events, events_of, events_with, expect_heard, message, opened, over_http, subscribe, upgrade,
    },
};

fn before(origin: &Origin) -> TestServer {
    TestServer::start(&[&format!("* {origin},over_http")], |_| {})
}

fn closing(code: u16, reason: &str) -> Event {
    Event::Close(Some((code, Bytes::copy_from_slice(reason.as_bytes()))))
}

/// Says every message back, with the prefix that GRIP wants.
fn echo() -> Origin {
    over_http(|_| opened(&[]), |_, said| events(&echoed(said)))
}

fn echoed(said: Vec<Event>) -> Vec<Event> {
    let back = said.into_iter().filter_map(|event| match event {
        Event::Message(kind @ (WsKind::Text | WsKind::Binary), content) => {
            Some(Event::Message(kind, [b"m:", &*content].concat().into()))
        }
        Event::Message(WsKind::Ping, content) => Some(Event::Message(WsKind::Pong, content)),
        Event::Close(close) => Some(Event::Close(close)),
        _ => None,
    });
    back.collect()
}

/// Keeps an origin waiting until it is opened.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let open = self.open.lock().expect("no panic holds it");
        drop(self.opened.wait_timeout_while(open, DEADLINE, |open| !*open));
    }

    fn open(&self) {
        *self.open.lock().expect("no panic holds it") = true;
        self.opened.notify_all();
    }
}

/// An origin that answers after [`Gate::open`], once it has accepted.
fn gated(reply: impl Fn(&Request, Vec<Event>) -> Vec<u8> + Send + Sync + 'static) -> (Origin, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let its_gate = Arc::clone(&gate);
    let origin = Origin::answering(move |request| {
        let said = events_of(request);
        if said == [Event::Open] {
            return opened(&[]);
        }
        its_gate.pass();
        reply(request, said)
    });
    (origin, gate)
}

fn wait_read(server: &TestServer, messages: f64) {
    server.wait_metric("fantail_websocket_messages_total", &["from=\"client\""], messages);
}

/// Nothing of a WebSocket is left, and each was counted once.
fn expect_ended(server: &TestServer, cause: &str, count: f64) {
    server.wait_pins("websocket", 0);
    server.wait_metric("fantail_connections", &[], 0.0);
    assert_eq!(server.metric("fantail_pins_ended_total", &[&format!("cause=\"{cause}\"")]), count);
    assert_eq!(server.metric("fantail_pins_ended_total", &[]), count);
}

#[test]
#[expect(clippy::too_many_lines, reason = "tables of headers")]
fn each_request_says_who_and_what() {
    let origin = over_http(
        |_| {
            let fields = [
                ("Sec-WebSocket-Extensions", "grip"),
                ("Sec-WebSocket-Protocol", "chat"),
                ("Set-Meta-User", "alice"),
                ("Set-Cookie", "s=1"),
                ("Keep-Alive-Interval", "120"),
            ];
            events_with(&fields, &[Event::Open])
        },
        |_, said| match &said[..] {
            [Event::Message(_, content)] if content == "forget" => {
                events_with(&[("Set-Meta-User", "")], &echoed(said))
            }
            _ => events(&echoed(said)),
        },
    );
    let server = before(&origin);
    let fields = [
        ("Connection-Id", "forged"),
        ("Meta-User", "mallory"),
        ("Meta-Role", "admin"),
        ("Content-Bytes-Replayed", "5"),
        ("Accept", "text/html"),
        ("Content-Type", "text/html"),
        ("Grip-Sig", "forged"),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
        ("Sec-WebSocket-Protocol", "chat, other"),
        ("Origin", "https://page.example"),
        ("Cookie", "c=1"),
    ];
    let mut client = WebSocket::open_with(server.client, "/room?n=1", &fields);
    assert_eq!(client.head.field("sec-websocket-protocol"), Some("chat"));
    assert_eq!(client.head.field("set-cookie"), Some("s=1"));
    for name in ["sec-websocket-extensions", "set-meta-user", "keep-alive-interval", "content-type"] {
        assert!(!client.head.has(name), "{name}: {:?}", client.head);
    }
    client.text("héllo").expect_text("héllo").text("forget").expect_text("forget");
    client.text("").expect_text("").close(1000, "").expect(close(1000, "")).expect(Said::Gone);

    let requests = origin.wait_requests(5);
    let bodies: Vec<_> = requests.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
    assert_eq!(
        bodies,
        [
            "OPEN\r\n",
            "TEXT 6\r\nhéllo\r\n",
            "TEXT 6\r\nforget\r\n",
            "TEXT\r\n",
            "CLOSE 2\r\n\u{3}\u{fffd}\r\n"
        ]
    );
    let id = requests[0].head.field("connection-id").expect("an id").to_string();
    let shape: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(shape, [8, 4, 4, 4, 12], "{id}");
    assert_eq!(id, id.to_lowercase());
    for (n, request) in requests.iter().enumerate() {
        let head = &request.head;
        assert_eq!((request.method(), request.target()), ("POST", "/room?n=1"));
        let own = [
            ("connection-id", Some(id.as_str())),
            ("accept", Some("application/websocket-events")),
            ("content-type", Some("application/websocket-events")),
            ("sec-websocket-extensions", Some("grip")),
            ("sec-websocket-protocol", Some("chat, other")),
            ("sec-websocket-version", Some("13")),
            ("origin", Some("https://page.example")),
            ("cookie", Some("c=1")),
            ("host", Some("fantail.example")),
            ("meta-user", [None, Some("alice"), Some("alice"), None, None][n]),
            ("meta-role", None),
            ("content-bytes-replayed", None),
            ("upgrade", None),
            ("connection", None),
        ];
        for (name, wanted) in own {
            assert_eq!(head.field(name), wanted, "{name} of request {n}: {head:?}");
        }
        assert!(head.has("sec-websocket-key") && head.has("grip-feature"));
        let signature = head.field("grip-sig").expect("signed");
        assert_eq!(signature.split('.').count(), 3, "{signature}");
    }
    assert_eq!(origin.malformed(), [""; 0]);
    expect_ended(&server, "client", 1.0);
}

#[test]
fn every_kind_of_message_goes_both_ways() {
    let origin = echo();
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("text").expect_text("text");
    client.send(Opcode::Binary, [0, 255, 13, 10]).expect(Said::Binary(vec![0, 255, 13, 10]));
    client.send(Opcode::Ping, "ping").expect(Said::Pong(b"ping".to_vec()));
    client.send(Opcode::Pong, "pong").send(Opcode::Ping, "").expect(Said::Pong(Vec::new()));
    for length in [1, 125, 126, 65_535, 65_536, 150_000, 250_000] {
        let content = "é".repeat(length / 2);
        client.text(&content).expect_text(&content);
    }
    assert_eq!(server.metric("fantail_websocket_messages_total", &["from=\"client\""]), 12.0);
    assert_eq!(server.metric("fantail_websocket_messages_total", &["from=\"origin\""]), 11.0);
}

/// The client's first words may come in the same packet as its handshake.
#[test]
fn what_comes_behind_the_handshake_is_heard() {
    let origin = echo();
    let server = before(&origin);
    let mut early = server.connect();
    let frame = WebSocket::open(&server, "/").frame(Opcode::Text, b"early");
    early.send([upgrade("/", &[]).into_bytes(), frame].concat());
    WebSocket::begun(early).expect("a 101").expect_text("early");
}

#[test]
fn what_comes_during_a_request_goes_with_the_next() {
    let (origin, gate) = gated(|_, said| events(&echoed(said)));
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("first");
    origin.wait_requests(2);
    client.text("a").send(Opcode::Binary, "b").text("").send(Opcode::Ping, "p");
    wait_read(&server, 5.0);
    gate.open();
    for said in ["first", "a"] {
        client.expect_text(said);
    }
    client.expect(Said::Binary(b"b".to_vec())).expect_text("").expect(Said::Pong(b"p".to_vec()));
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[2].body, b"TEXT 1\r\na\r\nBINARY 1\r\nb\r\nTEXT\r\nPING 1\r\np\r\n");
}

#[test]
fn one_event_is_one_request() {
    let (origin, gate) = gated(|_, said| events(&echoed(said)));
    let server = TestServer::start(&[&format!("* {origin},over_http,one_event")], |_| {});
    let mut client = WebSocket::open(&server, "/");
    client.text("first");
    origin.wait_requests(2);
    client.text("a").text("").text("b");
    wait_read(&server, 4.0);
    gate.open();
    for said in ["first", "a", "", "b"] {
        client.expect_text(said);
    }
    let bodies: Vec<_> = origin.requests().into_iter().skip(2).map(|request| request.body).collect();
    assert_eq!(bodies, [&b"TEXT 1\r\na\r\n"[..], b"TEXT\r\n", b"TEXT 1\r\nb\r\n"]);
}

#[test]
fn what_is_not_accepted_is_offered_again() {
    let origin = over_http(
        |_| opened(&[]),
        |request, said| match &*request.body {
            b"TEXT b\r\nhello world\r\n" => {
                events_with(&[("Content-Bytes-Accepted", "5")], &[message("m:5")])
            }
            _ => events(&echoed(said)),
        },
    );
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("hello world").expect_text("5").text("more").expect_text(" world").expect_text("more");
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[1].head.field("content-bytes-replayed"), None);
    assert_eq!(requests[2].head.field("content-bytes-replayed"), Some("6"));
}

/// Whatever an origin says that is not an acceptance is the client's answer.
#[test]
fn a_refusal_is_relayed() {
    let table: [(&str, &str, &str); 6] = [
        ("404 Not Found", "text/plain", "no such room"),
        ("200 OK", "text/html", "<p>no</p>"),
        ("302 Found", "text/plain", ""),
        ("401 Unauthorized", "application/websocket-events", "OPEN\r\n"),
        ("500 Internal Server Error", "text/plain", "oops"),
        ("503 Busy", "text/plain", "later"),
    ];
    for (status, media_type, text) in table {
        let fields = [("Content-Type", media_type), ("Location", "/elsewhere"), ("X-Own", "kept")];
        let origin = Origin::fixed(answer(status, &fields, text));
        let server = before(&origin);
        let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
        assert_eq!(refused.head.first_line, format!("HTTP/1.1 {status}"));
        assert_eq!((refused.head.field("x-own"), refused.text()), (Some("kept"), text.to_string()));
        assert_eq!(refused.head.field("content-type"), Some(media_type));
        assert_eq!(origin.requests().len(), 1);
        server.wait_pins("websocket", 0);
    }
}

/// An answer that is none: the origin says that it has events and has no OPEN.
#[test]
fn a_bad_acceptance_is_502() {
    for body in ["", "TEXT 2\r\nhi\r\n", "DISCONNECT\r\n", "OPEN", "TEXT zz\r\n"] {
        let events = [("Content-Type", "application/websocket-events")];
        let origin = Origin::fixed(answer("200 OK", &events, body));
        let server = before(&origin);
        let refused = WebSocket::try_open(server.client, "/", &[]).expect_err("no 101");
        assert_eq!(refused.status(), 502, "{body:?}");
    }
}

#[test]
fn an_opening_moves_on_to_the_next_target() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
    let origin = echo();
    let server = TestServer::start(&[&format!("* {dead},over_http {origin},over_http")], |_| {});
    let mut client = WebSocket::open(&server, "/");
    client.text("one").expect_text("one").text("two").expect_text("two");
    assert_eq!(origin.requests().len(), 3);
    let nowhere = TestServer::start(&[&format!("* {dead},over_http")], |_| {});
    assert_eq!(WebSocket::try_open(nowhere.client, "/", &[]).expect_err("no 101").status(), 502);
}

/// Check 67: what was said while the origin was down is said when it is back, in its order.
#[test]
fn an_origin_that_comes_back_hears_everything() {
    let origin = echo();
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("before").expect_text("before");
    origin.stop();
    client.text("a");
    server.wait_until(DEADLINE, "the origin is not reached", || {
        server.metric("fantail_origin_connect_failures_total", &[]) >= 1.0
    });
    client.text("b").text("c");
    wait_read(&server, 4.0);
    let reborn = Origin::reborn(origin.address(), |request| events(&echoed(events_of(request))));
    for said in ["a", "b", "c"] {
        client.expect_text(said);
    }
    let bodies: Vec<_> = reborn.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [&b"TEXT 1\r\na\r\n"[..], b"TEXT 1\r\nb\r\nTEXT 1\r\nc\r\n"]);
}

/// The client need not wait for that.
#[test]
fn an_origin_that_comes_back_hears_of_clients_that_left() {
    let origin = echo();
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    origin.stop();
    client.text("last words");
    server.wait_until(DEADLINE, "the origin is not reached", || {
        server.metric("fantail_origin_connect_failures_total", &[]) >= 1.0
    });
    drop(client);
    expect_ended(&server, "client", 1.0);
    let reborn = Origin::reborn(origin.address(), |_| events(&[]));
    let requests = reborn.wait_requests(2);
    assert_eq!(requests[0].body, b"TEXT a\r\nlast words\r\n");
    server.wait_until(DEADLINE, "DISCONNECT", || reborn.requests()[1].body == b"DISCONNECT\r\n");
}

/// Nobody can have acted on what did not arrive whole.
#[test]
fn a_request_that_an_origin_does_not_take_whole_is_sent_again() {
    const SIZE: usize = 12 << 20;
    let breaks_off = AtomicBool::new(true);
    let origin = Origin::scripted(move |exchange| {
        let length = exchange.request.head.field("content-length").unwrap().parse::<usize>().unwrap();
        if length > SIZE && breaks_off.swap(false, SeqCst) {
            return Then::Reset;
        }
        if exchange.read_body().is_err() {
            return Then::Close;
        }
        let said = events_of(&exchange.request);
        exchange.send(if said == [Event::Open] { opened(&[]) } else { events(&[message("m:heard")]) });
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("websocket.message_bytes", "20000000").set("websocket.buffer_bytes", "20000000");
    });
    let mut client = WebSocket::open(&server, "/");
    client.send(Opcode::Binary, vec![7; SIZE]).expect_text("heard");
    let requests = origin.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests[2].body.len() > SIZE);
}

/// Answers that are faults of the origin: its client is dropped without a close frame, and it hears of that
/// unless it has said so itself.
#[test]
fn an_origin_at_fault_loses_its_client() {
    let media = [("Content-Type", "application/websocket-events")];
    let table: [(&str, Vec<u8>, bool); 8] = [
        ("500", answer("500 Internal Server Error", &media, ""), false),
        ("no events", answer("200 OK", &[("Content-Type", "text/plain")], "m:hi"), false),
        ("DISCONNECT", events(&[Event::Disconnect]), false),
        ("OPEN twice", events(&[Event::Open]), true),
        ("no end of line", answer("200 OK", &media, "TEXT 5"), true),
        ("a length that is none", answer("200 OK", &media, "TEXT x\r\nhi\r\n"), true),
        ("a content that goes on", answer("200 OK", &media, "TEXT 2\r\nhello\r\n"), true),
        ("too much accepted", events_with(&[("Content-Bytes-Accepted", "3")], &[]), true),
    ];
    for (what, bad, hears) in table {
        let its_bad = bad.clone();
        let origin = over_http(
            |_| opened(&[]),
            move |_, said| if said == [message("hi")] { its_bad.clone() } else { events(&[]) },
        );
        let server = before(&origin);
        let mut client = WebSocket::open(&server, "/");
        assert_eq!(client.text("hi").next(), Said::Gone, "{what}");
        expect_ended(&server, "origin", 1.0);
        let mut wanted = vec![message("hi")];
        wanted.extend(hears.then_some(Event::Disconnect));
        expect_heard(&server, &origin, &wanted);
    }
}

#[test]
fn an_answer_over_its_limit_loses_the_client() {
    let origin =
        over_http(|_| opened(&[]), |_, _| events(&[message(&format!("m:{}", "x".repeat(1_000_000)))]));
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("hi").expect(Said::Gone);
    expect_ended(&server, "origin", 1.0);
    expect_heard(&server, &origin, &[message("hi"), Event::Disconnect]);
}

#[test]
fn a_text_that_is_not_utf8_is_an_error_of_ours() {
    for (flag, reason) in [("", ""), (",debug", "a text message is not UTF-8")] {
        let origin = over_http(
            |_| opened(&[]),
            |_, _| events(&[Event::Message(WsKind::Text, Bytes::from_static(b"m:\xff")), message("m:late")]),
        );
        let server = TestServer::start(&[&format!("*{flag} {origin},over_http")], |_| {});
        let mut client = WebSocket::open(&server, "/");
        client.text("hi").expect(close(1011, reason)).close(1011, "").expect(Said::Gone);
        expect_heard(&server, &origin, &[message("hi"), Event::Close(None)]);
        expect_ended(&server, "origin", 1.0);
    }
}

/// Check 64. The origin's own answer is the client's.
#[test]
fn a_client_closes() {
    let origin = echo();
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("bye").close(4001, "bye").expect_text("bye").expect(close(4001, "bye")).expect(Said::Gone);
    expect_heard(&server, &origin, &[message("bye"), closing(4001, "bye")]);
    expect_ended(&server, "client", 1.0);

    let mut silent = WebSocket::open(&server, "/");
    silent.send(Opcode::Close, "").expect(Said::Close(None)).expect(Said::Gone);
}

#[test]
fn an_origin_closes() {
    let table = [
        (Some((4000, "go")), (4000, "go")),
        (Some((1000, "")), (1000, "")),
        (Some((0, "")), (1000, "")),
        (Some((0, "why")), (1000, "why")),
        (Some((1005, "")), (1000, "")),
        (Some((1006, "")), (1011, "")),
        (Some((99, "")), (1011, "")),
        (None, (1000, "")),
    ];
    for (said, (code, reason)) in table {
        let said = Event::Close(said.map(|(code, reason)| (code, Bytes::from_static(reason.as_bytes()))));
        let its = said.clone();
        let origin = over_http(
            |_| opened(&[]),
            move |_, heard| match &heard[..] {
                // Closing twice, and saying more behind it, changes nothing.
                [Event::Message(..)] => {
                    events(&[message("m:hi"), its.clone(), its.clone(), message("m:late")])
                }
                _ => events(&[]),
            },
        );
        let server = before(&origin);
        let mut client = WebSocket::open(&server, "/");
        client.text("?").expect_text("hi").expect(close(code, reason));
        client.close(4002, "me too").expect(Said::Gone);
        expect_heard(&server, &origin, &[message("?"), closing(4002, "me too")]);
        expect_ended(&server, "close", 1.0);
    }
}

/// A long reason is cut between two characters; a client is not dropped for it.
#[test]
fn a_reason_fits_a_frame() {
    let origin = over_http(|_| opened(&[closing(4000, &"€".repeat(100))]), |_, _| events(&[]));
    let server = before(&origin);
    WebSocket::open(&server, "/").expect(close(4000, &"€".repeat(41)));
}

#[test]
fn a_close_that_the_origin_ignores_ends_the_connection() {
    let origin = Origin::answering(|request| match &events_of(request)[..] {
        [Event::Open] => opened(&[]),
        _ => events(&[]),
    });
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.close(1000, "").expect(Said::Gone);
    expect_ended(&server, "origin", 1.0);
    expect_heard(&server, &origin, &[closing(1000, "")]);
}

/// The client of an origin that closes has its time to answer, and is then dropped.
#[test]
fn a_close_that_the_client_ignores_ends_the_connection() {
    let origin = over_http(|_| opened(&[closing(4000, "")]), |_, _| events(&[]));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("websocket.close_timeout", "300ms");
    });
    let mut client = WebSocket::open(&server, "/");
    client.expect(close(4000, "")).expect(Said::Gone);
    expect_heard(&server, &origin, &[Event::Disconnect]);
    expect_ended(&server, "close", 1.0);
}

/// An origin that does not answer a close in time is not waited for: its client gets its own code back.
#[test]
fn a_client_gets_its_close_from_a_slow_origin_too() {
    let (origin, gate) = gated(|_, _| events(&[]));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("websocket.close_timeout", "300ms");
    });
    let mut client = WebSocket::open(&server, "/");
    client.text("hi");
    origin.wait_requests(2);
    client.close(4001, "").expect(close(4001, "")).expect(Said::Gone);
    expect_ended(&server, "client", 1.0);
    gate.open();
    expect_heard(&server, &origin, &[message("hi"), closing(4001, "")]);
}

#[test]
fn a_client_that_vanishes_is_disconnected_once() {
    let origin = echo();
    let server = before(&origin);
    let leave: [fn(WebSocket); 3] = [drop, WebSocket::reset, |mut client: WebSocket| {
        client.wire.socket.shutdown(std::net::Shutdown::Write).expect("a live socket");
        client.expect(Said::Gone);
    }];
    for (n, leave) in leave.into_iter().enumerate() {
        let mut client = WebSocket::open(&server, "/");
        client.text("hi").expect_text("hi");
        leave(client);
        expect_ended(&server, "client", n as f64 + 1.0);
        // Two requests before the farewell, each time.
        let requests = origin.wait_requests(3 * (n + 1));
        server.wait_until(DEADLINE, "DISCONNECT", || {
            origin.requests().last().is_some_and(|last| last.body == b"DISCONNECT\r\n")
        });
        let last = &requests[requests.len() - 1].head;
        assert_eq!(last.field("connection-id"), requests[requests.len() - 2].head.field("connection-id"));
        assert!(last.has("grip-sig"));
    }
    assert_eq!(origin.requests().len(), 9);
}

/// What a client said before it vanished is heard; its farewell follows the request on its way.
#[test]
fn a_farewell_waits_for_its_turn() {
    let (origin, gate) = gated(|_, said| events(&echoed(said)));
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.text("a");
    origin.wait_requests(2);
    client.text("b");
    wait_read(&server, 2.0);
    drop(client);
    expect_ended(&server, "client", 1.0);
    assert_eq!(origin.requests().len(), 2);
    gate.open();
    expect_heard(&server, &origin, &[message("a"), message("b"), Event::Disconnect]);
}

/// What clients leave behind by leaving has a limit (32 MiB a shard): over it their origins hear nothing.
#[test]
fn what_clients_leave_behind_is_limited() {
    let (origin, gate) = gated(|_, said| events(&echoed(said)));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("server.shards", "1").set("websocket.message_bytes", "20000000");
        o.set("websocket.buffer_bytes", "20000000");
    });
    let last_words = "x".repeat(15_000_000);
    for n in 1..=3 {
        let mut client = WebSocket::open(&server, "/");
        client.text("hi");
        origin.wait_requests(2 * n);
        client.text(&last_words);
        wait_read(&server, 2.0 * n as f64);
        drop(client);
        server.wait_pins("websocket", 0);
    }
    gate.open();
    let farewells =
        || origin.requests().iter().filter(|request| request.body.ends_with(b"DISCONNECT\r\n")).count();
    server.wait_until(DEADLINE, "two farewells", || farewells() == 2);
    WebSocket::open(&server, "/").text("still there").expect_text("still there");
    server.wait_until(DEADLINE, "the farewell of the last, and no other", || farewells() >= 3);
    assert_eq!(origin.requests().len(), 6 + 2 + 3);
    for (result, count) in [("told", 3.0), ("failed", 0.0), ("dropped", 1.0)] {
        server.wait_metric("fantail_websocket_farewells_total", &[&format!("result=\"{result}\"")], count);
    }
    server.log_text("not all of their origins are told");
}

/// When Fantail stops, what would be too much at once is told one after another.
#[test]
fn a_stop_is_told_to_all_origins() {
    let (origin, gate) = gated(|_, said| events(&echoed(said)));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("server.shards", "1").set("websocket.message_bytes", "20000000");
        o.set("websocket.buffer_bytes", "20000000");
    });
    let last_words = "x".repeat(15_000_000);
    let mut clients = Vec::new();
    for n in 1..=4 {
        let mut client = WebSocket::open(&server, "/");
        client.text("hi");
        origin.wait_requests(2 * n);
        client.text(&last_words);
        wait_read(&server, 2.0 * n as f64);
        clients.push(client);
    }
    let stopping = std::thread::spawn(move || server.terminate());
    for client in &mut clients {
        client.expect(close(1001, ""));
    }
    drop(clients);
    gate.open();
    assert!(stopping.join().expect("no panic").success());
    let farewells = origin.requests().iter().filter(|request| request.body.ends_with(b"CLOSE\r\n")).count();
    assert_eq!(farewells, 4);
}

/// Without any other cause the origin is asked as often as it wishes; 20 s is the least.
#[test]
#[ignore = "waits for 20 s: ./test --soak"]
fn an_idle_origin_is_asked_at_its_interval() {
    let origin = over_http(
        |_| {
            let fields = [("Sec-WebSocket-Extensions", "grip"), ("Keep-Alive-Interval", "1")];
            events_with(&fields, &[Event::Open])
        },
        |_, _| events_with(&[("Keep-Alive-Interval", "0")], &[message("m:asked")]),
    );
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    let opened = Instant::now();
    client.wire.patience = Duration::from_secs(30);
    client.expect_text("asked");
    let waited = opened.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_secs(25)).contains(&waited), "{waited:?}");
    assert_eq!(origin.requests()[1].body, b"");
}

/// An origin may take its time to accept, but not for ever; then it hears that the client has gone.
#[test]
fn an_origin_that_does_not_make_up_its_mind() {
    let origin = over_http(|_| events_with(&[("Keep-Alive-Interval", "20")], &[]), |_, _| events(&[]));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("websocket.handshake_timeout", "500ms");
    });
    let begun = Instant::now();
    assert_eq!(WebSocket::try_open(server.client, "/", &[]).expect_err("no 101").status(), 504);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    expect_heard(&server, &origin, &[Event::Disconnect]);
    server.wait_metric("fantail_websocket_refused_total", &["cause=\"timeout\""], 1.0);
}

/// More channels than a connection may have are ignored and counted; a name that is too long is the origin's fault.
#[test]
fn subscriptions_over_a_limit_are_not_lost_in_silence() {
    let long = "n".repeat(51);
    let names = |names: &[&str]| {
        names.iter().map(|name| subscribe(name)).chain([message("m:done")]).collect::<Vec<_>>()
    };
    let origin = Origin::answering(move |request| match request.target() {
        _ if events_of(request) != [Event::Open] => events(&[]),
        "/many" => opened(&names(&["a", "b", "c"])),
        _ => opened(&names(&["a", &long])),
    });
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("grip.subscriptions", "2").set("grip.channel_bytes", "50");
    });
    let mut many = WebSocket::open(&server, "/many");
    many.expect_text("done");
    server.wait_metric("fantail_subscriptions_refused_total", &[], 1.0);
    server.wait_metric("fantail_subscriptions", &[], 2.0);
    WebSocket::open(&server, "/long").expect(close(1011, ""));
}

/// Who leaves before the origin has answered OPEN was there for the origin all the same.
#[test]
fn a_client_that_vanishes_while_it_opens_is_disconnected() {
    let gate = Arc::new(Gate::default());
    let its_gate = Arc::clone(&gate);
    let origin = Origin::answering(move |request| {
        its_gate.pass();
        if request.body == b"OPEN\r\n" { opened(&[subscribe("c")]) } else { events(&[]) }
    });
    let server = before(&origin);
    let mut client = server.connect();
    client.send(upgrade("/", &[]));
    origin.wait_requests(1);
    drop(client);
    server.wait_metric("fantail_connections", &[], 0.0);
    gate.open();
    let requests = origin.wait_requests(2);
    server.wait_until(DEADLINE, "DISCONNECT", || origin.requests()[1].body == b"DISCONNECT\r\n");
    assert_eq!(requests[0].head.field("connection-id"), requests[1].head.field("connection-id"));
    server.wait_pins("websocket", 0);
}

#[test]
fn a_refresh_asks_the_origin_again() {
    let origin = over_http(
        |_| opened(&[subscribe("c")]),
        |_, said| {
            assert_eq!(said, []);
            events(&[message("m:fresh")])
        },
    );
    let server = before(&origin);
    let mut client = WebSocket::open(&server, "/");
    let item = json!([{ "channel": "c", "formats": { "ws-message": { "action": "refresh" } } }]);
    assert_eq!(server.receipts(&item)[0]["delivered"], 1);
    client.expect_text("fresh");
    let request = &origin.requests()[1];
    assert_eq!((&*request.body, request.head.field("content-length")), (&b""[..], Some("0")));
}

/// A client that says more than its slow origin takes is not read; others are.
#[test]
fn a_slow_origin_slows_its_client_alone() {
    let gate = Arc::new(Gate::default());
    let its_gate = Arc::clone(&gate);
    let origin = over_http(
        |_| opened(&[]),
        move |request, said| {
            if request.target() == "/slow" {
                its_gate.pass();
            }
            events(&echoed(said))
        },
    );
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("server.shards", "1");
    });
    let mut client = WebSocket::open(&server, "/slow");
    let mut neighbour = WebSocket::open(&server, "/quick");
    let before = server.memory();
    let sent = 40_000_000;
    let content = "s".repeat(10_000);
    let frame = client.frame(Opcode::Text, content.as_bytes());
    let mut speaking = client.wire.socket.try_clone().expect("a live socket");
    let (said, progress) = mpsc::channel();
    let speaker = std::thread::spawn(move || {
        for n in 0..sent / content.len() {
            std::io::Write::write_all(&mut speaking, &frame).expect("a live socket");
            said.send(n).expect("the test waits");
        }
    });
    // Until the sockets' buffers are full, it goes on; then nothing comes for a while.
    let stalled = std::iter::from_fn(|| progress.recv_timeout(Duration::from_millis(500)).ok()).last();
    assert!(stalled.is_some_and(|n| n + 1 < sent / 10_000), "everything was taken: {stalled:?}");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 4_000_000, "{grown} bytes for a slow origin");
    neighbour.text("hi").expect_text("hi");
    gate.open();
    for _ in 0..sent / 10_000 {
        assert!(matches!(client.next(), Said::Text(text) if text.len() == 10_000));
    }
    speaker.join().expect("all is said");
}

/// A row of the issue: 100,000 messages from one client through an origin that takes 50 ms for each request.
#[test]
fn nothing_is_lost_or_reordered_by_a_slow_origin() {
    let count = 100_000;
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let origin = Origin::scripted(move |exchange| {
        if exchange.read_body().is_err() {
            return Then::Close;
        }
        let said = events_of(&exchange.request);
        if said == [Event::Open] {
            exchange.send(opened(&[]));
            return Then::Next;
        }
        exchange.pause(Duration::from_millis(50));
        tell.lock().expect("no panic holds it").send(said).expect("the test listens");
        exchange.send(events(&[]));
        Then::Next
    });
    let server = before(&origin);
    let client = WebSocket::open(&server, "/");
    let rest = server.memory();
    let start = Instant::now();
    let mut speaking = client.wire.socket.try_clone().expect("a live socket");
    let frames: Vec<u8> =
        (0..count).flat_map(|n| client.frame(Opcode::Text, format!("message {n:06}").as_bytes())).collect();
    let speaker = std::thread::spawn(move || std::io::Write::write_all(&mut speaking, &frames));
    let (mut next, mut worst, mut requests) = (0, 0, 0);
    while next < count {
        let said = told.recv_timeout(DEADLINE).expect("the origin hears on");
        for event in said {
            assert_eq!(event, message(&format!("message {next:06}")));
            next += 1;
        }
        requests += 1;
        worst = worst.max(server.memory().saturating_sub(rest));
    }
    println!(
        "{count} messages in {requests} requests, {:?}, {worst} bytes more than idle at most",
        start.elapsed()
    );
    speaker.join().expect("it does not panic").expect("all is said");
    assert!(worst < 8_000_000, "{worst} bytes");
}

/// A row of the issue: a backend is killed and comes back under a thousand open WebSockets.
#[test]
fn a_backend_restarts_under_a_thousand_clients() {
    let count = 1000;
    let origin = over_http(|_| opened(&[subscribe("all")]), |_, said| events(&echoed(said)));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("logging.access", "false");
    });
    let mut clients: Vec<_> = (0..count).map(|_| WebSocket::open(&server, "/")).collect();
    for client in &mut clients {
        client.text("before").expect_text("before");
    }
    origin.stop();
    let item = json!([{ "channel": "all", "formats": { "ws-message": { "content": "alive" } } }]);
    let receipt = server.receipts(&item).remove(0);
    assert_eq!(receipt["delivered"], count, "{receipt}");
    for (n, client) in clients.iter_mut().enumerate().take(100) {
        client.text(&format!("during {n}"));
    }
    server.wait_until(DEADLINE, "the origin is not reached", || {
        server.metric("fantail_origin_connect_failures_total", &[]) >= 100.0
    });
    let reborn = Origin::reborn(origin.address(), |request| events(&echoed(events_of(request))));
    for (n, client) in clients.iter_mut().enumerate() {
        client.expect_text("alive").text(&format!("after {n}"));
    }
    for (n, client) in clients.iter_mut().enumerate() {
        if n < 100 {
            client.expect_text(&format!("during {n}"));
        }
        client.expect_text(&format!("after {n}"));
    }
    server.wait_pins("websocket", count);
    assert_eq!(server.metric("fantail_pins_ended_total", &[]), 0.0);
    drop(reborn);
}

/// An unsubscribed connection leaves nothing behind, however many come and go.
#[test]
fn nothing_leaks_when_many_come_and_go() {
    let origin = over_http(|_| opened(&[subscribe("c")]), |_, said| events(&echoed(said)));
    let server = before(&origin);
    drop(WebSocket::open(&server, "/"));
    server.wait_metric("fantail_connections", &[], 0.0);
    let files = server.open_files();
    for round in 0..5 {
        let clients: Vec<_> = (0..60).map(|_| WebSocket::open(&server, "/")).collect();
        for (n, mut client) in clients.into_iter().enumerate() {
            match (n + round) % 4 {
                0 => drop(client),
                1 => client.reset(),
                2 => {
                    client.text("x");
                    client.reset();
                }
                _ => {
                    client.close(1000, "").expect(close(1000, ""));
                }
            }
        }
        server.wait_pins("websocket", 0);
    }
    for gauge in ["fantail_subscriptions", "fantail_channels", "fantail_connections"] {
        server.wait_metric(gauge, &[], 0.0);
    }
    let id = |request: &Request| request.head.field("connection-id").expect("an id").to_string();
    server.wait_until(DEADLINE, "each origin's session ends once", || {
        let requests = origin.requests();
        let ends = requests.iter().filter(|request| {
            request.framing.is_some()
                && events_of(request).iter().any(|event| matches!(event, Event::Disconnect | Event::Close(_)))
        });
        let mut ends: Vec<_> = ends.map(id).collect();
        let all = ends.len();
        ends.sort_unstable();
        ends.dedup();
        assert_eq!(ends.len(), all, "an end was said twice");
        all == 301
    });
    server.wait_until(DEADLINE, "the descriptors of before", || server.open_files() <= files + 8);
}

/// An origin is asked about clients that have left meanwhile, but not about as many as there are connections to it.
#[test]
fn clients_that_have_left_use_a_part_of_the_connections() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let origin = Origin::scripted(move |exchange| {
        if exchange.proxy_leaves() {
            tell.lock().expect("no panic holds it").send(()).expect("the test waits");
        }
        Then::Close
    });
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("server.shards", "1").set("origin.connections", "8").set("origin.response_timeout", "1h");
    });
    for n in 1..=3 {
        let mut client = server.connect();
        client.send(upgrade("/", &[]));
        origin.wait_requests(n);
        drop(client);
        server.wait_metric("fantail_connections", &[], 0.0);
    }
    told.recv_timeout(DEADLINE).expect("one has no place");
    assert!(told.try_recv().is_err(), "two have");
}
