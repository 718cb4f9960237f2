//! What entities ask of the component itself, what it answers, and when what they are subscribed to ends.

use serde_json::Value;

use crate::{
    harness::TestServer,
    xmpp::{Server, publish, subscribe},
    xmpp_origins::between,
};

const PUBSUB: &str = "http://jabber.org/protocol/pubsub";

/// Asks as an entity, and reads an answer with something in it.
fn ask(xmpp: &mut Server, from: &str, to: &str, kind: &str, inner: &str) -> String {
    xmpp.say(&format!("<iq from='{from}' to='{to}' type='{kind}' id='1'>{inner}</iq>"));
    xmpp.until("</iq>")
}

fn pubsub(inner: &str) -> String {
    format!("<pubsub xmlns='{PUBSUB}'>{inner}</pubsub>")
}

fn owner(inner: &str) -> String {
    format!("<pubsub xmlns='{PUBSUB}#owner'>{inner}</pubsub>")
}

fn disco(what: &str, node: &str) -> String {
    format!("<query xmlns='http://jabber.org/protocol/disco#{what}' node='{node}'/>")
}

const PING: &str = "<ping xmlns='urn:xmpp:ping'/>";

/// The conditions of RFC 6120, and of XEP-0060, for what cannot be done.
#[test]
fn what_cannot_be_done_has_its_condition() {
    let (_server, mut xmpp, _data) = between(&["* test"], |options| {
        options.config("[xmpp]\nsubscriptions_per_jid = 1\nopen_realms = [\"default\"]\n");
    });
    let subscribe = pubsub("<subscribe node='/default/a' jid='z@user.test'/>");
    let done = ask(&mut xmpp, "z@user.test/1", "push.test", "set", &subscribe);
    assert!(done.contains("subscription='subscribed'"), "{done}");
    for (kind, inner, wanted) in [
        (
            "set",
            pubsub("<unsubscribe node='/default/b' jid='z@user.test'/>"),
            &["<unexpected-request", "<not-subscribed"][..],
        ),
        ("set", pubsub("<unsubscribe node='/default/a' jid='y@user.test'/>"), &["<forbidden"]),
        (
            "set",
            pubsub("<subscribe node='/default/a' jid='y@user.test'/>"),
            &["<bad-request", "<invalid-jid"],
        ),
        (
            "set",
            pubsub("<subscribe node='/default/b' jid='z@user.test'/>"),
            &["<policy-violation", "<too-many-subscriptions"],
        ),
        ("set", pubsub("<subscribe jid='z@user.test'/>"), &["<bad-request", "<nodeid-required"]),
        ("set", pubsub("<subscribe node='/default/a'/>"), &["<bad-request", "<jid-required"]),
        ("set", pubsub("<subscribe node='/acme/a' jid='z@user.test'/>"), &["<not-allowed", "<closed-node"]),
        (
            "set",
            pubsub("<create node='/default/a'/>"),
            &["<feature-not-implemented", "feature='create-nodes'"],
        ),
        (
            "set",
            owner("<delete node='/default/a'/>"),
            &["<feature-not-implemented", "feature='delete-nodes'"],
        ),
        (
            "get",
            owner("<configure node='/default/a'/>"),
            &["<feature-not-implemented", "feature='config-node'"],
        ),
        ("get", disco("items", "none"), &["<item-not-found"]),
        ("get", String::new(), &["<bad-request"]),
        ("get", PING.repeat(2), &["<bad-request"]),
    ] {
        let refused = ask(&mut xmpp, "z@user.test/1", "push.test", kind, &inner);
        assert!(wanted.iter().all(|part| refused.contains(part)), "{inner}: {refused}");
        // What the operator has to know is in the log alone.
        assert!(!refused.contains("xmpp."), "{refused}");
    }
    let nothing = ask(&mut xmpp, "z@user.test/1", "bot@push.test", "get", "");
    assert!(nothing.contains("<bad-request"), "{nothing}");
}

/// What the component says of itself, and of its command.
#[test]
fn what_there_is_can_be_found() {
    let (_server, mut xmpp, _data) = between(&["* test"], |options| {
        options.config("[xmpp]\nadmins = [\"ops@user.test\"]\n");
    });
    for (action, wanted) in
        [("prev", "<bad-action"), ("dance", "<malformed-action"), ("complete", "<bad-payload")]
    {
        let command = format!(
            "<command xmlns='http://jabber.org/protocol/commands' node='publish' action='{action}'/>"
        );
        let refused = ask(&mut xmpp, "ops@user.test/1", "push.test", "set", &command);
        assert!(refused.contains("<bad-request") && refused.contains(wanted), "{action}: {refused}");
    }
    let commands = disco("info", "http://jabber.org/protocol/commands");
    let list = ask(&mut xmpp, "ops@user.test/1", "push.test", "get", &commands);
    assert!(list.contains("category='automation' type='command-list'"), "{list}");
    let info = ask(&mut xmpp, "z@user.test/1", "push.test", "get", &disco("info", ""));
    assert!(info.contains("category='pubsub'") && !info.contains("retrieve-items"), "without a log: {info}");
}

/// Servers know addresses that are none here, and no capitals before the `@`.
#[test]
fn addresses_are_those_of_servers() {
    let (server, mut xmpp, _data) = between(&["* test"], |options| {
        options.config(
            "[xmpp]\nadmins = [\"ops@user.test\"]\n\
             [[realm]]\nid = \"ACME\"\nkeys = [\"a key of 32 bytes for the realm!\"]\n",
        );
    });
    let odd = ask(&mut xmpp, "z@user.test/&#x85;", "push.test", "get", PING);
    assert!(odd.contains("<jid-malformed"), "{odd}");
    xmpp.say(&format!("<iq from='z@user.test/Phone&#x1f4f1;' to='push.test' type='get' id='1'>{PING}</iq>"));
    let new = xmpp.until("/>");
    assert!(new.contains("type='result'") && new.contains("Phone\u{1f4f1}"), "{new}");
    xmpp.say("<message from='ops@user.test/1' to='admin-acme@push.test'><body>publish c x</body></message>");
    assert!(xmpp.until("</message>").contains("<body>Published</body>"));
    server.wait_metric("fantail_xmpp_refused_total", &["cause=\"address\""], 1.0);
}

fn shown(server: &TestServer, jid: &str) -> Option<Value> {
    let answer = server.control("GET", &format!("/channel/c/xs-subscription/{jid}/"), &[], b"");
    (answer.status() == 200).then(|| serde_json::from_str(&answer.text()).expect("JSON"))
}

/// Who has the realm's key ends all that an address gets of a channel, and so does a server that has nobody there.
#[test]
fn subscriptions_end() {
    let (server, mut xmpp, _data) = between(&["* test"], |options| {
        options.config("[xmpp]\nopen_realms = [\"default\"]\n");
    });
    let rest = |form: &str| subscribe(&server, "/channel/c/xs-subscriptions/", form);
    let node = |xmpp: &mut Server, who: &str, shows: &str| {
        xmpp.say(&format!(
            "<iq from='{who}' to='push.test' type='set' id='1'><pubsub xmlns='{PUBSUB}'>\
             <subscribe node='/default/c' jid='{who}'/>{shows}</pubsub></iq>"
        ));
        xmpp.until("subscription='subscribed'");
    };
    // What is of the component's own domain would come back.
    assert_eq!(rest("jid=bot%40push.test").0, 400);
    node(&mut xmpp, "a@user.test", "");
    assert_eq!(rest("jid=a%40user.test").0, 200);
    assert_eq!(server.control("DELETE", "/channel/c/xs-subscription/a%40user.test/", &[], b"").status(), 200);
    assert_eq!(shown(&server, "a%40user.test"), None);
    assert_eq!(server.control("DELETE", "/channel/c/xs-subscription/a%40user.test/", &[], b"").status(), 404);
    // With each resource, and in all channels of a realm; other addresses are others.
    node(&mut xmpp, "a@user.test/1", "");
    node(&mut xmpp, "ab@user.test", "");
    assert_eq!(subscribe(&server, "/channel/d/xs-subscriptions/", "jid=a%40user.test").0, 200);
    let all = |method: &str, jid: &str| {
        let answer = server.control(method, &format!("/realm/default/xs-subscriber/{jid}/"), &[], b"");
        (answer.status(), answer.text())
    };
    let found = |jid: &str| {
        let list: Value = serde_json::from_str(&all("GET", jid).1).expect("JSON");
        let rows = list["subscriptions"].as_array().expect("a list").clone();
        let mut rows: Vec<_> =
            rows.iter().map(|row| format!("{} {} {}", row["jid"], row["channel"], row["node"])).collect();
        rows.sort();
        rows.join(", ").replace('"', "")
    };
    assert_eq!(found("a%40user.test"), "a@user.test d false, a@user.test/1 c true");
    assert_eq!(found("a%40user.test%2F1"), "a@user.test/1 c true");
    assert_eq!(all("DELETE", "a%40user.test").0, 200);
    assert_eq!((all("GET", "a%40user.test").0, all("DELETE", "a%40user.test").0), (404, 404));
    assert_eq!(found("ab%40user.test"), "ab@user.test c true");
    assert_eq!(all("PUT", "a%40user.test").0, 405);
    // One wish does not silence the other.
    assert_eq!(rest("jid=a%40user.test").0, 200);
    node(
        &mut xmpp,
        "a@user.test",
        "<options><x xmlns='jabber:x:data' type='submit'><field var='pubsub#show-values'><value>dnd</value></field></x></options>",
    );
    assert_eq!(shown(&server, "a%40user.test").expect("it is there").get("presence"), None);
    publish(&server, "c", "here");
    xmpp.until("<body>here</body></message></item>");
    // There may be somebody yet, or at another address; then there is nobody.
    for (from, condition) in
        [("a@user.test", "remote-server-not-found"), ("a@user.test/1", "gone"), ("a@user.test", "gone")]
    {
        assert!(shown(&server, "a%40user.test").is_some(), "{from} {condition}");
        xmpp.say(&format!(
            "<message from='{from}' to='push.test' type='error'><error type='cancel'>\
             <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>\
             <iq from='{from}' to='push.test' type='get' id='sync'><ping xmlns='urn:xmpp:ping'/></iq>"
        ));
        xmpp.until("id='sync'");
    }
    server.wait_metric("fantail_xmpp_ended_total", &[], 1.0);
    assert_eq!(shown(&server, "a%40user.test"), None);
}
