//! XMPP as far as it needs no real server: a component's stream with the test on its other side. All else is in
//! `tests/xmpp/`.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{DEADLINE, Options, Origin, TestServer, Then, answer, hold};

pub const HEAD: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
                    xmlns:stream='http://etherx.jabber.org/streams' from='push.test' id='1'>";

pub fn joining(options: &mut Options, data: &tempfile::TempDir, server: &TcpListener) {
    let address = server.local_addr().expect("it listens").to_string();
    options.set("server.data_dir", &data.path().to_string_lossy());
    options.set("xmpp.server", &address).set("xmpp.domain", "push.test").set("xmpp.secret", "secret");
}

/// The server's side of a component's stream.
pub struct Server {
    pub socket: TcpStream,
    pub unread: String,
    /// What the component sends to itself comes back.
    pub echoes: bool,
    /// What it says before each of them.
    pub chatter: &'static str,
}

impl Server {
    pub fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().expect("the component joins");
        socket.set_read_timeout(Some(DEADLINE)).expect("a time");
        let mut server = Self { socket, unread: String::new(), echoes: true, chatter: "" };
        server.until("'>");
        server.say(HEAD);
        server.until("</handshake>");
        server.say("<handshake/>");
        server
    }

    pub fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).expect("the component reads");
    }

    /// What the component says, up to this, without what it says to itself.
    pub fn until(&mut self, end: &str) -> String {
        let mut buffer = vec![0; 65536];
        let mut searched = 0;
        loop {
            let whole = self.echo();
            if let Some(at) = self.unread[searched.min(whole)..whole].find(end) {
                return self.unread.drain(..searched.min(whole) + at + end.len()).collect();
            }
            searched = whole.saturating_sub(end.len());
            let read = self.socket.read(&mut buffer).expect("it says something in time");
            assert_ne!(read, 0, "it ends without {end}: {}", self.unread);
            self.unread.push_str(str::from_utf8(&buffer[..read]).expect("ASCII"));
        }
    }

    /// Reads to the orderly end.
    pub fn end(mut self, server: TestServer) {
        server.signal(Signal::TERM);
        self.until("</stream:stream>");
        drop(self);
        server.terminate();
    }

    /// Reads until the component knows that all was read.
    pub fn acknowledge(&mut self, server: &TestServer) {
        self.socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a time");
        server.wait_until(DEADLINE, "it is acknowledged", || {
            let mut buffer = vec![0; 65536];
            if let Ok(read) = self.socket.read(&mut buffer) {
                self.unread.push_str(str::from_utf8(&buffer[..read]).expect("ASCII"));
            }
            self.echo();
            server.metric("fantail_xmpp_unacknowledged_bytes", &[]) < 0.5
        });
        self.socket.set_read_timeout(Some(DEADLINE)).expect("a time");
    }

    /// Takes out what the component says to itself. How much of the rest is whole.
    fn echo(&mut self) -> usize {
        while let Some(from) = self.unread.find(ECHO) {
            let Some(end) = self.unread[from..].find("</iq>") else { return from };
            let echo: String = self.unread.drain(from..from + end + "</iq>".len()).collect();
            if self.echoes {
                // It may have gone.
                _ = self.socket.write_all(format!("{}{echo}", self.chatter).as_bytes());
            }
        }
        let begun = (1..ECHO.len()).rev().find(|length| self.unread.ends_with(&ECHO[..*length]));
        self.unread.len() - begun.filter(|length| *length > "<iq ".len()).unwrap_or(0)
    }
}

const ECHO: &str = "<iq type='get' id='echo-";

/// What is published while others are let go is accepted, and so it is delivered.
#[test]
fn subscribers_get_what_is_published_while_connections_end() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let origin = Origin::scripted(|_| Then::Hang);
    let server = TestServer::start(&[&format!("* {origin}")], |options| joining(options, &data, &listener));
    let mut xmpp = Server::accept(&listener);
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    let subscribed = server.control("POST", "/channel/c/xs-subscriptions/", &kind, b"jid=a%40user.test");
    assert_eq!(subscribed.status(), 200);
    let mut busy = server.connect();
    busy.get("/");
    origin.wait_requests(1);
    server.signal(Signal::TERM);
    server.wait_until(DEADLINE, "it drains", || server.control("GET", "/readyz", &[], b"").status() == 503);
    for n in 0..3 {
        let content = format!("<message><body>{n}</body></message>");
        server.publish(&json!([{ "channel": "c", "xmpp-stanza": { "content": content } }]));
        let stanza = xmpp.until("</message>");
        assert!(stanza.contains(&format!("<body>{n}</body>")), "{stanza}");
        assert!(stanza.contains("to='a@user.test'"), "{stanza}");
    }
    drop(busy);
    xmpp.until("</stream:stream>");
}

/// What the component says before it answers.
fn in_sync(xmpp: &mut Server) -> String {
    xmpp.say(
        "<iq from='z@user.test/1' to='push.test' type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>",
    );
    xmpp.until("id='sync'") + &xmpp.until(">")
}

/// Who was there may have left while the server was away: it is asked about everybody, and what it does not confirm is not
/// believed.
#[test]
fn presence_is_asked_about_after_a_loss() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let server = TestServer::start(&[&format!("* {origin}")], |options| joining(options, &data, &listener));
    let mut xmpp = Server::accept(&listener);
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    for name in ["a", "b", "c"] {
        let form = format!("jid={name}%40user.test&presence=true");
        let subscribed = server.control("POST", "/channel/c/xs-subscriptions/", &kind, form.as_bytes());
        assert_eq!(subscribed.status(), 200);
    }
    let publish = |body: &str| {
        let content = format!("<message><body>{body}</body></message>");
        server.publish(&json!([{ "channel": "c", "xmpp-stanza": { "content": content } }]));
    };
    xmpp.say(
        "<presence from='a@user.test/1' to='push.test'/><presence from='c@user.test/1' to='push.test'/>",
    );
    xmpp.say("<presence from='b@user.test/1' to='bot@push.test'/>");
    in_sync(&mut xmpp);
    publish("before");
    (0..3).for_each(|_| drop(xmpp.until("<body>before</body></message>")));
    xmpp.acknowledge(&server);
    drop(xmpp);
    let mut xmpp = Server::accept(&listener);
    let mut probes: Vec<String> = (0..3).map(|_| xmpp.until("/>")).collect();
    probes.sort_by_key(|probe| probe.find("@user.test").map(|at| probe[at - 1..].to_owned()));
    for (probe, (from, to)) in
        probes.iter().zip([("push.test", "a"), ("bot@push.test", "b"), ("push.test", "c")])
    {
        assert!(probe.contains("type='probe'") && probe.contains(&format!("from='{from}'")), "{probe}");
        assert!(probe.contains(&format!("to='{to}@user.test'")), "{probe}");
    }
    xmpp.say("<presence from='a@user.test/2' to='push.test'/>");
    xmpp.say("<presence from='b@user.test' to='bot@push.test' type='unavailable'/>");
    xmpp.say("<presence from='c@user.test' to='push.test' type='unsubscribed'/>");
    in_sync(&mut xmpp);
    publish("after");
    let stanza = xmpp.until("<body>after</body></message>");
    assert!(stanza.contains("to='a@user.test'"), "{stanza}");
    server.wait_metric("fantail_xmpp_absent_total", &[], 2.0);
}

const SUBSCRIPTIONS: TableDefinition<'_, (&str, &str, &str), u8> = TableDefinition::new("subscriptions");
const PLACES: TableDefinition<'_, (&str, &str, &str), (u64, u64)> = TableDefinition::new("gaps");
/// Of a subscription to stanzas.
const STANZAS: u8 = 1 << 5;
pub const LOGGED: &str =
    "[[log]]\nmatch = \"*\"\nstorage = \"disk\"\ndurability = \"logged\"\nbytes = 4000000\n";

pub fn subscribe(server: &TestServer, path: &str, form: &str) -> (u16, String) {
    let kind = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = server.control("POST", path, &kind, form.as_bytes());
    (answer.status(), answer.text())
}

pub fn publish(server: &TestServer, channel: &str, body: &str) {
    let content = format!("<message><body>{body}</body></message>");
    server.publish(&json!([{ "channel": channel, "xmpp-stanza": { "content": content } }]));
}

/// Nobody can publish before the component knows who is to get it.
#[test]
fn nobody_is_served_before_subscriptions_are_read() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let database = Database::create(data.path().join("xmpp.redb")).expect("a file");
    let write = database.begin_write().expect("it can be written");
    let mut table = write.open_table(SUBSCRIPTIONS).expect("a table");
    for n in 0..MANY {
        let (jid, channel) = (format!("u{n:05}@user.test"), format!("c{n}"));
        table.insert((jid.as_str(), "default", channel.as_str()), STANZAS).expect("it can be written");
    }
    drop(table);
    write.commit().expect("it can be written");
    drop(database);
    let server = TestServer::start(&["* test"], |options| joining(options, &data, &listener));
    publish(&server, &format!("c{}", MANY - 1), "early");
    let stanza = Server::accept(&listener).until("</message>");
    assert!(stanza.contains("<body>early</body>") && stanza.contains("to='u"), "{stanza}");
}

/// To read them takes some tenths of a second.
const MANY: usize = 30_000;

/// Without its subscribers their mail would be lost.
#[test]
fn a_file_that_cannot_be_read_is_told_of_at_the_start() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let others: TableDefinition<'_, u64, u64> = TableDefinition::new("subscriptions");
    let database = Database::create(data.path().join("xmpp.redb")).expect("a file");
    let write = database.begin_write().expect("it can be written");
    write.open_table(others).expect("a table").insert(1, 1).expect("it can be written");
    write.commit().expect("it can be written");
    drop(database);
    let (status, log) = TestServer::refused(&["* test"], |options| joining(options, &data, &listener));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("xmpp: the subscriptions in xmpp.redb cannot be read"), "{log}");
    assert!(!log.contains("\"listening\""), "{log}");
}

/// Which items each address has got, of what came over one stream.
fn bodies(text: &str) -> HashMap<String, Vec<usize>> {
    let mut all: HashMap<String, Vec<usize>> = HashMap::new();
    for stanza in text.split_inclusive("</message>").filter(|stanza| stanza.ends_with("</message>")) {
        let between = |from: &str, to: char| Some(stanza.split_once(from)?.1.split(to).next()?.to_owned());
        let (to, body) =
            (between("to='", '\'').expect("an address"), between("<body>", '<').expect("a body"));
        all.entry(to).or_default().push(body.trim_end_matches('x').parse().expect("a number"));
    }
    all
}

/// What a process could not hand to the server any more is in the log, and the next one goes on with it: in order, from
/// where the server had got it or before that.
fn what_waits_outlives(end: impl FnOnce(TestServer)) {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let start = || {
        TestServer::start(&["* test"], |options| {
            joining(options, &data, &listener);
            options.config(LOGGED);
        })
    };
    let server = start();
    let mut first = Server::accept(&listener);
    publish(&server, "c", "older than the subscription");
    let jids: Vec<String> = (0..40).map(|n| format!("u{n}@user.test")).collect();
    for jid in &jids {
        let subscribed = subscribe(&server, "/channel/c/xs-subscriptions/", &format!("jid={jid}"));
        assert_eq!(subscribed.0, 200, "{}", subscribed.1);
    }
    for n in 0..ITEMS {
        publish(&server, "c", &format!("{n}{}", "x".repeat(10_000)));
    }
    end(server);
    first.socket.read_to_string(&mut first.unread).expect("what was on its way");
    first.echoes = false;
    first.echo();
    let text = std::mem::take(&mut first.unread);
    let server = start();
    let mut second = Server::accept(&listener);
    publish(&server, "c", &ITEMS.to_string());
    let mut rest = String::new();
    for _ in &jids {
        // What is read of a log says when it was published.
        rest += &second.until(&format!("<body>{ITEMS}</body>"));
        rest += &second.until("</message>");
    }
    let (mut all_before, mut all_after) = (bodies(&text), bodies(&rest));
    for jid in &jids {
        let before = all_before.remove(jid).unwrap_or_default();
        let after = all_after.remove(jid).unwrap_or_default();
        assert!(before.len() < ITEMS, "nothing has waited");
        assert!(before.iter().copied().eq(0..before.len()), "{jid}: {before:?}");
        let from = after.first().copied().expect("something");
        assert!(from <= before.len(), "{jid}: {before:?} {after:?}");
        assert!(after.iter().copied().eq(from..=ITEMS), "{jid}: {after:?}");
    }
}

/// With their copies some 16 MB: more than kernels hold.
const ITEMS: usize = 40;

#[test]
fn what_waits_outlives_a_kill() {
    what_waits_outlives(TestServer::kill);
}

#[test]
fn what_waits_outlives_an_orderly_end() {
    what_waits_outlives(|server| {
        server.terminate();
    });
}

/// An orderly end repeats nothing that was handed over; nor does a later subscriber get what came before it.
#[test]
fn what_was_sent_is_not_sent_again() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let start = || {
        TestServer::start(&["* test"], |options| {
            joining(options, &data, &listener);
            options.config(LOGGED);
        })
    };
    let server = start();
    let mut xmpp = Server::accept(&listener);
    for channel in ["c", "quiet"] {
        publish(&server, channel, "before anybody");
        let path = format!("/channel/{channel}/xs-subscriptions/");
        assert_eq!(subscribe(&server, &path, "jid=a%40user.test").0, 200);
    }
    for n in 0..3 {
        publish(&server, "c", &n.to_string());
        xmpp.until(&format!("<body>{n}</body></message>"));
    }
    // Nothing for XMPP.
    server.publish_stream("c", "text");
    xmpp.end(server);
    let server = start();
    let mut xmpp = Server::accept(&listener);
    for channel in ["quiet", "c"] {
        publish(&server, channel, "new");
        let stanza = xmpp.until("</message>");
        assert!(stanza.contains("<body>new</body>"), "{stanza}");
    }
    assert!(server.metric("fantail_xmpp_dropped_total", &[]) < 0.5);
    server.terminate();
}

/// Where an address goes on is of no use when it is not subscribed any more.
#[test]
fn places_of_gone_subscriptions_go() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let file = data.path().join("xmpp.redb");
    let database = Database::create(&file).expect("a file");
    let write = database.begin_write().expect("it can be written");
    let mut table = write.open_table(SUBSCRIPTIONS).expect("a table");
    table.insert(("a@user.test", "default", "c"), STANZAS).expect("it can be written");
    table.insert(("c@user.test", "default", "c"), STANZAS).expect("it can be written");
    drop(table);
    let mut table = write.open_table(PLACES).expect("a table");
    for key in [
        ("a@user.test", "default", "c"),
        ("b@user.test", "default", "c"),
        ("c@user.test", "default", "c"),
        ("", "default", "c"),
        ("", "default", "gone"),
        ("b@user.test", "elsewhere", "c"),
    ] {
        table.insert(key, (1, 1)).expect("it can be written");
    }
    drop(table);
    write.commit().expect("it can be written");
    drop(database);
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config("[xmpp]\nabsences = 2\nrealm_absences = 1\n");
    });
    Server::accept(&listener);
    assert!((server.metric("fantail_xmpp_dropped_total", &[]) - 1.0).abs() < 0.5);
    server.terminate();
    // The channel has no log, there is no room for another of the realm, and the other realm may come back.
    assert_eq!(
        places(&file),
        Some(vec!["a@user.test default c 1".into(), "b@user.test elsewhere c 1".into()])
    );
}

/// Where everybody goes on, as it is on disk: address, realm, channel and position.
fn places(file: &Path) -> Option<Vec<String>> {
    let database = Database::open(file).ok()?;
    let read = database.begin_read().ok()?;
    let table = read.open_table(PLACES).ok()?;
    let mut places = Vec::new();
    for row in table.iter().ok()? {
        let (key, place) = row.ok()?;
        let (jid, realm, channel) = key.value();
        places.push(format!("{jid} {realm} {channel} {}", place.value().1));
    }
    Some(places)
}

/// What an address has missed and got is not given to it once more by the next process, however the last one ended.
#[test]
fn gaps_that_were_filled_stay_filled() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let start = || {
        TestServer::start(&["* test"], |options| {
            joining(options, &data, &listener);
            options.config(LOGGED);
        })
    };
    let server = start();
    let mut xmpp = Server::accept(&listener);
    assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", "jid=a%40user.test&presence=true").0, 200);
    publish(&server, "c", "0");
    publish(&server, "c", "1");
    server.wait_metric("fantail_xmpp_absent_total", &[], 2.0);
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    for body in ["0", "1"] {
        assert!(xmpp.until("</message>").contains(&format!("<body>{body}</body><delay")));
    }
    publish(&server, "c", "2");
    xmpp.until("<body>2</body></message>");
    xmpp.acknowledge(&server);
    let copy = data.path().join("copy.redb");
    server.wait_until(DEADLINE, "it is on disk", || {
        let copied = std::fs::copy(data.path().join("xmpp.redb"), &copy);
        copied.is_ok() && places(&copy).is_some_and(|places| places == [" default c 3"])
    });
    server.kill();
    let server = start();
    let mut xmpp = Server::accept(&listener);
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    in_sync(&mut xmpp);
    publish(&server, "c", "3");
    let stanza = xmpp.until("</message>");
    assert!(stanza.contains("<body>3</body></message>"), "{stanza}");
}

/// Absent addresses of one realm take the places of no others.
#[test]
fn places_of_the_absent_have_limits() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config(format!("{LOGGED}[xmpp]\nabsences = 4\n"));
    });
    let mut xmpp = Server::accept(&listener);
    for n in 0..4 {
        let form = format!("jid=u{n}%40user.test&presence=true");
        assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", &form).0, 200);
    }
    publish(&server, "c", "missed");
    server.wait_metric("fantail_xmpp_dropped_total", &[], 1.0);
    assert!((server.metric("fantail_xmpp_absent_total", &[]) - 4.0).abs() < 0.5);
    (0..4).for_each(|n| xmpp.say(&format!("<presence from='u{n}@user.test/1' to='push.test'/>")));
    for n in 0..3 {
        let stanza = xmpp.until("</message>");
        assert!(stanza.contains(&format!("to='u{n}@user.test'")) && stanza.contains("missed"), "{stanza}");
    }
    publish(&server, "c", "seen");
    (0..4).for_each(|_| assert!(xmpp.until("</message>").contains("seen")));
}

/// All subscriptions, those of a realm, and those that one address makes for itself.
#[test]
fn subscriptions_have_limits() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config(
            "[xmpp]\nsubscriptions = 4\nrealm_subscriptions = 3\nsubscriptions_per_jid = 1\n\
             open_realms = [\"default\"]\n[[realm]]\nid = \"acme\"\nkeys = [\"a key of 32 bytes for the realm!\"]\n",
        );
    });
    let mut xmpp = Server::accept(&listener);
    let mut node = |name: &str| {
        let from = "z@user.test/1";
        xmpp.say(&format!(
            "<iq from='{from}' to='push.test' type='set' id='{name}'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
             <subscribe node='/default/{name}' jid='z@user.test'/></pubsub></iq>"
        ));
        xmpp.until("</iq>")
    };
    assert!(node("one").contains("subscription='subscribed'"));
    let refused = node("two");
    assert!(
        refused.contains("<policy-violation") && refused.contains("<too-many-subscriptions"),
        "{refused}"
    );
    let path = "/channel/c/xs-subscriptions/";
    for jid in ["a", "b"] {
        assert_eq!(subscribe(&server, path, &format!("jid={jid}%40user.test")).0, 200);
    }
    let (status, text) = subscribe(&server, path, "jid=c%40user.test");
    assert!(status == 503 && text.contains("xmpp.realm_subscriptions"), "{status} {text}");
    // What is there already takes no room.
    assert_eq!(subscribe(&server, path, "jid=b%40user.test&presence=true").0, 200);
    let acme = |jid: &str| {
        let fields = [
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Authorization", "Bearer a key of 32 bytes for the realm!"),
        ];
        let form = format!("jid={jid}%40user.test");
        let path = "/realm/acme/channel/c/xs-subscriptions/";
        let answer = server.control("POST", path, &fields, form.as_bytes());
        (answer.status(), answer.text())
    };
    assert_eq!(acme("a").0, 200);
    let (status, text) = acme("b");
    assert!(status == 503 && text.contains("(xmpp.subscriptions)"), "{status} {text}");
}

/// What origins make for an address counts as what it makes for itself.
#[test]
fn origins_make_no_more_subscriptions_than_an_address_may_have() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let origin = Origin::answering(|request| {
        let stanza = String::from_utf8_lossy(&request.body);
        hold("stream", if stanza.contains("<body>one") { "one" } else { "two" }, &[], "<message/>")
    });
    let server = TestServer::start(&[&format!("push.test {origin}")], |options| {
        joining(options, &data, &listener);
        options.config("[xmpp]\nsubscriptions_per_jid = 1\n");
    });
    let mut xmpp = Server::accept(&listener);
    let mut say = |body: &str| {
        xmpp.say(&format!("<message from='a@user.test/1' to='bot@push.test'><body>{body}</body></message>"));
        xmpp.until("</message>")
    };
    assert!(!say("one").contains("type='error'"));
    assert!(!say("one").contains("type='error'"), "it has that already");
    let refused = say("two");
    assert!(refused.contains("type='error'") && refused.contains("<policy-violation"), "{refused}");
    server.wait_metric("fantail_xmpp_subscriptions", &[], 1.0);
}

/// Who is subscribed in both ways is one receiver.
#[test]
fn an_address_is_counted_once() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config("[xmpp]\nopen_realms = [\"default\"]\n");
    });
    let mut xmpp = Server::accept(&listener);
    assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", "jid=z%40user.test").0, 200);
    xmpp.say(
        "<iq from='z@user.test/1' to='push.test' type='set' id='n'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
         <subscribe node='/default/c' jid='z@user.test'/></pubsub></iq>",
    );
    assert!(xmpp.until("</iq>").contains("subscription='subscribed'"));
    let item =
        json!([{ "channel": "c", "xmpp-stanza": { "content": "<message><body>both</body></message>" } }]);
    assert_eq!(server.receipts(&item)[0]["queued"], 1);
    (0..2).for_each(|_| drop(xmpp.until("both")));
}

/// Whose presence decides is asked for it once, and, if it has agreed, asked again whenever Fantail may have missed something.
#[test]
fn presence_is_asked_for() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let start = || TestServer::start(&["* test"], |options| joining(options, &data, &listener));
    let server = start();
    let mut xmpp = Server::accept(&listener);
    for form in
        ["jid=b%40user.test", "jid=a%40user.test%2F1&presence=true", "jid=a%40user.test%2F1&presence=true"]
    {
        assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", form).0, 200);
    }
    let asked = xmpp.until("/>");
    assert!(asked.contains("type='subscribe'") && asked.contains("from='push.test'"), "{asked}");
    assert!(asked.contains("to='a@user.test'"), "{asked}");
    // Declined, it may yet say that it is there.
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    xmpp.say("<presence from='a@user.test' to='push.test' type='unsubscribed'/>");
    assert!(!in_sync(&mut xmpp).contains("subscribe"));
    publish(&server, "c", "there");
    (0..2).for_each(|_| drop(xmpp.until("<body>there</body></message>")));
    server.kill();
    let server = start();
    let mut xmpp = Server::accept(&listener);
    // What was asked just before the kill may be asked again.
    xmpp.until("<presence type='probe' from='push.test' to='a@user.test'/>");
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    in_sync(&mut xmpp);
    publish(&server, "c", "still there");
    (0..2).for_each(|_| drop(xmpp.until("<body>still there</body></message>")));
}

fn unsubscribe(server: &TestServer, channel: &str, jid: &str) {
    let path = format!("/channel/{channel}/xs-subscription/{jid}/");
    assert_eq!(server.control("DELETE", &path, &[], b"").status(), 200);
}

/// Presence that decides about nothing any more need not be sent.
#[test]
fn presence_is_let_go_with_the_last_that_asks_for_it() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| joining(options, &data, &listener));
    let mut xmpp = Server::accept(&listener);
    for (channel, form) in [
        ("a", "jid=a%40user.test&presence=true"),
        ("b", "jid=a%40user.test%2Fphone&presence=true"),
        ("c", "jid=a%40user.test"),
    ] {
        assert_eq!(subscribe(&server, &format!("/channel/{channel}/xs-subscriptions/"), form).0, 200);
    }
    unsubscribe(&server, "a", "a%40user.test");
    let said = in_sync(&mut xmpp);
    assert!(said.contains("type='subscribe'") && !said.contains("unsubscribe"), "{said}");
    // It is subscribed still, but always.
    assert_eq!(subscribe(&server, "/channel/b/xs-subscriptions/", "jid=a%40user.test%2Fphone").0, 200);
    let said = in_sync(&mut xmpp);
    assert!(said.starts_with("<presence type='unsubscribe' from='push.test' to='a@user.test'/>"), "{said}");
    assert_eq!(subscribe(&server, "/channel/b/xs-subscriptions/", "jid=a%40user.test&presence=true").0, 200);
    unsubscribe(&server, "b", "a%40user.test");
    let said = in_sync(&mut xmpp);
    // It was asked and told, or nothing.
    assert_eq!(said.matches("<presence").count() % 2, 0, "{said}");
    // Who does not want to hear of the component any more hears that it is gone.
    xmpp.say("<presence from='a@user.test' to='push.test' type='unsubscribe'/>");
    let said = xmpp.until("type='unavailable'/>");
    assert!(said.contains("type='unsubscribed'"), "{said}");
}

/// What an address could not be asked, or told, because the server was away, the next process asks or tells.
#[test]
fn questions_outlive_a_kill() {
    let data = tempfile::tempdir().expect("a folder");
    let listen = || TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let start = |at: &TcpListener| TestServer::start(&["* test"], |options| joining(options, &data, at));
    let away = listen();
    let server = start(&away);
    let form = |name: &str| format!("jid={name}%40user.test&presence=true");
    let path = "/channel/c/xs-subscriptions/";
    assert_eq!(subscribe(&server, path, &form("a")).0, 200);
    assert_eq!(subscribe(&server, path, &form("b")).0, 200);
    // Never asked, it is told nothing.
    unsubscribe(&server, "c", "b%40user.test");
    server.kill();
    let listener = listen();
    let server = start(&listener);
    let mut xmpp = Server::accept(&listener);
    let said = in_sync(&mut xmpp);
    assert!(said.contains("<presence type='subscribe' from='push.test' to='a@user.test'/>"), "{said}");
    assert!(!said.contains("b@user.test"), "{said}");
    drop(xmpp);
    server.wait_metric("fantail_xmpp_connected", &[], 0.0);
    unsubscribe(&server, "c", "a%40user.test");
    server.kill();
    let listener = listen();
    let server = start(&listener);
    let mut xmpp = Server::accept(&listener);
    let said = in_sync(&mut xmpp);
    assert!(said.starts_with("<presence type='unsubscribe' from='push.test' to='a@user.test'/>"), "{said}");
    server.terminate();
    let _server = start(&listener);
    let mut xmpp = Server::accept(&listener);
    let said = in_sync(&mut xmpp);
    assert!(!said.contains("<presence"), "{said}");
}

/// Who says that it is there and is subscribed then is there.
#[test]
fn presence_counts_from_before_a_subscription() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| joining(options, &data, &listener));
    let mut xmpp = Server::accept(&listener);
    xmpp.say("<presence from='a@user.test/1' to='bot@push.test'/>");
    in_sync(&mut xmpp);
    assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", "jid=a%40user.test&presence=true").0, 200);
    publish(&server, "c", "there");
    xmpp.until("<body>there</body></message>");
}

/// Origins are asked no more at a time than the configuration says, however many have something to say.
#[test]
fn requests_to_origins_have_a_limit() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let origin = Origin::scripted(|exchange| {
        exchange.read_body().expect("a stanza");
        MOST.fetch_max(ASKED.fetch_add(1, SeqCst) + 1, SeqCst);
        exchange.pause(Duration::from_millis(100));
        ASKED.fetch_sub(1, SeqCst);
        exchange.send(answer("200 OK", &[], ""));
        Then::Next
    });
    let server = TestServer::start(&[&format!("push.test {origin}")], |options| {
        joining(options, &data, &listener);
        options.config("[xmpp]\norigin_requests = 2\n");
    });
    let mut xmpp = Server::accept(&listener);
    for n in 0..8 {
        xmpp.say(&format!("<message from='u{n}@user.test' to='bot@push.test'><body>x</body></message>"));
    }
    server.wait_metric("fantail_xmpp_origin_requests_total", &["result=\"answered\""], 8.0);
    assert_eq!(MOST.load(SeqCst), 2);
}
