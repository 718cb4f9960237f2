//! Filters that write into content, and content that was written for filters (spec 6.6, 6.7, 6.9; section 12's checks
//! of them). Who is skipped is looked at where the transports are.

use serde_json::{Value, json};

use crate::harness::{Origin, TestServer, hold};

/// An item with this content for every transport, published with an id.
fn item(id: &str, content: &str) -> Value {
    json!({ "channel": "c", "id": id, "formats": {
        "http-stream": { "content": content },
        "http-response": { "body": content },
        "ws-message": { "content": content },
    } })
}

fn written_for(mut item: Value, filters: &[&str]) -> Value {
    for format in ["http-stream", "http-response", "ws-message"] {
        item["formats"][format]["content-filters"] = json!(filters);
    }
    item
}

/// An origin that holds what it is asked, for the user that the path names.
fn by_user(mode: &'static str, channel: &'static str) -> Origin {
    Origin::answering(move |request| {
        let user = request.target().trim_start_matches('/').to_string();
        hold(mode, channel, &[("Grip-Set-Meta", &format!("user=\"{user}\""))], "")
    })
}

#[test]
fn meta_is_written_into_a_stream() {
    let origin = by_user("stream", "c; filter=var-subst");
    let server = TestServer::before(&origin);
    let (mut ann, mut bob) = (server.stream("/ann"), server.stream("/bob"));
    let receipts = server.receipts(&json!([
        item("1", "hi %(user)s, 100%%;"),
        item("2", "%(nobody)s"),
        item("3", "50%")
    ]));
    let counts: Vec<_> =
        receipts.iter().map(|r| (r["delivered"].as_u64(), r["dropped"]["filter"].as_u64())).collect();
    assert_eq!(counts, [(Some(2), Some(0)), (Some(0), Some(2)), (Some(0), Some(2))]);
    server.publish(&json!([item("4", "bye %(user)s;")]));
    ann.expect("hi ann, 100%;bye ann;");
    bob.expect("hi bob, 100%;bye bob;");
    assert_eq!(server.metric("fantail_deliveries_dropped_total", &["cause=\"filter\""]), 4.0);
}

#[test]
fn meta_is_written_into_the_answer_of_a_poll() {
    let origin = by_user("response", "c; filter=var-subst");
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.get("/ann");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("1", "for %(user)s")]));
    assert_eq!(client.response().text(), "for ann");
}

/// The item's own id counts, and what a filter has skipped; what was lost to an error does not.
#[test]
fn ids_are_written_into_a_stream_and_into_its_beginning() {
    let origin = Origin::answering(|request| {
        let (prev_id, body) = match request.head.field("grip-last") {
            None => ("a", "id: %(start)I, 100%%\n"),
            Some("c; last-id=e") => ("f", "page %(f)I, 100%%;"),
            Some(other) => panic!("{other}"),
        };
        let channel = format!("c; prev-id={prev_id}; filter=build-id; filter=skip-self");
        let more = [
            ("Grip-Set-Meta", r#"id_format="%(c)s""#),
            ("Grip-Set-Meta", r#"user="ann""#),
            ("Grip-Link", "</next>; rel=next"),
        ];
        hold("stream", &channel, &more, body)
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("id: start, 100%\n");
    let after = |prev_id: &str, id: &str, content: &str| {
        let mut item = item(id, content);
        item["prev-id"] = prev_id.into();
        item
    };
    let mut skipped = after("b", "c", "no");
    skipped["meta"] = json!({ "sender": "ann" });
    server.publish(&json!([
        after("a", "b", "%I;"),
        skipped,
        after("c", "e", "%I;"),
        after("e", "lost", "50%"),
        after("lost", "f", "%I;"),
    ]));
    client.expect("b;e;page f, 100%;");
    server.publish(&json!([after("f", "g", "%I;")]));
    client.expect("g;");
}

#[test]
fn an_id_without_a_format_is_an_origins_fault() {
    let origin = Origin::fixed(hold("stream", "c; filter=build-id", &[], "x"));
    let server = TestServer::start(&[&format!("*,debug {}", origin.address())], |_| {});
    let mut client = server.connect();
    let got = client.get("/").response();
    assert_eq!(got.status(), 502);
    assert!(got.text().contains("filter error: no sub meta 'id_format'"), "{}", got.text());
}

#[test]
fn content_goes_to_those_whose_filters_it_was_written_for() {
    let origin = Origin::answering(|request| {
        let channel = match request.target() {
            "/plain" => "c",
            "/subst" => "c; filter=var-subst; filter=skip-self",
            _ => "c; filter=build-id; filter=var-subst",
        };
        hold("stream", channel, &[("Grip-Set-Meta", r#"id_format="x""#)], "")
    });
    let server = TestServer::before(&origin);
    let mut clients = ["/plain", "/subst", "/both"].map(|path| server.stream(path));
    let receipts = server.receipts(&json!([
        written_for(item("1", "plain;"), &[]),
        written_for(item("2", "subst;"), &["var-subst"]),
        written_for(item("3", "both;"), &["build-id", "var-subst"]),
        written_for(item("4", "turned;"), &["var-subst", "build-id"]),
        item("5", "all;"),
    ]));
    let counts: Vec<_> = receipts.iter().map(|r| r["delivered"].as_u64().expect("a number")).collect();
    assert_eq!(counts, [1, 1, 1, 0, 3]);
    for (client, name) in clients.iter_mut().zip(["plain", "subst", "both"]) {
        client.expect(&format!("{name};all;"));
    }
}

/// With debug a client is told; without it only the item is lost (spec 6.1).
#[test]
fn failures_are_told_with_debug() {
    let origin = by_user("stream", "c; filter=var-subst");
    let server = TestServer::start(&[&format!("*,debug {}", origin.address())], |_| {});
    let mut client = server.stream("/ann");
    server.publish(&json!([item("1", "first;"), item("2", "%(none)s")]));
    client.expect("first;\n\nfilter error: 'none' is not defined\n");
    client.expect_end();

    let origin = by_user("response", "c; filter=var-subst");
    let server = TestServer::start(&[&format!("*,debug {}", origin.address())], |_| {});
    let mut client = server.connect();
    client.get("/ann");
    server.wait_pins("poll", 1);
    server.publish(&json!([item("1", "%(none)s")]));
    assert_eq!(client.response().text(), "filter error: 'none' is not defined\n");
}
