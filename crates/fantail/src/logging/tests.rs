use std::sync::mpsc;

use serde_json::Value;

use super::*;

/// What was written, shared with the writer's thread.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

fn log(format: LogFormat) -> config::Logging {
    config::Logging { format, ..at(Level::INFO) }
}

fn at(level: Level) -> config::Logging {
    config::Logging { level, channels: true, ..config::Config::default().logging }
}

const HOSTILE: &[&str] = &[
    "plain",
    "",
    "a b",
    "\r\n[INFO] 2026-01-01 00:00:00.000 forged",
    "\x1b]0;owned\x07\x1b[2J",
    "\u{9b}31m\u{202e}\u{2028}\u{7f}\0",
    "\"},{\"level\":\"error\"",
    "\\\" code=200 0",
    "ünïcödé 日本 😀",
];

fn access(text: &str) -> Access<'_> {
    Access {
        method: text,
        uri: text,
        target: text,
        over_http: true,
        outcome: Outcome::Code(200, 38),
        took: Duration::from_micros(3004),
        realm: text,
        route: text,
        from: Some([127, 0, 0, 1].into()),
        user_agent: Some(text.as_bytes()),
        referer: Some(text.as_bytes()),
        retry: false,
    }
}

/// Lines with hostile text in every place, through both ways into the log.
fn hostile_lines(format: LogFormat) -> String {
    let sink = Sink::default();
    let output = Output::start(&log(format), sink.clone()).unwrap();
    let mut lines = output.access();
    tracing::subscriber::with_default(output.subscriber(), || {
        for text in HOSTILE {
            lines.line(&access(text));
            lines.line(&Access { user_agent: Some(b"\xff\x1b\n\x80"), ..access(text) });
            tracing::info!(target: "fantail::hub", channel = text, n = 1, id = ?text, "publish {text}");
            tracing::error!(target: "hyper", other = %text, nan = f64::NAN, yes = true, "failed");
        }
    });
    drop(lines);
    output.finish();
    assert_eq!(output.dropped(), 0);
    sink.text()
}

#[test]
fn json_is_one_object_a_line_whatever_clients_send() {
    let text = hostile_lines(LogFormat::Json);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), HOSTILE.len() * 4);
    for text in HOSTILE {
        let uri = lines.iter().filter(|line| line["message"] == "request" && line["uri"] == *text);
        assert_eq!(uri.count(), 2, "{text:?}");
        let event = lines.iter().find(|line| line["channel"] == *text).unwrap();
        assert_eq!(event["message"], format!("publish {text}"));
        assert_eq!(event["level"], "info");
        assert_eq!(event["n"], 1);
    }
    let request = lines.iter().find(|line| line["uri"] == "plain").unwrap();
    assert_eq!(request["code"], 200);
    assert_eq!(request["bytes"], 38);
    assert_eq!(request["ms"], 3.004);
    assert_eq!(request["from"], "127.0.0.1");
}

#[test]
fn text_is_printable_and_a_line_a_line() {
    for format in [LogFormat::Text, LogFormat::Pushpin] {
        let text = hostile_lines(format);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text}");
        assert_eq!(text.lines().count(), HOSTILE.len() * 4);
        for line in text.lines() {
            assert!(line.starts_with("[INFO] 2") || line.starts_with("[ERR] 2"), "{line}");
        }
    }
}

#[test]
fn text_lines_read_as_pushpins_do() {
    let sink = Sink::default();
    let output = Output::start(&log(LogFormat::Text), sink.clone()).unwrap();
    let mut lines = output.access();
    let stream = Access {
        method: "GET",
        uri: "/a?b=c",
        target: "test",
        route: "",
        realm: "default",
        from: None,
        user_agent: Some(b"curl/8 (x)"),
        ..access("")
    };
    lines.line(&stream);
    lines.line(&Access { outcome: Outcome::Accept, user_agent: None, route: "r", retry: true, ..stream });
    drop(lines);
    output.finish();
    let text = sink.text();
    let after_time: Vec<_> =
        text.lines().map(|line| line.get("[INFO] 2026-11-23 19:44:04.123 ".len()..)).collect();
    let expected = [
        Some("GET /a?b=c -> test realm=default code=200 38 ms=3.004 ua=\"curl/8 (x)\""),
        Some("GET /a?b=c -> test route=r realm=default accept retry ms=3.004"),
    ];
    assert_eq!(after_time, expected);
}

/// Spec 9.9.
#[test]
fn lines_of_pushpins_format_have_its_fields_in_its_order() {
    let sink = Sink::default();
    let log = config::Logging { format: LogFormat::Pushpin, user_agent: false, ..at(Level::INFO) };
    let output = Output::start(&log, sink.clone()).unwrap();
    let mut lines = output.access();
    let request = Access {
        method: "GET",
        uri: "ws://a.example/b?c",
        target: "127.0.0.1:80",
        route: "r",
        referer: Some(b"http://d.example/"),
        ..access("ua")
    };
    lines.line(&request);
    let plain = Access { from: None, route: "", referer: None, over_http: false, ..request };
    lines.line(&Access { outcome: Outcome::Accept, retry: true, ..plain });
    drop(lines);
    tracing::subscriber::with_default(output.subscriber(), || {
        published("c", 3);
        subscribed("http://a.example/b", "c");
    });
    output.finish();
    let text = sink.text();
    let after_time: Vec<_> =
        text.lines().map(|line| line.get("[INFO] 2026-11-23 19:44:04.123 ".len()..)).collect();
    let expected = [
        Some(
            "GET ws://a.example/b?c -> 127.0.0.1:80[http] from=127.0.0.1 ref=http://d.example/ route=r code=200 38",
        ),
        Some("GET ws://a.example/b?c -> 127.0.0.1:80 accept retry"),
        Some("publish channel=c receivers=3"),
        Some("subscribe http://a.example/b channel=c"),
    ];
    assert_eq!(after_time, expected);
}

#[test]
fn a_file_is_opened_again_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/log");
    let log = config::Logging { file: Some(path.clone()), ..at(Level::INFO) };
    let output = Output::start(&log, open(&path).unwrap()).unwrap();
    let line = |text: &str| {
        let mut lines = output.access();
        lines.line(&access(text));
    };
    line("one");
    let wait = |path: &Path| {
        while fs::read(path).unwrap_or_default().is_empty() {
            thread::yield_now();
        }
    };
    wait(&path);
    let moved = folder.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    output.reopen().unwrap();
    line("two");
    output.finish();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert!(read(&moved).contains("one") && !read(&moved).contains("two"));
    assert!(read(&path).contains("two") && !read(&path).contains("one"));
}

#[test]
fn nothing_is_said_that_is_switched_off() {
    for (level, switched, on) in [
        (Level::INFO, true, true),
        (Level::DEBUG, true, true),
        (Level::WARN, true, false),
        (Level::INFO, false, false),
    ] {
        let sink = Sink::default();
        let log = config::Logging { access: switched, ..at(level) };
        let output = Output::start(&log, sink.clone()).unwrap();
        let mut lines = output.access();
        assert_eq!(lines.is_on(), on);
        lines.line(&access("x"));
        drop(lines);
        tracing::subscriber::with_default(output.subscriber(), || {
            tracing::trace!(target: "fantail", "unwanted");
            tracing::info!(target: "hyper", "unwanted");
        });
        output.finish();
        assert_eq!(sink.text().lines().count(), usize::from(on), "{}", sink.text());
    }
}

/// A reader that takes nothing until it is told to.
struct Stuck(mpsc::Receiver<()>, Sink);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An error is the sender's end: then everything is taken.
        self.0.recv().unwrap_or_default();
        self.1.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_costs_lines_and_no_time() {
    let (release, stuck) = mpsc::channel();
    let sink = Sink::default();
    let output = Output::start(&log(LogFormat::Text), Stuck(stuck, sink.clone())).unwrap();
    let mut lines = output.access();
    let wide = "x".repeat(1000);
    let sent = 3 * BUFFER_BYTES / (5 * wide.len());
    for _ in 0..sent {
        lines.line(&access(&wide));
    }
    drop(lines);
    let dropped = output.dropped();
    assert!(dropped > 0);
    assert!(output.0.buffer.lock().lines.len() <= BUFFER_BYTES);
    drop(release);
    output.finish();
    let text = sink.text();
    assert!(text.contains(&format!("{dropped} lines of this log were dropped")), "{dropped}");
    let written = u64::try_from(text.matches("code=200").count()).unwrap();
    assert_eq!(written + dropped, u64::try_from(sent).unwrap());
    assert!(text.ends_with('\n'));
}

struct Broken;

impl io::Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_is_gone_is_counted() {
    let output = Output::start(&log(LogFormat::Text), Broken).unwrap();
    let mut lines = output.access();
    lines.line(&access("x"));
    lines.flush();
    output.finish();
    assert_eq!(output.dropped(), 1);
}
