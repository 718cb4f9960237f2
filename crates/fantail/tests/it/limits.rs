//! Every limit of the configuration, driven to its edge: what fits passes, one more gets a clear answer.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Client, Origin, TestServer, Then, answer, hold, poll_item, stream_item};

fn ok() -> Origin {
    Origin::fixed(answer("200 OK", &[], "fine"))
}

#[test]
fn client_head_bytes() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.head_bytes", "4096");
    });
    let head = |bytes: usize| {
        let bare = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(bytes - bare))
    };
    assert_eq!(server.connect().send(head(4096)).response().status(), 200);
    for bytes in [4097, 100_000, 1_000_000] {
        let mut client = server.connect();
        assert_eq!(client.send(head(bytes)).response().status(), 431, "{bytes}");
    }
    assert_eq!(origin.requests().len(), 1);
    server.wait_metric("fantail_requests_refused_total", &["cause=\"limit\""], 3.0);
}

#[test]
fn client_headers() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.headers", "30");
    });
    let head = |lines: usize| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(lines - 1));
    assert_eq!(server.connect().send(head(30)).response().status(), 200);
    assert_eq!(server.connect().send(head(31)).response().status(), 431);
}

#[test]
fn client_target_bytes() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.target_bytes", "1000");
    });
    assert_eq!(server.get(&format!("/{}", "x".repeat(999))).status(), 200);
    assert_eq!(server.get(&format!("/{}", "x".repeat(1000))).status(), 414);
}

#[test]
fn client_body_bytes() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.body_bytes", "1000");
    });
    assert_eq!(server.request("POST", "/", &[], &[b'x'; 1000]).status(), 200);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n");
    assert_eq!(client.response().status(), 413);
    assert_eq!(origin.requests().len(), 1, "nothing of it was forwarded");
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send_part("3e8\r\n").send_part([b'x'; 1000]).send_part("\r\n1\r\nx\r\n0\r\n\r\n");
    assert_eq!(client.response().status(), 413);
}

#[test]
fn hub_id_bytes_and_meta_bytes() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("hub.id_bytes", "10").set("hub.meta_bytes", "20");
    });
    let publish = |name: &str, value: serde_json::Value| {
        let mut item = stream_item("c", "x");
        item[name] = value;
        server.try_publish(&json!([stream_item("c", "y"), item]))
    };
    let meta = |bytes: usize| json!({ "a": "x".repeat(bytes - 4), "b": "xy" });
    for (name, fits, not, why) in [
        ("id", json!("x".repeat(10)), json!("x".repeat(11)), "'id' is longer than 10 bytes"),
        ("prev-id", json!("x".repeat(10)), json!("x".repeat(11)), "'prev-id' is longer than 10 bytes"),
        ("meta", meta(20), meta(21), "'meta' has more than 20 bytes"),
    ] {
        assert_eq!(publish(name, fits).0, 200, "{name}");
        let (status, text) = publish(name, not);
        assert!(status == 400 && text.contains(why), "{name}: {status} {text}");
    }
}

/// A namespace that is said once and used thousands of times: refused where no XMPP is configured, too.
#[test]
fn namespaces_of_stanzas() {
    let server = TestServer::start(&["* test"], |_| {});
    let stanza = format!("<message><x xmlns='{}'>{}</x></message>", "n".repeat(200_000), "<a/>".repeat(8000));
    let before = server.memory();
    let item = json!({ "channel": "c", "formats": { "xmpp-stanza": { "content": stanza } } });
    let (status, text) = server.try_publish(&json!([item]));
    assert!(status == 400 && text.contains("namespace"), "{status} {text}");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");
}

/// When full, accepting pauses: who waits is served when another leaves.
#[test]
fn client_connections() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("client.connections", "4").set("server.shards", "1");
    });
    let mut open: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut open {
        assert_eq!(client.get("/").response().status(), 200);
    }
    let mut waiting = server.connect();
    waiting.get("/");
    assert!(!waiting.hears_within(Duration::from_millis(500)), "a fifth is served");
    assert!(server.metric("fantail_accept_pauses_total", &[]) >= 1.0);
    drop(open.pop());
    assert_eq!(waiting.response().status(), 200);
    server.wait_metric("fantail_connections", &[], 4.0);
}

#[test]
fn grip_channel_bytes() {
    let origin = Origin::answering(|r| hold("stream", r.target().trim_start_matches('/'), &[], ""));
    let server = TestServer::start(&[&format!("*,prefix=12345 {origin}")], |o| {
        o.set("grip.channel_bytes", "50");
    });
    let mut fits = server.stream(&format!("/{}", "c".repeat(45)));
    let name = format!("12345{}", "c".repeat(45));
    server.publish_stream(&name, "x");
    fits.expect("x");
    assert_eq!(server.get(&format!("/{}", "c".repeat(46))).status(), 502);
    let (status, text) = server.try_publish(&json!([stream_item(&"c".repeat(51), "x")]));
    assert_eq!(status, 400, "{text}");
}

#[test]
fn grip_subscriptions() {
    let origin = Origin::fixed(hold("stream", "a, b, c, d", &[], ""));
    let server = TestServer::start(&[&format!("* {origin},sub=extra")], |o| {
        o.set("grip.subscriptions", "2");
    });
    let mut client = server.stream("/");
    server.publish(&json!(["a", "b", "c", "d", "extra"].map(|c| stream_item(c, c))));
    client.expect("abextra");
    server.wait_metric("fantail_subscriptions_refused_total", &[], 2.0);
}

/// Each a connection of its own for so long, and no longer.
#[test]
fn origin_keep_alive() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Origin::scripted(move |exchange| {
        exchange.send(answer("200 OK", &[], "fine"));
        let left = exchange.proxy_leaves();
        tell.lock().expect("no panic holds it").send(left).expect("the test waits");
        Then::Close
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.keep_alive", "500ms");
    });
    let begun = Instant::now();
    assert_eq!(server.get("/").status(), 200);
    assert!(told.recv_timeout(Duration::from_secs(10)).expect("a report"));
    let kept = begun.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(3)).contains(&kept), "{kept:?}");
}

/// Ten thousand names, as many members and as many fields of one kind cost what they should.
#[test]
fn many_names_take_no_more_than_their_time() {
    let server = TestServer::start(&["* test"], |_| {});
    let begun = Instant::now();
    let items: Vec<_> = (0..10_000)
        .map(|n| json!({ "channel": format!("c{n}"), "id": "x", "http-stream": { "content": "" } }))
        .collect();
    server.publish(&json!(items));
    let members: serde_json::Map<_, _> = (0..60_000).map(|n| (format!("m{n}"), json!(0))).collect();
    let mut item = stream_item("c", "");
    item.as_object_mut().expect("an object").extend(members);
    assert_eq!(server.try_publish(&json!([item])).0, 200);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[test]
fn grip_instruct_bytes() {
    let origin = Origin::answering(|r| {
        hold("response", "c", &[("Grip-Timeout", "5")], "x".repeat(r.target().len() - 1))
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.instruct_bytes", "100");
    });
    assert_eq!(server.get(&format!("/{}", "x".repeat(101))).status(), 502);
    let mut client = server.connect();
    client.get(&format!("/{}", "x".repeat(100)));
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "x")]));
    assert_eq!(client.response().status(), 200);
}

#[test]
fn grip_max_timeout() {
    let origin = Origin::fixed(hold("response", "c", &[("Grip-Timeout", "1000000000")], "time"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.max_timeout", "5s");
    });
    assert_eq!(server.get("/").text(), "time");
}

/// Requests beyond the connections to one origin wait for their turn.
#[test]
fn origin_connections() {
    let origin = Origin::scripted(|exchange| {
        exchange.pause(Duration::from_millis(50));
        exchange.send(answer("200 OK", &[], "fine"));
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.connections", "3").set("server.shards", "1");
    });
    let mut clients: Vec<_> = (0..12).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.get("/");
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "fine");
    }
    let most = origin.requests().iter().map(|r| r.connection).max();
    assert!(most <= Some(2), "{most:?}");
}

/// Ids beyond the limit are forgotten, oldest first.
#[test]
fn hub_ids() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("hub.ids", "10");
    });
    let item = |id: usize| json!({ "channel": "c", "id": id.to_string(), "formats": { "http-stream": { "content": "" } } });
    server.publish(&json!((0..10).map(item).collect::<Vec<_>>()));
    let duplicate = |id: usize| server.receipts(&json!([item(id)]))[0]["duplicate"] == true;
    assert!(duplicate(0) && duplicate(9));
    server.publish(&json!((10..30).map(item).collect::<Vec<_>>()));
    assert!(!duplicate(0));
    assert!(duplicate(29));
}

#[test]
fn control_head_bytes() {
    let server = TestServer::start(&["* test"], |_| {});
    let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(Client::connect(server.control).send(head).response().status(), 431);
}

#[test]
fn control_body_bytes() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("control.body_bytes", "100");
    });
    let body = |bytes: usize| format!("{{\"items\":[]}}{}", " ".repeat(bytes - 12)).into_bytes();
    assert_eq!(server.control("POST", "/publish/", &[], &body(100)).status(), 200);
    assert_eq!(server.control("POST", "/publish/", &[], &body(101)).status(), 413);
}

#[test]
fn items_of_one_request() {
    let server = TestServer::start(&["* test"], |_| {});
    let items = |n: usize| json!(vec![json!({ "channel": "c", "http-stream": { "content": "" } }); n]);
    assert_eq!(server.try_publish(&items(10_000)).0, 200);
    let (status, text) = server.try_publish(&items(10_001));
    assert_eq!(status, 400, "{text}");
}

/// JSON nested without end is refused quickly and without a crash.
#[test]
fn depth_of_json() {
    let server = TestServer::start(&["* test"], |_| {});
    let start = Instant::now();
    let deep = [vec![b'['; 400_000], vec![b']'; 400_000]].concat();
    assert_eq!(server.control("POST", "/publish/", &[], &deep).status(), 400);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// A second server process cannot take over the address of one that runs.
#[test]
fn a_taken_control_address_is_refused() {
    let server = TestServer::start(&["* test"], |_| {});
    let (status, text) = TestServer::refused(&["* test"], |o| {
        o.control(server.control.to_string());
    });
    assert!(!status.success() && text.contains(&server.control.port().to_string()), "{text}");
}

/// Nor can it listen beside it, which would give it a part of the clients.
#[test]
fn a_taken_client_address_is_refused() {
    let server = TestServer::start(&["* test"], |_| {});
    for (address, refused) in
        [(server.client.to_string(), true), (format!("0.0.0.0:{}", server.client.port()), true)]
    {
        let (status, text) = TestServer::refused(&["* test"], |o| {
            o.argument("--listen").argument(&address);
        });
        assert_eq!(!status.success(), refused, "{text}");
        assert!(text.contains(&format!("cannot listen on {address} (server.listen): ")), "{text}");
    }
    assert_eq!(server.get("/").status(), 200);
    // Its connections of a moment ago are not in the way.
    let address = server.client;
    server.kill();
    let next = TestServer::start(&["* test"], |o| {
        o.argument("--listen").argument(address.to_string());
    });
    assert_eq!(Client::connect(address).get("/").response().status(), 200);
    drop(next);
}

/// One address has its share; others are let in, and a place that becomes free is given again.
#[test]
fn connections_of_one_address() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("client.connections_per_address", "3");
    });
    let mut held: Vec<_> = (0..3).map(|_| server.stream("/stream")).collect();
    server.connect().expect_closed();
    server.wait_metric("fantail_connections_refused_total", &[], 1.0);
    let mut other = Client::connect_from([127, 0, 0, 2].into(), server.client);
    assert_eq!(other.get("/").response().status(), 200);
    drop(held.pop());
    server.wait_pins("stream", 2);
    server.wait_metric("fantail_connections", &[], 3.0);
    assert_eq!(server.get("/").status(), 200);
    assert_eq!(server.metric("fantail_connections_refused_total", &[]), 1.0);
}

/// So many publish requests may have their bodies in memory at once; more wait, and are told to come again.
#[test]
fn publishes_at_once() {
    let server = TestServer::start(&["* test"], |o| {
        o.set("control.publish_timeout", "300ms");
    });
    let item = json!([stream_item("c", "x")]);
    let body = json!({ "items": item }).to_string();
    let mut slow: Vec<_> = (0..128)
        .map(|_| {
            let mut client = Client::connect(server.control);
            client.send(format!(
                "POST /publish/ HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{{",
                server.control,
                body.len()
            ));
            client
        })
        .collect();
    server.wait_until(Duration::from_secs(10), "too many at once", || {
        let (status, text) = server.try_publish(&item);
        status == 503 && text == "Too many publish requests at once.\n"
    });
    assert!(server.metric("fantail_publishes_total", &["result=\"overload\""]) >= 1.0);
    assert_eq!(server.control("GET", "/healthz", &[], b"").status(), 200);
    assert_eq!(slow[0].send_part(&body[1..]).response().status(), 200);
    server.publish(&item);
    for client in &mut slow[1..] {
        assert_eq!(client.send_part(&body[1..]).response().status(), 200);
    }
}
