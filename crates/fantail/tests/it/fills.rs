//! Gaps that are filled from the logs of channels, on every transport: what was missed comes in order, before what is
//! published, once; what no log can prove is repaired by the origin or ends.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use fantail_proto::{item::WsKind, websocket::events::Event};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{
    Client, JSON, Origin, Request, TestServer, WebSocket, answer, hold,
    websocket::{close, control, events, native, opened, over_http, text},
};

const MEMORY: &str = "[[log]]\nmatch = \"c*\"\n";

/// A channel and whatever the target says about the subscription: `/stream?prev-id=3` is `c; prev-id=3`.
fn channel(request: &Request) -> String {
    let query = request.target().split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|p| !p.is_empty()).fold("c".into(), |channel, p| format!("{channel}; {p}"))
}

fn origin() -> Origin {
    Origin::answering(|r| {
        let mode = if r.target().starts_with("/poll") { "response" } else { "stream" };
        hold(mode, &channel(r), &[], "")
    })
}

fn logging(origin: &Origin, toml: &str) -> TestServer {
    TestServer::start(&[&format!("* {origin}")], |o| {
        o.config(toml);
    })
}

fn item(id: u32) -> Value {
    let content = format!("{id};");
    json!({
        "channel": "c",
        "id": id.to_string(),
        "http-stream": { "content": content },
        "http-response": { "body": content },
        "ws-message": { "content": content },
    })
}

fn publish(server: &TestServer, ids: std::ops::RangeInclusive<u32>) {
    server.publish(&json!(ids.map(item).collect::<Vec<_>>()));
}

fn all(ids: std::ops::RangeInclusive<u32>) -> String {
    ids.map(|id| format!("{id};")).collect()
}

#[test]
fn a_stream_begins_behind_the_id_that_its_client_has() {
    let origin = origin();
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=5);
    let mut client = server.stream("/stream?prev-id=2");
    client.expect("3;4;5;");
    let mut newest = server.stream("/stream?prev-id=5");
    publish(&server, 6..=6);
    client.expect("6;");
    newest.expect("6;");
    publish(&server, 7..=8);
    client.expect("7;8;");
    newest.expect("7;8;");
    server.wait_metric("fantail_log_fills_total", &["result=\"proven\""], 2.0);
    server.wait_metric("fantail_log_fill_items_total", &[], 3.0);
    assert_eq!(origin.requests().len(), 2, "the origin hears nothing of it");
}

#[test]
fn a_stream_that_no_log_vouches_for_ends() {
    let origin = origin();
    let server = logging(&origin, "[[log]]\nmatch = \"c*\"\nitems = 2\n");
    publish(&server, 1..=5);
    for id in ["1", "3", "9"] {
        // Its origin is asked once more, and says the same.
        let mut client = server.stream(&format!("/stream?prev-id={id}"));
        client.expect_end();
    }
    let mut client = server.stream("/stream?prev-id=4");
    client.expect("5;");
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 3.0);
    server.wait_metric("fantail_log_fills_total", &["result=\"unproven\""], 3.0);
    server.wait_pins("stream", 1);
}

/// An origin that is told may know what the log does not, or tell its client.
#[test]
fn an_origin_is_told_of_what_its_stream_may_have_missed() {
    let origin = Origin::answering(|r| match (r.target(), r.head.field("grip-last")) {
        ("/stream?prev-id=x", Some(_)) => hold("stream", "c", &[], "what was missed;"),
        _ => hold("stream", &channel(r), &[], "first;"),
    });
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=2);
    let mut client = server.stream("/stream?prev-id=x");
    client.expect("what was missed;");
    publish(&server, 3..=3);
    client.expect("3;");
    let requests = origin.requests();
    assert_eq!(requests[1].head.all("grip-last"), ["c; last-id=x"]);
    assert_eq!(requests.len(), 2);
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 0.0);
}

/// Else its client would come back with the same id for ever.
#[test]
fn a_client_of_events_forgets_an_id_that_is_of_no_use() {
    let origin = Origin::answering(|r| {
        let (events, channel) = ("Text/Event-Stream; charset=utf-8", channel(r));
        let fields = [("Content-Type", events), ("Grip-Hold", "stream"), ("Grip-Channel", &channel)];
        answer("200 OK", &fields, ":\n\n")
    });
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=2);
    let mut client = server.stream("/stream?prev-id=x");
    client.expect(":\n\n\nid\n\n").expect_end();
    assert_eq!(origin.requests().len(), 2, "it was asked once more");
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
}

#[test]
fn late_joiners_begin_with_the_newest() {
    let origin = Origin::answering(|r| match r.target() {
        "/json" => {
            let json = r#"{"hold":{"mode":"stream","channels":[{"name":"c","last":2}]}}"#;
            answer("200 OK", &[("Content-Type", "application/grip-instruct")], json)
        }
        _ => hold("stream", &channel(r), &[], "first "),
    });
    let server = logging(&origin, MEMORY);
    server.stream("/?last=3").expect("first ");
    publish(&server, 1..=5);
    // Only for those who are there.
    server.publish(&json!([{ "channel": "c", "http-stream": { "action": "hint" } }]));
    let targets = [
        ("/?last=3", "first 4;5;"),
        ("/?last=99", "first 1;2;3;4;5;"),
        ("/?since=60s", "first 1;2;3;4;5;"),
        ("/?last=0", "first "),
        ("/json", "5;"),
        ("/?prev-id=3&last=1", "first 4;5;"),
    ];
    let mut clients = targets.map(|(target, expected)| {
        let mut client = server.stream(target);
        client.expect(expected);
        client
    });
    publish(&server, 6..=7);
    clients.iter_mut().for_each(|client| _ = client.expect("6;7;"));
    assert_eq!(server.get("/?last=x").status(), 502);
}

/// What filters make of a log for one subscriber is not kept for another.
#[test]
fn what_filters_make_of_a_log_does_not_gather() {
    const BYTES: usize = 100_000;
    let origin = Origin::answering(|r| {
        let meta = format!("user=\"{}\"", r.target().trim_start_matches('/'));
        hold("stream", "c; filter=var-subst; last=1", &[("Grip-Set-Meta", &meta)], "")
    });
    let server = logging(&origin, MEMORY);
    let content = format!("%(user)s;{}", "x".repeat(BYTES));
    server.publish(&json!([{ "channel": "c", "id": "1", "http-stream": { "content": content } }]));
    let connect = |user: u32| {
        let got = server.stream(&format!("/{user}")).content(BYTES);
        assert!(got.starts_with(format!("{user};x").as_bytes()), "{user}");
    };
    (0..20).for_each(connect);
    let before = server.memory();
    (20..520).for_each(connect);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 40 << 20, "{grown} bytes");
}

#[test]
fn a_poll_is_answered_with_the_next_item() {
    let origin = origin();
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=4);
    server.publish(&json!([{ "channel": "c", "id": "s", "http-stream": { "content": "for streams" } }]));
    publish(&server, 5..=5);
    let mut client = server.connect();
    for (have, next) in [("1", "2;"), ("2", "3;"), ("4", "5;"), ("s", "5;")] {
        assert_eq!(client.get(&format!("/poll?prev-id={have}")).response().text(), next);
    }
    client.get("/poll?prev-id=5");
    server.wait_pins("poll", 1);
    publish(&server, 6..=6);
    assert_eq!(client.response().text(), "6;");
    assert_eq!(client.get("/poll?last=1").response().text(), "6;");
}

/// What answers it is one item, however far it is behind.
#[test]
fn a_poll_that_is_far_behind_costs_little() {
    let origin = origin();
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=500);
    let mut client = server.connect();
    for have in 1..=10 {
        let next = format!("{};", have + 1);
        assert_eq!(client.get(&format!("/poll?prev-id={have}")).response().text(), next);
    }
    let items = server.metric("fantail_log_fill_items_total", &[]);
    assert!(items <= 40.0, "{items}");
}

/// Its log does not know what it has: only its origin can tell what it has missed.
#[test]
fn a_poll_that_no_log_vouches_for_is_asked_about() {
    let origin = origin();
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=3);
    let mut client = server.connect();
    client.get("/poll?prev-id=lost");
    let requests = origin.wait_requests(2);
    assert_eq!(requests[1].head.all("grip-last"), ["c; last-id=lost"]);
    server.wait_pins("poll", 1);
    publish(&server, 4..=4);
    // It does not follow.
    origin.wait_requests(3);
}

fn subscribing(more: &'static str) -> impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static {
    move |_| opened(&[control(&format!(r#"{{"type":"subscribe","channel":"c"{more}}}"#))])
}

fn over_http_server(origin: &Origin) -> TestServer {
    TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.config(MEMORY);
    })
}

#[test]
fn a_websocket_gets_what_it_has_missed() {
    let origin = over_http(subscribing(r#","prev-id":"2""#), |_, _| events(&[]));
    let server = over_http_server(&origin);
    publish(&server, 1..=5);
    let mut client = WebSocket::open(&server, "/");
    for content in ["3;", "4;", "5;"] {
        client.expect_text(content);
    }
    publish(&server, 6..=6);
    client.expect_text("6;");
    let late = over_http(subscribing(r#","last":2"#), |_, _| events(&[]));
    let server = over_http_server(&late);
    publish(&server, 1..=5);
    let mut client = WebSocket::open(&server, "/");
    client.expect_text("4;").expect_text("5;");
    publish(&server, 6..=6);
    client.expect_text("6;");
}

/// The origin is asked once, and says what was missed, or nothing.
#[test]
fn an_origin_is_told_of_what_its_websocket_may_have_missed() {
    let origin = over_http(subscribing(r#","prev-id":"x""#), |request, said| {
        if said.is_empty() && request.head.field("grip-last").is_some() {
            let again = control(r#"{"type":"subscribe","channel":"c","prev-id":"y"}"#);
            let missed = Event::Message(WsKind::Text, "m:what was missed".into());
            return events(&[missed, again]);
        }
        events(&[])
    });
    let server = over_http_server(&origin);
    publish(&server, 1..=2);
    let mut client = WebSocket::open(&server, "/");
    client.expect_text("what was missed");
    let requests = origin.wait_requests(2);
    assert_eq!(requests[1].head.all("grip-last"), ["c; last-id=x"]);
    publish(&server, 3..=3);
    client.expect_text("3;");
    client.text("hello");
    let requests = origin.wait_requests(3);
    assert!(requests[2].head.all("grip-last").is_empty(), "it has had its say");
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], 1.0);
}

/// However many may have missed something at the same time: origins are asked at their rate, and of each once.
#[test]
fn origins_are_told_of_gaps_at_a_rate() {
    const CLIENTS: usize = 40;
    let start = |origin: &Origin, more: &str| {
        TestServer::start(&[&format!("* {origin}{more}")], |o| {
            o.config(MEMORY).set("server.shards", "1").set("grip.updates_per_second", "20");
        })
    };
    let told = |origin: &Origin, begun: Instant| {
        let requests = origin.wait_requests(2 * CLIENTS);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1800), "{CLIENTS} in {took:?}");
        let told = requests.iter().filter(|request| request.head.field("grip-last").is_some());
        assert_eq!(told.count(), CLIENTS);
    };
    let websockets = over_http(subscribing(r#","prev-id":"x""#), |_, _| events(&[]));
    let server = start(&websockets, ",over_http");
    let begun = Instant::now();
    let _open: Vec<_> = (0..CLIENTS).map(|_| WebSocket::open(&server, "/")).collect();
    told(&websockets, begun);
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], CLIENTS as f64);

    let streams = origin();
    let server = start(&streams, "");
    publish(&server, 1..=2);
    let begun = Instant::now();
    let _held: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = server.connect();
            client.get("/stream?prev-id=x");
            client
        })
        .collect();
    told(&streams, begun);
}

/// Without a log its origin says what was missed: nothing that is published comes before it has, nor twice.
#[test]
fn what_is_published_waits_for_what_the_origin_says() {
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let opens = Arc::clone(&gate);
    let subscribe = |id: u32| control(&format!(r#"{{"type":"subscribe","channel":"c","prev-id":"{id}"}}"#));
    let said = move |id: u32| Event::Message(WsKind::Text, format!("m:{id};").into());
    let origin = over_http(
        move |_| opened(&[subscribe(3)]),
        move |request, _| {
            let Some(last) = request.head.field("grip-last") else { return events(&[]) };
            // Whatever else it is asked: it knows nothing new.
            if !["c; last-id=3", "c; last-id=7", "c; last-id=10"].contains(&last) {
                return events(&[]);
            }
            let (open, rung) = &*gate;
            let mut open = rung.wait_while(open.lock().unwrap(), |open| *open == 0).unwrap();
            *open -= 1;
            match last {
                "c; last-id=3" => events(&[said(4), said(5), subscribe(5)]),
                "c; last-id=7" => events(&[said(8), said(9), said(10), subscribe(10)]),
                _ => events(&[]),
            }
        },
    );
    let server = TestServer::start(&[&format!("* {origin},over_http")], |_| {});
    let chained = |id: u32| {
        let mut item = item(id);
        item["prev-id"] = (id - 1).to_string().into();
        item["no-seq"] = true.into();
        item
    };
    let goes_on = || {
        *opens.0.lock().unwrap() += 1;
        opens.1.notify_all();
    };
    let mut client = WebSocket::open(&server, "/");
    origin.wait_requests(2);
    server.publish(&json!([chained(4), chained(5), chained(6)]));
    goes_on();
    // What was said and published comes once, and then what follows.
    client.expect_text("4;").expect_text("5;").expect_text("6;");
    server.publish(&json!([chained(6), chained(7)]));
    client.expect_text("7;");
    // It knows of more than was published, and a part of that comes later.
    server.publish(&json!([chained(9)]));
    origin.wait_requests(3);
    goes_on();
    client.expect_text("8;").expect_text("9;").expect_text("10;");
    server.publish(&json!([chained(10), chained(11)]));
    goes_on();
    client.expect_text("11;");
    let mut loose = item(12);
    loose.as_object_mut().unwrap().remove("id");
    server.publish(&json!([loose, chained(20)]));
    client.expect_text("12;").expect_text("20;");
}

/// An origin that cannot say what is missing does not leave a hole.
#[test]
fn a_websocket_is_closed_when_its_origin_does_not_know() {
    let origin = over_http(subscribing(r#","prev-id":"3""#), |_, _| events(&[]));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |_| {});
    let mut client = WebSocket::open(&server, "/");
    origin.wait_requests(2);
    let mut late = item(9);
    late["prev-id"] = "8".into();
    server.publish(&json!([late]));
    client.expect(close(1013, ""));
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
}

#[test]
fn a_native_websocket_is_closed_for_a_gap() {
    let origin = native("grip", |mut client| {
        client.text(r#"c:{"type":"subscribe","channel":"c","prev-id":"x"}"#);
        drop(client.next());
    });
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=2);
    let mut client = WebSocket::open(&server, "/");
    client.expect(close(1013, ""));
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
    let origin = native("grip", |mut client| {
        client.text(r#"c:{"type":"subscribe","channel":"c","prev-id":"1"}"#);
        drop(client.next());
    });
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=2);
    WebSocket::open(&server, "/").expect(text("2;"));
}

/// Clients that come while items are published: nobody misses one, gets one twice, or in another order.
#[test]
fn nothing_is_missed_or_repeated_while_items_are_published() {
    const LAST: u32 = 400;
    let origin = Origin::answering(|r| match r.target().starts_with("/ws") {
        true => {
            let id = r.target().rsplit('=').next().unwrap_or_default().to_owned();
            let said = format!(r#"{{"type":"subscribe","channel":"c","prev-id":"{id}"}}"#);
            let opens = crate::harness::websocket::events_of(r).contains(&Event::Open);
            if opens { opened(&[control(&said)]) } else { events(&[]) }
        }
        false => hold("stream", &channel(r), &[], ""),
    });
    let routes = [format!("*,path_beg=/ws {origin},over_http"), format!("* {origin}")];
    let server = TestServer::start(&[&routes[0], &routes[1]], |o| {
        o.config(MEMORY);
    });
    publish(&server, 1..=50);
    thread::scope(|scope| {
        for n in 0..24 {
            let server = &server;
            scope.spawn(move || {
                let from = 1 + n * 2;
                let content: u32 = if n % 2 == 0 { from } else { 50 };
                let expected = all(content + 1..=LAST);
                if n % 3 == 0 {
                    let mut client = WebSocket::open(server, &format!("/ws?prev-id={content}"));
                    (content + 1..=LAST).for_each(|id| _ = client.expect_text(&format!("{id};")));
                } else {
                    server.stream(&format!("/stream?prev-id={content}")).expect(&expected);
                }
            });
        }
        scope.spawn(|| (51..=LAST).for_each(|id| publish(&server, id..=id)));
    });
}

/// A long absence is filled piece by piece, at the client's pace, whatever the limit of its queue.
#[test]
fn a_slow_client_gets_a_long_stretch() {
    let origin = origin();
    let toml = "[client]\nqueue_bytes = 65536\n[[log]]\nmatch = \"c\"\nitems = 5000\nbytes = 10000000\n";
    let server = logging(&origin, toml);
    let content = "x".repeat(1000);
    for ids in (0..3000).collect::<Vec<u32>>().chunks(300) {
        let items = ids.iter().map(|id| {
            json!({ "channel": "c", "id": id.to_string(), "http-stream": { "content": format!("{id}{content}") } })
        });
        server.publish(&json!(items.collect::<Vec<_>>()));
    }
    let mut client = server.connect();
    client.narrow().get("/stream?prev-id=0");
    server.wait_pins("stream", 1);
    // Published while it reads: after what it has missed, or as a part of that.
    server.publish(&json!([{ "channel": "c", "id": "3000", "http-stream": { "content": "end" } }]));
    assert_eq!(client.head().status(), 200);
    for id in 1..3000 {
        client.expect(&format!("{id}{content}"));
    }
    client.expect("end");
    server.publish(&json!([{ "channel": "c", "id": "3001", "http-stream": { "content": "live" } }]));
    client.expect("live");
}

#[test]
fn many_who_need_the_same_cost_one_read() {
    let origin = origin();
    let server = logging(&origin, &format!("[server]\nshards = 1\n{MEMORY}"));
    publish(&server, 1..=100);
    let clients: Vec<Client> = (0..200).map(|_| server.stream("/stream?prev-id=1")).collect();
    for mut client in clients {
        client.expect(&all(2..=100));
    }
    assert!(server.metric("fantail_log_reads_total", &[]) < 5.0);
}

#[test]
fn filters_count_for_what_was_missed() {
    let origin = Origin::answering(|r| {
        hold("stream", "c; prev-id=1; filter=skip-users", &[("Grip-Set-Meta", "user=\"bob\"")], r.target())
    });
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=1);
    let mut skipped = item(2);
    skipped["meta"] = json!({ "skip_users": "bob" });
    server.publish(&json!([skipped, item(3)]));
    server.stream("/").expect("/3;");
}

#[test]
fn a_log_on_disk_fills_gaps_after_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let toml = format!(
        "[server]\ndata_dir = \"{}\"\n[[log]]\nmatch = \"c\"\nstorage = \"disk\"\ndurability = \"synced\"\n",
        data.path().display()
    );
    let origin = origin();
    let server = logging(&origin, &toml);
    publish(&server, 1..=5);
    let body = json!({ "items": [item(6)] }).to_string();
    assert_eq!(server.control("POST", "/publish/", &JSON, body.as_bytes()).status(), 200);
    server.kill();
    let server = logging(&origin, &toml);
    let mut client = server.stream("/stream?prev-id=3");
    client.expect("4;5;6;");
    publish(&server, 5..=7);
    client.expect("7;");
    assert_eq!(server.connect().get("/poll?prev-id=6").response().text(), "7;");
}

/// A log that another configuration takes away proves nothing later.
#[test]
fn another_log_is_not_mistaken_for_the_old_one() {
    let origin = origin();
    let server = logging(&origin, MEMORY);
    publish(&server, 1..=3);
    let file = server.folder.path().join("fantail.toml");
    for toml in ["", MEMORY] {
        std::fs::write(&file, toml).unwrap();
        let reloads = || server.log().iter().filter(|line| line.contains("routes loaded")).count();
        let before = reloads();
        server.signal(rustix::process::Signal::HUP);
        server.wait_until(Duration::from_secs(20), "a reload", || reloads() > before);
        publish(&server, 4..=4);
    }
    publish(&server, 5..=5);
    server.stream("/stream?prev-id=3").expect_end();
    server.stream("/stream?prev-id=5").expect("");
}

/// What was read for one who takes it as it is, is compressed for the next who wants that.
#[test]
fn a_stretch_is_compressed_for_who_comes_later() {
    let origin = over_http(subscribing(r#","last":5"#), |_, _| events(&[]));
    let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.config(format!("[server]\nshards = 1\n[websocket]\ndeflate = true\n{MEMORY}"));
    });
    let content = |id: u32| format!("{id} {}", "again and again ".repeat(20));
    let items = (1..=5)
        .map(|id| json!({ "channel": "c", "id": id.to_string(), "ws-message": { "content": content(id) } }));
    server.publish(&json!(items.collect::<Vec<_>>()));
    for fields in [&[][..], &[("Sec-WebSocket-Extensions", "permessage-deflate")]] {
        let mut client = WebSocket::open_with(server.client, "/", fields);
        (1..=5).for_each(|id| _ = client.expect_text(&content(id)));
    }
}
