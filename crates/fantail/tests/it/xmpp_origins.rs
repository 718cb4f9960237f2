//! Stanzas as requests to origins: what proves that a request is one, and what of an answer is sent.

use std::net::TcpListener;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::{
    harness::{Options, Origin, Request, TestServer, answer},
    xmpp::{Server, joining},
};

/// Fantail between an XMPP server and an origin; both must be kept.
pub fn between(origin: &Origin, more: impl FnOnce(&mut Options)) -> (TestServer, Server, tempfile::TempDir) {
    let (data, listener) =
        (tempfile::tempdir().expect("a folder"), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let server = TestServer::start(&[&format!("* {origin}")], |options| {
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
    let (server, mut xmpp, _data) = between(&origin, |options| {
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
