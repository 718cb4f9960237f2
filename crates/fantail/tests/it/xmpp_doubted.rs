//! Who was there before the stream broke: what it gets until it is clear whether it still is.

use std::net::TcpListener;

use crate::{
    harness::TestServer,
    xmpp::{Server, joining, publish, subscribe},
};

/// What was published meanwhile, and since, is in the log: who has left must not be sent it, and gets it on its return.
#[test]
fn a_log_waits_until_it_is_clear_who_is_there() {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&["* test"], |options| {
        joining(options, &data, &listener);
        options.config("[[log]]\nmatch = \"*\"\n");
    });
    let mut xmpp = Server::accept(&listener);
    for name in ["left", "there"] {
        let form = format!("jid={name}%40user.test&presence=true");
        assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", &form).0, 200);
        xmpp.say(&format!("<presence from='{name}@user.test/1' to='push.test'/>"));
    }
    sync(&mut xmpp);
    publish(&server, "c", "before");
    (0..2).for_each(|_| drop(xmpp.until("<body>before</body></message>")));
    xmpp.acknowledge(&server);
    drop(xmpp);
    server.wait_metric("fantail_xmpp_connected", &[], 0.0);
    publish(&server, "c", "meanwhile");
    let mut xmpp = Server::accept(&listener);
    for _ in 0..2 {
        let asked = xmpp.until("/>");
        assert!(asked.contains("type='probe'"), "{asked}");
    }
    publish(&server, "c", "since");
    server.wait_metric("fantail_xmpp_absent_total", &[], 4.0);
    xmpp.say("<presence from='left@user.test' to='push.test' type='unavailable'/>");
    xmpp.say("<presence from='there@user.test/1' to='push.test'/>");
    for body in ["meanwhile", "since"] {
        let stanza = xmpp.until("</message>");
        assert!(stanza.contains(body) && stanza.contains("to='there@user.test'"), "{stanza}");
    }
    let said = sync(&mut xmpp);
    assert!(!said.contains("<body>"), "{said}");
    xmpp.say("<presence from='left@user.test/2' to='push.test'/>");
    for body in ["meanwhile", "since"] {
        let stanza = xmpp.until("</message>");
        assert!(stanza.contains(body) && stanza.contains("to='left@user.test'"), "{stanza}");
    }
}

/// What the component says before it answers.
fn sync(xmpp: &mut Server) -> String {
    xmpp.say(
        "<iq from='z@user.test/1' to='push.test' type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>",
    );
    xmpp.until("id='sync'")
}
