//! The order of a channel's items by `id` and `prev-id` (checks 52–55), and publishing twice.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Origin, TestServer, hold};

fn item(id: &str, prev_id: Option<&str>) -> Value {
    let mut item = json!({ "channel": "c", "id": id, "formats": { "http-stream": { "content": id } } });
    if let Some(prev_id) = prev_id {
        item["prev-id"] = prev_id.into();
    }
    item
}

/// Check 52.
#[test]
fn items_come_out_in_the_order_of_their_ids() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    server.publish(&json!([item("a", None), item("e", Some("d"))]));
    server.publish(&json!([item("d", Some("c"))]));
    server.wait_metric("fantail_items_waiting", &[], 2.0);
    let receipts = server.receipts(&json!([item("c", Some("b")), item("b", Some("a"))]));
    client.expect("abcde");
    assert_eq!(receipts[0]["order"], "held", "{receipts:?}");
    assert_eq!((&receipts[1]["order"], receipts[1]["delivered"].as_u64()), (&Value::Null, Some(1)));
    server.wait_metric("fantail_items_early_total", &["result=\"in_turn\""], 3.0);
}

/// Check 53: a missing item holds others up for a while, and not those that want no order.
#[test]
fn what_is_missing_is_waited_for_and_not_for_ever() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        // Longer than when nothing is said.
        options.set("hub.order_wait", "6s");
    });
    let mut client = server.stream("/");
    server.publish(&json!([item("a", None)]));
    client.expect("a");
    let begun = Instant::now();
    let mut unordered = item("z", Some("y"));
    unordered["no-seq"] = true.into();
    server.publish(&json!([item("c", Some("b")), unordered]));
    client.expect("z");
    let receipts = server.receipts(&json!([item("d", Some("c"))]));
    client.expect("cd");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(5990), "{took:?}, not 6 s");
    assert_eq!(receipts[0]["order"], "held");
    server.wait_metric("fantail_items_early_total", &["result=\"late\""], 1.0);
    server.wait_metric("fantail_items_waiting", &[], 0.0);
}

/// Check 54, and what the publisher is told.
#[test]
fn publishing_twice_is_safe() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
        options.set("hub.id_ttl", "1s");
    });
    let mut client = server.stream("/");
    let begun = Instant::now();
    server.publish(&json!([item("a", None)]));
    let again = server.receipts(&json!([item("a", None), item("b", None)]));
    if begun.elapsed() < Duration::from_millis(900) {
        assert_eq!((&again[0]["duplicate"], &again[1]["duplicate"]), (&json!(true), &json!(false)));
        client.expect("ab");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.receipts(&json!([item("a", None)]))[0]["duplicate"] == json!(true) {
        assert!(Instant::now() < deadline, "an id is remembered for ever");
    }
    client.expect("a");
}

/// Two items that wait for the same one: the second is dropped, its publisher is told, and may publish it again.
#[test]
fn a_rival_is_dropped_and_said_so() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    server.publish(&json!([item("a", None), item("c", Some("b"))]));
    let rival = server.receipts(&json!([item("x", Some("b"))]));
    assert_eq!(rival[0]["order"], "dropped", "{rival:?}");
    server.wait_metric("fantail_items_total", &["result=\"dropped\""], 1.0);
    server.publish(&json!([item("b", Some("a")), item("x", Some("c"))]));
    client.expect("abcx");
}

/// Check 55.
#[test]
fn what_nobody_heard_is_not_waited_for() {
    let origin = Origin::fixed(hold("stream", "c", &[], ""));
    let server = TestServer::before(&origin);
    server.publish(&json!([item("1", None)]));
    let mut client = server.stream("/");
    server.publish(&json!([item("3", Some("2"))]));
    client.expect("3");
}
