//! At the limit of open files: accepting pauses without a busy loop, what is held stays, the control port
//! answers, and accepting resumes (security.md row 29).

use std::time::Duration;

use crate::harness::{Client, Origin, TestServer, answer, hold};

#[test]
fn accepting_pauses_and_resumes() {
    let origin = Origin::answering(|r| match r.target() {
        "/plain" => answer("200 OK", &[], "fine"),
        _ => hold("stream", "c", &[], ""),
    });
    // More connections are allowed than there are descriptors, so that the descriptors run out.
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.descriptors(256).set("client.connections", "10000");
    });
    let mut held: Vec<_> = (0..50).map(|_| server.stream("/")).collect();
    let crowd: Vec<_> = (0..350).map(|_| server.connect()).collect();
    server.wait_until(Duration::from_secs(10), "accepting pauses", || {
        server.metric("fantail_accept_pauses_total", &[]) >= 1.0
    });
    let before = server.cpu();
    assert!(!held[0].hears_within(Duration::from_secs(2)));
    let used = server.cpu().saturating_sub(before);
    assert!(used < Duration::from_millis(200), "{used:?} of CPU in 2 s while starved");

    server.publish_stream("c", "still");
    for client in &mut held {
        client.expect("still");
    }
    assert_eq!(server.control("GET", "/healthz", &[], b"").status(), 200);
    drop(crowd);
    assert_eq!(server.get("/plain").text(), "fine");
    server.publish_stream("c", "after");
    held.iter_mut().for_each(|client: &mut Client| {
        client.expect("after");
    });
}

/// Left alone, the limit of connections is below that of descriptors: the origin side keeps its share.
#[test]
fn a_reserve_is_kept_for_the_origin_side() {
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.descriptors(256);
    });
    let mut crowd: Vec<_> = (0..400).map(|_| server.connect()).collect();
    server.wait_until(Duration::from_secs(10), "accepting pauses", || {
        server.metric("fantail_accept_pauses_total", &[]) >= 1.0
    });
    for client in crowd.iter_mut().take(20) {
        assert_eq!(client.get("/").response().text(), "fine");
    }
    assert!(server.open_files() < 256);
}

/// Webhooks need sockets for tries, for challenges, and for connections that wait to be used again.
#[test]
fn webhooks_have_a_reserve() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::start(&["* test"], |o| {
        o.descriptors(10_000).set("client.connections", "20000").set("webhooks.concurrency", "500");
        o.set("server.shards", "1").set("origin.connections", "1");
        o.set("server.data_dir", &folder.path().to_string_lossy());
    });
    let left = 10_000 - 1024 - 1 - (500 + 1024 + 1024);
    server.log_text(&format!("10000 open files allow {left}"));
}

/// The reserve is as large as origins may need, but never more than half.
#[test]
fn the_reserve_grows_with_the_connections_to_origins() {
    for (shards, origins, room) in [("1", "40", 260), ("2", "40", 220), ("2", "1000", 200)] {
        let server = TestServer::start(&["* test"], |o| {
            o.descriptors(400).set("server.shards", shards).set("origin.connections", origins);
        });
        let _crowd: Vec<_> = (0..300).map(|_| server.connect()).collect();
        server.wait_until(Duration::from_secs(10), "accepting pauses", || {
            server.metric("fantail_accept_pauses_total", &[]) >= 1.0
        });
        // Each shard may be accepting one when the last place is taken.
        server.wait_until(Duration::from_secs(10), "as many as there is room for", || {
            (room..room + 2).contains(&(server.metric("fantail_connections", &[]) as usize))
        });
    }
}
