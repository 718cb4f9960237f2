//! SockJS: its pages, its sessions by every transport, and how they end (check 74). Sessions belong to one of several
//! shards, and their requests come to any.

use bytes::Bytes;
use fantail_proto::{
    item::WsKind,
    websocket::{events::Event, frame::Opcode, over_http::MAX_PENDING_EVENTS},
};
use serde_json::{Value, json};

use crate::harness::{
    Client, DEADLINE, Options, Origin, Response, Said, TestServer, WebSocket, answer,
    websocket::{
        close, events, events_of, events_with, message, opened, over_http, subscribe, text, upgrade,
    },
};

const PAGE: &str = "https://page.example";

/// Says messages back, and subscribes each client to `all`.
fn echo() -> Origin {
    over_http(
        |_| opened(&[subscribe("all")]),
        |_, said| {
            let back = said.into_iter().filter_map(|event| match event {
                Event::Message(kind @ WsKind::Text, content) => {
                    Some(Event::Message(kind, [b"m:", &*content].concat().into()))
                }
                Event::Close(close) => Some(Event::Close(close)),
                _ => None,
            });
            events(&back.collect::<Vec<_>>())
        },
    )
}

fn started(origin: &Origin, more: impl FnOnce(&mut Options)) -> TestServer {
    TestServer::start(&[&format!("*,sockjs=/chat {origin},over_http")], |options| {
        options.set("server.shards", "3");
        more(options);
    })
}

fn post(server: &TestServer, target: &str, body: &str) -> Response {
    server.request("POST", target, &[("Origin", PAGE)], body.as_bytes())
}

fn poll(server: &TestServer, session: &str) -> String {
    post(server, &format!("/chat/000/{session}/xhr"), "").text()
}

fn says(server: &TestServer, session: &str, body: &str) {
    assert_eq!(post(server, &format!("/chat/000/{session}/xhr_send"), body).status(), 204);
}

fn published(text: &str) -> Value {
    json!([{ "channel": "all", "formats": { "ws-message": { "content": text } } }])
}

/// What was said to the origin, in its order.
fn heard(origin: &Origin) -> Vec<Event> {
    origin.requests().iter().flat_map(events_of).collect()
}

#[test]
fn pages() {
    let origin = echo();
    let server = started(&origin, |_| {});
    let get = |target: &str| server.request("GET", target, &[("Origin", PAGE)], b"");
    for greeting in ["/chat", "/chat/"] {
        assert_eq!(get(greeting).text(), "Welcome to SockJS!\n");
    }
    let info = get("/chat/info");
    assert_eq!(info.head.field("content-type"), Some("application/json; charset=UTF-8"));
    assert_eq!(info.head.field("access-control-allow-origin"), Some(PAGE));
    assert_eq!(info.head.field("access-control-allow-credentials"), Some("true"));
    assert!(info.head.field("cache-control").unwrap().contains("no-store"));
    let nobody = server.request("GET", "/chat/info", &[("Origin", "null")], b"");
    let said = |name| nobody.head.field(name);
    assert_eq!(said("access-control-allow-origin"), Some("*"));
    assert_eq!(said("access-control-allow-credentials"), None);
    let said: Value = serde_json::from_str(&info.text()).unwrap();
    assert!(said["websocket"] == true && said["cookie_needed"] == false && said["entropy"].is_u64());

    let frame = get("/chat/iframe-1.2.html");
    assert!(frame.text().contains("sockjs-client@1") && frame.text().contains("bootstrap_iframe"));
    let tag = frame.head.field("etag").unwrap().to_owned();
    let again = server.request("GET", "/chat/iframe-1.2.html", &[("If-None-Match", &tag)], b"");
    assert!(again.status() == 304 && again.head.field("content-type").is_none());

    let fields = [("Origin", PAGE), ("Access-Control-Request-Headers", "content-type")];
    let preflight = server.request("OPTIONS", "/chat/000/abc/xhr", &fields, b"");
    assert_eq!(preflight.status(), 204);
    assert_eq!(preflight.head.field("access-control-allow-methods"), Some("OPTIONS, POST"));
    assert_eq!(preflight.head.field("access-control-allow-headers"), Some("content-type"));

    for wrong in ["/chat/nothing", "/chat/a.b/c/xhr", "/chat/000//xhr", "/chat/000/abc/xhr/"] {
        assert_eq!(get(wrong).status(), 404, "{wrong}");
    }
    assert_eq!(get("/chat/000/abc/xhr").head.field("allow"), Some("OPTIONS, POST"));
    assert_eq!(get("/chat/000/abc/websocket").status(), 400);
    assert_eq!(get("/chat/000/abc/jsonp").status(), 400);
    assert_eq!(get("/chat/000/abc/jsonp?c=alert(1)").status(), 400);
    assert!(origin.requests().is_empty(), "nothing of it is the origin's");
    // What only begins alike is.
    post(&server, "/chatter", "");
    assert_eq!(origin.request().target(), "/chatter");
}

#[test]
fn polls_open_a_session_that_any_shard_finds() {
    let origin = echo();
    let server = started(&origin, |_| {});
    for session in ["one", "two", "three", "four", "five", "six"] {
        assert_eq!(poll(&server, session), "o\n");
        says(&server, session, r#"["a","b"]"#);
        assert_eq!(poll(&server, session), "a[\"a\",\"b\"]\n");
        says(&server, session, r#""</script>\u2028""#);
        assert_eq!(poll(&server, session), "a[\"\\u003c/script>\\u2028\"]\n");
    }
    server.wait_pins("sockjs", 6);
    // A connection stays where its session is.
    let mut client = server.connect();
    for round in ["x", "y"] {
        client.request("POST", "/chat/1/one/xhr_send", &[], format!("[\"{round}\"]").as_bytes());
        assert_eq!(client.response().status(), 204);
        client.request("POST", "/chat/1/one/xhr", &[], b"");
        assert_eq!(client.response().text(), format!("a[\"{round}\"]\n"));
    }
    let request = &origin.requests()[0];
    assert_eq!((request.method(), request.target()), ("POST", "/chat"));
    assert_eq!(request.head.field("sec-websocket-extensions"), Some("grip"));
    assert_eq!(request.head.field("origin"), Some(PAGE));
    for (wrong, status) in [("", 400), ("[\"a", 400), ("{}", 400)] {
        assert_eq!(post(&server, "/chat/0/one/xhr_send", wrong).status(), status, "{wrong}");
    }
    assert_eq!(post(&server, "/chat/0/nobody/xhr_send", "[]").status(), 404);
}

#[test]
fn streams_begin_with_their_prelude_and_end_after_their_bytes() {
    let origin = echo();
    let server = started(&origin, |options| {
        options.set("sockjs.stream_bytes", "100");
    });
    let mut xhr = server.connect();
    xhr.request("POST", "/chat/0/x/xhr_streaming", &[], b"");
    assert_eq!(xhr.head().field("content-type"), Some("application/javascript; charset=UTF-8"));
    let prelude = format!("{}\n", "h".repeat(2048));
    xhr.expect(&prelude).expect("o\n");
    let mut events = server.connect();
    events.get("/chat/0/e/eventsource");
    assert_eq!(events.head().field("content-type"), Some("text/event-stream; charset=UTF-8"));
    events.expect("\r\ndata: o\r\n\r\n");
    let mut file = server.connect();
    file.get("/chat/0/h/htmlfile?c=_jp.a1");
    assert_eq!(file.head().field("content-type"), Some("text/html; charset=UTF-8"));
    let page = file.content(2048);
    assert!(String::from_utf8_lossy(&page).contains("var c = parent._jp.a1;"));
    server.wait_pins("sockjs", 3);

    server.publish(&published("hi"));
    xhr.expect("a[\"hi\"]\n");
    events.expect("data: a[\"hi\"]\r\n\r\n");
    let mut seen = String::new();
    while !seen.contains("p(\"a[\\\"hi\\\"]\");\n</script>") {
        seen.push_str(&String::from_utf8_lossy(&file.content(1)));
    }
    // The limit: the response ends, and the next goes on, on the same connection.
    let long = "y".repeat(100);
    server.publish(&published(&long));
    xhr.expect(&format!("a[\"{long}\"]\n")).expect_end();
    server.publish(&published("between"));
    xhr.request("POST", "/chat/0/x/xhr_streaming", &[], b"");
    xhr.head();
    xhr.expect(&prelude).expect("a[\"between\"]\n");
}

#[test]
fn json_p_in_both_directions() {
    let origin = echo();
    let server = started(&origin, |_| {});
    let opening = server.get("/chat/0/j/jsonp?c=_jp.x");
    assert_eq!(opening.text(), "/**/_jp.x(\"o\");\r\n");
    assert_eq!(opening.head.field("content-type"), Some("application/javascript; charset=UTF-8"));
    assert_eq!(opening.head.field("x-content-type-options"), Some("nosniff"));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let sent = server.request("POST", "/chat/0/j/jsonp_send", &form, b"d=%5B%22a+b%22%5D");
    assert_eq!((sent.status(), sent.text()), (200, "ok".into()));
    assert_eq!(server.get("/chat/0/j/jsonp?c=f").text(), "/**/f(\"a[\\\"a b\\\"]\");\r\n");
    assert_eq!(server.request("POST", "/chat/0/j/jsonp_send", &form, b"x=1").status(), 400);
}

#[test]
fn websockets_carry_frames() {
    let origin = echo();
    let server = started(&origin, |_| {});
    let mut framed = WebSocket::open(&server, "/chat/0/w/websocket");
    framed.expect_text("o");
    framed.text("[\"a\",\"b\"]").expect_text("a[\"a\"]").expect_text("a[\"b\"]");
    framed.text("").text("\"c\"").expect_text("a[\"c\"]");
    let mut raw = WebSocket::open(&server, "/chat/websocket");
    raw.text("plain").expect_text("plain");
    assert_eq!(origin.requests().last().unwrap().target(), "/chat/websocket");
    server.wait_pins("sockjs", 1);
    server.wait_pins("websocket", 1);
    server.publish(&published("to all"));
    framed.expect_text("a[\"to all\"]");
    raw.expect_text("to all");
    server.publish(&json!([{ "channel": "all", "formats": { "ws-message": {
        "action": "close", "code": 4000, "reason": "bye" } } }]));
    framed.expect_text("c[4000,\"bye\"]").expect(close(4000, "bye"));
    raw.expect(close(4000, "bye"));
    let mut wrong = WebSocket::open(&server, "/chat/0/w2/websocket");
    wrong.expect_text("o");
    wrong.text("[\"a").expect(close(1007, ""));
}

/// However many messages a frame has, its origin gets as many at once as of any client.
#[test]
fn a_frame_of_many_messages_waits_for_room() {
    let origin = over_http(|_| opened(&[]), |_, _| events(&[]));
    let server = started(&origin, |_| {});
    let mut client = WebSocket::open(&server, "/chat/0/w/websocket");
    client.expect_text("o");
    let count = 5 * MAX_PENDING_EVENTS;
    let messages: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    client.text(&serde_json::to_string(&messages).unwrap()).text("[\"last\"]");
    let said = |request: &crate::harness::Request| -> Vec<String> {
        let texts = events_of(request).into_iter().filter_map(|event| match event {
            Event::Message(WsKind::Text, content) => String::from_utf8(content.to_vec()).ok(),
            _ => None,
        });
        texts.collect()
    };
    server.wait_until(DEADLINE, "all is heard", || {
        origin
            .requests()
            .last()
            .is_some_and(|request| said(request).last().is_some_and(|text| text == "last"))
    });
    let requests: Vec<_> = origin.requests().iter().map(said).collect();
    assert!(requests.iter().all(|texts| texts.len() <= MAX_PENDING_EVENTS));
    let heard = requests.concat();
    assert!(heard[..count] == messages && heard.len() == count + 1, "{} are heard", heard.len());
}

#[test]
fn a_session_gets_what_came_while_nobody_received() {
    let origin = echo();
    let server = started(&origin, |_| {});
    assert_eq!(poll(&server, "s"), "o\n");
    server.wait_pins("sockjs", 1);
    for text in ["1", "2", "3"] {
        server.publish(&published(text));
    }
    server.wait_metric("fantail_deliveries_queued_total", &[], 3.0);
    assert_eq!(poll(&server, "s"), "a[\"1\",\"2\",\"3\"]\n");
    server.wait_pins("receiver", 0);
    // A poll that waits is answered by what comes next, and others are turned away meanwhile.
    let mut waiting = server.connect();
    waiting.request("POST", "/chat/0/s/xhr", &[], b"");
    server.wait_pins("receiver", 1);
    assert_eq!(poll(&server, "s"), "c[2010,\"Another connection still open\"]\n");
    server.publish(&published("4"));
    assert_eq!(waiting.response().text(), "a[\"4\"]\n");
}

#[test]
fn closes_are_told_to_whoever_asks() {
    let origin = echo();
    let server = started(&origin, |_| {});
    assert_eq!(poll(&server, "s"), "o\n");
    server.publish(&json!([{ "channel": "all", "formats": { "ws-message": {
        "action": "close", "code": 4001, "reason": "\"enough\"" } } }]));
    for _ in 0..2 {
        server.wait_until(DEADLINE, "it is closed", || poll(&server, "s") == "c[4001,\"\\\"enough\\\"\"]\n");
    }
    assert_eq!(post(&server, "/chat/0/s/xhr_send", "[\"late\"]").status(), 404);
    server.wait_until(DEADLINE, "the origin hears of it", || heard(&origin).contains(&Event::Close(None)));
}

#[test]
fn what_an_origin_closes_is_closed() {
    let origin = over_http(
        |_| opened(&[]),
        |_, _| events(&[message("m:last"), Event::Close(Some((4002, Bytes::from_static(b"done"))))]),
    );
    let server = started(&origin, |_| {});
    assert_eq!(poll(&server, "s"), "o\n");
    says(&server, "s", "[\"x\"]");
    let mut frames = String::new();
    server.wait_until(DEADLINE, "both are there", || {
        frames.push_str(&poll(&server, "s"));
        frames.contains("c[")
    });
    assert_eq!(frames, "a[\"last\"]\nc[4002,\"done\"]\n");
}

#[test]
fn a_refusal_is_the_answer() {
    let origin = Origin::fixed(answer("403 Forbidden", &[], "not you"));
    let server = started(&origin, |_| {});
    let refused = post(&server, "/chat/0/s/xhr", "");
    assert_eq!((refused.status(), refused.text()), (403, "not you".into()));
    let again = post(&server, "/chat/0/s/xhr", "");
    assert_eq!(again.status(), 403, "it was forgotten");
}

#[test]
fn who_does_not_come_back_has_left() {
    let origin = echo();
    let server = started(&origin, |options| {
        options.set("sockjs.disconnect_timeout", "300ms");
    });
    assert_eq!(poll(&server, "s"), "o\n");
    server.wait_pins("sockjs", 1);
    server.wait_pins("sockjs", 0);
    server.wait_until(DEADLINE, "the origin hears", || heard(&origin).contains(&Event::Disconnect));
    assert_eq!(poll(&server, "s"), "o\n", "a new one by the same name");
}

#[test]
fn a_receiver_that_breaks_off_ends_its_session() {
    let origin = echo();
    let server = started(&origin, |_| {});
    for target in ["/chat/0/a/xhr", "/chat/0/b/xhr_streaming"] {
        assert_eq!(post(&server, &target.replace("_streaming", ""), "").text(), "o\n");
        server.wait_pins("receiver", 0);
        let mut client = server.connect();
        client.request("POST", target, &[], b"");
        let session = if target.contains("/a/") { "a" } else { "b" };
        server.wait_pins("receiver", 1);
        drop(client);
        server.wait_pins("receiver", 0);
        server.wait_until(DEADLINE, "it is interrupted", || {
            poll(&server, session) == "c[1002,\"Connection interrupted\"]\n"
        });
    }
    server.wait_until(DEADLINE, "the origin hears", || {
        heard(&origin).iter().filter(|event| **event == Event::Disconnect).count() == 2
    });
}

#[test]
fn hearts_beat() {
    let origin = echo();
    let server = started(&origin, |options| {
        options.set("sockjs.heartbeat", "1s");
    });
    let mut framed = WebSocket::open(&server, "/chat/0/w/websocket");
    framed.expect_text("o").expect_text("h").expect_text("h");
    assert_eq!(poll(&server, "s"), "o\n");
    assert_eq!(poll(&server, "s"), "h\n");
}

#[test]
fn sessions_have_a_limit() {
    let origin = echo();
    let server = TestServer::start(&[&format!("*,sockjs=/chat {origin},over_http")], |options| {
        options.set("server.shards", "1").set("sockjs.sessions", "2");
    });
    assert_eq!(poll(&server, "a"), "o\n");
    assert_eq!(poll(&server, "b"), "o\n");
    assert_eq!(post(&server, "/chat/0/c/xhr", "").status(), 503);
    says(&server, "a", "[\"still\"]");
}

#[test]
fn a_session_that_nobody_reads_has_a_limit() {
    let origin = echo();
    let server = started(&origin, |options| {
        options.set("client.queue_bytes", "1000");
    });
    assert_eq!(poll(&server, "s"), "o\n");
    server.wait_pins("sockjs", 1);
    // One after the other: what waits together is queued, or dropped, together.
    let receipts = [(); 3].map(|()| server.receipts(&published(&"x".repeat(600))).remove(0));
    assert_eq!(receipts[0]["queued"], 1, "{receipts:?}");
    assert_eq!(receipts[1]["dropped"]["overflow"], 1, "{receipts:?}");
    server.wait_pins("sockjs", 0);
    server.wait_metric("fantail_deliveries_dropped_total", &["cause=\"overflow\""], 1.0);
}

#[test]
fn pages_that_may_not_connect_may_not_by_sockjs() {
    let origin = echo();
    let server = started(&origin, |options| {
        options.set("websocket.origins", "[\"https://good.example\"]");
    });
    assert_eq!(post(&server, "/chat/0/s/xhr", "").status(), 403);
    let fields = [("Origin", "https://good.example")];
    assert_eq!(server.request("POST", "/chat/0/s/xhr", &fields, b"").text(), "o\n");
}

#[test]
fn another_path_for_the_origin() {
    let origin = echo();
    let server =
        TestServer::start(&[&format!("*,sockjs=/chat,sockjs_as_path=/ws {origin},over_http")], |_| {});
    assert_eq!(post(&server, "/chat/000/s/xhr?token=x", "").text(), "o\n");
    assert_eq!(origin.request().target(), "/ws?token=x");
}

#[test]
fn an_origin_that_pings_is_answered() {
    let origin = over_http(
        |_| {
            events_with(
                &[("Sec-WebSocket-Extensions", "grip")],
                &[Event::Open, Event::Message(WsKind::Ping, "p".into())],
            )
        },
        |_, _| events(&[]),
    );
    let server = started(&origin, |_| {});
    assert_eq!(poll(&server, "s"), "o\n");
    let pong = Event::Message(WsKind::Pong, "p".into());
    server.wait_until(DEADLINE, "a pong", || heard(&origin).contains(&pong));
}

#[test]
fn draining_closes_sessions() {
    let origin = echo();
    let server = started(&origin, |_| {});
    assert_eq!(poll(&server, "s"), "o\n");
    server.wait_pins("receiver", 0);
    let mut waiting: Client = server.connect();
    waiting.request("POST", "/chat/0/s/xhr", &[], b"");
    server.wait_pins("receiver", 1);
    assert!(server.terminate().success());
    assert_eq!(waiting.response().text(), "c[1001,\"\"]\n");
}

#[test]
fn the_test_origin_echoes() {
    let server = TestServer::start(&["*,sockjs=/s,sockjs_as_path=/ws test"], |_| {});
    let mut socket = WebSocket::open(&server, "/ws?channel=a&channel=b");
    socket.text("hello").expect_text("hello");
    socket.send(Opcode::Ping, "p").expect(Said::Pong(b"p".to_vec()));
    server.wait_pins("websocket", 1);
    for channel in ["a", "b"] {
        server.publish(&json!([{ "channel": channel, "formats": { "ws-message": { "content": channel } } }]));
        socket.expect(text(channel));
    }
    let mut default = WebSocket::open(&server, "/ws/");
    server.wait_pins("websocket", 2);
    server.publish(&json!([{ "channel": "test", "formats": { "ws-message": { "content": "x" } } }]));
    default.expect_text("x").close(4000, "bye").expect(close(4000, "bye"));
    assert_eq!(post(&server, "/s/0/x/xhr", "").text(), "o\n");
    assert_eq!(post(&server, "/s/0/x/xhr_send", "[\"back\"]").status(), 204);
    assert_eq!(post(&server, "/s/0/x/xhr", "").text(), "a[\"back\"]\n");
    let mut client = server.connect();
    client.send(upgrade("/elsewhere", &[]));
    assert_eq!(client.response().status(), 404);
}

/// An origin that waits until its client has read is asked when the receiver has, though nothing else waits.
#[test]
fn an_origin_is_asked_when_the_receiver_has_read() {
    let origin = over_http(|_| opened(&[subscribe("all")]), |_, _| events(&[]));
    let server = started(&origin, |options| {
        options.set("sockjs.stream_bytes", "100000000").set("sockjs.heartbeat", "1h");
        // Nothing is looked at by the clock.
        options.set("client.queue_bytes", "100000000").set("sockjs.disconnect_timeout", "1h");
    });
    let mut receiver = server.connect();
    receiver.narrow().request("POST", "/chat/000/s/xhr_streaming", &[], b"");
    assert_eq!(receiver.head().status(), 200);
    receiver
        .expect(&format!(
            "{}
",
            "h".repeat(2048)
        ))
        .expect(
            "o
",
        );
    let (large, count) = ("x".repeat(500_000), 20);
    for _ in 0..count {
        assert_eq!(server.receipts(&published(&large)).len(), 1);
    }
    says(&server, "s", r#"["hi"]"#);
    assert!(!heard(&origin).contains(&message("hi")), "its client is behind");
    let mut read = 0;
    while read < count * large.len() {
        read += receiver.chunk().expect("there is more").len();
    }
    server.wait_until(DEADLINE, "it is asked", || heard(&origin).contains(&message("hi")));
}
