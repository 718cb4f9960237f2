//! `Grip-Hold: stream`: a response that stays open (checks 40–42, 45, 50, 51).

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Client, Framing, Origin, TestServer, answer, hold, stream_item};

fn close_item(channel: &str) -> serde_json::Value {
    json!({ "channel": channel, "formats": { "http-stream": { "action": "close" } } })
}

/// Check 40.
#[test]
fn items_are_appended_until_the_close() {
    let origin = Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[("X-Kept", "1")], "hi"),
        _ => answer("200 OK", &[], "after"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/stream");
    assert_eq!(client.framing(), Framing::Chunked);
    client.expect("hi");
    server.publish_stream("c", "x");
    client.expect("x");
    server.publish(&json!([
        stream_item("c", "one\n"),
        stream_item("other", "not here"),
        { "channel": "c", "formats": { "http-stream": { "content-bin": "AAEC" } } },
        stream_item("c", ""),
        { "channel": "c", "http-stream": { "content": "legacy" } },
    ]));
    client.expect("one\n\u{0}\u{1}\u{2}legacy");
    server.publish(&json!([stream_item("c", "last"), close_item("c"), stream_item("c", "too late")]));
    client.expect("last").expect_end();
    assert_eq!(client.get("/after").response().text(), "after", "the connection goes on");
    server.wait_pins("stream", 0);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"close\""], 1.0);
}

#[test]
fn the_head_of_a_stream_is_the_origins() {
    let fields = [("X-Kept", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b"), ("Grip-Status", "250 Odd")];
    let origin = Origin::fixed(hold("stream", "c", &fields, ""));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    let head = client.get("/").head();
    assert_eq!((head.status(), head.reason(), head.field("x-kept")), (250, "Odd", Some("1")));
    assert_eq!(head.all("set-cookie"), ["a", "b"]);
    assert!(head.starting("grip-").is_empty() && !head.has("content-length"), "{head:?}");
    assert!(head.has("date"), "{head:?}");
}

/// A subscription is live when the client sees the head: an item published then is not missed.
#[test]
fn nothing_published_after_the_head_is_missed() {
    let origin = Origin::answering(|r| hold("stream", r.target().trim_start_matches('/'), &[], ""));
    let server = TestServer::before(&origin);
    for n in 0..50 {
        let channel = format!("c{n}");
        let mut client = server.stream(&format!("/{channel}"));
        server.publish_stream(&channel, "now");
        client.expect("now");
    }
}

#[test]
fn every_subscriber_gets_every_item_in_order() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut clients: Vec<_> = (0..100).map(|_| server.stream("/")).collect();
    let mut wanted = String::new();
    for batch in 0..20 {
        let texts: Vec<_> = (0..10).map(|n| format!("item {batch}.{n}\n")).collect();
        wanted.push_str(&texts.concat());
        let items: Vec<_> = texts.iter().map(|t| stream_item("c", t)).collect();
        server.publish(&json!(items));
    }
    for client in &mut clients {
        client.expect(&wanted);
    }
    server.wait_metric("fantail_deliveries_total", &["kind=\"stream\""], 20_000.0);
}

#[test]
fn http_1_0_streams_end_with_the_connection() {
    let origin = Origin::fixed(hold("stream", "c", &[], "hi"));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").head();
    assert_eq!(client.framing(), Framing::Close);
    client.expect("hi");
    server.publish(&json!([stream_item("c", "raw"), close_item("c")]));
    client.expect("raw").expect_end();
}

#[test]
fn a_connection_that_is_to_close_closes_after_the_stream() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.request("GET", "/", &[("Connection", "close")], b"").head();
    server.publish(&json!([close_item("c")]));
    assert_eq!(client.chunk(), None);
    client.expect_closed();
}

#[test]
fn requests_behind_a_stream_wait_for_its_end() {
    let origin = Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[], ""),
        other => answer("200 OK", &[], other),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/stream").get("/behind").head();
    server.publish(&json!([stream_item("c", "item"), close_item("c")]));
    client.expect("item").expect_end();
    assert_eq!(client.response().text(), "/behind");
}

/// Reads what arrives within a time, and says when each piece came.
fn pieces(client: &mut Client, time: Duration) -> Vec<(Duration, String)> {
    let start = Instant::now();
    let mut pieces = Vec::new();
    while let Some(left) = time.checked_sub(start.elapsed()).filter(|l| !l.is_zero()) {
        if !client.hears_within(left) {
            break;
        }
        let chunk = client.chunk().expect("an open stream");
        pieces.push((start.elapsed(), String::from_utf8(chunk).expect("text")));
    }
    pieces
}

/// Check 41.
#[test]
fn keep_alives_fill_the_silence() {
    let origin = Origin::answering(|r| match r.target() {
        "/idle" => hold("stream", "idle", &[("Grip-Keep-Alive", "\\n; format=cstring; timeout=2")], ""),
        _ => hold("stream", "busy", &[("Grip-Keep-Alive", "ka; timeout=2; mode=interval")], ""),
    });
    let server = TestServer::before(&origin);
    let (mut idle, mut busy, mut fed) =
        (server.stream("/idle"), server.stream("/interval"), server.stream("/idle"));
    let heard = pieces(&mut idle, Duration::from_secs(6));
    assert!((2..=6).contains(&heard.len()), "{heard:?}");
    assert!(heard.iter().all(|(_, text)| text == "\n"), "{heard:?}");
    let kept = pieces(&mut busy, Duration::from_millis(1)).len();
    assert!(kept >= 1, "an interval keep-alive within 6 s");

    drop(pieces(&mut fed, Duration::from_millis(1)));
    server.publish(&json!([stream_item("idle", "x"), stream_item("busy", "x")]));
    let (mut between, mut cadence) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        between.extend(pieces(&mut fed, Duration::from_millis(400)));
        cadence.extend(pieces(&mut busy, Duration::from_millis(1)));
        server.publish(&json!([stream_item("idle", "x"), stream_item("busy", "x")]));
    }
    let text: String = between.iter().map(|(_, t)| t.as_str()).collect();
    assert!(text.contains('x') && !text.contains('\n'), "items suppress idle keep-alives: {text:?}");
    let text: String = cadence.iter().map(|(_, t)| t.as_str()).collect();
    assert!(text.contains("ka"), "items do not suppress interval keep-alives: {text:?}");
}

/// Check 42, and the formats of the content.
#[test]
fn keep_alives_come_from_json_and_in_every_format() {
    let instruct = json!({ "hold": { "mode": "stream", "channels": [{ "name": "c" }],
        "keep-alive": { "content-bin": "AAH/", "timeout": 1 } } });
    let origin = Origin::answering(move |r| match r.target() {
        "/json" => answer("200 OK", &[("Content-Type", "application/grip-instruct")], instruct.to_string()),
        "/base64" => hold("stream", "c", &[("Grip-Keep-Alive", "AAH/; format=base64; timeout=1")], ""),
        _ => hold("stream", "c", &[("Grip-Keep-Alive", "\\x00\\x01\\xff; format=cstring; timeout=1")], ""),
    });
    let server = TestServer::before(&origin);
    for target in ["/json", "/base64", "/cstring"] {
        let mut client = server.stream(target);
        assert_eq!(client.content(6), [0, 1, 255, 0, 1, 255], "{target}");
    }
    server.wait_until(Duration::from_secs(5), "counted", || {
        server.metric("fantail_keep_alives_total", &[]) >= 6.0
    });
}

/// Check 45: a position without a next link cannot be kept.
#[test]
fn prev_id_without_a_next_link_ends_the_stream() {
    let origin = Origin::fixed(hold("stream", "c; prev-id=1", &[], "body"));
    let server =
        TestServer::start(&[&format!("* {origin}"), &format!("debug.example,debug {origin}")], |_| {});
    assert_eq!(server.get("/").text(), "body");
    let told = server.request("GET", "/", &[("Host", "debug.example")], b"");
    assert!(told.text().starts_with("body\n\n") && told.text().contains("no next link"), "{}", told.text());
}

/// Check 50.
#[test]
fn a_stream_may_begin_with_5_mb() {
    let body: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let origin = Origin::fixed(hold("stream", "c", &[], &body));
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    assert!(client.content(body.len()) == body, "the body differs");
    server.wait_pins("stream", 1);
    server.publish_stream("c", "then this");
    client.expect("then this");
}

/// Check 51.
#[test]
fn a_route_has_a_prefix_and_implicit_channels() {
    let origin = Origin::answering(|r| match r.target() {
        "/held" => hold("stream", "c", &[], ""),
        _ => answer("200 OK", &[], "plain"),
    });
    let server = TestServer::start(&[&format!("*,prefix=p- {origin},sub=s,sub=s2")], |_| {});
    assert_eq!(server.get("/plain").text(), "plain");
    let mut client = server.stream("/held");
    let receipts = server.receipts(&json!([
        stream_item("c", "no"),
        stream_item("p-c", "yes"),
        stream_item("s", "s"),
        stream_item("p-s", "no"),
        stream_item("s2", "s2"),
    ]));
    let reached: Vec<_> = receipts.iter().map(|r| r["delivered"].as_u64().expect("a number")).collect();
    assert_eq!(reached, [0, 1, 1, 0, 1]);
    client.expect("yesss2");
}

#[test]
fn channels_and_meta_decide_who_gets_an_item() {
    let origin = Origin::answering(|r| {
        let user = r.target().trim_start_matches('/').to_string();
        let meta = format!("user=\"{user}\"");
        let channels = "c; filter=skip-self; filter=skip-users; filter=require-sub, extra";
        hold("stream", channels, &[("Grip-Set-Meta", &meta)], "")
    });
    let server = TestServer::before(&origin);
    let (mut ann, mut bob) = (server.stream("/ann"), server.stream("/bob"));
    let item = |content: &str, meta: serde_json::Value| json!({ "channel": "c", "formats": { "http-stream": { "content": content } }, "meta": meta });
    let receipts = server.receipts(&json!([
        item("not ann;", json!({ "sender": "ann" })),
        item("not bob;", json!({ "skip_users": "x, bob" })),
        item("nobody;", json!({ "require_sub": "absent" })),
        item("both;", json!({ "require_sub": "extra" })),
    ]));
    let filtered: Vec<_> = receipts.iter().map(|r| r["filtered"].as_u64().expect("a number")).collect();
    assert_eq!(filtered, [1, 1, 2, 0]);
    ann.expect("not bob;both;");
    bob.expect("not ann;both;");
}

#[test]
fn a_held_head_stream_has_no_body() {
    let origin = Origin::answering(|r| match r.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\nGrip-Hold: stream\r\nGrip-Channel: c\r\n\r\n".to_vec(),
        _ => answer("200 OK", &[], "after"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    assert_eq!(client.request("HEAD", "/", &[], b"").response().status(), 200);
    server.publish_stream("c", "not for HEAD");
    assert_eq!(client.get("/").response().text(), "after");
}

/// A beginning that is too large to be collected is told, too, why it does not go on.
#[test]
fn a_stream_that_cannot_go_on_is_told_behind_a_large_beginning() {
    let origin = Origin::fixed(hold("stream", "c; prev-id=1", &[], "x".repeat(300_000)));
    for (flag, told) in [("", ""), (",debug", "\n\nchannel 'c' specifies prev-id, but no next link found\n")]
    {
        let server = TestServer::start(&[&format!("*{flag} {origin}")], |_| {});
        let got = server.get("/").text();
        assert_eq!(got, format!("{}{told}", "x".repeat(300_000)));
    }
}
