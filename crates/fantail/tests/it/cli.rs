//! The command line as a user meets it: `check` prints a configuration or everything that is wrong, and
//! `publish` posts one item.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread::JoinHandle,
};

use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Value, json};

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn fantail(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fantail"));
    command.args(args).env_remove("GRIP_URL").stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A folder with `fantail.toml`, which is found without a flag.
fn folder(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("fantail.toml"), text).unwrap();
    folder
}

fn check(folder: &Path, args: &[&str]) -> Output {
    fantail(&["check"]).args(args).current_dir(folder).output().unwrap()
}

#[test]
fn the_allocator_takes_its_settings() {
    let output = fantail(&["--version"]).env("_RJEM_MALLOC_CONF", "confirm_conf:true").output().unwrap();
    let said = stderr(&output);
    let valid = said.contains("\"tcache_ncached_max:256-14336:512,") && !said.contains("Invalid");
    assert!(valid || !cfg!(feature = "jemalloc"), "{said}");
}

/// On a terminal the log and the last word are for the same eyes.
#[test]
fn a_start_that_fails_says_why_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let control = taken.local_addr().unwrap().to_string();
    let args = ["serve", "--listen", "127.0.0.1:0", "--control", &control];
    let reason = format!("cannot listen on {control} (control.listen): ");
    let piped = fantail(&args).output().unwrap();
    assert_eq!(piped.status.code(), Some(1));
    assert!(stderr(&piped).starts_with(&format!("fantail: {reason}")), "{}", stderr(&piped));
    assert!(stdout(&piped).contains(&reason));
    let line = format!("{} {}", env!("CARGO_BIN_EXE_fantail"), args.join(" "));
    let mut terminal = Command::new("script");
    let seen = terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(seen.status.code(), Some(1));
    assert_eq!(stdout(&seen).matches(&reason).count(), 1, "{}", stdout(&seen));
}

#[test]
fn check_prints_what_is_in_effect() {
    let text = "[client]\nheaders = 7\n[[realm]]\nid = \"a\"\nkeys = [\"s3cret\"]\n[[log]]\nmatch = \"c\"\nslow = \"repair\"\n";
    let folder = folder(text);
    let routes = [
        "*,id=one test",
        "b.example 127.0.0.1:80,ssl",
        "*,proto=ws,slow=newest 127.0.0.1:80,over_http,one_event",
    ];
    let mut args = vec!["--listen", "127.0.0.1:0"];
    routes.iter().for_each(|route| args.extend(["--route", route]));
    let output = check(folder.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let row = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = text.lines().map(row).collect();
    assert!(rows.contains(&"# 3 - ws * - default newest 127.0.0.1:80,over_http,one_event".into()), "{text}");
    assert!(text.starts_with("# Read: fantail.toml\n"), "{text}");
    assert!(text.contains("headers = 7  # fantail.toml:2:1\n"), "{text}");
    assert!(text.contains("\nslow = \"repair\"\n"), "{text}");
    assert!(text.contains("listen = [\"127.0.0.1:0\"]  # --listen\n"), "{text}");
    assert!(text.contains("127.0.0.1:80,ssl\n"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    // All of it is a configuration again: the keys' stand-ins are keys too.
    let again = folder.path().join("again.toml");
    std::fs::write(&again, text).unwrap();
    assert_eq!(check(folder.path(), &["--config", "again.toml"]).status.code(), Some(0));
}

#[test]
fn check_prints_everything_that_is_wrong() {
    let folder = folder("[client]\nheadres = 7\nidle_timeout = \"1\"\n");
    let output = check(folder.path(), &["--control", "0.0.0.0:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let lines: Vec<&str> = stderr(&output).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("fantail.toml:2:1: ") && lines[0].contains("`headers`"), "{lines:#?}");
    assert!(lines[1].contains("fantail.toml:3:1: `idle_timeout`"), "{lines:#?}");
}

#[test]
fn check_refuses_routes_line_by_line() {
    let folder = folder("[routes]\nfile = \"routes\"\n");
    let missing = check(folder.path(), &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("routes: "), "{}", stderr(&missing));
    let text = "* test\n*,path_bge=/x test\nb.example\nc.example https://origin.example\n";
    std::fs::write(folder.path().join("routes"), text).unwrap();
    let bad = check(folder.path(), &[]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(stderr(&bad).contains("routes:2: ") && stderr(&bad).contains("routes:3: "), "{}", stderr(&bad));
    assert!(stderr(&bad).contains("without a scheme; TLS is the parameter ssl"), "{}", stderr(&bad));
}

/// The clients' address is taken, so that a server which does not refuse ends before it opens its control
/// port to the world.
#[test]
fn an_open_control_port_is_refused_before_anything_starts() {
    let empty = folder("");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let args = ["serve", "--listen", &listen, "--control", "0.0.0.0:0"];
    let output = fantail(&args).current_dir(empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("--control: ") && text.contains("[[realm]]"), "{text}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn usage_errors_are_told_apart() {
    for args in [
        &["check", "--shards", "x"][..],
        &["serve", "--fan-out", "fast"],
        &["serve", "--frobnicate"],
        &["publish"],
        &["publish", "c", "x", "--format", "smoke-signal"],
        &["publish", "c", "x", "-H", "no colon"],
        &["publish", "c", "--hint", "--close"],
        &["publish", "c", "x", "--code", "99"],
        &["publish", "c", "x", "--realm", "a/b"],
    ] {
        assert_eq!(fantail(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}

/// What a publisher sent.
struct Posted {
    /// Request line and headers.
    head: Vec<String>,
    item: Value,
}

impl Posted {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Reads one request and gives one answer.
fn control_port(answer: &'static str) -> (String, JoinHandle<Posted>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let mut reader = BufReader::new(listener.accept().unwrap().0);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut posted = Posted { head, item: Value::Null };
        let mut body = vec![0; posted.header("content-length").unwrap().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        reader.into_inner().write_all(answer.as_bytes()).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["items"].as_array().unwrap().len(), 1);
        posted.item = body["items"][0].clone();
        posted
    });
    (url, asked)
}

const PUBLISHED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nPublished\n";

fn publish(args: &[&str]) -> Posted {
    publish_with(args, "", b"")
}

/// Publishes to a stub; `query` goes onto its URL, `stdin` is what the command may read.
fn publish_with(args: &[&str], query: &str, stdin: &[u8]) -> Posted {
    let (url, posted) = control_port(PUBLISHED);
    let mut command = fantail(&["publish"]);
    command.args(args).env("GRIP_URL", url + query).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing closes its end, which is no fault.
    child.stdin.take().unwrap().write_all(stdin).unwrap_or_default();
    let output = child.wait_with_output().unwrap();
    assert_eq!((stdout(&output), stderr(&output)), ("Published\n", ""), "{args:?}");
    assert!(output.status.success());
    posted.join().unwrap()
}

#[test]
fn publish_sends_all_formats() {
    let posted = publish(&[
        "chan",
        "héllo",
        "--id",
        "2",
        "--prev-id",
        "1",
        "--sender",
        "me",
        "-M",
        "a=b=c",
        "--no-seq",
    ]);
    assert_eq!(posted.head[0], "POST /publish/ HTTP/1.1");
    assert_eq!(posted.header("authorization"), None);
    let expected = json!({
        "channel": "chan",
        "id": "2",
        "prev-id": "1",
        "no-seq": true,
        "meta": {"sender": "me", "a": "b=c"},
        "formats": {
            "http-response": {"code": 200, "headers": [], "body": "héllo\n"},
            "http-stream": {"content": "héllo\n"},
            "ws-message": {"content": "héllo"},
        },
    });
    assert_eq!(posted.item, expected);
}

#[test]
fn publish_takes_content_from_anywhere() {
    let folder = folder("");
    let file = folder.path().join("content");
    std::fs::write(&file, b"\xff\n").unwrap();
    let at_file = format!("@{}", file.display());
    let content =
        |args: &[&str], stdin: &[u8]| publish_with(args, "", stdin).item["formats"]["http-stream"].take();
    assert_eq!(content(&["c", &at_file], b""), json!({"content-bin": "/wo="}));
    assert_eq!(content(&["c", "-"], b"piped"), json!({"content": "piped"}));
    assert_eq!(content(&["c", "-"], b""), json!({"content": ""}));
    assert_eq!(content(&["c"], b"piped\n"), json!({"content": "piped\n"}));
    assert_eq!(content(&["c", "text"], b"ignored"), json!({"content": "text\n"}));
    assert_eq!(content(&["c", "text", "--no-eol"], b""), json!({"content": "text"}));
}

#[test]
fn publish_makes_the_formats_asked_for() {
    let formats = |args: &[&str]| publish(&[&["c"], args].concat()).item["formats"].take();
    let response = ["x", "--format", "http-response", "--code", "404", "-H", "A: b", "-H", "A:c"];
    let expected = json!({"code": 404, "headers": [["A", "b"], ["A", "c"]], "body": "x\n"});
    assert_eq!(formats(&response), json!({ "http-response": expected }));
    let hint = json!({"action": "hint"});
    assert_eq!(formats(&["--hint"]), json!({"http-response": hint, "http-stream": hint}));
    assert_eq!(formats(&["--hint", "--format", "http-stream"]), json!({ "http-stream": hint }));
    let close = json!({"action": "close"});
    assert_eq!(formats(&["--close"]), json!({"http-stream": close, "ws-message": close}));
    let with_code = json!({"action": "close", "code": 4000, "reason": "bye"});
    assert_eq!(
        formats(&["--close", "--close-code", "4000", "--close-reason", "bye", "--format", "ws-message"]),
        json!({"ws-message": with_code})
    );
    assert_eq!(formats(&["--refresh"]), json!({"ws-message": {"action": "refresh"}}));
    assert_eq!(
        formats(&["x", "--type", "binary", "--format", "ws-message"]),
        json!({"ws-message": {"content": "x", "type": "binary"}})
    );
    let patch = r#"[{"op":"add","path":"/a","value":1}]"#;
    let body = serde_json::from_str::<Value>(patch).unwrap();
    let expected = json!({"code": 200, "headers": [], "body-patch": body});
    assert_eq!(formats(&[patch, "--patch"]), json!({ "http-response": expected }));
}

#[test]
fn publish_proves_who_sends() {
    let header = |args: &[&str], query| {
        let posted = publish_with(&[&["c", "x"], args].concat(), query, b"");
        (posted.head[0].clone(), posted.header("authorization").map(str::to_owned))
    };
    let (_, value) = header(&["-u", "user:pass"], "");
    assert_eq!(value.as_deref(), Some("Basic dXNlcjpwYXNz"));
    let (_, value) = header(&["-B", "t0ken"], "?key=other");
    assert_eq!(value.as_deref(), Some("Bearer t0ken"));
    let (line, value) = header(&[], "/service/x?verify-iss=fastly:x&key=plain%2Bkey");
    assert_eq!(line, "POST /service/x/publish/ HTTP/1.1");
    assert_eq!(value.as_deref(), Some("Bearer plain+key"));

    let issuer = |value: Option<String>| {
        let value = value.unwrap();
        let token = value.strip_prefix("Bearer ").unwrap();
        let key = DecodingKey::from_secret(KEY.as_bytes());
        let claims = jsonwebtoken::decode::<Value>(token, &key, &Validation::default()).unwrap().claims;
        assert_eq!(claims.as_object().unwrap().len(), 2);
        claims["iss"].as_str().unwrap().to_owned()
    };
    let (line, value) =
        header(&[], "/realm/r1?iss=r1&key=base64:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
    assert_eq!((line.as_str(), issuer(value).as_str()), ("POST /realm/r1/publish/ HTTP/1.1", "r1"));
    let (line, value) = header(&["--realm", "r2", "--key", KEY], "/");
    assert_eq!((line.as_str(), issuer(value).as_str()), ("POST /realm/r2/publish/ HTTP/1.1", "r2"));
    let (line, value) = header(&["--key", KEY], "");
    assert_eq!((line.as_str(), issuer(value).as_str()), ("POST /publish/ HTTP/1.1", "default"));
}

#[test]
fn publish_prints_a_receipt() {
    let receipt = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"items\": [1]}";
    let (url, posted) = control_port(receipt);
    let output = fantail(&["publish", "c", "x", "--receipt", "--spec", &url]).output().unwrap();
    assert_eq!(stdout(&output), "{\"items\": [1]}\n");
    assert_eq!(posted.join().unwrap().head[0], "POST /publish/?receipt=true HTTP/1.1");
}

#[test]
fn publish_needs_the_whole_answer_only_for_a_receipt() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nPub";
    let output = |args: &[&str]| {
        let (url, _) = control_port(cut);
        fantail(&["publish", "c", "x", "--spec", &url]).args(args).output().unwrap()
    };
    assert_eq!(stdout(&output(&[])), "Published\n");
    let broken = output(&["--receipt"]);
    assert_eq!((broken.status.code(), stdout(&broken)), (Some(1), ""));
}

#[test]
fn publish_says_what_went_wrong() {
    let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\n\r\nno \x1b[2J.\n";
    let (refusing, _) = control_port(refusal);
    let (closing, _) = control_port("");
    let (not_tls, _) = control_port("HTTP/1.1 400 Bad Request\r\n\r\n");
    let not_tls = not_tls.replace("http:", "https:");
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let nobody_with_key = format!("{nobody}/?key=s3cret");
    for (args, expected) in [
        (&["c", "x", "--spec", &refusing][..], "401 Unauthorized: no \\u{1b}[2J."),
        (&["c", "x", "--spec", &closing], "http://127.0.0.1:"),
        (&["c", "x", "--spec", &nobody_with_key], "cannot connect"),
        (&["c", "x", "--spec", &not_tls], "TLS"),
        (&["c", "x", "--spec", "udp://127.0.0.1:5560"], "write http://"),
        (&["c", "x", "--spec", "tcp://127.0.0.1:1", "--key", "s3cret"], "no --user, --bearer, --key"),
        (&["c", "x", "--spec", "ipc:///nonexistent"], "ipc:///nonexistent: "),
        (&["c", "x", "--spec", "http://127.0.0.1:1", "--key", "base64:%"], "not base64"),
        (&["c", "@/nonexistent"], "/nonexistent: "),
        (&["c"], "must specify content"),
        (&["c", "{}", "--patch"], "no JSON Patch"),
        (&["c", "--hint", "--format", "ws-message"], "--hint"),
    ] {
        let output = fantail(&["publish"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
        let text = stderr(&output);
        assert!(text.starts_with("Error: ") && text.contains(expected), "{args:?}: {text}");
        assert!(text.lines().count() == 1 && !text.contains("s3cret"), "{args:?}: {text}");
    }
}
