//! Plain proxying: what the origin sees of a request and the client of an answer (checks 1–20).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use crate::harness::{Client, DEADLINE, Framing, Origin, TestServer, Then, answer, hold};

fn ok() -> Origin {
    Origin::fixed(answer("200 OK", &[], "fine"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn claims(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Value {
    let mut rules = Validation::new(algorithm);
    rules.validate_aud = false;
    jsonwebtoken::decode::<Value>(token, key, &rules).expect("a good signature").claims
}

/// Check 1.
#[test]
fn a_request_and_its_answer_pass_unchanged() {
    let origin = Origin::fixed(answer(
        "207 Odd Reason",
        &[("X-Answer", "a"), ("Set-Cookie", "b"), ("Set-Cookie", "c")],
        "hello",
    ));
    let server = TestServer::before(&origin);
    let fields =
        [("Host", "a.example:81"), ("Accept-Encoding", "gzip"), ("Cookie", "c=1"), ("X-Mine", "x y")];
    let got = server.request("GET", "/p%41th//x;y?q=%2f&q=&&z", &fields, b"");
    assert_eq!((got.status(), got.head.reason(), got.text().as_str()), (207, "Odd Reason", "hello"));
    assert_eq!(got.framing, Framing::Length(5));
    assert_eq!(got.head.field("x-answer"), Some("a"));
    assert_eq!(got.head.all("set-cookie"), ["b", "c"]);

    let seen = origin.request();
    assert_eq!(seen.head.first_line, "GET /p%41th//x;y?q=%2f&q=&&z HTTP/1.1");
    assert_eq!(seen.head.field("host"), Some("a.example:81"));
    assert_eq!(seen.head.field("cookie"), Some("c=1"));
    assert_eq!(seen.head.field("x-mine"), Some("x y"));
    assert!(seen.head.field("grip-sig").is_some());
    let features = seen.head.field("grip-feature").expect("features");
    assert!(features.split(", ").any(|f| f == "status"), "{features}");
    for absent in ["accept-encoding", "content-length", "transfer-encoding", "x-forwarded-for", "via"] {
        assert!(!seen.head.has(absent), "{absent}");
    }
}

/// Check 2.
#[test]
fn requests_are_signed_with_the_configured_key() {
    let origin = ok();
    let server = TestServer::before(&origin);
    server.get("/");
    let request = origin.request();
    let token = request.head.field("grip-sig").expect("a signature");
    let claims = claims(token, &DecodingKey::from_secret(b"changeme"), Algorithm::HS256);
    let left = claims["exp"].as_u64().expect("a number") - now();
    assert!((3590..=3600).contains(&left), "{left}");
    assert_eq!(claims["iss"], "pushpin");
    assert_eq!(claims.as_object().expect("an object").len(), 2, "{claims}");
}

#[test]
fn without_a_key_nothing_is_signed() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("proxy.sig_key", "");
    });
    server.get("/");
    assert!(!origin.request().head.has("grip-sig"));
}

/// Check 4.
#[test]
fn a_clients_grip_headers_do_not_reach_the_origin() {
    let origin = ok();
    let server = TestServer::before(&origin);
    let fields = [
        ("Grip-Sig", "forged"),
        ("Grip-Last", "forged; last-id=1"),
        ("Grip-Foo", "forged"),
        ("grip-feature", "forged"),
        ("GRIP-Hold", "forged"),
    ];
    server.request("GET", "/", &fields, b"");
    let seen = origin.request();
    assert!(!format!("{:?}", seen.head).contains("forged"), "{:?}", seen.head);
    let mut ours = seen.head.starting("grip-");
    ours.sort_unstable_by_key(|n| n.to_lowercase());
    assert_eq!(ours.len(), 2, "{ours:?}");
}

/// Checks 5 and 6.
#[test]
fn only_a_good_upstream_signature_is_trusted() {
    let origin = Origin::fixed(hold("stream", "c", &[("Grip-Link", "</n>; rel=next")], "body"));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("proxy.upstream_key", "k");
    });
    let sign = |exp: u64, key: &[u8]| {
        let claims = json!({ "iss": "anyone", "exp": exp });
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(key)).expect("a token")
    };
    let good = sign(now() + 60, b"k");
    let fields = [("Grip-Sig", good.as_str()), ("Grip-Last", "c; last-id=7")];
    let got = server.request("GET", "/", &fields, b"");
    assert_eq!((got.text().as_str(), got.framing), ("body", Framing::Length(4)));
    assert_eq!(got.head.field("grip-hold"), Some("stream"));
    assert_eq!(got.head.field("grip-link"), Some("</n>; rel=next"));
    let seen = origin.request();
    assert_eq!(seen.head.field("grip-sig"), Some(good.as_str()));
    assert_eq!(seen.head.field("grip-last"), Some("c; last-id=7"));

    for bad in [sign(now() - 60, b"k"), sign(now() + 60, b"other"), sign(now() + 60, b""), "x".into()] {
        let mut client = server.connect();
        let fields = [("Grip-Sig", bad.as_str()), ("Grip-Last", "c; last-id=7")];
        let head = client.request("GET", "/", &fields, b"").head();
        assert!(head.starting("grip-").is_empty(), "{head:?}");
        client.expect("body");
        let seen = origin.requests().pop().expect("one more");
        assert_ne!(seen.head.field("grip-sig"), Some(bad.as_str()));
        assert!(!seen.head.has("grip-last"));
    }
}

/// An address on loopback that refuses connections.
fn refusing() -> std::net::SocketAddr {
    let origin = ok();
    let address = origin.address();
    origin.stop();
    address
}

/// Check 7.
#[test]
fn a_target_that_refuses_is_followed_by_the_next() {
    let (origin, down, also) = (ok(), refusing(), refusing());
    let server = TestServer::start(
        &[
            &format!("* {down} {origin}"),
            &format!("down.example {down} {also}"),
            &format!("debug.example,debug {down} {also}"),
        ],
        |_| {},
    );
    let post = server.request("POST", "/", &[], b"the whole body");
    assert_eq!((post.status(), post.text().as_str()), (200, "fine"));
    assert_eq!(origin.request().body, b"the whole body");

    let failed = server.request("GET", "/", &[("Host", "down.example")], b"");
    assert_eq!((failed.status(), failed.text().as_str()), (502, "Error while proxying to origin.\n"));
    assert_eq!(failed.head.field("content-type"), Some("text/plain"));
    let told = server.request("GET", "/", &[("Host", "debug.example")], b"");
    assert_eq!(told.status(), 502);
    for address in [down, also] {
        assert!(told.text().contains(&address.to_string()), "{}", told.text());
    }
}

/// Check 8.
#[test]
fn a_target_that_took_the_request_is_not_followed_by_the_next() {
    let (first, second) = (Origin::scripted(|_| Then::Reset), ok());
    let server = TestServer::start(&[&format!("* {first} {second}")], |_| {});
    let got = server.request("POST", "/", &[], b"once only");
    assert_eq!((got.status(), got.text().as_str()), (502, "Error while proxying to origin.\n"));
    assert!(second.requests().is_empty());
    assert_eq!(first.requests().len(), 1);
}

/// Check 9.
#[test]
fn no_route_is_told_the_same_way_with_and_without_debug() {
    for debug in ["true", "false"] {
        let server = TestServer::start(&["only.example test"], |o| {
            o.set("proxy.debug", debug);
        });
        let got = server.get("/");
        assert_eq!((got.status(), got.text().as_str()), (502, "Route not found\n"));
    }
}

/// Check 9: nobody but the origin answers it (D8).
#[test]
fn pushpin_check_is_a_header_like_any_other() {
    let origin = ok();
    let server = TestServer::before(&origin);
    let got = server.request("GET", "/", &[("Pushpin-Check", "true")], b"");
    assert_eq!((got.status(), origin.request().head.field("pushpin-check")), (200, Some("true")));
}

/// Check 10, of clients that came by TLS to who is in front; `tls.rs` has those that come by it themselves.
#[test]
fn x_forwarded_proto_is_ours_to_set() {
    let origin = ok();
    let server = TestServer::before(&origin);
    let fields = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Protocol", "https")];
    server.request("GET", "/", &fields, b"");
    let seen = origin.request();
    assert!(!seen.head.has("x-forwarded-proto") && !seen.head.has("x-forwarded-protocol"), "{:?}", seen.head);

    let origin = ok();
    let server = TestServer::start(&[&format!("*,ssl=yes {origin}")], |o| {
        o.set("proxy.accept_x_forwarded_protocol", "true");
    });
    assert_eq!(server.get("/").text(), "Route not found\n");
    server.request("GET", "/", &[("X-Forwarded-Proto", "https")], b"");
    assert_eq!(origin.request().head.field("x-forwarded-proto"), Some("https"));
}

/// Check 11.
#[test]
fn x_forwarded_for_follows_its_rule() {
    let table = [
        ("", "1.1.1.1", Some("1.1.1.1")),
        ("", "1.1.1.1, 2.2.2.2", Some("1.1.1.1, 2.2.2.2")),
        ("truncate:0,append", "1.1.1.1", Some("127.0.0.1")),
        ("truncate:1", "1.1.1.1, 2.2.2.2", Some("2.2.2.2")),
        ("truncate:0", "1.1.1.1", None),
        ("append", "1.1.1.1", Some("1.1.1.1, 127.0.0.1")),
    ];
    for (rule, sent, wanted) in table {
        let origin = ok();
        let server = TestServer::start(&[&format!("* {origin}")], |o| {
            o.set("proxy.x_forwarded_for", rule);
        });
        server.request("GET", "/", &[("X-Forwarded-For", sent)], b"");
        assert_eq!(origin.request().head.field("x-forwarded-for"), wanted, "rule {rule:?}");
    }
}

/// Checks 12 to 14.
#[test]
fn a_route_rewrites_path_host_and_headers() {
    let origin = ok();
    let server = TestServer::start(
        &[
            &format!("*,path_beg=/api/,replace_beg=/v2/ {origin}"),
            &format!("*,path_beg=/cut/,path_rem=4 {origin}"),
            &format!("*,path_beg=/host/,as_host=route.example {origin},host=target.example:99"),
            &format!("*,path_beg=/as/,as_host=route.example {origin}"),
            &format!("*,path_beg=/h/,header=X-A:1,header=X-B: {origin}"),
        ],
        |_| {},
    );
    let fields = [("X-A", "client"), ("x-a", "again"), ("X-B", "client")];
    for target in ["/api/x?y=1", "/cut/x", "/host/x", "/as/x", "/h/x"] {
        server.request("GET", target, &fields, b"");
    }
    let seen = origin.requests();
    let targets: Vec<_> = seen.iter().map(|r| r.target()).collect();
    assert_eq!(targets, ["/v2/x?y=1", "/x", "/host/x", "/as/x", "/h/x"]);
    assert_eq!(seen[0].head.field("host"), Some("fantail.example"));
    assert_eq!(seen[2].head.field("host"), Some("target.example:99"));
    assert_eq!(seen[3].head.field("host"), Some("route.example"));
    assert_eq!(seen[4].head.field("x-a"), Some("1"));
    assert!(!seen[4].head.has("x-b"));
    assert_eq!(seen[0].head.all("x-a"), ["client", "again"]);
}

/// Check 15.
#[test]
fn orig_headers_marks_what_the_client_sent() {
    let origin = ok();
    let server =
        TestServer::start(&[&format!("*,orig_headers {origin}"), &format!("plain.example {origin}")], |o| {
            o.config("[proxy]\norig_headers_need_mark = [\"X-Bare\"]\n");
        });
    let fields = [("X-Mine", "1"), ("X-Bare", "2"), ("eb9bf0f5-X-Old", "3")];
    server.request("GET", "/", &fields, b"");
    let head = origin.request().head;
    assert_eq!((head.field("x-mine"), head.field("eb9bf0f5-x-mine")), (Some("1"), Some("1")));
    assert_eq!((head.field("x-bare"), head.field("eb9bf0f5-x-bare")), (Some("2"), None));
    assert_eq!(head.field("eb9bf0f5-x-old"), Some("3"));

    let marked = [("Host", "plain.example"), ("eb9bf0f5-X-Old", "3")];
    server.request("GET", "/", &marked, b"");
    assert!(origin.requests()[1].head.starting("eb9bf0f5-").is_empty());
}

/// Check 16.
#[test]
fn uploads_arrive_whole() {
    let origin = Origin::answering(|r| answer("200 OK", &[], r.body.len().to_string()));
    let server = TestServer::before(&origin);
    let piece = vec![b'x'; 65_536];
    let mut client = server.connect();
    client.send("POST /chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..80 {
        client.send_part("10000\r\n").send_part(&piece).send_part("\r\n");
    }
    client.send_part("0\r\n\r\n");
    assert_eq!(client.response().text(), (80 * 65_536).to_string());
    let whole = vec![b'y'; 3_000_000];
    client.request("PUT", "/length", &[], &whole);
    assert_eq!(client.response().text(), "3000000");
    let seen = origin.requests();
    assert_eq!(seen[0].framing, Some(Framing::Chunked));
    assert_eq!(seen[1].framing, Some(Framing::Length(3_000_000)));
    assert!(seen[1].body == whole, "the bytes differ");
}

/// A body is passed on as it comes: the origin can answer its beginning before its end was sent.
#[test]
fn both_directions_stream() {
    let origin = Origin::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let whole = exchange.read_body().is_ok_and(|b| b.len() == 40_000);
        exchange.send(format!("4\r\n{}\r\n0\r\n\r\n", if whole { "last" } else { "part" }));
        Then::Next
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 40000\r\n\r\n").send_part([b'a'; 20_000]);
    client.head();
    client.expect("first");
    client.send_part([b'b'; 20_000]);
    client.expect("last");
}

#[test]
fn expect_100_continue_is_answered() {
    let origin = Origin::answering(|r| answer("200 OK", &[], &r.body));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.interim().status(), 100);
    client.send_part("body");
    assert_eq!(client.response().text(), "body");
    assert!(!origin.request().head.has("expect"));
}

/// Check 17, its last part, and the same for a chunked answer.
#[test]
fn http_1_0_clients_get_no_chunks() {
    let origin = Origin::fixed(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n".to_vec(),
    );
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    let got = client.send("GET / HTTP/1.0\r\n\r\n").response();
    assert_eq!((got.text().as_str(), got.framing), ("abcdef", Framing::Close));
    assert_eq!(origin.request().head.first_line, "GET / HTTP/1.1");
}

#[test]
fn http_1_0_keep_alive_is_kept() {
    let origin = ok();
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    for _ in 0..2 {
        let got = client.send("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n").response();
        assert_eq!((got.text().as_str(), got.framing), ("fine", Framing::Length(4)));
        assert!(got.head.field("connection").is_some_and(|c| c.eq_ignore_ascii_case("keep-alive")));
    }
    assert_eq!(client.send("GET / HTTP/1.0\r\nHost: h\r\n\r\n").response().text(), "fine");
    client.expect_closed();
}

/// Check 18, mended: the coding is told, so that the client can undo it.
#[test]
fn a_content_coding_is_kept() {
    let origin = Origin::fixed(answer("200 OK", &[("Content-Encoding", "gzip")], "\x1f\u{8}raw"));
    let got = TestServer::before(&origin).get("/");
    assert_eq!(got.head.field("content-encoding"), Some("gzip"));
    assert_eq!(got.text(), "\x1f\u{8}raw");
}

/// Check 19.
#[test]
fn redirects_are_relayed() {
    let origin = Origin::fixed(answer("302 Found", &[("Location", "http://elsewhere.example/")], ""));
    let got = TestServer::before(&origin).get("/");
    assert_eq!((got.status(), got.head.field("location")), (302, Some("http://elsewhere.example/")));
    assert_eq!(origin.requests().len(), 1);
}

/// Check 20, and the loop that it is there to find.
#[test]
fn cdn_loop_is_appended_and_seen() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("proxy.cdn_loop", "me");
    });
    server.request("GET", "/", &[("CDN-Loop", "a, b")], b"");
    assert_eq!(origin.request().head.field("cdn-loop"), Some("a, b, me"));
    assert_eq!(server.request("GET", "/", &[("CDN-Loop", "a, me, b")], b"").status(), 508);
    assert_eq!(origin.requests().len(), 1);
}

/// What the client said reaches the origin beside what became of it.
#[test]
fn original_headers_are_the_clients() {
    let origin = ok();
    let server = TestServer::start(&[&format!("*,orig_headers,header=X-Own:ours {origin}")], |o| {
        o.set("proxy.cdn_loop", "me");
    });
    let fields = [("CDN-Loop", "other"), ("Connection", "X-Hop"), ("X-Hop", "1"), ("X-Own", "theirs")];
    server.request("GET", "/", &fields, b"");
    let head = origin.request().head;
    let both = |name: &str| (head.field(name), head.field(&format!("eb9bf0f5-{name}")));
    assert_eq!(both("cdn-loop"), (Some("other, me"), Some("other")));
    assert_eq!(both("x-hop"), (None, Some("1")));
    assert_eq!(both("x-own"), (Some("ours"), Some("theirs")));
}

#[test]
fn head_requests_have_no_body_and_keep_the_connection() {
    let origin = Origin::answering(|r| match r.method() {
        "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-A: b\r\n\r\n".to_vec(),
        _ => answer("200 OK", &[], "after"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    let got = client.request("HEAD", "/", &[], b"").response();
    assert_eq!((got.status(), got.head.field("content-length")), (200, Some("1000")));
    assert_eq!(client.get("/").response().text(), "after");
}

#[test]
fn answers_without_a_body_pass() {
    let origin = Origin::answering(|r| match r.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    for (target, status) in [("/204", 204), ("/304", 304), ("/200", 200)] {
        let got = client.get(target).response();
        assert_eq!((got.status(), got.body.len()), (status, 0));
    }
}

#[test]
fn connections_are_kept_and_pipelined_requests_answered_in_order() {
    let origin = Origin::answering(|r| answer("200 OK", &[], r.target()));
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/1").get("/2").request("POST", "/3", &[], b"with a body").get("/4");
    for target in ["/1", "/2", "/3", "/4"] {
        assert_eq!(client.response().text(), target);
    }
    let mut close = server.connect();
    let got = close.request("GET", "/", &[("Connection", "close")], b"").response();
    assert!(got.head.field("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")));
    close.expect_closed();
}

#[test]
fn connections_to_the_origin_are_reused() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.shards", "1");
    });
    for _ in 0..5 {
        server.get("/");
    }
    assert!(origin.requests().iter().all(|r| r.connection == 0), "{:?}", origin.requests());
}

/// The origin closed the idle connection just as the request was sent: a request that is safe to repeat
/// is, once, on a fresh connection.
#[test]
fn a_stale_origin_connection_is_not_a_failure() {
    let origin = Origin::scripted(|exchange| {
        exchange.send(answer("200 OK", &[], "fine"));
        Then::Close
    });
    let server = TestServer::before(&origin);
    for _ in 0..20 {
        assert_eq!(server.get("/").status(), 200);
    }
}

#[test]
fn no_grip_is_a_plain_reverse_proxy() {
    let origin = Origin::fixed(hold("stream", "c", &[], "body"));
    let server = TestServer::start(&[&format!("*,no_grip {origin}")], |_| {});
    let got = server.get("/");
    assert_eq!((got.text().as_str(), got.head.field("grip-hold")), ("body", Some("stream")));
    assert!(origin.request().head.starting("grip-").is_empty());
}

#[test]
fn clients_come_over_ipv6_and_unix_sockets() {
    let origin = ok();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("clients.sock");
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.argument("--listen").argument("[::1]:0");
        o.argument("--listen").argument(format!("unix:{}?mode=0600", path.display()));
    });
    assert_eq!(server.get("/").text(), "fine");
    let line = server.log_text("listening").to_string();
    let at = line.find("[::1]:").expect("the address");
    let port: u16 =
        line[at + 6..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a port");
    let mut client = Client::connect(([0, 0, 0, 0, 0, 0, 0, 1], port).into());
    assert_eq!(client.get("/").response().text(), "fine");

    use std::{
        io::{Read, Write},
        os::unix::{fs::PermissionsExt, net::UnixStream},
    };
    let mode = std::fs::metadata(&path).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut unix = UnixStream::connect(&path).expect("the server accepts");
    unix.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").expect("a live socket");
    let mut text = String::new();
    unix.read_to_string(&mut text).expect("an answer");
    assert!(text.ends_with("fine"), "{text}");
}

#[test]
fn an_answer_of_50_mb_is_not_kept_in_memory() {
    let origin = Origin::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n");
        let piece = [b'z'; 50_000];
        (0..1000).all(|_| exchange.send(piece));
        Then::Next
    });
    let server = TestServer::before(&origin);
    server.request("GET", "/", &[], b"");
    let before = server.memory();
    let mut client = server.connect();
    client.get("/").head();
    client.content(1_000_000);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 10_000_000, "{grown} bytes more while the client read slowly");
    assert_eq!(client.content(49_000_000).len(), 49_000_000);
}

/// The client side of HTTP libraries takes a GET for one without a body.
#[test]
fn a_chunked_body_of_a_get_reaches_the_origin() {
    let origin = ok();
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.response().status(), 200);
    assert_eq!(origin.request().body, b"hello");
}

/// The origin's time is its own: a client that uploads slowly does not use it up.
#[test]
fn an_upload_may_take_longer_than_the_origin() {
    let origin = ok();
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.response_timeout", "300ms");
    });
    let mut client = server.connect();
    client.send_part("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n");
    for byte in ["a", "b", "c", "d"] {
        assert!(!client.hears_within(Duration::from_millis(200)), "answered in mid-upload");
        client.send_part(byte);
    }
    assert_eq!(client.response().status(), 200);
    assert_eq!(origin.request().body, b"abcd");
}

/// After a reload, also those connections that were in use then.
#[test]
fn connections_of_before_a_reload_are_not_used_again() {
    let (go, going) = std::sync::mpsc::channel();
    let going = std::sync::Mutex::new(going);
    let origin = Origin::scripted(move |exchange| {
        if exchange.request.target() == "/slow" {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbe");
            going.lock().expect("no panic holds it").recv().expect("the test goes on");
            exchange.send("gun");
        } else {
            exchange.send(answer("200 OK", &[], "quick"));
        }
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.shards", "1");
    });
    let mut slow = server.connect();
    slow.get("/slow");
    let first = origin.wait_requests(1)[0].connection;
    let quick = || {
        assert_eq!(server.get("/").text(), "quick");
        origin.requests().last().expect("it was asked").connection
    };
    let idle = quick();
    server.signal(rustix::process::Signal::HUP);
    server.wait_until(DEADLINE, "idle ones are closed", || quick() != idle);
    go.send(()).expect("the origin waits");
    assert_eq!(slow.response().text(), "begun");
    assert!((0..3).all(|_| quick() != first));
}
