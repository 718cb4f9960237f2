use proptest::prelude::*;

use super::*;

fn one(item: &str) -> Result<Item, String> {
    let body = format!(r#"{{"items":[{item}]}}"#);
    decode(body.as_bytes(), None).map(|items| items.into_iter().next().unwrap()).map_err(|error| error.0)
}

/// An item on channel `c` with this one format.
fn format_of(name: &str, members: &str) -> Result<Item, String> {
    one(&format!(r#"{{"channel":"c","formats":{{"{name}":{{{members}}}}}}}"#))
}

fn response_of(members: &str) -> Response {
    match format_of("http-response", members).unwrap().response {
        Some(HttpResponse::Send(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn stream_content(item: Item) -> Bytes {
    match item.stream {
        Some(HttpStream::Send(content)) => content,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_python_library_sends() {
    let item = one(r#"{"id":"2","prev-id":"1","http-response":{"body":"x"},"http-stream":{"content":"s\n"},
            "ws-message":{"content":"w"},"channel":"ch"}"#)
    .unwrap();
    assert_eq!(
        (item.channel.as_str(), item.id.as_deref(), item.prev_id.as_deref()),
        ("ch", Some("2"), Some("1"))
    );
    assert!(matches!(item.response, Some(HttpResponse::Send(Response { code: 200, .. }))));
    assert!(matches!(&item.message, Some(WsMessage::Send { kind: WsKind::Text, content }) if content == "w"));
    assert_eq!(stream_content(item), "s\n");
}

#[test]
fn what_the_javascript_library_sends() {
    let item = one(
        r#"{"formats":{"http-stream":{"content-bin":"/v8="},"ws-message":{"content-bin":"/v8="},
            "http-response":{"code":"201","headers":{"X-A":"1"},"body":"b"}},"id":"2","prev-id":"1","channel":"ch"}"#,
    )
    .unwrap();
    assert!(matches!(item.response, Some(HttpResponse::Send(Response { code: 201, .. }))));
    assert!(matches!(item.message, Some(WsMessage::Send { kind: WsKind::Binary, .. })));
    assert_eq!(stream_content(item), [0xfe, 0xff][..]);
}

#[test]
fn requests_that_are_refused() {
    for (body, text) in [
        ("", "Body is not valid JSON."),
        ("{\"items\":[}", "Body is not valid JSON."),
        ("[]", "Invalid format."),
        ("{}", "Invalid format: object does not contain 'items'"),
        (r#"{"items":null}"#, "Invalid format: object contains 'items' with wrong type"),
        (r#"{"items":[1]}"#, "Invalid format: publish item object is not an object"),
    ] {
        assert_eq!(decode(body.as_bytes(), None).unwrap_err().0, text, "{body}");
    }
    assert!(decode(b"{\"items\":[\"\xff\"]}", None).is_err());
    assert!(decode(br#"{"items":[]}"#, None).unwrap().is_empty());
}

#[test]
fn items_that_are_refused() {
    const STREAM: &str = r#""http-stream":{"content":""}"#;
    for (members, text) in [
        (r#""id":"1""#, "publish item object does not contain 'channel'"),
        (r#""channel":null"#, "publish item object contains 'channel' with wrong type"),
        (r#""channel":"c""#, "no formats specified"),
        (r#""channel":"c","formats":{}"#, "no formats specified"),
        (r#""channel":"c","formats":null"#, "publish item object contains 'formats' with wrong type"),
        (r#""channel":"c","http-stream":null"#, "'http-stream' is not an object"),
        (r#""channel":"c",STREAM,"id":null"#, "publish item object contains 'id' with wrong type"),
        (r#""channel":"c",STREAM,"prev-id":1"#, "publish item object contains 'prev-id' with wrong type"),
        (r#""channel":"c",STREAM,"meta":null"#, "publish item object contains 'meta' with wrong type"),
        (r#""channel":"c",STREAM,"meta":{"k":1}"#, "'meta' contains 'k' with wrong type"),
        (r#""channel":"c",STREAM,"size":-1"#, "publish item object contains 'size' with invalid value"),
        (r#""channel":"c",STREAM,"size":"x""#, "publish item object contains 'size' with wrong type"),
        (r#""channel":"c",STREAM,"no-seq":1"#, "publish item object contains 'no-seq' with wrong type"),
    ] {
        let item = format!("{{{}}}", members.replace("STREAM", STREAM));
        assert_eq!(one(&item).unwrap_err(), format!("Invalid format: {text}"), "{item}");
    }
}

#[test]
fn formats_that_are_refused() {
    for (format, members, text) in [
        ("http-response", "", "'http-response' does not contain 'body', 'body-bin', or 'body-patch'"),
        ("http-response", r#""body":1"#, "'http-response' contains 'body' with wrong type"),
        (
            "http-response",
            r#""body-bin":null,"body":"""#,
            "'http-response' contains 'body-bin' with wrong type",
        ),
        ("http-response", r#""body-patch":{}"#, "'http-response' contains 'body-patch' with invalid value"),
        ("http-response", r#""body":"","code":"x""#, "'http-response' contains 'code' with wrong type"),
        ("http-response", r#""body":"","code":199"#, "'http-response' contains 'code' with invalid value"),
        ("http-response", r#""body":"","code":1000"#, "'http-response' contains 'code' with invalid value"),
        ("http-response", r#""body":"","code":-1"#, "'http-response' contains 'code' with invalid value"),
        ("http-response", r#""body":"","reason":1"#, "'http-response' contains 'reason' with wrong type"),
        ("http-response", r#""body":"","headers":1"#, "'http-response' contains 'headers' with wrong type"),
        ("http-response", r#""body":"","headers":[1]"#, "headers contains element with wrong type"),
        (
            "http-response",
            r#""body":"","headers":[["a"]]"#,
            "headers contains list with wrong number of elements",
        ),
        ("http-response", r#""body":"","headers":[[1,"a"]]"#, "header contains name element with wrong type"),
        (
            "http-response",
            r#""body":"","headers":[["a",1]]"#,
            "header contains value element with wrong type",
        ),
        ("http-response", r#""body":"","headers":{"A":1}"#, "headers contains 'A' with wrong type"),
        ("http-stream", "", "'http-stream' does not contain 'content' or 'content-bin'"),
        ("http-stream", r#""action":"jump""#, "'http-stream' contains 'action' with unknown value"),
        ("http-stream", r#""action":null"#, "'http-stream' contains 'action' with wrong type"),
        (
            "http-stream",
            r#""content":"","content-filters":1"#,
            "'http-stream' contains 'content-filters' with wrong type",
        ),
        ("ws-message", "", "'ws-message' does not contain 'content' or 'content-bin'"),
        ("ws-message", r#""type":"text","content-bin":"/w==""#, "'ws-message' of type text is not UTF-8"),
        ("ws-message", r#""type":"x","content":"""#, "'ws-message' contains 'type' with unknown value"),
        ("ws-message", r#""action":"close","code":-1"#, "'ws-message' contains 'code' with invalid value"),
        ("ws-message", r#""action":"close","code":"x""#, "'ws-message' contains 'code' with wrong type"),
        ("ws-message", r#""action":"close","reason":1"#, "'ws-message' contains 'reason' with wrong type"),
    ] {
        assert_eq!(format_of(format, members).unwrap_err(), format!("Invalid format: {text}"), "{members}");
    }
}

#[test]
fn one_bad_item_refuses_all() {
    let good = r#"{"channel":"c","http-stream":{"content":"x"}}"#;
    assert!(decode(format!(r#"{{"items":[{good},{good}]}}"#).as_bytes(), None).is_ok());
    assert!(decode(format!(r#"{{"items":[{good},{{}}]}}"#).as_bytes(), None).is_err());
}

#[test]
fn items_of_a_request_have_a_limit() {
    let many = |count: usize| {
        let item = r#"{"channel":"c","fpp":1}"#;
        decode(format!(r#"{{"items":[{}]}}"#, vec![item; count].join(",")).as_bytes(), None)
    };
    assert_eq!(many(MAX_ITEMS).unwrap().len(), MAX_ITEMS);
    assert_eq!(many(MAX_ITEMS + 1).unwrap_err().to_string(), "Invalid format: more than 10000 items");
}

#[test]
fn nothing_of_an_item_can_split_a_head() {
    for members in [
        r#""body":"","headers":{"X-A":"1\r\nSet-Cookie: a"}"#,
        r#""body":"","headers":{"X-A":"1\nx"}"#,
        r#""body":"","headers":{"X-A":"1\u0000"}"#,
        r#""body":"","headers":{"X-A\r\nX-B":"1"}"#,
        r#""body":"","headers":[["X A","1"]]"#,
        r#""body":"","headers":[["X-A:","1"]]"#,
        r#""body":"","headers":[["","1"]]"#,
        r#""body":"","headers":{"Grip-Foo":"\n"}"#,
        r#""body":"","reason":"OK\r\nX-A: 1""#,
        r#""body":"","reason":"O\u0000K""#,
    ] {
        assert!(format_of("http-response", members).is_err(), "{members}");
    }
}

#[test]
fn headers_are_kept_in_order_but_for_grip_and_framing() {
    let response = response_of(
        r#""body":"","headers":[["Set-Cookie","a"],["X-A","é"],["set-cookie","b"],["Grip-Hold","stream"],
           ["Content-Length","9"],["Transfer-Encoding","chunked"],["Connection","x"],["Content-Encoding","gzip"]]"#,
    );
    let headers: Vec<_> =
        response.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let expected: [(&str, &[u8]); 4] =
        [("set-cookie", b"a"), ("x-a", "é".as_bytes()), ("set-cookie", b"b"), ("content-encoding", b"gzip")];
    assert_eq!(headers, expected);
    assert_eq!(response.expose, None);

    let response = response_of(r#""body":"","headers":{"Grip-Expose-Headers":"X-A, x-b"}"#);
    assert!(response.headers.is_empty());
    assert_eq!(response.expose, Some(vec![HeaderName::from_static("x-a"), HeaderName::from_static("x-b")]));
}

#[test]
fn headers_are_limited() {
    let headers = |count: usize| {
        let pairs: Vec<String> = (0..count).map(|n| format!(r#"["x-{n}","1"]"#)).collect();
        format_of("http-response", &format!(r#""body":"","headers":[{}]"#, pairs.join(",")))
    };
    assert!(headers(100).is_ok());
    assert!(headers(101).is_err());
}

#[test]
fn bodies_by_preference() {
    let whole = |members: &str| match response_of(members).body {
        ResponseBody::Whole(bytes) => bytes,
        ResponseBody::Patch(patch) => panic!("{patch:?}"),
    };
    assert_eq!(whole(r#""body":"é\u0000""#), "é\0");
    assert_eq!(whole(r#""body":"x","body-bin":"aGk=","body-patch":1"#), "hi");
    assert_eq!(whole(r#""body":"x","body-patch":1"#), "x");
    let patch = response_of(r#""body-patch":[{"op":"remove","path":"/a"}]"#).body;
    assert!(matches!(patch, ResponseBody::Patch(patch) if patch.0.len() == 1));
}

#[test]
fn actions() {
    let response =
        |action: &str| format_of("http-response", &format!(r#""action":"{action}""#)).unwrap().response;
    assert!(matches!(response("hint"), Some(HttpResponse::Hint)));
    assert!(matches!(response("close"), Some(HttpResponse::Close)));
    assert!(matches!(response("refresh"), Some(HttpResponse::Refresh)));
    let stream = |members: &str| format_of("http-stream", members).unwrap().stream;
    assert!(matches!(
        stream(r#""action":"close","content":1,"content-filters":["x"]"#),
        Some(HttpStream::Close)
    ));
    assert!(
        matches!(stream(r#""action":"send","content":"""#), Some(HttpStream::Send(content)) if content.is_empty())
    );
    let close = |members: &str| match format_of("ws-message", &format!(r#""action":"close"{members}"#)) {
        Ok(Item { message: Some(WsMessage::Close { code, reason }), .. }) => (code, reason),
        other => panic!("{other:?}"),
    };
    assert_eq!(close(""), (None, String::new()));
    assert_eq!(close(r#","code":0"#), (None, String::new()));
    assert_eq!(close(r#","code":4000,"reason":"bye""#), (Some(4000), "bye".into()));
    let ping = format_of("ws-message", r#""type":"ping""#).unwrap().message;
    assert!(matches!(ping, Some(WsMessage::Send { kind: WsKind::Ping, content }) if content.is_empty()));
    let text = format_of("ws-message", r#""type":"text","content-bin":"aGk=""#).unwrap().message;
    assert!(matches!(text, Some(WsMessage::Send { kind: WsKind::Text, content }) if content == "hi"));
}

#[test]
fn the_channel_of_the_url() {
    let decode = |members: &str| {
        let body = format!(r#"{{"items":[{{{members}"http-stream":{{"content":""}}}}]}}"#);
        decode(body.as_bytes(), Some("url"))
    };
    assert_eq!(decode("").unwrap()[0].channel, "url");
    assert_eq!(decode(r#""channel":"url","#).unwrap()[0].channel, "url");
    assert!(decode(r#""channel":"other","#).is_err());
    assert!(decode(r#""channel":null,"#).is_err());
}

#[test]
fn foreign_formats_deliver_nothing() {
    for item in [
        r#"{"channel":"c","formats":{"http-request":{"body":""}}}"#,
        r#"{"channel":"c","formats":{"carrier-pigeon":1}}"#,
        r#"{"channel":"c","json-object":[1]}"#,
        r#"{"channel":"c","fpp":null}"#,
    ] {
        let item = one(item).unwrap();
        assert!(item.response.is_none() && item.stream.is_none() && item.message.is_none());
    }
}

#[test]
fn a_stanza_is_one_or_refused() {
    let item = one(r#"{"channel":"c","formats":{"xmpp-stanza":{"content":"<message to='a@b'/>"}}}"#).unwrap();
    assert!(item.stanza.is_some_and(|stanza| stanza.to.is_some()));
    assert!(one(r#"{"channel":"c","xmpp-stanza":{"action":"close"}}"#).unwrap().stanza.is_none());
    for (content, why) in [
        ("\"<a/>\"", "the content of 'xmpp-stanza' is no message, presence or iq"),
        ("\"<message>\"", "the content of 'xmpp-stanza' ends too early"),
        ("1", "'xmpp-stanza' contains 'content' with wrong type"),
    ] {
        let body = format!(r#"{{"channel":"c","xmpp-stanza":{{"content":{content}}}}}"#);
        let refused = one(&body).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    assert!(one(r#"{"channel":"c","xmpp-stanza":{}}"#).is_err());
}

#[test]
fn the_rest_of_an_item() {
    let item = one(
        r#"{"channel":"","http-stream":{"content":"x"},"meta":{"a":"1","b":"2"},"size":"3","no-seq":true,"code":5}"#,
    )
    .unwrap();
    assert_eq!(item.meta, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!((item.size, item.no_seq, item.channel.as_str()), (Some(3), true, ""));
}

proptest! {
    #[test]
    fn decoding_never_panics(body: Vec<u8>) {
        let _decoded = decode(&body, None);
    }

    #[test]
    fn members_of_any_type_never_panic(
        format in "http-response|http-stream|ws-message",
        members in proptest::collection::vec((
            "action|code|reason|headers|body|body-bin|body-patch|content|content-bin|content-filters|type",
            r#"1|-1|1e9|null|\[\]|\{\}|"send"|"close"|"hint"|"ping"|""|"\\n"|\[\["a","b"\]\]|\[\{"op":"remove","path":"/a"\}\]"#,
        ), 0..5),
    ) {
        let members: Vec<String> = members.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        let _decoded = format_of(&format, &members.join(","));
    }

    #[test]
    fn content_comes_back(content in ".{0,40}") {
        let content_json = serde_json::to_string(&content).unwrap();
        let item = format_of("http-stream", &format!(r#""content":{content_json}"#)).unwrap();
        prop_assert_eq!(stream_content(item), content);
    }
}

#[test]
fn requests_of_webhooks() {
    let request = |members: &str| format_of("http-request", members).map(|item| item.request);
    let plain = request(
        r#""body":"x","headers":{"ETag":"1","Host":"h","Webhook-Id":"1","Connection":"x","Grip-Sig":"s"}"#,
    );
    let plain = plain.unwrap().unwrap();
    assert_eq!((plain.method.as_str(), &plain.body[..]), ("POST", &b"x"[..]));
    assert_eq!(plain.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["etag"]);
    let other = request(r#""method":"PURGE","body-bin":"/w==""#).unwrap().unwrap();
    assert_eq!((other.method.as_str(), &other.body[..]), ("PURGE", &b"\xff"[..]));
    assert!(request("").unwrap().unwrap().body.is_empty());
    assert!(request(r#""action":"close""#).unwrap().is_none());
    for method in ["", "CONNECT", "TRACE", "A B", "A\\r\\n", "X-LONG-LONG-LONG-LONG-LONG-LONG-LONG"] {
        assert!(request(&format!(r#""method":"{method}""#)).is_err(), "{method}");
    }
    assert!(request(r#""method":1"#).is_err() && request(r#""body":1"#).is_err());
}
