//! Pages of other origins: `aco` and `proxy.auto_cross_origin` (specification 8.3, check 73).

use serde_json::json;

use crate::harness::{Client, Head, Origin, TestServer, answer, hold, poll_item, stream_item};

const PAGE: &str = "https://page.example";

/// Asks as a page does.
fn ask(server: &TestServer, method: &str, target: &str) -> Client {
    let mut client = server.connect();
    client.request(method, target, &[("Origin", PAGE)], b"");
    client
}

fn is_open_to_page(head: &Head) -> bool {
    head.field("access-control-allow-origin") == Some(PAGE)
        && head.field("access-control-allow-credentials") == Some("true")
        && head.field("access-control-max-age") == Some("3600")
        && head.field("vary") == Some("Origin")
}

#[test]
fn every_answer_of_a_route_with_aco_is_open_to_pages() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "poll", &[("X-Stored", "1")], ""),
        "/stream" => hold("stream", "stream", &[], "first,"),
        "/wrong" => answer("200 OK", &[("Grip-Hold", "nonsense")], ""),
        _ => answer("200 OK", &[("X-Own", "1"), ("Content-Type", "text/plain")], "hello"),
    });
    let server = TestServer::start(&[&format!("*,aco {origin}")], |_| {});

    let plain = ask(&server, "GET", "/").response();
    assert!(is_open_to_page(&plain.head), "{:?}", plain.head);
    let exposed = plain.head.field("access-control-expose-headers").unwrap();
    let hidden = ["Content-Type", "Access-Control"].iter().any(|name| exposed.contains(name));
    assert!(exposed.contains("X-Own") && !hidden, "{exposed}");

    let failed = ask(&server, "GET", "/wrong").response();
    assert!(failed.status() == 502 && is_open_to_page(&failed.head), "{:?}", failed.head);

    let mut poll = ask(&server, "GET", "/poll");
    let mut stream = ask(&server, "GET", "/stream");
    assert!(is_open_to_page(&stream.head()));
    server.wait_pins("poll", 1);
    server.wait_pins("stream", 1);
    server.publish(&json!([poll_item("poll", "answered"), stream_item("stream", "second")]));
    let polled = poll.response();
    assert!(polled.text() == "answered" && is_open_to_page(&polled.head), "{:?}", polled.head);
    assert_eq!(polled.head.field("access-control-expose-headers"), Some("X-Stored"));
}

#[test]
fn preflights_are_the_origins_to_answer() {
    let origin = Origin::fixed(answer("204 No Content", &[], ""));
    let server = TestServer::start(&[&format!("*,aco {origin}")], |_| {});
    let mut client = server.connect();
    let asked = [
        ("Origin", PAGE),
        ("Access-Control-Request-Method", "PATCH"),
        ("Access-Control-Request-Headers", "x-a"),
    ];
    let got = client.request("OPTIONS", "/", &asked, b"").response();
    assert_eq!(origin.requests()[0].method(), "OPTIONS");
    assert!(got.status() == 204 && is_open_to_page(&got.head), "{:?}", got.head);
    assert_eq!(got.head.field("access-control-allow-methods"), Some("PATCH"));
    assert_eq!(got.head.field("access-control-allow-headers"), Some("x-a"));
}

#[test]
fn one_key_opens_all_routes() {
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let closed = TestServer::before(&origin);
    let head = ask(&closed, "GET", "/").response().head;
    assert!(head.starting("access-control-").is_empty() && head.field("vary").is_none(), "{head:?}");
    let open = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("proxy.auto_cross_origin", "true");
    });
    assert!(is_open_to_page(&ask(&open, "GET", "/").response().head));
}

/// Security check 10: any page can make itself `null`.
#[test]
fn a_page_without_a_name_gets_no_credentials() {
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let server = TestServer::start(&[&format!("*,aco {origin}")], |_| {});
    for fields in [&[][..], &[("Origin", "null")]] {
        let got = server.connect().request("GET", "/", fields, b"").response();
        assert_eq!(got.head.field("access-control-allow-origin"), Some("*"), "{fields:?}");
        assert_eq!(got.head.field("access-control-allow-credentials"), None, "{fields:?}");
    }
}
