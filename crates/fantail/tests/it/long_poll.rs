//! `Grip-Hold: response`: a request waits for an item or its time (checks 28–30, 34–39).

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Client, Framing, Origin, TestServer, answer, hold, poll_item, stream_item};

/// Asks for the only poll there is, and waits until it is held.
fn poll(server: &TestServer, target: &str) -> Client {
    server.wait_pins("poll", 0);
    let mut client = server.connect();
    client.get(target);
    server.wait_pins("poll", 1);
    client
}

/// Waits for the hold of a second request on the same connection. When its origin sees it, the first hold is
/// no longer counted.
fn wait_again(server: &TestServer, origin: &Origin) {
    origin.wait_requests(2);
    server.wait_pins("poll", 1);
}

/// Check 28.
#[test]
fn when_the_time_is_up_the_stored_answer_is_sent() {
    let stored = "HTTP/1.1 203 Kept\r\nX-Kept: yes\r\nGrip-Hold: response\r\nGrip-Channel: c\r\n\
                  Grip-Timeout: 1\r\nContent-Length: 8\r\n\r\nnothing\n";
    let origin = Origin::fixed(stored.as_bytes().to_vec());
    let server = TestServer::before(&origin);
    let start = Instant::now();
    let mut client = server.connect();
    let got = client.get("/").response();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(8), "{took:?}, not 5 s");
    assert_eq!((got.status(), got.head.reason(), got.text().as_str()), (203, "Kept", "nothing\n"));
    assert_eq!((got.head.field("x-kept"), got.framing), (Some("yes"), Framing::Length(8)));
    assert!(got.head.starting("grip-").is_empty());
    client.get("/");
    wait_again(&server, &origin);
}

/// Check 29.
#[test]
fn an_item_answers_the_poll() {
    let kept = [("X-Kept", "kept"), ("X-Both", "stored"), ("Set-Cookie", "a"), ("Set-Cookie", "b")];
    let origin = Origin::fixed(hold("response", "c", &kept, "stored body"));
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": {
        "code": 201,
        "headers": { "X-A": "1", "x-both": "item", "Grip-Foo": "no" },
        "body": "item body",
    } } }]));
    let got = client.response();
    assert_eq!((got.status(), got.head.reason()), (201, "Created"));
    assert_eq!((got.text().as_str(), got.framing), ("item body", Framing::Length(9)));
    assert_eq!(got.head.field("x-a"), Some("1"));
    assert_eq!(got.head.field("x-both"), Some("item"));
    assert_eq!(got.head.field("x-kept"), Some("kept"));
    assert_eq!(got.head.all("set-cookie"), ["a", "b"]);
    assert!(got.head.starting("grip-").is_empty());

    client.get("/again");
    wait_again(&server, &origin);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": {
        "code": 299, "reason": "My Own", "headers": [["X-A", "1"], ["X-A", "2"]], "body-bin": "AAH/" } } }]));
    let got = client.response();
    assert_eq!((got.status(), got.head.reason(), got.body.as_slice()), (299, "My Own", &[0, 1, 255][..]));
    assert_eq!(got.head.all("x-a"), ["1", "2"]);
}

/// What a client pipelines behind its poll is answered after the poll, in order, and by the origin.
#[test]
fn requests_behind_a_poll_wait_for_it() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "c", &[], ""),
        other => answer("200 OK", &[], other),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/before").get("/poll").get("/after").request("POST", "/last", &[], b"body");
    assert_eq!(client.response().text(), "/before");
    server.wait_pins("poll", 1);
    assert_eq!(origin.requests().len(), 2, "{:?}", origin.requests());
    server.publish(&json!([poll_item("c", "answered")]));
    assert_eq!(client.response().text(), "answered");
    assert_eq!(client.response().text(), "/after");
    assert_eq!(client.response().text(), "/last");
}

#[test]
fn one_item_answers_each_poll_once() {
    let origin = Origin::answering(|r| hold("response", r.target().trim_start_matches('/'), &[], ""));
    let server = TestServer::before(&origin);
    let mut on_a: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut on_b = server.connect();
    on_b.get("/b");
    for client in &mut on_a {
        client.get("/a");
    }
    server.wait_pins("poll", 21);
    server.publish(&json!([
        poll_item("a", "first"),
        poll_item("a", "second"),
        stream_item("b", "not for polls"),
        poll_item("b", "for b"),
    ]));
    for client in &mut on_a {
        assert_eq!(client.response().text(), "first");
    }
    assert_eq!(on_b.response().text(), "for b");
    server.wait_pins("poll", 0);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"answered\""], 21.0);
}

#[test]
fn http_1_0_polls_are_answered_and_closed() {
    let origin = Origin::fixed(hold("response", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "answer")]));
    assert_eq!(client.response().text(), "answer");
    client.expect_closed();
}

#[test]
fn a_held_head_request_gets_no_body() {
    let origin = Origin::fixed(b"HTTP/1.1 200 OK\r\nGrip-Hold: response\r\nGrip-Channel: c\r\n\r\n".to_vec());
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.request("HEAD", "/", &[], b"");
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "a body that HEAD must not have")]));
    assert_eq!(client.response().status(), 200);
    client.request("HEAD", "/", &[], b"");
    wait_again(&server, &origin);
    server.publish(&json!([poll_item("c", "nor this one")]));
    assert_eq!(client.response().status(), 200);
}

/// Check 30. A patch that fails answers with the stored body.
#[test]
fn a_patch_changes_the_stored_body() {
    let origin = Origin::fixed(hold("response", "c", &[], "{\"a\":[1]}\n"));
    let server = TestServer::before(&origin);
    let table = [
        (json!([{ "op": "add", "path": "/a/1", "value": 2 }]), "{\"a\":[1,2]}\n"),
        (json!([{ "op": "add", "path": "/a/0", "value": 0 }]), "{\"a\":[0,1]}\n"),
        (json!([{ "op": "add", "path": "/a/-", "value": 3 }]), "{\"a\":[1,3]}\n"),
        (json!([{ "op": "test", "path": "/a/0", "value": 7 }]), "{\"a\":[1]}\n"),
    ];
    for (patch, wanted) in table {
        let mut client = poll(&server, "/");
        server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "body-patch": patch } } }]));
        let got = client.response();
        assert_eq!((got.text().as_str(), got.framing), (wanted, Framing::Length(wanted.len())), "{patch}");
    }
}

/// Check 34.
#[test]
fn hint_and_recover_ask_the_origin_again() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let origin = Origin::answering(move |_| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 | 1 => hold("response", "c", &[], ""),
        _ => answer("200 OK", &[], "what is new"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.request("POST", "/poll?x=1", &[("X-Mine", "a"), ("Cookie", "b")], b"the body");
    server.wait_pins("poll", 1);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "action": "hint" } } }]));
    origin.wait_requests(2);
    server.wait_pins("poll", 1);
    let start = Instant::now();
    assert_eq!(server.control("POST", "/recover/", &[], b"").text(), "Updated\n");
    assert_eq!(client.response().text(), "what is new");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let seen = origin.requests();
    assert_eq!(seen.len(), 3);
    for again in &seen[1..] {
        assert_eq!(again.head.first_line, seen[0].head.first_line);
        assert_eq!(again.head.field("x-mine"), Some("a"));
        assert_eq!(again.head.field("cookie"), Some("b"));
        assert_eq!(again.head.field("host"), seen[0].head.field("host"));
        assert_eq!(again.body, b"the body");
    }
}

/// Check 35.
#[test]
fn grip_status_sets_the_status() {
    let fields = [("Grip-Status", "404 Gone Fishing"), ("X-Kept", "1")];
    let origin = Origin::fixed(answer("200 OK", &fields, "body"));
    let got = TestServer::before(&origin).get("/");
    assert_eq!((got.status(), got.head.reason()), (404, "Gone Fishing"));
    assert_eq!((got.text().as_str(), got.framing), ("body", Framing::Length(4)));
    assert_eq!(got.head.field("x-kept"), Some("1"));
    assert!(got.head.starting("grip-").is_empty());
}

/// Check 36.
#[test]
fn grip_expose_headers_keeps_only_those_named() {
    let fields = [("X-Ok", "1"), ("X-No", "2"), ("Grip-Expose-Headers", "X-Ok, X-Absent")];
    let origin = Origin::fixed(answer("200 OK", &fields, "body"));
    let got = TestServer::before(&origin).get("/");
    assert_eq!((got.head.field("x-ok"), got.head.field("x-no")), (Some("1"), None));
    assert!(!got.head.has("grip-expose-headers"));
}

/// Check 37: whatever is wrong with an instruct, the client gets 502, and the reason only with `debug`.
#[test]
fn wrong_instructs_are_answered_with_502() {
    let instruct =
        |status: &str, body: &str| answer(status, &[("Content-Type", "application/grip-instruct")], body);
    let table = [
        instruct("201 Created", "{}"),
        instruct("200 OK", "not JSON"),
        instruct("200 OK", "[]"),
        instruct("200 OK", r#"{"hold":{"mode":"stream"}}"#),
        instruct("200 OK", r#"{"hold":{"mode":"x","channels":[]}}"#),
        instruct("200 OK", r#"{"hold":{"mode":"response","channels":[],"timeout":-1}}"#),
        instruct("200 OK", r#"{"hold":{"mode":"response","channels":[{"name":null}]}}"#),
        instruct("200 OK", r#"{"response":{"code":"x"}}"#),
        instruct("200 OK", r#"{"response":{"headers":{"X-A":"a\r\nX-B: b"}}}"#),
        hold("foo", "c", &[], ""),
        hold("", "c", &[], ""),
        hold("response", "c", &[("Grip-Timeout", "soon")], ""),
        hold("response", "c", &[("Grip-Timeout", "-1")], ""),
        hold("stream", "c", &[("Grip-Keep-Alive", "x; format=foo")], ""),
        hold("stream", "c", &[("Grip-Keep-Alive", "x\\; format=cstring")], ""),
        hold("stream", "c", &[("Grip-Keep-Alive", "x; mode=foo")], ""),
        hold("stream", "c", &[("Grip-Keep-Alive", "x; timeout=foo")], ""),
        hold("stream", "c", &[("Grip-Link", "/bare; rel=next")], ""),
        hold("stream", "c; filter=a; filter=b; filter=c; filter=d; filter=e; filter=f", &[], ""),
        answer("200 OK", &[("Grip-Status", "1000")], ""),
        answer("200 OK", &[("Grip-Status", "abc")], ""),
    ];
    let count = table.len();
    let origin = Origin::answering(move |r| {
        table[r.target().trim_start_matches('/').parse::<usize>().expect("a number")].clone()
    });
    let server =
        TestServer::start(&[&format!("* {origin}"), &format!("debug.example,debug {origin}")], |_| {});
    for case in 0..count {
        let got = server.get(&format!("/{case}"));
        let text = got.text();
        assert_eq!((got.status(), text.as_str()), (502, "Error while proxying to origin.\n"), "case {case}");
        let told = server.request("GET", &format!("/{case}"), &[("Host", "debug.example")], b"");
        assert_eq!(told.status(), 502, "case {case}");
        assert!(told.text().starts_with("Failed to parse accept instructions: "), "{case}: {}", told.text());
    }
    server.wait_metric("fantail_instruct_errors_total", &[], 2.0 * count as f64);
}

/// Check 38.
#[test]
fn what_is_held_has_a_size() {
    let origin = Origin::answering(|r| match r.target() {
        "/answer" => hold("response", "c", &[], vec![b'x'; 100_001]),
        "/fits" => hold("response", "c", &[("Grip-Timeout", "5")], vec![b'x'; 100_000]),
        _ => answer("200 OK", &[("Grip-Foo", "")], "fine"),
    });
    let server = TestServer::before(&origin);
    assert_eq!(server.get("/answer").status(), 502);
    let got = server.request("POST", "/request", &[], &vec![b'y'; 100_001]);
    assert_eq!((got.status(), got.text().as_str()), (400, "Request too large to accept GRIP instruct.\n"));
    assert_eq!(server.request("POST", "/request", &[], &vec![b'y'; 100_000]).text(), "fine");
    assert_eq!(server.get("/fits").body.len(), 100_000);
}

/// Check 39.
#[test]
fn only_the_first_20_channels_count() {
    let names: Vec<_> = (0..25).map(|n| format!("c{n}")).collect();
    let origin = Origin::fixed(hold("response", &names.join(", "), &[], ""));
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    let receipts = server.receipts(&json!([poll_item("c20", "beyond"), poll_item("c19", "within")]));
    assert_eq!((&receipts[0]["delivered"], &receipts[1]["delivered"]), (&json!(0), &json!(1)));
    assert_eq!(client.response().text(), "within");
}

#[test]
fn a_json_instruct_holds_and_answers() {
    let instruct = json!({
        "hold": { "mode": "response", "channels": [{ "name": "odd, name; here" }], "timeout": 5 },
        "response": { "code": "202", "headers": [["X-A", "1"]], "body": "stored" },
    });
    let fields = [("Content-Type", "application/grip-instruct; charset=utf-8"), ("X-Dropped", "1")];
    let origin = Origin::fixed(answer("200 OK", &fields, instruct.to_string()));
    let server = TestServer::before(&origin);
    let got = server.get("/");
    assert_eq!((got.status(), got.text().as_str(), got.head.field("x-a")), (202, "stored", Some("1")));
    assert!(!got.head.has("x-dropped"));
    let mut client = poll(&server, "/");
    server.publish(&json!([poll_item("odd, name; here", "found")]));
    assert_eq!(client.response().text(), "found");
}

#[test]
fn a_hold_without_channels_waits_for_its_time() {
    let origin = Origin::fixed(answer("200 OK", &[("Grip-Hold", "response"), ("Grip-Timeout", "5")], "time"));
    assert_eq!(TestServer::before(&origin).get("/").text(), "time");
}

/// The item's body is not encoded as the stored one was.
#[test]
fn the_stored_content_encoding_is_not_the_items() {
    let origin = Origin::fixed(hold("response", "c", &[("Content-Encoding", "gzip")], "stored"));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/");
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "plain")]));
    let got = client.response();
    assert_eq!((got.text().as_str(), got.head.field("content-encoding")), ("plain", None));
}
