//! XMPP as far as it needs no real server: a component's stream with the test on its other side. All else is in
//! `tests/xmpp/`.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use redb::{Database, TableDefinition};
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{DEADLINE, Options, Origin, TestServer, Then, answer};

const HEAD: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
                    xmlns:stream='http://etherx.jabber.org/streams' from='push.test' id='1'>";

fn joining(options: &mut Options, data: &tempfile::TempDir, server: &TcpListener) {
    let address = server.local_addr().expect("it listens").to_string();
    options.set("server.data_dir", &data.path().to_string_lossy());
    options.set("xmpp.server", &address).set("xmpp.domain", "push.test").set("xmpp.secret", "secret");
}

/// The server's side of a component's stream.
struct Server {
    socket: TcpStream,
    unread: String,
}

impl Server {
    fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().expect("the component joins");
        socket.set_read_timeout(Some(DEADLINE)).expect("a time");
        let mut server = Self { socket, unread: String::new() };
        server.until("'>");
        server.say(HEAD);
        server.until("</handshake>");
        server.say("<handshake/>");
        server
    }

    fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).expect("the component reads");
    }

    /// What the component says, up to this.
    fn until(&mut self, end: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.unread.find(end) {
                return self.unread.drain(..at + end.len()).collect();
            }
            let read = self.socket.read(&mut buffer).expect("it says something in time");
            assert_ne!(read, 0, "it ends without {end}: {}", self.unread);
            self.unread.push_str(str::from_utf8(&buffer[..read]).expect("ASCII"));
        }
    }
}

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
    let in_sync = |xmpp: &mut Server| {
        xmpp.say(
            "<iq from='z@user.test/1' to='push.test' type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>",
        );
        xmpp.until("id='sync'")
    };
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

/// Without its subscribers its mail would be lost, and then refused for everybody.
#[test]
fn the_process_ends_with_its_component() {
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
    assert!(log.contains("XMPP subscriptions have stopped"), "{log}");
}
