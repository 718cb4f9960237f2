//! The control port as publishers see it: answers, receipts, duplicates, realms (checks 54, 56, 57).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use crate::harness::{Client, JSON, Origin, TestServer, hold, stream_item};

fn holding() -> Origin {
    Origin::answering(|r| hold("stream", r.target().trim_start_matches('/'), &[], ""))
}

/// Check 54.
#[test]
fn an_id_is_delivered_once_a_channel() {
    let origin = holding();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("hub.id_ttl", "1s");
    });
    let (mut a, mut b) = (server.stream("/a"), server.stream("/b"));
    let item = |channel: &str, content: &str| json!({ "channel": channel, "id": "1", "formats": { "http-stream": { "content": content } } });
    server.publish(&json!([item("a", "first;"), item("a", "again;"), item("b", "other;")]));
    let receipt = server.receipts(&json!([item("a", "again;")]));
    assert_eq!((&receipt[0]["duplicate"], &receipt[0]["delivered"]), (&json!(true), &json!(0)));
    a.expect("first;");
    b.expect("other;");
    server.wait_until(Duration::from_secs(5), "the id is forgotten", || {
        server.receipts(&json!([item("a", "later;")]))[0]["duplicate"] == false
    });
    a.expect("later;");
    assert!(server.metric("fantail_items_total", &["result=\"duplicate\""]) >= 2.0);
}

/// An id is seen although nobody listened: an item repeated by a publisher that got no answer.
#[test]
fn an_id_counts_without_subscribers() {
    let origin = holding();
    let server = TestServer::before(&origin);
    let item = json!([{ "channel": "a", "id": "1", "formats": { "http-stream": { "content": "x" } } }]);
    server.publish(&item);
    let mut client = server.stream("/a");
    assert_eq!(server.receipts(&item)[0]["duplicate"], true);
    server.publish_stream("a", "new");
    client.expect("new");
}

/// Check 56.
#[test]
fn the_control_port_answers_as_publishers_expect() {
    let server = TestServer::start(&["* test"], |_| {});
    let good = br#"{"items":[]}"#;
    for path in ["/publish", "/publish/"] {
        let got = server.control("POST", path, &JSON, good);
        assert_eq!((got.status(), got.text().as_str()), (200, "Published\n"));
        assert_eq!(got.head.field("content-type"), Some("text/plain"));
    }
    let accept = |value| server.control("POST", "/publish/", &[("Accept", value)], good);
    assert_eq!(accept("application/json").text(), "{\"message\":\"Published\"}\n");
    assert_eq!(accept("application/json, */*").text(), "Published\n");
    assert_eq!(accept("image/png").status(), 406);
    let got = server.control("GET", "/publish/", &[], b"");
    assert_eq!((got.status(), got.head.field("allow")), (405, Some("POST")));
    assert_eq!(got.text(), "Method not allowed: GET.\n");
    assert_eq!(server.control("GET", "/nowhere", &[], b"").status(), 404);
    assert_eq!(server.control("GET", "/", &[], b"").status(), 200);
    assert_eq!(server.control("GET", "/healthz", &[], b"").text(), "ok\n");
    assert_eq!(server.control("GET", "/readyz", &[], b"").status(), 200);

    let mut client = Client::connect(server.control);
    client.send("POST /publish/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send_part("c\r\n{\"items\":[]}\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "Published\n");
    let large = vec![b' '; 1_000_001];
    assert_eq!(server.control("POST", "/publish/", &JSON, &large).status(), 413);
}

/// Checks 56 and 57: all items or none, and the text says what was wrong.
#[test]
fn bad_items_are_refused_and_none_is_published() {
    let origin = holding();
    let server = TestServer::before(&origin);
    let mut client = server.stream("/c");
    let stream = |format: Value| json!({ "channel": "c", "formats": { "http-stream": format } });
    let response = |format: Value| json!({ "channel": "c", "formats": { "http-response": format } });
    let bad = [
        json!({ "formats": {} }),
        json!({ "channel": 1, "formats": { "http-stream": { "content": "x" } } }),
        json!({ "channel": "c" }),
        json!({ "channel": "c", "formats": {} }),
        json!({ "channel": "c", "id": null, "formats": { "http-stream": { "content": "x" } } }),
        json!({ "channel": "c", "prev-id": 1, "formats": { "http-stream": { "content": "x" } } }),
        json!({ "channel": "c", "meta": { "a": 1 }, "formats": { "http-stream": { "content": "x" } } }),
        json!({ "channel": "c", "no-seq": "yes", "formats": { "http-stream": { "content": "x" } } }),
        json!({ "channel": "c", "size": -1, "formats": { "http-stream": { "content": "x" } } }),
        stream(json!({})),
        stream(json!({ "content": 1 })),
        stream(json!({ "content": null })),
        stream(json!({ "action": "explode" })),
        response(json!({})),
        response(json!({ "body": "x", "code": "many" })),
        response(json!({ "body": "x", "code": 1000 })),
        response(json!({ "body": "x", "code": 100 })),
        response(json!({ "body": "x", "headers": { "a b": "c" } })),
        response(json!({ "body": "x", "headers": [["a"]] })),
        response(json!({ "body-patch": [{ "op": "fly", "path": "/" }] })),
        json!("not an object"),
        Value::Null,
    ];
    for item in &bad {
        let (status, text) = server.try_publish(&json!([stream_item("c", "never"), item]));
        assert_eq!(status, 400, "{item}: {text}");
        assert!(text.starts_with("Invalid format: ") && text.trim_end().len() > 16, "{item}: {text:?}");
    }
    let raw = |body: &str| {
        let got = server.control("POST", "/publish/", &JSON, body.as_bytes());
        (got.status(), got.text())
    };
    assert_eq!(raw("{"), (400, "Body is not valid JSON.\n".into()));
    assert_eq!(raw("[]"), (400, "Invalid format.\n".into()));
    assert_eq!(raw("{}"), (400, "Invalid format: object does not contain 'items'\n".into()));
    let wrong = "Invalid format: object contains 'items' with wrong type\n";
    assert_eq!(raw(r#"{"items":{}}"#), (400, wrong.into()));

    let fine = [
        json!({ "channel": "c", "http-stream": { "content": "legacy;" } }),
        json!({ "channel": "c", "formats": { "http-response": { "code": "201", "body": "" } } }),
        json!({ "channel": "c", "formats": { "fpp": {} }, "unknown": null }),
        json!({ "channel": "", "formats": { "http-stream": { "content": "x" } } }),
        stream_item("c", "end"),
    ];
    server.publish(&json!(fine));
    client.expect("legacy;end");
}

#[test]
fn a_receipt_counts_each_subscriber_once() {
    let origin = holding();
    let server = TestServer::before(&origin);
    let clients: Vec<_> = (0..7).map(|_| server.stream("/c")).collect();
    let receipt = server.receipts(&json!([
        { "channel": "c", "id": "x", "formats": { "http-stream": { "content": "a" } } },
        stream_item("nobody", "b"),
    ]));
    let dropped = json!({ "filter": 0, "gone": 0, "overflow": 0 });
    assert_eq!(
        receipt[0],
        json!({ "channel": "c", "id": "x", "duplicate": false, "order": null, "delivered": 7, "queued": 0,
                "filtered": 0, "recovered": 0, "left_to_log": 0, "passed_over": 0, "dropped": dropped })
    );
    assert_eq!((&receipt[1]["delivered"], &receipt[1]["dropped"]), (&json!(0), &dropped));
    drop(clients);
    server.wait_pins("stream", 0);
    assert_eq!(server.receipts(&json!([stream_item("c", "b")]))[0]["delivered"], 0);
}

fn token(issuer: &str, key: &str, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({ "iss": issuer, "exp": now.saturating_add_signed(seconds) });
    let key = EncodingKey::from_secret(key.as_bytes());
    format!("Bearer {}", jsonwebtoken::encode(&Header::default(), &claims, &key).expect("a token"))
}

const REALMS: &str = "
[[realm]]
id = \"a\"
keys = [\"key-of-a-that-is-long-enough-to-sign\", \"the-next-key-of-a-also-long-enough\"]
[[realm]]
id = \"b\"
keys = [\"key-of-b-that-is-long-enough-to-sign\"]
";

#[test]
fn a_realm_has_its_own_channels_and_keys() {
    let origin = holding();
    let routes =
        [format!("a.example,realm=a {origin}"), format!("b.example,realm=b {origin}"), format!("* {origin}")];
    let routes: Vec<_> = routes.iter().map(String::as_str).collect();
    let server = TestServer::start(&routes, |o| {
        o.config(REALMS);
    });
    let hold = |host: &str| {
        let mut client = server.connect();
        client.request("GET", "/c", &[("Host", host)], b"").head();
        client
    };
    let (mut a, mut b, mut default) = (hold("a.example"), hold("b.example"), hold("c.example"));
    let key_a = "key-of-a-that-is-long-enough-to-sign";
    let publish = |path: &str, authorization: &str, content: &str| {
        let body = json!({ "items": [stream_item("c", content)] }).to_string();
        let got = server.control("POST", path, &[("Authorization", authorization)], body.as_bytes());
        (got.status(), got.text(), got.head.has("www-authenticate"))
    };
    assert_eq!(publish("/realm/a/publish/", &token("a", key_a, 60), "jwt;").0, 200);
    let next = token("a", "the-next-key-of-a-also-long-enough", 60);
    assert_eq!(publish("/realm/a/publish/", &next, "rotated;").0, 200);
    assert_eq!(publish("/realm/a/publish/", &format!("Bearer {key_a}"), "bare;").0, 200);
    let older = json!({ "items": [{ "http-stream": { "content": "older;" } }] }).to_string();
    let signed = token("a", key_a, 60);
    let got = server.control("POST", "/realm/a/publish/c/", &[("Authorization", &signed)], older.as_bytes());
    assert_eq!(got.status(), 200);

    let refusals = [
        publish("/realm/b/publish/", &token("a", key_a, 60), "x"),
        publish("/realm/b/publish/", &token("b", key_a, 60), "x"),
        publish("/realm/a/publish/", &token("b", key_a, 60), "x"),
        publish("/realm/a/publish/", &token("a", key_a, -60), "x"),
        publish("/realm/a/publish/", "Bearer x", "x"),
        publish("/realm/absent/publish/", &token("absent", key_a, 60), "x"),
    ];
    for refusal in &refusals {
        assert_eq!((refusal.0, refusal.2), (401, true), "{refusal:?}");
        assert_eq!(refusal.1, refusals[5].1, "a realm that does not exist is refused the same way");
    }
    assert_eq!(publish("/publish/", "Bearer anything", "plain").0, 200);
    a.expect("jwt;rotated;bare;older;");
    default.expect("plain");
    assert_eq!(
        publish("/realm/b/publish/", &token("b", "key-of-b-that-is-long-enough-to-sign", 60), "b").0,
        200
    );
    b.expect("b");
}

/// A place that one realm's connection has left is taken by another's, and so is that of its channel.
#[test]
fn a_place_that_is_used_again_keeps_realms_apart() {
    let origin = holding();
    let routes = [format!("a.example,realm=a {origin}"), format!("b.example,realm=b {origin}")];
    let server = TestServer::start(&[&routes[0], &routes[1]], |o| {
        o.config(REALMS).set("server.shards", "1");
    });
    let delivered = |realm: &str, content: &str| {
        let key = format!("Bearer key-of-{realm}-that-is-long-enough-to-sign");
        let body = json!({ "items": [stream_item("c", content)] }).to_string();
        let path = format!("/realm/{realm}/publish/?receipt=true");
        let got = server.control("POST", &path, &[("Authorization", &key)], body.as_bytes());
        let receipt: Value = serde_json::from_slice(&got.body).expect("JSON");
        receipt["items"][0]["delivered"].as_u64().expect("a number")
    };
    for round in 0..20 {
        let (own, other) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let mut client = server.connect();
        client.request("GET", "/c", &[("Host", &format!("{own}.example"))], b"").head();
        assert_eq!((delivered(other, "theirs;"), delivered(own, "ours;")), (0, 1), "round {round}");
        client.expect("ours;");
        drop(client);
        server.wait_pins("stream", 0);
    }
}

/// No label, answer or page of one realm names another's channels.
#[test]
fn a_realms_names_stay_in_the_realm() {
    let origin = Origin::fixed(hold("stream", "secret-channel", &[], ""));
    let server = TestServer::start(&[&format!("*,realm=a {origin}")], |o| {
        o.config(REALMS);
    });
    let _held = server.stream("/");
    let metrics = server.control("GET", "/metrics", &[], b"").text();
    assert!(!metrics.contains("secret-channel") && !metrics.contains("realm"), "{metrics}");
    let receipt = server.receipts(&json!([stream_item("secret-channel", "x")]));
    assert_eq!(receipt[0]["delivered"], 0, "the default realm has no such subscriber");
}

#[test]
fn publishers_keep_their_connections() {
    let server = TestServer::start(&["* test"], |_| {});
    let mut client = Client::connect(server.control);
    for _ in 0..10 {
        client.request("POST", "/publish/", &[("Host", "localhost")], br#"{"items":[]}"#);
    }
    for _ in 0..10 {
        assert_eq!(client.response().text(), "Published\n");
    }
}
