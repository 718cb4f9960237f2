//! JSON-P: scripts as requests, of routes with `aco` (check 73).

use serde_json::json;

use crate::harness::{Origin, TestServer, answer, hold, poll_item};

fn before(origin: &Origin, more: &str) -> TestServer {
    TestServer::start(&[&format!("*,aco{more} {origin}")], |_| {})
}

#[test]
fn a_script_is_a_request_of_any_kind() {
    let origin =
        Origin::fixed(answer("201 Created", &[("X-A", "1"), ("Cache-Control", "no-store")], "</script>\n"));
    let server = before(&origin, "");
    let target = "/a?x=1&callback=my.cb&_method=PUT&_body=b+c&_headers=%7B%22X-B%22%3A%222%22%2C%22Cookie%22%3A%22a%22%7D";
    let got = server.request("GET", target, &[("Accept-Encoding", "gzip"), ("X-C", "3")], b"");
    assert_eq!(got.status(), 200);
    assert_eq!(got.head.field("content-type"), Some("application/javascript"));
    assert_eq!(got.head.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(got.head.field("cache-control"), Some("no-store"));
    assert!(!got.head.has("access-control-allow-origin") && !got.head.has("x-a"));
    let text = got.text();
    assert!(text.starts_with("/**/my.cb({\"code\": 201, \"reason\": \"Created\", \"headers\": {"), "{text}");
    assert!(text.contains("\"X-A\": \"1\""), "{text}");
    assert!(text.ends_with("}, \"body\": \"\\u003c/script>\\n\"});\n"), "{text}");
    let asked = origin.request();
    assert_eq!((asked.method(), asked.target(), &asked.body[..]), ("PUT", "/a?x=1", &b"b c"[..]));
    let fields = ["x-b", "x-c", "accept", "accept-encoding", "cookie"].map(|name| asked.head.field(name));
    assert_eq!(fields, [Some("2"), Some("3"), Some("*/*"), None, None]);
}

#[test]
fn basic_mode_gives_the_body_if_that_is_json() {
    let origin = Origin::answering(|r| match r.target() {
        "/json" => answer("200 OK", &[], "{\"a\": 1}\n"),
        _ => answer("200 OK", &[], "alert(1)"),
    });
    let server = before(&origin, ",jsonp_mode=basic,jsonp_cb=f,jsonp_body=q,jsonp_defcb=d");
    assert_eq!(server.get("/json?f=cb").text(), "/**/cb({\"a\": 1});\n");
    assert_eq!(origin.request().method(), "POST");
    assert_eq!(server.get("/json?q=%7B%7D").text(), "/**/d({\"a\": 1});\n");
    let asked = origin.requests().pop().unwrap();
    assert_eq!((asked.head.field("content-type"), &asked.body[..]), (Some("application/json"), &b"{}"[..]));
    let wrong = server.get("/other?f=cb");
    assert_eq!(
        (wrong.status(), wrong.text()),
        (500, "Upstream response could not be JSON-P encoded.\n".into())
    );
}

#[test]
fn long_polls_are_answered_by_a_call() {
    let origin = Origin::answering(|r| match r.target() {
        "/poll" => hold("response", "c", &[("X-Stored", "1")], ""),
        "/stream" => hold("stream", "c", &[], ""),
        _ => answer("200 OK", &[("Grip-Status", "202")], "instructed"),
    });
    let server = before(&origin, "");
    let mut client = server.connect();
    client.get("/poll?callback=cb");
    server.wait_pins("poll", 1);
    server.publish(&json!([poll_item("c", "answered")]));
    let got = client.response();
    assert_eq!((got.status(), got.head.field("x-stored")), (200, None));
    let text = got.text();
    assert!(text.starts_with("/**/cb({\"code\": 200, ") && text.contains("\"X-Stored\": \"1\""), "{text}");
    assert!(text.ends_with("\"body\": \"answered\"});\n"), "{text}");
    let text = server.get("/plain?callback=cb").text();
    assert!(
        text.starts_with("/**/cb({\"code\": 202, ") && text.ends_with("\"body\": \"instructed\"});\n"),
        "{text}"
    );
    let text = server.get("/stream?callback=cb").text();
    assert!(text.starts_with("/**/cb({\"code\": 502, "), "{text}");
}

#[test]
fn only_names_are_called_and_only_where_the_route_says() {
    let origin = Origin::fixed(answer("200 OK", &[], "hello"));
    let server = before(&origin, "");
    for hostile in ["alert(1)//", "%3Cscript%3E", "a%0Ab", "a;b", "", "%ff"] {
        let got = server.get(&format!("/?callback={hostile}"));
        assert_eq!((got.status(), got.text()), (400, "Invalid callback parameter.\n".into()), "{hostile}");
    }
    assert!(origin.requests().is_empty());
    assert_eq!(server.request("POST", "/?callback=cb", &[], b"").text(), "hello");
    let plain = TestServer::before(&origin);
    assert_eq!(plain.get("/?callback=alert(1)").text(), "hello");
}
