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
    harness::{DEADLINE, Origin, Then, answer},
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
    running
        .wait_until(DEADLINE * 3, "all are delivered", || running.metric("fantail_webhook_queue", &[]) < 0.5);
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
