//! What SockJS's own suite of tests asks of a server (sockjs-protocol 0.3.3), as tables of our own: every path, method and
//! body, and what has to be answered. Cases of transports that no browser has any more (WebSocket drafts before RFC 6455)
//! are left out; cookies of load balancers are not Fantail's to set. What is malformed is answered with 400, not 500: it is
//! the client's fault.

use fantail_proto::{
    item::WsKind,
    websocket::{events::Event, frame::Opcode},
};

use crate::harness::{
    Origin, Response, Said, TestServer, WebSocket,
    websocket::{events, opened, over_http, upgrade},
};

fn echo() -> Origin {
    over_http(
        |_| opened(&[]),
        |_, said| {
            let back = said.into_iter().filter_map(|event| match event {
                Event::Message(WsKind::Text, content) if content == "close" => {
                    Some(Event::Close(Some((3000, "Go away!".into()))))
                }
                Event::Message(kind @ WsKind::Text, content) => {
                    Some(Event::Message(kind, [b"m:", &*content].concat().into()))
                }
                Event::Close(close) => Some(Event::Close(close)),
                _ => None,
            });
            events(&back.collect::<Vec<_>>())
        },
    )
}

fn started(origin: &Origin) -> TestServer {
    TestServer::start(&[&format!("*,sockjs=/echo {origin},over_http")], |options| {
        options.set("server.shards", "2");
    })
}

fn ask(server: &TestServer, method: &str, below: &str, fields: &[(&str, &str)], body: &str) -> Response {
    server.request(method, &format!("/echo{below}"), fields, body.as_bytes())
}

fn post(server: &TestServer, below: &str, body: &str) -> Response {
    ask(server, "POST", below, &[], body)
}

fn is_kept_for_ever(response: &Response) {
    let control = response.head.field("cache-control").unwrap_or_default();
    assert!(control.contains("public") && control.contains("max-age=31536000"), "{control}");
    assert!(!response.head.has("set-cookie"));
}

fn is_open_to_all(response: &Response, page: Option<&str>) {
    assert_eq!(response.head.field("access-control-allow-origin"), Some(page.unwrap_or("*")));
    assert_eq!(response.head.field("access-control-allow-credentials"), page.map(|_| "true"));
}

#[test]
fn the_base_and_what_is_not_there() {
    let origin = echo();
    let server = started(&origin);
    for below in ["", "/"] {
        let got = ask(&server, "GET", below, &[], "");
        assert_eq!((got.status(), got.text().as_str()), (200, "Welcome to SockJS!\n"));
        assert_eq!(got.head.field("content-type"), Some("text/plain; charset=UTF-8"));
        assert!(!got.head.has("set-cookie"));
    }
    for below in ["/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/", "/a/a/x", "/info/", "/iframe"] {
        assert_eq!(ask(&server, "GET", below, &[], "").status(), 404, "{below}");
    }
}

#[test]
fn iframe_pages() {
    let origin = echo();
    let server = started(&origin);
    for below in [
        "/iframe.html",
        "/iframe-a.html",
        "/iframe-.html",
        "/iframe-0.1.2.html",
        "/iframe-0.1.2abc-dirty.2144.html",
        "/iframe-a.html?t=1234",
        "/iframe-0.1.2.html?t=123414",
        "/iframe-0.1.2abc-dirty.2144.html?t=qweqweq123",
    ] {
        let page = ask(&server, "GET", below, &[], "");
        assert_eq!((page.status(), page.head.field("content-type")), (200, Some("text/html; charset=UTF-8")));
        is_kept_for_ever(&page);
        let tag = page.head.field("etag").expect("a tag").to_owned();
        let again = ask(&server, "GET", below, &[], "");
        assert_eq!(again.head.field("etag"), Some(tag.as_str()), "{below}");
        let known = ask(&server, "GET", below, &[("If-None-Match", &tag)], "");
        assert_eq!((known.status(), known.body.len()), (304, 0), "{below}");
        assert!(!known.head.has("content-type"));
        for part in ["<!DOCTYPE html>", "SockJS.bootstrap_iframe();"] {
            assert!(page.text().contains(part), "{part}");
        }
    }
    for below in
        ["/iframe.htm", "/iframe", "/IFRAME.HTML", "/IFRAME", "/iframe.HTML", "/iframe.xml", "/iframe-/.html"]
    {
        assert_eq!(ask(&server, "GET", below, &[], "").status(), 404, "{below}");
    }
}

#[test]
fn information() {
    let origin = echo();
    let server = started(&origin);
    let mut entropies = Vec::new();
    for page in [None, Some("http://a.b"), Some("null")] {
        let fields: Vec<_> = page.map(|page| ("Origin", page)).into_iter().collect();
        let got = ask(&server, "GET", "/info", &fields, "");
        assert_eq!(got.status(), 200);
        assert_eq!(got.head.field("content-type"), Some("application/json; charset=UTF-8"));
        assert!(got.head.field("cache-control").is_some_and(|control| control.contains("no-store")));
        is_open_to_all(&got, page.filter(|page| *page != "null"));
        let info: serde_json::Value = serde_json::from_slice(&got.body).expect("JSON");
        assert_eq!((&info["websocket"], &info["cookie_needed"]), (&true.into(), &false.into()));
        assert_eq!(info["origins"], serde_json::json!(["*:*"]));
        entropies.push(info["entropy"].as_u64().expect("a number"));
    }
    entropies.dedup();
    assert!(entropies.len() > 1, "it is random");
}

#[test]
fn preflights() {
    let origin = echo();
    let server = started(&origin);
    for (below, methods) in [
        ("/info", "OPTIONS, GET"),
        ("/abc/abc/xhr", "OPTIONS, POST"),
        ("/abc/abc/xhr_send", "OPTIONS, POST"),
        ("/abc/abc/xhr_streaming", "OPTIONS, POST"),
        ("/abc/abc/eventsource", "OPTIONS, GET"),
    ] {
        for page in [None, Some("http://test.sockjs")] {
            let mut fields = vec![("Access-Control-Request-Headers", "a, b, c")];
            fields.extend(page.map(|page| ("Origin", page)));
            let got = ask(&server, "OPTIONS", below, &fields, "");
            assert_eq!((got.status(), got.body.len()), (204, 0), "{below}");
            is_kept_for_ever(&got);
            assert_eq!(got.head.field("access-control-max-age"), Some("31536000"));
            assert_eq!(got.head.field("access-control-allow-methods"), Some(methods), "{below}");
            assert_eq!(got.head.field("access-control-allow-headers"), Some("a, b, c"));
            is_open_to_all(&got, page);
        }
        let got = ask(&server, "OPTIONS", below, &[], "");
        assert!(!got.head.has("access-control-allow-headers"));
    }
}

#[test]
fn addresses_of_sessions() {
    let origin = echo();
    let server = started(&origin);
    for (n, below) in ["/a/a", "/_/_", "/1/1", "/abcdefgh_i-j%20/abcdefg_i-j%20"].iter().enumerate() {
        let got = post(&server, &format!("{below}{n}/xhr"), "");
        assert_eq!((got.status(), got.text().as_str()), (200, "o\n"), "{below}");
    }
    for below in ["/", "/a./a", "/a/a.", "/./.", "", "//", "/a"] {
        for transport in ["/xhr", "/xhr_send", "/xhr_streaming"] {
            assert_eq!(post(&server, &format!("{below}{transport}"), "").status(), 404, "{below}{transport}");
        }
    }
    // The first part is for load balancers: it is the same session.
    assert_eq!(post(&server, "/000/same/xhr", "").text(), "o\n");
    assert_eq!(post(&server, "/999/same/xhr_send", r#"["a"]"#).status(), 204);
    assert_eq!(post(&server, "/333/same/xhr", "").text(), "a[\"a\"]\n");
}

#[test]
fn a_simple_session() {
    let origin = echo();
    let server = started(&origin);
    let opening = ask(&server, "POST", "/0/s/xhr", &[("Origin", "http://a.b")], "");
    assert_eq!((opening.status(), opening.text().as_str()), (200, "o\n"));
    assert_eq!(opening.head.field("content-type"), Some("application/javascript; charset=UTF-8"));
    is_open_to_all(&opening, Some("http://a.b"));
    let sent = ask(&server, "POST", "/0/s/xhr_send", &[("Origin", "http://a.b")], r#"["a"]"#);
    assert_eq!((sent.status(), sent.body.len()), (204, 0));
    is_open_to_all(&sent, Some("http://a.b"));
    assert_eq!(post(&server, "/0/s/xhr", "").text(), "a[\"a\"]\n");
    assert_eq!(post(&server, "/000/bad_session/xhr_send", r#"["a"]"#).status(), 404);
    // Twice, and what is said then is for nobody.
    assert_eq!(post(&server, "/0/s/xhr_send", r#"["close"]"#).status(), 204);
    for _ in 0..2 {
        server.wait_until(crate::harness::DEADLINE, "a close", || {
            post(&server, "/0/s/xhr", "").text() == "c[3000,\"Go away!\"]\n"
        });
    }
}

#[test]
fn bodies_that_are_sent() {
    let origin = echo();
    let server = started(&origin);
    assert_eq!(post(&server, "/0/s/xhr", "").text(), "o\n");
    for (body, why) in
        [("[\"x", "Broken JSON encoding."), ("", "Payload expected."), ("{\"a\":1}", "Broken JSON encoding.")]
    {
        let got = post(&server, "/0/s/xhr_send", body);
        assert_eq!((got.status(), got.text().trim()), (400, why), "{body}");
    }
    for kind in [
        "text/plain",
        "T",
        "application/json",
        "application/xml",
        "",
        "application/json; charset=utf-8",
        "text/xml; charset=utf-8",
        "text/xml",
    ] {
        let got = ask(&server, "POST", "/0/s/xhr_send", &[("Content-Type", kind)], r#"["a"]"#);
        assert_eq!((got.status(), got.body.len()), (204, 0), "{kind}");
    }
    let mut all = String::new();
    while all.matches("\"a\"").count() < 8 {
        all.push_str(&post(&server, "/0/s/xhr", "").text());
    }

    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    assert_eq!(ask(&server, "GET", "/0/j/jsonp?c=x", &[], "").text(), "/**/x(\"o\");\r\n");
    for (body, why) in [
        ("d=%5B%22x", "Broken JSON encoding."),
        ("", "Payload expected."),
        ("d=", "Payload expected."),
        ("p=p", "Payload expected."),
    ] {
        let got = ask(&server, "POST", "/0/j/jsonp_send", &form, body);
        assert_eq!((got.status(), got.text().trim()), (400, why), "{body}");
    }
    for (kind, body) in [
        ("application/x-www-form-urlencoded", "d=%5B%22abc%22%5D"),
        ("text/plain", "[\"%61bc\"]"),
        ("application/x-www-form-urlencoded", "d=%5B%22%26%26%22%5D"),
    ] {
        let got = ask(&server, "POST", "/0/j/jsonp_send", &[("Content-Type", kind)], body);
        assert_eq!((got.status(), got.text().as_str()), (200, "ok"), "{body}");
    }
    let mut all = String::new();
    while all.matches("\\\"").count() < 6 {
        all.push_str(&ask(&server, "GET", "/0/j/jsonp?c=%63allback", &[], "").text());
    }
    assert!(all.contains("/**/callback(\"a["), "{all}");
    for part in ["abc", "%61bc", "&&"] {
        assert!(all.contains(part), "{all}");
    }
}

#[test]
fn callbacks() {
    let origin = echo();
    let server = started(&origin);
    for transport in ["jsonp", "htmlfile"] {
        for query in ["", "?c=", "?c=%20", "?c=*", "?c=abc(", "?c=abc%28", "?c=a%3B"] {
            let got = ask(&server, "GET", &format!("/a/a/{transport}{query}"), &[], "");
            assert_eq!(got.status(), 400, "{transport}{query}");
            assert!(got.text().contains("\"callback\" parameter required"), "{transport}{query}");
        }
    }
    assert!(origin.requests().is_empty(), "no session was opened");
}

#[test]
fn streams() {
    let origin = echo();
    let server = started(&origin);
    for (transport, method, prelude, open, echoed) in [
        ("xhr_streaming", "POST", format!("{}\n", "h".repeat(2048)), "o\n", "a[\"x\"]\n"),
        ("eventsource", "GET", "\r\n".to_owned(), "data: o\r\n\r\n", "data: a[\"x\"]\r\n\r\n"),
    ] {
        let mut client = server.connect();
        client.request(method, &format!("/echo/0/{transport}/{transport}"), &[("Origin", "http://a.b")], b"");
        let head = client.head();
        assert_eq!(head.status(), 200);
        assert!(
            head.field("cache-control").is_some_and(|control| control.contains("no-store")),
            "{transport}"
        );
        assert_eq!(head.field("access-control-allow-origin"), Some("http://a.b"));
        client.expect(&prelude).expect(open);
        assert_eq!(post(&server, &format!("/0/{transport}/xhr_send"), r#"["x"]"#).status(), 204);
        client.expect(echoed);
        // A second one is turned away, and the first goes on.
        let second = post(&server, &format!("/0/{transport}/xhr"), "");
        assert_eq!(second.text(), "c[2010,\"Another connection still open\"]\n");
        assert_eq!(post(&server, &format!("/0/{transport}/xhr_send"), r#"["x"]"#).status(), 204);
        client.expect(echoed);
        // One that is broken off ends the session, with 1002 for who asks.
        drop(client);
        server.wait_until(crate::harness::DEADLINE, "an interruption", || {
            post(&server, &format!("/0/{transport}/xhr"), "").text() == "c[1002,\"Connection interrupted\"]\n"
        });
    }
    let mut file = server.connect();
    file.get("/echo/0/h/htmlfile?c=%63allback");
    assert_eq!(file.head().field("content-type"), Some("text/html; charset=UTF-8"));
    let page = String::from_utf8(file.content(1024)).expect("UTF-8");
    for part in ["<!doctype html>", "var c = parent.callback;", "c.start();", "function p(d) {c.message(d);}"]
    {
        assert!(page.contains(part), "{page}");
    }
}

/// HTTP/1.0, as behind old proxies: polls may keep the connection, streams end with it.
#[test]
fn old_http() {
    let origin = echo();
    let server = started(&origin);
    let mut client = server.connect();
    client.send(
        "POST /echo/0/s/xhr HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    );
    let got = client.response();
    assert_eq!((got.text().as_str(), got.head.field("content-length")), ("o\n", Some("2")));
    client.send("POST /echo/0/t/xhr_streaming HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    let head = client.head();
    assert!(!head.has("transfer-encoding") && !head.has("content-length"));
    client.expect(&"h".repeat(2048)).expect("\no\n");
}

#[test]
fn websockets() {
    let origin = echo();
    let server = started(&origin);
    for below in ["/0/0/websocket", "/websocket"] {
        let got = ask(&server, "GET", below, &[], "");
        assert_eq!(
            (got.status(), got.text().trim()),
            (400, "Can \"Upgrade\" only to \"WebSocket\"."),
            "{below}"
        );
        for method in ["POST", "PUT", "DELETE"] {
            let got = ask(&server, method, below, &[], "");
            assert_eq!(
                (got.status(), got.head.field("allow")),
                (405, Some("OPTIONS, GET")),
                "{method} {below}"
            );
        }
        let mut client = server.connect();
        let closing =
            upgrade(&format!("/echo{below}"), &[]).replace("Connection: Upgrade", "Connection: close");
        client.send(closing);
        assert_eq!(client.head().status(), 400, "{below}");
    }
    for round in 0..2 {
        // The same session twice: each WebSocket is one of its own.
        let mut client = WebSocket::open(&server, "/echo/000/same/websocket");
        client.expect_text("o");
        client.text("[\"a\"]").expect_text("a[\"a\"]");
        client.text("\"b\"").expect_text("a[\"b\"]");
        client.text("").text("[\"c\"]").expect_text("a[\"c\"]");
        match round {
            0 => client.text("[\"close\"]").expect_text("c[3000,\"Go away!\"]"),
            _ => client.text("[\"a"),
        };
        assert!(matches!(client.next(), Said::Close(_) | Said::Gone));
    }
    let mut raw = WebSocket::open(&server, "/echo/websocket");
    raw.text("Hello world!\u{ffff}").expect_text("Hello world!\u{ffff}");
    raw.send(Opcode::Ping, b"p");
    raw.text("close");
    assert!(matches!(raw.next(), Said::Close(_) | Said::Pong(_)));
}

/// Characters that browsers have spoilt somewhere: what is said comes back, and frames have those escaped that a page may
/// not be sent.
#[test]
fn characters() {
    let origin = echo();
    let server = started(&origin);
    let killers: String = (0..0x20u32)
        .chain(0x600..0x605)
        .chain([0x70f, 0x17b4, 0x17b5])
        .chain(0x200c..0x2010)
        .chain(0x2028..0x2030)
        .chain(0x2060..0x2070)
        .chain([0xfeff, 0xfff0, 0xfffe, 0xffff, 0x1f600, 0x22, 0x5c, 0x7f])
        .filter_map(char::from_u32)
        .collect();
    assert_eq!(post(&server, "/0/s/xhr", "").text(), "o\n");
    let body = serde_json::to_string(&[&killers]).expect("JSON");
    assert_eq!(post(&server, "/0/s/xhr_send", &body).status(), 204);
    let got = post(&server, "/0/s/xhr", "").text();
    let list: Vec<String> = serde_json::from_str(got.trim_start_matches('a')).expect("a list");
    assert_eq!(list, [killers]);
    for spoilt in ['\u{0}', '\u{1f}', '\u{200c}', '\u{2028}', '\u{2029}', '\u{fff0}', '\u{ffff}'] {
        assert!(!got.contains(spoilt), "{spoilt:?} is escaped");
    }
    // Halves of pairs are no characters.
    assert_eq!(post(&server, "/0/s/xhr_send", r#"["\ud800"]"#).status(), 204);
    assert_eq!(post(&server, "/0/s/xhr", "").text(), "a[\"\u{fffd}\"]\n".replace('\u{fffd}', "\\ufffd"));
}
