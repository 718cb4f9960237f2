//! Endpoints of webhooks that fail on a plan: what is tried again and when, what is given up, who is disabled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    harness::{DEADLINE, Origin, TestServer, Then, answer, hold},
    webhook::{arrived, ask, bodies, folder, item, of, receiver, server, subscribe},
};

/// Answers the first requests with these statuses, and then with 200.
fn planned(plan: &'static [(&'static str, &'static [(&'static str, &'static str)])]) -> Origin {
    let at = AtomicUsize::new(0);
    Origin::answering(move |_| {
        let (status, fields) = plan.get(at.fetch_add(1, SeqCst)).copied().unwrap_or(("200 OK", &[]));
        answer(status, fields, "")
    })
}

const SOON: (&str, &str) = ("webhooks.retry", r#"["50ms", "50ms", "50ms"]"#);
const LATER: (&str, &str) = ("webhooks.retry", r#"["1h", "1h"]"#);

fn dead(server: &TestServer, channel: &str, url: &str) -> Vec<Value> {
    let (status, list) = ask(server, "GET", &format!("{}/dead-letters/", of(channel, url)), &Value::Null);
    assert_eq!(status, 200, "{list}");
    list["dead_letters"].as_array().expect("a list").clone()
}

fn tries(server: &TestServer, result: &str) -> f64 {
    server.metric("fantail_webhook_tries_total", &[&format!("result=\"{result}\"")])
}

#[test]
fn a_failure_is_tried_again_as_the_same_webhook() {
    let folder = folder();
    let endpoint = planned(&[("500 No", &[]), ("404 No", &[]), ("503 Later", &[("Retry-After", "0")])]);
    let server = server(&folder, &[SOON]);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&json!([item("c", "again and again")]));
    let requests = arrived(&endpoint, 4);
    let first = requests[0].head.field("webhook-id").expect("an id").to_owned();
    assert!(requests.iter().all(|request| request.head.field("webhook-id") == Some(&first)));
    assert!(requests.iter().all(|request| request.body == b"again and again"));
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert_eq!((tries(&server, "status"), tries(&server, "delivered")), (3.0, 1.0));
    server.publish(&json!([item("c", "another")]));
    assert_ne!(arrived(&endpoint, 5)[4].head.field("webhook-id"), Some(first.as_str()));
}

#[test]
fn retry_after_is_waited_for() {
    let folder = folder();
    let endpoint = planned(&[("429 Slow", &[("Retry-After", "2")])]);
    let server = server(&folder, &[SOON]);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&json!([item("c", "first")]));
    arrived(&endpoint, 1);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 1.0);
    let since = Instant::now();
    // The whole endpoint is left alone.
    server.publish(&json!([item("c", "second")]));
    arrived(&endpoint, 3);
    assert!(since.elapsed() > Duration::from_millis(1500), "{:?}", since.elapsed());
}

#[test]
fn what_is_gone_is_disabled_and_its_realm_is_told() {
    let folder = folder();
    let origin = Origin::answering(|_| hold("stream", "fantail-webhooks", &[], ""));
    let (endpoint, watcher) = (planned(&[("410 Gone", &[])]), receiver());
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.1").set(LATER.0, LATER.1);
    });
    let mut stream = server.stream("/");
    let url = format!("http://{endpoint}/path?token=of-the-url");
    subscribe(&server, "c", &json!({ "url": url }));
    subscribe(&server, "fantail-webhooks", &json!({ "url": format!("http://{watcher}/") }));
    server.publish(&json!([item("c", "once")]));
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.extend(stream.content(1));
    }
    let notice: Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!(
        (&notice["type"], &notice["channel"], &notice["url"]),
        (&json!("webhook.disabled"), &json!("c"), &json!(url))
    );
    assert_eq!(serde_json::from_slice::<Value>(&arrived(&watcher, 1)[0].body).expect("JSON"), notice);
    let warned = server.log_text("a webhook endpoint was disabled").to_string();
    assert!(!warned.contains("of-the-url"), "{warned}");
    server.wait_until(DEADLINE, "it is disabled", || {
        ask(&server, "GET", &of("c", &url), &Value::Null).1["disabled"]["cause"] == "it has answered 410"
    });
    server.publish(&json!([item("c", "to nobody")]));
    server.wait_metric("fantail_webhook_skipped_total", &["cause=\"disabled\""], 1.0);
    let letters = dead(&server, "c", &url);
    assert_eq!((letters.len(), &letters[0]["cause"]), (1, &json!("status 410")));
    assert_eq!(ask(&server, "POST", &format!("{}/enable/", of("c", &url)), &Value::Null).0, 200);
    server.publish(&json!([item("c", "enabled")]));
    assert_eq!(bodies(&arrived(&endpoint, 2)), ["once", "enabled"]);
    assert!((server.metric("fantail_webhook_endpoints_disabled_total", &[]) - 1.0).abs() < 0.5);
}

#[test]
fn what_fails_for_too_long_is_disabled() {
    let folder = folder();
    let endpoint = Origin::fixed(answer("500 No", &[], ""));
    let server =
        server(&folder, &[("webhooks.retry", r#"["20ms", "20ms"]"#), ("webhooks.disable_after", "1s")]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.wait_until(DEADLINE, "it is disabled", || {
        server.publish(&json!([item("c", "x")]));
        !ask(&server, "GET", &of("c", &url), &Value::Null).1["disabled"].is_null()
    });
    let shown = ask(&server, "GET", &of("c", &url), &Value::Null).1;
    assert_eq!(shown["disabled"]["cause"], "nothing could be delivered for too long");
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert!(dead(&server, "c", &url).len() > 1);
}

/// Days without a webhook are no days of failures: the next one has its tries.
#[test]
fn nobody_is_disabled_for_what_was_not_tried() {
    let folder = folder();
    let endpoint = Origin::fixed(answer("500 No", &[], ""));
    let keys = [("webhooks.retry", r#"["1ms", "1ms", "1h"]"#), ("webhooks.disable_after", "1s")];
    let first = server(&folder, &keys);
    let url = format!("http://{endpoint}/");
    subscribe(&first, "c", &json!({ "url": url }));
    let since = Instant::now();
    first.publish(&json!([item("c", "one")]));
    first.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 3.0);
    assert!(first.terminate().success());
    let second = server(&folder, &keys);
    second.wait_until(DEADLINE, "it is late enough", || since.elapsed() > Duration::from_millis(1100));
    second.publish(&json!([item("c", "two")]));
    // Then it rests.
    second.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 2.0);
    second.wait_metric("fantail_webhook_in_flight", &[], 0.0);
    let shown = ask(&second, "GET", &of("c", &url), &Value::Null).1;
    assert_eq!((&shown["disabled"], &shown["queued"]), (&Value::Null, &json!(2)));
    assert!(dead(&second, "c", &url).is_empty());
}

/// Who takes nothing is left alone, and found to be mended by one webhook.
#[test]
fn who_fails_rests() {
    let folder = folder();
    let (endpoint, bad) = switched("500 No");
    let keys = [("webhooks.retry", r#"["2s", "1h"]"#)];
    let server = server(&folder, &keys);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    server.publish(&(0..50).map(|n| item("c", &n.to_string())).collect());
    let since = Instant::now();
    server.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 3.0);
    bad.store(0, SeqCst);
    // The first three are due again by then.
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert!(since.elapsed() > Duration::from_millis(1700), "{:?}", since.elapsed());
    assert_eq!(bodies(&endpoint.requests()).len(), 53);
}

/// What is at its end does not hold up those behind it any longer, and comes behind them when it is replayed.
#[test]
fn order_has_holes() {
    let folder = folder();
    let endpoint = planned(&[("200 OK", &[]), ("500 No", &[]), ("500 No", &[])]);
    let server = server(&folder, &[("webhooks.retry", r#"["50ms"]"#)]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url, "order": true }));
    server.publish(&(0..5).map(|n| item("c", &n.to_string())).collect());
    assert_eq!(bodies(&arrived(&endpoint, 6)), ["0", "1", "1", "2", "3", "4"]);
    server.wait_until(DEADLINE, "it is dead", || dead(&server, "c", &url).len() == 1);
    assert_eq!(replay(&server, "c", &url, &json!({ "since": 0 })).1["replayed"], 1);
    assert_eq!(bodies(&arrived(&endpoint, 7))[6], "1");
}

/// The newest stay, as far as there is room for their bytes.
#[test]
fn dead_letters_have_a_limit_of_bytes() {
    let (folder, endpoint) = (folder(), Origin::fixed(answer("500 No", &[], "")));
    let server = server(&folder, &[("webhooks.retry", "[]"), ("webhooks.dead_letter_bytes", "10000")]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url, "order": true }));
    let kept =
        || -> Vec<Value> { dead(&server, "c", &url).iter().map(|dead| dead["bytes"].clone()).collect() };
    for (bytes, left) in [
        (4000, vec![4000]),
        (4001, vec![4000, 4001]),
        (4002, vec![4001, 4002]),
        (20_000, vec![]),
        (4003, vec![4003]),
        (4004, vec![4003, 4004]),
    ] {
        server.publish(&json!([item("c", &"x".repeat(bytes))]));
        server.wait_until(DEADLINE, "it is on disk", || json!(kept()) == json!(left));
    }
}

#[test]
fn dead_letters_are_replayed() {
    let folder = folder();
    let bad = Arc::new(AtomicUsize::new(1));
    let is_bad = Arc::clone(&bad);
    let endpoint = Origin::answering(move |_| {
        answer(if is_bad.load(SeqCst) == 1 { "500 No" } else { "200 OK" }, &[], "")
    });
    let server = server(&folder, &[("webhooks.retry", "[]"), ("webhooks.dead_letters", "3")]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url, "order": true }));
    for n in 0..5 {
        server.publish(&json!([item("c", &format!("letter {n}"))]));
    }
    // The oldest are forgotten.
    let ids: Vec<Value> =
        arrived(&endpoint, 5)[2..].iter().map(|request| json!(request.head.field("webhook-id"))).collect();
    let letters = || dead(&server, "c", &url);
    server.wait_until(DEADLINE, "they are on disk", || {
        letters().iter().map(|letter| &letter["webhook_id"]).eq(&ids)
    });
    let letters = letters();
    assert_eq!(
        (&letters[0]["cause"], &letters[0]["tries"], &letters[0]["bytes"]),
        (&json!("status 500"), &json!(1), &json!(8))
    );
    let page = ask(&server, "GET", &format!("{}/dead-letters?limit=2", of("c", &url)), &Value::Null).1;
    let after = page["next"].as_str().expect("more");
    let rest = ask(&server, "GET", &format!("{}/dead-letters?after={after}", of("c", &url)), &Value::Null).1;
    assert_eq!(rest["dead_letters"].as_array().map(Vec::len), Some(1));
    bad.store(0, SeqCst);
    endpoint.forget();
    let replay = |which: &str, body: &Value| {
        ask(&server, "POST", &format!("{}/dead-letters/{which}replay/", of("c", &url)), body)
    };
    let middle = letters[1]["id"].as_str().expect("an id");
    assert_eq!(replay(&format!("{middle}/"), &Value::Null), (200, json!({ "replayed": 1, "left": 0 })));
    let request = arrived(&endpoint, 1).remove(0);
    assert_eq!(request.head.field("webhook-id"), letters[1]["webhook_id"].as_str());
    assert_eq!(request.body, b"letter 3");
    assert_eq!(replay(&format!("{middle}/"), &Value::Null).0, 404);
    assert_eq!(replay("", &json!({ "since": 99_999_999_999u64 })).1["replayed"], 0);
    assert_eq!(replay("", &json!({ "since": 0 })).1["replayed"], 2);
    assert_eq!(bodies(&arrived(&endpoint, 3)), ["letter 3", "letter 2", "letter 4"]);
    server.wait_until(DEADLINE, "none is left", || dead(&server, "c", &url).is_empty());
    assert_eq!(replay("xyz/", &Value::Null).0, 400);
}

/// What grows without end when its variables are put in is given up, and nobody else notices.
#[test]
fn a_template_does_not_grow_without_end() {
    let (folder, endpoint) = (folder(), receiver());
    let server = server(&folder, &[]);
    let (bomb, plain) = (format!("http://{endpoint}/bomb"), format!("http://{endpoint}/plain"));
    let meta = json!({ "a": "%(a)s".repeat(1400) });
    subscribe(&server, "c", &json!({ "url": bomb, "filters": ["var-subst"], "meta": meta }));
    subscribe(&server, "c", &json!({ "url": plain }));
    let body = "%(a)s".repeat(1000);
    server.publish(&json!([item("c", &body)]));
    server.wait_until(DEADLINE, "it is dead", || !dead(&server, "c", &bomb).is_empty());
    assert_eq!(dead(&server, "c", &bomb)[0]["cause"], "a filter cannot be applied");
    assert_eq!(bodies(&arrived(&endpoint, 1)), [body]);
}

/// An endpoint that fails like this while its switch is on.
fn switched(status: &'static str) -> (Origin, Arc<AtomicUsize>) {
    let bad = Arc::new(AtomicUsize::new(1));
    let is_bad = Arc::clone(&bad);
    let endpoint =
        Origin::answering(move |_| answer(if is_bad.load(SeqCst) == 1 { status } else { "200 OK" }, &[], ""));
    (endpoint, bad)
}

fn replay(server: &TestServer, channel: &str, url: &str, body: &Value) -> (u16, Value) {
    ask(server, "POST", &format!("{}/dead-letters/replay/", of(channel, url)), body)
}

/// What is replayed while the endpoint is disabled would die again: it stays where it is until the endpoint is enabled.
#[test]
fn a_disabled_endpoint_keeps_its_dead_letters() {
    let folder = folder();
    let (endpoint, bad) = switched("410 Gone");
    let server = server(&folder, &[("webhooks.retry", "[]")]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.publish(&json!([item("c", "one")]));
    server.wait_until(DEADLINE, "it is disabled, and the letter dead", || {
        let shown = ask(&server, "GET", &of("c", &url), &Value::Null).1;
        !shown["disabled"].is_null() && dead(&server, "c", &url).len() == 1
    });
    let letters = dead(&server, "c", &url);
    let id = letters[0]["id"].as_str().expect("an id");
    let (status, text) = replay(&server, "c", &url, &json!({ "since": 0 }));
    assert_eq!(status, 409, "{text}");
    let one = format!("{}/dead-letters/{id}/replay/", of("c", &url));
    assert_eq!(ask(&server, "POST", &one, &Value::Null).0, 409);
    assert_eq!(dead(&server, "c", &url), letters);
    bad.store(0, SeqCst);
    assert_eq!(ask(&server, "POST", &format!("{}/enable/", of("c", &url)), &Value::Null).0, 200);
    assert_eq!(
        replay(&server, "c", &url, &json!({ "since": 0 })),
        (200, json!({ "replayed": 1, "left": 0 }))
    );
    assert_eq!(bodies(&arrived(&endpoint, 2)), ["one", "one"]);
    server.wait_until(DEADLINE, "none is left", || dead(&server, "c", &url).is_empty());
}

/// Who is unsubscribed is owed nothing, not even what was under way, and does not find it when it comes back.
#[test]
fn what_waited_for_an_endpoint_goes_with_it() {
    let folder = folder();
    let bad = Arc::new(AtomicUsize::new(1));
    let is_bad = Arc::clone(&bad);
    let silent = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&silent);
    let endpoint = Origin::scripted(move |exchange| {
        drop(exchange.read_body());
        if is_bad.load(SeqCst) == 2 {
            asked.fetch_add(1, SeqCst);
            return Then::Hang;
        }
        let status = if is_bad.load(SeqCst) == 1 { "500 No" } else { "200 OK" };
        exchange.send(answer(status, &[], ""));
        Then::Next
    });
    let keys = [("webhooks.retry", "[]"), ("webhooks.timeout", "1s"), ("webhooks.concurrency", "8")];
    let server = server(&folder, &keys);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.publish(&json!([item("c", "dead")]));
    server.wait_until(DEADLINE, "it is dead", || dead(&server, "c", &url).len() == 1);
    bad.store(2, SeqCst);
    server.publish(&json!([item("c", "under way"), item("c", "waits"), item("c", "waits, too")]));
    server.wait_until(DEADLINE, "one is under way", || silent.load(SeqCst) == 1);
    assert_eq!(server.control("DELETE", &of("c", &url), &[], b"").status(), 200);
    // When the one under way has failed, nothing is left.
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    bad.store(0, SeqCst);
    subscribe(&server, "c", &json!({ "url": url }));
    let shown = ask(&server, "GET", &of("c", &url), &Value::Null).1;
    assert_eq!((&shown["queued"], &shown["failing"]), (&json!(0), &Value::Null));
    assert!(dead(&server, "c", &url).is_empty());
    endpoint.forget();
    server.publish(&json!([item("c", "new")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 1.0);
    assert_eq!(bodies(&arrived(&endpoint, 1)), ["new"]);
}

/// A replay that was answered survives the end of the process, and one for which there was no room can be repeated.
#[test]
fn a_replay_survives_kill_9() {
    let folder = folder();
    let (endpoint, bad) = switched("500 No");
    let keys = [("webhooks.retry", "[]"), ("webhooks.endpoint_queue_items", "40")];
    let url = format!("http://{endpoint}/");
    let first = server(&folder, &keys);
    subscribe(&first, "c", &json!({ "url": url }));
    let names: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for some in names.chunks(20) {
        first.publish(&some.iter().map(|name| item("c", name)).collect());
        first.wait_metric("fantail_webhook_queue", &[], 0.0);
    }
    first.wait_until(DEADLINE, "all are dead", || dead(&first, "c", &url).len() == 60);
    bad.store(0, SeqCst);
    endpoint.forget();
    assert_eq!(replay(&first, "c", &url, &json!({ "since": 0 })).1, json!({ "replayed": 40, "left": 20 }));
    first.kill();
    let second = server(&folder, &keys);
    let got = || bodies(&endpoint.requests()).into_iter().collect::<std::collections::BTreeSet<String>>();
    second.wait_until(DEADLINE, "they are there", || got().len() == 40);
    second.wait_metric("fantail_webhook_queue", &[], 0.0);
    assert_eq!(replay(&second, "c", &url, &json!({ "since": 0 })).1, json!({ "replayed": 20, "left": 0 }));
    second.wait_until(DEADLINE, "all are there", || got().len() == 60);
    assert_eq!(got(), names.into_iter().collect());
    second.wait_until(DEADLINE, "none is left", || dead(&second, "c", &url).is_empty());
}

/// The secret before the last signs as long as it was told to, also over a restart, and then no more.
#[test]
fn an_overlap_ends() {
    let (folder, endpoint) = (folder(), receiver());
    let url = format!("http://{endpoint}/");
    let first = server(&folder, &[]);
    subscribe(&first, "c", &json!({ "url": url }));
    let secrets = format!("{}/secrets", of("c", &url));
    let two = ask(&first, "POST", &secrets, &json!({ "overlap": 3 })).1;
    assert_eq!(two["secrets"].as_array().map(Vec::len), Some(2));
    assert!(first.terminate().success());
    let server = server(&folder, &[]);
    let signatures = |n: usize| {
        let request = arrived(&endpoint, n).remove(n - 1);
        request.head.field("webhook-signature").expect("signed").split(' ').count()
    };
    server.wait_until(DEADLINE, "the overlap is over", || {
        ask(&server, "GET", &secrets, &Value::Null).1["secrets"].as_array().map(Vec::len) == Some(1)
    });
    server.publish(&json!([item("c", "once signed")]));
    assert_eq!(signatures(1), 1);
    let three = ask(&server, "POST", &secrets, &json!({ "overlap": 3600 })).1;
    assert_eq!(three["secrets"].as_array().map(Vec::len), Some(2));
    assert_eq!(three["secrets"][1]["secret"], two["secrets"][0]["secret"]);
    server.publish(&json!([item("c", "twice signed")]));
    assert_eq!(signatures(2), 2);
}

/// Whoever has mended a receiver learns what was wrong, and need not wait for hours.
#[test]
fn an_owner_sees_what_is_wrong_and_has_it_tried_again() {
    let folder = folder();
    let (endpoint, bad) = switched("502 No");
    let server = server(&folder, &[LATER]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    let shown = || ask(&server, "GET", &of("c", &url), &Value::Null).1;
    assert_eq!((&shown()["failing"], &shown()["last_fault"]), (&Value::Null, &Value::Null));
    server.publish(&json!([item("c", "one"), item("c", "two")]));
    server.wait_until(DEADLINE, "both have failed", || shown()["failing"]["tries"] == 2);
    let fault = &shown()["last_fault"];
    assert_eq!(fault["fault"], "status 502");
    let now = std::time::UNIX_EPOCH.elapsed().expect("now").as_secs();
    assert!(fault["at"].as_u64().is_some_and(|at| at.abs_diff(now) < 60), "{fault}");
    bad.store(0, SeqCst);
    let retry = |url: &str| ask(&server, "POST", &format!("{}/retry/", of("c", url)), &Value::Null).0;
    assert_eq!((retry("http://other.example/"), retry(&url)), (404, 200));
    assert_eq!(arrived(&endpoint, 4).len(), 4);
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    server.wait_until(DEADLINE, "it is well", || shown()["last_fault"].is_null() && shown()["queued"] == 0);
    assert_eq!(shown()["failing"], Value::Null);
}

/// Why it failed is known while an endpoint is disabled, too, and no longer than that.
#[test]
fn a_disabled_endpoint_says_why() {
    let folder = folder();
    let (endpoint, bad) = switched("410 Gone");
    let server = server(&folder, &[LATER]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.publish(&json!([item("c", "x")]));
    let shown = || ask(&server, "GET", &of("c", &url), &Value::Null).1;
    server.wait_until(DEADLINE, "it is disabled", || !shown()["disabled"].is_null());
    assert_eq!((&shown()["failing"], &shown()["last_fault"]["fault"]), (&Value::Null, &json!("status 410")));
    bad.store(0, SeqCst);
    assert_eq!(ask(&server, "POST", &format!("{}/enable/", of("c", &url)), &Value::Null).0, 200);
    server.wait_until(DEADLINE, "it begins anew", || shown()["last_fault"].is_null());
}

/// An endpoint whose owner wants no order any more gets what waits for its first.
#[test]
fn order_can_be_given_up() {
    let folder = folder();
    let endpoint = Origin::answering(|request| {
        answer(if request.body == b"first" { "400 No" } else { "200 OK" }, &[], "")
    });
    let server = server(&folder, &[LATER]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url, "order": true }));
    server.publish(&json!([item("c", "first"), item("c", "second"), item("c", "third")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 1.0);
    assert_eq!(ask(&server, "PATCH", &of("c", &url), &json!({ "order": false })).0, 200);
    assert_eq!(bodies(&arrived(&endpoint, 3)), ["first", "second", "third"]);
}

/// What an endpoint has asked for with Retry-After outlives the process.
#[test]
fn a_pause_survives_a_restart() {
    let (folder, other) = (folder(), receiver());
    let endpoint = planned(&[("429 Slow", &[("Retry-After", "3600")])]);
    let url = format!("http://{endpoint}/");
    let first = server(&folder, &[SOON]);
    subscribe(&first, "c", &json!({ "url": url }));
    first.publish(&json!([item("c", "one")]));
    let paused =
        |server: &TestServer| ask(server, "GET", &of("c", &url), &Value::Null).1["paused_until"].as_u64();
    first.wait_until(DEADLINE, "it is paused", || paused(&first).is_some());
    first.publish(&json!([item("c", "two")]));
    let until = paused(&first);
    assert!(first.terminate().success());
    let second = server(&folder, &[SOON]);
    subscribe(&second, "d", &json!({ "url": format!("http://{other}/") }));
    second.publish(&json!([item("d", "x")]));
    arrived(&other, 1);
    second.wait_metric("fantail_webhook_in_flight", &[], 0.0);
    assert_eq!((paused(&second), endpoint.requests().len()), (until, 1));
    assert_eq!(ask(&second, "POST", &format!("{}/retry", of("c", &url)), &Value::Null).0, 200);
    let mut got = bodies(&arrived(&endpoint, 3));
    got.sort();
    assert_eq!(got, ["one", "one", "two"]);
}

/// Nothing is read, or written, of dead letters for which there is no room.
#[test]
fn a_replay_needs_room() {
    let (folder, bad) = (folder(), Arc::new(AtomicUsize::new(1)));
    let is_bad = Arc::clone(&bad);
    let endpoint = Origin::scripted(move |exchange| {
        drop(exchange.read_body());
        if is_bad.load(SeqCst) == 0 {
            return Then::Hang;
        }
        exchange.send(answer("500 No", &[], ""));
        Then::Next
    });
    let keys = [("webhooks.retry", "[]"), ("webhooks.endpoint_queue_items", "1"), ("webhooks.timeout", "1h")];
    let server = server(&folder, &keys);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.publish(&json!([item("c", "dead")]));
    server.wait_until(DEADLINE, "it is dead", || dead(&server, "c", &url).len() == 1);
    bad.store(0, SeqCst);
    server.publish(&json!([item("c", "under way")]));
    server.wait_metric("fantail_webhook_in_flight", &[], 1.0);
    let (status, text) = replay(&server, "c", &url, &json!({}));
    assert_eq!(status, 503, "{text}");
    assert_eq!(dead(&server, "c", &url).len(), 1);
}

/// Each try counts, also while the disk does not know of the one before.
#[test]
fn tries_are_counted_faster_than_they_are_written() {
    let folder = folder();
    let endpoint = Origin::fixed(answer("500 No", &[], ""));
    let delays = format!("[{}]", vec![r#""1ms""#; 20].join(", "));
    let server = server(&folder, &[("webhooks.retry", &delays)]);
    let url = format!("http://{endpoint}/");
    subscribe(&server, "c", &json!({ "url": url }));
    server.publish(&json!([item("c", "x")]));
    server.wait_until(DEADLINE, "it is given up", || dead(&server, "c", &url).len() == 1);
    assert_eq!((endpoint.requests().len(), tries(&server, "status")), (21, 21.0));
}

/// Where the endpoint asks for it, nothing overtakes what failed.
#[test]
fn order_is_kept_over_failures() {
    let folder = folder();
    let endpoint = planned(&[("200 OK", &[]), ("500 No", &[]), ("500 No", &[])]);
    let server = server(&folder, &[SOON]);
    subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/"), "order": true }));
    for n in 0..10 {
        server.publish(&json!([item("c", &n.to_string())]));
    }
    let got = bodies(&arrived(&endpoint, 12));
    assert_eq!(got, ["0", "1", "1", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
}

/// One that does not answer, one whose body never ends, one that says too much, one that cuts the connection.
#[test]
fn slow_and_broken_answers() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let endless = Origin::scripted(|exchange| {
        drop(exchange.read_body());
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome");
        Then::Hang
    });
    let loud = Origin::fixed(answer("200 OK", &[], vec![b'x'; 1 << 20]));
    let cut = Origin::raw("");
    let server = server(&folder, &[LATER, ("webhooks.timeout", "1s")]);
    for endpoint in [&silent, &endless, &loud, &cut] {
        subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    }
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"timeout\""], 1.0);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 2.0);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"broken\""], 1.0);
    server.wait_metric("fantail_webhook_queue", &[], 2.0);
    server.wait_metric("fantail_webhook_in_flight", &[], 0.0);
}

/// Endpoints that swallow everything take no time from one that answers.
#[test]
fn the_dead_do_not_delay_the_living() {
    let (folder, living) = (folder(), receiver());
    let dead: Vec<Origin> = (0..40).map(|_| Origin::scripted(|_| Then::Hang)).collect();
    let keys = [
        LATER,
        ("webhooks.concurrency", "32"),
        ("webhooks.realm_concurrency", "32"),
        ("webhooks.timeout", "1h"),
    ];
    let server = server(&folder, &keys);
    for endpoint in &dead {
        subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    }
    subscribe(&server, "d", &json!({ "url": format!("http://{living}/") }));
    server.publish(&json!([item("d", "it lives")]));
    arrived(&living, 1);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 1.0);
    server.publish(&json!([item("c", "x")]));
    server.wait_metric("fantail_webhook_in_flight", &[], 24.0);
    for n in 0..20 {
        server.publish(&json!([item("d", "y")]));
        arrived(&living, 2 + n);
    }
    server.wait_metric("fantail_webhook_in_flight", &[], 24.0);
}

/// A realm whose endpoints swallow everything leaves tries to the others: for endpoints that are new, and for those that
/// have failed.
#[test]
fn a_realm_does_not_starve_another() {
    let folder = folder();
    let dead: Vec<Origin> = (0..30).map(|_| Origin::scripted(|_| Then::Hang)).collect();
    let (mended, bad) = switched("500 No");
    let config = "[[realm]]\nid = \"greedy\"\nkeys = [\"a key\"]\n";
    let server = TestServer::start(&["* test"], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy());
        options.set("webhooks.allow", "127.0.0.1").set(LATER.0, LATER.1);
        options.set("webhooks.concurrency", "16").set("webhooks.timeout", "1h").config(config);
    });
    let greedy = |path: &str, body: &Value| {
        let fields = [("Content-Type", "application/json"), ("Authorization", "Bearer a key")];
        let got =
            server.control("POST", &format!("/realm/greedy{path}"), &fields, body.to_string().as_bytes());
        assert_eq!(got.status(), 200, "{}", got.text());
    };
    subscribe(&server, "c", &json!({ "url": format!("http://{mended}/") }));
    server.publish(&json!([item("c", "first")]));
    server.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 1.0);
    for endpoint in &dead {
        greedy("/channel/c/hrq-subscriptions/", &json!({ "url": format!("http://{endpoint}/") }));
    }
    greedy("/publish/", &json!({ "items": [item("c", "x")] }));
    // Three quarters of three quarters; twelve, if it were alone.
    server.wait_metric("fantail_webhook_in_flight", &[], 9.0);
    bad.store(0, SeqCst);
    let fresh = receiver();
    subscribe(&server, "d", &json!({ "url": format!("http://{fresh}/") }));
    server.publish(&json!([item("d", "new"), item("c", "second")]));
    arrived(&fresh, 1);
    // Its last try failed, and the next of that webhook is in an hour.
    assert_eq!(bodies(&arrived(&mended, 2)), ["first", "second"]);
    server.wait_metric("fantail_webhook_in_flight", &[], 9.0);
}
