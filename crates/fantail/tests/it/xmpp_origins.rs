//! Stanzas as requests to origins: what proves that a request is one, and what of an answer is sent.

use std::net::TcpListener;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::{
    harness::{Options, Origin, Request, TestServer, answer},
    xmpp::{Server, joining, publish, subscribe},
};

/// Fantail, joined to an XMPP server; all must be kept.
pub fn between(routes: &[&str], more: impl FnOnce(&mut Options)) -> (TestServer, Server, tempfile::TempDir) {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(routes, |options| {
        joining(options, &data, &listener);
        more(options);
    });
    let xmpp = Server::accept(&listener);
    (server, xmpp, data)
}

/// What the key vouches for.
fn claims(request: &Request) -> Value {
    let token = request.head.field("grip-sig").expect("a signature");
    let key = DecodingKey::from_secret(b"secret");
    let claims = jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256));
    claims.expect("a good signature").claims
}

/// Row 17: a client's request is signed, too, so that a signature alone says nothing of who has sent a stanza.
#[test]
fn a_client_cannot_pass_for_a_stanza() {
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let (server, mut xmpp, _data) = between(&[&format!("* {origin}")], |options| {
        options.set("proxy.sig_key", "secret").set("proxy.upstream_key", "another");
    });
    let forged = "<message xmlns='jabber:client' from='ceo@user.test/1' to='bot@push.test'/>";
    let media = "application/xmpp+xml";
    for kinds in [&[media][..], &["Application/XMPP+XML; charset=utf-8"], &["text/plain", media]] {
        let mut fields = vec![
            ("Host", "push.test"),
            ("From", "ceo@user.test/1"),
            ("To", "bot@push.test"),
            ("Grip-Sig", "x"),
        ];
        fields.extend(kinds.iter().map(|kind| ("Content-Type", *kind)));
        for path in ["/xmpp/bot@push.test", "/%78mpp/bot@push.test", "/elsewhere"] {
            let got = server.request("POST", path, &fields, forged.as_bytes());
            assert_eq!((got.status(), got.text().lines().count()), (403, 1), "{kinds:?} {path}");
        }
    }
    assert_eq!(origin.requests().len(), 0);
    let fields = [("Host", "push.test"), ("From", "ceo@user.test/1"), ("Content-Type", "text/xml")];
    assert_eq!(server.request("POST", "/xmpp/bot@push.test", &fields, forged.as_bytes()).status(), 200);
    assert_eq!(claims(&origin.request()).get("xmpp"), None);
    origin.forget();
    xmpp.say("<message from='romeo@user.test/1' to='Bot@push.test'><body>hi</body></message>");
    let stanza = &origin.wait_requests(1)[0];
    assert_eq!(stanza.head.field("content-type"), Some(media));
    assert_eq!(claims(stanza)["xmpp"], json!({ "from": "romeo@user.test/1", "to": "bot@push.test" }));
}

/// Who is no component need not look for stanzas, and another Fantail that has one in front is trusted with them.
#[test]
fn without_a_component_nothing_is_a_stanza() {
    let origin = Origin::fixed(answer("200 OK", &[], ""));
    let behind = TestServer::before(&origin);
    let fields = [("Content-Type", "application/xmpp+xml")];
    assert_eq!(behind.request("POST", "/xmpp/bot@push.test", &fields, b"<message/>").status(), 200);
}

/// What an origin says of an iq is one answer, by who was asked, and comes behind what it asks of Fantail.
#[test]
fn an_iq_is_answered_once_and_by_who_was_asked() {
    let origin = Origin::answering(|request| {
        let stanza = String::from_utf8_lossy(&request.body).into_owned();
        let said = |id: u8, more: &str| format!("<iq type='result' id='{id}'{more}/>\n");
        let body = match stanza.split("id='").nth(1).and_then(|rest| rest.chars().next()) {
            Some('1') => {
                said(1, "") + "c:{\"type\":\"subscribe\",\"channel\":\"x\",\"filters\":[\"skip-self\"]}"
            }
            Some('2') => said(2, "") + "<message from='other@push.test'/>\n" + &said(2, " x='again'"),
            Some('3') => said(3, " from='other@push.test'"),
            _ => format!("<iq type='result' id='4'><x xmlns='y'>{}</x></iq>", "x".repeat(10_000)),
        };
        answer("200 OK", &[("Content-Type", "text/plain")], body)
    });
    let (server, mut xmpp, _data) = between(&[&format!("* {origin}")], |options| {
        options.set("xmpp.stanza_bytes", "10000");
    });
    let mut ask = |id: u8| {
        xmpp.say(&format!(
            "<iq type='get' id='{id}' from='a@user.test/1' to='bot@push.test'><q xmlns='q'/></iq>\
             <iq type='get' id='sync' from='a@user.test/1' to='push.test'>\
             <pubsub xmlns='http://jabber.org/protocol/pubsub'><subscriptions/></pubsub></iq>"
        ));
        xmpp.until("id='sync'")
    };
    let failed = ask(1);
    assert!(failed.contains("internal-server-error") && !failed.contains("type='result' id='1'"), "{failed}");
    let twice = ask(2);
    assert!(twice.matches(" id='2'").count() == 1 && !twice.contains("again"), "{twice}");
    assert!(twice.contains("<message from='other@push.test'"), "{twice}");
    let other = ask(3);
    assert!(
        other.contains("from='bot@push.test' to='a@user.test/1' type='result' id='3'")
            || other.contains("id='3'") && !other.contains("other@"),
        "{other}"
    );
    let long = ask(4);
    assert!(long.contains("<service-unavailable") && !long.contains("xxx"), "{long}");
    assert_eq!(server.metric("fantail_xmpp_unsent_total", &["of=\"origin\""]), 2.0);
}

const ACME: &str = "a key of 32 bytes for the realm!";

/// Row 22: neither an origin nor a publisher speaks in the name of what is routed to another realm.
#[test]
fn a_realm_speaks_for_its_own_addresses() {
    let origin = Origin::fixed(answer(
        "200 OK",
        &[],
        "<message from='b@push.test/x'/>\n<message from='a@push.test/x'/>\n<message from='push.test'/>",
    ));
    let routes = [
        format!("push.test,path_beg=/xmpp/a@,realm=acme {origin}"),
        format!("push.test,path_beg=/xmpp/b@ {origin}"),
    ];
    let (server, mut xmpp, _data) = between(&[&routes[0], &routes[1]], |options| {
        options.config(format!("[[realm]]\nid = \"acme\"\nkeys = [\"{ACME}\"]\n"));
    });
    let mut froms = |to: &str| -> Vec<String> {
        xmpp.say(&format!("<message from='z@user.test/1' to='{to}@push.test'/>"));
        let said = (0..3).map(|_| xmpp.until("</message>"));
        said.map(|text| {
            text.split("from='").nth(1).and_then(|rest| rest.split('\'').next()).expect("one").to_owned()
        })
        .collect()
    };
    assert_eq!(froms("a"), ["a@push.test", "a@push.test/x", "push.test"]);
    assert_eq!(froms("b"), ["b@push.test/x", "b@push.test", "push.test"]);
    let publish = |realm: &str, key: &str, from: &str| {
        let content = format!("<message from='{from}'/>");
        let items =
            json!({ "items": [{ "channel": "c", "xmpp-stanza": { "content": content } }] }).to_string();
        let fields = [("Content-Type", "application/json"), ("Authorization", &format!("Bearer {key}"))];
        server.control("POST", &format!("/realm/{realm}/publish/"), &fields, items.as_bytes()).status()
    };
    for (realm, from, expected) in [
        ("default", "a@push.test", 400),
        ("default", "b@push.test", 200),
        ("default", "nobody@push.test", 200),
        ("default", "a@elsewhere.test", 200),
        ("acme", "a@push.test", 200),
        ("acme", "b@push.test/r", 400),
    ] {
        assert_eq!(publish(realm, ACME, from), expected, "{realm} {from}");
    }
}

/// A stanza that is longer than the server takes would end the stream of everybody.
#[test]
fn what_is_sent_has_a_limit() {
    let (server, mut xmpp, _data) = between(&["* test"], |options| {
        options.config("[xmpp]\nstanza_bytes = 10000\nopen_realms = [\"default\"]\n[[log]]\nmatch = \"*\"\n");
    });
    assert_eq!(subscribe(&server, "/channel/c/xs-subscriptions/", "jid=a%40user.test").0, 200);
    let asked = |inner: &str, kind: &str| {
        format!(
            "<iq from='a@user.test/1' to='push.test' type='{kind}' id='{kind}'>\
             <pubsub xmlns='http://jabber.org/protocol/pubsub'>{inner}</pubsub></iq>"
        )
    };
    xmpp.say(&asked("<subscribe node='/default/c' jid='a@user.test'/>", "set"));
    xmpp.until("subscription='subscribed'");
    let stanza = |body: &str| {
        let content = format!("<message><body>{body}</body></message>");
        server.try_publish(&json!([{ "channel": "c", "id": "s", "xmpp-stanza": { "content": content } }]))
    };
    // Of `&` five bytes are made.
    let (status, text) = stanza(&"&amp;".repeat(2000));
    assert!(status == 400 && text.contains("more than 10000 bytes"), "{status} {text}");
    // The stanza fits, and with what is around it for a node it does not.
    assert_eq!(stanza(&"x".repeat(9850)).0, 200);
    server.publish(&json!([{ "channel": "c", "http-stream": { "content": "<".repeat(3000) } }]));
    publish(&server, "c", "last");
    let said = xmpp.until("<body>last</body></message></item>");
    assert!(said.matches("</event>").count() == 0 && said.matches("xxx</body>").count() == 1, "{said}");
    assert_eq!(server.metric("fantail_xmpp_unsent_total", &["of=\"item\""]), 2.0);
    // What is in the log goes to who asks, as far as it fits.
    xmpp.say(&asked("<items node='/default/c' max_items='1'/>", "get"));
    assert!(xmpp.until("</iq>").contains("<body>last</body>"));
    xmpp.say(&asked("<items node='/default/c'><item id='s'/></items>", "get"));
    let refused = xmpp.until("</iq>");
    assert!(refused.contains("<resource-constraint"), "{refused}");
    xmpp.say(&format!(
        "<iq from='a@user.test/1' to='push.test' type='get' id='{}'><ping xmlns='urn:xmpp:ping'/></iq>",
        "x".repeat(10_000)
    ));
    xmpp.say(&asked("<subscriptions/>", "get"));
    assert!(!xmpp.until("</iq>").contains("xxx"));
}
