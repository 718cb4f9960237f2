//! Many connections at once: ten thousand pins outlive their origin, and a large broadcast starves nobody.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Client, Origin, TestServer, answer, hold, stream_item};

/// As many as asked for, or what the limit of open files of this process allows: the server is another.
pub fn allowed(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .expect("the soft limit may rise to the hard one");
    let files = limit.maximum.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    wanted.min(files.saturating_sub(500))
}

fn open(server: &TestServer, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    while clients.len() < count {
        let from = clients.len();
        clients.extend((from..count.min(from + 200)).map(|_| server.connect()));
        for client in &mut clients[from..] {
            client.get("/");
        }
        for client in &mut clients[from..] {
            assert_eq!(client.head().status(), 200);
        }
    }
    clients
}

#[test]
fn ten_thousand_pins_outlive_their_origin() {
    let count = allowed(10_000);
    println!("{count} connections");
    let origin = Origin::fixed(hold("stream", "c", &[("Grip-Keep-Alive", "x; timeout=60")], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("logging.access", "false").set("server.backlog", "4096");
    });
    let mut clients = open(&server, count);
    server.wait_pins("stream", count);
    origin.stop();
    assert_eq!(server.get("/").status(), 502);
    let receipt = server.receipts(&json!([stream_item("c", "you are alive")])).remove(0);
    assert_eq!(receipt["delivered"], count, "{receipt}");
    for client in &mut clients {
        client.expect("you are alive");
    }
    server.wait_pins("stream", count);
    drop(clients);
    server.wait_metric("fantail_connections", &[], 0.0);
}

/// A handshake in the middle of a large broadcast is answered in the middle, not at its end.
#[test]
fn a_broadcast_does_not_starve_a_new_request() {
    let count = allowed(3_000);
    let origin = Origin::answering(|r| match r.target() {
        "/plain" => answer("200 OK", &[], "fine"),
        _ => hold("stream", "c", &[], ""),
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("logging.access", "false").set("server.shards", "1");
    });
    let mut clients = open(&server, count);
    let rounds = 300;
    let (broadcast, mut during) = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let start = Instant::now();
            let items: Vec<_> =
                (0..rounds).map(|n| stream_item("c", &format!("{n:03} {}", "b".repeat(60)))).collect();
            for item in &items {
                server.publish(&json!([item]));
            }
            server.receipts(&json!([stream_item("c", "end")]));
            start.elapsed()
        });
        let mut during = Vec::new();
        while !publisher.is_finished() {
            let start = Instant::now();
            assert_eq!(server.get("/plain").text(), "fine");
            during.push(start.elapsed());
        }
        (publisher.join().expect("it publishes"), during)
    });
    during.sort_unstable();
    let worst = during.last().copied().unwrap_or_default();
    println!("broadcast {broadcast:?}, {} requests meanwhile, the slowest {worst:?}", during.len());
    assert!(during.len() > 3, "{} requests in {broadcast:?}", during.len());
    assert!(worst < (broadcast / 2).max(Duration::from_millis(500)), "{worst:?} of {broadcast:?}");
    let wanted: String = (0..rounds).map(|n| format!("{n:03} {}", "b".repeat(60))).collect();
    for client in &mut clients {
        client.expect(&wanted).expect("end");
    }
}
