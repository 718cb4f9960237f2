//! The corpus of requests over real sockets, before an origin that reads more strictly than anything
//! else here and shares no code with it: no desync, no foreign answer, nothing invalid forwarded.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    corpus::{Expect, vectors},
    harness::{Client, TestServer},
};

/// Each vector with a request pipelined behind it, then a canary on a fresh connection.
#[test]
fn no_request_of_the_corpus_desyncs() {
    let origin = StrictOrigin::start();
    let server = TestServer::before(&origin.address);
    let (mut refused, mut told) = (0, 0);
    for (n, vector) in vectors().into_iter().enumerate() {
        let (pipelined, canary) = (format!("/pipelined-{n}"), format!("/canary-{n}"));
        let mut client = server.connect();
        let next = format!("GET {pipelined} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
        client.send_part([&vector.bytes[..], next.as_bytes()].concat());
        match vector.expect {
            Expect::Refuse => {
                let answer = String::from_utf8_lossy(&client.rest()).into_owned();
                refused += 1;
                told += usize::from(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"));
                assert!(!answer.contains("HTTP/1.1 2"), "{}: {answer}", vector.name);
                assert_eq!(origin.take(), [""; 0], "{}", vector.name);
            }
            Expect::Accept => accepted(&mut client, &origin, &pipelined, &vector.name),
        }
        let answer = server.get(&canary);
        assert_eq!((answer.status(), answer.text()), (200, canary.clone()), "after {}", vector.name);
        assert_eq!(origin.take(), [canary], "after {}", vector.name);
    }
    assert!(told * 100 >= refused * 99, "{told} of {refused} got a status");
}

/// The answer to an accepted request, and to what was pipelined behind it unless the connection closed.
fn accepted(client: &mut Client, origin: &StrictOrigin, pipelined: &str, name: &str) {
    let first = client.try_response().unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(first.status(), 200, "{name}: {}", first.text());
    let mut expected = vec![first.text()];
    assert!(!["/smuggled", pipelined].contains(&expected[0].as_str()), "{name}: {expected:?}");
    let rest = client.rest();
    if !rest.is_empty() {
        assert!(rest.starts_with(b"HTTP/1.1 200"), "{name}: {}", String::from_utf8_lossy(&rest));
        assert!(rest.ends_with(pipelined.as_bytes()), "{name}: {}", String::from_utf8_lossy(&rest));
        expected.push(pipelined.into());
    }
    assert_eq!(origin.take(), expected, "{name}");
}

/// Answers each request with its target, and remembers the targets of those that came whole. Panics of
/// its own are faults that the test sees.
struct StrictOrigin {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    targets: Vec<String>,
    malformed: Vec<String>,
}

impl StrictOrigin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&all);
                thread::spawn(move || serve(&socket, &seen));
            }
        });
        Self { address, seen }
    }

    /// The targets since the last call; fails if anything was malformed.
    fn take(&self) -> Vec<String> {
        let mut seen = self.seen.lock().expect("no panic holds it");
        assert!(seen.malformed.is_empty(), "{:?}", seen.malformed);
        std::mem::take(&mut seen.targets)
    }
}

/// Why reading stopped before the end of a message.
enum Stop {
    /// The proxy closed: also in mid-message, when its client's body turned out to be bad.
    Closed,
    Malformed(String),
}

fn serve(socket: &TcpStream, seen: &Mutex<Seen>) {
    let mut input = BufReader::new(socket);
    loop {
        let target = match message(&mut input) {
            Ok(target) => target,
            Err(Stop::Closed) => return,
            Err(Stop::Malformed(why)) => {
                seen.lock().expect("no panic holds it").malformed.push(why);
                return;
            }
        };
        seen.lock().expect("no panic holds it").targets.push(target.clone());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
        let mut output = socket;
        if output.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn message(input: &mut impl BufRead) -> Result<String, Stop> {
    let first = line(input)?;
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return malformed("request line", &first) };
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if !is_token(method) || !visible(target) || !(target.starts_with('/') || target == "*") {
        return malformed("request line", &first);
    }
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let field = line(input)?;
        if field.is_empty() {
            break;
        }
        let Some((name, value)) = field.split_once(':') else { return malformed("field", &field) };
        if !is_token(name) {
            return malformed("field name", &field);
        }
        let value = value.trim_matches([' ', '\t']).to_owned();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value),
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    match &hosts[..] {
        [host] if visible(host) => {}
        _ => return malformed("hosts", &format!("{hosts:?}")),
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            content(input, length.parse().or_else(|_| malformed("length", length))?)?;
        }
        ([], [coding]) if coding == "chunked" => chunks(input)?,
        _ => return malformed("framing", &format!("{lengths:?} {codings:?}")),
    }
    Ok(target.to_owned())
}

/// Without extensions and trailers: the proxy drops them.
fn chunks(input: &mut impl BufRead) -> Result<(), Stop> {
    loop {
        let size = line(input)?;
        if !(1..=8).contains(&size.len()) || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return malformed("chunk size", &size);
        }
        let length = usize::from_str_radix(&size, 16).or_else(|_| malformed("chunk size", &size))?;
        content(input, length)?;
        let end = line(input)?;
        if !end.is_empty() {
            return malformed("chunk end", &end);
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn content(input: &mut impl BufRead, length: usize) -> Result<(), Stop> {
    input.read_exact(&mut vec![0; length]).map_err(|_| Stop::Closed)
}

/// Up to a CRLF, without it; each byte as the character of its number.
fn line(input: &mut impl BufRead) -> Result<String, Stop> {
    let mut raw = Vec::new();
    let read = input.take(100_000).read_until(b'\n', &mut raw);
    if read.is_err() || !raw.ends_with(b"\n") {
        return Err(Stop::Closed);
    }
    let text: String = raw.iter().map(|b| char::from(*b)).collect();
    match text.strip_suffix("\r\n") {
        Some(line) if !line.bytes().any(|b| matches!(b, 0..=8 | 10..=31 | 127)) => Ok(line.to_owned()),
        _ => malformed("line", &text),
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn malformed<T>(what: &str, text: &str) -> Result<T, Stop> {
    Err(Stop::Malformed(format!("{what}: {text:?}")))
}
