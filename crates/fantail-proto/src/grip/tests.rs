use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    lines.iter().map(pair).collect()
}

fn parse(lines: &[(&str, &str)]) -> Result<Instruct, String> {
    Instruct::parse(200, "OK", &headers(lines), Bytes::from_static(b"body")).map_err(|error| error.0)
}

fn parse_json(body: &str) -> Result<Instruct, String> {
    let headers = headers(&[("Content-Type", "application/grip-instruct"), ("X-Origin", "1")]);
    Instruct::parse(200, "Fine", &headers, Bytes::copy_from_slice(body.as_bytes())).map_err(|error| error.0)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn channels(instruct: &Instruct) -> Vec<(&str, Option<&str>, &[Filter])> {
    let channels = instruct.channels.iter();
    channels
        .map(|channel| (channel.name.as_str(), channel.prev_id.as_deref(), channel.filters.as_slice()))
        .collect()
}

fn keep_alive(value: &str) -> Result<Option<KeepAlive>, String> {
    match parse(&[("Grip-Hold", "stream"), ("Grip-Keep-Alive", value)])?.hold {
        Some(Hold::Stream { keep_alive }) => Ok(keep_alive),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_makes_an_answer_an_instruct() {
    for (name, value, expected) in [
        ("Content-Type", "application/grip-instruct", true),
        ("Content-Type", "application/grip-instruct; charset=utf-8", true),
        ("Content-Type", "application/grip-instructs", false),
        ("Content-Type", "Application/Grip-Instruct", false),
        ("Grip-Foo", "", true),
        ("grip-channel", "", true),
        ("X-Grip-Hold", "stream", false),
        ("Gripe", "1", false),
    ] {
        assert_eq!(is_instruct(&headers(&[(name, value)])), expected, "{name}: {value}");
    }
}

#[test]
fn holds() {
    let hold = |lines: &[(&str, &str)]| parse(lines).map(|instruct| instruct.hold);
    assert_eq!(hold(&[("Grip-Channel", "a")]), Ok(None));
    assert_eq!(hold(&[("Grip-Hold", "response")]), Ok(Some(Hold::Response { timeout: seconds(55) })));
    assert_eq!(hold(&[("Grip-Hold", "stream")]), Ok(Some(Hold::Stream { keep_alive: None })));
    for (timeout, expected) in [("20", 20), ("5", 5), ("1", 5), ("0", 5), ("2147483647", 2_147_483_647)] {
        let hold = hold(&[("Grip-Hold", "response"), ("Grip-Timeout", timeout)]);
        assert_eq!(hold, Ok(Some(Hold::Response { timeout: seconds(expected) })), "{timeout}");
    }
    let error = "Grip-Hold must be set to either 'response' or 'stream'";
    for mode in ["", "Stream", "ws"] {
        assert_eq!(hold(&[("Grip-Hold", mode)]), Err(error.into()));
    }
    for timeout in ["", "x", "1.5", "2147483648"] {
        assert_eq!(hold(&[("Grip-Timeout", timeout)]), Err("failed to parse Grip-Timeout".into()));
    }
    assert_eq!(hold(&[("Grip-Timeout", "-1")]), Err("Grip-Timeout has invalid value".into()));
}

#[test]
fn channels_of_headers() {
    use Filter::{RequireSub, SkipSelf};
    let instruct = parse(&[
        ("Grip-Channel", r#"a, b; prev-id="x,;y""#),
        ("Grip-Channel", "é; filter=skip-self; filter=unknown; filter=require-sub; Prev-Id=7"),
        ("Grip-Channel", ""),
    ])
    .unwrap();
    let expected: [(&str, Option<&str>, &[Filter]); 3] =
        [("a", None, &[]), ("b", Some("x,;y"), &[]), ("é", Some("7"), &[SkipSelf, RequireSub])];
    assert_eq!(channels(&instruct), expected);
}

#[test]
fn filters_are_counted_and_known() {
    let filters = |count: usize| "; filter=skip-self".repeat(count);
    assert!(parse(&[("Grip-Channel", &format!("a{}", filters(5)))]).is_ok());
    let error = parse(&[("Grip-Channel", &format!("a{}", filters(6)))]).unwrap_err();
    assert_eq!(error, "too many filters for channel 'a'");

    let json = |filters: &[&str]| {
        parse_json(&serde_json::json!({"hold":{"channels":[{"name":"a","filters":filters}]}}).to_string())
    };
    assert!(json(&["x"; 5]).is_ok());
    assert_eq!(json(&["x"; 6]).unwrap_err(), "too many filters for channel 'a'");

    assert_eq!(json(&["http-check", "other"]).unwrap().channels[0].filters, [Filter::HttpCheck]);
}

#[test]
fn keep_alives() {
    use KeepAliveMode::{Idle, Interval};
    for (value, content, timeout, mode) in [
        ("ping", &b"ping"[..], 55, Idle),
        (r"a\n ; timeout=20", br"a\n", 20, Idle),
        (r"\n; format=cstring; timeout=0", b"\n", 1, Idle),
        (r":\r\n\\\x00\xfF\q; format=cstring; mode=interval", b":\r\n\\\x00\xff", 55, Interval),
        ("/v8=; format=base64; mode=idle", b"\xfe\xff", 55, Idle),
        ("a,b; format=raw", b"a,b", 55, Idle),
        ("\"q\"; timeout=\"7\"", b"\"q\"", 7, Idle),
    ] {
        let expected =
            KeepAlive { content: Bytes::copy_from_slice(content), timeout: seconds(timeout), mode };
        assert_eq!(keep_alive(value), Ok(Some(expected)), "{value}");
    }
    for nothing in ["", r"\q; format=cstring", "=; format=base64"] {
        assert_eq!(keep_alive(nothing), Ok(None), "{nothing}");
    }
    for (value, error) in [
        ("; timeout=5", "Grip-Keep-Alive cannot be empty"),
        (r"a\; format=cstring", "failed to parse Grip-Keep-Alive cstring format"),
        (r"a\x1; format=cstring", "failed to parse Grip-Keep-Alive cstring format"),
        (r"a\x1g; format=cstring", "failed to parse Grip-Keep-Alive cstring format"),
        ("a; format=hex", "no such Grip-Keep-Alive format 'hex'"),
        ("a; mode=often", "no such Grip-Keep-Alive mode 'often'"),
        ("a; timeout=x", "failed to parse Grip-Keep-Alive timeout value"),
        ("a; timeout=-1", "Grip-Keep-Alive timeout has invalid value"),
    ] {
        assert_eq!(keep_alive(value), Err(error.into()), "{value}");
    }
}

#[test]
fn meta_and_last_ids() {
    let instruct = parse(&[
        ("Grip-Set-Meta", r#"user="a,b", role=x; ignored=1"#),
        ("Grip-Set-Meta", "user=c"),
        ("Grip-Last", "one; last-id=1, two; last-id=\"2\", three"),
    ])
    .unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(instruct.meta, [pair("user", "a,b"), pair("role", "x"), pair("user", "c")]);
    assert_eq!(instruct.last, [pair("one", "1"), pair("two", "2")]);
}

#[test]
fn statuses() {
    let status =
        |value| parse(&[("Grip-Status", value)]).map(|instruct| (instruct.reply.code, instruct.reply.reason));
    assert_eq!(status("404"), Ok((404, String::new())));
    assert_eq!(status("404 Gone Fishing"), Ok((404, "Gone Fishing".into())));
    assert_eq!(status("999"), Ok((999, String::new())));
    assert_eq!(status(""), Ok((200, "OK".into())));
    for value in ["x", "1000", "-1", "0", "103", "199", "70000", "2 00"] {
        assert_eq!(status(value), Err("Grip-Status contains invalid status code".into()), "{value}");
    }
}

#[test]
fn the_reply_has_neither_grip_nor_framing() {
    let lines = [
        ("Grip-Channel", "a"),
        ("grip-foo", "1"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "x"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "4"),
        ("Upgrade", "x"),
        ("TE", "x"),
        ("Trailer", "x"),
        ("Content-Encoding", "gzip"),
        ("Content-Type", "text/plain"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
    ];
    let instruct = parse(&lines).unwrap();
    let expected = [
        ("content-encoding", "gzip"),
        ("content-type", "text/plain"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
    ];
    assert_eq!(instruct.reply.headers, headers(&expected));
    assert_eq!(instruct.reply.body, "body");

    let exposing =
        [&lines[..], &[("Grip-Expose-Headers", "Set-Cookie, x-hop, grip-foo"), ("Grip-Expose-Headers", "x")]];
    let instruct = parse(&exposing.concat()).unwrap();
    assert_eq!(instruct.reply.headers, headers(&[("set-cookie", "a"), ("set-cookie", "b")]));
}

#[test]
fn links() {
    let links = |lines: &[(&str, &str)]| parse(lines).map(|instruct| (instruct.next, instruct.gone));
    let next = |uri: &str, timeout| Some(Link { uri: uri.to_owned(), timeout: seconds(timeout) });
    for (value, expected) in [
        ("</next>; rel=next", (next("/next", 120), None)),
        ("<?a=%20b>; rel=next; timeout=0", (next("?a=%20b", 0), None)),
        ("<a>; rel=next, <b>; timeout=3; rel=\"next\"", (next("b", 3), None)),
        ("</n>; rel=next, <http://x/gone>; rel=gone", (next("/n", 120), Some("http://x/gone".to_owned()))),
        ("</n>; rel=prev", (None, None)),
        ("/n", (None, None)),
    ] {
        assert_eq!(links(&[("Grip-Link", value)]), Ok(expected), "{value}");
    }
    for (value, error) in [
        ("/n; rel=next", "failed to parse Grip-Link value"),
        ("<>; rel=next", "failed to parse Grip-Link value"),
        ("</a b>; rel=next", "Grip-Link contains invalid link"),
        ("</a>; rel=next; timeout=x", "failed to parse Grip-Link timeout value"),
        ("</a>; rel=next; timeout=-1", "Grip-Link timeout has invalid value"),
    ] {
        assert_eq!(links(&[("Grip-Link", value)]), Err(error.into()), "{value}");
    }
}

#[test]
fn a_json_hold() {
    let instruct = parse_json(
        r#"{"hold":{"channels":[{"name":"a,;b","prev-id":"1","filters":["skip-users","what"]}],
            "timeout":"20","meta":{"user":"u"}},
            "response":{"code":404,"headers":[["X-A","1"],["Grip-X","1"],["Content-Length","3"]],"body":"x","body-bin":"aGk="}}"#,
    )
    .unwrap();
    assert_eq!(instruct.hold, Some(Hold::Response { timeout: seconds(20) }));
    assert_eq!(channels(&instruct), [("a,;b", Some("1"), &[Filter::SkipUsers][..])]);
    assert_eq!(instruct.meta, [("user".to_owned(), "u".to_owned())]);
    assert_eq!((instruct.reply.code, instruct.reply.reason.as_str()), (404, ""));
    assert_eq!(instruct.reply.headers, headers(&[("x-a", "1")]));
    assert_eq!(instruct.reply.body, "hi");
}

#[test]
fn a_json_keep_alive() {
    use KeepAliveMode::{Idle, Interval};
    let keep_alive = |members: &str| {
        let body = format!(r#"{{"hold":{{"mode":"stream","channels":[],"keep-alive":{{{members}}}}}}}"#);
        parse_json(&body).map(|instruct| instruct.hold)
    };
    let stream = |content: &'static [u8], timeout, mode| {
        let keep_alive = KeepAlive { content: Bytes::from_static(content), timeout: seconds(timeout), mode };
        Ok(Some(Hold::Stream { keep_alive: Some(keep_alive) }))
    };
    assert_eq!(keep_alive(r#""content":"x""#), stream(b"x", 55, Interval));
    assert_eq!(
        keep_alive(r#""content-bin":"/v8=","content":"x","timeout":0"#),
        stream(b"\xfe\xff", 1, Interval)
    );
    assert_eq!(keep_alive(r#""content":"x","mode":"idle","timeout":"9""#), stream(b"x", 9, Idle));
    assert_eq!(keep_alive(""), Ok(Some(Hold::Stream { keep_alive: None })));
    for members in
        [r#""content":1"#, r#""content":"x","timeout":-1"#, r#""content":"x","mode":"x""#, r#""timeout":"x""#]
    {
        assert!(keep_alive(members).is_err(), "{members}");
    }
}

#[test]
fn json_and_headers_together() {
    let lines = headers(&[
        ("Content-Type", "application/grip-instruct; v=1"),
        ("Grip-Hold", "stream"),
        ("Grip-Channel", "h"),
        ("Grip-Status", "304"),
        ("Grip-Timeout", "30"),
        ("Grip-Set-Meta", "user=h"),
        ("Grip-Keep-Alive", "x"),
        ("Grip-Link", "</n>; rel=next"),
    ]);
    let parse =
        |body: &str| Instruct::parse(200, "OK", &lines, Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let instruct = parse(r#"{"hold":{"channels":[{"name":"j"}],"meta":{"user":"j"}}}"#);
    assert_eq!(instruct.hold, Some(Hold::Response { timeout: seconds(30) }));
    assert_eq!(channels(&instruct), [("h", None, &[][..]), ("j", None, &[])]);
    assert_eq!(instruct.meta.last().unwrap().1, "j");
    assert_eq!(instruct.reply.code, 304);
    assert!(instruct.reply.body.is_empty() && instruct.reply.headers.is_empty());
    assert!(instruct.next.is_some());

    assert!(matches!(parse("{}").hold, Some(Hold::Stream { keep_alive: Some(_) })));
}

#[test]
fn a_reason_belongs_to_its_code() {
    let reason =
        |response: &str| parse_json(&format!(r#"{{"response":{{{response}}}}}"#)).unwrap().reply.reason;
    assert_eq!(reason(""), "Fine");
    assert_eq!(reason(r#""code":201"#), "");
    assert_eq!(reason(r#""code":201,"reason":"Done""#), "Done");
    assert_eq!(reason(r#""reason":"Done""#), "Done");
}

#[test]
fn json_that_is_refused() {
    let hold = |members: &str| format!(r#"{{"hold":{{"channels":[],{members}}}}}"#);
    let response = |members: &str| format!(r#"{{"response":{{{members}}}}}"#);
    for (body, error) in [
        (String::new(), "failed to parse application/grip-instruct content as JSON"),
        ("{".into(), "failed to parse application/grip-instruct content as JSON"),
        ("[]".into(), "instruct must be an object"),
        (r#"{"hold":null}"#.into(), "instruct contains 'hold' with wrong type"),
        (r#"{"hold":{}}"#.into(), "hold does not contain 'channels'"),
        (r#"{"hold":{"channels":[1]}}"#.into(), "channel is not an object"),
        (r#"{"hold":{"channels":[{}]}}"#.into(), "channel does not contain 'name'"),
        (
            r#"{"hold":{"channels":[{"name":"a","prev-id":null}]}}"#.into(),
            "channel contains 'prev-id' with wrong type",
        ),
        (
            r#"{"hold":{"channels":[{"name":"a","filters":[1]}]}}"#.into(),
            "filters contains value with wrong type",
        ),
        (hold(r#""mode":"x""#), "hold 'mode' must be set to either 'response' or 'stream'"),
        (hold(r#""mode":1"#), "hold contains 'mode' with wrong type"),
        (hold(r#""timeout":"abc""#), "hold contains 'timeout' with wrong type"),
        (hold(r#""timeout":-1"#), "hold contains 'timeout' with invalid value"),
        (hold(r#""timeout":1e12"#), "hold contains 'timeout' with invalid value"),
        (hold(r#""keep-alive":"x""#), "hold contains 'keep-alive' with wrong type"),
        (hold(r#""meta":{"a":1}"#), "'meta' contains 'a' with wrong type"),
        (r#"{"response":1}"#.into(), "instruct contains 'response' with wrong type"),
        (response(r#""code":"x""#), "response contains 'code' with wrong type"),
        (response(r#""code":100"#), "response contains 'code' with invalid value"),
        (response(r#""body":null"#), "response contains 'body' with wrong type"),
        (response(r#""headers":{"X-A":"1\r\nX-B: 2"}"#), "headers contains 'x-a' with invalid value"),
        (response(r#""headers":{"X\nA":"1"}"#), "headers contains an invalid name 'X\\nA'"),
        (response(r#""reason":"a\nb""#), "response contains 'reason' with invalid value"),
    ] {
        assert_eq!(parse_json(&body).unwrap_err(), error, "{body}");
    }
    let created =
        Instruct::parse(201, "", &headers(&[("Content-Type", "application/grip-instruct")]), "{}".into());
    assert_eq!(created.unwrap_err().0, "response code for application/grip-instruct content must be 200");
}

proptest! {
    #[test]
    fn no_header_panics_or_survives(
        lines in proptest::collection::vec((
            "grip-(hold|channel|timeout|keep-alive|set-meta|status|expose-headers|link|last|x)",
            r#"[ -~\t]{0,10}(stream|response|[0-9]{1,4}|<[a-z]{0,3}>|;|=|"|\\|\\x[0-9a-f]{0,2}|,|rel=next|format=cstring|[ -~é]){0,6}"#,
        ), 0..6),
    ) {
        let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Ok(instruct) = parse(&lines) {
            prop_assert!(!instruct.reply.headers.keys().any(|name| name.as_str().starts_with("grip-")));
            prop_assert!((200..=999).contains(&instruct.reply.code));
        }
    }

    #[test]
    fn no_body_panics(body: Vec<u8>) {
        let headers = headers(&[("Content-Type", "application/grip-instruct")]);
        let _parsed = Instruct::parse(200, "OK", &headers, body.into());
    }
}
