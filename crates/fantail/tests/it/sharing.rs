//! Request sharing (`proxy.share_requests`, specification 1.10): one request to the origin for many
//! clients, and never one client's own answer to another.

use std::time::Duration;

use crate::harness::{Client, Origin, TestServer, Then, answer};

fn slow_origin() -> Origin {
    Origin::scripted(|exchange| {
        exchange.pause(Duration::from_millis(400));
        exchange.send(answer("200 OK", &[("X-Kind", "shared")], "the same"));
        Then::Next
    })
}

fn sharing(origin: &Origin) -> TestServer {
    TestServer::start(&[&format!("* {origin}")], |o| {
        // A shard shares among its own clients.
        o.set("proxy.share_requests", "true").set("server.shards", "1");
    })
}

fn ask(server: &TestServer, fields: &str) -> Client {
    let mut client = server.connect();
    client.send(format!("GET /a?b=c HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
    client
}

#[test]
fn concurrent_requests_for_the_same_become_one() {
    let origin = slow_origin();
    let server = sharing(&origin);
    let mut clients: Vec<_> = (0..5).map(|_| ask(&server, "")).collect();
    for client in &mut clients {
        let got = client.response();
        assert_eq!((got.status(), got.text().as_str()), (200, "the same"));
        assert_eq!(got.head.field("x-kind"), Some("shared"));
    }
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(server.get("/a?b=c").text(), "the same");
    assert_eq!(origin.requests().len(), 2, "an answer that is over is not kept");
}

#[test]
fn requests_that_say_who_asks_are_not_shared() {
    let origin = slow_origin();
    let server = sharing(&origin);
    let own =
        ["Cookie: a=1\r\n", "Authorization: Basic YTpi\r\n", "Range: bytes=0-1\r\n", "If-None-Match: x\r\n"];
    let mut clients: Vec<_> = own.iter().chain(&own).map(|fields| ask(&server, fields)).collect();
    for client in &mut clients {
        assert_eq!(client.response().text(), "the same");
    }
    assert_eq!(origin.requests().len(), 8);
}
