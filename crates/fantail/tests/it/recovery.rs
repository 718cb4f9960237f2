//! Long-polls that have missed something, or may have: their origins are asked again (checks 31–34).

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Client, Origin, TestServer, hold, poll_item};

fn item(id: &str, prev_id: Option<&str>) -> Value {
    let mut item = poll_item("c", &format!("item {id}"));
    item["id"] = id.into();
    if let Some(prev_id) = prev_id {
        item["prev-id"] = prev_id.into();
    }
    item
}

fn poll(server: &TestServer, target: &str) -> Client {
    let mut client = server.connect();
    client.get(target);
    client
}

/// Check 31.
#[test]
fn a_poll_that_has_missed_something_is_asked_about_again() {
    let origin = Origin::fixed(hold("response", "c; prev-id=3", &[], ""));
    let server = TestServer::start(&[&format!("*,prefix=p- {origin}")], |_| {});
    let publish = |id: &str, prev_id: Option<&str>| {
        let mut item = item(id, prev_id);
        item["channel"] = "p-c".into();
        server.receipts(&json!([item])).remove(0)
    };
    let mut client = poll(&server, "/a?b");
    server.wait_pins("poll", 1);
    assert_eq!(publish("4", Some("3"))["delivered"], 1);
    assert_eq!(client.response().text(), "item 4");

    // The order of the channel is that of the items; this hold is behind them, and so asked about at once.
    client.request("GET", "/a?b", &[("X-Own", "1")], b"");
    let requests = origin.wait_requests(3);
    server.wait_pins("poll", 1);
    assert_eq!(requests[2].target(), "/a?b");
    assert_eq!(requests[2].head.field("x-own"), Some("1"), "it is the client's own request");
    assert_eq!(requests[2].head.all("grip-last"), ["c; last-id=3"]);
    assert!(requests[1].head.all("grip-last").is_empty());

    let receipt = publish("9", Some("8"));
    assert_eq!((&receipt["delivered"], &receipt["recovered"]), (&json!(0), &json!(1)), "{receipt}");
    let requests = origin.wait_requests(4);
    assert_eq!(requests[3].head.all("grip-last"), ["c; last-id=3"]);
    server.wait_pins("poll", 1);
    assert!(!client.hears_within(Duration::ZERO));
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], 1.0);
    server.wait_metric("fantail_updates_total", &["cause=\"contradiction\""], 1.0);

    // The origin has what was missed.
    assert_eq!(publish("4b", Some("3"))["delivered"], 1);
    assert_eq!(client.response().text(), "item 4b");
}

/// An item that does not say what it follows cannot be shown to follow; one that the origin knew of is no news.
#[test]
fn a_poll_knows_what_it_has() {
    let origin = Origin::fixed(hold("response", "c; prev-id=3", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    let receipt = server.receipts(&json!([item("3", Some("2"))])).remove(0);
    assert_eq!((&receipt["delivered"], &receipt["recovered"]), (&json!(0), &json!(1)), "{receipt}");
    assert_eq!(origin.requests().len(), 1);
    server.publish(&json!([poll_item("c", "no ids")]));
    origin.wait_requests(2);
    server.wait_pins("poll", 1);
    assert!(!client.hears_within(Duration::ZERO));
    server.publish(&json!([item("4", Some("3"))]));
    assert_eq!(client.response().text(), "item 4");
}

/// Items for other transports are a part of the channel's order, and those that a filter keeps away.
#[test]
fn a_poll_follows_what_it_does_not_get() {
    let more = [("Grip-Set-Meta", "user=u")];
    let origin = Origin::fixed(hold("response", "c; prev-id=3; filter=skip-users", &more, ""));
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    let mut skipped = item("5", Some("4"));
    skipped["meta"] = json!({ "skip_users": "u" });
    server.publish(&json!([
        { "channel": "c", "id": "4", "prev-id": "3", "formats": { "http-stream": { "content": "x" } } },
        skipped,
        item("6", Some("5")),
    ]));
    assert_eq!(client.response().text(), "item 6");
    assert_eq!(origin.requests().len(), 1);
}

/// Check 32, for a channel whose last poll has just been answered: it keeps its order for a while.
#[test]
fn a_hold_that_is_behind_is_asked_about_at_once() {
    let origin = Origin::answering(|request| {
        let prev_id = if request.head.field("grip-last").is_some() { "5" } else { "4" };
        hold("response", &format!("c; prev-id={prev_id}"), &[], "")
    });
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("5", Some("4"))]));
    assert_eq!(client.response().text(), "item 5");
    let begun = Instant::now();
    client.get("/again");
    let requests = origin.wait_requests(3);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(requests[2].head.all("grip-last"), ["c; last-id=4"]);
    server.wait_pins("poll", 1);
    server.publish(&json!([item("6", Some("5"))]));
    assert_eq!(client.response().text(), "item 6");
}

/// Those who are behind by the same item are asked about each; an origin that insists is believed.
#[test]
fn all_who_are_behind_are_asked_about() {
    let origin = Origin::answering(|request| {
        let insists = request.target() == "/insists";
        let prev_id = if request.head.field("grip-last").is_some() && !insists { "5" } else { "4" };
        hold("response", &format!("c; prev-id={prev_id}"), &[], "")
    });
    let server = TestServer::before(&origin);
    let mut first = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("5", Some("4"))]));
    assert_eq!(first.response().text(), "item 5");
    let mut clients: Vec<_> = (0..5).map(|_| poll(&server, "/behind")).collect();
    origin.wait_requests(1 + 2 * 5);
    clients.push(poll(&server, "/insists"));
    let requests = origin.wait_requests(1 + 2 * 5 + 2);
    server.wait_pins("poll", 6);
    assert_eq!(requests.iter().filter(|request| request.head.field("grip-last").is_some()).count(), 6);
    server.publish(&json!([item("6", Some("5"))]));
    for client in &mut clients[..5] {
        assert_eq!(client.response().text(), "item 6");
    }
    // What it said is behind the item, and it is asked once more.
    assert_eq!(origin.wait_requests(1 + 2 * 5 + 3).last().unwrap().target(), "/insists");
}

/// Asked again for another reason, its origin answers before the next item is there: it has not been told of that.
#[test]
fn who_is_asked_for_another_reason_does_not_insist() {
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let asked = AtomicUsize::new(0);
    let origin = Origin::answering(move |_| {
        let before = asked.fetch_add(1, Relaxed);
        // That of the hint.
        if before == 1 {
            held.lock().unwrap().recv().unwrap();
        }
        hold("response", if before < 2 { "c; prev-id=4" } else { "c; prev-id=5" }, &[], "")
    });
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "action": "hint" } } }]));
    origin.wait_requests(2);
    server.publish(&json!([item("5", Some("4"))]));
    go_on.send(()).unwrap();
    origin.wait_requests(3);
    server.wait_pins("poll", 1);
    server.publish(&json!([item("6", Some("5"))]));
    assert_eq!(client.response().text(), "item 6");
}

/// An origin that says something else each time is not asked for ever.
#[test]
fn an_origin_that_counts_otherwise_is_believed() {
    let said = AtomicUsize::new(10);
    let origin = Origin::answering(move |_| {
        hold("response", &format!("c; prev-id={}", said.fetch_add(1, Relaxed)), &[], "")
    });
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("5", Some("10"))]));
    assert_eq!(client.response().text(), "item 5");
    client.get("/");
    server.wait_metric("fantail_updates_total", &["cause=\"contradiction\""], 3.0);
    origin.wait_requests(5);
    server.wait_pins("poll", 1);
    server.publish(&json!([item("6", Some("14"))]));
    assert_eq!(client.response().text(), "item 6");
    assert_eq!(origin.requests().len(), 5);
}

/// A poll that was answered a moment ago comes back, whoever else has left meanwhile.
#[test]
fn a_stream_that_leaves_last_does_not_end_the_order_of_polls() {
    let origin = Origin::answering(|request| match request.target() {
        "/stream" => hold("stream", "c", &[], ""),
        _ => hold("response", "c; prev-id=4", &[], ""),
    });
    let server = TestServer::before(&origin);
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    let stream = server.stream("/stream");
    server.wait_pins("stream", 1);
    server.publish(&json!([item("5", Some("4"))]));
    assert_eq!(client.response().text(), "item 5");
    drop(stream);
    server.wait_pins("stream", 0);
    client.get("/again");
    assert_eq!(origin.wait_requests(4)[3].head.all("grip-last"), ["c; last-id=4"]);
}

/// Without lingering there is nothing to be behind of.
#[test]
fn a_channel_without_linger_forgets() {
    let origin = Origin::fixed(hold("response", "c; prev-id=4", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("hub.linger", "0s");
    });
    let mut client = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("5", Some("4"))]));
    client.response();
    server.wait_metric("fantail_hub_channels", &[], 0.0);
    client.get("/");
    server.wait_pins("poll", 1);
    assert_eq!(origin.requests().len(), 2);
}

/// Check 33.
#[test]
fn the_first_hold_of_a_channel_is_asked_about_again() {
    let origin = Origin::answering(|r| hold("response", r.target().trim_start_matches('/'), &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("grip.update_on_first_subscription", "true");
    });
    let begun = Instant::now();
    let mut client = poll(&server, "/c");
    origin.wait_requests(2);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(15), "{took:?}, not 1 s");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("1", None)]));
    assert_eq!(client.response().text(), "item 1");

    // The channel has had its first subscription; another has not.
    client.get("/c");
    let _other = poll(&server, "/d");
    let requests = origin.wait_requests(5);
    let again: Vec<_> = requests[4..].iter().map(|request| request.target()).collect();
    assert_eq!(again, ["/d"]);
    server.wait_metric("fantail_updates_total", &["cause=\"first\""], 2.0);
}

/// Check 34.
#[test]
fn hints_and_recover_ask_again() {
    let origin = Origin::fixed(hold("response", "c; prev-id=3", &[], ""));
    let server = TestServer::before(&origin);
    let _client = poll(&server, "/");
    server.wait_pins("poll", 1);
    server.publish(&json!([{ "channel": "c", "formats": { "http-response": { "action": "hint" } } }]));
    let requests = origin.wait_requests(2);
    assert_eq!(requests[1].head.all("grip-last"), ["c; last-id=3"]);
    server.wait_pins("poll", 1);
    let begun = Instant::now();
    assert_eq!(server.control("POST", "/recover", &[], b"").status(), 200);
    origin.wait_requests(3);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// Who may publish in one realm has nobody of another asked again.
#[test]
fn recover_is_of_one_realm() {
    let origins = [(), ()].map(|()| Origin::fixed(hold("response", "c; prev-id=3", &[], "")));
    let routes = [format!("a.example,realm=a {}", origins[0]), format!("* {}", origins[1])];
    let routes: Vec<_> = routes.iter().map(String::as_str).collect();
    let server = TestServer::start(&routes, |options| {
        options.config("[[realm]]\nid = \"a\"\nkeys = [\"the-key-of-a\"]\n");
    });
    let _clients = ["a.example", "other"].map(|host| {
        let mut client = server.connect();
        client.request("GET", "/", &[("Host", host)], b"");
        client
    });
    server.wait_pins("poll", 2);
    let recover = |path: &str, key: &str| {
        server.control("POST", path, &[("Authorization", &format!("Bearer {key}"))], b"").status()
    };
    assert_eq!(recover("/realm/a/recover/", "another"), 401);
    assert_eq!(recover("/recover/", "any"), 200);
    origins[1].wait_requests(2);
    server.wait_pins("poll", 2);
    server.wait_metric("fantail_updates_total", &["cause=\"recover\""], 1.0);
    assert_eq!(recover("/realm/a/recover/", "the-key-of-a"), 200);
    origins[0].wait_requests(2);
    assert_eq!(origins.each_ref().map(|origin| origin.requests().len()), [2, 2]);
}

/// The origin of many polls sees no more requests a second than it may.
#[test]
fn updates_have_a_rate() {
    const POLLS: usize = 40;
    let origin = Origin::fixed(hold("response", "c; prev-id=3", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.shards", "1").set("grip.updates_per_second", "20");
    });
    let _clients: Vec<_> = (0..POLLS).map(|_| poll(&server, "/")).collect();
    server.wait_pins("poll", POLLS);
    let begun = Instant::now();
    server.publish(&json!([item("9", Some("8"))]));
    origin.wait_requests(2 * POLLS);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1900), "{POLLS} in {took:?}");
    server.wait_metric("fantail_updates_total", &["cause=\"gap\""], POLLS as f64);
}

/// What has nothing for a long-poll counts for its place all the same: the next item is no gap.
#[test]
fn an_item_that_is_nothing_to_a_poll_moves_it_on() {
    for action in ["close", "refresh"] {
        let origin = Origin::fixed(hold("response", "c; prev-id=1", &[], ""));
        let server = TestServer::before(&origin);
        let mut client = poll(&server, "/");
        server.wait_pins("poll", 1);
        let nothing = json!({ "channel": "c", "id": "2", "prev-id": "1",
                              "formats": { "http-response": { "action": action } } });
        server.publish(&json!([nothing, item("3", Some("2"))]));
        assert_eq!(client.response().text(), "item 3", "{action}");
        assert_eq!(origin.requests().len(), 1, "{action}");
    }
}
