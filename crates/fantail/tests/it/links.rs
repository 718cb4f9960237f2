//! Next links: pages appended to one response, streams that catch up (checks 43, 44, 46–49), and gone links.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Origin, Request, TestServer, Then, answer, hold, stream_item};

fn item(id: u32) -> Value {
    json!({ "channel": "c", "id": id.to_string(), "prev-id": (id - 1).to_string(),
            "formats": { "http-stream": { "content": format!("[{id}]") } } })
}

/// A page that holds, is at this position, and goes on at `/next`.
fn page(position: u32, body: &str) -> Vec<u8> {
    let channel = format!("c; prev-id={position}");
    hold("stream", &channel, &[("Grip-Link", "</next?x>; rel=next; timeout=0")], body)
}

/// An origin whose `/next` is answered by `next`, with the number of the request to it, from 1.
fn reliable(first: u32, next: impl Fn(usize, &Request) -> Vec<u8> + Send + Sync + 'static) -> Origin {
    let asked = AtomicUsize::new(0);
    Origin::answering(move |request| match request.target() {
        "/" => page(first, "first;"),
        _ => next(asked.fetch_add(1, SeqCst) + 1, request),
    })
}

/// Check 43.
#[test]
fn pages_become_one_response() {
    let origin = Origin::answering(|request| match request.target() {
        "/a/1" => answer("200 OK", &[("Grip-Link", "<2?q=1>; rel=next"), ("X-Own", "1")], "one;"),
        "/a/2?q=1" => answer("201 Created", &[("Grip-Link", "</3>; rel=next"), ("X-Two", "1")], "two;"),
        "/3" => answer("200 OK", &[], "three"),
        other => answer("200 OK", &[], other),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.request("GET", "/a/1", &[("Cookie", "secret"), ("Authorization", "x"), ("X-Mine", "1")], b"");
    let head = client.head();
    assert_eq!((head.status(), head.field("x-own"), head.field("content-length")), (200, Some("1"), None));
    client.expect("one;two;three").expect_end();
    let requests = origin.wait_requests(3);
    for request in &requests[1..] {
        assert_eq!(request.method(), "GET");
        let names: Vec<&str> = request.head.fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Host", "Grip-Sig", "Grip-Feature"], "nothing of the client's");
        assert_eq!(request.head.field("host"), requests[0].head.field("host"));
    }
    assert_eq!(client.get("/after").response().text(), "/after", "the connection goes on");
    server.wait_pins("stream", 0);
}

#[test]
fn a_page_without_anything_behind_it_is_no_more_than_a_page() {
    let origin = Origin::answering(|request| match request.target() {
        "/1" => answer("200 OK", &[("Grip-Link", "</2>; rel=next")], "one;"),
        "/head" => b"HTTP/1.1 200 OK\r\nGrip-Link: </2>; rel=next\r\nContent-Length: 4\r\n\r\n".to_vec(),
        _ => answer("200 OK", &[], "two"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("GET /1 HTTP/1.0\r\n\r\n");
    client.head();
    client.expect("one;two").expect_end();
    assert_eq!(server.request("HEAD", "/head", &[], b"").status(), 200);
    assert_eq!(origin.requests().len(), 3, "a response to HEAD has no pages");
}

/// The last page may hold; its channels and keep-alive count.
#[test]
fn a_page_may_hold() {
    let beat = ("Grip-Keep-Alive", "beat; timeout=1; mode=interval");
    let origin = Origin::answering(move |request| match request.target() {
        "/" => answer("200 OK", &[("Grip-Link", "</2>; rel=next")], "one;"),
        _ => hold("stream", "c", &[beat], "two;"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("one;two;");
    server.wait_metric("fantail_subscriptions", &[], 1.0);
    server.publish(&json!([stream_item("c", "item;")]));
    client.expect("item;beat");
    server.publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "close" } } }]));
    while client.chunk().is_some() {}
}

/// Check 44.
#[test]
fn a_gap_is_filled_from_the_link() {
    let gate = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let opens = Arc::clone(&gate);
    let origin = reliable(3, move |_, _| {
        let (open, rung) = &*gate;
        let open = rung.wait_while(open.lock().unwrap(), |open| !*open).unwrap();
        drop(open);
        page(6, "4;5;6;")
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([item(4)]));
    client.expect("[4]");
    let mut unordered = item(6);
    unordered["no-seq"] = true.into();
    let receipt = server.receipts(&json!([unordered])).remove(0);
    assert_eq!((&receipt["delivered"], &receipt["recovered"]), (&json!(0), &json!(1)), "{receipt}");
    let requests = origin.wait_requests(2);
    assert_eq!((requests[1].target(), requests[1].head.all("grip-last")), ("/next?x", vec!["c; last-id=4"]));
    // While the page is on its way: what it has, and what follows it.
    server.publish(&json!([item(5), item(7), item(8)].map_no_seq()));
    assert!(!client.hears_within(Duration::ZERO));
    *opens.0.lock().unwrap() = true;
    opens.1.notify_all();
    client.expect("4;5;6;[7][8]");
    server.publish(&json!([item(9)].map_no_seq()));
    client.expect("[9]");
    assert_eq!(origin.requests().len(), 2);
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], 1.0);
}

trait Unordered {
    fn map_no_seq(self) -> Vec<Value>;
}

impl<const N: usize> Unordered for [Value; N] {
    /// The hub does not wait for what is missing.
    fn map_no_seq(self) -> Vec<Value> {
        let unordered = |mut item: Value| {
            item["no-seq"] = true.into();
            item
        };
        self.map(unordered).into()
    }
}

/// If the page does not reach to what has waited, the link is followed again.
#[test]
fn a_page_that_is_too_old_is_not_the_last() {
    let origin = reliable(3, |asked, request| match asked {
        1 => page(4, "4;"),
        _ => {
            assert_eq!(request.head.all("grip-last"), ["c; last-id=4"]);
            page(9, "5-9;")
        }
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([item(9)].map_no_seq()));
    client.expect("4;5-9;");
    server.publish(&json!([item(10)]));
    client.expect("[10]");
}

/// What comes in another order, or after the page that has it, needs no page.
#[test]
fn what_was_missing_may_come_late() {
    let origin = reliable(3, |asked, _| match asked {
        1 => page(12, "8-12;"),
        _ => page(12, ""),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([item(4), item(6), item(7), item(5)].map_no_seq()));
    client.expect("[4][5][6][7]");
    // The page is ahead of the items.
    server.publish(&json!([item(10)].map_no_seq()));
    client.expect("8-12;");
    server.publish(&json!([item(11), item(12), item(13)].map_no_seq()));
    client.expect("[13]");
    server.publish(&json!([item(14)].map_no_seq()));
    client.expect("[14]");
}

/// A stream knows what it has, and follows what is not for it.
#[test]
fn a_stream_follows_its_channel() {
    let origin = reliable(3, |_, _| page(9, "page"));
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    let for_polls = json!({ "channel": "c", "id": "4", "prev-id": "3",
                            "formats": { "http-response": { "body": "x" } } });
    server.publish(&json!([item(3), for_polls, item(5)]));
    client.expect("[5]");
    server.publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "close" } } }]));
    client.expect_end();
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn hints_recover_and_time_follow_the_link() {
    let origin = Origin::answering(|request| match request.target() {
        "/timed" => hold("stream", "t", &[("Grip-Link", "</t>; rel=next; timeout=1")], "first;"),
        "/t" => hold("stream", "t", &[("Grip-Link", "</t>; rel=next; timeout=0")], "timed;"),
        "/" => page(3, "first;"),
        _ => page(3, "page;"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "hint" } } }]));
    client.expect("page;");
    assert_eq!(server.control("POST", "/recover", &[], b"").status(), 200);
    client.expect("page;");
    let begun = Instant::now();
    let mut timed = server.stream("/timed");
    timed.expect("first;timed;");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(990) && took < Duration::from_secs(15), "{took:?}, not 1 s");
    server.wait_metric("fantail_updates_total", &["cause=\"timer\""], 1.0);
    assert_eq!(origin.requests().len(), 5);
}

/// A hold whose position is not the channel's is behind from the start.
#[test]
fn a_stream_that_begins_behind_catches_up() {
    let origin = Origin::answering(|request| match (request.target(), request.head.field("grip-last")) {
        ("/next?x", Some("c; last-id=3")) => page(5, "4;5;"),
        ("/next?x", other) => panic!("{other:?}"),
        ("/5", _) => page(5, "5th;"),
        _ => page(3, "3rd;"),
    });
    let server = TestServer::before(&origin);
    let mut first = server.stream("/5");
    first.expect("5th;");
    server.publish(&json!([item(6)]));
    first.expect("[6]");
    let mut second = server.stream("/3");
    second.expect("3rd;4;5;");
    server.publish(&json!([item(7)]));
    first.expect("[7]");
    server.wait_metric("fantail_updates_total", &["cause=\"contradiction\""], 1.0);
}

/// However many have missed the same item, and whatever their links' queries, their origin is asked once.
#[test]
fn one_page_serves_all() {
    const STREAMS: usize = 40;
    let asked = AtomicUsize::new(0);
    let origin = Origin::answering(move |request| match request.target() {
        "/" => {
            let link = format!("</next?{}>; rel=next", asked.fetch_add(1, SeqCst));
            hold("stream", "c; prev-id=3", &[("Grip-Link", &link)], "first;")
        }
        _ => page(5, "4;5;"),
    });
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.shards", "2");
    });
    let mut clients: Vec<_> = (0..STREAMS).map(|_| server.stream("/")).collect();
    clients.iter_mut().for_each(|client| _ = client.expect("first;"));
    server.publish(&json!([item(5)].map_no_seq()));
    clients.iter_mut().for_each(|client| _ = client.expect("4;5;"));
    server.publish(&json!([item(6)]));
    clients.iter_mut().for_each(|client| _ = client.expect("[6]"));
    let pages = origin.requests().iter().filter(|request| request.target().starts_with("/next")).count();
    assert_eq!(pages, 1);
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], STREAMS as f64);
}

/// A link that is not answered is asked for again, and a page that is none ends the stream.
#[test]
fn a_link_is_asked_for_again_and_not_for_ever() {
    let origin = reliable(3, |asked, _| match asked {
        1 => answer("500 Oh", &[("Grip-Hold", "stream")], "no page"),
        2 => page(5, "4;5;"),
        _ => hold("response", "c", &[], "no page"),
    });
    let server = TestServer::start(&[&format!("*,debug {origin}")], |_| {});
    let mut client = server.stream("/");
    client.expect("first;");
    let begun = Instant::now();
    server.publish(&json!([item(5)].map_no_seq()));
    client.expect("4;5;");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}, not 1 to 2 s");
    server.wait_metric("fantail_link_retries_total", &[], 1.0);
    server.publish(&json!([item(8)].map_no_seq()));
    client.expect("\n\nNext link returned non-stream hold.\n").expect_end();
    server.wait_metric("fantail_pins_ended_total", &["cause=\"link\""], 1.0);
}

/// A page of any size goes through as the client takes it, and one that breaks off does so for the client.
#[test]
fn large_pages_wait_for_their_client() {
    const SIZE: usize = 24 << 20;
    let origin = Origin::scripted(|exchange| {
        let target = exchange.request.target().to_owned();
        let link = |to: &str| format!("Grip-Link: <{to}>; rel=next\r\n");
        match target.as_str() {
            "/" => exchange.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 1\r\n\r\n-", link("/large"))),
            "/cut" => {
                exchange.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 1\r\n\r\n-", link("/short")))
            }
            "/large" => {
                exchange.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: {SIZE}\r\n\r\n", link("/last")));
                exchange.send(vec![b'x'; SIZE])
            }
            "/short" => {
                exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
                exchange.send(vec![b'x'; 1 << 20]);
                return Then::Close;
            }
            _ => exchange.send(answer("200 OK", &[], "end")),
        };
        Then::Next
    });
    let server = TestServer::before(&origin);
    let before = server.memory();
    let mut client = server.connect();
    client.narrow().get("/");
    client.head();
    client.expect("-");
    origin.wait_requests(2);
    server.wait_until(Duration::from_secs(20), "the client holds the page up", || {
        server.metric("fantail_pushed_bytes_total", &[]) > (128 << 10) as f64
    });
    assert!(server.memory() < before + (12 << 20), "the page waits at the origin");
    let content = client.content(SIZE);
    assert!(content.len() == SIZE && content.iter().all(|byte| *byte == b'x'));
    client.expect("end").expect_end();

    let mut client = server.connect();
    client.get("/cut");
    client.head();
    client.expect("-");
    assert!(client.try_content(SIZE).is_err(), "a page that breaks off has no proper end");
    server.wait_metric("fantail_pins_ended_total", &["cause=\"link\""], 1.0);
}

#[test]
fn a_page_may_be_an_instruct() {
    let origin = reliable(3, |_, _| {
        let body = json!({
            "hold": { "mode": "stream", "channels": [{ "name": "c", "prev-id": "5" }] },
            "response": { "body": "4;5;" },
        });
        let fields = [("Content-Type", "application/grip-instruct"), ("Grip-Link", "</next>; rel=next")];
        answer("200 OK", &fields, body.to_string())
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([item(5)].map_no_seq()));
    client.expect("4;5;");
    server.publish(&json!([item(6)]));
    client.expect("[6]");
}

/// Channels that a page does not list are left, and those that it adds are joined.
#[test]
fn a_page_replaces_the_hold() {
    let origin = Origin::answering(|request| match request.target() {
        "/" => hold("stream", "a, b", &[("Grip-Link", "</next>; rel=next")], "first;"),
        _ => hold("stream", "b, d", &[], "page;"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([{ "channel": "a", "formats": { "http-stream": { "action": "hint" } } }]));
    client.expect("page;");
    server.publish(&json!([stream_item("a", "a;"), stream_item("b", "b;"), stream_item("d", "d;")]));
    client.expect("b;d;");
    server.wait_metric("fantail_subscriptions", &[], 2.0);
    server.publish(&json!([{ "channel": "b", "formats": { "http-stream": { "action": "hint" } } }]));
    server.publish(&json!([stream_item("b", "after")]));
    client.expect("after");
    assert_eq!(origin.requests().len(), 2, "there is no link any more");
}

/// Whoever sees the beginning of a page may count on the channels that it adds.
#[test]
fn what_a_page_adds_is_joined_before_it_is_seen() {
    const SIZE: usize = 8 << 20;
    let origin = Origin::scripted(|exchange| {
        let held = |channels: &str, size: usize| {
            let link = "Grip-Link: </next>; rel=next\r\n";
            format!(
                "HTTP/1.1 200 OK\r\nGrip-Hold: stream\r\nGrip-Channel: {channels}\r\n{link}Content-Length: {size}\r\n\r\n"
            )
        };
        if exchange.request.target() == "/" {
            exchange.send(held("a", 6) + "first;");
        } else {
            exchange.send(held("a, d; prev-id=4, e", SIZE));
            exchange.send(vec![b'x'; SIZE]);
        }
        Then::Next
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.narrow().get("/");
    client.head();
    client.expect("first;");
    server.publish(&json!([{ "channel": "a", "formats": { "http-stream": { "action": "hint" } } }]));
    client.expect("x");
    server.wait_metric("fantail_subscriptions", &[], 3.0);
    let numbered = |id: u32| {
        let mut item = item(id);
        item["channel"] = "d".into();
        item
    };
    server.publish(&json!([numbered(4), stream_item("e", "e;"), numbered(5)]));
    let content = client.content(SIZE - 1);
    assert!(content.len() == SIZE - 1 && content.iter().all(|byte| *byte == b'x'));
    client.expect("e;[5]");
    server.publish(&json!([numbered(6)]));
    client.expect("[6]");
    server.wait_metric("fantail_subscriptions", &[], 3.0);
}

/// A link to the host of the request takes its route, whatever the path; another goes to where it says.
#[test]
fn links_take_the_route_or_go_elsewhere() {
    let other = Origin::answering(|request| answer("200 OK", &[], request.head.field("host").unwrap()));
    let elsewhere = other.address();
    let origin = Origin::answering(move |request| match request.target() {
        "/v2/x" => {
            let link = "<y>; rel=next, <http://example.com/z?q>; rel=next";
            answer("200 OK", &[("Grip-Link", link)], "x;")
        }
        "/z?q" => {
            let link = format!("<http://{elsewhere}/>; rel=next");
            answer("200 OK", &[("Grip-Link", &link)], "z;")
        }
        "/v2/rel" => answer("200 OK", &[("Grip-Link", "<y>; rel=next")], "rel;"),
        other => answer("200 OK", &[], other),
    });
    let route = |flag: &str| format!("*,path_beg=/api,replace_beg=/v2 {origin}{flag}");
    let ask = |server: &TestServer, target: &str| {
        let mut client = server.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: example.com\r\n\r\n"));
        client.response().text()
    };
    let server = TestServer::start(&[&route("")], |o| {
        o.set("grip.link_hosts", &format!("[\"{elsewhere}\"]"));
    });
    assert_eq!(ask(&server, "/api/x"), format!("x;z;{elsewhere}"));
    assert_eq!(ask(&server, "/api/rel"), "rel;/v2/y");
    assert!(origin.requests().iter().all(|request| request.head.has("grip-sig")));
    assert!(!other.request().head.has("grip-sig"), "that is for the route's targets");
}

/// A link is no way to the inside: not to the machine itself, and not by a name of it.
#[test]
fn links_do_not_lead_to_private_addresses() {
    let inside = Origin::answering(|_| answer("200 OK", &[], "secret"));
    let port = inside.address().port();
    let own = Arc::new(std::sync::OnceLock::new());
    let its_own = Arc::clone(&own);
    let origin = Origin::answering(move |request| {
        let own: &String = its_own.get().unwrap();
        let link = match request.target() {
            "/address" => format!("<http://127.0.0.1:{port}/>; rel=next"),
            "/name" => format!("<http://localhost:{port}/>; rel=next"),
            "/own" => format!("<http://{own}/page>; rel=next"),
            _ => return answer("200 OK", &[], "page"),
        };
        answer("200 OK", &[("Grip-Link", &link)], "first;")
    });
    own.set(origin.address().to_string()).unwrap();
    let server = TestServer::before(&origin);
    let refused: Vec<_> = ["/address", "/name"]
        .map(|target| {
            let mut client = server.connect();
            client.send(format!("GET {target} HTTP/1.1\r\nHost: example.com\r\n\r\n"));
            client.head();
            client.expect("first;");
            client
        })
        .into();
    server.wait_metric("fantail_link_retries_total", &[], 2.0);
    assert!(inside.requests().is_empty());
    drop(refused);
    let mut client = server.connect();
    client.send("GET /own HTTP/1.1\r\nHost: example.com\r\n\r\n");
    assert_eq!(client.response().text(), "first;page", "the route's own targets");
    assert!(origin.requests().last().unwrap().head.has("grip-sig"));
}

/// Pages without content that lead in a circle are not asked for as fast as their origin answers.
#[test]
fn a_circle_of_pages_has_a_rate() {
    let origin = Origin::answering(|_| answer("200 OK", &[("Grip-Link", "</>; rel=next")], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("grip.updates_per_second", "10").set("server.shards", "1");
    });
    let mut client = server.connect();
    client.get("/").head();
    // The request, and as many pages as are fetched at once.
    origin.wait_requests(101);
    let began = Instant::now();
    origin.wait_requests(104);
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

/// Small pages wait for their client as a large one does.
#[test]
fn a_chain_of_pages_waits_for_its_client() {
    const PAGES: usize = 400;
    const SIZE: usize = 60_000;
    let origin = Origin::answering(|request| {
        let page: usize = request.target()[1..].parse().unwrap();
        let link = format!("</{}>; rel=next", page + 1);
        let link = [("Grip-Link", link.as_str())];
        answer("200 OK", &link[..usize::from(page < PAGES)], vec![b'x'; SIZE])
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.narrow().get("/1");
    client.head();
    origin.wait_requests(5);
    assert!(!origin.requests().iter().any(|request| request.target() == format!("/{PAGES}")));
    let content = client.content(PAGES * SIZE);
    assert!(content.iter().all(|byte| *byte == b'x'));
    client.expect_end();
    assert_eq!(origin.requests().len(), PAGES);
}

/// A hold without channels is one all the same: its link is followed in its time (spec 3.10 c).
#[test]
fn a_stream_without_channels_waits_for_its_time() {
    let origin = Origin::answering(|request| match request.target() {
        "/" => {
            let fields = [("Grip-Hold", "stream"), ("Grip-Link", "</next>; rel=next; timeout=2")];
            answer("200 OK", &fields, "first;")
        }
        _ => answer("200 OK", &[], "next"),
    });
    let server = TestServer::before(&origin);
    let began = Instant::now();
    let mut client = server.stream("/");
    client.expect("first;next").expect_end();
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// What is told of a hold that is gone: once, whatever ended it.
#[test]
fn the_origin_hears_of_holds_that_are_gone() {
    let origin = Origin::answering(|request| match request.target() {
        "/stream" => hold("stream", "c", &[("Grip-Link", "</gone/stream?x>; rel=gone")], ""),
        "/poll" => hold("response", "c", &[("Grip-Link", "</gone/poll>; rel=gone")], ""),
        "/pages" => answer("200 OK", &[("Grip-Link", "</last>; rel=next, </gone/pages>; rel=gone")], "1;"),
        "/nothing" => answer("200 OK", &[("Grip-Link", "</gone/nothing>; rel=gone")], "x"),
        _ => answer("200 OK", &[], ""),
    });
    let server = TestServer::before(&origin);
    let gone = |wanted: &[&str]| {
        let all = || -> Vec<Request> {
            let requests = origin.requests().into_iter();
            requests.filter(|request| request.target().starts_with("/gone/")).collect()
        };
        server.wait_until(Duration::from_secs(20), "gone links", || all().len() >= wanted.len());
        let targets: Vec<String> = all().iter().map(|request| request.target().to_owned()).collect();
        assert_eq!(targets, wanted);
        all()
    };
    let stream = server.stream("/stream");
    server.wait_pins("stream", 1);
    drop(stream);
    let request = gone(&["/gone/stream?x"]).remove(0);
    assert_eq!((request.method(), request.head.field("content-length")), ("POST", Some("0")));
    assert!(request.head.field("grip-sig").is_some() && request.body.is_empty());

    let mut client = server.connect();
    client.get("/poll");
    server.wait_pins("poll", 1);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "action": "hint" } } }]));
    server.wait_until(Duration::from_secs(20), "the poll is asked again", || {
        origin.requests().iter().filter(|request| request.target() == "/poll").count() == 2
    });
    server.wait_pins("poll", 1);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "body": "x" } } }]));
    assert_eq!(client.response().text(), "x");
    gone(&["/gone/stream?x", "/gone/poll"]);

    assert_eq!(server.get("/pages").text(), "1;");
    assert_eq!(server.get("/nothing").text(), "x");
    gone(&["/gone/stream?x", "/gone/poll", "/gone/pages"]);
    server.wait_metric("fantail_gone_links_total", &["result=\"told\""], 3.0);
}

/// More than can wait for a page, and no page behind that: the stream ends, it does not go on with a hole.
#[test]
fn what_does_not_fit_behind_the_last_page_ends_the_stream() {
    let (go, going) = std::sync::mpsc::channel();
    let going = std::sync::Mutex::new(going);
    let origin = Origin::answering(move |request| {
        if request.target() == "/" {
            return hold("stream", "c", &[("Grip-Link", "</next>; rel=next; timeout=0")], "first;");
        }
        going.lock().expect("no panic holds it").recv().expect("the test goes on");
        hold("stream", "c", &[], "page;")
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    server.publish(&json!([{ "channel": "c", "formats": { "http-stream": { "action": "hint" } } }]));
    origin.wait_requests(2);
    let items: Vec<Value> = (0..101).map(|n| stream_item("c", &format!("{n};"))).collect();
    assert_eq!(server.receipts(&json!(items)).len(), items.len());
    go.send(()).expect("the origin waits");
    client.expect("page;").expect(&(0..100).map(|n| format!("{n};")).collect::<String>());
    while client.chunk().is_some() {}
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
}
