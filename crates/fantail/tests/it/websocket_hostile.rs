//! What hostile WebSocket clients send, in raw bytes: each is closed with the right code, its origin hears of it
//! once, and memory stays flat. And who may not connect, or does not know how to.

use std::{collections::HashMap, time::Duration};

use fantail_proto::websocket::{
    deflate::Deflater,
    frame::{Frame, Opcode},
};

use crate::harness::{Client, Origin, TestServer, Then, answer, find};

const KEY: [u8; 4] = [7, 1, 250, 3];
const MESSAGE_BYTES: usize = 1 << 20;
/// What the server needs apart from the message: reads, the allocator's slack, code that runs for the first time.
const SLACK_BYTES: u64 = 4 << 20;
const DEFLATE: (&str, &str) = ("Sec-WebSocket-Extensions", "permessage-deflate");

/// An over-HTTP origin that accepts, says nothing but the same again, and answers closes.
fn echo() -> Origin {
    Origin::answering(|request| {
        let body = if request.body == b"DISCONNECT\r\n" { &[][..] } else { &request.body };
        answer("200 OK", &[("Content-Type", "application/websocket-events")], body)
    })
}

fn start(origin: &Origin) -> TestServer {
    TestServer::start(&[&format!("* {origin},over_http")], |o| {
        o.set("websocket.deflate", "true").set("websocket.message_bytes", &MESSAGE_BYTES.to_string());
    })
}

fn upgrade(fields: &[(&str, &str)]) -> String {
    let mut head = "GET /socket HTTP/1.1\r\nHost: fantail.example\r\n".to_string();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let all = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, value) in all {
        if !fields.iter().any(|(other, _)| *other == name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head + "\r\n"
}

fn open(server: &TestServer, fields: &[(&str, &str)]) -> Client {
    let mut client = server.connect();
    let head = client.send(upgrade(fields)).head();
    assert_eq!(head.status(), 101, "{head:?}");
    let deflates = head.field("sec-websocket-extensions").is_some();
    assert_eq!(deflates, fields.contains(&DEFLATE), "{head:?}");
    client
}

/// A client's frame, its first byte as given.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Frame::new(Opcode::Binary, payload).append_masked(KEY, &mut frame);
    frame[0] = first;
    frame
}

fn close_frame(code: u16) -> Vec<u8> {
    [&[0x88, 2][..], &code.to_be_bytes()].concat()
}

/// What a client that agreed to nothing, or to deflate, sends; and the code that it gets.
fn violations() -> Vec<(String, bool, Vec<u8>, u16)> {
    let mut all = vec![
        ("unmasked".into(), false, b"\x81\x02hi".to_vec(), 1002),
        ("ping of 126 bytes".into(), false, [&[0x89, 0xfe, 0, 126][..], &[0; 130]].concat(), 1002),
        ("ping in fragments".into(), false, frame(0x09, b"a"), 1002),
        ("close in fragments".into(), false, frame(0x08, b"\x03\xe8"), 1002),
        ("nothing to continue".into(), false, frame(0x80, b"a"), 1002),
        ("message in a message".into(), false, [frame(1, b"a"), frame(0x81, b"b")].concat(), 1002),
        ("length of 65 bits".into(), false, b"\x82\xff\x80\0\0\0\0\0\0\x01".to_vec(), 1002),
        ("length in a long form".into(), false, b"\x82\xfe\0\x05\0\0\0\0hello".to_vec(), 1002),
        ("close of a byte".into(), false, frame(0x88, b"\x03"), 1002),
        ("close reason".into(), false, frame(0x88, b"\x03\xe8\xff"), 1007),
        ("text, not UTF-8".into(), false, frame(0x81, b"\xc0\xaf"), 1007),
        ("surrogate".into(), false, frame(0x81, b"\xed\xa0\x80"), 1007),
        ("text cut in a character".into(), false, frame(0x81, b"\xe2\x82"), 1007),
        ("not UTF-8, and more to come".into(), false, frame(0x01, b"\xff"), 1007),
        // Its other bytes never come.
        ("not UTF-8 in half a frame".into(), false, b"\x81\xfe\x01\x00\0\0\0\0a\xff".to_vec(), 1007),
        ("character cut wrongly".into(), false, [frame(1, b"\xe2"), frame(0x80, b"\x41")].concat(), 1007),
        ("does not inflate".into(), true, frame(0xc1, b"\xff\xff\xff"), 1007),
        ("inflates to no UTF-8".into(), true, frame(0xc1, &deflated(&[0xff; 100])), 1007),
        ("compressed ping".into(), true, frame(0xc9, b"a"), 1002),
        ("compressed continuation".into(), true, [frame(0x41, b"a"), frame(0xc0, b"b")].concat(), 1002),
        ("announced too long".into(), false, [&[0x82, 0xff][..], &too_long(), &KEY].concat(), 1009),
        ("too long in fragments".into(), false, [frame(2, &long(0)), frame(0x80, b"x")].concat(), 1009),
        ("inflates too long".into(), true, frame(0xc2, &deflated(&long(1))), 1009),
    ];
    all.extend((3..8).chain(11..16).map(|op| (format!("opcode {op}"), false, frame(0x80 | op, b""), 1002)));
    let bits = [(0x40, false), (0x20, false), (0x10, false), (0x20, true), (0x10, true)];
    all.extend(bits.map(|(bit, deflate)| (format!("bit {bit}"), deflate, frame(0x81 | bit, b"a"), 1002)));
    let codes = [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535];
    all.extend(
        codes.map(|code| (format!("close code {code}"), false, frame(0x88, &code.to_be_bytes()), 1002)),
    );
    all
}

fn long(over: usize) -> Vec<u8> {
    vec![b'x'; MESSAGE_BYTES + over]
}

fn too_long() -> [u8; 8] {
    (MESSAGE_BYTES as u64 + 1).to_be_bytes()
}

fn deflated(message: &[u8]) -> Vec<u8> {
    Deflater::new().deflate(message).expect("it shrinks").to_vec()
}

#[test]
fn violations_are_closed_with_their_code() {
    let origin = echo();
    let server = start(&origin);
    let all = violations();
    for (name, deflate, sent, code) in &all {
        let mut client = open(&server, if *deflate { &[DEFLATE] } else { &[] });
        // What follows a violation is for nobody.
        client.send_part(sent).send_part(frame(0x81, b"later"));
        assert_eq!(client.rest(), close_frame(*code), "{name}");
    }
    server.wait_metric("fantail_pins_ended_total", &["cause=\"violation\""], all.len() as f64);
    let too_long = all.iter().filter(|(_, _, _, code)| *code == 1009).count();
    server.wait_metric("fantail_websocket_limits_total", &["limit=\"message_bytes\""], too_long as f64);
    expect_disconnects(server, &origin, all.len());
}

/// Each of that many WebSockets was opened, and ended, once, and nothing else.
fn expect_disconnects(server: TestServer, origin: &Origin, count: usize) {
    origin.wait_requests(2 * count);
    assert!(server.terminate().success());
    let mut heard: HashMap<String, Vec<u8>> = HashMap::new();
    for request in origin.requests() {
        let id = request.head.field("connection-id").expect("an id").to_string();
        heard.entry(id).or_default().extend(&request.body);
    }
    assert_eq!(heard.len(), count);
    for events in heard.values() {
        assert_eq!(String::from_utf8_lossy(events), "OPEN\r\nDISCONNECT\r\n");
    }
}

/// The limit itself passes, compressed or not.
#[test]
fn a_message_as_long_as_may_be() {
    let origin = Origin::answering(|request| {
        let body: &[u8] = match &request.body[..] {
            b"OPEN\r\n" => b"OPEN\r\n",
            body if body.starts_with(b"BINARY 100000\r\n") => b"TEXT 4\r\nwhat\r\n",
            _ => b"",
        };
        answer("200 OK", &[("Content-Type", "application/websocket-events")], body)
    });
    let server = start(&origin);
    let mut client = open(&server, &[]);
    assert_eq!(client.send_part(frame(0x82, &long(0))).content(6), b"\x81\x04what");
    let mut client = open(&server, &[DEFLATE]);
    assert_eq!(client.send_part(frame(0xc2, &deflated(&long(0)))).content(6), b"\x81\x04what");
}

/// What was in order before a violation is the origin's all the same.
#[test]
fn a_message_before_a_violation_is_heard() {
    let origin = echo();
    let server = start(&origin);
    let mut client = open(&server, &[]);
    client.send_part([&frame(0x81, b"first")[..], b"\x81\x02hi"].concat());
    let rest = client.rest();
    assert!(rest.ends_with(&close_frame(1002)), "{rest:?}");
    let heard = || origin.requests().iter().flat_map(|request| request.body.clone()).collect::<Vec<_>>();
    let expected = b"OPEN\r\nTEXT 5\r\nfirst\r\nDISCONNECT\r\n";
    server.wait_until(Duration::from_secs(20), "all is heard", || heard().len() >= expected.len());
    assert!(server.terminate().success());
    assert_eq!(String::from_utf8_lossy(&heard()), String::from_utf8_lossy(expected));
}

/// Far more than the limit, all of it sent before anything is read: the code still arrives.
#[test]
fn who_sends_on_hears_the_code() {
    let origin = echo();
    let server = start(&origin);
    let mut client = open(&server, &[]);
    client.send_part(frame(0x82, &vec![b'x'; 6 * MESSAGE_BYTES]));
    assert_eq!(client.rest(), close_frame(1009));
    expect_disconnects(server, &origin, 1);
}

#[test]
fn a_hundred_thousand_fragments() {
    let origin = echo();
    let server = start(&origin);
    let peak = peak_over(&server, || {
        let flood = [frame(2, b"x"), frame(0, b"x").repeat(99_998), frame(0x80, b"x")].concat();
        let mut client = open(&server, &[]);
        client.send_part(flood);
        assert_eq!(client.rest(), close_frame(1009));
    });
    println!("{peak} bytes at most");
    assert!(peak < SLACK_BYTES, "{peak} bytes for 100,000");
    expect_disconnects(server, &origin, 2);
}

/// A megabyte that is a gigabyte: given up when it is over the limit.
#[test]
fn a_message_that_inflates_to_a_gigabyte() {
    let origin = echo();
    let server = start(&origin);
    // Each part ends at a byte and looks back at nothing before it.
    let part = [&deflated(&vec![0; 1 << 20])[..], &[0, 0, 0xff, 0xff]].concat();
    let bomb = part.repeat(1024);
    assert!(bomb.len() < MESSAGE_BYTES + MESSAGE_BYTES / 8, "{} bytes are read", bomb.len());
    for sent in [vec![frame(0xc2, &bomb)], in_fragments(&bomb)] {
        let peak = peak_over(&server, || {
            let mut client = open(&server, &[DEFLATE]);
            client.send_part(sent.concat());
            assert_eq!(client.rest(), close_frame(1009));
        });
        // What was received, what it became, up to the limit.
        let limit = 2 * MESSAGE_BYTES as u64 + SLACK_BYTES;
        println!("{peak} bytes at most");
        assert!(peak < limit, "{peak} bytes");
    }
    expect_disconnects(server, &origin, 4);
}

fn in_fragments(payload: &[u8]) -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = payload.chunks(1000).map(|chunk| frame(0, chunk)).collect();
    frames.first_mut().expect("some")[0] = 0x42;
    frames.last_mut().expect("some")[0] = 0x80;
    frames
}

/// How many bytes the process grew at most while `act` ran.
fn peak_over(server: &TestServer, act: impl FnOnce()) -> u64 {
    // Its first WebSocket makes the server larger for good.
    drop(open(server, &[DEFLATE]));
    server.wait_pins("websocket", 0);
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("our own child's");
    let before = status_bytes(server, "VmRSS:");
    act();
    status_bytes(server, "VmHWM:").saturating_sub(before)
}

fn status_bytes(server: &TestServer, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a field of Linux");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}

/// Compression is the shard's, not the connection's.
#[test]
fn who_agreed_to_deflate_costs_no_more_while_idle() {
    let (origin, count) = (echo(), 5_000);
    let [plain, deflating] = [&[][..], &[DEFLATE]].map(|fields| {
        let server = TestServer::start(&[&format!("* {origin},over_http")], |o| {
            o.set("websocket.deflate", "true").set("logging.access", "false").set("server.backlog", "4096");
        });
        let mut clients = vec![open(&server, fields)];
        let before = server.memory();
        while clients.len() < count {
            clients.extend((0..100).map(|_| server.connect()));
            let from = clients.len() - 100;
            for client in &mut clients[from..] {
                client.send(upgrade(fields));
            }
            for client in &mut clients[from..] {
                let head = client.head();
                assert_eq!(head.status(), 101);
                assert_eq!(head.has("sec-websocket-extensions"), !fields.is_empty());
            }
        }
        server.wait_pins("websocket", clients.len());
        server.memory().saturating_sub(before)
    });
    println!("{} and {} bytes a connection", plain / count as u64, deflating / count as u64);
    assert!(deflating < plain + plain / 10 + (1 << 20), "{deflating} bytes, not {plain}");
}

#[test]
fn pages_that_may_connect() {
    let origin = echo();
    let route = format!("* {origin},over_http");
    let server = TestServer::start(&[&route], |o| {
        o.config("[websocket]\norigins = [\"https://a.example\", \"http://b.example:8080\"]\n");
    });
    let table: [(&[&str], u16); 14] = [
        (&[], 101),
        (&["https://a.example"], 101),
        (&["HTTPS://A.EXAMPLE"], 101),
        (&["http://b.example:8080"], 101),
        (&["http://a.example"], 403),
        (&["https://b.example:8080"], 403),
        (&["http://b.example"], 403),
        (&["https://a.example.evil.example"], 403),
        (&["https://evil.example/https://a.example"], 403),
        (&["https://a.example:444"], 403),
        (&["null"], 403),
        (&["https://a.example https://evil.example"], 403),
        (&["https://a.example", "https://evil.example"], 403),
        (&["https://a.example", "https://a.example"], 403),
    ];
    for (origins, status) in table {
        let fields: Vec<_> = origins.iter().map(|value| ("Origin", *value)).collect();
        let head = server.connect().send(upgrade(&fields)).head();
        assert_eq!(head.status(), status, "{origins:?}");
    }
    let opened = table.iter().filter(|(_, status)| *status == 101).count();
    assert_eq!(origin.requests().iter().filter(|request| request.body == b"OPEN\r\n").count(), opened);
    let refused = (table.len() - opened) as f64;
    server.wait_metric("fantail_websocket_refused_total", &["cause=\"origin\""], refused);
}

/// Unless pages are listed, any may connect.
#[test]
fn every_page_may_connect() {
    let origin = echo();
    let server = start(&origin);
    for page in ["https://a.example", "null"] {
        open(&server, &[("Origin", page)]);
    }
}

#[test]
fn handshakes_that_are_wrong() {
    let origin = echo();
    let server = start(&origin);
    let get = |name, value| upgrade(&[(name, value)]);
    let once = upgrade(&[]);
    let mut table = vec![
        once.replace("GET ", "POST "),
        once.replace("HTTP/1.1", "HTTP/1.0"),
        get("Content-Length", "5") + "hello",
        get("Transfer-Encoding", "chunked") + "0\r\n\r\n",
        get("Connection", "keep-alive"),
        get("Connection", ""),
        get("Sec-WebSocket-Version", "8"),
        get("Sec-WebSocket-Version", "13, 8"),
        get("Sec-WebSocket-Version", ""),
        get("Sec-WebSocket-Key", "c2hvcnQ="),
        get("Sec-WebSocket-Key", "no key"),
        get("Sec-WebSocket-Key", ""),
    ];
    for twice in ["Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"] {
        table.push(once.replace(twice, &twice.repeat(2)));
    }
    for request in &table {
        let mut client = server.connect();
        let answer = client.send(request).response();
        assert_eq!(answer.status(), 400, "{request}");
        assert_eq!(answer.head.field("sec-websocket-version"), Some("13"), "{request}");
        client.expect_closed();
    }
    assert_eq!(origin.requests().len(), 0);
    server.wait_metric("fantail_websocket_refused_total", &["cause=\"invalid\""], table.len() as f64);
}

/// Whoever refuses, what a client has sent behind its upgrade is not read as HTTP.
#[test]
fn bytes_behind_a_refused_upgrade_are_no_request() {
    let behind = "GET /smuggled HTTP/1.1\r\nHost: fantail.example\r\n\r\n";
    let origin = Origin::answering(|request| match request.target() {
        "/socket" => answer("403 Forbidden", &[("Content-Type", "application/websocket-events")], "OPEN\r\n"),
        _ => answer("200 OK", &[], "smuggled"),
    });
    let agrees = Origin::fixed(answer("200 OK", &[], "no WebSocket"));
    let lies = Origin::scripted(|exchange| {
        exchange
            .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        Then::Hang
    });
    let routes = [
        format!("over-http.example {origin},over_http"),
        format!("native.example {origin}"),
        format!("ordinary.example {agrees}"),
        format!("events.example {agrees},over_http"),
        format!("liar.example {lies}"),
    ];
    let server = TestServer::start(&routes.each_ref().map(String::as_str), |o| {
        o.config("[websocket]\norigins = [\"https://a.example\"]\n");
    });
    let on = |host: &str| upgrade(&[]).replace("fantail.example", host);
    let table = [
        (on("over-http.example").replace(": 13", ": 8"), 400),
        (on("over-http.example").replace("\r\n\r\n", "\r\nOrigin: null\r\n\r\n"), 403),
        (on("over-http.example"), 403),
        (on("native.example"), 403),
        (on("ordinary.example"), 200),
        (on("events.example"), 200),
        (on("liar.example"), 502),
    ];
    for (request, status) in table {
        for pieces in [vec![format!("{request}{behind}")], vec![request.clone(), behind.to_string()]] {
            let mut client = server.connect();
            for piece in pieces {
                client.send_part(piece);
            }
            let all = client.rest();
            let text = String::from_utf8_lossy(&all).into_owned();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{text}");
            assert_eq!(text.matches("HTTP/1.1").count(), 1, "{request}{text}");
            assert!(find(&all, b"smuggled").is_none(), "{request}{text}");
        }
    }
    for origin in [origin, agrees, lies] {
        assert!(origin.requests().iter().all(|request| request.target() == "/socket"));
    }
}

/// Behind an upgrade that is agreed to, a request is a frame against the protocol.
#[test]
fn bytes_behind_an_upgrade_are_frames() {
    let origin = echo();
    let server = start(&origin);
    let mut client = server.connect();
    client.send_part(upgrade(&[]) + "GET /smuggled HTTP/1.1\r\nHost: fantail.example\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.rest(), close_frame(1002));
    expect_disconnects(server, &origin, 1);
}
