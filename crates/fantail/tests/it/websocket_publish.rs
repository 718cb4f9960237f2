//! Publishing to WebSockets: every kind of item, receipts, order, clients that are slow, compression that is
//! shared; and what time does to a WebSocket: idleness, pings, the end of the server.

use std::time::Duration;

use fantail_proto::websocket::{events::Event, frame::Opcode};
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, Origin, Said, TestServer, WebSocket, hold,
    websocket::{close, events, events_of, expect_heard, message, opened, over_http, subscribe, text},
};

/// An origin that subscribes everybody to `c`, and has streams on it, too.
fn origin() -> Origin {
    Origin::answering(|request| match request.method() {
        "GET" => hold("stream", "c", &[], ""),
        _ => match &events_of(request)[..] {
            [Event::Open] => opened(&[subscribe("c")]),
            said => {
                let close = said.iter().find(|event| matches!(event, Event::Close(_)));
                events(&close.cloned().into_iter().collect::<Vec<_>>())
            }
        },
    })
}

fn start(origin: &Origin, set: &[(&str, &str)]) -> TestServer {
    TestServer::start(&[&format!("* {origin},over_http")], |o| {
        set.iter().for_each(|(key, value)| {
            o.set(key, value);
        });
    })
}

#[expect(clippy::needless_pass_by_value, reason = "an item is made of it")]
fn item(message: Value) -> Value {
    json!({ "channel": "c", "formats": { "ws-message": message } })
}

fn content(content: &str) -> Value {
    item(json!({ "content": content }))
}

fn count(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

#[test]
fn every_kind_of_item() {
    let origin = origin();
    let server = start(&origin, &[]);
    let mut clients = [WebSocket::open(&server, "/"), WebSocket::open(&server, "/")];
    let table = [
        (json!({ "content": "héllo" }), text("héllo")),
        (json!({ "content": "" }), text("")),
        (json!({ "content-bin": "AP8=" }), Said::Binary(vec![0, 255])),
        (json!({ "content-bin": "aGk=", "type": "text" }), text("hi")),
        (json!({ "content": "hi", "type": "binary" }), Said::Binary(b"hi".to_vec())),
        (json!({ "type": "ping" }), Said::Ping(Vec::new())),
        (json!({ "type": "ping", "content": "p" }), Said::Ping(b"p".to_vec())),
        (json!({ "type": "pong", "content": "q" }), Said::Pong(b"q".to_vec())),
    ];
    for (message, said) in table {
        let receipt = server.receipts(&json!([item(message)])).remove(0);
        assert_eq!(count(&receipt["delivered"]), 2, "{receipt}");
        for client in &mut clients {
            client.expect(said.clone());
        }
    }
    for wrong in [json!({}), json!({ "content": "x", "type": "smoke" })] {
        assert_eq!(server.try_publish(&json!([item(wrong.clone())])).0, 400, "{wrong}");
    }
}

/// Check 68. Nothing that is published later follows a close.
#[test]
fn closes_are_published() {
    let table = [
        (json!({ "action": "close", "code": 4000, "reason": "go" }), (4000, "go")),
        (json!({ "action": "close", "code": 4000 }), (4000, "")),
        (json!({ "action": "close" }), (1000, "")),
        (json!({ "action": "close", "code": 0 }), (1000, "")),
        (json!({ "action": "close", "reason": "why" }), (1000, "why")),
    ];
    for (message, (code, reason)) in table {
        let origin = origin();
        let server = start(&origin, &[]);
        let mut client = WebSocket::open(&server, "/");
        let items = json!([content("before"), item(message), content("after")]);
        let receipts = server.receipts(&items);
        let delivered: Vec<_> = receipts.iter().map(|receipt| count(&receipt["delivered"])).collect();
        assert_eq!(delivered, [1, 1, 0], "{receipts:?}");
        client.expect_text("before").expect(close(code, reason));
        expect_heard(&server, &origin, &[Event::Close(None)]);
        client.text("late").close(1000, "").expect(Said::Gone);
        server.wait_pins("websocket", 0);
        assert_eq!(server.metric("fantail_pins_ended_total", &["cause=\"close\""]), 1.0);
        assert_eq!(server.metric("fantail_pins_ended_total", &[]), 1.0);
        assert_eq!(origin.requests().len(), 2);
    }
}

/// A burst comes in its order to both, whatever else it brings.
#[test]
fn a_burst_keeps_its_order_for_all_transports() {
    let origin = origin();
    let server = start(&origin, &[]);
    let mut client = WebSocket::open(&server, "/");
    let mut stream = server.stream("/");
    server.wait_pins("stream", 1);
    let mut wanted = String::new();
    for round in 0..10 {
        let items: Vec<_> = (0..100)
            .map(|n| {
                let said = format!("{round}-{n};");
                wanted.push_str(&said);
                json!({ "channel": "c", "formats": {
                    "ws-message": { "content": said }, "http-stream": { "content": said },
                } })
            })
            .collect();
        server.publish(&json!(items));
    }
    stream.expect(&wanted);
    for said in wanted.split_inclusive(';') {
        client.expect_text(said);
    }
}

/// Several channels of one connection: each item once, in the order of the hub.
#[test]
fn a_connection_with_many_channels_keeps_their_order() {
    let origin = over_http(|_| opened(&[subscribe("a"), subscribe("b"), subscribe("c")]), |_, _| events(&[]));
    let server = start(&origin, &[]);
    let mut client = WebSocket::open(&server, "/");
    let on = |channel: &str, n: usize| json!({ "channel": channel, "formats": { "ws-message": { "content": format!("{channel}{n}") } } });
    let order = ["a", "b", "a", "c", "c", "b"];
    let items: Vec<_> = order.iter().enumerate().map(|(n, channel)| on(channel, n)).collect();
    server.publish(&json!(items));
    for (n, channel) in order.iter().enumerate() {
        client.expect_text(&format!("{channel}{n}"));
    }
}

/// Who reads too slowly gets what was queued, and a close that says so; nobody else notices.
#[test]
fn a_client_over_its_limit_is_closed_and_counted() {
    let origin = origin();
    let server = start(&origin, &[("client.queue_bytes", "1000000")]);
    let mut slow = WebSocket::open(&server, "/");
    slow.narrow();
    let mut neighbours: Vec<_> = (0..3).map(|_| WebSocket::open(&server, "/")).collect();
    let said = |n: usize| format!("{n:08}{}", "x".repeat(99_992));
    let (mut published, mut overflowed, mut queued) = (0, false, 0);
    while !overflowed {
        assert!(published < 300, "never closed");
        let receipt = server.receipts(&json!([content(&said(published))])).remove(0);
        let all = ["delivered", "queued"].map(|name| count(&receipt[name]));
        let dropped = count(&receipt["dropped"]["overflow"]);
        assert_eq!(all[0] + all[1] + dropped, 4, "{receipt}");
        queued += all[1];
        overflowed = dropped == 1;
        for neighbour in &mut neighbours {
            neighbour.expect_text(&said(published));
        }
        published += 1;
    }
    assert!(queued > 0);
    expect_heard(&server, &origin, &[Event::Disconnect]);
    for n in 0..published - 1 {
        slow.expect_text(&said(n));
    }
    slow.expect(close(1013, "")).expect(Said::Gone);
    server.wait_pins("websocket", 3);
    assert_eq!(server.metric("fantail_pins_ended_total", &["cause=\"overflow\""]), 1.0);
    assert_eq!(server.metric("fantail_pins_ended_total", &[]), 1.0);
    assert_eq!(server.metric("fantail_deliveries_dropped_total", &["cause=\"overflow\""]), 1.0);
    assert_eq!(count(&server.receipts(&json!([content("still")]))[0]["delivered"]), 3);
}

#[test]
fn a_client_that_catches_up_loses_nothing() {
    let origin = origin();
    let server = start(&origin, &[("client.queue_bytes", "50000000")]);
    let mut slow = WebSocket::open(&server, "/");
    slow.narrow();
    let said = |n: usize| format!("{n:08}{}", "y".repeat(99_992));
    for n in 0..100 {
        server.publish(&json!([content(&said(n))]));
    }
    assert!(server.metric("fantail_deliveries_queued_total", &[]) > 0.0);
    for n in 0..100 {
        slow.expect_text(&said(n));
    }
    server.publish(&json!([content("live")]));
    slow.expect_text("live");
}

/// Full or not, who takes nothing at all is dropped, and its origin hears of it.
#[test]
fn a_client_that_takes_nothing_is_dropped() {
    let origin = origin();
    for (queue, cause) in [("50000000", "stalled"), ("100000", "overflow")] {
        let server = start(&origin, &[("client.queue_bytes", queue), ("client.send_timeout", "1s")]);
        let mut slow = WebSocket::open(&server, "/");
        slow.narrow();
        for _ in 0..100 {
            server.publish(&json!([content(&"z".repeat(100_000))]));
        }
        server.wait_pins("websocket", 0);
        assert_eq!(server.metric("fantail_pins_ended_total", &[&format!("cause=\"{cause}\"")]), 1.0);
        assert_eq!(server.metric("fantail_pins_ended_total", &[]), 1.0);
        server.wait_metric("fantail_connections", &[], 0.0);
        drop(slow);
    }
}

/// Each gets what it can read: compressed, if it agreed and can look back far enough.
#[test]
fn compression_is_for_those_who_agreed() {
    let origin = over_http(|_| opened(&[subscribe("c")]), |_, _| events(&[message(&long("m:origin "))]));
    let server = start(&origin, &[("websocket.deflate", "true")]);
    let agree = |offer: &str| {
        let client = WebSocket::open_with(server.client, "/", &[("Sec-WebSocket-Extensions", offer)]);
        let agreed = client.head.field("sec-websocket-extensions").map(str::to_string);
        (client, agreed)
    };
    let (mut full, agreed) = agree("permessage-deflate; client_max_window_bits");
    assert!(agreed.is_some_and(|agreed| agreed.contains("server_no_context_takeover")));
    let (mut narrow, agreed) = agree("permessage-deflate; server_max_window_bits=9");
    assert!(agreed.is_some_and(|agreed| agreed.contains("server_max_window_bits=9")));
    let (mut plain, agreed) = agree("x-webkit-deflate-frame");
    assert_eq!(agreed, None);
    let published = long("published ");
    server.publish(&json!([content(&published), content("short")]));
    for (client, compressed) in [(&mut full, true), (&mut narrow, false), (&mut plain, false)] {
        client.expect_text(&published).expect_text("short");
        assert_eq!(client.read_bytes < published.len() / 4, compressed, "{} bytes", client.read_bytes);
        let before = client.read_bytes;
        client.text("?").expect_text(&long("m:origin ")[2..]);
        assert_eq!(client.read_bytes - before < published.len() / 4, compressed);
    }
    // A message that is shorter than the window can be compressed for anybody who agreed.
    let frame = {
        let mut deflater = fantail_proto::websocket::deflate::Deflater::new();
        let payload = deflater.deflate(long("from the client ").as_bytes()).expect("shorter").to_vec();
        let mut frame = full.frame(Opcode::Text, &payload);
        frame[0] |= 0x40;
        frame
    };
    full.send_raw(&frame).expect_text(&long("m:origin ")[2..]);
    server.wait_until(DEADLINE, "the origin gets it inflated", || {
        origin
            .requests()
            .last()
            .is_some_and(|last| last.body.ends_with(format!("{}\r\n", long("from the client ")).as_bytes()))
    });
}

/// What is shorter than this goes as it is, be it published or the origin's own.
#[test]
fn compression_begins_with_a_length() {
    let origin = over_http(|_| opened(&[subscribe("c")]), |_, _| events(&[message(&long("m:origin "))]));
    for (from, compressed) in [("100000", false), ("1000", true)] {
        let server = start(&origin, &[("websocket.deflate", "true"), ("websocket.deflate_from", from)]);
        let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
        let mut client = WebSocket::open_with(server.client, "/", &offer);
        let published = long("published ");
        server.publish(&json!([content(&published)]));
        client.expect_text(&published);
        assert_eq!(client.read_bytes < published.len() / 4, compressed, "{} bytes", client.read_bytes);
        let before = client.read_bytes;
        client.text("?").expect_text(&long("m:origin ")[2..]);
        assert_eq!(client.read_bytes - before < published.len() / 4, compressed);
    }
}

fn long(begin: &str) -> String {
    format!("{begin}{}", "again and again ".repeat(200))
}

#[test]
fn closes_with_1001_when_the_server_stops() {
    let origin = origin();
    let native = crate::harness::websocket::native("", |mut client| {
        client.expect(Said::Close(None)).send(Opcode::Close, "").expect(Said::Gone);
    });
    let routes = [format!("*,path_beg=/native {native}"), format!("* {origin},over_http")];
    let server = TestServer::start(&[&routes[0], &routes[1]], |_| {});
    let mut held = [WebSocket::open(&server, "/"), WebSocket::open(&server, "/native")];
    server.wait_pins("websocket", 2);
    let stopped = std::thread::spawn(move || server.terminate());
    for client in &mut held {
        client.expect(close(1001, "")).close(1001, "").expect(Said::Gone);
    }
    assert!(stopped.join().expect("it stops").success());
    let last = origin.wait_requests(2).remove(1);
    assert_eq!(last.head.first_line, "POST / HTTP/1.1");
    assert_eq!(origin.requests()[1].body, b"CLOSE\r\n");
}

#[test]
fn silence_is_closed_with_1001() {
    let origin = origin();
    let server = start(&origin, &[("websocket.idle_timeout", "1s")]);
    let mut silent = WebSocket::open(&server, "/");
    silent.expect(close(1001, "")).close(1001, "").expect(Said::Gone);
    expect_heard(&server, &origin, &[Event::Close(None)]);
    assert_eq!(server.metric("fantail_pins_ended_total", &["cause=\"timeout\""]), 1.0);
    assert_eq!(server.metric("fantail_pins_ended_total", &[]), 1.0);
    // Either side's words are enough.
    let (mut hearing, mut speaking) = (WebSocket::open(&server, "/"), WebSocket::open(&server, "/"));
    for _ in 0..4 {
        server.publish(&json!([content("tick")]));
        hearing.expect_text("tick").expect_silence(Duration::from_millis(450));
        speaking.expect_text("tick").text("tock");
    }
    server.wait_pins("websocket", 2);
}

#[test]
fn silent_clients_are_pinged() {
    let origin = origin();
    let server = start(&origin, &[("websocket.ping_every", "500ms")]);
    let mut alive = WebSocket::open(&server, "/");
    for _ in 0..3 {
        let Said::Ping(content) = alive.next() else { panic!("no ping") };
        alive.send(Opcode::Pong, content);
    }
    assert_eq!(origin.requests().len(), 1, "the pongs are ours");
    let mut dead = WebSocket::open(&server, "/");
    drop(alive);
    assert!(matches!(dead.next(), Said::Ping(_)));
    dead.expect(Said::Gone);
    server.wait_pins("websocket", 0);
    assert_eq!(server.metric("fantail_pins_ended_total", &["cause=\"stalled\""]), 1.0);
}

/// A client that is not read because its origin is slow is not silent.
#[test]
fn a_client_that_is_not_read_is_not_silent() {
    let origin = Origin::scripted(|exchange| {
        if exchange.read_body().is_err() {
            return crate::harness::Then::Close;
        }
        if events_of(&exchange.request) != [Event::Open] {
            exchange.pause(Duration::from_millis(2500));
            exchange.send(events(&[message("m:at last")]));
        } else {
            exchange.send(opened(&[]));
        }
        crate::harness::Then::Next
    });
    let server = start(&origin, &[("websocket.ping_every", "500ms"), ("websocket.buffer_bytes", "1000")]);
    let mut client = WebSocket::open(&server, "/");
    client.text(&"x".repeat(2000)).expect_text("at last");
    server.wait_pins("websocket", 1);
}
