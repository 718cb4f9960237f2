//! Stopping: what runs is finished, what is held is let go, and the process ends with 0.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::{Client, Origin, TestServer, Then, answer, hold};

#[test]
fn sigterm_finishes_what_runs_and_ends_with_0() {
    let origin = Origin::scripted(|exchange| {
        exchange.pause(Duration::from_millis(500));
        exchange.send(answer("200 OK", &[], "finished"));
        Then::Next
    });
    let server = TestServer::before(&origin);
    let mut running = server.connect();
    running.get("/");
    origin.wait_requests(1);
    let (client, control) = (server.client, server.control);
    let start = Instant::now();
    let status = server.terminate();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(running.response().text(), "finished");
    for address in [client, control] {
        assert!(std::net::TcpStream::connect(address).is_err(), "{address} is still open");
    }
}

/// A held stream never ends by itself: it is closed within the drain time, with its last chunk, and a
/// poll is answered with what was stored.
#[test]
fn what_is_held_is_let_go() {
    let origin = Origin::answering(|r| match r.target() {
        "/stream" => hold("stream", "c", &[], "begun"),
        _ => hold("response", "c", &[], "stored"),
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.drain_timeout", "3s");
    });
    let mut stream = server.stream("/stream");
    stream.expect("begun");
    let mut poll = server.connect();
    poll.get("/poll");
    server.wait_pins("poll", 1);
    let start = Instant::now();
    let status = server.terminate();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    stream.expect_end();
    assert_eq!(poll.response().text(), "stored");
}

#[test]
fn a_request_that_does_not_end_is_cut_at_the_deadline() {
    let origin = Origin::scripted(|_| Then::Hang);
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.drain_timeout", "500ms");
    });
    let mut stuck: Client = server.connect();
    stuck.get("/");
    origin.wait_requests(1);
    let start = Instant::now();
    assert!(server.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    stuck.rest();
}

/// What the origin holds after the signal is let go like what was held before it.
#[test]
fn a_hold_that_begins_while_draining_ends_in_order() {
    let origin = Origin::scripted(|exchange| {
        exchange.pause(Duration::from_millis(500));
        let mode = if exchange.request.target() == "/stream" { "stream" } else { "response" };
        exchange.send(hold(mode, "c", &[], "begun"));
        Then::Next
    });
    let server = TestServer::before(&origin);
    let (mut stream, mut poll) = (server.connect(), server.connect());
    stream.get("/stream");
    poll.get("/poll");
    origin.wait_requests(2);
    let start = Instant::now();
    let status = server.terminate();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    stream.head();
    stream.expect("begun").expect_end();
    assert_eq!(poll.response().text(), "begun");
}
