use proptest::prelude::*;

use super::*;

fn text(content: &str) -> Message {
    Message { kind: WsKind::Text, content: content.to_owned().into(), fragmented: false }
}

/// What a JSON text behind `c:` is.
fn heard(json: &str) -> Verdict {
    text(&format!("c:{json}")).classify(Some(b"m:"))
}

#[test]
fn data_instructions_and_neither() {
    use WsKind::{Binary, Ping, Pong, Text};
    enum Is {
        Data(&'static str),
        Control,
        Dropped(super::Dropped),
    }
    use Is::*;
    const DETACH: &str = r#"c:{"type":"detach"}"#;
    let table: [(Option<&str>, WsKind, &'static str, Is); 17] = [
        (Some("m:"), Text, "m:hi", Data("hi")),
        (Some("m:"), Binary, "m:hi", Data("hi")),
        (Some("m:"), Text, "m:", Data("")),
        (Some("m:"), Text, "m:c:{}", Data("c:{}")),
        (Some("m:"), Text, "hi", Dropped(super::Dropped::NoPrefix)),
        (Some("m:"), Text, "", Dropped(super::Dropped::NoPrefix)),
        (Some("m:"), Binary, DETACH, Dropped(super::Dropped::NoPrefix)),
        (Some("m:"), Text, DETACH, Control),
        (Some(""), Text, DETACH, Control),
        (Some("c:"), Text, DETACH, Control),
        (Some(""), Binary, DETACH, Data(DETACH)),
        (Some(""), Text, "", Data("")),
        (Some("é"), Text, "éa", Data("a")),
        (None, Text, DETACH, Data(DETACH)),
        (None, Binary, "hi", Data("hi")),
        (Some("m:"), Ping, "c:", Data("c:")),
        (Some("m:"), Pong, "hi", Data("hi")),
    ];
    for (prefix, kind, content, expected) in table {
        let message = Message { kind, content: content.into(), fragmented: false };
        let expected = match expected {
            Data(content) => Verdict::Data(content.into()),
            Control => Verdict::Control(super::Control::Detach),
            Dropped(why) => Verdict::Dropped(why),
        };
        assert_eq!(message.classify(prefix.map(str::as_bytes)), expected, "{prefix:?} {kind:?} {content}");
    }
}

#[test]
fn fragments_and_long_messages_instruct_nothing() {
    let fragmented = |content: &str| Message { fragmented: true, ..text(content) };
    assert_eq!(fragmented("m:hi").classify(Some(b"m:")), Verdict::Data("hi".into()));
    assert_eq!(
        fragmented(r#"c:{"type":"detach"}"#).classify(Some(b"")),
        Verdict::Dropped(Dropped::Fragmented)
    );
    let filled = |length: usize| format!(r#"{{"type":"detach","x":"{}"}}"#, "x".repeat(length - 26));
    assert_eq!(heard(&filled(MAX_CONTROL_BYTES)), Verdict::Control(Control::Detach));
    assert_eq!(heard(&filled(MAX_CONTROL_BYTES + 1)), Verdict::Dropped(Dropped::TooLong));
}

#[test]
fn instructions() {
    let subscribe = |filters: &[Filter], prev_id: Option<&str>| Control::Subscribe {
        channel: "a".into(),
        filters: filters.to_vec(),
        prev_id: prev_id.map(str::to_owned),
        late: None,
    };
    let meta = |value: Option<&str>| Control::SetMeta { name: "n".into(), value: value.map(str::to_owned) };
    let session = |id: Option<&str>| Control::Session { id: id.map(str::to_owned) };
    let table = [
        (r#"{"type":"subscribe","channel":"a"}"#, subscribe(&[], None)),
        (r#" {"type": "subscribe", "channel": "a", "more": 1} "#, subscribe(&[], None)),
        (
            r#"{"type":"subscribe","channel":"a","filters":["skip-self"]}"#,
            subscribe(&[Filter::SkipSelf], None),
        ),
        (
            r#"{"type":"subscribe","channel":"a","filters":["x","require-sub"]}"#,
            subscribe(&[Filter::RequireSub], None),
        ),
        (r#"{"type":"subscribe","channel":"a","prev-id":"7"}"#, subscribe(&[], Some("7"))),
        (r#"{"type":"unsubscribe","channel":"a"}"#, Control::Unsubscribe { channel: "a".into() }),
        (r#"{"type":"detach"}"#, Control::Detach),
        (r#"{"type":"session","id":"s"}"#, session(Some("s"))),
        (r#"{"type":"session","id":""}"#, session(None)),
        (r#"{"type":"session"}"#, session(None)),
        (r#"{"type":"set-meta","name":"n","value":"v"}"#, meta(Some("v"))),
        (r#"{"type":"set-meta","name":"n","value":""}"#, meta(Some(""))),
        (r#"{"type":"set-meta","name":"n"}"#, meta(None)),
        (r#"{"type":"flush-delayed"}"#, Control::FlushDelayed),
    ];
    for (json, control) in table {
        assert_eq!(heard(json), Verdict::Control(control), "{json}");
    }
}

#[test]
fn messages_that_the_origin_leaves_with_us() {
    use KeepAliveMode::{Idle, Interval};
    use WsKind::{Binary, Ping, Text};
    let keep = |kind, content: &'static [u8], timeout, mode| {
        let timeout = Duration::from_secs(timeout);
        Control::KeepAlive(Some(KeepAlive { kind, content: Bytes::from_static(content), timeout, mode }))
    };
    let delayed = |kind, content: &'static [u8], after| Control::SendDelayed {
        kind,
        content: Bytes::from_static(content),
        after: Duration::from_secs(after),
    };
    let table = [
        (r#"{"type":"keep-alive","content":"x"}"#, keep(Text, b"x", 55, Idle)),
        (r#"{"type":"keep-alive","content":"x","timeout":0}"#, keep(Text, b"x", 55, Idle)),
        (
            r#"{"type":"keep-alive","content":"x","timeout":7,"mode":"interval"}"#,
            keep(Text, b"x", 7, Interval),
        ),
        (r#"{"type":"keep-alive","content":"x","timeout":"7","mode":"other"}"#, keep(Text, b"x", 7, Idle)),
        (
            r#"{"type":"keep-alive","message-type":"binary","content-bin":"/v8="}"#,
            keep(Binary, &[0xfe, 0xff], 55, Idle),
        ),
        (r#"{"type":"keep-alive","message-type":"ping","content":""}"#, keep(Ping, b"", 55, Idle)),
        (r#"{"type":"keep-alive"}"#, Control::KeepAlive(None)),
        (r#"{"type":"keep-alive","timeout":7}"#, Control::KeepAlive(None)),
        (r#"{"type":"send-delayed","content":"x"}"#, delayed(Text, b"x", 1)),
        (r#"{"type":"send-delayed","content":"x","timeout":0}"#, delayed(Text, b"x", 0)),
        (
            r#"{"type":"send-delayed","message-type":"ping","timeout":2147483647}"#,
            delayed(Ping, b"", 2_147_483_647),
        ),
        (r#"{"type":"send-delayed"}"#, delayed(Text, b"", 1)),
    ];
    for (json, control) in table {
        assert_eq!(heard(json), Verdict::Control(control), "{json}");
    }
}

#[test]
fn invalid_instructions_say_what_is_wrong() {
    let ping = format!(r#"{{"type":"keep-alive","message-type":"ping","content":"{}"}}"#, "x".repeat(126));
    for (json, reason) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("{}", "control message does not contain 'type'"),
        (r#"{"type":1}"#, "control message contains 'type' with wrong type"),
        (r#"{"type":"publish"}"#, "unknown type 'publish'"),
        (r#"{"type":"Detach"}"#, "unknown type 'Detach'"),
        (r#"{"type":"subscribe"}"#, "control message does not contain 'channel'"),
        (r#"{"type":"subscribe","channel":""}"#, "control message contains 'channel' with invalid value"),
        (r#"{"type":"subscribe","channel":null}"#, "control message contains 'channel' with wrong type"),
        (
            r#"{"type":"subscribe","channel":"a","filters":"x"}"#,
            "control message contains 'filters' with wrong type",
        ),
        (r#"{"type":"subscribe","channel":"a","filters":[1]}"#, "filters contains value with wrong type"),
        (r#"{"type":"unsubscribe","channel":""}"#, "control message contains 'channel' with invalid value"),
        (r#"{"type":"session","id":1}"#, "control message contains 'id' with wrong type"),
        (
            r#"{"type":"set-meta","name":"","value":"v"}"#,
            "control message contains 'name' with invalid value",
        ),
        (r#"{"type":"set-meta","name":"n","value":1}"#, "control message contains 'value' with wrong type"),
        (
            r#"{"type":"keep-alive","content":"x","timeout":-1}"#,
            "control message contains 'timeout' with invalid value",
        ),
        (
            r#"{"type":"keep-alive","content":"x","timeout":2147483648}"#,
            "control message contains 'timeout' with invalid value",
        ),
        (
            r#"{"type":"send-delayed","message-type":"close"}"#,
            "control message contains 'message-type' with invalid value",
        ),
        (
            r#"{"type":"send-delayed","content-bin":"/v8="}"#,
            "control message contains 'content' with invalid value",
        ),
        (&ping, "control message contains 'content' with invalid value"),
    ] {
        assert_eq!(heard(json), Verdict::Dropped(Dropped::Invalid(reason.into())), "{json}");
    }
}

#[test]
fn filters_that_cannot_be_applied_close_the_client() {
    let subscribe =
        |filters: &str| heard(&format!(r#"{{"type":"subscribe","channel":"a","filters":[{filters}]}}"#));
    assert!(matches!(subscribe(&[r#""x""#; 5].join(",")), Verdict::Control(_)));
    assert_eq!(subscribe(&[r#""x""#; 6].join(",")), Verdict::Close(FilterError::TooMany("a".into())));
}

proptest! {
    #[test]
    fn any_text_has_a_verdict(json in r#"\{("(type|channel|filters|content|timeout)":("subscribe"|"keep-alive"|"x"|-?[0-9]{1,12}|\["x"\]|null),?){0,5}\}?"#, fragmented: bool) {
        let verdict = Message { fragmented, ..text(&format!("c:{json}")) }.classify(Some(b""));
        prop_assert!(!matches!(verdict, Verdict::Data(_)));
    }
}
