//! The queue of webhooks: it survives `kill -9`, and it has limits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use serde_json::{Value, json};

use crate::{
    harness::{DEADLINE, Origin, TestServer, Then, answer, hold},
    webhook::{arrived, ask, bodies, folder, item, of, receiver, server, subscribe},
};

/// Each webhook whose publish was acknowledged arrives, although the process is killed in the middle of delivering them.
#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    const ALL: usize = 10_000;
    let folder = folder();
    let hits = Arc::new(AtomicUsize::new(0));
    let at = Arc::clone(&hits);
    let endpoint = Origin::answering(move |_| {
        let fails = at.fetch_add(1, SeqCst).is_multiple_of(7);
        answer(if fails { "500 No" } else { "200 OK" }, &[], "")
    });
    let keys =
        [("webhooks.retry", r#"["100ms", "100ms", "100ms", "100ms", "100ms", "100ms", "100ms", "100ms"]"#)];
    let url = format!("http://{endpoint}/");
    let mut running = server(&folder, &keys);
    subscribe(&running, "c", &json!({ "url": url }));
    let names: BTreeSet<String> = (0..ALL).map(|n| n.to_string()).collect();
    for batch in names.iter().collect::<Vec<_>>().chunks(100) {
        running.publish(&batch.iter().map(|name| item("c", name)).collect());
    }
    for kill in 1..=4 {
        running.wait_until(DEADLINE * 3, "some are delivered", || hits.load(SeqCst) >= kill * ALL / 6);
        running.kill();
        running = server(&folder, &keys);
    }
    // What waits is not counted yet while it is read.
    running.wait_until(DEADLINE * 3, "all are delivered", || {
        hits.load(SeqCst) >= ALL && running.metric("fantail_webhook_queue", &[]) < 0.5
    });
    let requests = endpoint.requests();
    let got: BTreeSet<String> = bodies(&requests).into_iter().collect();
    assert_eq!(got.len(), ALL);
    assert_eq!(got, names);
    // What came twice is the same webhook.
    let ids: BTreeSet<_> = requests.iter().filter_map(|request| request.head.field("webhook-id")).collect();
    assert_eq!(ids.len(), ALL);
    assert_eq!(
        ask(&running, "GET", &format!("{}/dead-letters", of("c", &url)), &Value::Null).1["dead_letters"],
        json!([])
    );
}

/// What waits for its next try goes on waiting after a restart, and endpoints, secrets and failures are kept.
#[test]
fn a_restart_changes_nothing() {
    let folder = folder();
    let endpoint = Origin::fixed(answer("500 No", &[], ""));
    let url = format!("http://{endpoint}/");
    let keys = [("webhooks.retry", r#"["1h"]"#)];
    let first = server(&folder, &keys);
    let shown = subscribe(&first, "c", &json!({ "url": url, "description": "mine" }));
    first.publish(&json!([item("c", "x")]));
    first.wait_metric("fantail_webhook_tries_total", &["result=\"status\""], 1.0);
    assert!(first.terminate().success());
    let second = server(&folder, &keys);
    let again = ask(&second, "GET", &of("c", &url), &Value::Null).1;
    assert_eq!(
        (&again["id"], &again["description"], &again["queued"]),
        (&shown["id"], &json!("mine"), &json!(1))
    );
    assert_eq!(again["failing"]["tries"], 1);
    let secrets = ask(&second, "GET", &format!("{}/secrets", of("c", &url)), &Value::Null).1;
    assert_eq!(secrets["secrets"], shown["secrets"]);
    // New ones are delivered; what waits is not sent again before its time.
    second.publish(&json!([item("c", "y")]));
    assert_eq!(bodies(&arrived(&endpoint, 2)), ["x", "y"]);
    assert!((second.metric("fantail_webhook_queue", &[]) - 2.0).abs() < 0.5);
    assert_eq!(second.control("DELETE", &of("c", &url), &[], b"").status(), 200);
    second.wait_metric("fantail_webhook_queue", &[], 0.0);
}

/// What waits has a limit of bytes, too, in which an item counts once.
#[test]
fn queues_have_limits_of_bytes() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let keys = [("webhooks.realm_queue_bytes", "100000"), ("webhooks.timeout", "1h")];
    let first = server(&folder, &keys);
    for n in 0..3 {
        subscribe(&first, "c", &json!({ "url": format!("http://{silent}/{n}") }));
    }
    let large = || json!([item("c", &"x".repeat(40_000))]);
    first.publish(&large());
    first.publish(&large());
    let (status, text) = first.try_publish(&large());
    assert_eq!(status, 503, "{text}");
    first.publish(&json!([item("c", "small")]));
    let bytes = first.metric("fantail_webhook_queue_bytes", &[]);
    assert!((80_000.0..90_000.0).contains(&bytes), "{bytes}");
    drop(first);
    let again = server(&folder, &keys);
    assert_eq!(again.try_publish(&large()).0, 503, "it is counted at the start");
    for n in 0..3 {
        assert_eq!(
            again.control("DELETE", &of("c", &format!("http://{silent}/{n}")), &[], b"").status(),
            200
        );
    }
    // What is under way to it fails.
    silent.stop();
    again.wait_metric("fantail_webhook_queue_bytes", &[], 0.0);
}

#[test]
fn endpoints_of_a_channel_have_a_limit() {
    let (folder, origin) = (folder(), receiver());
    let server = server(&folder, &[("webhooks.channel_endpoints", "2")]);
    let subscribe = |channel: &str, n: u32| {
        let url = json!({ "url": format!("http://{origin}/{n}") });
        ask(&server, "POST", &format!("/channel/{channel}/hrq-subscriptions/"), &url)
    };
    assert_eq!([1, 2, 2].map(|n| subscribe("c", n).0), [200; 3]);
    let (status, text) = subscribe("c", 3);
    assert!(status == 403 && text.to_string().contains("channel_endpoints"), "{text}");
    assert_eq!(subscribe("d", 3).0, 200);
    assert_eq!(server.control("DELETE", &of("c", &format!("http://{origin}/1")), &[], b"").status(), 200);
    assert_eq!(subscribe("c", 3).0, 200);
}

/// Of one item for many endpoints without room only some dead letters are kept: each is a copy of it.
#[test]
fn large_items_for_full_queues() {
    const ENDPOINTS: usize = 24;
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let server = server(&folder, &[("webhooks.endpoint_queue_items", "1"), ("webhooks.timeout", "1h")]);
    let urls: Vec<String> = (0..ENDPOINTS).map(|n| format!("http://{silent}/{n}")).collect();
    urls.iter().for_each(|url| drop(subscribe(&server, "c", &json!({ "url": url }))));
    server.publish(&json!([item("c", "fills them")]));
    server.publish(&json!([item("c", &"x".repeat(900_000))]));
    let overflow = || server.metric("fantail_webhook_dead_letters_total", &["cause=\"overflow\""]);
    server.wait_until(DEADLINE, "all are counted", || overflow() > ENDPOINTS as f64 - 0.5);
    let dead = |url: &String| {
        let list = ask(&server, "GET", &format!("{}/dead-letters", of("c", url)), &Value::Null).1;
        list["dead_letters"].as_array().map_or(0, Vec::len)
    };
    let kept: usize = urls.iter().map(dead).sum();
    assert_eq!(kept, (16 << 20) / 900_000, "of 16 MiB");
}

/// An endpoint whose queue is full gets dead letters; a realm whose queue is full makes publishers wait.
#[test]
fn queues_have_limits() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let keys = [
        ("webhooks.endpoint_queue_items", "5"),
        ("webhooks.realm_queue_items", "8"),
        ("webhooks.timeout", "1h"),
    ];
    let server = server(&folder, &keys);
    let (one, two) = (format!("http://{silent}/1"), format!("http://{silent}/2"));
    subscribe(&server, "c", &json!({ "url": one }));
    subscribe(&server, "d", &json!({ "url": two }));
    let items: Value = (0..7).map(|n| item("c", &n.to_string())).collect();
    let receipts = server.receipts(&items);
    let overflow: Vec<&Value> = receipts.iter().map(|receipt| &receipt["dropped"]["overflow"]).collect();
    assert_eq!(json!(overflow), json!([0, 0, 0, 0, 0, 1, 1]));
    let dead = ask(&server, "GET", &format!("{}/dead-letters", of("c", &one)), &Value::Null).1;
    assert_eq!(dead["dead_letters"].as_array().map(Vec::len), Some(2));
    assert_eq!(dead["dead_letters"][0]["cause"], "the endpoint's queue is full");
    server.publish(&json!([item("d", "1"), item("d", "2"), item("d", "3")]));
    let (status, text) = server.try_publish(&json!([item("d", "4")]));
    assert_eq!(status, 503, "{text}");
    server.wait_metric("fantail_webhook_refused_total", &[], 1.0);
    server.wait_metric("fantail_webhook_queue", &[], 8.0);
    assert_eq!(server.control("DELETE", &of("c", &one), &[], b"").status(), 200);
    server.wait_metric("fantail_webhook_queue", &[], 4.0);
    server.publish(&json!([item("d", "5")]));
}

/// A letter for many is kept until the last of them has it.
#[test]
fn many_endpoints_of_one_channel() {
    let folder = folder();
    let endpoints: Vec<Origin> = (0..8).map(|_| receiver()).collect();
    let refusing = Arc::new(AtomicUsize::new(1));
    let refuses = Arc::clone(&refusing);
    let late = Origin::answering(move |_| {
        answer(if refuses.load(SeqCst) == 1 { "500 No" } else { "200 OK" }, &[], "")
    });
    let server =
        server(&folder, &[("webhooks.retry", r#"["50ms", "50ms", "50ms", "50ms", "1s", "1s", "1s", "1s"]"#)]);
    for endpoint in endpoints.iter().chain([&late]) {
        subscribe(&server, "c", &json!({ "url": format!("http://{endpoint}/") }));
    }
    server.publish(&json!([item("c", "to all"), item("c", "twice")]));
    for endpoint in &endpoints {
        let got: BTreeSet<String> = bodies(&arrived(endpoint, 2)).into_iter().collect();
        assert_eq!(got, BTreeSet::from(["to all".to_owned(), "twice".to_owned()]));
    }
    arrived(&late, 3);
    refusing.store(0, SeqCst);
    server.wait_metric("fantail_webhook_queue", &[], 0.0);
    server.wait_metric("fantail_webhook_tries_total", &["result=\"delivered\""], 18.0);
}

/// A publisher may repeat an item until there is room for its webhooks: nobody else hears of that.
#[test]
fn an_item_that_is_not_kept_is_delivered_once() {
    let folder = folder();
    let silent = Origin::scripted(|_| Then::Hang);
    let holding = Origin::answering(|_| hold("stream", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {holding}")], |options| {
        options.set("server.data_dir", &folder.path().to_string_lossy()).set("webhooks.allow", "127.0.0.1");
        options.set("webhooks.realm_queue_items", "3").set("webhooks.timeout", "1h");
    });
    let [full, own] = ["full", "c"].map(|name| format!("http://{silent}/{name}"));
    subscribe(&server, "full", &json!({ "url": full }));
    subscribe(&server, "c", &json!({ "url": own }));
    server.publish(&json!([item("full", "1"), item("full", "2"), item("full", "3")]));
    let mut stream = server.stream("/");
    let mut news = item("c", "news");
    news["id"] = "1".into();
    news["formats"]["http-stream"] = json!({ "content": "news;" });
    for _ in 0..3 {
        assert_eq!(server.try_publish(&json!([news])).0, 503);
    }
    assert_eq!(server.control("DELETE", &of("full", &full), &[], b"").status(), 200);
    // One is on its way.
    server.wait_metric("fantail_webhook_queue", &[], 1.0);
    server.publish(&json!([news]));
    server.wait_metric("fantail_webhook_queue", &[], 2.0);
    server.publish(&json!([news]));
    server.publish_stream("c", "end;");
    stream.expect("news;end;");
    server.wait_metric("fantail_webhook_queue", &[], 2.0);
}
