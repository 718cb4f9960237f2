//! An origin that is down, slow, or answers garbage: a clear status or a visible cut, never a crash, and
//! the next request is served as if nothing had been.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::time::Instant;

use crate::harness::{Framing, Origin, ReadError, TestServer, Then, answer, hold};

/// Answers that are no HTTP, or HTTP that two readers could read differently.
fn garbage() -> Vec<Vec<u8>> {
    let ok = "HTTP/1.1 200 OK\r\n";
    let mut all: Vec<Vec<u8>> = [
        "",
        "\r\n",
        "\n",
        "\0",
        "garbage",
        "garbage\r\n\r\n",
        "HTTP",
        "HTTP/1.1",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 2\r\n\r\n",
        "HTTP/1.1 20\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 -200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 000 Zero\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\0: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: x\0y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA(b): x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: x\r\n",
        "HTTP/1.1 200 OK\r\nA",
        "HTTP/1.1 200 OK\r\nContent-Length: 5",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ]
    .iter()
    .map(|s| s.as_bytes().to_vec())
    .collect();
    for lengths in [
        "Content-Length: abc",
        "Content-Length: -1",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5, 6",
        "Content-Length: 99999999999999999999999",
        "Content-Length: ",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5.0",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, gzip",
    ] {
        all.push(format!("{ok}{lengths}\r\n\r\nhello").into_bytes());
    }
    all.push(format!("{ok}X-Long: {}\r\n\r\n", "x".repeat(10_000_000)).into_bytes());
    all.push(format!("{ok}{}\r\n", "X-Many: x\r\n".repeat(10_000)).into_bytes());
    all.push([b"HTTP/1.1 200 ".to_vec(), vec![b'R'; 1_000_000], b"\r\n\r\n".to_vec()].concat());
    all.push(vec![b'A'; 1_000_000]);
    all.push("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(10_000).into_bytes());
    all.push([&b"HTTP/1.1 200 OK\r\nA: "[..], &[0xff, 0x80, 0x01, 0x7f], b"\r\n\r\n"].concat());
    all
}

#[test]
fn an_answer_has_at_most_100_headers() {
    let origin = Origin::scripted(|exchange| {
        let fields: usize = exchange.request.target().trim_start_matches('/').parse().expect("a number");
        let fields: String = (1..fields).map(|n| format!("X-{n}: v\r\n")).collect();
        exchange.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 4\r\n\r\nwell"));
        Then::Next
    });
    let server = TestServer::before(&origin);
    for (fields, status) in [(100, 200), (101, 502), (100, 200)] {
        assert_eq!(server.get(&format!("/{fields}")).status(), status, "{fields}");
    }
}

#[test]
fn garbage_is_answered_with_502() {
    let replies = garbage();
    let count = replies.len();
    assert!(count >= 58, "{count}");
    let origin = Origin::scripted(move |exchange| {
        let case = exchange.request.target().trim_start_matches('/').parse::<usize>();
        match case {
            Ok(case) => exchange.send(&replies[case]),
            Err(_) => exchange.send(answer("200 OK", &[], "well")),
        };
        Then::Close
    });
    let server = TestServer::before(&origin);
    drop(server.get("/well"));
    let memory = server.memory();
    let mut wrong = Vec::new();
    for case in 0..count {
        let got = server.connect().get(&format!("/{case}")).try_response();
        let shown: String = String::from_utf8_lossy(&garbage()[case]).chars().take(60).collect();
        match got {
            Ok(got) if got.status() == 502 && got.text() == "Error while proxying to origin.\n" => {}
            Ok(got) => wrong.push(format!("{case} {shown:?}: {} {:?}", got.status(), got.text())),
            Err(error) => wrong.push(format!("{case} {shown:?}: {error:?}")),
        }
        assert_eq!(server.get("/well").text(), "well", "after {shown:?}");
    }
    assert!(wrong.is_empty(), "not answered with 502:\n{}", wrong.join("\n"));
    let grown = server.memory().saturating_sub(memory);
    assert!(grown < 30_000_000, "{grown} bytes more");
    assert!(server.metric("fantail_origin_errors_total", &[]) >= 50.0);
}

/// A body that the origin cuts reaches the client as a cut, not as a complete answer.
#[test]
fn a_cut_body_is_a_cut_for_the_client() {
    let cuts: [(&str, &str); 6] = [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        ("chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("in-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf"),
        (
            "bad-size",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\nmore\r\n0\r\n\r\n",
        ),
        (
            "huge-size",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nffffffffffffffffff\r\n",
        ),
        (
            "no-crlf",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalfXX5\r\nmore!\r\n0\r\n\r\n",
        ),
    ];
    for then in [Then::Close, Then::Reset] {
        let origin = Origin::scripted(move |exchange| {
            let target = exchange.request.target().trim_start_matches('/').to_string();
            let (_, raw) = cuts.iter().find(|(name, _)| *name == target).expect("a case");
            exchange.send(raw);
            then
        });
        let server = TestServer::before(&origin);
        for (name, _) in cuts {
            match server.connect().get(&format!("/{name}")).try_response() {
                Err(ReadError::Closed { got } | ReadError::Reset { got }) => {
                    assert!(b"half".starts_with(&got) || got == b"half", "{name}: {got:?}");
                }
                Ok(got) if got.status() == 502 => {}
                other => panic!("{name}, {then:?}: {other:?}"),
            }
        }
    }
}

/// Without a length the close is the end, and cannot be told from a cut.
#[test]
fn a_body_until_the_close_is_whole() {
    let origin = Origin::raw("HTTP/1.1 200 OK\r\n\r\nuntil the close");
    let got = TestServer::before(&origin).get("/");
    assert_eq!((got.text().as_str(), got.framing), ("until the close", Framing::Chunked));
    let old = Origin::raw("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold");
    assert_eq!(TestServer::before(&old).get("/").text(), "old");
}

/// More than the announced length is not part of the answer, nor of the next one.
#[test]
fn bytes_behind_an_answer_are_not_the_next_answer() {
    let asked = AtomicUsize::new(0);
    let origin = Origin::scripted(move |exchange| {
        match asked.fetch_add(1, SeqCst) {
            0 => exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"),
            _ => exchange.send(answer("200 OK", &[], "second")),
        };
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.shards", "1");
    });
    assert_eq!(server.get("/").text(), "first");
    assert_eq!(server.get("/").text(), "second");
}

#[test]
fn early_hints_are_not_the_answer() {
    let origin = Origin::fixed(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
            .to_vec(),
    );
    let got = TestServer::before(&origin).get("/");
    assert_eq!((got.status(), got.text().as_str(), got.head.has("link")), (200, "fine", false));
}

/// The origin answers before it has read the request: the answer is relayed, and what remains of the body
/// is not taken for a request.
#[test]
fn an_early_answer_is_relayed() {
    let origin = Origin::scripted(|exchange| {
        exchange.send(answer("413 Content Too Large", &[("Connection", "close")], "too large"));
        Then::Close
    });
    let server = TestServer::before(&origin);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    client.send_part("GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
    let got = client.response();
    assert_eq!((got.status(), got.text().as_str()), (413, "too large"));
    client.send_part(vec![b'x'; 900_000]);
    client.rest();
    assert!(origin.requests().iter().all(|r| r.target() == "/"), "{:?}", origin.requests());
}

#[test]
fn an_origin_that_does_not_answer_ends_with_504() {
    let origin = Origin::scripted(|_| Then::Hang);
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.response_timeout", "500ms");
    });
    let start = Instant::now();
    assert_eq!(server.get("/").status(), 504);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    server.wait_metric("fantail_origin_timeouts_total", &[], 1.0);
}

#[test]
fn a_body_that_stops_coming_is_cut() {
    let origin = Origin::scripted(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        Then::Hang
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("origin.idle_timeout", "500ms");
    });
    match server.connect().get("/").try_response() {
        Err(ReadError::Closed { got } | ReadError::Reset { got }) => assert!(b"half".starts_with(&got)),
        other => panic!("not a cut: {other:?}"),
    }
}

/// An address that swallows connection attempts: its accept queue is full and nobody accepts.
fn swallowing() -> (socket2::Socket, Vec<std::net::TcpStream>, std::net::SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(0).expect("it listens");
    let address = socket.local_addr().ok().and_then(|a| a.as_socket()).expect("an address");
    let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let queued: Vec<_> = std::iter::from_fn(|| connect().ok()).take(8).collect();
    (socket, queued, address)
}

#[test]
fn a_target_that_does_not_accept_is_followed_by_the_next() {
    let (_socket, _queued, address) = swallowing();
    let origin = Origin::fixed(answer("200 OK", &[], "fine"));
    let server = TestServer::start(&[&format!("* {address} {origin}")], |o| {
        o.set("origin.connect_timeout", "300ms");
    });
    let start = Instant::now();
    assert_eq!(server.get("/").text(), "fine");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(server.metric("fantail_origin_connect_failures_total", &[]) >= 1.0);
}

/// One origin that hangs does not slow the routes of another.
#[test]
fn a_hanging_origin_holds_nobody_else_up() {
    let (stuck, fine) = (Origin::scripted(|_| Then::Hang), Origin::fixed(answer("200 OK", &[], "fine")));
    let server = TestServer::start(&[&format!("*,path_beg=/stuck {stuck}"), &format!("* {fine}")], |_| {});
    let mut waiting: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.get("/stuck");
    }
    stuck.wait_requests(100);
    // Whoever waits for the other waits for a minute: longer than a client here has patience.
    for _ in 0..20 {
        assert_eq!(server.get("/").text(), "fine");
    }
}

/// An origin that sends its answer a byte at a time.
#[test]
fn a_dripping_origin_is_waited_for() {
    let origin = Origin::scripted(|exchange| {
        for byte in hold("stream", "c", &[], "drip") {
            exchange.send([byte]);
            exchange.pause(Duration::from_millis(2));
        }
        Then::Next
    });
    let server = TestServer::before(&origin);
    let mut client = server.stream("/");
    client.expect("drip");
    server.publish_stream("c", "live");
    client.expect("live");
}

/// An answer with GRIP headers whose body is cut is the origin's failure, not a hold.
#[test]
fn a_cut_instruct_is_no_hold() {
    let origin = Origin::raw(
        "HTTP/1.1 200 OK\r\nGrip-Hold: response\r\nGrip-Channel: c\r\nContent-Length: 100\r\n\r\nhalf",
    );
    let server = TestServer::before(&origin);
    assert_eq!(server.get("/").status(), 502);
    server.wait_pins("poll", 0);
}

/// Where one idle connection is found closed, others may be, too: the request is sent once more, on a new one.
#[test]
fn a_request_is_sent_no_more_than_twice() {
    let known = std::sync::Mutex::new(std::collections::HashSet::new());
    let origin = Origin::scripted(move |exchange| {
        let is_new = known.lock().unwrap().insert(exchange.request.connection);
        match exchange.request.target() {
            "/again" if !is_new => return Then::Close,
            "/again" => {}
            _ => exchange.pause(Duration::from_millis(300)),
        }
        exchange.send(answer("200 OK", &[], "ok"));
        Then::Next
    });
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.set("server.shards", "1");
    });
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| _ = client.get("/at-once"));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    assert_eq!(server.get("/again").status(), 200);
    let again = origin.requests().iter().filter(|request| request.target() == "/again").count();
    assert_eq!(again, 2);
}
