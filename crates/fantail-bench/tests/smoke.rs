//! The tool against servers over real sockets: it passes an honest one and convicts one that loses,
//! repeats or reorders. Its own floor is the honest one.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;

const BENCH: &str = env!("CARGO_BIN_EXE_fantail-bench");

#[test]
fn the_floor_loses_nothing() {
    let floor = Floor::start();
    let pid = floor.process.id().to_string();
    for subcommand in ["fan", "burst"] {
        let output = floor.drive(&[subcommand, "-n", "50", "-m", "200", "--size", "300", "--pids", &pid]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{subcommand}: {text}");
        for figure in
            [r#""deliveries":10000,"#, r#""missing":0,"#, r#""refused":0,"#, "server_cpu_us_per_delivery"]
        {
            assert!(text.contains(figure), "{subcommand}: {figure} in {text}");
        }
    }
}

#[test]
fn streams_are_set_up_and_their_memory_read() {
    let floor = Floor::start();
    let pid = floor.process.id().to_string();
    let output = floor.bench(&["hold", "-n", "20,60", "--hold", "0", "--pids", &pid]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(r#""open":60,"failed":0,"#), "{text}");
    assert!(text.contains("server_pss_bytes_per_connection"), "{text}");
    let output = floor.bench(&["setup", "-n", "60"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#""open":60,"#));
}

#[test]
fn faults_of_a_server_are_seen() {
    let table = [
        (Fault::None, 0, [r#""missing":0"#, r#""duplicates":0"#, r#""reordered":0"#]),
        (Fault::Loses, 1, [r#""missing":1"#, r#""duplicates":0"#, r#""reordered":0"#]),
        (Fault::Repeats, 1, [r#""missing":0"#, r#""duplicates":1"#, r#""reordered":0"#]),
        (Fault::Swaps, 1, [r#""missing":0"#, r#""duplicates":0"#, r#""reordered":1"#]),
    ];
    for (fault, status, figures) in table {
        let (clients, publishers) = (listener(), listener());
        let addresses = [&clients, &publishers].map(|listener| listener.local_addr().unwrap().to_string());
        let server = thread::spawn(move || serve(&clients, &publishers, fault));
        let line = ["fan", "-n", "3", "-m", "4", "--window", "4", "--timeout", "1", "--json"];
        let output =
            Command::new(BENCH).args(line).args(["--sub", &addresses[0], "--pub", &addresses[1]]).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(status), "{fault:?}: {text}");
        figures.iter().for_each(|figure| assert!(text.contains(figure), "{fault:?}: {figure} in {text}"));
        server.join().unwrap();
    }
}

#[test]
fn plain_requests_are_counted_and_refusals_fail() {
    for (status, code) in [("200 OK", 0), ("503 No", 1)] {
        let clients = listener();
        let address = clients.local_addr().unwrap().to_string();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
        let server = thread::spawn(move || {
            let (mut client, _) = clients.accept().unwrap();
            while read_head(&mut client).is_some() && client.write_all(answer.as_bytes()).is_ok() {}
        });
        let line = ["proxy", "-n", "1", "--duration", "1", "--json", "--sub", &address];
        let output = Command::new(BENCH).args(line).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        server.join().unwrap();
    }
}

#[test]
fn echoes_are_checked() {
    let table = [
        (Fault::None, 0, r#""faults":0"#),
        (Fault::Loses, 1, r#""missing":1"#),
        (Fault::Repeats, 1, r#""duplicates":1"#),
        (Fault::Swaps, 1, r#""reordered":1"#),
    ];
    for (fault, status, figure) in table {
        let clients = listener();
        let address = clients.local_addr().unwrap().to_string();
        let server = thread::spawn(move || echo(&clients, fault));
        let line = ["echo", "-n", "1", "--messages", "4", "--pipeline", "--size", "30"];
        let more = ["--timeout", "1", "--json", "--sub", &address];
        let output = Command::new(BENCH).args(line).args(more).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(status), "{fault:?}: {text}");
        assert!(text.contains(figure), "{fault:?}: {figure} in {text}");
        server.join().unwrap();
    }
}

#[test]
fn what_is_kept_is_counted_and_a_refusal_fails() {
    for (status, code, figure, ids) in [
        ("200 OK", 0, r#""items":6,"failed":0,"#, 3),
        ("200 OK", 0, r#""items":6,"failed":0,"#, 0),
        ("503 Not kept", 1, r#""items":0,"failed":2,"#, 3),
    ] {
        let publishers = listener();
        let address = publishers.local_addr().unwrap().to_string();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let server = thread::spawn(move || {
            let (mut client, _) = publishers.accept().unwrap();
            while let Some(head) = read_head(&mut client) {
                assert!(head.starts_with("POST /publish/?durability=synced "), "{head}");
                let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
                let mut body = vec![0; length.unwrap().parse().unwrap()];
                client.read_exact(&mut body).unwrap();
                let body = String::from_utf8(body).unwrap();
                assert_eq!(body.matches(&"x".repeat(50)).count(), 3);
                assert_eq!(body.matches(r#""id":"#).count(), ids);
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        let line = [
            "keep", "-m", "6", "--items", "3", "--size", "50", "--fsync", "/tmp", "--json", "--pub", &address,
        ];
        let output = Command::new(BENCH)
            .args(line)
            .args((ids == 0).then_some("--without-ids"))
            .args(["--pub-path", "/publish/?durability=synced"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(code) && text.contains(figure), "{text}");
        assert!(text.contains("fsync_us_p50"), "{text}");
        server.join().unwrap();
    }
}

#[test]
fn who_comes_back_gets_what_it_has_missed_and_its_origin_hears_of_it_once() {
    let table = [
        (Fault::None, 1, 0, [r#""missing":0"#, r#""origin_requests_beyond":0"#]),
        (Fault::None, 2, 1, [r#""missing":0"#, r#""origin_requests_beyond":1"#]),
        (Fault::Loses, 1, 1, [r#""missing":1"#, r#""origin_requests_beyond":0"#]),
        (Fault::Swaps, 1, 1, [r#""reordered":1"#, r#""origin_requests_beyond":0"#]),
    ];
    for (fault, asks, status, figures) in table {
        let (clients, publishers, free) = (listener(), listener(), listener());
        let [sub, publish, origin] =
            [&clients, &publishers, &free].map(|listener| listener.local_addr().unwrap().to_string());
        drop(free);
        let ask = origin.clone();
        let server = thread::spawn(move || give_missed(&clients, &publishers, &ask, (fault, asks)));
        let line = ["catch-up", "-n", "1", "--behind", "4", "--timeout", "1", "--json"];
        let addresses = ["--sub", &sub, "--pub", &publish, "--origin", &origin];
        let output = Command::new(BENCH).args(line).args(addresses).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(status), "{fault:?} {asks}: {text}");
        figures.iter().for_each(|figure| assert!(text.contains(figure), "{fault:?}: {figure} in {text}"));
        server.join().unwrap();
    }
}

#[test]
fn an_origin_answers_events_late() {
    let line = ["events-origin", "--listen", "127.0.0.1:0", "--delay", "30", "--subscribe", "test"];
    let mut process = Command::new(BENCH).args(line).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let mut client = TcpStream::connect(line.trim().strip_prefix("origin ").unwrap()).unwrap();
    let subscribed = "OPEN\r\nTEXT 27\r\nc:{\"type\":\"subscribe\",\"channel\":\"test\"}\r\n";
    for (events, expected) in [("OPEN\r\n", subscribed), ("TEXT 2\r\nhi\r\n", "TEXT 4\r\nm:hi\r\n")] {
        let asked = std::time::SystemTime::now();
        let length = events.len();
        write!(client, "POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{events}").unwrap();
        let head = read_head(&mut client).unwrap();
        assert!(head.contains("\r\nSec-WebSocket-Extensions: grip\r\n"), "{head}");
        let mut body = vec![0; expected.len()];
        client.read_exact(&mut body).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert!(asked.elapsed().unwrap().as_millis() >= 30);
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let free = listener().local_addr().unwrap().to_string();
    let table = [
        (&["fan", "-n", "2", "--sub", free.as_str()][..], "is the server running"),
        (&["hold", "-n", "100000000"], "descriptors of this process (ulimit -n)"),
        (&["hold", "--sub", "192.0.2.1:80"], "127.0.0.0/8"),
    ];
    for (line, message) in table {
        let output = Command::new(BENCH).args(line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(message), "{line:?}: {output:?}");
    }
}

#[test]
fn the_checker_knows_its_defects_and_convicts_a_history() {
    let check =
        |line: &[&str]| Command::new(env!("CARGO_BIN_EXE_fantail-check")).args(line).output().unwrap();
    let output = check(&["self-test", "--seeds", "3"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("78 with a defect, 0 judged wrongly"), "{text}");
    let lines = [
        r#"{"t":1,"what":"channel","ch":0,"class":"logged"}"#,
        r#"{"t":1,"what":"subscriber","s":0,"tr":"stream","chs":[0]}"#,
        r#"{"t":2,"what":"sub_ok","s":0,"ch":0}"#,
        r#"{"t":3,"what":"pub_invoke","ch":0,"id":"0.1","request":1,"at":0,"marker":false}"#,
        r#"{"t":4,"what":"pub_ok","request":1}"#,
        r#"{"t":5,"what":"pub_invoke","ch":0,"id":"0.2","request":2,"at":0,"marker":true}"#,
        r#"{"t":6,"what":"pub_ok","request":2}"#,
        r#"{"t":5,"what":"recv","s":0,"ch":0,"id":"0.1"}"#,
        r#"{"t":7,"what":"recv","s":0,"ch":0,"id":"0.2"}"#,
        r#"{"t":9,"what":"quiesce"}"#,
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("history");
    let judged = |lines: &[&str]| {
        std::fs::write(&file, lines.join("\n")).unwrap();
        let output = check(&["judge", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, text) = judged(&lines);
    assert!(status == Some(0) && text.ends_with("\nPASS\n"), "{text}");
    let (status, text) = judged(&[&lines[..7], &lines[8..]].concat());
    assert!(status == Some(1) && text.contains("\nLost: 1\n") && text.ends_with("\nFAIL\n"), "{text}");
}

/// The floor on free ports; killed when dropped.
struct Floor {
    process: Child,
    clients: String,
    publishers: String,
    _output: BufReader<ChildStdout>,
}

impl Floor {
    fn start() -> Self {
        let listen = ["floor", "--listen", "127.0.0.1:0", "--pub-listen", "127.0.0.1:0"];
        let mut process = Command::new(BENCH).args(listen).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let ["clients", clients, "publishers", publishers] = words[..] else { panic!("{line}") };
        Self { process, clients: clients.into(), publishers: publishers.into(), _output: output }
    }

    fn bench(&self, line: &[&str]) -> Output {
        Command::new(BENCH).args(line).args(["--json", "--sub", &self.clients]).output().unwrap()
    }

    fn drive(&self, line: &[&str]) -> Output {
        self.bench(&[line, &["--pub", &self.publishers]].concat())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Loses,
    Repeats,
    Swaps,
}

impl Fault {
    /// What becomes of four messages.
    fn order(self) -> &'static [usize] {
        match self {
            Self::None => &[0, 1, 2, 3],
            Self::Loses => &[0, 1, 3],
            Self::Repeats => &[0, 1, 1, 2, 3],
            Self::Swaps => &[0, 2, 1, 3],
        }
    }
}

/// Holds three clients, takes four messages and commits one fault on the last client.
fn serve(clients: &TcpListener, publishers: &TcpListener, fault: Fault) {
    let mut held: Vec<_> = (0..3).map(|_| clients.accept().unwrap().0).collect();
    for client in &mut held {
        read_head(client).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    }
    let (mut publisher, _) = publishers.accept().unwrap();
    let mut messages = Vec::new();
    for _ in 0..4 {
        let head = read_head(&mut publisher).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        publisher.read_exact(&mut body).unwrap();
        publisher.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        messages.push(body);
    }
    for (index, client) in held.iter_mut().enumerate() {
        let fault = if index == 2 { fault } else { Fault::None };
        fault.order().iter().for_each(|&number| client.write_all(&messages[number]).unwrap());
    }
    // The generator leaves first.
    held.iter_mut().for_each(|client| drop(client.read(&mut [0])));
}

/// Takes five items, asks the origin about a client, and gives that all but the first, with a fault.
fn give_missed(clients: &TcpListener, publishers: &TcpListener, origin: &str, (fault, asks): (Fault, usize)) {
    let (mut publisher, _) = publishers.accept().unwrap();
    let head = read_head(&mut publisher).unwrap();
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    publisher.read_exact(&mut body).unwrap();
    publisher.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    let body = String::from_utf8(body).unwrap();
    let items: Vec<&str> = body.split(r#""content":""#).skip(1).collect();
    assert!(items.len() == 5 && body.contains(r#""id":"0""#), "{body}");
    let (mut client, _) = clients.accept().unwrap();
    read_head(&mut client).unwrap();
    let mut origin = TcpStream::connect(origin).unwrap();
    for _ in 0..asks {
        origin.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let answer = read_head(&mut origin).unwrap();
        assert!(answer.contains("\r\nGrip-Channel: catch-up; prev-id=0\r\n"), "{answer}");
    }
    client.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    fault.order().iter().for_each(|&number| client.write_all(items[number + 1].as_bytes()).unwrap());
    drop(client.read(&mut [0]));
}

/// Opens one WebSocket, takes four messages of 30 bytes and echoes them with one fault.
fn echo(clients: &TcpListener, fault: Fault) {
    let (mut client, _) = clients.accept().unwrap();
    assert!(read_head(&mut client).unwrap().contains("Upgrade: websocket\r\n"));
    client.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
    let messages = [(); 4].map(|()| {
        let mut frame = [0; 36];
        client.read_exact(&mut frame).unwrap();
        let (head, payload) = frame.split_at(6);
        let unmasked = payload.iter().zip(head[2..].iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [0x81, 30].into_iter().chain(unmasked).collect::<Vec<u8>>()
    });
    fault.order().iter().for_each(|&number| client.write_all(&messages[number]).unwrap());
    drop(client.read(&mut [0]));
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A head up to its empty line; none at the end of the connection.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}
