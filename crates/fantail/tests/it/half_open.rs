//! Who vanishes without a word, as with a cable that is pulled: no FIN, no RST, and no answer to anything.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{
    Client, DEADLINE, Origin, Said, TestServer, WebSocket, hold, stream_item,
    websocket::{native, text},
};

fn before(routes: &[&str], key: &str) -> TestServer {
    TestServer::start(routes, |o| {
        o.set(key, "2s").set("client.send_timeout", "2s");
    })
}

fn no_client_left(server: &TestServer, since: Instant) {
    server.wait_until(Duration::from_secs(10), "no connection is left", || {
        server.metric("fantail_connections", &[]) < 0.5
    });
    assert!(since.elapsed() > Duration::from_millis(1500), "{:?}", since.elapsed());
    assert!(server.metrics().iter().all(|(name, n)| !name.starts_with("fantail_pins{") || *n < 0.5));
}

/// The kernel does not probe a client to whom something was sent that it has not acknowledged: it goes on trying to send.
#[test]
fn a_client_that_vanishes_is_noticed_whether_something_is_sent_to_it_or_not() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "c", &[], ""),
        "/beats" => hold("stream", "other", &[("Grip-Keep-Alive", "x; timeout=1")], ""),
        channel => hold("stream", &channel[1..], &[], ""),
    });
    let server = before(&[&format!("* {origin}"), "*,path_beg=/socket/ test"], "client.lost_timeout");
    let mut idle = server.connect();
    idle.get("/idle").head();
    let mut gone: Vec<Client> = ["/idle", "/c", "/beats"].map(|target| server.stream(target)).into();
    let mut poll = server.connect();
    poll.get("/poll");
    gone.push(poll);
    let socket = WebSocket::open(&server, "/socket/ws");
    server.wait_pins("poll", 1);
    server.wait_pins("websocket", 1);
    gone.push(idle);
    gone.iter().for_each(Client::vanish);
    socket.wire.vanish();
    let vanished = Instant::now();
    server.publish(&json!([stream_item("c", "to nobody")]));
    no_client_left(&server, vanished);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"client\""], 6.0);
}

/// One that lives stays, however little it says.
#[test]
fn a_silent_client_is_not_lost() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = before(&[&format!("* {origin}")], "client.lost_timeout");
    let mut client = server.stream("/");
    assert!(!client.hears_within(Duration::from_secs(5)), "it is closed");
    server.publish_stream("c", "still");
    client.expect("still");
}

/// A WebSocket ends when its origin's own server has vanished.
#[test]
fn an_origin_that_vanishes_is_noticed() {
    for speaks in [false, true] {
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let origin = native("", move |socket| drop(tell.lock().expect("no panic holds it").send(socket)));
        let server = before(&[&format!("* {origin}")], "origin.lost_timeout");
        let mut client = WebSocket::open(&server, "/");
        let mut far = told.recv_timeout(DEADLINE).expect("a connection");
        far.text("hi");
        client.expect(text("hi"));
        far.wire.vanish();
        if speaks {
            client.text("is there anybody?");
        }
        client.expect(Said::Gone);
        server.wait_pins("websocket", 0);
        server.wait_metric("fantail_pins_ended_total", &["cause=\"origin\""], 1.0);
    }
}
