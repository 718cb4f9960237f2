//! Logs of channels on disk: what a publisher is told, what survives a kill, what happens when the disk is full.

use std::{path::Path, process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::harness::{JSON, Origin, TestServer, hold, stream_item};

fn logging(data: &Path) -> TestServer {
    with_logs(&["* test"], data)
}

fn with_logs(routes: &[&str], data: &Path) -> TestServer {
    let toml = format!(
        "[server]\ndata_dir = \"{}\"\n[hub]\norder_wait = \"1m\"\n\
         [[log]]\nmatch = \"synced-*\"\nstorage = \"disk\"\nbytes = 4000000\ndurability = \"synced\"\n\
         [[log]]\nmatch = \"logged-*\"\nstorage = \"disk\"\nbytes = 4000000\n\
         [[log]]\nmatch = \"accepted-*\"\nstorage = \"disk\"\ndurability = \"accepted\"\n\
         [[log]]\nmatch = \"memory-*\"\n",
        data.display()
    );
    TestServer::start(routes, |o| {
        o.config(toml);
    })
}

fn item(channel: &str, id: &str) -> Value {
    json!({ "channel": channel, "id": id, "formats": { "http-stream": { "content": format!("{id};") } } })
}

/// Status, text and the durability that the answer states.
fn publish(server: &TestServer, query: &str, items: &Value) -> (u16, String, Option<String>) {
    let body = json!({ "items": items }).to_string();
    let answer = server.control("POST", &format!("/publish/{query}"), &JSON, body.as_bytes());
    let durability = answer.head.field("fantail-durability").map(str::to_owned);
    (answer.status(), answer.text(), durability)
}

#[test]
fn an_answer_says_how_durable_the_items_are() {
    let data = tempfile::tempdir().unwrap();
    let server = logging(data.path());
    let ask = |query: &str, channels: &[&str]| {
        let items: Vec<Value> = channels.iter().map(|channel| stream_item(channel, "x")).collect();
        let (status, _, durability) = publish(&server, query, &json!(items));
        (status, durability.unwrap_or_default())
    };
    let said = |status: u16, durability: &str| (status, durability.to_owned());
    assert_eq!(ask("", &["other"]), said(200, ""));
    assert_eq!(ask("", &["memory-1"]), said(200, ""));
    assert_eq!(ask("", &["logged-1"]), said(200, "logged"));
    assert_eq!(ask("", &["synced-1"]), said(200, "synced"));
    assert_eq!(ask("", &["synced-1", "logged-1"]), said(200, "logged"));
    assert_eq!(ask("", &["synced-1", "other"]), said(200, ""));
    assert_eq!(ask("?durability=synced", &["synced-1", "logged-1"]), said(200, "synced"));
    assert_eq!(ask("?durability=logged", &["synced-1"]), said(200, "synced"));
    assert_eq!(ask("?durability=synced&receipt=true", &["logged-1"]), said(200, "synced"));
    assert_eq!(ask("?durability=logged", &["memory-1"]), said(400, ""));
    assert_eq!(ask("?durability=logged", &["logged-1", "other"]), said(400, ""));
    assert_eq!(ask("?durability=much", &["logged-1"]), said(400, ""));
    let (_, text, _) = publish(&server, "?durability=synced", &json!([item("other", "1")]));
    assert!(text.contains("channel 'other' has no log on disk"), "{text}");
    server.wait_metric("fantail_log_items", &[], 10.0);
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let server = logging(data.path());
    let channels = ["synced-1", "logged-1", "memory-1"];
    for n in 0..50 {
        let items: Vec<Value> = channels.iter().map(|channel| item(channel, &n.to_string())).collect();
        let (status, text, _) = publish(&server, "", &json!(items));
        assert_eq!(status, 200, "{text}");
    }
    server.kill();
    let server = logging(data.path());
    for (channel, known) in channels.into_iter().zip([true, true, false]) {
        let again: Vec<Value> = (0..50).map(|n| item(channel, &n.to_string())).collect();
        let receipts = server.receipts(&json!(again));
        assert!(
            receipts.iter().all(|receipt| receipt["duplicate"] == json!(known)),
            "{channel}: {receipts:?}"
        );
    }
    assert!(server.terminate().success());
    let server = logging(data.path());
    let receipts = server.receipts(&json!([item("logged-1", "49"), item("logged-1", "50")]));
    assert_eq!([&receipts[0]["duplicate"], &receipts[1]["duplicate"]], [&json!(true), &json!(false)]);
}

/// An item that waits for its predecessor is in no log yet: who repeats it waits, too, with or without subscribers.
#[test]
fn what_is_early_is_kept_in_its_turn() {
    let data = tempfile::tempdir().unwrap();
    let server = logging(data.path());
    let chained = |id: u32| {
        let mut item = item("synced-1", &id.to_string());
        item["prev-id"] = (id - 1).to_string().into();
        item
    };
    server.publish(&json!([chained(1)]));
    thread::scope(|scope| {
        let early = || publish(&server, "", &json!([chained(3)]));
        let first = scope.spawn(early);
        server.wait_metric("fantail_items_waiting", &[], 1.0);
        let again = scope.spawn(early);
        server.wait_metric("fantail_items_total", &["result=\"duplicate\""], 1.0);
        assert!(!first.is_finished() && !again.is_finished());
        server.publish(&json!([chained(2)]));
        for answer in [first.join().unwrap(), again.join().unwrap()] {
            assert_eq!((answer.0, answer.2.as_deref()), (200, Some("synced")), "{}", answer.1);
        }
    });
    assert!(server.terminate().success());
    let origin = Origin::answering(|_| hold("stream", "synced-1; prev-id=1", &[], ""));
    let server = with_logs(&[&format!("* {origin}")], data.path());
    server.stream("/").expect("2;3;");
}

/// Its publisher has an answer by then: an orderly end keeps what was accepted.
#[test]
fn what_is_early_at_an_orderly_end_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let server = logging(data.path());
    let mut early = item("accepted-1", "3");
    early["prev-id"] = "2".into();
    server.publish(&json!([item("accepted-1", "1")]));
    server.publish(&json!([early]));
    server.wait_metric("fantail_items_waiting", &[], 1.0);
    assert!(server.terminate().success());
    let server = logging(data.path());
    let receipts = server.receipts(&json!([item("accepted-1", "1"), item("accepted-1", "3")]));
    assert_eq!([&receipts[0]["duplicate"], &receipts[1]["duplicate"]], [&json!(true), &json!(true)]);
}

/// A file system of two megabytes, unmounted when it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    /// `None` where it may not be mounted.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).status();
        status.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_refuses_what_cannot_be_kept() {
    let Some(disk) = Small::mount() else {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let origin = Origin::answering(|r| hold("stream", r.target().trim_start_matches('/'), &[], "held;"));
    let server = with_logs(&[&format!("* {origin}")], disk.0.path());
    let mut client = server.stream("/test");
    let mut promised = server.stream("/synced-2");
    let mut accepted = server.stream("/accepted-1");
    client.expect("held;");
    promised.expect("held;");
    accepted.expect("held;");
    let big = "x".repeat(100_000);
    let mut kept = Vec::new();
    let refused = (0..60).find_map(|n| {
        let channel = ["synced-1", "logged-1"][n % 2];
        let item = json!({ "channel": channel, "id": n.to_string(), "http-stream": { "content": big } });
        let (status, text, _) = publish(&server, "", &json!([item]));
        match status {
            200 => kept.push((channel, n)),
            _ => return Some((status, text)),
        }
        None
    });
    let (status, text) = refused.expect("two megabytes are soon full");
    assert_eq!(status, 503);
    assert!(text.starts_with("Not kept: the disk has failed: ") && text.contains("space"), "{text}");
    assert!(kept.len() > 10);
    assert!(server.metric("fantail_log_failures_total", &[]) >= 1.0);
    let (status, ..) = publish(
        &server,
        "",
        &json!([{ "channel": "synced-2", "id": "1", "http-stream": { "content": big } }]),
    );
    assert_eq!(status, 503);
    // Nobody has seen what was refused; what is promised less goes on.
    server.publish(&json!([item("accepted-1", "1")]));
    accepted.expect("1;");
    assert!(!promised.hears_within(Duration::ZERO));
    server.publish_stream("test", "goes on");
    client.expect("goes on");
    server.publish(&json!([item("memory-1", "1")]));
    let made_room = Command::new("mount").args(["-o", "remount,size=8m"]).arg(disk.0.path()).status();
    assert!(made_room.is_ok_and(|status| status.success()));
    server.wait_until(Duration::from_secs(20), "the disk has room", || {
        publish(&server, "", &json!([item("synced-2", "1")])).0 == 200
    });
    promised.expect("1;");
    server.log_text("logs are written again");
    assert!(server.terminate().success());
    let server = logging(disk.0.path());
    for (channel, n) in kept {
        let receipts = server.receipts(&json!([item(channel, &n.to_string())]));
        assert_eq!(receipts[0]["duplicate"], json!(true), "{channel} {n}");
    }
}

#[test]
fn logs_are_refused_that_cannot_be() {
    for (toml, reason) in [
        ("[[log]]\nmatch = \"a\"\nstorage = \"disk\"\n", "server.data_dir"),
        ("[[log]]\nmatch = \"a\"\ndurability = \"synced\"\n", "needs storage = \"disk\""),
        ("[[log]]\nmatch = \"a\"\nrealm = \"nobody\"\n", "there is no realm"),
        ("[[log]]\nmatch = \"a\"\nage = \"500ms\"\n", "shorter than a second"),
        ("[[log]]\nmatches = \"a\"\n", "did you mean `match`"),
        ("[log]\nmatch = \"a\"\n", "write [[log]]"),
    ] {
        let (status, text) = TestServer::refused(&["* test"], |o| {
            o.config(toml);
        });
        assert!(!status.success() && text.contains(reason), "{text}");
    }
}
