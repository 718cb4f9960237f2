//! Which route takes a request, and how routes change while the server runs (checks 21, 22, 24, 25, 27).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{Origin, TestServer, answer, hold};

fn named(name: &'static str) -> Origin {
    Origin::fixed(answer("200 OK", &[], name))
}

/// Check 21.
#[test]
fn a_host_with_routes_does_not_fall_back() {
    let (one, two) = (named("one"), named("two"));
    let server = TestServer::start(&[&format!("example.com,path_beg=/x {one}"), &format!("* {two}")], |_| {});
    let get = |host: &str, path: &str| server.request("GET", path, &[("Host", host)], b"");
    assert_eq!(get("example.com", "/x").text(), "one");
    assert_eq!(get("EXAMPLE.com:8080", "/x").text(), "one");
    assert_eq!(get("example.com", "/y").text(), "Route not found\n");
    assert_eq!(get("other.com", "/y").text(), "two");
    assert_eq!(get("sub.example.com", "/y").text(), "two");
}

/// Check 22.
#[test]
fn the_longest_path_wins_in_any_order() {
    let (one, two) = (named("one"), named("two"));
    let lines = [format!("*,path_beg=/a {one}"), format!("*,path_beg=/a/b {two}")];
    for order in [[0, 1], [1, 0]] {
        let server = TestServer::start(&order.map(|n: usize| lines[n].as_str()), |_| {});
        for (path, wanted) in [("/a/b/c", "two"), ("/ab", "one"), ("/a", "one"), ("/a/b?x", "two")] {
            assert_eq!(server.get(path).text(), wanted, "{path}");
        }
        assert_eq!(server.get("/b").text(), "Route not found\n");
    }
}

/// A server whose routes stand in a file.
fn with_file(lines: &str) -> (TestServer, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let file = folder.join("routes");
    std::fs::write(&file, lines).expect("a file");
    let server = TestServer::start(&[], |o| {
        o.set("routes.file", &file.display().to_string());
    });
    (server, file)
}

fn replace(file: &Path, lines: &str) {
    let beside = file.with_extension("next");
    std::fs::write(&beside, lines).expect("a file");
    std::fs::rename(&beside, file).expect("the same folder");
}

/// Check 24: a changed file is taken whole, and what is held stays held.
#[test]
fn a_changed_file_is_loaded() {
    let (held, next) = (Origin::fixed(hold("stream", "c", &[], "")), named("next"));
    let (server, file) = with_file(&format!("# a comment\n\n* {held}\n"));
    let mut stream = server.stream("/");
    replace(&file, &format!("* {next}\n"));
    server.wait_until(Duration::from_secs(5), "the new routes", || {
        server.connect().get("/").try_head().is_ok_and(|h| h.field("content-length") == Some("4"))
    });
    server.publish_stream("c", "still here");
    stream.expect("still here");
    std::fs::write(&file, format!("only.example {next}\n")).expect("written in place");
    server.wait_until(Duration::from_secs(5), "the third routes", || {
        server.connect().get("/").try_head().is_ok_and(|h| h.status() == 502)
    });
}

/// A bad file changes nothing, and the log says where it is bad.
#[test]
fn a_bad_file_changes_nothing() {
    let (one, two) = (named("one"), named("two"));
    let (server, file) = with_file(&format!("* {one}\n"));
    let bad = [
        "no-target.example\n",
        "* nohost\n",
        "* 127.0.0.1:99999\n",
        "* \"unterminated\n",
        "*,path_beg= test\n",
        "*,proto=gopher test\n",
        "*,unknown_parameter test\n",
        "*,header=nocolon test\n",
        "*,realm=absent test\n",
        "*,sig_key=file:absent.pem test\n",
        "* 127.0.0.1:1,ipc_file_mode=777\n",
        "* zhttp/tcp://localhost:1\n",
    ];
    for (n, line) in bad.iter().enumerate() {
        replace(&file, &format!("{}example.com {two}\n{line}", "# padding\n".repeat(n)));
        server.signal(Signal::HUP);
        server.log_text(&format!("routes:{}", n + 2));
        assert_eq!(server.get("/").text(), "one", "{line:?}");
        assert_eq!(server.request("GET", "/", &[("Host", "example.com")], b"").text(), "one", "{line:?}");
    }
    std::fs::remove_file(&file).expect("it is there");
    server.signal(Signal::HUP);
    assert_eq!(server.get("/").text(), "one");
    replace(&file, &format!("* {two}\n"));
    server.signal(Signal::HUP);
    server.wait_until(Duration::from_secs(5), "the good file", || server.get("/").text() == "two");
}

#[test]
fn sighup_reloads_the_configuration() {
    let origin = Origin::fixed(answer("200 OK", &[("Grip-Hold", "nonsense")], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.config("[proxy]\ndebug = false\n");
    });
    assert_eq!(server.get("/").text(), "Error while proxying to origin.\n");
    let file = server.folder.path().join("fantail.toml");
    std::fs::write(&file, "[proxy]\ndebug = maybe\n").expect("a file");
    server.signal(Signal::HUP);
    server.log_text("fantail.toml:2");
    assert_eq!(server.get("/").text(), "Error while proxying to origin.\n");
    std::fs::write(&file, "[proxy]\ndebug = true\n").expect("a file");
    server.signal(Signal::HUP);
    server.wait_until(Duration::from_secs(5), "debug", || server.get("/").text().contains("Grip-Hold"));
}

/// All or nothing: whatever is wrong, what is right beside it is not taken either.
#[test]
fn nothing_of_a_broken_configuration_is_loaded() {
    let origin = Origin::fixed(answer("200 OK", &[("Grip-Hold", "nonsense")], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |o| {
        o.config("[proxy]\ndebug = false\n");
    });
    let file = server.folder.path().join("fantail.toml");
    let broken = [
        "[client]\nheaders = 0",
        "[client]\nhead_bytes = 10",
        "[client]\nsend_timeout = \"5\"",
        "[client]\nsend_timeout = \"5m\"",
        "[client]\nlost_timeout = \"1s\"",
        "[client]\nlost_timeout = \"13h\"",
        "[client]\nconnections = -1",
        "[client]\nqueue_bytes = 0",
        "[client]\nqueue_byte = 1",
        "[clients]\nqueue_bytes = 1",
        "[server]\nshards = 57",
        "[server]\nbacklog = 0",
        "[server]\nfan_out = \"epoll\"",
        "[tls]\ncert_file = \"absent.crt\"",
        "[tls]\nprofile = \"old\"",
        "[origin]\nconnections = 0",
        "[origin]\nconnect_timeout = \"0s\"",
        "[grip]\nsubscriptions = 0",
        "[grip]\nlink_hosts = [\"localhost\"]",
        "[websocket]\norigins = [\"example.com\"]",
        "[websocket]\nhandshake_timeout = \"0s\"",
        "[hub]\nmailbox_items = 0",
        "[[realm]]\nid = \"a b\"",
        "[[realm]]\nid = \"a\"\nkeys = [\"\"]",
        "[[realm]]\nid = \"a\"\nkeys = [\"file:absent\"]",
        "[[realm]]\nid = \"a\"\n[[realm]]\nid = \"a\"",
        "[[log]]\nmatch = \"c\"\nrealm = \"absent\"",
        "[[log]]\nmatch = \"c\"\nstorage = \"disk\"",
        "[[log]]\nmatch = \"c\"\ndurability = \"sometimes\"",
        "[logging]\nlevel = \"loud\"",
        "[client",
    ];
    let refusals =
        || server.log().iter().filter(|line| line.contains("not reloaded, nothing has changed")).count();
    for text in broken {
        let before = refusals();
        replace(&file, &format!("[proxy]\ndebug = true\n{text}\n"));
        server.signal(Signal::HUP);
        server.wait_until(Duration::from_secs(5), text, || refusals() > before);
        assert_eq!(server.get("/").text(), "Error while proxying to origin.\n", "{text}");
    }
    replace(&file, "[proxy]\ndebug = true\n");
    server.signal(Signal::HUP);
    server.wait_until(Duration::from_secs(5), "debug", || server.get("/").text().contains("Grip-Hold"));
}

/// A server that cannot do what its routes say does not start, and says why.
#[test]
fn bad_routes_are_refused_at_start() {
    for line in [
        "x.example nohost",
        "x.example 127.0.0.1:1,ipc_file_mode=777",
        "x.example,pathbeg=/x test",
        "x.example,realm=absent test",
    ] {
        let (status, text) = TestServer::refused(&["* test", line], |_| {});
        assert!(!status.success(), "{line}");
        let words: Vec<_> = line.split([' ', ',', '=']).collect();
        let at_fault =
            words.iter().find(|w| ["nohost", "ipc_file_mode", "pathbeg", "realm"].contains(w)).expect("one");
        assert!(text.contains(at_fault), "{line}: {text}");
    }
}

/// Check 25.
#[test]
fn pushpin_route_chooses_by_id_where_it_is_allowed() {
    let (one, two) = (named("one"), named("two"));
    let lines = [format!(",id=foo,path_beg=/x {one}"), format!("* {two}")];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let server = TestServer::start(&lines, |o| {
        o.set("proxy.accept_pushpin_route", "true");
    });
    let get = |server: &TestServer, path: &str, id: &str| {
        server.request("GET", path, &[("Pushpin-Route", id)], b"").text()
    };
    assert_eq!(get(&server, "/x", "foo"), "one");
    assert!(!one.request().head.has("pushpin-route"));
    assert_eq!(get(&server, "/x", "unknown"), "Route not found\n");
    assert_eq!(get(&server, "/y", "foo"), "Route not found\n");
    assert_eq!(get(&server, "/x", ""), "two");
    let plain = TestServer::start(&lines, |_| {});
    assert_eq!(get(&plain, "/x", "foo"), "two");
}

/// Check 27.
#[test]
fn the_test_origin_is_built_in() {
    let server = TestServer::start(&["* test", "*,path_beg=/below/ test"], |_| {});
    let got = server.get("/");
    assert_eq!((got.status(), got.head.field("content-type")), (200, Some("text/plain")));
    let got = server.get("/nope");
    assert_eq!((got.status(), got.text().as_str()), (404, "no such test resource\n"));
    assert_eq!(server.request("POST", "/", &[], &vec![b'x'; 100_001]).status(), 400);
    for target in ["/stream", "/stream/", "/below/stream"] {
        let mut client = server.stream(target);
        client.expect("[stream opened]\n");
        server.publish_stream("test", "hello\n");
        client.expect("hello\n");
    }
    let mut two = server.stream("/stream?channel=a%20b&channel=c&other=d");
    two.expect("[stream opened]\n");
    server.publish_stream("a b", "1");
    server.publish_stream("test", "no");
    server.publish_stream("c", "2");
    two.expect("12");
    let mut poll = server.connect();
    poll.get("/response?channel=p");
    server.wait_pins("poll", 1);
    server.publish(&serde_json::json!([crate::harness::poll_item("p", "polled")]));
    assert_eq!(poll.response().text(), "polled");
}

/// Whatever a channel's name, it cannot break out of a header.
#[test]
fn the_test_origin_takes_hostile_channel_names() {
    let server = TestServer::start(&["* test"], |_| {});
    for name in ["a%0d%0aX-Evil:%20b", "a%00b", "a,b", "a;filter=x", "%22", "%ff", "%", "%zz", ""] {
        let mut client = server.connect();
        let head = client.get(&format!("/stream?channel={name}")).head();
        assert!(!head.has("x-evil"), "{name}");
        assert!([200, 400].contains(&head.status()), "{name}: {head:?}");
    }
}

/// A reload changes what new connections may do, and warns of nothing but what it cannot change.
#[test]
fn a_reload_changes_the_limits_of_clients() {
    let server = TestServer::start(&["* test"], |o| {
        o.config("[client]\nheaders = 50\n");
    });
    let many: Vec<_> = (0..20).map(|_| ("X-A", "b")).collect();
    assert_eq!(server.request("GET", "/", &many, b"").status(), 200);
    let file = server.folder.path().join("fantail.toml");
    replace(&file, "[client]\nheaders = 10\n");
    server.signal(Signal::HUP);
    server.wait_until(Duration::from_secs(5), "the lower limit", || {
        server.request("GET", "/", &many, b"").status() == 431
    });
    replace(&file, "[client]\nheaders = 10\nqueue_bytes = 5\n");
    server.signal(Signal::HUP);
    server.log_text("only a restart changes client.queue_bytes");
    assert!(!server.log().iter().any(|line| line.contains("client.headers")), "{:?}", server.log());
}

/// Behind a balancer lines say whom it has a request from, if what it says is believed (spec 1.9).
#[test]
fn access_lines_name_the_client() {
    for (rules, from) in
        [("", "192.0.2.1"), ("truncate:1,append", "192.0.2.2"), ("truncate:0,append", "127.0.0.1")]
    {
        let server = TestServer::start(&["* test"], |o| {
            o.set("proxy.x_forwarded_for", rules);
        });
        server.request("GET", "/", &[("X-Forwarded-For", "192.0.2.1, 192.0.2.2")], b"");
        let line = server.log_line(|line| line.get("from").is_some());
        assert_eq!(line["from"], from, "{rules}: {line}");
    }
}

/// Each line says whose request it was.
#[test]
fn access_lines_name_the_realm() {
    let server = TestServer::start(&["a.example,realm=a test", "b.example test"], |o| {
        o.config("[[realm]]\nid = \"a\"\n");
    });
    for (host, realm) in [("a.example", "a"), ("b.example", "default")] {
        server.request("GET", "/", &[("Host", host)], b"");
        let line = server.log_line(|line| line.to_string().contains(&format!("http://{host}/")));
        assert_eq!(line["realm"], realm, "{line}");
    }
    server.request("GET", "/", &[("Host", "c.example")], b"");
    let line = server.log_line(|line| line.to_string().contains("http://c.example/"));
    assert_eq!(line.get("realm"), None, "{line}");
}
