//! Peers that are slow on purpose: they lose their own connection, and nobody else notices (security.md
//! row 12; check 80).

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Origin, ReadError, TestServer, Then, answer, find, hold, stream_item};

fn holding() -> Origin {
    Origin::fixed(hold("stream", "c", &[], ""))
}

/// Check 80, mended: nothing is skipped. The slow client gets a whole prefix and then the end of the
/// connection, without the last chunk that would say that all is well.
#[test]
fn a_client_that_stops_reading_is_queued_then_closed() {
    let origin = holding();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.queue_bytes", "1000000");
    });
    let mut neighbours: Vec<_> = (0..5).map(|_| server.stream("/")).collect();
    let item = |n: usize| format!("{n:08}{}\n", "x".repeat(99_991));
    let mut usual = Duration::ZERO;
    for n in 0..20 {
        let start = Instant::now();
        server.publish_stream("c", &item(n));
        for neighbour in &mut neighbours {
            neighbour.expect(&item(n));
        }
        usual = usual.max(start.elapsed());
    }
    let mut slow = server.connect();
    slow.narrow().get("/").head();
    let (mut overflowed, mut published, mut worst) = (false, 0, Duration::ZERO);
    while !overflowed {
        assert!(published < 300, "never closed");
        let start = Instant::now();
        let receipt = server.receipts(&json!([stream_item("c", &item(published))])).remove(0);
        published += 1;
        for neighbour in &mut neighbours {
            neighbour.expect(&item(published - 1));
        }
        worst = worst.max(start.elapsed());
        let count = |value: &serde_json::Value| value.as_u64().expect("a number");
        let dropped = count(&receipt["dropped"]["overflow"]);
        assert_eq!(count(&receipt["delivered"]) + count(&receipt["queued"]) + dropped, 6, "{receipt}");
        overflowed = dropped == 1;
    }
    assert!(
        worst < Duration::from_secs(1).max(2 * usual),
        "the neighbours waited {worst:?}, and {usual:?} before"
    );
    server.wait_pins("stream", 5);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"overflow\""], 1.0);
    assert!(server.metric("fantail_deliveries_dropped_total", &["cause=\"overflow\""]) >= 1.0);

    let wanted: String = (0..published).map(item).collect();
    let got = match slow.try_content(usize::MAX) {
        Err(ReadError::Closed { got } | ReadError::Reset { got }) => got,
        other => panic!("the stream went on: {other:?}"),
    };
    assert!(wanted.as_bytes().starts_with(&got), "a hole in {} bytes", got.len());
    server.publish_stream("c", "still");
    for neighbour in &mut neighbours {
        neighbour.expect("still");
    }
}

/// A form that never comes does not keep a place at the control port for ever.
#[test]
fn a_form_of_xmpp_that_does_not_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::start(&["* test"], |o| {
        o.set("server.data_dir", &folder.path().to_string_lossy());
        o.set("xmpp.server", "127.0.0.1:9").set("xmpp.domain", "push.test").set("xmpp.secret", "s");
    });
    let mut client = crate::harness::Client::connect(server.control);
    client.send(
        "POST /channel/c/xs-subscriptions/ HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\njid=",
    );
    let response = client.response();
    assert!(response.status() == 400 && response.text().contains("too slow"), "{}", response.text());
}

/// A client that reads again in time gets everything.
#[test]
fn a_client_that_catches_up_loses_nothing() {
    let origin = holding();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.queue_bytes", "50000000");
    });
    let mut slow = server.connect();
    slow.narrow().get("/").head();
    let items: Vec<_> = (0..200).map(|n| format!("{n:08}{}\n", "y".repeat(99_991))).collect();
    for batch in items.chunks(5) {
        let batch: Vec<_> = batch.iter().map(|i| stream_item("c", i)).collect();
        server.publish(&json!(batch));
    }
    assert!(server.metric("fantail_deliveries_queued_total", &[]) > 0.0);
    slow.expect(&items.concat());
    server.publish_stream("c", "live");
    slow.expect("live");
    server.wait_pins("stream", 1);
}

#[test]
fn a_client_that_takes_nothing_is_closed_as_stalled() {
    let origin = holding();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.queue_bytes", "50000000").set("client.send_timeout", "1s");
    });
    let mut slow = server.connect();
    slow.narrow().get("/").head();
    for _ in 0..100 {
        server.publish_stream("c", &"z".repeat(100_000));
    }
    server.wait_metric("fantail_pins_ended_total", &["cause=\"stalled\""], 1.0);
    server.wait_pins("stream", 0);
}

/// A relayed answer that the client does not take is cut off too.
#[test]
fn a_client_that_does_not_take_a_plain_answer_is_closed() {
    let origin = Origin::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 500000000\r\n\r\n");
        while exchange.send([b'w'; 100_000]) {}
        Then::Close
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.send_timeout", "1s");
    });
    let mut slow = server.connect();
    slow.narrow().get("/").head();
    server.wait_metric("fantail_connections", &[], 0.0);
}

#[test]
fn a_head_sent_a_byte_at_a_time_ends_with_408() {
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.head_timeout", "700ms");
    });
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX-Slow: {}\r\n\r\n", "s".repeat(1000));
    let mut client = server.connect();
    let start = Instant::now();
    for byte in head.as_bytes() {
        client.send_part([*byte]);
        if client.hears_within(Duration::from_millis(30)) {
            break;
        }
    }
    let took = start.elapsed();
    assert_eq!(client.response().status(), 408);
    client.expect_closed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
    assert!(origin.requests().is_empty());
    server.wait_metric("fantail_requests_refused_total", &["cause=\"timeout\""], 1.0);
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("client.idle_timeout", "500ms").set("client.head_timeout", "500ms");
    });
    let mut silent = server.connect();
    silent.expect_closed();
    let mut idle = server.connect();
    assert_eq!(idle.get("/").response().status(), 200);
    idle.expect_closed();
    let mut held = server.stream("/stream");
    held.expect("[stream opened]\n");
    assert!(!held.hears_within(Duration::from_millis(1500)), "a held stream is not idle");
    server.wait_pins("stream", 1);
}

#[test]
fn a_body_that_stops_coming_ends_with_408() {
    let origin = Origin::scripted(|exchange| {
        drop(exchange.read_body());
        Then::Close
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.body_timeout", "500ms");
    });
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n").send_part([b'x'; 20_000]);
    assert_eq!(client.response().status(), 408);
    client.expect_closed();
    server.wait_metric("fantail_connections", &[], 0.0);
}

/// Slow uploads by many hold neither memory nor anybody else up.
#[test]
fn slow_heads_by_many_do_not_keep_others_out() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("client.head_timeout", "2s");
    });
    let mut attackers: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for attacker in &mut attackers {
        attacker.send_part("GET / HTTP/1.1\r\nHost: h\r\nX-");
    }
    assert_eq!(server.get("/").status(), 200);
    for attacker in &mut attackers {
        let rest = attacker.rest();
        assert!(find(&rest, b" 408 ").is_some(), "{}", String::from_utf8_lossy(&rest));
    }
    server.wait_metric("fantail_connections", &[], 0.0);
}

/// A body that comes, but by a byte at a time.
#[test]
fn a_body_that_comes_too_slowly_ends_with_408() {
    let origin = Origin::answering(|_| answer("200 OK", &[], "fine"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.least_rate", "1000").set("client.least_rate_window", "1s");
    });
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
    let start = Instant::now();
    while !client.hears_within(Duration::from_millis(50)) && start.elapsed() < Duration::from_secs(10) {
        client.send_part("x");
    }
    let took = start.elapsed();
    assert_eq!(client.response().status(), 408);
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    server.wait_metric("fantail_requests_refused_total", &["cause=\"slow\""], 1.0);
    server.wait_metric("fantail_connections", &[], 0.0);
}

/// An answer that is taken, but by too little at a time.
#[test]
fn a_client_that_takes_too_little_is_closed() {
    let origin = Origin::answering(|request| match request.target() {
        "/held" => hold("stream", "c", &[], "z".repeat(90_000)),
        _ => answer("200 OK", &[], "w".repeat(50_000_000)),
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.least_rate", "50000000").set("client.least_rate_window", "1s");
        o.set("client.queue_bytes", "50000000");
    });
    let mut slow = server.connect();
    slow.narrow().get("/").head();
    server.wait_until(Duration::from_secs(5), "the end of who takes too little", || {
        slow.content(1000);
        server.metric("fantail_requests_refused_total", &["cause=\"slow\""]) > 0.0
    });

    let mut slow = server.connect();
    slow.narrow().get("/held").head();
    server.wait_pins("stream", 1);
    for _ in 0..100 {
        server.publish_stream("c", &"z".repeat(100_000));
    }
    server.wait_until(Duration::from_secs(5), "the end of who takes too little", || {
        slow.content(1000);
        server.metric("fantail_pins_ended_total", &["cause=\"stalled\""]) > 0.0
    });
}

/// The time of a slow origin is not its client's.
#[test]
fn who_waits_for_the_origin_is_not_slow() {
    let origin = Origin::scripted(|exchange| {
        exchange.pause(Duration::from_secs(2));
        let body = exchange.read_body().expect("the whole request");
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nf", body.len()));
        exchange.pause(Duration::from_secs(2));
        exchange.send(&body[1..]);
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.least_rate", "50000000").set("client.least_rate_window", "1s");
    });
    let body = "f".repeat(10_000_000);
    let got = server.request("POST", "/", &[], body.as_bytes());
    assert_eq!((got.status(), got.body.len()), (200, body.len()));
    assert_eq!(server.metric("fantail_requests_refused_total", &["cause=\"slow\""]), 0.0);
}
