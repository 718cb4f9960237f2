use proptest::prelude::*;

use super::{
    answer::{self, Condition},
    jid::Jid,
    pubsub::{self, Shows},
    request::{self, Request, Step},
    stanza::{Kind, Stanza, StanzaError},
    stream::{self, Event, Reader},
    xml::{Element, Excess, MAX_ATTRIBUTES, MAX_DEPTH, MAX_NAMESPACE_BYTES, MAX_NODES, XmlError},
    *,
};

fn published(text: &str) -> Result<Stanza, StanzaError> {
    Stanza::published(text.as_bytes())
}

fn copy(stanza: &Stanza, from: &str, to: &str, more: &str) -> String {
    let mut out = Vec::new();
    stanza.sealed(from, more).write(to, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn addresses_are_prepared() {
    for (text, expected) in [
        ("User@Example.COM/Home", Some("user@example.com/Home")),
        ("example.com", Some("example.com")),
        ("example.com.", Some("example.com")),
        ("example.com/a/b@c", Some("example.com/a/b@c")),
        ("ÄRGER@bücher.example", Some("ärger@bücher.example")),
        ("a@[::1]", Some("a@[::1]")),
        ("", None),
        ("@example.com", None),
        ("user@", None),
        ("user@example.com/", None),
        ("us er@example.com", None),
        ("user@exa mple.com", None),
        ("a@b@c", None),
        ("a@b<c", None),
        ("a'b@c", None),
        ("a@b/\u{1}", None),
        ("a@b/\u{fffe}", None),
        ("a@b/line\nline", None),
        // Newer than the profiles: servers let them pass.
        ("Romeo@Example.COM/Phone📱", Some("romeo@example.com/Phone📱")),
        ("Ａ\u{a66e}Ａ@b/Ⅳ\u{1f4f1}Ⅳ", Some("a\u{a66e}a@b/IV\u{1f4f1}IV")),
        ("\u{1f4f1}us er@b", None),
        ("\u{1f4f1}\u{e000}@b", None),
        ("\u{1f4f1}<@b", None),
    ] {
        assert_eq!(Jid::parse(text).ok().as_ref().map(Jid::as_str), expected, "{text}");
    }
    assert!(Jid::parse(&format!("{}@b", "a".repeat(1023))).is_ok());
    assert!(Jid::parse(&format!("{}@b", "a".repeat(1024))).is_err());
    let jid = Jid::parse("u@d/r").unwrap();
    assert_eq!((jid.bare(), jid.local(), jid.domain(), jid.resource()), ("u@d", Some("u"), "d", Some("r")));
}

#[test]
fn a_stanza_is_written_anew_for_each_address() {
    let stanza = published(
        "<message xmlns='jabber:client' to='x@y' from=\"a@b\" type='chat' xml:lang='de'>\
         <body>1 &lt; 2 &amp; &#x41;</body><p:e xmlns:p='urn:p' p:k='v' k='w'><p:f/></p:e></message>",
    )
    .unwrap();
    assert_eq!(stanza.kind(), Kind::Message);
    assert_eq!(stanza.from.as_ref().map(Jid::as_str), Some("a@b"));
    let expected = "<message from='f@g' to='h@i/j&apos;&lt;' type='chat' xml:lang='de'>\
         <body>1 &lt; 2 &amp; A</body><e xmlns='urn:p' k='w' xmlns:a1='urn:p' a1:k='v'><f/></e><d/></message>";
    assert_eq!(copy(&stanza, "f@g", "h@i/j'<", "<d/>"), expected);
    assert_eq!(stanza.payload(), "<e xmlns='urn:p' k='w' xmlns:a1='urn:p' a1:k='v'><f/></e>");
    let bare = published("<message><body>x</body></message>").unwrap();
    assert_eq!(copy(&bare, "f", "t", ""), "<message from='f' to='t'><body>x</body></message>");
    assert_eq!(bare.payload(), "<message xmlns='jabber:client'><body>x</body></message>");
}

#[test]
fn what_is_no_stanza_is_refused() {
    for (text, expected) in [
        ("", "ends too early"),
        ("hello", "is not well-formed"),
        ("<message>", "ends too early"),
        ("<message><body></message></body>", "is not well-formed"),
        ("<message/><message/>", "something behind"),
        ("<message/>x", "something behind"),
        ("<?xml version='1.0'?><message/>", "processing instruction"),
        ("<!DOCTYPE m [<!ENTITY a 'b'>]><message/>", "document type"),
        ("<message>&lol;</message>", "entity"),
        ("<message><?php?></message>", "processing instruction"),
        ("<message><!-- --></message>", "comment"),
        ("<message a='1' a='2'/>", "is not well-formed"),
        ("<message xmlns='jabber:server'/>", "no message, presence or iq"),
        ("<p:message/>", "is not well-formed"),
        ("<features xmlns='jabber:client'/>", "no message, presence or iq"),
        ("<message type='error'/>", "type"),
        ("<message type='shout'/>", "type"),
        ("<iq type='result' id='1'/>", "type"),
        ("<iq type='get' id='1'/>", "is an iq without"),
        ("<iq type='get'><ping xmlns='urn:xmpp:ping'/></iq>", "is an iq without"),
        ("<iq id='1'><ping xmlns='urn:xmpp:ping'/></iq>", "is an iq without"),
        ("<message from='a b@c'/>", "not an XMPP address"),
        ("<message><xml:x/></message>", "has a name"),
        ("<message><p:x xmlns:p='http://www.w3.org/2000/xmlns/'/></message>", "has a name"),
        ("<message xmlns:p='http://www.w3.org/2000/xmlns/' p:x=''/>", "has a name"),
        ("<message><x xmlns='http://www.w3.org/2000/xmlns/'/></message>", "has a name"),
        ("<message><\u{220}/></message>", "has a name"),
        ("<message><größe/></message>", "has a name"),
        ("<message \u{10000}=''/>", "has a name"),
        ("<message><x xmlns='a&#10;b'/></message>", "has a name"),
        ("<message xmlns:p='a b' p:x=''/>", "has a name"),
        ("<message xmlns:p='u' xmlns:q='u' p:x='' q:x=''/>", "is not well-formed"),
    ] {
        let why = published(text).expect_err(text).to_string();
        assert!(why.contains(expected), "{text}: {why}");
    }
    assert!(published("<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>").is_ok());
    assert!(Stanza::said(b"<iq type='result' id='1'/>").is_ok());
    assert!(published("<message xml:lang='de'><A-b_1.2 xmlns='urn:größe'/></message>").is_ok());
}

/// Without a namespace is something else than without a declaration.
#[test]
fn no_namespace_stays_none() {
    for (text, expected) in [
        ("<x><y/></x>", "<x xmlns='jabber:client'><y/></x>"),
        (
            "<x><y xmlns='a'><z xmlns=''><w/></z></y></x>",
            "<x xmlns='jabber:client'><y xmlns='a'><z xmlns=''><w/></z></y></x>",
        ),
        ("<x xmlns='jabber:client'><y xmlns=''/></x>", "<x xmlns='jabber:client'><y xmlns=''/></x>"),
    ] {
        assert_eq!(Element::parse(text.as_bytes()).unwrap().to_xml(""), expected);
    }
    let stanza = published("<message xmlns='jabber:client'><y xmlns=''/></message>").unwrap();
    assert_eq!(
        (copy(&stanza, "f", "t", ""), stanza.payload()),
        ("<message from='f' to='t'><y xmlns=''/></message>".into(), "<y xmlns=''/>")
    );
}

/// Only what must be is escaped: the rest stays as short as it was.
#[test]
fn little_is_escaped() {
    let text = "1 > 0 \"'\t\n ]]> & < \r";
    let element = Element::new(CLIENT, "m").with("a", text).saying(text);
    let expected = "<m xmlns='jabber:client' a='1 > 0 \"&apos;&#9;&#10; ]]> &amp; &lt; &#13;'>\
                    1 > 0 \"'\t\n ]]&gt; &amp; &lt; &#13;</m>";
    assert_eq!(element.to_xml(""), expected);
    assert_eq!(Element::parse(expected.as_bytes()), Ok(element));
}

#[test]
fn a_stanza_knows_how_long_it_is() {
    for text in [
        "<message/>",
        "<iq id='1' type='get'><x xmlns='y'>&lt;</x></iq>",
        "<presence to='a@b'><show/></presence>",
    ] {
        let stanza = published(text).unwrap();
        assert_eq!(copy(&stanza, "f@g", "t", "").len(), stanza.bytes() + "f@gt".len());
    }
}

#[test]
fn limits_have_edges() {
    let nested = |n: usize| format!("{}{}", "<message>".repeat(n), "</message>".repeat(n));
    assert!(published(&nested(MAX_DEPTH)).is_ok());
    let excess = |text: String| match published(&text) {
        Err(StanzaError::Xml(XmlError::Excess(excess))) => Some(excess),
        _ => None,
    };
    assert_eq!(excess(nested(MAX_DEPTH + 1)), Some(Excess::Depth));
    assert_eq!(excess(nested(8000)), Some(Excess::Depth));
    let many = |n: usize| format!("<message>{}</message>", "<a/>".repeat(n));
    assert!(published(&many(MAX_NODES - 1)).is_ok());
    assert_eq!(excess(many(MAX_NODES)), Some(Excess::Nodes));
    let wide = |n: usize| {
        let all: String = (0..n).map(|n| format!(" a{n}=''")).collect();
        format!("<message{all}/>")
    };
    assert!(published(&wide(MAX_ATTRIBUTES)).is_ok());
    assert_eq!(excess(wide(MAX_ATTRIBUTES + 1)), Some(Excess::Attributes));
    // One long namespace, and many that have it.
    let long = |bytes: usize| format!("urn:{}", "x".repeat(bytes - 4));
    let of = |ns: &str| format!("<message><x xmlns='{ns}'>{}</x></message>", "<a/>".repeat(2000));
    let prefixed =
        |ns: &str| format!("<message><x xmlns:p='{ns}'>{}</x></message>", "<b p:a=''/>".repeat(2000));
    for form in [of(&long(MAX_NAMESPACE_BYTES + 1)), prefixed(&long(MAX_NAMESPACE_BYTES + 1))] {
        assert_eq!(excess(form), Some(Excess::Namespace));
    }
    assert_eq!(excess(of(&long(MAX_NAMESPACE_BYTES))), None);
    let long = |n: usize| format!("<message>{}</message>", "x".repeat(n - "<message></message>".len()));
    assert!(published(&long(MAX_STANZA_BYTES)).is_ok());
    assert_eq!(excess(long(MAX_STANZA_BYTES + 1)), Some(Excess::Bytes));
}

const OPEN: &str = "<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' \
     xmlns='jabber:component:accept' id='x&apos;1' from='c'>";

/// What comes of these bytes, in pieces of `step`.
fn events(text: &str, step: usize) -> (Vec<Event>, bool) {
    let (mut reader, mut events) = (Reader::default(), Vec::new());
    for piece in text.as_bytes().chunks(step) {
        let mut rest = piece;
        loop {
            match reader.read(&mut rest) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, true),
            }
        }
    }
    (events, false)
}

#[test]
fn a_stream_opens_tells_and_closes() {
    let text = format!(
        "{OPEN}<handshake/> \n <message from='a@b' to='c'><body>hi</body></message>\
         <stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>"
    );
    for step in [1, 2, 7, 1000] {
        let (events, broken) = events(&text, step);
        let [Event::Open { id }, Event::Accepted, Event::Stanza(message), Event::Failed(why), Event::Closed] =
            &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((id.as_str(), why.as_str(), broken), ("x'1", "host-unknown", false));
        assert_eq!(Kind::of(message), Some(Kind::Message));
        assert_eq!(
            message.to_xml(""),
            "<message xmlns='jabber:client' from='a@b' to='c'><body>hi</body></message>"
        );
    }
    assert_eq!(
        stream::handshake("3BF96D32", b"test"),
        "<handshake>aaee83c26aeeafcbabeabfcbcd50df997e0a2a1e</handshake>"
    );
}

#[test]
fn what_is_over_a_limit_is_passed_over_and_what_follows_is_read() {
    let head = "<message from='a@b' id='7' to='c'>";
    let deep = format!("{head}{}{}</message>", "<a>".repeat(1000), "</a>".repeat(1000));
    let long = format!("{head}<body>{}</body></message>", "x".repeat(3 * MAX_STANZA_BYTES));
    let wide = format!("{head}<a b='{}'/></message>", "x".repeat(3 * MAX_STANZA_BYTES));
    let named = format!("{head}<größe/></message>");
    let first = format!("<message id='7' from='a@b' x='{}'><a/></message>", "x".repeat(MAX_STANZA_BYTES));
    let text = format!("{OPEN}{deep}{long}{wide}{named}{first}<presence/>");
    let (events, broken) = events(&text, 4096);
    assert!(!broken);
    let excesses = events.iter().filter_map(|event| match event {
        Event::Excess(head, excess) => Some((head.attr("id"), *excess)),
        _ => None,
    });
    let expected = [Excess::Depth, Excess::Bytes, Excess::Bytes, Excess::Name, Excess::Bytes];
    assert_eq!(excesses.collect::<Vec<_>>(), expected.map(|excess| (Some("7"), excess)));
    assert!(matches!(events.last(), Some(Event::Stanza(_))), "{:?}", events.last());
}

#[test]
fn what_is_no_stream_is_broken() {
    for text in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "<stream/>",
        "<!DOCTYPE lolz [<!ENTITY lol 'lol'>]><stream:stream/>",
        &format!("{OPEN}<message>&lol;</message>"),
        &format!("{OPEN}<message></presence>"),
    ] {
        assert!(events(text, 5).1, "{text}");
    }
}

fn asked(payload: &str, of_type: &str) -> Request {
    let iq = format!("<iq type='{of_type}' id='1'>{payload}</iq>");
    Request::of(&Element::parse(iq.as_bytes()).unwrap())
}

/// A wish to subscribe with this option.
fn form(value: &str) -> String {
    format!(
        "<subscribe node='/r/c' jid='a@b'/><options><x xmlns='jabber:x:data' type='submit'>\
         <field var='pubsub#show-values'><value>{value}</value><value>away</value></field></x></options>"
    )
}

#[test]
fn requests_are_understood() {
    let pubsub = |inner: &str, of_type: &str| {
        asked(&format!("<pubsub xmlns='http://jabber.org/protocol/pubsub'>{inner}</pubsub>"), of_type)
    };
    let (node, jid) = ("/r/c".to_owned(), "a@b".to_owned());
    let shows = Shows::named("chat").unwrap().and(Shows::named("away").unwrap());
    let wrong = |ns, what| Request::Malformed(Some((ns, what)));
    let command = |action: &str| {
        asked(&format!("<command xmlns='{}' node='publish' action='{action}'/>", request::COMMANDS), "set")
    };
    for (request, expected) in [
        (asked("<ping xmlns='urn:xmpp:ping'/>", "get"), Request::Ping),
        (asked("<ping xmlns='urn:xmpp:ping'/>", "set"), Request::Unknown),
        (
            pubsub("<subscribe node='/r/c' jid='a@b'/>", "set"),
            Request::Subscribe { node: node.clone(), jid: jid.clone(), shows: Shows::ALWAYS },
        ),
        (pubsub(&form("chat"), "set"), Request::Subscribe { node: node.clone(), jid: jid.clone(), shows }),
        (pubsub(&form("bored"), "set"), wrong(pubsub::ERRORS, "invalid-options")),
        (pubsub("<subscribe jid='a@b'/>", "set"), wrong(pubsub::ERRORS, "nodeid-required")),
        (pubsub("<subscribe node='/r/c'/>", "set"), wrong(pubsub::ERRORS, "jid-required")),
        (pubsub("<items node=''/>", "get"), wrong(pubsub::ERRORS, "nodeid-required")),
        (pubsub("<nonsense/>", "get"), Request::Malformed(None)),
        (
            pubsub("<unsubscribe node='/r/c' jid='a@b'/>", "set"),
            Request::Unsubscribe { node: node.clone(), jid },
        ),
        (pubsub("<subscriptions/>", "get"), Request::Subscriptions { node: None }),
        (
            pubsub("<items node='/r/c' max_items='3'/>", "get"),
            Request::Retrieve { node: node.clone(), most: Some(3), ids: Vec::new() },
        ),
        (
            pubsub("<items node='/r/c'><item id='1'/><item id='2'/></items>", "get"),
            Request::Retrieve { node, most: None, ids: vec!["1".into(), "2".into()] },
        ),
        (pubsub("<items node='/r/c'><item/></items>", "get"), Request::Malformed(None)),
        (pubsub("<items node='/r/c' max_items='all'/>", "get"), Request::Malformed(None)),
        (pubsub("<create node='x'/>", "set"), Request::Unsupported { feature: "create-nodes" }),
        (
            asked(
                "<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><delete node='x'/></pubsub>",
                "set",
            ),
            Request::Unsupported { feature: "delete-nodes" },
        ),
        (asked("", "get"), Request::Malformed(None)),
        (asked("<ping xmlns='urn:xmpp:ping'/><x/>", "get"), Request::Malformed(None)),
        (
            asked("<query xmlns='http://jabber.org/protocol/disco#info' node=''/>", "get"),
            Request::Info { node: None },
        ),
        (command("prev"), wrong(request::COMMANDS, "bad-action")),
        (command("dance"), wrong(request::COMMANDS, "malformed-action")),
        (command("complete"), wrong(request::COMMANDS, "bad-payload")),
        (
            asked("<command xmlns='http://jabber.org/protocol/commands' node='publish'/>", "set"),
            Request::Command { node: "publish".into(), step: Step::Execute, session: None },
        ),
        (asked("<x xmlns='y'/>", "get"), Request::Unknown),
    ] {
        assert_eq!(request, expected);
    }
    assert_eq!(shows.names().collect::<Vec<_>>(), ["away", "chat"]);
    assert_eq!(pubsub::channel("/r/a/b"), Some(("r", "a/b")));
    assert!(["", "/", "/r", "/r/", "r/c", "//c"].iter().all(|node| pubsub::channel(node).is_none()));
}

#[test]
fn errors_go_back_to_who_may_get_them() {
    let error = |text: &str| {
        let stanza = Element::parse(text.as_bytes()).unwrap();
        answer::error(&stanza, Condition::Forbidden, "").map(|answer| answer.to_xml(CLIENT))
    };
    assert_eq!(
        error("<iq type='get' id='1' from='a@b' to='c'><q xmlns='x'/></iq>").unwrap(),
        "<iq type='error' id='1' from='c' to='a@b'><error type='auth'>\
         <forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
    );
    assert!(error("<message from='a@b' to='c'/>").is_some());
    for silent in [
        "<iq type='result' id='1' from='a@b'/>",
        "<message type='error' from='a@b'/>",
        "<message type='headline' from='a@b'/>",
        "<presence from='a@b'/>",
        "<message/>",
    ] {
        assert!(error(silent).is_none(), "{silent}");
    }
}

#[test]
fn a_payload_is_the_most_specific_format() {
    let payload = |formats: &str| {
        let body = format!(r#"{{"items":[{{"channel":"c","formats":{{{formats}}}}}]}}"#);
        let item = crate::item::decode(body.as_bytes(), None).unwrap().remove(0);
        pubsub::payload(&item.into())
    };
    let json = |text: &str| Some(format!("<json xmlns='urn:xmpp:json:0'>{text}</json>"));
    let stream = r#""http-stream":{"content":"hi\n"}"#;
    assert_eq!(payload(stream), json("\"hi\""));
    assert_eq!(payload(r#""http-stream":{"content":"{\"a\":1}\n"}"#), json("{\"a\":1}\n"));
    assert_eq!(payload(&format!(r#"{stream},"ws-message":{{"content":"[2]"}}"#)), json("[2]"));
    assert_eq!(payload(&format!(r#"{stream},"json-object":{{"b":[1]}}"#)), json("{\"b\":[1]}"));
    let stanza = r#""xmpp-stanza":{"content":"<message><e xmlns='x'/></message>"}"#;
    assert_eq!(payload(&format!("{stream},{stanza}")), Some("<e xmlns='x'/>".into()));
    assert_eq!(payload(r#""http-stream":{"action":"close"}"#), None);
    assert_eq!(payload(r#""http-stream":{"content-bin":"/w=="}"#), None);
}

const PIECES: [&str; 16] = [
    "<a>",
    "</a>",
    "<a/>",
    "<b xmlns=''>",
    "</b>",
    "<b xmlns='urn:b'>",
    "<p:c p:d='1' d='2'/>",
    "<xml:e/>",
    "<e xml:lang='f'/>",
    "<q:g xmlns:q='http://www.w3.org/2000/xmlns/'/>",
    "<\u{220}/>",
    "]]&gt;",
    "'\"\t\r\n",
    "&#13;&#9;",
    "text",
    "<h xmlns='a b'/>",
];

proptest! {
    #[test]
    fn any_text_is_written_so_that_it_is_read_again(text in "[^\u{0}-\u{8}\u{b}\u{c}\u{e}-\u{1f}\u{fffe}\u{ffff}]{0,40}", name in "[a-z]{1,8}") {
        let element = Element::new(CLIENT, "message").with(&name, &text).containing(
            Element::new("urn:x", "x").saying(&format!("{text}.")),
        );
        prop_assert_eq!(Element::parse(element.to_xml("").as_bytes()), Ok(element));
    }

    #[test]
    fn what_is_taken_is_read_again_as_it_was(pieces in prop::collection::vec(0..PIECES.len(), 1..12)) {
        let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
        let text = format!("<message xmlns:p='urn:p'>{text}</message>");
        if let Ok(element) = Element::parse(text.as_bytes()) {
            prop_assert_eq!(Element::parse(element.to_xml("").as_bytes()), Ok(element));
            let stanza = published(&text).unwrap();
            let again = published(&copy(&stanza, "f", "t", "")).unwrap();
            prop_assert_eq!(copy(&again, "f", "t", ""), copy(&stanza, "f", "t", ""));
            prop_assert!(Element::parse(stanza.payload().as_bytes()).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>, text in "[<>/a-c'=& ]{0,60}") {
        drop((Element::parse(&bytes), Element::parse(text.as_bytes()), Jid::parse(&text)));
        drop(events(&format!("{OPEN}{text}"), 3));
    }

    #[test]
    fn a_prepared_address_stays_what_it_is(text in "\\PC{1,12}@[a-zA-ZäÖß.]{1,12}(/\\PC{1,12})?") {
        if let Ok(jid) = Jid::parse(&text) {
            let again = Jid::parse(jid.as_str());
            // What the profiles of stringprep make of some characters is not stable itself.
            if let Ok(again) = again {
                prop_assert_eq!(again.is_bare(), jid.is_bare());
            }
        }
    }
}
