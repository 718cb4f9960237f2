//! Classes of vulnerability and the check that each is absent: rows 5, 6, 25 to 28 of the list in
//! SECURITY.md. Request smuggling is in `smuggling`, limits in `limits`, log injection in `metrics`.

use serde_json::json;

use crate::harness::{Origin, TestServer, answer, find, hold, poll_item, stream_item};

fn ok() -> Origin {
    Origin::fixed(answer("200 OK", &[], "fine"))
}

/// What a client posts reaches the origin with a good signature, so it must not look like Fantail's own events.
#[test]
fn events_of_websockets_cannot_be_forged() {
    let origin = ok();
    let server =
        TestServer::start(&[&format!("* {origin},over_http"), &format!("plain.example {origin}")], |_| {});
    let events = "application/websocket-events";
    for kinds in [&[events][..], &["Application/WebSocket-Events ; a=b"], &["text/plain", events]] {
        let fields: Vec<_> = kinds.iter().map(|kind| ("Content-Type", *kind)).collect();
        let got = server.request("POST", "/", &fields, b"OPEN\r\n");
        assert_eq!((got.status(), got.text().lines().count()), (403, 1), "{kinds:?}");
    }
    assert_eq!(origin.requests().len(), 0);
    assert_eq!(server.request("POST", "/", &[("Content-Type", "text/plain")], b"OPEN\r\n").status(), 200);
    let fields = [("Host", "plain.example"), ("Content-Type", events)];
    assert_eq!(server.request("POST", "/", &fields, b"OPEN\r\n").status(), 200);
}

/// Row 5: a client cannot make the proxy drop what it sets, nor pass off its own.
#[test]
fn hop_by_hop_fields_cannot_remove_or_forge_ours() {
    let origin = ok();
    let server = TestServer::start(&[&format!("*,header=X-Ours:1 {origin}")], |o| {
        o.set("proxy.x_forwarded_for", "truncate:0,append");
    });
    let fields = [
        ("Connection", "close, X-Forwarded-For, Grip-Sig, Grip-Feature, X-Ours, Host, Content-Length, X-Hop"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X_Forwarded_For", "6.6.6.6"),
        ("Grip-Sig", "forged"),
        ("Grip_Sig", "forged"),
        ("grip_hold", "forged"),
        ("X-Ours", "forged"),
        ("X_Ours", "forged"),
        ("X-Hop", "dropped"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("X-Forwarded-Proto", "https"),
        ("X_Forwarded_Proto", "https"),
    ];
    server.request("POST", "/", &fields, b"body");
    let seen = origin.request();
    assert_eq!(seen.body, b"body");
    assert_eq!(seen.head.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.head.field("x-ours"), Some("1"));
    assert!(seen.head.field("grip-sig").is_some_and(|s| s.matches('.').count() == 2));
    let shown = format!("{:?}", seen.head);
    assert!(!shown.contains("forged") && !shown.contains("6.6.6.6") && !shown.contains("https"), "{shown}");
    for absent in ["x-hop", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert!(!seen.head.has(absent), "{absent}: {shown}");
    }
}

/// Row 6, from the publisher: 400, and no byte of it reaches a client.
#[test]
fn published_headers_cannot_split_an_answer() {
    let origin = Origin::fixed(hold("response", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/");
    server.wait_pins("poll", 1);
    for evil in ["\r\nX-Evil: 1", "\n\nevil", "\rX-Evil: 1", "\0evil", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"] {
        let text = format!("x{evil}");
        let formats = [
            json!({ "body": "x", "reason": text }),
            json!({ "body": "x", "headers": { "X-A": text } }),
            json!({ "body": "x", "headers": { text.clone(): "x" } }),
            json!({ "body": "x", "headers": [["X-A", text]] }),
            json!({ "body": "x", "headers": [[text, "x"]] }),
        ];
        for format in formats {
            let item = json!({ "channel": "c", "formats": { "http-response": format } });
            let (status, answer) = server.try_publish(&json!([item]));
            assert_eq!(status, 400, "{item}: {answer}");
        }
    }
    let framing =
        json!({ "Content-Length": "0", "Transfer-Encoding": "chunked", "Connection": "close", "X-Ok": "1" });
    let item =
        json!({ "channel": "c", "formats": { "http-response": { "body": "whole", "headers": framing } } });
    server.publish(&json!([item]));
    let got = client.response();
    assert_eq!((got.text().as_str(), got.head.field("x-ok")), ("whole", Some("1")));
    client.get("/");
    origin.wait_requests(2);
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "next")]));
    assert_eq!(client.response().text(), "next");
}

/// Row 6, from the origin: an instruct that would split an answer is refused.
#[test]
fn instructs_cannot_split_an_answer() {
    let bodies: Vec<String> = ["\r\nX-Evil: 1", "\nX-Evil: 1", "\0"]
        .iter()
        .flat_map(|evil| {
            let text = format!("x{evil}");
            [
                json!({ "response": { "headers": { "X-A": text } } }),
                json!({ "response": { "headers": [[text, "x"]] } }),
                json!({ "response": { "reason": text } }),
            ]
        })
        .map(|instruct| instruct.to_string())
        .collect();
    let count = bodies.len();
    let origin = Origin::answering(move |r| {
        let case: usize = r.target()[1..].parse().expect("a number");
        answer("200 OK", &[("Content-Type", "application/grip-instruct")], &bodies[case])
    });
    let server = TestServer::before(&origin);
    for case in 0..count {
        let got = server.get(&format!("/{case}"));
        assert_eq!((got.status(), got.head.has("x-evil")), (502, false), "{case}");
    }
}

/// What is published to a stream stays inside its chunk, whatever its bytes.
#[test]
fn published_content_cannot_end_a_stream() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    let evil = "0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\0\r\n5\r\n";
    server.publish(&json!([stream_item("c", evil), stream_item("c", "next")]));
    client.expect(evil).expect("next");
}

/// Row 25: Fantail asks the origins of its routes and nobody else.
#[test]
fn it_is_no_open_proxy() {
    let (origin, other) = (ok(), ok());
    let server = TestServer::start(&[&format!("only.example {origin}")], |_| {});
    for line in [
        format!("GET http://{other}/ HTTP/1.1\r\nHost: only.example\r\n\r\n"),
        format!("GET http://{other}/ HTTP/1.1\r\nHost: {other}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {other}\r\n\r\n"),
        format!("CONNECT {other} HTTP/1.1\r\nHost: {other}\r\n\r\n"),
        "CONNECT only.example:80 HTTP/1.1\r\nHost: only.example:80\r\n\r\n".into(),
        format!("GET https://user@{other}/ HTTP/1.1\r\nHost: only.example\r\n\r\n"),
        format!("GET //{other}/ HTTP/1.1\r\nHost: x.example\r\n\r\n"),
        format!("GET @{other}/ HTTP/1.1\r\nHost: only.example\r\n\r\n"),
        format!("GET /\\{other}/ HTTP/1.1\r\nHost: only.example\r\n\r\n"),
    ] {
        let got = server.connect().send(&line).response();
        assert!(got.status() >= 400, "{line:?}: {}", got.status());
    }
    let fields = [
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
        ("Pushpin-Route", "x"),
        ("Host", "only.example"),
    ];
    server.request("GET", "/mine", &fields, b"");
    assert_eq!(origin.requests().iter().map(|r| r.target().to_string()).collect::<Vec<_>>(), ["/mine"]);
    assert!(other.requests().is_empty());
}

/// Row 26: the route is chosen by the very bytes that the origin receives.
#[test]
fn a_path_is_judged_as_it_is_sent() {
    let (secret, public) = (ok(), ok());
    let server =
        TestServer::start(&[&format!("*,path_beg=/admin/ {secret}"), &format!("* {public}")], |_| {});
    let mut paths: Vec<String> = Vec::new();
    for dots in ["..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "..;", "..%00", "..%5c", "...", "."] {
        for slash in ["/", "//", "%2f", "%5c", "/;/", "/./"] {
            paths.push(format!("/x{slash}{dots}{slash}admin/x"));
        }
    }
    paths.extend(
        [
            "//admin/x",
            "/;/admin/x",
            "/%61dmin/x",
            "/Admin/x",
            "/admin%2fx",
            "/admin",
            "/./admin/x",
            "/admin/../x",
        ]
        .map(String::from),
    );
    for path in &paths {
        let before = (secret.requests().len(), public.requests().len());
        let got = server.get(path);
        let after = (secret.requests().len(), public.requests().len());
        if got.status() >= 400 {
            assert_eq!(before, after, "{path} was refused and forwarded");
            continue;
        }
        let chosen = if path.starts_with("/admin/") { &secret } else { &public };
        let seen = chosen.requests().pop().unwrap_or_else(|| panic!("{path} went elsewhere"));
        assert_eq!(seen.target(), path);
        assert_eq!(after.0 + after.1, before.0 + before.1 + 1, "{path}");
    }
}

/// Row 27: who can reach the control port can publish, so it is not opened to others without a key.
#[test]
fn a_control_port_for_others_needs_a_key() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let (status, text) = TestServer::refused(&["* test"], |o| {
            o.control(address);
        });
        assert!(!status.success());
        assert!(text.contains("realm") && text.contains("keys"), "it does not say what to set: {text}");
    }
    let server = TestServer::start(&["* test"], |o| {
        o.config("[[realm]]\nid = \"default\"\nkeys = [\"a-key-that-is-long-enough-to-be-one\"]\n");
    });
    let items = json!([stream_item("c", "x")]);
    assert_eq!(server.try_publish(&items).0, 401);
    let body = json!({ "items": items }).to_string();
    let key = [("Authorization", "Bearer a-key-that-is-long-enough-to-be-one")];
    assert_eq!(server.control("POST", "/publish/", &key, body.as_bytes()).status(), 200);
}

/// A port that is open to all is for the names that are listed, whoever else's name points there.
#[test]
fn a_control_port_has_the_names_that_are_listed() {
    let server = TestServer::start(&["* test"], |o| {
        o.control("0.0.0.0:0").config("[control]\nopen = true\nhosts = [\"push.internal\"]\n");
    });
    let status = |host: &str| {
        let mut client = crate::harness::Client::connect(server.control);
        client.send(format!(
            "POST /publish/ HTTP/1.1\r\nHost: {host}\r\nContent-Length: 12\r\n\r\n{{\"items\":[]}}"
        ));
        client.response().status()
    };
    assert_eq!([status("push.internal:5561"), status("10.1.2.3")], [200, 200]);
    assert_eq!(status("evil.example"), 403);
}

/// Rows 21 and 27: a web page on the same machine cannot publish.
#[test]
fn web_pages_cannot_publish() {
    let server = TestServer::start(&["* test"], |_| {});
    let body = br#"{"items":[]}"#;
    for fields in [
        [("Origin", "http://evil.example"), ("X", "")],
        [("Sec-Fetch-Site", "cross-site"), ("X", "")],
        [("Origin", "null"), ("Sec-Fetch-Mode", "no-cors")],
    ] {
        assert_eq!(server.control("POST", "/publish/", &fields, body).status(), 403, "{fields:?}");
    }
    let mut client = crate::harness::Client::connect(server.control);
    let got = client.request("POST", "/publish/", &[("Host", "rebound.example")], body).response();
    assert_eq!(got.status(), 403);
}

/// Row 28: what an origin asks for has limits, and a forged signature is worth nothing.
#[test]
fn an_origins_wishes_have_limits() {
    let origin = Origin::answering(|r| match r.target() {
        "/timeout" => hold("response", "c", &[("Grip-Timeout", "99999999999999999999")], ""),
        "/keep-alive" => hold("stream", "c", &[("Grip-Keep-Alive", "x; timeout=99999999999999999999")], ""),
        "/many" => {
            let names: Vec<_> = (0..5_000).map(|n| n.to_string()).collect();
            let channels: Vec<_> = names.iter().map(|n| json!({ "name": n })).collect();
            let body = json!({ "hold": { "mode": "stream", "channels": channels } }).to_string();
            answer("200 OK", &[("Content-Type", "application/grip-instruct")], body)
        }
        _ => hold("stream", &"c".repeat(5_000), &[], ""),
    });
    let server = TestServer::before(&origin);
    assert_eq!(server.get("/timeout").status(), 502);
    assert_eq!(server.get("/keep-alive").status(), 502);
    assert_eq!(server.get("/long").status(), 502);
    let mut many = server.stream("/many");
    server.wait_metric("fantail_subscriptions", &[], 20.0);
    server.wait_metric("fantail_subscriptions_refused_total", &[], 4_980.0);
    server.publish(&json!(["0", "19", "20"].map(|channel| stream_item(channel, channel))));
    server.publish_stream("1", ".");
    many.expect("019.");
}

/// An answer from one connection never reaches another, even when clients leave in the middle.
#[test]
fn answers_reach_only_who_asked() {
    let origin = Origin::answering(|r| answer("200 OK", &[], r.target().repeat(500)));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.connections", "2");
    });
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for n in 0..60 {
                    let target = format!("/{thread}-{n}");
                    let mut client = server.connect();
                    client.get(&target);
                    if n % 3 == 0 {
                        client.reset();
                        continue;
                    }
                    let got = client.response();
                    assert!(got.text() == target.repeat(500), "a foreign answer for {target}");
                }
            });
        }
    });
    assert!(origin.malformed().is_empty(), "{:?}", origin.malformed());
    assert!(find(format!("{:?}", origin.requests()).as_bytes(), b"//").is_none());
}
