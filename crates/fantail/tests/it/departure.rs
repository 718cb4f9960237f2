//! A client that leaves is noticed at once, however it leaves, and nothing of it remains.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Origin, TestServer, Then, hold, poll_item, stream_item};

/// "At once", on a machine that other tests share.
const AT_ONCE: Duration = Duration::from_secs(2);

fn nothing_held(server: &TestServer) {
    server.wait_until(AT_ONCE, "no pin, subscription or channel", || {
        ["fantail_pins", "fantail_subscriptions", "fantail_channels", "fantail_connections"]
            .iter()
            .all(|name| server.metric(name, &[]) < 0.5)
    });
}

fn holding(mode: &'static str) -> Origin {
    Origin::answering(move |r| hold(mode, r.target().trim_start_matches('/'), &[], ""))
}

/// With FIN, with RST, and with FIN while still reading (a client that asked for a held answer and says
/// that it will send no more has left, as far as a server can know).
#[test]
fn every_way_to_leave_a_stream_is_noticed() {
    let leave: [fn(Client); 3] = [drop, Client::reset, |mut client: Client| {
        client.finish_sending();
        client.rest();
    }];
    let origin = holding("stream");
    let server = TestServer::before(&origin);
    for (n, leave) in leave.into_iter().enumerate() {
        let client = server.stream("/c");
        server.wait_pins("stream", 1);
        leave(client);
        nothing_held(&server);
        server.wait_metric("fantail_pins_ended_total", &["cause=\"client\""], n as f64 + 1.0);
        assert_eq!(server.receipts(&json!([stream_item("c", "x")]))[0]["delivered"], 0);
    }
}

#[test]
fn a_client_that_leaves_a_poll_is_noticed() {
    let origin = holding("response");
    let server = TestServer::before(&origin);
    for leave in [drop, Client::reset] {
        let mut client = server.connect();
        client.get("/c");
        server.wait_pins("poll", 1);
        leave(client);
        nothing_held(&server);
        assert_eq!(server.receipts(&json!([poll_item("c", "x")]))[0]["delivered"], 0);
    }
}

/// A thousand come and go, some while items are published; no descriptor and no gauge is left behind.
#[test]
fn nothing_leaks_when_many_come_and_go() {
    let origin = holding("stream");
    let server = TestServer::before(&origin);
    drop(server.stream("/warm-up"));
    nothing_held(&server);
    let before = server.open_files();
    for round in 0..10 {
        let mut clients: Vec<_> = (0..100).map(|n| server.stream(&format!("/c{}", n % 7))).collect();
        server.publish_stream("c1", "x");
        for client in clients.drain(..).skip(round) {
            if round % 2 == 0 { drop(client) } else { client.reset() }
        }
        server.publish_stream("c1", "y");
    }
    nothing_held(&server);
    server.wait_until(AT_ONCE, "the descriptors of before", || server.open_files() <= before + 4);
}

/// A client that leaves while its request is at the origin: the origin is told by the close.
#[test]
fn the_origin_is_told_that_the_client_left() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Origin::scripted(move |exchange| {
        let left = exchange.proxy_leaves();
        tell.lock().expect("no panic holds it").send(left).expect("the test waits");
        Then::Close
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/");
    origin.wait_requests(1);
    drop(client);
    assert!(told.recv_timeout(Duration::from_secs(10)).expect("a report"));
    server.wait_metric("fantail_connections", &[], 0.0);
}

/// The socket of a new connection, or of one that comes from a hold, is not watched before its request has waited for a
/// while: the departure is seen all the same, and behind what the client sent ahead.
#[test]
fn a_client_that_leaves_a_slow_origin_is_noticed_whatever_came_before() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Origin::scripted(move |exchange| {
        if exchange.request.target() == "/poll" {
            exchange.send(hold("response", "c", &[], ""));
            return Then::Next;
        }
        let left = exchange.proxy_leaves();
        tell.lock().expect("no panic holds it").send(left).expect("the test waits");
        Then::Close
    });
    let server = TestServer::before(&origin);
    for (polls, ahead) in [(0, ""), (0, "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"), (0, "G"), (2, "")] {
        let mut client = server.connect();
        for _ in 0..polls {
            client.get("/poll");
            server.wait_pins("poll", 1);
            server.publish(&json!([poll_item("c", "x")]));
            assert_eq!(client.response().text(), "x");
            server.wait_pins("poll", 0);
        }
        origin.forget();
        client.get("/slow");
        origin.wait_requests(1);
        client.send_part(ahead);
        drop(client);
        assert!(told.recv_timeout(Duration::from_secs(10)).expect("a report"), "{polls} {ahead:?}");
        server.wait_metric("fantail_connections", &[], 0.0);
    }
}

/// Those who remain get what is published while others leave in the middle of it.
#[test]
fn those_who_stay_miss_nothing_when_others_leave() {
    let origin = holding("stream");
    let server = TestServer::before(&origin);
    let mut clients: Vec<_> = (0..60).map(|_| server.stream("/c")).collect();
    let mut wanted = String::new();
    for n in 0..30 {
        drop(clients.remove(n % clients.len()));
        let text = format!("item {n};");
        server.publish_stream("c", &text);
        wanted.push_str(&text);
    }
    for client in &mut clients {
        client.expect(&wanted);
    }
}
