//! What the XMPP server was given counts when it has read it: the component sends a question to itself, which comes back. A
//! server that takes bytes and dies loses nothing.

use std::{io::Write as _, net::TcpListener};

use rustix::process::Signal;

use crate::{
    harness::{DEADLINE, TestServer},
    xmpp::{HEAD, LOGGED, Server, joining, publish, subscribe},
};

struct World {
    data: tempfile::TempDir,
    listener: TcpListener,
}

impl World {
    fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        Self { data: tempfile::tempdir().expect("a folder"), listener }
    }

    fn start(&self, more: &str) -> TestServer {
        TestServer::start(&["* test"], |options| {
            joining(options, &self.data, &self.listener);
            options.config(more);
        })
    }

    /// A server that has said something, is given three items, and has read none of them.
    fn lag(&self, server: &TestServer) -> Server {
        let mut xmpp = Server::accept(&self.listener);
        assert_eq!(subscribe(server, "/channel/c/xs-subscriptions/", "jid=a%40user.test").0, 200);
        xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
        give(server);
        xmpp
    }
}

fn give(server: &TestServer) {
    for n in 0..3 {
        publish(server, "c", &n.to_string());
    }
    server.wait_metric("fantail_xmpp_sent_total", &["kind=\"item\""], 3.0);
}

/// The bodies that come next.
fn next(xmpp: &mut Server, count: usize) -> Vec<String> {
    let body = |xmpp: &mut Server| {
        xmpp.until("<body>");
        let body = xmpp.until("</body>");
        body.trim_end_matches("</body>").to_owned()
    };
    (0..count).map(|_| body(xmpp)).collect()
}

/// Also without a log.
#[test]
fn what_a_server_had_not_read_is_written_again() {
    let world = World::new();
    let server = world.start("");
    drop(world.lag(&server));
    let mut xmpp = Server::accept(&world.listener);
    assert_eq!(next(&mut xmpp, 3), ["0", "1", "2"]);
    server.wait_metric("fantail_xmpp_repeated_total", &[], 3.0);
    // It has read them, and says so when it reads on.
    publish(&server, "c", "3");
    assert_eq!(next(&mut xmpp, 1), ["3"]);
    publish(&server, "c", "4");
    assert_eq!(next(&mut xmpp, 1), ["4"]);
    xmpp.end(server);
}

#[test]
fn what_a_server_has_read_is_not_written_again() {
    let world = World::new();
    let server = world.start("");
    let mut xmpp = world.lag(&server);
    assert_eq!(next(&mut xmpp, 3), ["0", "1", "2"]);
    xmpp.acknowledge(&server);
    drop(xmpp);
    let mut xmpp = Server::accept(&world.listener);
    publish(&server, "c", "3");
    assert_eq!(next(&mut xmpp, 1), ["3"]);
    assert!(server.metric("fantail_xmpp_repeated_total", &[]) < 0.5);
}

/// A server that reads late gets all before the end, and nothing of it again.
#[test]
fn an_orderly_end_waits_for_the_server() {
    let world = World::new();
    let server = world.start(LOGGED);
    let mut xmpp = world.lag(&server);
    server.signal(Signal::TERM);
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    assert_eq!(next(&mut xmpp, 3), ["0", "1", "2"]);
    xmpp.until("</stream:stream>");
    // More that it does not read any more.
    xmpp.say("<presence from='a@user.test/1' to='push.test'/></stream:stream>");
    drop(xmpp);
    server.terminate();
    let server = world.start(LOGGED);
    let mut xmpp = Server::accept(&world.listener);
    publish(&server, "c", "3");
    assert_eq!(next(&mut xmpp, 1), ["3"]);
}

/// What its kernel took is not what it has read.
#[test]
fn what_a_server_had_not_read_outlives_an_orderly_end() {
    let world = World::new();
    let server = world.start(LOGGED);
    let xmpp = world.lag(&server);
    server.terminate();
    drop(xmpp);
    let server = world.start(LOGGED);
    assert_eq!(next(&mut Server::accept(&world.listener), 3), ["0", "1", "2"]);
    server.kill();
}

/// After it, nothing was noted as given that was only written, however long ago.
#[test]
fn what_a_server_had_not_read_outlives_a_kill() {
    let world = World::new();
    let server = world.start(LOGGED);
    let xmpp = world.lag(&server);
    // They are written once a second.
    let later = server.metric("fantail_uptime_seconds", &[]) + 2.5;
    server.wait_until(DEADLINE, "time passes", || server.metric("fantail_uptime_seconds", &[]) > later);
    server.kill();
    drop(xmpp);
    let server = world.start(LOGGED);
    assert_eq!(next(&mut Server::accept(&world.listener), 3), ["0", "1", "2"]);
    server.kill();
}

/// Nothing more is given than may be lost; a server that brings nothing back gets it all the same, later.
#[test]
fn a_server_that_brings_nothing_back_is_believed() {
    let world = World::new();
    let server = world.start("[xmpp]\nunacknowledged_bytes = 1\n");
    let mut xmpp = Server::accept(&world.listener);
    xmpp.echoes = false;
    assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", "jid=a%40user.test").0, 200);
    publish(&server, "c", "0");
    assert_eq!(next(&mut xmpp, 1), ["0"]);
    // It lives, and has had the time to bring back what it was asked.
    xmpp.say("<presence from='a@user.test/1' to='push.test'/>");
    publish(&server, "c", "1");
    publish(&server, "c", "2");
    assert!(server.metric("fantail_xmpp_unacknowledged_bytes", &[]) > 1.0);
    assert!((server.metric("fantail_xmpp_queued", &[]) - 2.0).abs() < 0.5);
    assert_eq!(next(&mut xmpp, 2), ["1", "2"]);
    server.log_text("does not bring back what the component sends to itself");
    server.wait_metric("fantail_xmpp_unacknowledged_bytes", &[], 0.0);
}

/// A server that has not seen the end of the last stream yet is tried again soon.
#[test]
fn a_conflict_passes() {
    let world = World::new();
    let server = world.start("");
    let (mut first, _) = world.listener.accept().expect("it joins");
    let conflict = "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>";
    first.write_all(format!("{HEAD}{conflict}").as_bytes()).expect("it reads");
    server.wait_metric("fantail_xmpp_connects_total", &["result=\"denied\""], 1.0);
    world.listener.set_nonblocking(true).expect("it can");
    server.wait_until(DEADLINE, "it tries again", || world.listener.accept().is_ok());
}

/// A server that dies of a stanza does not die of it for ever.
#[test]
fn what_ends_two_streams_is_dropped() {
    let world = World::new();
    let server = world.start("");
    let mut xmpp = Server::accept(&world.listener);
    for n in 0..SUBSCRIBERS {
        assert_eq!(
            subscribe(&server, "/channel/c/xs-subscriptions/", &format!("jid=u{n}%40user.test")).0,
            200
        );
    }
    let poison = "poison".repeat(12_000);
    publish(&server, "c", &poison);
    for _ in 0..2 {
        xmpp.echoes = false;
        assert_eq!(next(&mut xmpp, 1), [poison.as_str()]);
        xmpp.say(
            "<stream:error><not-well-formed xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
        );
        drop(xmpp);
        xmpp = Server::accept(&world.listener);
    }
    publish(&server, "c", "good");
    assert_eq!(next(&mut xmpp, 1), ["good"]);
    server.wait_metric("fantail_xmpp_dropped_total", &[], f64::from(SUBSCRIBERS));
}

/// Of which each gets a copy of 72 kB: more than are given at once.
const SUBSCRIBERS: u32 = 40;

/// What is said after it has begun keeps nobody.
#[test]
fn an_orderly_end_does_not_wait_for_what_comes_meanwhile() {
    let world = World::new();
    let server = world.start("");
    let mut xmpp = world.lag(&server);
    xmpp.chatter =
        "<iq from='z@user.test/1' to='push.test' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>";
    server.signal(Signal::TERM);
    xmpp.until("</stream:stream>");
}
