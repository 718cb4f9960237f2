//! What XMPP entities send, and what of it waits: nobody's bot, flood or question is another's trouble.

use std::{fmt::Write as _, net::TcpListener};

use rustix::process::Signal;
use serde_json::json;

use crate::{
    harness::{DEADLINE, Origin, TestServer, Then, answer},
    xmpp::{Server, joining},
    xmpp_origins::between,
};

/// Says nothing to what contains `hang`, begins to answer what contains `drip`, and answers all else.
fn origin() -> Origin {
    Origin::scripted(|exchange| {
        let Ok(body) = exchange.read_body() else { return Then::Close };
        let has = |word: &str| body.windows(word.len()).any(|part| part == word.as_bytes());
        if has("hang") {
            return Then::Hang;
        }
        if has("drip") {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<message/>\n");
            return Then::Hang;
        }
        exchange.send(answer("200 OK", &[], "<message><body>answered</body></message>"));
        Then::Next
    })
}

fn message(from: &str, to: &str, body: &str) -> String {
    format!("<message from='{from}@user.test/1' to='{to}@push.test'><body>{body}</body></message>")
}

fn iq(from: &str, to: &str, id: &str, payload: &str) -> String {
    format!("<iq from='{from}@user.test/1' to='{to}' type='get' id='{id}'>{payload}</iq>")
}

const PING: &str = "<ping xmlns='urn:xmpp:ping'/>";

#[test]
fn a_bot_that_hangs_is_its_senders_alone() {
    let origin = origin();
    let (_server, mut xmpp, _data) = between(&[&format!("* {origin}")], |_| {});
    xmpp.say(&message("a", "bot", "hang"));
    origin.wait_requests(1);
    // What needs no origin does not wait behind it.
    xmpp.say(&iq("a", "push.test", "1", PING));
    assert!(xmpp.until("id='1'").contains("type='result'"));
    xmpp.say(&iq("a", "push.test", "2", "<query xmlns='http://jabber.org/protocol/disco#info'/>"));
    assert!(xmpp.until("</iq>").contains("disco#info"));
    // Nor does it take the room of all: a sender has a mebibyte.
    for _ in 0..5 {
        xmpp.say(&message("a", "bot", &"x".repeat(250_000)));
    }
    assert!(xmpp.until("</message>").contains("<resource-constraint"));
    xmpp.say(&message("b", "bot", &"x".repeat(250_000)));
    let stanza = xmpp.until("</message>");
    assert!(stanza.contains("answered") && stanza.contains("to='b@user.test/1'"), "{stanza}");
}

#[test]
fn a_realms_bots_do_not_take_all_requests() {
    let origin = origin();
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let routes =
        [format!("push.test,path_beg=/xmpp/slow@,realm=acme {origin}"), format!("push.test {origin}")];
    let _server = TestServer::start(&routes.each_ref().map(String::as_str), |options| {
        joining(options, &data, &listener);
        options.config(
            "[xmpp]\norigin_requests = 4\n[[realm]]\nid = \"acme\"\nkeys = [\"a key of 32 bytes for the realm!\"]\n",
        );
    });
    let mut xmpp = Server::accept(&listener);
    for n in 0..5 {
        xmpp.say(&message(&format!("a{n}"), "slow", "hang"));
    }
    origin.wait_requests(3);
    xmpp.say(&message("b", "bot", "hi"));
    assert!(xmpp.until("</message>").contains("answered"));
    assert_eq!(origin.requests().len(), 4);
}

#[test]
fn an_answer_that_does_not_end_is_none() {
    let origin = origin();
    let (_server, mut xmpp, _data) = between(&[&format!("* {origin}")], |options| {
        options.set("origin.response_timeout", "1s");
    });
    xmpp.say(&message("a", "bot", "drip"));
    assert!(xmpp.until("</message>").contains("<remote-server-timeout"));
    xmpp.say(&message("a", "bot", "hi"));
    assert!(xmpp.until("</message>").contains("answered"));
}

/// Strangers do not fill the log.
#[test]
fn who_is_no_admin_is_counted() {
    let origin = origin();
    let (server, mut xmpp, _data) = between(&[&format!("* {origin}")], |options| {
        options.config("[xmpp]\nadmins = [\"ops@user.test\"]\n");
    });
    xmpp.say(&message("a", "admin", "publish c text"));
    assert!(xmpp.until("</message>").contains("<forbidden"));
    server.wait_metric("fantail_xmpp_refused_total", &["cause=\"admin\""], 1.0);
    // What is no command is answered by an error, which what answers by itself does not answer.
    xmpp.say(&message("ops", "admin", "I do not understand"));
    let told = xmpp.until("</message>");
    assert!(told.contains("type='error'") && told.contains("Write: publish CHANNEL TEXT"), "{told}");
    assert!(!server.log().iter().any(|line| line.contains("no admin")));
}

/// At the end everybody is told what has become of what they asked.
#[test]
fn nobody_is_left_without_an_answer() {
    let origin = origin();
    let (server, mut xmpp, _data) = between(&[&format!("* {origin}")], |_| {});
    for id in ["one", "two"] {
        xmpp.say(&iq("a", "bot@push.test", id, "<q xmlns='hang'/>"));
    }
    origin.wait_requests(1);
    server.signal(Signal::TERM);
    let told = xmpp.until("</iq>");
    assert!(told.contains("id='two'") && told.contains("<resource-constraint"), "{told}");
    xmpp.say(&iq("b", "bot@push.test", "three", "<q xmlns='hang'/>"));
    let told = xmpp.until("</iq>");
    assert!(told.contains("id='three'") && told.contains("<resource-constraint"), "{told}");
    let told = xmpp.until("</iq>");
    assert!(told.contains("id='one'") && told.contains("<remote-server-timeout"), "{told}");
    xmpp.end(server);
}

/// Who asks for much waits for that, and loses nothing by it.
#[test]
fn much_that_is_asked_for_comes_in_its_time() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config("[xmpp]\nopen_realms = [\"default\"]\n[[log]]\nmatch = \"*\"\n");
    });
    let mut xmpp = Server::accept(&listener);
    server.publish(&json!([{ "channel": "c", "json-object": "x".repeat(100_000) }]));
    let mut asked = String::new();
    for n in 0..MUCH {
        let pubsub = "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='/default/c'/></pubsub>";
        asked.write_str(&iq("a", "push.test", &format!("m{n}"), pubsub)).expect("a string");
    }
    xmpp.echoes = false;
    xmpp.say(&asked);
    // The server has enough and says nothing.
    server.wait_until(DEADLINE, "it is full", || {
        server.metric("fantail_xmpp_unacknowledged_bytes", &[]) > 1_000_000.0
    });
    xmpp.echoes = true;
    for n in 0..MUCH {
        let told = xmpp.until("</iq>");
        assert!(told.contains(&format!("id='m{n}'")) && told.len() > 100_000, "{}", told.len());
    }
    assert!(server.metric("fantail_xmpp_dropped_total", &[]) < 0.5);
}

/// Some megabytes.
const MUCH: usize = 40;
