//! The metrics page and the log: every number moves when it should, and no text of a client, origin or
//! publisher can forge a line or add a series (security.md row 30).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{
    Origin, Said, TestServer, WebSocket, answer, hold, poll_item, stream_item, websocket::native,
};

fn mixed() -> Origin {
    Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[], ""),
        "/poll" => hold("response", "c", &[], ""),
        _ => answer("200 OK", &[], "fine"),
    })
}

#[test]
fn every_number_moves() {
    let origin = mixed();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.shards", "1");
    });
    let mut stream = server.stream("/stream");
    let mut poll = server.connect();
    poll.get("/poll");
    server.wait_pins("poll", 1);
    server.get("/plain");
    let is = |name: &str, labels: &[&str], wanted: f64| server.wait_metric(name, labels, wanted);
    is("fantail_connections", &[], 2.0);
    is("fantail_connections_accepted_total", &[], 3.0);
    is("fantail_requests_total", &[], 3.0);
    is("fantail_pins", &["kind=\"stream\""], 1.0);
    is("fantail_channels", &[], 1.0);
    is("fantail_subscriptions", &[], 2.0);
    is("fantail_hub_channels", &[], 1.0);
    is("fantail_origin_requests_total", &[], 3.0);
    is("fantail_origin_latency_seconds_count", &[], 3.0);
    // One connection was free again for each that came later.
    is(
        "fantail_origin_connects_total",
        &[],
        origin.requests().iter().map(|r| r.connection).max().unwrap_or(0) as f64 + 1.0,
    );
    is("fantail_control_connections", &[], 1.0);
    server.publish(&json!([stream_item("c", "x"), poll_item("c", "y"), stream_item("d", "z")]));
    stream.expect("x");
    assert_eq!(poll.response().text(), "y");
    is("fantail_items_total", &["result=\"accepted\""], 3.0);
    is("fantail_deliveries_total", &["kind=\"stream\""], 1.0);
    is("fantail_deliveries_total", &["kind=\"poll\""], 1.0);
    is("fantail_pins_ended_total", &["cause=\"answered\""], 1.0);
    is("fantail_pins", &["kind=\"poll\""], 0.0);
    assert!(server.metric("fantail_pushed_bytes_total", &[]) >= 1.0);
    server.connect().send("BAD\r\n\r\n").rest();
    is("fantail_requests_refused_total", &["cause=\"malformed\""], 1.0);
    assert_eq!(server.try_publish(&json!([1])).0, 400);
    is("fantail_publishes_total", &["result=\"invalid\""], 1.0);
}

#[test]
fn numbers_of_websockets_and_filters_move() {
    let origin = native("grip", |mut socket: WebSocket| {
        socket.text(r#"c:{"type":"subscribe","channel":"c","filters":["skip-self"]}"#);
        socket.text(r#"c:{"type":"set-meta","name":"user","value":"ann"}"#);
        socket.text("m:ready");
        drop(socket.next());
    });
    let server = TestServer::before(&origin);
    let mut client = WebSocket::open(&server, "/");
    client.expect_text("ready");
    let item = |sender: &str| json!({ "channel": "c", "meta": { "sender": sender }, "ws-message": { "content": sender } });
    server.publish(&json!([item("ann"), item("bob")]));
    client.expect_text("bob");
    server.wait_metric("fantail_deliveries_filtered_total", &[], 1.0);
    server.wait_metric("fantail_deliveries_total", &["kind=\"websocket\""], 1.0);
    // Its origin leaves.
    client.text("bye").expect(Said::Gone);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"origin\""], 1.0);
}

#[test]
fn the_page_has_the_two_formats() {
    let server = TestServer::start(&["* test"], |_| {});
    let page = server.control("GET", "/metrics", &[], b"");
    assert!(page.head.field("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let open =
        server.control("GET", "/metrics", &[("Accept", "application/openmetrics-text; version=1.0.0")], b"");
    assert!(open.head.field("content-type").is_some_and(|t| t.starts_with("application/openmetrics-text")));
    assert!(open.text().ends_with("# EOF\n"));
}

const HOSTILE: [&str; 5] =
    ["\u{1b}[31mred", "a\" injected=\"1", "{\"message\":\"forged\"}", "x\\nmessage=forged", "é\u{202e}drow"];

#[test]
fn hostile_text_adds_no_series_and_forges_no_line() {
    let origin = mixed();
    let server = TestServer::before(&origin);
    let series = || server.metrics().into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
    server.get("/plain");
    server.publish_stream("first", "x");
    let before = series();
    for (n, text) in HOSTILE.iter().enumerate() {
        let fields = [("User-Agent", *text), ("Referer", *text), ("X-Forwarded-For", *text)];
        drop(server.connect().request("GET", &format!("/{n}%0a%1b"), &fields, b"").try_response());
        drop(server.connect().request("GET", "/", &[("Host", *text)], b"").try_response());
        server.publish(&json!([stream_item(text, text), stream_item(&format!("{text}\r\n\n"), "x")]));
    }
    assert_eq!(before, series());
    server.get("/the-end");
    server.log_text("/the-end");
    for line in server.log() {
        let parsed: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        assert!(parsed.is_object(), "{line}");
        assert!(!line.bytes().any(|b| b < 0x20 || b == 0x7f), "{line:?}");
        assert_ne!(parsed["message"], "forged", "{line}");
    }
}

#[test]
fn a_text_log_has_no_control_characters() {
    let origin = mixed();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.argument("--log-level").argument("trace");
    });
    for text in HOSTILE {
        drop(
            server
                .connect()
                .request("GET", "/", &[("User-Agent", text), ("Cookie", text)], b"")
                .try_response(),
        );
    }
    server.get("/the-end");
    server.log_text("/the-end");
    assert!(server.log().iter().all(|l| !l.bytes().any(|b| b < 0x20 || b == 0x7f)));
}

/// Secrets of the configuration and of requests are not written down.
#[test]
fn no_secret_is_logged() {
    let origin = mixed();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.config("[[realm]]\nid = \"default\"\nkeys = [\"the-publishing-secret-of-32-bytes\"]\n");
        o.set("proxy.sig_key", "the-signing-secret").set("proxy.upstream_key", "the-upstream-secret");
        o.argument("--log-level").argument("trace");
    });
    let cookie = [("Authorization", "Bearer clients-secret"), ("Cookie", "sid=clients-secret")];
    server.request("GET", "/", &cookie, b"");
    server.control("POST", "/publish/", &[("Authorization", "Bearer wrong-secret")], br#"{"items":[]}"#);
    server.get("/the-end");
    server.log_text("/the-end");
    let log = server.log().join("\n");
    let metrics = server.control("GET", "/metrics", &[], b"").text();
    assert!(!log.contains("secret") && !metrics.contains("secret"), "{log}");
}
