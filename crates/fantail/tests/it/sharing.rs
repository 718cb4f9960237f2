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
    ask_for(server, "/a?b=c", fields)
}

fn ask_for(server: &TestServer, target: &str, fields: &str) -> Client {
    let mut client = server.connect();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
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

/// A session that is begun for one client is no other's.
#[test]
fn answers_that_are_one_clients_own_are_not_shared() {
    let own = [
        ("Set-Cookie", "session=1"),
        ("Cache-Control", "max-age=5, Private"),
        ("Cache-Control", "no-store"),
        ("Cache-Control", "private=\"x-name\""),
        ("Vary", "Accept, User-Agent"),
        ("Vary", "*"),
    ];
    let origin = Origin::scripted(move |exchange| {
        let place: usize = exchange.request.target()[1..].parse().unwrap();
        exchange.pause(Duration::from_millis(400));
        exchange.send(answer("200 OK", &[own[place]], "own"));
        Then::Next
    });
    let server = sharing(&origin);
    let targets: Vec<_> = (0..own.len()).map(|place| format!("/{place}")).collect();
    let mut clients: Vec<_> =
        targets.iter().chain(&targets).map(|target| ask_for(&server, target, "")).collect();
    for client in &mut clients {
        assert_eq!(client.response().text(), "own");
    }
    assert_eq!(origin.requests().len(), 2 * own.len());
}

/// What an answer may depend on makes requests different; who asks does not, unless the answer says so.
#[test]
fn requests_are_the_same_if_their_answers_may_be() {
    let origin = Origin::scripted(|exchange| {
        let key = exchange.request.head.field("x-api-key").unwrap_or("none").to_owned();
        exchange.pause(Duration::from_millis(400));
        exchange.send(answer("200 OK", &[("Vary", "Accept-Language"), ("Cache-Control", "public")], key));
        Then::Next
    });
    let server = sharing(&origin);
    let fields = [
        ("User-Agent: a\r\nX-Forwarded-For: 192.0.2.1\r\nAccept-Language: de\r\n", "none"),
        ("Accept-Language: de\r\nUser-Agent: b\r\nX-Forwarded-For: 192.0.2.2\r\n", "none"),
        ("Accept-Language: en\r\n", "none"),
        ("Accept-Language: de\r\nX-Api-Key: 1\r\n", "1"),
        ("Accept-Language: de\r\nX-Api-Key: 2\r\n", "2"),
    ];
    let mut clients: Vec<_> = fields.iter().map(|(fields, _)| ask(&server, fields)).collect();
    for (client, (_, expected)) in clients.iter_mut().zip(fields) {
        assert_eq!(client.response().text(), expected);
    }
    assert_eq!(origin.requests().len(), 4);
}
