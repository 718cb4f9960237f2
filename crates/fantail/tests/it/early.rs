//! Origins that answer before the request has arrived: what they ask for happens when it has.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Origin, TestServer, Then, answer, find, hold, poll_item};

/// Answers the first request at its head and reads no more of it; later ones say what they read.
fn hasty(first: Vec<u8>) -> Origin {
    Origin::scripted(move |exchange| {
        if exchange.request.connection > 0 {
            let body = exchange.read_body().expect("the whole request");
            exchange.send(answer("200 OK", &[], body));
            return Then::Next;
        }
        exchange.send(&first);
        Then::Hang
    })
}

/// Sends the beginning of a request whose body has `length` bytes; its answer must not come yet.
fn begin(server: &TestServer, origin: &Origin, length: usize) -> Client {
    let mut client = server.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nbe"));
    origin.wait_requests(1);
    assert!(!client.hears_within(Duration::from_millis(200)), "answered without its body");
    client
}

#[test]
fn a_long_poll_is_held_when_its_request_has_arrived() {
    let origin = hasty(hold("response", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = begin(&server, &origin, 6);
    assert_eq!(server.metric("fantail_pins", &["kind=\"poll\""]), 0.0);
    client.send_part("side");
    server.wait_pins("poll", 1);
    // Asked again, the origin gets what it did not read at first.
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "action": "hint" } } }]));
    assert_eq!(client.response().text(), "beside");
    assert_eq!(client.get("/after").response().status(), 200);
}

#[test]
fn a_stream_is_held_when_its_request_has_arrived() {
    let origin = hasty(hold("stream", "c", &[], "first\n"));
    let server = TestServer::before(&origin);
    let mut client = begin(&server, &origin, 6);
    client.send_part("side");
    assert_eq!(client.head().status(), 200);
    client.expect("first\n");
    server.wait_pins("stream", 1);
    server.publish_stream("c", "an item");
    client.expect("an item");
}

/// A first body beyond `grip.instruct_bytes` is relayed as it comes; the request goes on meanwhile.
#[test]
fn a_long_first_body_waits_for_the_request_too() {
    let first = "f".repeat(200_000);
    let long = hold("stream", "c", &[], &first);
    let origin = Origin::scripted(move |exchange| {
        exchange.send(&long);
        assert_eq!(exchange.read_body().expect("the whole request"), b"beside");
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.instruct_bytes", "10000");
    });
    let mut client = begin(&server, &origin, 6);
    client.send_part("side");
    assert_eq!(client.head().status(), 200);
    client.expect(&first);
    server.wait_pins("stream", 1);
    server.publish_stream("c", "an item");
    client.expect("an item");
    server.wait_until(Duration::from_secs(5), "the origin has read the request", || {
        origin.requests()[0].body == b"beside"
    });
}

#[test]
fn what_does_not_arrive_is_not_held() {
    let origin = hasty(hold("response", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.instruct_bytes", "10000").set("client.body_timeout", "1s");
    });
    let mut late = begin(&server, &origin, 6);
    assert_eq!(late.response().status(), 408);
    late.expect_closed();

    let origin = hasty(hold("response", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.instruct_bytes", "10000");
    });
    let mut large = begin(&server, &origin, 20_000);
    large.send_part([b'x'; 19_998]);
    assert_eq!(large.response().status(), 400);

    let origin = hasty(hold("response", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut gone = begin(&server, &origin, 6);
    gone.finish_sending();
    assert!(find(&gone.rest(), b" 200 ").is_none());
    server.publish(&json!([poll_item("c", "x")]));
    assert_eq!(server.metric("fantail_pins", &["kind=\"poll\""]), 0.0);
}

/// Who waits for `100 Continue` gets it, though the origin did not ask for the body.
#[test]
fn a_body_that_was_not_asked_for_is_asked_for() {
    let origin = hasty(hold("response", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n");
    assert_eq!(client.interim().status(), 100);
    client.send_part("beside");
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "an item")]));
    assert_eq!(client.response().text(), "an item");
}
