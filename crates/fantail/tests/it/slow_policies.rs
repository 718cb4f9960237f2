//! What slow clients get: all of it until their queue is full, what they have missed from a log, or only the newest items;
//! over streams and WebSockets, by both ways of fan-out.

use serde_json::{Value, json};

use crate::harness::{
    Client, Origin, ReadError, TestServer, WebSocket, hold,
    websocket::{Said, close, events, opened, over_http, subscribe},
};

const LEN: usize = 100_000;
/// More than any socket takes.
const MANY: usize = 200;

fn item(channel: &str, number: usize) -> Value {
    let content = content(number);
    json!({ "channel": channel, "http-stream": { "content": content }, "ws-message": { "content": content } })
}

fn content(number: usize) -> String {
    format!("{number};{}\n", "x".repeat(LEN))
}

fn all(numbers: std::ops::Range<usize>) -> String {
    numbers.map(content).collect()
}

fn ways() -> impl Iterator<Item = &'static str> {
    let uring = fantail_pin::io_uring_available().then_some("io_uring");
    ["send"].into_iter().chain(uring)
}

fn server(route: &str, toml: &str, fan_out: &str) -> TestServer {
    TestServer::start(&[route], |o| {
        o.set("client.queue_bytes", "1000000").set("server.fan_out", fan_out).config(toml);
    })
}

fn holding(channel: &'static str) -> Origin {
    Origin::fixed(hold("stream", channel, &[], ""))
}

fn slow_stream(server: &TestServer) -> Client {
    let mut client = server.connect();
    client.narrow().get("/").head();
    client
}

fn count(receipt: &Value, field: &str) -> u64 {
    receipt[field].as_u64().unwrap_or_else(|| panic!("{field} of {receipt}"))
}

/// Publishes from `first` on until a receipt has this field. Returns the number of the next item.
fn publish_until(
    server: &TestServer,
    channel: &str,
    first: usize,
    mut is_so: impl FnMut(usize, &Value) -> bool,
) -> usize {
    for number in first..MANY {
        if is_so(number, &server.receipts(&json!([item(channel, number)])).remove(0)) {
            return number + 1;
        }
    }
    panic!("it never came to that");
}

/// The numbers of the items that a client reads, up to this one.
fn numbers_until(last: usize, mut next: impl FnMut() -> String) -> Vec<usize> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let content = next();
        let (number, rest) = content.split_once(';').expect("an item");
        assert_eq!(rest.len(), LEN + 1, "a part of an item");
        numbers.push(number.parse().expect("a number"));
    }
    numbers
}

fn next_of_stream(client: &mut Client) -> String {
    let mut got = Vec::new();
    while got.last() != Some(&b'\n') {
        got.extend(client.content(1));
        let rest = LEN.saturating_sub(got.len());
        if rest > 0 {
            got.extend(client.content(rest));
        }
    }
    String::from_utf8(got).expect("text")
}

const REPAIRED: &str = "[[log]]\nmatch = \"c\"\nbytes = 100000000\nslow = \"repair\"\n";

#[test]
fn what_a_queue_has_no_room_for_comes_from_the_log() {
    for way in ways() {
        let origin = holding("c");
        let server = server(&format!("* {origin}"), REPAIRED, way);
        let mut slow = slow_stream(&server);
        let mut fast = server.stream("/");
        let mut next = publish_until(&server, "c", 0, |number, receipt| {
            fast.expect(&content(number));
            count(receipt, "left_to_log") == 1
        });
        for _ in 0..5 {
            let receipt = server.receipts(&json!([item("c", next)])).remove(0);
            assert_eq!((count(&receipt, "delivered"), count(&receipt, "left_to_log")), (1, 1), "{receipt}");
            fast.expect(&content(next));
            next += 1;
        }
        assert_eq!(server.metric("fantail_pins_slow_total", &["policy=\"repair\""]), 1.0);
        assert_eq!(server.metric("fantail_deliveries_left_to_log_total", &[]), 6.0);
        slow.expect(&all(0..next));
        // Then it is like the others.
        let receipt = server.receipts(&json!([item("c", next), item("c", next + 1)])).remove(1);
        assert_eq!(count(&receipt, "delivered"), 2, "{receipt}");
        slow.expect(&all(next..next + 2));
        fast.expect(&all(next..next + 2));
        server.wait_pins("stream", 2);
        assert_eq!(server.metric("fantail_deliveries_dropped_total", &["cause=\"overflow\""]), 0.0);
    }
}

#[test]
fn a_client_whose_log_has_let_go_what_it_needs_is_closed() {
    let origin = holding("c");
    let toml = REPAIRED.replace("slow", "items = 5\nslow");
    let server = server(&format!("* {origin}"), &toml, "send");
    let mut slow = slow_stream(&server);
    let next = publish_until(&server, "c", 0, |_, receipt| count(receipt, "left_to_log") == 1);
    for number in next..next + 6 {
        server.publish(&json!([item("c", number)]));
    }
    let got = match slow.try_content(usize::MAX) {
        Err(ReadError::Closed { got } | ReadError::Reset { got }) => got,
        other => panic!("the stream went on: {other:?}"),
    };
    assert_eq!(String::from_utf8(got).expect("text"), all(0..next - 1), "whole items, and no hole");
    server.wait_metric("fantail_pins_ended_total", &["cause=\"gap\""], 1.0);
    server.wait_pins("stream", 0);
}

#[test]
fn only_the_newest_item_waits_for_a_client_that_wants_that() {
    for way in ways() {
        let origin = holding("c");
        let server = server(&format!("*,slow=newest {origin}"), "", way);
        let mut slow = slow_stream(&server);
        let mut next = publish_until(&server, "c", 0, |_, receipt| count(receipt, "passed_over") == 1);
        for _ in 0..20 {
            let receipt = server.receipts(&json!([item("c", next), item("c", next + 1)])).remove(1);
            assert_eq!((count(&receipt, "queued"), count(&receipt, "passed_over")), (1, 1), "{receipt}");
            next += 2;
        }
        assert_eq!(server.metric("fantail_pins_slow_total", &["policy=\"newest\""]), 1.0);
        let numbers = numbers_until(next - 1, || next_of_stream(&mut slow));
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let passed = server.metric("fantail_deliveries_passed_over_total", &[]);
        assert_eq!(passed, (next - numbers.len()) as f64, "{numbers:?}");
        assert!(passed >= 40.0);
        server.publish(&json!([item("c", next)]));
        slow.expect(&content(next));
        server.wait_pins("stream", 1);
    }
}

#[test]
fn a_websocket_gets_what_its_channel_says_or_its_route() {
    let toml = format!(
        "{}{}",
        REPAIRED.replace("\"c\"", "\"r\""),
        REPAIRED.replace("\"c\"", "\"x\"").replace("repair", "close")
    );
    for way in ways() {
        let origin = over_http(|request| opened(&[subscribe(&request.target()[1..])]), |_, _| events(&[]));
        let server = server(&format!("*,slow=newest {origin},over_http"), &toml, way);
        let open = |channel: &str| {
            let mut client = WebSocket::open(&server, &format!("/{channel}"));
            client.narrow();
            client
        };
        let next = |client: &mut WebSocket| match client.next() {
            Said::Text(text) => text,
            other => panic!("{other:?}"),
        };
        // By its channel, and by its route.
        let mut repaired = open("r");
        let last = publish_until(&server, "r", 0, |_, receipt| count(receipt, "left_to_log") == 1);
        (0..last).for_each(|number| assert_eq!(next(&mut repaired), content(number)));
        let mut newest = open("n");
        let last = publish_until(&server, "n", 0, |_, receipt| count(receipt, "passed_over") == 1);
        let numbers = numbers_until(last - 1, || next(&mut newest));
        assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.len() < last, "{numbers:?}");
        // The channel counts, not the route.
        let mut closed = open("x");
        let last = publish_until(&server, "x", 0, |_, receipt| count(&receipt["dropped"], "overflow") == 1);
        (0..last - 1).for_each(|number| assert_eq!(next(&mut closed), content(number)));
        closed.expect(close(1013, ""));
        for (client, channel) in [(&mut repaired, "r"), (&mut newest, "n")] {
            server.publish(&json!([item(channel, 999)]));
            assert_eq!(next(client), content(999));
        }
        server.wait_metric("fantail_pins_ended_total", &["cause=\"overflow\""], 1.0);
    }
}

/// Without a log there is nothing to repair with.
#[test]
fn a_channel_without_a_log_is_not_repaired() {
    let origin = holding("c");
    let server = server(&format!("*,slow=repair {origin}"), "", "send");
    let mut slow = slow_stream(&server);
    let last = publish_until(&server, "c", 0, |_, receipt| count(&receipt["dropped"], "overflow") == 1);
    let got = match slow.try_content(usize::MAX) {
        Err(ReadError::Closed { got } | ReadError::Reset { got }) => got,
        other => panic!("the stream went on: {other:?}"),
    };
    assert!(all(0..last).as_bytes().starts_with(&got), "a hole");
    server.wait_metric("fantail_pins_ended_total", &["cause=\"overflow\""], 1.0);
}

#[test]
fn check_says_what_slow_clients_get() {
    for (toml, wanted) in [
        ("[[log]]\nmatch = \"c\"\nslow = \"drop\"\n", "nothing for slow subscribers"),
        ("[routes]\nlines = [\"*,slow=drop test\"]\n", "close, repair or newest"),
    ] {
        let (status, said) = TestServer::refused(&[], |o| {
            o.config(toml);
        });
        assert!(!status.success() && said.contains(wanted), "{said}");
    }
}
