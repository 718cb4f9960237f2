//! The keys of `[webhooks]` that limit one try, one endpoint and one realm: each does what it says.

use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::{
    harness::{Client, DEADLINE, JSON, Origin, TestServer, Then, answer, hold},
    webhook::{ask, folder, item, of, receiver, server, subscribe},
};

/// One server with these keys, and an endpoint of the channel "c" at `url`.
fn started(folder: &tempfile::TempDir, url: &str, keys: &[(&str, &str)]) -> TestServer {
    let server = server(folder, keys);
    subscribe(&server, "c", &json!({ "url": url }));
    server
}

fn has_landed(server: &TestServer, result: &str) {
    server.wait_metric("fantail_webhook_tries_total", &[&format!("result=\"{result}\"")], 1.0);
}

#[test]
fn a_connection_is_given_up() {
    let folder = folder();
    // With all places taken, who connects is not answered.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(0).expect("it listens");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let _queued = TcpStream::connect(address).expect("the only place");
    let keys = [("webhooks.connect_timeout", "50ms"), ("webhooks.timeout", "1h"), ("webhooks.retry", "[]")];
    let server = started(&folder, &format!("http://{address}/"), &keys);
    server.publish(&json!([item("c", "x")]));
    has_landed(&server, "timeout");
}

#[test]
fn no_more_of_an_answer_is_read() {
    let folder = folder();
    let endless = Origin::scripted(|exchange| {
        drop(exchange.read_body());
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        exchange.send("x".repeat(101));
        Then::Hang
    });
    let keys = [("webhooks.response_bytes", "100"), ("webhooks.timeout", "1h")];
    let server = started(&folder, &format!("http://{endless}/"), &keys);
    server.publish(&json!([item("c", "x")]));
    has_landed(&server, "delivered");
}

#[test]
fn an_endpoint_has_so_many_at_once() {
    let folder = folder();
    let endpoint = Origin::scripted(|exchange| {
        if exchange.read_body().is_ok_and(|body| body != b"first") {
            return Then::Hang;
        }
        exchange.send(answer("200 OK", &[], ""));
        Then::Next
    });
    let keys = [("webhooks.endpoint_concurrency", "3"), ("webhooks.timeout", "1h")];
    let server = started(&folder, &format!("http://{endpoint}/"), &keys);
    // One of which nothing is known has one.
    server.publish(&json!([item("c", "first")]));
    has_landed(&server, "delivered");
    server.publish(&(0..20).map(|n| item("c", &n.to_string())).collect());
    server.wait_metric("fantail_webhook_in_flight", &[], 3.0);
    // Another endpoint's starts when this one's could have, too.
    let other = receiver();
    subscribe(&server, "d", &json!({ "url": format!("http://{other}/") }));
    server.publish(&json!([item("d", "x")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 2.0);
    server.wait_metric("fantail_webhook_in_flight", &[], 3.0);
    assert_eq!(endpoint.requests().len(), 4);
}

/// What waits for one endpoint has a limit of bytes, which a first one may exceed.
#[test]
fn what_waits_for_an_endpoint_has_a_limit_of_bytes() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let keys = [("webhooks.endpoint_queue_bytes", "50000"), ("webhooks.timeout", "1h")];
    let server = started(&folder, &format!("http://{silent}/"), &keys);
    let overflow = |bytes: usize| {
        let receipts = server.receipts(&json!([item("c", &"x".repeat(bytes))]));
        receipts[0]["dropped"]["overflow"].clone()
    };
    assert_eq!([30_000, 30_000, 15_000, 10_000].map(overflow), [0, 1, 0, 1].map(|n| json!(n)));
    subscribe(&server, "d", &json!({ "url": format!("http://{silent}/d") }));
    let receipts = server.receipts(&json!([item("d", &"x".repeat(60_000)), item("d", "x")]));
    let overflow: Vec<&Value> = receipts.iter().map(|receipt| &receipt["dropped"]["overflow"]).collect();
    assert_eq!(json!(overflow), json!([0, 1]));
}

/// Endpoints that are dead fill half of their realm's queue, and no more: the living one gets on.
#[test]
fn the_dead_do_not_fill_the_queue() {
    const DEAD: usize = 60;
    let (folder, living) = (folder(), receiver());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let closed = closed.expect("a port where nobody listens any more");
    let keys = [("webhooks.realm_queue_items", "100"), ("webhooks.retry", r#"["1h"]"#)];
    let server = started(&folder, &format!("http://{living}/"), &keys);
    for n in 0..DEAD {
        subscribe(&server, "c", &json!({ "url": format!("http://{closed}/{n}") }));
    }
    server.publish(&json!([item("c", "first")]));
    let failed = |n: usize| {
        server.wait_metric("fantail_webhook_tries_total", &["result=\"unreachable\""], n as f64);
    };
    failed(DEAD);
    for n in 1..=20 {
        let receipts = server.receipts(&json!([item("c", &n.to_string())]));
        assert_eq!((&receipts[0]["queued"], &receipts[0]["dropped"]["overflow"]), (&json!(1), &json!(DEAD)));
    }
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 21.0);
    server.wait_metric("fantail_webhook_queue", &[], DEAD as f64);
}

/// An item that no endpoint is to get finds no queue full.
#[test]
fn what_is_no_webhook_is_not_refused() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let keys = [("webhooks.realm_queue_items", "1"), ("webhooks.timeout", "1h")];
    let server = started(&folder, &format!("http://{silent}/"), &keys);
    let user = json!({ "user": "ann" });
    let filtered = json!({ "url": format!("http://{silent}/d"), "filters": ["skip-self"], "meta": user, "envelope": true });
    subscribe(&server, "d", &filtered);
    server.publish(&json!([item("c", "fills it")]));
    let stream = |channel| json!({ "channel": channel, "formats": { "http-stream": { "content": "x" } } });
    server.publish(&json!([stream("c")]));
    let mut own = item("d", "x");
    own["meta"] = json!({ "sender": "ann" });
    server.publish(&json!([own]));
    assert_eq!(server.try_publish(&json!([stream("d")])).0, 503, "it is wanted there");
    assert_eq!(server.try_publish(&json!([item("c", "x")])).0, 503);
}

#[test]
fn dead_letters_of_a_realm_have_a_limit() {
    let folder = folder();
    let bad = Origin::fixed(answer("500 No", &[], ""));
    let keys = [("webhooks.retry", "[]"), ("webhooks.realm_dead_letter_bytes", "10000")];
    let urls = ["a", "b"].map(|name| format!("http://{bad}/{name}"));
    let server = started(&folder, &urls[0], &keys);
    subscribe(&server, "c", &json!({ "url": urls[1] }));
    let dead = || -> Vec<usize> {
        let list = |url| ask(&server, "GET", &format!("{}/dead-letters", of("c", url)), &Value::Null).1;
        urls.iter().map(|url| list(url)["dead_letters"].as_array().map_or(0, Vec::len)).collect()
    };
    let body = "x".repeat(3000);
    for n in 1..=4 {
        server.publish(&json!([item("c", &body)]));
        server.wait_metric("fantail_webhook_dead_letters_total", &["cause=\"failed\""], f64::from(2 * n));
    }
    server.wait_until(DEADLINE, "the oldest are forgotten", || dead().iter().sum::<usize>() == 3);
}

/// The realm that has most gives up its oldest.
#[test]
fn dead_letters_of_all_have_a_limit() {
    let folder = folder();
    let bad = Origin::fixed(answer("500 No", &[], ""));
    let config = "[[realm]]\nid = \"small\"\nkeys = [\"a key\"]\n";
    let server = TestServer::start(&["* test"], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy()).config(config);
        options.set("webhooks.allow", "127.0.0.1").set("webhooks.retry", "[]");
        options.set("webhooks.all_dead_letter_bytes", "10000");
    });
    let url = format!("http://{bad}/");
    let fields = [("Content-Type", "application/json"), ("Authorization", "Bearer a key")];
    let small = |method: &str, path: &str, body: &Value| {
        let got =
            server.control(method, &format!("/realm/small{path}"), &fields, body.to_string().as_bytes());
        assert_eq!(got.status(), 200, "{}", got.text());
        serde_json::from_slice::<Value>(&got.body).unwrap_or_default()
    };
    let body = "x".repeat(3000);
    small("POST", "/channel/c/hrq-subscriptions/", &json!({ "url": url }));
    small("POST", "/publish/", &json!({ "items": [item("c", &body)] }));
    server.wait_metric("fantail_webhook_dead_letters_total", &["cause=\"failed\""], 1.0);
    subscribe(&server, "c", &json!({ "url": url }));
    for n in 1..=4 {
        server.publish(&json!([item("c", &body)]));
        server.wait_metric("fantail_webhook_dead_letters_total", &["cause=\"failed\""], f64::from(1 + n));
    }
    let path = format!("{}/dead-letters", of("c", &url));
    let count = |list: Value| list["dead_letters"].as_array().map_or(0, Vec::len);
    server.wait_until(DEADLINE, "the oldest are forgotten", || {
        let mine = count(ask(&server, "GET", &path, &Value::Null).1);
        (mine, count(small("GET", &path, &Value::Null))) == (2, 1)
    });
}

#[test]
fn a_secret_is_used_beside_the_next_for_so_long() {
    let (folder, endpoint) = (folder(), receiver());
    let url = format!("http://{endpoint}/");
    let server = started(&folder, &url, &[("webhooks.secret_overlap", "1h")]);
    let (status, shown) = ask(&server, "POST", &format!("{}/secrets", of("c", &url)), &json!({}));
    assert_eq!(status, 200, "{shown}");
    let now = std::time::UNIX_EPOCH.elapsed().expect("now").as_secs();
    let until = shown["secrets"][1]["until"].as_u64().expect("the old one's end");
    assert!((3500..=3600).contains(&(until - now)), "{shown}");
}

/// The channel of notices may be another, or none.
#[test]
fn notices_have_a_channel() {
    for (channel, told) in [("mine", true), ("", false)] {
        let folder = folder();
        let origin = Origin::answering(|request| hold("stream", &request.target()[1..], &[], ""));
        let gone = Origin::fixed(answer("410 Gone", &[], ""));
        let server = TestServer::start(&[&format!("* {origin}")], |options| {
            options.set("server.data_dir", &folder.path().to_string_lossy());
            options.set("webhooks.allow", "127.0.0.1").set("webhooks.notices", channel);
        });
        let (mut mine, mut usual) = (server.stream("/mine"), server.stream("/fantail-webhooks"));
        subscribe(&server, "c", &json!({ "url": format!("http://{gone}/") }));
        server.publish(&json!([item("c", "x")]));
        server.wait_metric("fantail_webhook_endpoints_disabled_total", &[], 1.0);
        for name in ["mine", "fantail-webhooks"] {
            server.publish_stream(name, "end;");
        }
        usual.expect("end;");
        if told {
            mine.expect("{");
        } else {
            mine.expect("end;");
        }
    }
}

/// Endpoints that do not answer whether they want to be subscribed keep those of other realms from nothing.
#[test]
fn endpoints_of_a_realm_are_asked_so_many_at_once() {
    const MOST: usize = 64;
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let willing = Origin::answering(|request| {
        answer("200 OK", &[], request.target().split_once("hub.challenge=").map_or("", |(_, text)| text))
    });
    let config = format!(
        "[server]\ndata_dir = {:?}\n[webhooks]\nallow = [\"127.0.0.1\"]\ntimeout = \"1h\"\n\
         [[realm]]\nid = \"default\"\nwebhook_verify = true\n\
         [[realm]]\nid = \"two\"\nwebhook_verify = true\nkeys = [\"k\"]\n",
        folder.path()
    );
    let server = TestServer::start(&["* test"], |options| {
        options.config(config);
    });
    let body = |url: String| json!({ "url": url }).to_string();
    let _asked: Vec<Client> = (0..MOST)
        .map(|n| {
            let mut client = Client::connect(server.control);
            let path = "/channel/c/hrq-subscriptions/";
            let host = server.control.to_string();
            let fields = [("Host", host.as_str()), JSON[0]];
            client.request("POST", path, &fields, body(format!("http://{silent}/{n}")).as_bytes());
            client
        })
        .collect();
    server.wait_until(DEADLINE, "all are asked", || silent.requests().len() == MOST);
    let post = |realm: &str, url: String| {
        let path = format!("/realm/{realm}/channel/c/hrq-subscriptions/");
        let answer =
            server.control("POST", &path, &[JSON[0], ("Authorization", "Bearer k")], body(url).as_bytes());
        (answer.status(), answer.text())
    };
    let (status, text) = post("default", format!("http://{willing}/"));
    assert!(status == 400 && text.contains("too many are asked at once"), "{text}");
    assert_eq!(post("two", format!("http://{willing}/")).0, 200);
    silent.stop();
    server.wait_until(DEADLINE, "there is room", || post("default", format!("http://{willing}/")).0 == 200);
}
