//! Filters that ask the origin about an item (spec 6.8): what it is asked, what its answers mean, once for all who are
//! the same, and the order of what waits.

use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};
use tokio::time::Instant;

use fantail_proto::websocket::events::Event;

use crate::harness::{
    Client, Origin, Request, TestServer, answer, hold,
    websocket::{WebSocket, close, control, events, events_of, message, opened, subscribe},
};
use crate::many::allowed;

/// What lets an origin answer.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().expect("no panic") = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let open = self.0.0.lock().expect("no panic");
        drop(self.0.1.wait_while(open, |open| !*open).expect("no panic"));
    }
}

/// An origin that holds `/USER` with filters, and is asked at `/ask`.
fn asked(
    mode: &'static str,
    filters: &'static str,
    answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) -> Origin {
    Origin::answering(move |request| match request.target() {
        "/ask" => answer(request),
        target => {
            let user = format!("user=\"{}\"", &target[1..]);
            let meta = [("Grip-Set-Meta", "url=\"/ask\""), ("Grip-Set-Meta", user.as_str())];
            hold(mode, &format!("c; {filters}"), &meta, "")
        }
    })
}

fn keep() -> Vec<u8> {
    answer("200 OK", &[], "")
}

fn skip() -> Vec<u8> {
    answer("204 No Content", &[("Action", "drop")], "")
}

/// An item that says its id to every transport.
fn item(id: &str) -> Value {
    json!({ "channel": "c", "id": id, "meta": { "n": id }, "formats": {
        "http-stream": { "content": format!("[{id}]") },
        "http-response": { "body": format!("[{id}]") },
        "ws-message": { "content": format!("[{id}]") },
    } })
}

fn inquiries(origin: &Origin) -> Vec<Request> {
    origin.requests().into_iter().filter(|request| request.target() == "/ask").collect()
}

fn pub_meta(request: &Request) -> Value {
    serde_json::from_str(request.head.field("pub-meta").expect("Pub-Meta")).expect("JSON")
}

#[test]
fn an_origin_is_asked_once_for_all_who_are_the_same() {
    let origin = asked("stream", "filter=http-check, d", |request| {
        let meta = request.head.field("sub-meta").unwrap_or_default();
        if meta.contains("bob") { skip() } else { keep() }
    });
    let server = TestServer::before(&origin);
    let mut anns: Vec<_> = (0..40).map(|_| server.stream("/ann")).collect();
    let mut bob = server.stream("/bob");
    let receipt = server.receipts(&json!([item("1")])).remove(0);
    assert_eq!((&receipt["delivered"], &receipt["filtered"]), (&json!(40), &json!(1)), "{receipt}");
    for ann in &mut anns {
        ann.expect("[1]");
    }
    let asked = inquiries(&origin);
    assert_eq!(asked.len(), 2, "one for each kind of subscriber");
    for request in &asked {
        assert_eq!((request.method(), request.body.as_slice()), ("POST", &b""[..]));
        assert_eq!(pub_meta(request), json!({ "n": "1" }));
        let names: Vec<&str> = request.head.fields.iter().map(|(name, _)| name.as_str()).collect();
        let wanted = ["Host", "Grip-Sig", "Grip-Feature", "Sub-Meta", "Pub-Meta", "Content-Length"];
        let mut sorted = (names.clone(), wanted.to_vec());
        sorted.0.sort_unstable();
        sorted.1.sort_unstable();
        assert_eq!(sorted.0, sorted.1, "nothing of the client's");
    }
    let metas: Vec<_> = asked.iter().map(|request| request.head.field("sub-meta").unwrap()).collect();
    assert!(metas.contains(&r#"{"url":"/ask","user":"ann"}"#), "{metas:?}");
    server.publish(
        &json!([{ "channel": "c", "formats": { "http-stream": { "content": "x", "action": "close" } } }]),
    );
    for ann in &mut anns {
        ann.expect_end();
    }
    server.wait_metric("fantail_filter_questions_total", &["result=\"skipped\""], 2.0);
    server.wait_metric("fantail_filter_waiting", &[], 0.0);
    server.publish_stream("d", "nothing else;");
    bob.expect("nothing else;");
}

#[test]
fn items_of_a_channel_keep_their_order_while_one_is_asked_about() {
    let gate = Gate::default();
    let waits = gate.clone();
    let origin = Origin::answering(move |request| match request.target() {
        "/ask" => {
            if pub_meta(request)["n"] == "1" {
                waits.wait();
            }
            keep()
        }
        _ => hold("stream", "c; filter=http-check, d", &[("Grip-Set-Meta", "url=\"/ask\"")], ""),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    server.publish(&json!([item("1"), item("2"), item("3")]));
    origin.wait_requests(2);
    server.publish_stream("d", "other;");
    client.expect("other;");
    assert_eq!(server.metric("fantail_filter_waiting", &[]), 3.0);
    assert_eq!(inquiries(&origin).len(), 1, "the others have their turn later");
    gate.open();
    client.expect("[1][2][3]");
    assert_eq!(inquiries(&origin).len(), 3);
}

#[test]
fn content_is_the_origins_to_change() {
    for mode in ["stream", "response"] {
        let origin = asked(mode, "filter=var-subst; filter=http-modify; filter=var-subst", |request| {
            let said = String::from_utf8(request.body.clone()).expect("UTF-8");
            match said.as_str() {
                "keep ann" => answer("204 No Content", &[], ""),
                other => answer("200 OK", &[], format!("({other}, %(user)s)")),
            }
        });
        let server = TestServer::before(&origin);
        let said = |text: &str| {
            json!([{ "channel": "c", "formats": {
                "http-stream": { "content": text }, "http-response": { "body": text },
            } }])
        };
        let mut client = server.connect();
        client.get("/ann");
        if mode == "stream" {
            client.head();
            server.publish(&said("hi %(user)s"));
            client.expect("(hi ann, ann)");
            server.publish(&said("keep %(user)s"));
            client.expect("keep ann");
        } else {
            server.wait_pins("poll", 1);
            server.publish(&said("hi %(user)s"));
            assert_eq!(client.response().text(), "(hi ann, ann)");
        }
        assert_eq!(server.metric("fantail_filter_questions_total", &["result=\"replaced\""]), 1.0);
    }
}

#[test]
fn a_long_poll_waits_for_an_item_that_it_is_to_have() {
    let origin =
        asked(
            "response",
            "filter=http-check",
            |request| {
                if pub_meta(request)["n"] == "2" { keep() } else { skip() }
            },
        );
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/ann");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("1"), item("2"), item("3")]));
    assert_eq!(client.response().text(), "[2]");
    server.wait_metric("fantail_filter_waiting", &[], 0.0);
}

/// Content and closes of WebSockets, whose origins name filters as they go.
#[test]
fn websockets_are_asked_about() {
    let origin = Origin::answering(|request| {
        let filters = json!({ "type": "subscribe", "channel": "c", "filters": ["http-modify"] });
        let meta = json!({ "type": "set-meta", "name": "url", "value": "/ask" });
        match request.target() {
            "/ask" => match pub_meta(request)["n"].as_str() {
                Some("skip") => skip(),
                _ if request.body.is_empty() => answer("204 No Content", &[], ""),
                _ => answer("200 OK", &[], [b"new ", &request.body[..]].concat()),
            },
            _ if events_of(request) == [Event::Open] => {
                opened(&[control(&meta.to_string()), control(&filters.to_string()), message("m:ready")])
            }
            _ => events(&[]),
        }
    });
    let server = TestServer::start(&[&format!("* {},over_http", origin.address())], |_| {});
    let mut client = WebSocket::open(&server, "/ws");
    client.expect_text("ready");
    server.publish(&json!([item("skip"), item("1")]));
    client.expect_text("new [1]");
    let mut closing =
        json!({ "channel": "c", "formats": { "ws-message": { "action": "close", "code": 4000 } } });
    closing["meta"] = json!({ "n": "skip" });
    server.publish(&json!([closing]));
    server.publish(&json!([item("2")]));
    client.expect_text("new [2]");
    closing["meta"] = json!({ "n": "go" });
    server.publish(&json!([closing]));
    client.expect(close(4000, ""));
}

/// Other filters count at once, also for what waits.
#[test]
fn what_waits_is_looked_at_again_with_other_filters() {
    let gate = Gate::default();
    let waits = gate.clone();
    let origin = Origin::answering(move |request| {
        let filters = json!({ "type": "subscribe", "channel": "c", "filters": ["http-check"] });
        let meta = json!({ "type": "set-meta", "name": "url", "value": "/ask" });
        match request.target() {
            "/ask" => {
                waits.wait();
                skip()
            }
            _ if events_of(request) == [Event::Open] => {
                opened(&[control(&meta.to_string()), control(&filters.to_string()), message("m:ready")])
            }
            _ => events(&[subscribe("c"), message("m:changed")]),
        }
    });
    let server = TestServer::start(&[&format!("* {},over_http", origin.address())], |_| {});
    let mut client = WebSocket::open(&server, "/ws");
    client.expect_text("ready");
    server.publish(&json!([item("1"), item("2")]));
    origin.wait_requests(2);
    client.text("change").expect_text("[1]").expect_text("[2]").expect_text("changed");
    gate.open();
    server.publish(&json!([item("3")]));
    client.expect_text("[3]");
}

#[test]
fn failures_lose_the_item_for_its_subscriber_alone() {
    let origin = asked("stream", "filter=http-modify", |request| match pub_meta(request)["n"].as_str() {
        Some("status") => answer("500 Internal Server Error", &[], ""),
        Some("redirect") => answer("302 Found", &[("Location", "/")], ""),
        Some("large") => answer("200 OK", &[], vec![b'x'; 100_001]),
        Some("broken") => b"nonsense\r\n\r\n".to_vec(),
        Some("most") => answer("200 OK", &[], vec![b'x'; 100_000]),
        _ => answer("200 OK", &[], "good"),
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/ann");
    let names = ["status", "redirect", "large", "broken"];
    let items: Vec<Value> = names.iter().map(|name| item(name)).collect();
    for receipt in server.receipts(&json!(items)) {
        assert_eq!(
            (&receipt["delivered"], &receipt["dropped"]["filter"]),
            (&json!(0), &json!(1)),
            "{receipt}"
        );
    }
    server.publish(&json!([item("most"), item("last")]));
    client.expect(&format!("{}good", "x".repeat(100_000)));
    assert_eq!(server.metric("fantail_filter_questions_total", &["result=\"failed\""]), 4.0);
    assert_eq!(server.metric("fantail_deliveries_dropped_total", &["cause=\"filter\""]), 4.0);
}

#[test]
fn failures_are_told_with_debug() {
    let origin = Origin::answering(|request| {
        let url = match request.target() {
            "/status" => "url=\"/ask\"",
            "/none" => "user=\"ann\"",
            "/strange" => "url=\"ftp://h/\"",
            "/nobody" => "url=\"http://127.0.0.1:1/\"",
            _ => return answer("404 Not Found", &[], ""),
        };
        hold("response", "c; filter=http-check", &[("Grip-Set-Meta", url)], "")
    });
    let server = TestServer::start(&[&format!("*,debug {}", origin.address())], |options| {
        options.set("grip.link_hosts", "[\"127.0.0.1:1\"]");
    });
    for (path, why) in [
        ("/status", "unexpected network request status: code=404"),
        ("/none", "missing url value"),
        ("/strange", "invalid url value"),
        ("/nobody", "network request failed: connection refused"),
    ] {
        let mut client = server.connect();
        client.get(path);
        server.wait_pins("poll", 1);
        server.publish(&json!([item("1")].map(|mut item| {
            item.as_object_mut().unwrap().remove("id");
            item
        })));
        let got = client.response();
        assert_eq!((got.status(), got.text()), (502, format!("filter error: {why}\n")), "{path}");
        server.wait_pins("poll", 0);
    }
}

/// Whoever is silent is given up after ten seconds.
#[test]
fn a_silent_origin_is_waited_for_ten_seconds() {
    let gate = Gate::default();
    let waits = gate.clone();
    let origin = asked("stream", "filter=http-check", move |request| {
        if pub_meta(request)["n"] == "1" {
            waits.wait();
        }
        keep()
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/ann");
    let began = Instant::now();
    server.publish(&json!([item("1"), item("2")]));
    client.expect("[2]");
    let took = began.elapsed();
    assert!((9..16).contains(&took.as_secs()), "{took:?}");
    gate.open();
}

#[test]
fn a_url_may_lead_elsewhere() {
    let other = Origin::answering(|_| keep());
    let url = format!("url=\"http://{}/check?a=b\"", other.address());
    let origin = Origin::answering(move |_| {
        hold("stream", "c; filter=http-check", &[("Grip-Set-Meta", url.as_str())], "")
    });
    let server = TestServer::start(&[&format!("* {}", origin.address())], |options| {
        options.set("grip.link_hosts", &format!("[\"{}\"]", other.address()));
    });
    let mut client = server.stream("/");
    server.publish(&json!([item("1")]));
    client.expect("[1]");
    let request = other.wait_requests(1).remove(0);
    assert_eq!((request.method(), request.target()), ("POST", "/check?a=b"));
    assert_eq!(request.head.field("host"), Some(other.address().to_string().as_str()));
}

/// What an error has lost is missing, and is fetched.
#[test]
fn a_stream_that_has_lost_an_item_so_is_repaired() {
    let origin = Origin::answering(|request| {
        let link = ("Grip-Link", "</next>; rel=next; timeout=0");
        let meta = ("Grip-Set-Meta", "url=\"/ask\"");
        match request.target() {
            "/ask" if pub_meta(request)["n"] == "2" => answer("500 Oh", &[], ""),
            "/ask" => keep(),
            "/next" => hold("stream", "c; prev-id=3; filter=http-check", &[link, meta], "page;"),
            _ => hold("stream", "c; prev-id=0; filter=http-check", &[link, meta], "first;"),
        }
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("first;");
    let after = |prev: &str, id: &str| {
        let mut item = item(id);
        item["prev-id"] = prev.into();
        item
    };
    server.publish(&json!([after("0", "1"), after("1", "2"), after("2", "3"), after("3", "4")]));
    client.expect("[1]page;[4]");
    let next: Vec<_> = origin.requests().into_iter().filter(|r| r.target() == "/next").collect();
    assert_eq!(next[0].head.all("grip-last"), ["c; last-id=1"]);
    let asked = inquiries(&origin);
    assert_eq!(asked[0].head.all("grip-last"), ["c; last-id=0"]);
}

/// More than may wait is a gap: the client is told by the end.
#[test]
fn who_has_too_many_waiting_is_ended() {
    let gate = Gate::default();
    let waits = gate.clone();
    let origin = asked("stream", "filter=http-check", move |_| {
        waits.wait();
        keep()
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/ann");
    let items: Vec<Value> = (1..=357).map(|n| item(&n.to_string())).collect();
    server.publish(&json!(items));
    client.expect_end();
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
    server.wait_metric("fantail_filter_waiting", &[], 0.0);
    gate.open();
}

/// What a log has for a subscriber is asked about like what is published, and before it.
#[test]
fn items_of_a_log_are_asked_about() {
    let origin = asked("stream", "last=300; filter=http-check", |request| {
        if pub_meta(request)["n"] == "250" { skip() } else { keep() }
    });
    let server = TestServer::start(&[&format!("* {}", origin.address())], |options| {
        options.config("[[log]]\nmatch = \"c\"\nitems = 400\n");
    });
    let items: Vec<Value> = (1..=300).map(|n| item(&n.to_string())).collect();
    server.publish(&json!(items));
    let mut client = server.stream("/ann");
    server.publish(&json!([item("301")]));
    let expected: String = (1..=301).filter(|n| *n != 250).map(|n| format!("[{n}]")).collect();
    client.expect(&expected);
}

/// More subscribers than get an answer at once, and two questions about each item: the answer to the first is given to the
/// second half when the second question has been asked, perhaps answered, for the first half.
#[test]
fn an_answer_takes_no_other_questions_place() {
    let count = allowed(1100);
    for mode in ["stream", "response"] {
        let origin = asked(mode, "filter=http-check; filter=http-modify", |request| {
            if request.body.is_empty() {
                return keep();
            }
            answer("200 OK", &[], [b"(", &request.body[..], b")"].concat())
        });
        let server = TestServer::start(&[&format!("* {}", origin.address())], |options| {
            options.set("server.shards", "1");
        });
        let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(|client| _ = client.get("/ann"));
        server.wait_pins(if mode == "stream" { "stream" } else { "poll" }, count);
        if mode == "response" {
            server.publish(&json!([item("1")]));
            for client in &mut clients {
                assert_eq!(client.response().text(), "([1])");
            }
        } else {
            clients.iter_mut().for_each(|client| assert_eq!(client.head().status(), 200));
            server.publish(&json!([item("1"), item("2")]));
            server.publish(&json!([item("3")]));
            clients.iter_mut().for_each(|client| _ = client.expect("([1])([2])([3])"));
        }
        let checks = inquiries(&origin).iter().filter(|request| request.body.is_empty()).count();
        // Once for all, or a little more often where the first answers come before the last are looked at.
        assert!(checks < 20, "{checks}");
        server.wait_metric("fantail_filter_waiting", &[], 0.0);
    }
}

/// What was to be asked for subscribers that have left before its turn is not asked.
#[test]
fn nobody_asks_for_who_has_left() {
    let gate = Gate::default();
    let waits = gate.clone();
    let origin = asked("stream", "filter=http-check", move |_| {
        waits.wait();
        keep()
    });
    let server = TestServer::start(&[&format!("* {}", origin.address())], |options| {
        options.set("server.shards", "1");
    });
    let mut clients: Vec<Client> = (0..260).map(|n| server.stream(&format!("/{n}"))).collect();
    server.publish(&json!([item("1")]));
    origin.wait_requests(260 + 256);
    let mut asked = [false; 260];
    for request in inquiries(&origin) {
        let meta: Value =
            serde_json::from_str(request.head.field("sub-meta").expect("Sub-Meta")).expect("JSON");
        asked[meta["user"].as_str().expect("text").parse::<usize>().expect("a number")] = true;
    }
    let mut place = 0..;
    clients.retain(|_| place.next().is_some_and(|place| asked[place]));
    assert_eq!(clients.len(), 256);
    server.wait_pins("stream", 256);
    gate.open();
    clients.iter_mut().for_each(|client| _ = client.expect("[1]"));
    server.wait_metric("fantail_filter_waiting", &[], 0.0);
    server.publish(&json!([item("2")]));
    clients.iter_mut().for_each(|client| _ = client.expect("[2]"));
    assert_eq!(inquiries(&origin).len(), 2 * 256);
}

/// Questions that wait have a limit of bytes, with what they may have to say after the first answer; what is beyond it
/// has its turn later, and in order.
#[test]
fn questions_that_find_no_room_are_asked_later() {
    let gate = Gate::default();
    let waits = gate.clone();
    let filters = "filter=var-subst; filter=http-check; filter=http-modify";
    let origin = asked("stream", filters, move |_| {
        // Checks have no content, so that little is sent in the ten seconds that an answer has.
        waits.wait();
        answer("204 No Content", &[], "")
    });
    let server = TestServer::start(&[&format!("* {}", origin.address())], |options| {
        options.set("server.shards", "1");
    });
    let mut clients: Vec<Client> = (0..200).map(|n| server.stream(&format!("/{n}"))).collect();
    let tail = "x".repeat(100_000);
    let said = |text: String| json!([{ "channel": "c", "formats": { "http-stream": { "content": text } } }]);
    server.publish(&said(format!("%(user)s{tail}")));
    server.publish(&said("%(user)s;".to_owned()));
    server.wait_metric("fantail_filter_waiting", &[], 400.0);
    // 16 MiB of 100 kB and some, each.
    origin.wait_requests(200 + 160);
    drop(server.stream("/another"));
    assert!(inquiries(&origin).len() < 170, "{}", inquiries(&origin).len());
    gate.open();
    for (n, client) in clients.iter_mut().enumerate() {
        client.expect(&format!("{n}{tail}{n};"));
    }
    server.wait_metric("fantail_filter_waiting", &[], 0.0);
}
